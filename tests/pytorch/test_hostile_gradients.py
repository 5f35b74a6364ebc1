"""Wrong items, grad modes, and threads around the functions of `fastclip.torch`."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fastclip
from reference_clipping import parameter, parameters, some_gradients, versions

pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "clip_grad_norm_": lambda owners: fastclip.torch.clip_grad_norm_(owners, 1.0),
    "clip_grads_with_norm_": lambda owners: fastclip.torch.clip_grads_with_norm_(owners, 1.0, 5.0),
    "clip_grad_value_": lambda owners: fastclip.torch.clip_grad_value_(owners, 1.0),
}
EVERY_FUNCTION = pytest.mark.parametrize("name", FUNCTIONS)


# --- wrong items --------------------------------------------------------------------------------


ITEMS: dict[str, tuple[Any, str]] = {
    "None": (None, "NoneType"),
    "number": (3.0, "float"),
    "string": ("weight", "str"),
    "array": (np.zeros(2), "ndarray"),
    "list": ([torch.zeros(2)], "list"),
    "module": (torch.nn.Linear(1, 1), "Linear"),
    "class of tensors": (torch.Tensor, "_TensorMeta"),
    "object whose gradient is an array": (types.SimpleNamespace(grad=np.zeros(2)), "SimpleNamespace"),
}


@EVERY_FUNCTION
@pytest.mark.parametrize("item", ITEMS)
def test_items_that_are_no_tensors(name: str, item: str) -> None:
    value, kind = ITEMS[item]
    owner = parameter(torch.tensor([3.0, 4.0]))
    for at, items in ((0, [value]), (1, [owner, value, owner]), (2, [owner, torch.zeros(2), value])):
        with pytest.raises(TypeError, match=rf"^parameters\[{at}\] is {kind}; it takes a tensor$"):
            FUNCTIONS[name](items)
        with pytest.raises(TypeError, match=rf"^parameters\[{at}\] is {kind}; it takes a tensor$"):
            FUNCTIONS[name](iter(items))
    assert owner.grad.tolist() == [3.0, 4.0]
    assert owner.grad._version == 0


PAIRS: dict[str, Callable[[Any], list[Any]]] = {
    "a tensor behind a pair": lambda owner: [("first", owner), owner],
    "a pair behind a tensor": lambda owner: [owner, ("second", owner)],
    "a pair of a name and None": lambda owner: [("first", owner), ("second", None)],
    "a pair without a name": lambda owner: [("first", owner), (2, owner)],
    "three things": lambda owner: [("first", owner), ("second", owner, owner)],
    "a list of two": lambda owner: [("first", owner), ["second", owner]],
    "an empty tuple": lambda owner: [("first", owner), ()],
    "None": lambda owner: [("first", owner), None],
}


@EVERY_FUNCTION
@pytest.mark.parametrize("pairs", PAIRS)
def test_pairs_that_are_wrong(name: str, pairs: str) -> None:
    owner = parameter(torch.tensor([3.0, 4.0]))
    with pytest.raises(TypeError, match=r"^parameters\[1\] is \w+; it takes a t"):
        FUNCTIONS[name](PAIRS[pairs](owner))
    assert owner.grad.tolist() == [3.0, 4.0]


@EVERY_FUNCTION
def test_dict_of_named_parameters(name: str) -> None:
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"^parameters\[0\] is str; it takes a tensor$"):
        FUNCTIONS[name](dict(layer.named_parameters()))


@EVERY_FUNCTION
@pytest.mark.parametrize("given", [None, 3, torch.nn.Linear(2, 2)], ids=["None", "number", "module"])
def test_parameters_that_are_no_iterable(name: str, given: Any) -> None:
    with pytest.raises(TypeError):
        FUNCTIONS[name](given)


@EVERY_FUNCTION
def test_iterable_that_raises(name: str) -> None:
    owner = parameter(torch.tensor([3.0, 4.0]))

    def broken() -> Any:
        yield owner
        raise KeyError("layer")

    with pytest.raises(KeyError, match="layer"):
        FUNCTIONS[name](broken())
    assert owner.grad.tolist() == [3.0, 4.0]


@EVERY_FUNCTION
def test_refused_calls_leave_the_next_ones_right(name: str) -> None:
    base = torch.tensor([3.0, 4.0])
    for _ in range(20):
        with pytest.raises(ValueError, match="gradients"):
            FUNCTIONS[name](parameters([base, base[:]]))
        with pytest.raises(TypeError):
            FUNCTIONS[name]([parameter(base), 3])
    assert base.tolist() == [3.0, 4.0]
    FUNCTIONS[name]([parameter(base)])
    assert base._version == 1


# --- grad modes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_gradients_in_every_mode(mode: Any, needs_grad: bool) -> None:
    expected = {
        "clip_grad_norm_": [0.6, 0.8],
        "clip_grads_with_norm_": [0.6, 0.8],
        "clip_grad_value_": [1.0, 1.0],
    }
    for name, function in FUNCTIONS.items():
        gradient = torch.tensor([3.0, 4.0], requires_grad=needs_grad)
        owner = parameter(gradient)
        with mode():
            result = function([owner])
        assert result is None or not result.requires_grad
        assert owner.grad is gradient
        assert gradient.requires_grad is needs_grad
        assert gradient.is_leaf
        torch.testing.assert_close(gradient.detach(), torch.tensor(expected[name]))
        assert gradient._version == 1


def test_gradients_with_a_graph_of_their_own() -> None:
    for function in (fastclip.torch.clip_grad_norm_, torch.nn.utils.clip_grad.clip_grad_norm_):
        owner = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        owner.grad = torch.autograd.grad((owner**3).sum(), owner, create_graph=True)[0]
        assert owner.grad.grad_fn is not None
        assert float(function([owner], 1.0)) == pytest.approx(153**0.5, rel=1e-6)
        torch.testing.assert_close(owner.grad.detach(), torch.tensor([3.0, 12.0]) / 153**0.5)
        assert owner.grad._version == 1
    total = fastclip.torch.get_total_norm([owner.grad])
    assert not total.requires_grad


@EVERY_FUNCTION
@pytest.mark.parametrize("inside", [False, True])
def test_gradients_made_in_inference_mode(name: str, inside: bool) -> None:
    # They have no version counter. The one beside them has.
    for order in (1, -1):
        with torch.inference_mode():
            gradients = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])]
            made = parameter(gradients[0])
        gradients[1] = torch.tensor([0.0, 4.0])
        owners = [made, parameter(gradients[1])][::order]
        with torch.inference_mode(inside):
            FUNCTIONS[name](owners)
        assert float(gradients[0][0]) == pytest.approx(1.0 if name == "clip_grad_value_" else 0.6)
        assert float(gradients[1][1]) == pytest.approx(1.0 if name == "clip_grad_value_" else 0.8)
        assert gradients[1]._version == 1


def test_several_inference_tensors_around_one_with_a_counter() -> None:
    with torch.inference_mode():
        made = [parameter(torch.ones(2)) for _ in range(4)]
    counted = [parameter(torch.ones(2)) for _ in range(3)]
    owners = [made[0], counted[0], made[1], made[2], counted[1], counted[2], made[3]]
    fastclip.torch.clip_grad_norm_(owners, 0.5)
    assert versions([owner.grad for owner in counted]) == [1, 1, 1]


def test_default_dtype_does_not_matter() -> None:
    owner = parameter(torch.tensor([3.0, 4.0]))
    torch.set_default_dtype(torch.float64)
    try:
        result = fastclip.torch.clip_grad_norm_([owner], 1.0)
        assert fastclip.torch.get_total_norm([owner.grad]).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.dtype == torch.float32


def test_default_device_does_not_matter() -> None:
    owner = parameter(torch.tensor([3.0, 4.0]))
    norms = torch.zeros(1, dtype=torch.float64)
    with torch.device("meta"):
        expected = torch.nn.utils.clip_grad.clip_grad_norm_([owner], 100.0)
        result = fastclip.torch.clip_grad_norm_([owner], 1.0, norms=norms)
        total = fastclip.torch.get_total_norm([owner.grad])
    assert expected.device.type == "cpu"
    assert (result.device.type, total.device.type) == ("cpu", "cpu")
    assert result == 5.0
    assert norms.tolist() == [5.0]


def test_default_device_does_not_matter_for_a_known_norm() -> None:
    owner = parameter(torch.tensor([3.0, 4.0]))
    with torch.device("meta"):
        fastclip.torch.clip_grads_with_norm_([owner], 1.0, 5.0)
        # A negative norm is left to torch.
        fastclip.torch.clip_grads_with_norm_([owner], 1.0, -0.5)
    torch.testing.assert_close(owner.grad, torch.tensor([-1.2, -1.6]))


# --- threads ------------------------------------------------------------------------------------


def test_concurrent_calls_on_gradients_of_their_own() -> None:
    def train(seed: int) -> list[Any]:
        results: list[Any] = []
        for step in range(20):
            owners = parameters(some_gradients(seed=100 * seed + step))
            total = fastclip.torch.clip_grad_norm_(owners, 1.0)
            fastclip.torch.clip_grad_value_(owners, 0.25)
            fastclip.torch.clip_grads_with_norm_(owners, 0.5, total)
            results += [total, *(owner.grad for owner in owners)]
        return results

    alone = [train(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(train, range(8)))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_concurrent_calls_on_the_same_gradients() -> None:
    owners = parameters([torch.randn(3000) * 10 for _ in range(4)])
    expected = [owner.grad.clamp(-0.5, 0.5) for owner in owners]
    calls, workers = 10, 4

    def work(_: int) -> None:
        for _ in range(calls):
            fastclip.torch.clip_grad_value_(owners, 0.5)
            fastclip.torch.get_total_norm([owner.grad for owner in owners])

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    assert all(torch.equal(owner.grad, other) for owner, other in zip(owners, expected, strict=True))
    assert versions([owner.grad for owner in owners]) == [calls * workers] * len(owners)


def test_gradients_that_another_thread_replaces() -> None:
    owners = parameters([torch.ones(500) for _ in range(6)])
    done = threading.Event()

    def replace() -> None:
        number = 0
        while not done.is_set():
            number += 1
            owner = owners[number % len(owners)]
            owner.grad = None if number % 3 == 0 else torch.ones(500)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(300):
            assert float(fastclip.torch.clip_grad_norm_(owners, 1.0)) < 100.0
            fastclip.torch.clip_grad_value_(owners, 0.5)
    finally:
        done.set()
        thread.join()


def test_gradients_that_are_cleared_while_the_items_are_read() -> None:
    owners = parameters([torch.tensor([3.0]), torch.tensor([4.0])])

    def clearing() -> Any:
        yield owners[0]
        owners[0].grad = None
        yield owners[1]

    assert fastclip.torch.clip_grad_norm_(clearing(), 1.0) == 4.0
