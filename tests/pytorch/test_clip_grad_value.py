"""`fastclip.torch.clip_grad_value_`: the bits of torch's function, of NumPy's clip, and the versions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from reference_clipping import bits, parameter, parameters, same_bits, some_gradients, versions
from support import oracle
from support.dtypes import REAL_DTYPES
from support.strategies import PROPERTY, array_lists
from support.tensor_kinds import from_torch, to_torch

pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

TORCH_CLIP_GRAD_VALUE = torch.nn.utils.clip_grad.clip_grad_value_

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EVERY_BOUND = pytest.mark.parametrize("bound", [0.0, 1e-9, 0.1, 0.5, 1.0, 2, 1000.5, math.inf])
#: Elements of every kind; those around 0.1 are next to a bound.
ELEMENTS = [0.0, -0.0, 0.1, -0.1, 0.0999, 0.1001, 3.0, -3.0, 6e4, -6e4, math.inf, -math.inf, math.nan, 1e-8]


def clip(*arguments: Any, **options: Any) -> None:
    result = fastclip.torch.clip_grad_value_(*arguments, **options)
    assert result is None


def expected(array: Any, bound: float) -> Any:
    """Returns an array whose elements are brought to bounds that are rounded to its type."""
    (upper,) = oracle.round_to(np.array([bound], np.float64), array.dtype)
    with np.errstate(all="ignore"):  # ml_dtypes warns of NaN
        clipped: Any = np.where(array > upper, upper, np.where(array < -upper, -upper, array))
    return clipped.astype(array.dtype)


@EVERY_DTYPE
@EVERY_BOUND
@pytest.mark.parametrize("foreach", [None, False, True])
def test_elements_are_those_of_torch(dtype: Any, bound: float, foreach: bool | None) -> None:
    ours, theirs = (
        parameter(torch.tensor(ELEMENTS, dtype=dtype)),
        parameter(torch.tensor(ELEMENTS, dtype=dtype)),
    )
    clip([ours], bound, foreach)
    TORCH_CLIP_GRAD_VALUE([theirs], bound, foreach)
    assert same_bits([ours.grad], bits([theirs.grad]))


@EVERY_DTYPE
@EVERY_BOUND
def test_elements_are_brought_to_the_bounds(dtype: Any, bound: float) -> None:
    gradients = [torch.tensor(ELEMENTS, dtype=dtype), *some_gradients(dtype)]
    before = bits(gradients)
    clip(parameters(gradients), bound)
    for gradient, array in zip(gradients, before, strict=True):
        np.testing.assert_array_equal(
            oracle.float64_parts(from_torch(gradient)), oracle.float64_parts(expected(array, bound))
        )
    assert torch.signbit(gradients[0][:2]).tolist() == [False, True]


@PROPERTY
@given(
    arrays=array_lists(REAL_DTYPES, ("C", "F", "permuted", "stepped", "offset", "misaligned")),
    bound=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 100.0, math.inf]) | st.floats(0, 3e4),
)
def test_values_and_layouts_in_general(arrays: list[Any], bound: float) -> None:
    gradients = [to_torch(array) for array in arrays]
    before = bits(gradients)
    clip(parameters(gradients), bound)
    for gradient, array in zip(gradients, before, strict=True):
        assert oracle.same_bits(from_torch(gradient), expected(array, bound))


@pytest.mark.parametrize("foreach", [None, False, True])
def test_parameters_without_gradients(foreach: bool | None) -> None:
    # test_clip_grad_value of torch's test_nn.py.
    layer = torch.nn.Linear(10, 10)
    wide = torch.arange(-50.0, 50).view(10, 10).div(5)
    layer.weight.grad, layer.bias.grad = wide.clone(), torch.ones(10).mul(2)
    for gradients in ([wide, torch.ones(10).mul(2)], [None, torch.ones(10).mul(2)]):
        for owner, gradient in zip(layer.parameters(), gradients, strict=True):
            owner.grad = None if gradient is None else gradient.clone()
        clip(layer.parameters(), 2.5, foreach=foreach)
        for owner in layer.parameters():
            if owner.grad is not None:
                assert float(owner.grad.max()) <= 2.5
                assert float(owner.grad.min()) >= -2.5
    # One parameter in place of an iterable of them.
    ones, other = torch.nn.Parameter(torch.ones(10)), torch.nn.Parameter(torch.ones(10))
    ones.grad = other.grad = None
    clip([ones, other], 2.5, foreach)
    ones.grad, other.grad = wide[0].clone(), wide[0].clone()
    clip(ones, 2.5, foreach)
    clip([other], 2.5, foreach)
    assert torch.equal(ones.grad, other.grad)


@pytest.mark.parametrize("container", [list, tuple, iter, lambda items: (item for item in items)])
def test_containers_of_parameters(container: Callable[[list[Any]], Any]) -> None:
    owners = parameters([torch.tensor([3.0, -0.5]), torch.tensor(-7.0), torch.empty(0)])
    clip(container(owners), 1.0)
    assert [owner.grad.tolist() for owner in owners] == [[1.0, -0.5], -1.0, []]
    named = [("first", owners[0]), ("second", owners[1])]
    clip(container(named), 0.25)
    assert [owner.grad.tolist() for owner in owners] == [[0.25, -0.25], -0.25, []]


@pytest.mark.parametrize("container", [list, tuple, iter, lambda items: (item for item in items)])
def test_no_parameters(container: Callable[[list[Any]], Any]) -> None:
    clip(container([]), 1.0)


@pytest.mark.parametrize("bound", [2, "2.0", np.float32(2), np.array(2.0), True + True])
def test_bound_is_whatever_float_takes(bound: Any) -> None:
    owner = parameter(torch.tensor([3.0, -5.0, 1.0]))
    clip(owner, bound)
    assert owner.grad.tolist() == [2.0, -2.0, 1.0]
    clip(owner, torch.tensor(1.5))
    assert owner.grad.tolist() == [1.5, -1.5, 1.0]
    clip(owner, clip_value="inf")
    assert owner.grad.tolist() == [1.5, -1.5, 1.0]


def test_bounds_that_float_refuses() -> None:
    owner = parameter(torch.tensor([3.0, -5.0]))
    with pytest.raises(ValueError, match="could not convert"):
        clip(owner, "large")
    with pytest.raises(TypeError):
        clip(owner, None)
    assert owner.grad.tolist() == [3.0, -5.0]


def test_bound_is_rounded_to_the_dtype_of_each_gradient() -> None:
    gradients = [torch.full((3,), 9.0, dtype=dtype) for dtype in DTYPES]
    clip(parameters(gradients), 0.1)
    for gradient, dtype in zip(gradients, DTYPES, strict=True):
        assert torch.equal(gradient, torch.full((3,), 0.1, dtype=dtype))


def test_bound_beyond_the_dtype_bounds_nothing() -> None:
    for dtype, bound in ((torch.float16, 1e5), (torch.bfloat16, 1e39), (torch.float32, 1e300)):
        owner = parameter(torch.tensor([1.0, -math.inf, math.nan, torch.finfo(dtype).max], dtype=dtype))
        before = bits([owner.grad])
        clip(owner, bound)
        assert same_bits([owner.grad], before)


def test_nan_stays_nan_and_infinities_are_brought_to_the_bounds() -> None:
    for dtype in DTYPES:
        owner = parameter(torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype))
        clip(owner, 2.0)
        assert owner.grad.isnan().tolist() == [True, False, False]
        assert owner.grad[1:].tolist() == [2.0, -2.0]


def test_a_call_counts_one_change_of_each_gradient() -> None:
    owners = parameters([*some_gradients(), *some_gradients(torch.bfloat16)])
    gradients = [owner.grad for owner in owners]
    for calls in (1, 2, 3):
        clip(owners, 1.0 / calls)
        assert versions(gradients) == [calls] * len(gradients)
    assert versions(owners) == [0] * len(owners)


def test_backward_through_a_gradient_that_was_clipped_raises() -> None:
    owner = parameter(torch.tensor([3.0, 4.0], requires_grad=True))
    loss = (owner.grad**2).sum()
    clip(owner, 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_gradients_long_enough_for_several_threads(dtype: Any) -> None:
    array = np.random.default_rng(1).standard_normal((700, 1100)).astype(dtype)
    for gradient in (to_torch(array.copy()), to_torch(array.copy()).T, to_torch(array.copy())[:, 1:]):
        (before,) = bits([gradient])
        clip(parameter(gradient), 0.75)
        assert oracle.same_bits(from_torch(gradient), expected(before, 0.75))
