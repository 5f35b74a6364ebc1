"""`get_total_norm` and `clip_grads_with_norm_` of `fastclip.torch`, and that together they clip."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from reference_clipping import (
    ORDERS,
    assert_scaled,
    bits,
    factor,
    norm,
    parameter,
    parameters,
    same_bits,
    some_gradients,
    versions,
)

pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

TORCH_TOTAL_NORM = torch.nn.utils.clip_grad._get_total_norm
TORCH_CLIP_WITH_NORM = torch.nn.utils.clip_grad._clip_grads_with_norm_

EVERY_ORDER = pytest.mark.parametrize("order", ORDERS)
EVERY_FOREACH = pytest.mark.parametrize("foreach", [None, False, True])


def total_norm(*arguments: Any, **options: Any) -> Any:
    return fastclip.torch.get_total_norm(*arguments, **options)


def clip_with_norm(*arguments: Any, **options: Any) -> None:
    result = fastclip.torch.clip_grads_with_norm_(*arguments, **options)
    assert result is None


# --- together -----------------------------------------------------------------------------------


@EVERY_ORDER
@EVERY_FOREACH
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 2, 1e6])
def test_together_they_are_clip_grad_norm(order: Any, foreach: bool | None, max_norm: float) -> None:
    # test_clip_grad_norm of torch's test_nn.py, with the functions that it is made of.
    apart, at_once = parameters(some_gradients()), parameters(some_gradients())
    total = total_norm([owner.grad for owner in apart], norm_type=order, foreach=foreach)
    clip_with_norm(apart, max_norm, total, foreach=foreach)
    assert total == fastclip.torch.clip_grad_norm_(at_once, max_norm, norm_type=order, foreach=foreach)
    for own, other in zip(apart, at_once, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-6, atol=1e-30)


@EVERY_ORDER
def test_together_and_in_float64_they_give_the_same_bits(order: Any) -> None:
    for max_norm in (1e-30, 0.5, 7.0):
        apart, at_once = parameters(some_gradients()), parameters(some_gradients())
        total = total_norm([owner.grad for owner in apart], order, dtype=torch.float64)
        clip_with_norm(apart, max_norm, total)
        fastclip.torch.clip_grad_norm_(at_once, max_norm, order)
        assert same_bits([owner.grad for owner in apart], bits([owner.grad for owner in at_once]))


def test_together_they_clip_norms_beyond_float32() -> None:
    owner = parameter(torch.full((100,), 1e38))
    total = total_norm([owner.grad])
    assert total.dtype == torch.float64
    clip_with_norm([owner], 1.0, total)
    torch.testing.assert_close(owner.grad, torch.full((100,), 0.1))


# --- get_total_norm -----------------------------------------------------------------------------


@EVERY_ORDER
@EVERY_FOREACH
def test_total_norm_is_the_exact_one_and_that_of_torch(order: Any, foreach: bool | None) -> None:
    gradients = some_gradients()
    before, exact = bits(gradients), norm(gradients, order)
    result = total_norm(gradients, order, False, foreach)
    assert result.shape == ()
    assert not result.requires_grad
    assert float(result) == pytest.approx(exact, rel=2**-24)
    torch.testing.assert_close(result, TORCH_TOTAL_NORM(gradients, order, False, foreach))
    assert same_bits(gradients, before)
    assert versions(gradients) == [0] * len(gradients)


@pytest.mark.parametrize("container", [list, tuple, iter, lambda items: (item for item in items)])
def test_total_norm_of_containers(container: Callable[[list[Any]], Any]) -> None:
    gradients = some_gradients()
    assert total_norm(container(gradients)) == total_norm(gradients)


def test_total_norm_of_one_tensor_parameters_and_nothing() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    assert total_norm(weight) == 5.0
    assert total_norm([weight, torch.tensor([12.0])]) == 13.0
    assert not total_norm([weight]).requires_grad
    for empty in ([], (), iter(())):
        result = total_norm(empty)
        assert result == 0.0
        assert (result.shape, result.dtype) == ((), torch.float32)
    assert total_norm([torch.tensor(-3.0)], "inf") == 3.0


def test_total_norm_of_read_only_memory() -> None:
    array = np.array([3.0, 4.0], "f4")
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(array)
    assert total_norm([tensor]) == 5.0


@pytest.mark.parametrize("item", [None, 3, "weight", ("weight", None), np.zeros(2)])
def test_total_norm_of_items_that_are_no_tensors(item: Any) -> None:
    for tensors in ([item], [torch.ones(2), item]):
        with pytest.raises((TypeError, AttributeError)):
            total_norm(tensors)


@EVERY_ORDER
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_total_norm_that_is_not_finite(order: Any, value: float) -> None:
    tensors = [torch.ones(3), torch.tensor([1.0, value])]
    result, expected = total_norm(tensors, order), TORCH_TOTAL_NORM(tensors, order)
    assert result.isnan() == expected.isnan()
    assert result.isinf() == expected.isinf()
    with pytest.raises(fastclip.torch.NonFiniteGradientError, match=r"tensors\[1\]\.$"):
        total_norm(tensors, order, error_if_nonfinite=True)
    with pytest.raises(RuntimeError, match="The total norm of order"):
        total_norm(tensors, order, True)


# --- clip_grads_with_norm_ ----------------------------------------------------------------------


@EVERY_FOREACH
@pytest.mark.parametrize("total", [0.0, 1e-9, 0.3, 5.0, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 3, math.inf])
def test_scales_as_torch_does(foreach: bool | None, total: float, max_norm: float) -> None:
    ours, theirs = parameters(some_gradients()), parameters(some_gradients())
    before = bits([owner.grad for owner in ours])
    clip_with_norm(ours, max_norm, torch.tensor(total), foreach)
    TORCH_CLIP_WITH_NORM(theirs, max_norm, torch.tensor(total), foreach)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-6, atol=1e-38, equal_nan=True)
    if math.isfinite(total):
        scale = factor(float(torch.tensor(total)), max_norm)
        assert_scaled([owner.grad for owner in ours], before, scale)
        assert versions([owner.grad for owner in ours]) == [int(scale != 1.0)] * len(ours)


def test_infinite_total_norm_makes_finite_gradients_0_and_infinite_ones_nan() -> None:
    owner = parameter(torch.tensor([1.0, -2.0, math.inf, math.nan]))
    clip_with_norm([owner], 1.0, math.inf)
    assert owner.grad.isnan().tolist() == [False, False, True, True]
    assert owner.grad[:2].tolist() == [0.0, -0.0]
    assert torch.signbit(owner.grad[:2]).tolist() == [False, True]


@pytest.mark.parametrize(
    "total",
    [5, 5.0, "5", np.float64(5), torch.tensor(5.0), torch.tensor(5), torch.tensor(5.0, dtype=torch.float64)],
    ids=["int", "float", "str", "float64", "tensor", "integer tensor", "float64 tensor"],
)
def test_total_norm_is_whatever_float_takes(total: Any) -> None:
    owner = parameter(torch.tensor([3.0, 4.0]))
    clip_with_norm([owner], torch.tensor(1.0), total)
    torch.testing.assert_close(owner.grad, torch.tensor([0.6, 0.8]))


def test_total_norm_that_requires_grad_is_taken_without_a_warning() -> None:
    for clip in (TORCH_CLIP_WITH_NORM, clip_with_norm):
        owner = parameter(torch.tensor([3.0, 4.0]))
        total = torch.tensor(5.0, requires_grad=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clip([owner], 1.0, total)
        torch.testing.assert_close(owner.grad, torch.tensor([0.6, 0.8]))
        assert not owner.grad.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64], ids=str)
def test_known_norm_and_gradients_of_other_dtypes(dtype: Any) -> None:
    gradients = some_gradients(dtype)
    before = bits(gradients)
    clip_with_norm(parameters(gradients), 1.0, 3.0)
    assert_scaled(gradients, before, factor(3.0, 1.0))


def test_parameters_without_gradients_are_left() -> None:
    owners = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    for nothing in ([], (), iter(()), owners, owners[0]):
        clip_with_norm(nothing, 1.0, 5.0)
    owners[1].grad = torch.tensor([3.0, 4.0])
    clip_with_norm(iter(owners), 1.0, 5.0)
    assert owners[0].grad is owners[2].grad is None
    torch.testing.assert_close(owners[1].grad, torch.tensor([0.6, 0.8]))
    named = [("first", owners[0]), ("second", owners[1])]
    clip_with_norm(named, 0.1, 1.0)
    torch.testing.assert_close(owners[1].grad, torch.tensor([0.06, 0.08]))


GRADIENTS_IN_PLACE_OF_PARAMETERS: dict[str, Callable[[], Any]] = {
    "a list": lambda: [torch.tensor([3.0, 4.0]), torch.tensor([1.0])],
    "a tensor": lambda: torch.tensor([3.0, 4.0]),
    "a generator": lambda: (tensor for tensor in [torch.tensor([3.0, 4.0])]),
    "one beside parameters": lambda: [torch.nn.Parameter(torch.ones(2)), torch.tensor([3.0])],
}


@pytest.mark.parametrize("kind", GRADIENTS_IN_PLACE_OF_PARAMETERS)
def test_gradients_in_place_of_parameters_are_refused(kind: str) -> None:
    with pytest.raises(TypeError, match=r"parameters.*gradients"):
        clip_with_norm(GRADIENTS_IN_PLACE_OF_PARAMETERS[kind](), 1.0, 5.0)


def test_tensors_that_need_no_grad_beside_one_with_a_gradient() -> None:
    frozen, owner = torch.ones(2), parameter(torch.tensor([3.0, 4.0]))
    clip_with_norm([frozen, owner], 1.0, 5.0)
    assert frozen.tolist() == [1.0, 1.0]
    torch.testing.assert_close(owner.grad, torch.tensor([0.6, 0.8]))
    # Those without any gradient in the other functions are left, as torch does.
    assert fastclip.torch.clip_grad_norm_([frozen], 1.0) == 0.0
    fastclip.torch.clip_grad_value_([frozen], 1.0)
