"""Code of the caller that runs while a call reads its tensors, and takes their memory away or never ends."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip import IndexedSlices
from fastclip.train import AdamOptimizer, GradientDescentOptimizer
from support import fresh_python

SIZE = 1_000_000


def test_object_that_holds_itself_is_refused() -> None:
    class Endless:
        def _held_tensor(self) -> Endless:
            return self

        def __dlpack__(self, **options: Any) -> Any:
            raise RuntimeError("none")

    with pytest.raises(TypeError, match=r"t_list\[0\]"):
        fastclip.global_norm([Endless()])


class Resizing:
    """A bound that frees the memory of an array when it is read."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __float__(self) -> float:
        self.array.resize(0, refcheck=False)
        return 1.0


def test_array_that_loses_its_memory_while_a_bound_is_read_is_not_read() -> None:
    array = np.ones((SIZE, 2), np.float32)
    with pytest.raises(ValueError, match="other memory"):
        fastclip.clip_by_norm(array, Resizing(array), axes=0, out=array)


def test_array_that_loses_its_memory_during_an_allreduce_is_not_read() -> None:
    array = np.ones(SIZE, np.float32)

    class Communicator:
        def allreduce(self, sums: Any) -> Any:
            array.resize(0, refcheck=False)
            return sums

    with pytest.raises(ValueError, match="other memory"):
        fastclip.clip_by_global_norm([array], 1.0, comm=Communicator())


@pytest.mark.interop("torch")
def test_tensor_whose_type_passes_operations_to_python_code_is_refused() -> None:
    torch = pytest.importorskip("torch")

    class Wrapper(torch.Tensor):  # type: ignore[misc, name-defined]
        @staticmethod
        def __new__(cls, size: int) -> Any:
            return torch.Tensor._make_wrapper_subclass(
                cls, (size,), dispatch_sizes_strides_policy="strides", strides=(1,)
            )

        @classmethod
        def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            first.data = torch.zeros(1)
            raise RuntimeError("dispatched")

    first = torch.ones(SIZE)
    with pytest.raises(TypeError, match=r"t_list\[1\] is a torch Wrapper"):
        fastclip.global_norm([first, Wrapper(3)])


@pytest.mark.interop("torch")
def test_bound_that_is_a_tensor_keeps_its_memory() -> None:
    torch = pytest.importorskip("torch")
    low = torch.full((SIZE,), -1.0)

    class High:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            low.data = torch.zeros(1)
            return np.zeros(SIZE, np.float32)

    clipped = fastclip.clip_by_value(np.full(SIZE, -5.0, np.float32), low, High())
    assert (clipped == -1.0).all()


@pytest.mark.interop("torch")
def test_variable_that_loses_its_memory_while_a_copy_is_read_is_not_updated() -> None:
    # In a process of its own, because the test fails by a crash.
    script = """
import numpy as np, torch, fastclip
from fastclip.train import MomentumOptimizer

w, armed = torch.ones(1_000_000), False

class Copy(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if armed:
            w.data = torch.zeros(1)
        return super().__torch_function__(function, types, args, kwargs or {})

copy = torch.zeros(1_000_000, dtype=torch.bfloat16).as_subclass(Copy)
optimizer = MomentumOptimizer(0.1, 0.9)
optimizer.set_low_precision_copy(w, copy)
optimizer.apply_gradients([(torch.ones(1_000_000), w)])
armed = True
try:
    optimizer.apply_gradients([(torch.ones(1_000_000), w)])
except ValueError as error:
    assert "other memory" in str(error), error
    print("refused")
"""
    assert fresh_python.run(script).stdout == "refused\n"


@pytest.mark.interop("torch")
def test_new_tensor_does_not_find_the_slots_of_one_that_was_given_other_memory() -> None:
    torch = pytest.importorskip("torch")
    w = torch.zeros(1000)
    w.numpy()
    optimizer = AdamOptimizer(0.1)
    optimizer.apply_gradients([(torch.ones(1000), w)])
    address = w.data_ptr()
    w.data = torch.zeros(3)
    others = [torch.zeros(1000) for _ in range(50)]
    assert all(optimizer.get_slot(other, "m") is None for other in others if other.data_ptr() == address)


@pytest.mark.interop("torch")
def test_state_is_loaded_for_variables_that_are_tensors() -> None:
    torch = pytest.importorskip("torch")
    w, optimizer = torch.ones(5), AdamOptimizer(0.1)
    optimizer.apply_gradients([(torch.arange(5.0), w)])
    state, copy = optimizer.state_dict(), w.clone()
    other = AdamOptimizer(0.1)
    other.load_state_dict(state, [copy])
    for each, variable in ((optimizer, w), (other, copy)):
        each.apply_gradients([(torch.ones(5), variable)])
    assert torch.equal(w, copy)


@pytest.mark.interop("torch")
def test_repeated_rows_may_be_narrower_than_their_variable() -> None:
    torch = pytest.importorskip("torch")
    w = torch.zeros(4, 2)
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    GradientDescentOptimizer(1.0).apply_gradients([(IndexedSlices(values, [1, 1]), w)])
    assert w.tolist() == [[0.0, 0.0], [-4.0, -6.0], [0.0, 0.0], [0.0, 0.0]]


def test_values_of_an_ordered_dict_count_as_a_list() -> None:
    gradients = OrderedDict(w=np.float32([3.0]), b=np.float32([4.0]))
    clipped, norm = fastclip.clip_by_global_norm(gradients.values(), 2.5)
    assert norm == 5
    assert [float(x[0]) for x in clipped] == [1.5, 2.0]


def test_keys_that_become_equal_lose_no_entry() -> None:
    class Key:
        number = 0

        def __init__(self, number: int) -> None:
            self.number = number

        def __hash__(self) -> int:
            return self.number

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key) and self.number == other.number

    first, second = Key(1), Key(2)
    gradients = {first: np.ones(2), second: np.ones(2)}
    second.number = 1
    with pytest.raises(ValueError, match="equal"):
        fastclip.clip_by_global_norm(gradients, 1.0)


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer needs more of the stack")
def test_deep_lists_are_refused_on_a_small_stack() -> None:
    script = """
import threading, fastclip
deep = 1.0
for _ in range(300):
    deep = [deep, None]
failures = []

def call():
    try:
        fastclip.global_norm([deep])
    except ValueError as error:
        failures.append(str(error))

threading.stack_size(128 * 1024)
thread = threading.Thread(target=call)
thread.start()
thread.join()
print(failures)
"""
    assert "nested too deeply" in fresh_python.run(script).stdout
