"""Slots are kept as long as the memory of their variable exists, and dropped by the next call after that."""

from __future__ import annotations

import array
import contextlib
import gc
import mmap
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip import Variable
from fastclip.train import AdamOptimizer, GradientDescentOptimizer, MomentumOptimizer, Optimizer
from support.training_cases import EVERY_OPTIMIZER, Training, assert_same_training, build, normal


def step(optimizer: Optimizer, *variables: Any) -> None:
    """Takes a step with gradients of ones."""
    optimizer.apply_gradients([(np.ones(np.shape(w), np.float32), w) for w in variables])


def count(optimizer: Optimizer) -> int:
    """Returns the number of variables that the optimizer has."""
    return int(optimizer.state_dict()["variables"])


def zeros() -> Any:
    """Returns a new array of zeros.

    It gets the memory of an array like it that was just deleted, because NumPy keeps a few small blocks.
    (That is true of `np.empty`, not of `np.zeros`.)
    """
    array = np.empty(100, np.float32)
    array.fill(0)
    return array


def momentum(optimizer: Optimizer, variable: Any) -> Any:
    """Returns the first element of the momentum of a variable; None if it has none."""
    slot = optimizer.get_slot(variable, "momentum")
    return None if slot is None else float(slot.reshape(-1)[0])


@contextlib.contextmanager
def lost_without_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "10 variables", RuntimeWarning)
        yield


# --- variables that are gone ---------------------------------------------------------------------


@EVERY_OPTIMIZER
def test_variable_that_is_bound_to_a_new_array_in_each_step_has_one_set_of_slots(variant: str) -> None:
    optimizer, variable = build(variant), normal(1, 500)
    with lost_without_warning():
        for seed in range(30):
            variable = variable * np.float32(1.0)
            optimizer.apply_gradients([(normal(seed, 500), variable)])
    assert count(optimizer) == 1
    slots = [slot for slot in optimizer.variables() if slot.ndim]
    assert len(slots) == len(optimizer.get_slot_names())


def test_memory_of_lost_variables_is_freed_by_the_next_step() -> None:
    optimizer, kept = MomentumOptimizer(1.0, 0.9), np.zeros(3, np.float32)
    lost = np.zeros(100_000, np.float32)
    step(optimizer, kept, lost)
    slot = weakref.ref(optimizer.get_slot(lost, "momentum").base)
    memory = weakref.ref(lost)
    assert slot() is not None
    del lost
    assert memory() is None
    step(optimizer, kept)
    assert slot() is None


@pytest.mark.parametrize("call", ["variables", "state_dict", "get_slot_names"])
def test_memory_of_lost_variables_is_freed_by_calls_that_list_variables(call: str) -> None:
    optimizer, lost = MomentumOptimizer(1.0, 0.9), np.zeros(100, np.float32)
    step(optimizer, lost)
    slot = weakref.ref(optimizer.get_slot(lost, "momentum").base)
    del lost
    getattr(optimizer, call)()
    assert slot() is None
    assert optimizer.variables() == []
    assert optimizer.get_slot_names() == []
    assert count(optimizer) == 0


def test_array_that_gets_the_address_of_a_lost_variable_has_new_slots() -> None:
    optimizer = MomentumOptimizer(1.0, 0.9)
    addresses = set()
    with lost_without_warning():
        for _ in range(50):
            variable = zeros()
            addresses.add(variable.__array_interface__["data"][0])
            assert momentum(optimizer, variable) is None
            step(optimizer, variable)
            assert momentum(optimizer, variable) == 1.0
            assert variable[0] == -1.0
            del variable
    assert len(addresses) < 50, "no address was used twice, so that the test shows nothing"


@pytest.mark.parametrize("method", ["get_slot", "forget"])
def test_lost_variable_is_not_found_by_an_array_at_its_address(method: str) -> None:
    optimizer = MomentumOptimizer(1.0, 0.9)
    seen = 0
    for _ in range(9):
        first = zeros()
        step(optimizer, first)
        address = first.__array_interface__["data"][0]
        del first
        second = zeros()
        seen += second.__array_interface__["data"][0] == address
        if method == "get_slot":
            assert optimizer.get_slot(second, "momentum") is None
        else:
            with pytest.raises(ValueError, match="does not know"):
                optimizer.forget(second)
        optimizer.variables()
        del second
    assert seen, "no address was used twice, so that the test shows nothing"


def test_low_precision_copy_is_not_written_for_an_array_at_the_address_of_its_lost_variable() -> None:
    optimizer = GradientDescentOptimizer(1.0)
    seen = 0
    for _ in range(9):
        half, variable = np.zeros(100, np.float16), zeros()
        optimizer.set_low_precision_copy(variable, half)
        address = variable.__array_interface__["data"][0]
        del variable
        variable = zeros()
        seen += variable.__array_interface__["data"][0] == address
        copy = weakref.ref(half)
        step(optimizer, variable)
        assert not half.any()
        del half
        assert copy() is None
        del variable
    assert seen, "no address was used twice, so that the test shows nothing"


def test_array_whose_memory_is_replaced_is_another_variable() -> None:
    seen = 0
    for _ in range(20):
        optimizer, variable = MomentumOptimizer(1.0, 0.9), zeros()
        step(optimizer, variable)
        address = variable.__array_interface__["data"][0]
        # Frees the previous memory, although the array lives.
        variable.__setstate__((1, (3,), np.dtype(np.float32), False, bytes(12)))  # type: ignore[attr-defined]
        other = zeros()
        seen += other.__array_interface__["data"][0] == address
        step(optimizer, other)
        assert momentum(optimizer, other) == 1.0
        assert count(optimizer) == 1
    assert seen, "no address was used twice, so that the test shows nothing"


def test_order_of_the_state_is_that_of_the_variables_that_are_left() -> None:
    variables = [np.zeros(n, np.float32) for n in (1, 2, 3, 4)]
    optimizer = MomentumOptimizer(1.0, 0.9)
    step(optimizer, *variables)
    del variables[1]
    step(optimizer, *reversed(variables))
    state = optimizer.state_dict()
    assert [int(state[f"shape.{i}"][0]) for i in range(3)] == [1, 3, 4]
    resumed = MomentumOptimizer(1.0, 0.9)
    resumed.load_state_dict(state, variables)
    optimizer.load_state_dict(state)
    for variable in variables:
        assert momentum(resumed, variable) == momentum(optimizer, variable) == np.float32(1.9)


def test_state_after_all_variables_are_lost_can_be_loaded() -> None:
    optimizer = AdamOptimizer()
    step(optimizer, np.zeros(3, np.float32))
    state = optimizer.state_dict()
    assert int(state["variables"]) == 0
    resumed, variable = AdamOptimizer(), np.zeros(3, np.float32)
    resumed.load_state_dict(state, [variable])
    step(resumed, variable)
    assert float(resumed.state_dict()["beta1_power"]) == pytest.approx(0.9**3)
    del state["beta1_power"]
    with pytest.raises(ValueError, match="beta2_power"):
        resumed.load_state_dict(state, [variable])


def test_variable_in_a_cycle_is_lost_when_it_is_collected() -> None:
    class Attributed(np.ndarray):
        itself: Any

    optimizer = MomentumOptimizer(1.0, 0.9)
    variable = np.zeros(3, np.float32).view(Attributed).copy()
    variable.itself = variable
    step(optimizer, variable)
    del variable
    gc.collect()
    assert count(optimizer) == 0


# --- owners of memory ----------------------------------------------------------------------------

#: Functions that make an array over memory which something else keeps: the thing, and a function that returns
#: a new array over it.
SOURCES: dict[str, Callable[[], tuple[Any, Callable[[Any], Any]]]] = {
    "the array": lambda: (np.zeros(64, np.float32), lambda w: w),
    "slice": lambda: (np.zeros(64, np.float32), lambda w: w[:]),
    "part": lambda: (np.zeros(64, np.float32), lambda w: w[3:40:2]),
    "reversed": lambda: (np.zeros(64, np.float32), lambda w: w[::-1]),
    "view of a view": lambda: (np.zeros(64, np.float32), lambda w: w[1:].reshape(7, 9).T[1:]),
    "column": lambda: (np.zeros((8, 8), np.float32, order="F"), lambda w: w[:, 2]),
    "bytes": lambda: (np.zeros(256, np.uint8), lambda w: w.view(np.float32)),
    "memoryview": lambda: (np.zeros(64, np.float32), lambda w: np.asarray(memoryview(w))),
    "field": lambda: (np.zeros(9, [("a", "i4"), ("w", "f4")]), lambda w: w["w"]),
    "subclass": lambda: (np.zeros(64, np.float32).view(np.matrix), lambda w: w[:, 5:]),
    "Variable": lambda: (Variable(np.zeros(64, np.float32)), lambda w: w),
    "value of a Variable": lambda: (Variable(np.zeros(64, np.float32)), lambda w: w.value[:]),
    "result of fastclip": lambda: (
        fastclip.clip_by_global_norm([np.zeros(64, np.float32)], 1.0)[0][0],
        lambda w: w[1:],
    ),
}


@pytest.mark.parametrize("source", list(SOURCES))
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_views_that_are_made_anew_for_each_step_keep_their_slots(source: str) -> None:
    owner, view = SOURCES[source]()
    optimizer = MomentumOptimizer(1.0, 0.5)
    for expected in (1.0, 1.5, 1.75):
        step(optimizer, view(owner))
        gc.collect()
        assert momentum(optimizer, view(owner)) == expected
    assert count(optimizer) == 1
    del owner
    assert count(optimizer) == 0


@pytest.mark.parametrize("source", list(SOURCES))
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_slots_are_kept_as_long_as_a_view_lives(source: str) -> None:
    owner, view = SOURCES[source]()
    optimizer, kept = MomentumOptimizer(1.0, 0.5), view(owner)
    step(optimizer, kept)
    del owner
    gc.collect()
    if source == "the array":
        kept = kept[:]
    step(optimizer, kept)
    assert count(optimizer) == 1


def test_array_of_a_variable_object_outlives_it_with_its_slots() -> None:
    optimizer, variable = MomentumOptimizer(1.0, 0.5), Variable([1.0])
    memory = variable.value
    step(optimizer, variable)
    del variable
    step(optimizer, memory)
    assert momentum(optimizer, memory) == 1.5


#: Functions that return an object whose memory may be freed or moved while it lives, and an array over it.
OTHERS: dict[str, Callable[[Path], tuple[Any, Callable[[Any], Any]]]] = {
    "bytearray": lambda path: (bytearray(64), lambda owner: np.frombuffer(owner, np.float32)),
    "bytearray itself": lambda path: (memoryview(bytearray(64)).cast("f"), lambda owner: owner),
    "array": lambda path: (array.array("f", [0.0] * 16), lambda owner: owner),
    "mmap": lambda path: (mmap.mmap(-1, 4096), lambda owner: np.frombuffer(owner, np.float32)),
    "memmap": lambda path: (
        np.memmap(path / "memory", np.float32, "w+", shape=(16,)),
        lambda owner: owner[:],
    ),
    "ctypes": lambda path: ((__import__("ctypes").c_float * 16)(), np.ctypeslib.as_array),
    "DLPack": lambda path: (np.zeros(16, np.float32), np.from_dlpack),
}


@pytest.mark.parametrize("kind", list(OTHERS))
def test_memory_of_other_objects_is_kept_with_its_slots(kind: str, tmp_path: Path) -> None:
    owner, view = OTHERS[kind](tmp_path)
    optimizer = MomentumOptimizer(1.0, 0.5)
    for expected in (1.0, 1.5, 1.75):
        step(optimizer, view(owner))
        gc.collect()
        assert momentum(optimizer, view(owner)) == expected
    variable = view(owner)
    del owner
    gc.collect()
    assert count(optimizer) == 1
    optimizer.forget(variable)
    assert count(optimizer) == 0


def test_buffer_cannot_move_while_its_array_is_a_variable() -> None:
    optimizer, buffer = MomentumOptimizer(1.0, 0.5), array.array("f", [0.0] * 16)
    step(optimizer, buffer)
    with pytest.raises(BufferError):
        buffer.append(1.0)
    optimizer.forget(buffer)
    buffer.append(1.0)


@pytest.mark.interop("torch")
def test_slots_of_torch_tensors_are_kept_as_long_as_a_tensor_over_the_memory() -> None:
    torch = pytest.importorskip("torch")
    views: list[Callable[[Any], Any]] = [
        lambda t: t,
        lambda t: t.numpy(),
        lambda t: t.detach(),
        lambda t: t.view(8, 2).T,
        lambda t: t[3:].numpy()[1:],
        lambda t: torch.nn.Parameter(t),
    ]
    for view in views:
        tensor, optimizer = torch.zeros(16), MomentumOptimizer(1.0, 0.5)
        for expected in (1.0, 1.5):
            step(optimizer, view(tensor))
            gc.collect()
            assert momentum(optimizer, view(tensor)) == expected
        other = tensor.view(4, 4)
        del tensor
        gc.collect()
        assert momentum(optimizer, view(other.view(16))) == 1.5
        del other
        gc.collect()
        assert count(optimizer) == 0


@pytest.mark.interop("torch")
def test_torch_tensor_that_is_bound_anew_in_each_step_has_one_set_of_slots() -> None:
    torch = pytest.importorskip("torch")
    optimizer, tensor = MomentumOptimizer(1.0, 0.5), torch.zeros(1000)
    with lost_without_warning():
        for _ in range(20):
            tensor = tensor * 1.0
            step(optimizer, tensor)
            assert momentum(optimizer, tensor) == 1.0
    assert count(optimizer) == 1


@pytest.mark.interop("torch")
def test_tensors_over_memory_of_numpy_keep_their_slots() -> None:
    torch = pytest.importorskip("torch")
    optimizer, memory = MomentumOptimizer(1.0, 0.5), np.zeros(16, np.float32)
    for expected in (1.0, 1.5):
        step(optimizer, torch.from_numpy(memory))
        assert momentum(optimizer, torch.from_numpy(memory)) == expected


@pytest.mark.interop("torch")
def test_dlpack_views_of_a_torch_tensor_keep_their_slots() -> None:
    torch = pytest.importorskip("torch")
    optimizer, tensor = MomentumOptimizer(1.0, 0.5), torch.zeros(16)
    for expected in (1.0, 1.5):
        step(optimizer, np.from_dlpack(tensor))
        assert momentum(optimizer, tensor) == expected


def test_low_precision_copy_goes_with_its_variable() -> None:
    optimizer, variable, half = GradientDescentOptimizer(1.0), np.zeros(3), np.zeros(3, np.float16)
    optimizer.set_low_precision_copy(variable, half)
    copy = weakref.ref(half)
    del half
    optimizer.variables()
    assert copy() is not None
    optimizer.apply_gradients([(np.ones(3), variable)])
    np.testing.assert_array_equal(copy(), np.full(3, -1.0))
    del variable
    optimizer.variables()
    assert copy() is None


# --- the warning ---------------------------------------------------------------------------------


def test_warning_comes_once_after_ten_lost_variables() -> None:
    optimizer, variable = MomentumOptimizer(1.0, 0.5, name="mine"), np.zeros(3, np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(60):
            variable = variable * np.float32(1.0)
            step(optimizer, variable)
            assert len(caught) == (number >= 11)
    assert caught[0].category is RuntimeWarning
    text = str(caught[0].message)
    assert "10 variables that the optimizer 'mine' has updated no longer exist" in text
    assert "in place" in text
    assert "forget(variable)" in text
    assert caught[0].filename == __file__


def test_warning_that_is_an_error_comes_before_the_step() -> None:
    optimizer, kept = MomentumOptimizer(1.0, 0.5), np.zeros(3, np.float32)
    for _ in range(11):
        optimizer.apply_gradients([(None, kept), (np.ones(3, np.float32), np.zeros(3, np.float32))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            step(optimizer, kept)
        assert not kept.any()
        step(optimizer, kept)
    assert (kept == -1).all()


def test_views_and_forgotten_variables_are_no_reason_to_warn() -> None:
    optimizer, kept = MomentumOptimizer(1.0, 0.5), np.zeros((30, 3), np.float32)
    for row in range(30):
        step(optimizer, kept[row])
        other = np.zeros(3, np.float32)
        step(optimizer, other)
        optimizer.forget(other)
        del other
    step(optimizer, kept[0])


# --- forget --------------------------------------------------------------------------------------


@EVERY_OPTIMIZER
def test_forgotten_variable_begins_with_new_slots(variant: str) -> None:
    optimizer, kept, forgotten = build(variant), normal(1, 40), normal(2, 40)
    optimizer.apply_gradients([(normal(3, 40), forgotten), (normal(4, 40), kept)])
    names = optimizer.get_slot_names()
    before = [optimizer.get_slot(kept, name).copy() for name in names]
    optimizer.forget(forgotten)
    assert count(optimizer) == 1
    assert all(optimizer.get_slot(forgotten, name) is None for name in names)
    after = [optimizer.get_slot(kept, name) for name in names]
    for first, second in zip(before, after, strict=True):
        assert first.tobytes() == second.tobytes()
    optimizer.apply_gradients([(normal(5, 40), forgotten)])
    assert count(optimizer) == 2


def test_forget_drops_the_low_precision_copy() -> None:
    optimizer, variable, half = GradientDescentOptimizer(1.0), np.zeros(3), np.zeros(3, np.float16)
    optimizer.set_low_precision_copy(variable, half)
    optimizer.forget(variable)
    optimizer.apply_gradients([(np.ones(3), variable)])
    assert not half.any()


@pytest.mark.parametrize("variable", [np.zeros(3), np.zeros((2, 2), np.float32), Variable([1.0])])
def test_forgetting_an_unknown_variable_raises(variable: Any) -> None:
    optimizer, known = MomentumOptimizer(1.0, 0.5), np.zeros(3)
    optimizer.apply_gradients([(np.ones(3), known)])
    with pytest.raises(ValueError, match=r"variable is an array of dtype .* does not know"):
        optimizer.forget(variable)
    optimizer.forget(known)
    with pytest.raises(ValueError, match="does not know"):
        optimizer.forget(known)


@pytest.mark.parametrize("variable", [None, 3, "w", [1.0]])
def test_forgetting_something_else_raises(variable: Any) -> None:
    with pytest.raises(TypeError, match="variable"):
        MomentumOptimizer(1.0, 0.5).forget(variable)


# --- variables that are lost in the middle of a step ---------------------------------------------


class Interrupted(MomentumOptimizer):
    """Calls a function in the middle of each step."""

    within: Callable[[], None] = staticmethod(lambda: None)

    def _with_counters(self, hyper: tuple[float, ...]) -> tuple[float, ...]:
        self.within()
        return super()._with_counters(hyper)


def test_variable_may_be_lost_in_the_middle_of_a_step() -> None:
    optimizer = Interrupted(1.0, 0.5)
    others = [zeros() for _ in range(3)]
    kept = zeros()
    step(optimizer, kept, *others)
    taken: list[Any] = []

    def lose() -> None:
        others.clear()
        gc.collect()
        taken.append(count(optimizer))
        # These may get the memory of the lost variables.
        taken.extend(zeros() for _ in range(3))

    optimizer.within = lose  # type: ignore[method-assign]
    step(optimizer, kept)
    assert taken[0] == 1
    assert momentum(optimizer, kept) == 1.5
    optimizer.within = lambda: None  # type: ignore[method-assign]
    for variable in taken[1:]:
        step(optimizer, variable)
        assert momentum(optimizer, variable) == 1.0


def test_forget_in_the_middle_of_a_step_raises() -> None:
    optimizer, variable = Interrupted(1.0, 0.5), np.zeros(3, np.float32)
    step(optimizer, variable)
    optimizer.within = lambda: optimizer.forget(variable)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="forget was called in the middle of a step"):
        step(optimizer, variable)
    assert momentum(optimizer, variable) == 1.0


def test_callbacks_of_weak_references_may_use_the_optimizer() -> None:
    optimizer, states = MomentumOptimizer(1.0, 0.5), []
    kept = np.zeros(3, np.float32)
    with lost_without_warning():
        for number in range(20):
            variable = np.zeros(3, np.float32)
            watch = weakref.ref(variable, lambda _: states.append((count(optimizer), step(optimizer, kept))))
            step(optimizer, variable, kept)
            del variable
            assert watch() is None
            assert len(states) == number + 1
    assert {number for number, _ in states} == {1}
    assert count(optimizer) == 1


def test_variables_may_be_lost_in_other_threads() -> None:
    optimizer, kept = MomentumOptimizer(0.0, 1.0), np.zeros(1000, np.float32)
    failures: list[BaseException] = []
    steps = 150

    def work() -> None:
        try:
            for _ in range(steps):
                variable = np.zeros(1000, np.float32)
                step(optimizer, variable)
                assert momentum(optimizer, variable) == 1.0
                step(optimizer, kept)
                optimizer.state_dict()
        except BaseException as error:
            failures.append(error)

    with lost_without_warning():
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert momentum(optimizer, kept) == 4 * steps
    assert count(optimizer) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_drops_its_own_lost_variables() -> None:
    from support import fresh_python

    fresh_python.run(
        """
        import os, warnings
        import numpy as np
        from fastclip.train import MomentumOptimizer
        warnings.simplefilter("ignore")  # Python warns of forks in processes with several threads
        optimizer = MomentumOptimizer(1.0, 0.5)
        kept, lost = np.zeros(3_000_000, np.float32), np.zeros(3, np.float32)
        pairs = lambda *ws: [(np.ones_like(w), w) for w in ws]
        optimizer.apply_gradients(pairs(kept, lost))
        child = os.fork()
        if child == 0:
            del lost
            optimizer.apply_gradients(pairs(kept))
            assert int(optimizer.state_dict()["variables"]) == 1
            os._exit(0)
        optimizer.apply_gradients(pairs(kept, lost))
        assert int(optimizer.state_dict()["variables"]) == 2
        assert os.waitpid(child, 0)[1] == 0
        assert optimizer.get_slot(lost, "momentum")[0] == 1.5
        """
    )


def test_losing_other_variables_does_not_change_a_bit() -> None:
    variables = [normal(seed, 50) for seed in range(6)]
    expected = Training("Adam", [variable.copy() for variable in variables])
    actual = Training("Adam", [variable.copy() for variable in variables])
    with lost_without_warning():
        for seed in range(4):
            gradients = [normal(seed, 50) for _ in variables]
            extra = [np.zeros(50, np.float32) for _ in range(seed)]
            expected.step(gradients)
            pairs = [*[(normal(9, 50), w) for w in extra], *zip(gradients, actual.variables, strict=True)]
            actual.optimizer.apply_gradients(pairs, actual.global_step)
            del extra, pairs
    assert_same_training(actual, expected)
