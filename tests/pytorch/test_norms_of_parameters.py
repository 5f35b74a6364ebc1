"""The `norms` of `fastclip.torch.clip_grad_norm_`: the norm of the gradient of every parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from reference_clipping import ORDERS, norm, parameter, parameters, some_gradients

pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

CONTAINERS: dict[str, Callable[[int], Any]] = {
    "tensor": lambda count: torch.full((count,), math.nan, dtype=torch.float64),
    "tensor that requires grad": lambda count: torch.full(
        (count,), math.nan, dtype=torch.float64, requires_grad=True
    ),
    "every second element of a tensor": lambda count: torch.full((2 * count,), 7.0, dtype=torch.float64)[::2],
    "parameter": lambda count: torch.nn.Parameter(torch.zeros(count, dtype=torch.float64)),
    "array": lambda count: np.full(count, math.nan),
    "reversed array": lambda count: np.full(count, math.nan)[::-1],
    "every second element of an array": lambda count: np.full(2 * count, 7.0)[::2],
}
EVERY_CONTAINER = pytest.mark.parametrize("container", CONTAINERS)


def clip(*arguments: Any, **options: Any) -> Any:
    return fastclip.torch.clip_grad_norm_(*arguments, **options)


def owners_with_some_gradients() -> tuple[list[Any], list[float]]:
    """Returns parameters, of which some have no gradient, and the norms of order 2."""
    owners: list[Any] = []
    for owner in parameters(some_gradients()):
        owners += [owner, torch.nn.Parameter(torch.ones(2))]
    return owners, [0.0 if owner.grad is None else norm([owner.grad]) for owner in owners]


@EVERY_CONTAINER
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9])
def test_norms_are_those_before_clipping(container: str, max_norm: float) -> None:
    owners, expected = owners_with_some_gradients()
    norms = CONTAINERS[container](len(owners))
    clip(owners, max_norm, norms=norms)
    assert norms.tolist() == pytest.approx(expected, rel=1e-14)


@EVERY_CONTAINER
def test_what_lies_between_the_norms_is_left(container: str) -> None:
    if "second" not in container:
        return
    norms = CONTAINERS[container](2)
    whole: Any = norms.base if isinstance(norms, np.ndarray) else norms._base
    clip(parameters([torch.tensor([3.0, 4.0]), torch.tensor([12.0])]), 1.0, norms=norms)
    assert whole.tolist() == [5.0, 7.0, 12.0, 7.0]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64], ids=str
)
def test_norms_have_the_precision_of_float64(order: Any, dtype: Any) -> None:
    gradients = some_gradients(dtype)
    expected = [norm([gradient], order) for gradient in gradients]
    norms = np.zeros(len(gradients))
    total = clip(parameters(gradients), 1.0, order, norms=norms, dtype=torch.float64)
    assert norms.tolist() == pytest.approx(expected, rel=1e-13)
    assert norm([torch.from_numpy(norms)], order) == pytest.approx(float(total), rel=1e-12)


def test_norms_of_named_parameters_a_generator_and_one_parameter() -> None:
    layer = torch.nn.Linear(2, 3)
    layer.weight.grad, layer.bias.grad = torch.full((3, 2), 2.0), torch.full((3,), -1.0)
    for owners in (layer.named_parameters, layer.parameters):
        norms = np.zeros(2)
        clip(owners(), 1e9, norms=norms)
        assert norms.tolist() == pytest.approx([math.sqrt(24), math.sqrt(3)])
    norms = np.zeros(1)
    clip(layer.weight, 1.0, norms=norms)
    assert norms.tolist() == pytest.approx([math.sqrt(24)])


def test_parameters_without_gradients_have_the_norm_0() -> None:
    norms = np.full(3, 7.0)
    clip([torch.nn.Parameter(torch.ones(2)) for _ in range(3)], 1.0, norms=norms)
    assert norms.tolist() == [0.0] * 3
    nothing = torch.empty(0, dtype=torch.float64)
    assert clip([], 1.0, norms=nothing) == 0.0


def test_parameter_given_twice_has_its_norm_in_both_places() -> None:
    owner, other = parameters([torch.tensor([3.0, 4.0]), torch.tensor([12.0])])
    norms = np.full(4, 7.0)
    clip([owner, other, owner, torch.nn.Parameter(torch.ones(1))], 1.0, norms=norms)
    assert norms.tolist() == [5.0, 12.0, 5.0, 0.0]


def test_parameters_with_one_gradient_in_common_have_its_norm() -> None:
    owners = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    owners[0].grad = owners[1].grad = torch.tensor([3.0, 4.0])
    norms = torch.zeros(2, dtype=torch.float64)
    clip(owners, 1.0, norms=norms)
    assert norms.tolist() == [5.0, 5.0]


def test_norms_that_are_not_finite() -> None:
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([math.nan]), torch.tensor([math.inf, 1.0])]
    norms = np.zeros(3)
    clip(parameters(gradients), 1.0, norms=norms)
    np.testing.assert_array_equal(norms, [5.0, math.nan, math.inf])


def test_norms_beyond_float32() -> None:
    norms = np.zeros(2)
    clip(parameters([torch.full((4,), 3e38), torch.full((1,), 2.0)]), 1.0, norms=norms)
    assert norms.tolist() == pytest.approx([2 * float(np.float32(3e38)), 2.0], rel=1e-14)


# --- errors -------------------------------------------------------------------------------------


def read_only(count: int) -> Any:
    array = np.zeros(count)
    array.flags.writeable = False
    return array


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "float32 tensor": (
        lambda: torch.zeros(2),
        TypeError,
        "norms has the type torch.float32; it takes float64",
    ),
    "float32 array": (lambda: np.zeros(2, "f4"), TypeError, "norms has the type float32; it takes float64"),
    "integers": (lambda: np.zeros(2, int), TypeError, "norms has the type int64; it takes float64"),
    "complex numbers": (
        lambda: torch.zeros(2, dtype=torch.complex128),
        TypeError,
        "norms has the type torch.complex128; it takes float64",
    ),
    "other byte order": (lambda: np.zeros(2, ">f8"), TypeError, "norms has the type >f8; it takes float64"),
    "list": (lambda: [0.0, 0.0], TypeError, "norms is list; it takes"),
    "number": (lambda: 0.0, TypeError, "norms is float; it takes"),
    "too long": (lambda: np.zeros(3), ValueError, r"norms has the shape \(3,\); it takes \(2,\)"),
    "too short": (
        lambda: torch.zeros(1, dtype=torch.float64),
        ValueError,
        r"norms has the shape \(1,\); it takes \(2,\)",
    ),
    "two axes": (lambda: np.zeros((2, 1)), ValueError, r"norms has the shape \(2, 1\); it takes \(2,\)"),
    "no axes": (lambda: np.zeros(()), ValueError, r"norms has the shape \(\); it takes \(2,\)"),
    "read-only array": (lambda: read_only(2), ValueError, "norms is read-only"),
    "other device": (
        lambda: torch.zeros(2, dtype=torch.float64, device="meta"),
        ValueError,
        "norms is on meta; it takes a tensor on the CPU",
    ),
    "elements that share memory": (
        lambda: torch.zeros(1, dtype=torch.float64).expand(2),
        ValueError,
        "norms",
    ),
    "array whose elements share memory": (
        lambda: np.lib.stride_tricks.as_strided(np.zeros(1), (2,), (0,)),
        ValueError,
        "norms",
    ),
    "sparse tensor": (
        lambda: torch.zeros(2, dtype=torch.float64).to_sparse(),
        (TypeError, ValueError),  # type: ignore[dict-item]
        "norms",
    ),
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_norms_are_refused_before_anything_is_written(name: str) -> None:
    make, error, message = WRONG[name]
    owners = parameters([torch.tensor([3.0, 4.0]), torch.tensor([12.0])])
    norms = make()
    with pytest.raises(error, match=message):
        clip(owners, 1.0, norms=norms)
    assert [owner.grad.tolist() for owner in owners] == [[3.0, 4.0], [12.0]]
    assert [owner.grad._version for owner in owners] == [0, 0]


def test_norms_made_in_inference_mode_are_filled_or_refused_before_anything_is_written() -> None:
    with torch.inference_mode():
        norms = torch.zeros(1, dtype=torch.float64)
    owner = parameter(torch.tensor([3.0, 4.0]))
    try:
        clip(owner, 1.0, norms=norms)
    except (TypeError, ValueError, RuntimeError):
        assert owner.grad.tolist() == [3.0, 4.0]
    else:
        assert norms.tolist() == [5.0]


def test_norms_and_what_is_left_to_torch() -> None:
    # torch's functions return no such norms.
    norms = np.full(1, 7.0)
    for owner, max_norm, order, message in (
        (parameter(torch.ones(2, device="meta")), 1.0, 2.0, r"norms .*parameters\[0\] is a Tensor on meta"),
        (parameter(torch.ones(2)), -1.0, 2.0, "norms .*not negative"),
        (parameter(torch.ones(2)), 1.0, 0.0, "norms .*positive"),
    ):
        with pytest.raises(TypeError, match=message):
            clip([owner], max_norm, order, norms=norms)
        if owner.grad.device.type == "cpu":
            assert owner.grad.tolist() == [1.0, 1.0]
    assert norms.tolist() == [7.0]
    with pytest.raises(TypeError, match=r"norms .*encoder\.weight is a Tensor on meta"):
        clip([("encoder.weight", parameter(torch.ones(2, device="meta")))], 1.0, norms=norms)
