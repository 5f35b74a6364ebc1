"""Clipping in `fastclip.torch` of every dtype and range: the type of the norm, and norms beyond float32."""

from __future__ import annotations

import math
from typing import Any

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
    some_gradients,
    versions,
)

pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

TORCH_CLIP_GRAD_NORM = torch.nn.utils.clip_grad.clip_grad_norm_

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
WIDE_DTYPES = (torch.float64, torch.complex128)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EVERY_ORDER = pytest.mark.parametrize("order", ORDERS)
EVERY_MAX_NORM = pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 1e4])


def clip(*arguments: Any, **options: Any) -> Any:
    return fastclip.torch.clip_grad_norm_(*arguments, **options)


def complex_gradients(dtype: Any) -> list[Any]:
    real, imaginary = some_gradients(torch.float64), some_gradients(torch.float64, seed=2)
    return [torch.complex(x, y).to(dtype) for x, y in zip(real, imaginary, strict=True)]


def gradients_of(dtype: Any) -> list[Any]:
    return complex_gradients(dtype) if dtype.is_complex else some_gradients(dtype)


# --- every dtype --------------------------------------------------------------------------------


@EVERY_DTYPE
@EVERY_ORDER
@EVERY_MAX_NORM
def test_gradients_of_one_dtype(dtype: Any, order: Any, max_norm: float) -> None:
    gradients = gradients_of(dtype)
    before, exact = bits(gradients), norm(gradients, order)
    total = clip(parameters(gradients), max_norm, order, dtype=torch.float64)
    assert total.dtype == torch.float64
    assert float(total) == pytest.approx(exact, rel=1e-13)
    assert_scaled(gradients, before, factor(float(total), max_norm))


@EVERY_DTYPE
@EVERY_ORDER
def test_gradients_are_those_of_torch(dtype: Any, order: Any) -> None:
    ours, theirs = parameters(gradients_of(dtype)), parameters(gradients_of(dtype))
    result, expected = clip(ours, 1.0, order), TORCH_CLIP_GRAD_NORM(theirs, 1.0, order)
    tolerance = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * 4
    assert float(result) == pytest.approx(float(expected), rel=tolerance)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=tolerance, atol=tolerance / 100)


@EVERY_DTYPE
def test_mixed_dtypes(dtype: Any) -> None:
    gradients = [gradient for other in (dtype, *DTYPES) for gradient in gradients_of(other)]
    before, exact = bits(gradients), norm(gradients)
    total = clip(parameters(gradients), 2.0)
    assert total.dtype == torch.float64
    assert float(total) == pytest.approx(exact, rel=1e-13)
    assert_scaled(gradients, before, factor(float(total), 2.0))
    assert versions(gradients) == [1] * len(gradients)


# --- the type of the norm -----------------------------------------------------------------------


@EVERY_DTYPE
@pytest.mark.parametrize("sizes", [(3,), (0,), (), (2, 0, 2)])
def test_norm_is_float64_for_wide_gradients_and_else_float32(dtype: Any, sizes: tuple[int, ...]) -> None:
    expected = torch.float64 if dtype in WIDE_DTYPES else torch.float32
    gradient = torch.ones(sizes, dtype=dtype)
    assert clip([parameter(gradient)], 0.1).dtype == expected
    assert clip([parameter(gradient)], 1e9).dtype == expected
    assert fastclip.torch.get_total_norm([gradient]).dtype == expected
    if dtype not in (torch.float16, torch.bfloat16) and gradient.numel():
        assert TORCH_CLIP_GRAD_NORM([parameter(gradient)], 1e9).dtype == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@EVERY_ORDER
def test_norm_of_16_bit_gradients_has_the_precision_of_float32(dtype: Any, order: Any) -> None:
    gradients = some_gradients(dtype)
    exact = norm(gradients, order)
    result = clip(parameters(gradients), 1.0, order)
    assert result.dtype == torch.float32
    assert float(result) == pytest.approx(exact, rel=2**-24)


def test_norm_of_float16_may_be_beyond_float16() -> None:
    gradient = torch.full((100,), 60000.0, dtype=torch.float16)
    owner = parameter(gradient)
    assert clip(owner, 1.0) == 600000.0
    torch.testing.assert_close(owner.grad, torch.full((100,), 0.1, dtype=torch.float16))
    theirs = parameter(torch.full((100,), 60000.0, dtype=torch.float16))
    assert TORCH_CLIP_GRAD_NORM(theirs, 1.0).isinf()


def test_16_bit_gradients_that_are_small_are_measured() -> None:
    # Their squares are 0 in float16, and their sum would be.
    gradients = [torch.full((400,), 2.0**-20, dtype=torch.float16), torch.full((4,), 2.0**-24).half()]
    result = fastclip.torch.get_total_norm(gradients, dtype=torch.float64)
    assert float(result) == pytest.approx(norm(gradients), rel=1e-14)


@EVERY_DTYPE
@pytest.mark.parametrize(
    "result_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_dtype_of_the_result_is_chosen(dtype: Any, result_dtype: Any) -> None:
    gradients = gradients_of(dtype)
    exact = norm(gradients)
    for result in (
        fastclip.torch.get_total_norm(gradients, dtype=result_dtype),
        clip(parameters(gradients), 1e9, dtype=result_dtype),
    ):
        assert result.dtype == result_dtype
        assert result.shape == ()
        assert result == torch.tensor(exact, dtype=torch.float64).to(result_dtype) or float(
            result
        ) == pytest.approx(exact, rel=1e-13)
    assert clip([], 1.0, dtype=result_dtype).dtype == result_dtype


def test_wrong_dtype_is_refused_before_anything_is_written() -> None:
    owner = parameter(torch.tensor([3.0, 4.0]))
    with pytest.raises(TypeError, match="dtype"):
        clip(owner, 1.0, dtype="float32")
    assert owner.grad.tolist() == [3.0, 4.0]


# --- norms beyond float32 and float64 -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("refuses", [False, True])
def test_norm_beyond_float32_is_float64_and_clips(dtype: Any, refuses: bool) -> None:
    gradients = [torch.full((100,), 2e38, dtype=dtype), torch.tensor(-3.0, dtype=dtype)]
    before, exact = bits(gradients), norm(gradients)
    owners = parameters(gradients)
    result = clip(owners, 1.0, error_if_nonfinite=refuses)
    assert result.dtype == torch.float64
    assert float(result) == pytest.approx(exact, rel=1e-14)
    assert_scaled(gradients, before, factor(float(result), 1.0))
    assert norm(gradients) == pytest.approx(1.0, rel=torch.finfo(dtype).eps)
    # torch makes them 0.
    theirs = parameter(torch.full((100,), 2e38, dtype=dtype))
    assert TORCH_CLIP_GRAD_NORM(theirs, 1.0).isinf()
    assert not theirs.grad.any()


def test_norm_just_within_float32_is_float32() -> None:
    largest = torch.finfo(torch.float32).max
    owner = parameter(torch.tensor([largest, 0.0]))
    result = clip(owner, 1.0, error_if_nonfinite=True)
    assert result.dtype == torch.float32
    assert float(result) == largest
    torch.testing.assert_close(owner.grad, torch.tensor([1.0, 0.0]))


def test_norm_that_rounds_to_a_finite_float32() -> None:
    # Between the largest float32 and the half-way point above it: it is finite in either type.
    largest = torch.finfo(torch.float32).max
    result = fastclip.torch.get_total_norm([torch.tensor([largest, largest * 2.0**-14])])
    assert torch.isfinite(result)
    assert float(result) == pytest.approx(largest)


@pytest.mark.parametrize("order", [0.5, 1, 2, 4])
def test_norm_beyond_float32_in_every_order(order: float) -> None:
    gradients = [torch.full((1000,), 3e38)]
    before, exact = bits(gradients), norm(gradients, order)
    result = clip(parameters(gradients), 5.0, order, True)
    assert float(result) == pytest.approx(exact, rel=1e-13)
    if exact > torch.finfo(torch.float32).max:
        assert result.dtype == torch.float64
    assert_scaled(gradients, before, factor(float(result), 5.0))


@pytest.mark.parametrize("refuses", [False, True])
def test_norm_beyond_float64_is_infinite_and_clips(refuses: bool) -> None:
    gradients = [torch.full((16,), 1e308, dtype=torch.float64), torch.full((2,), 7.0)]
    result = clip(parameters(gradients), 1.0, error_if_nonfinite=refuses)
    assert result.dtype == torch.float64
    assert result.isinf()
    torch.testing.assert_close(gradients[0], torch.full((16,), 0.25, dtype=torch.float64), rtol=1e-14, atol=0)
    assert not gradients[1].any()


def test_float64_gradients_near_its_ends() -> None:
    for size in (1e200, 1e-200, 5e-324, 1.7e308):
        gradients = [torch.tensor([size, -size, 0.0], dtype=torch.float64)]
        before = bits(gradients)
        exact = size * math.sqrt(2)
        total = clip(parameters(gradients), 1.0)
        assert float(total) == pytest.approx(exact, rel=1e-14, abs=5e-324)
        if math.isfinite(exact):
            assert_scaled(gradients, before, factor(float(total), 1.0))


# --- small factors ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("max_norm", [1e-19, 1e-20, 1e-25, 3e-26])
def test_factor_is_not_rounded_to_a_subnormal_float32(dtype: Any, max_norm: float) -> None:
    gradients = [torch.full((64,), 1e20, dtype=dtype), torch.tensor([-3e17, 1e19], dtype=dtype)]
    before = bits(gradients)
    total = float(clip(parameters(gradients), max_norm, dtype=torch.float64))
    scale = factor(total, max_norm)
    assert scale < torch.finfo(torch.float32).tiny
    assert_scaled(gradients, before, scale)
    assert norm(gradients) == pytest.approx(max_norm, rel=torch.finfo(dtype).eps)


def test_factor_below_the_smallest_float32() -> None:
    gradients = [torch.full((4,), 1.5e38), torch.full((4,), 1e30)]
    before = bits(gradients)
    total = float(clip(parameters(gradients), 1e-10, dtype=torch.float64))
    assert_scaled(gradients, before, 1e-10 / total)
    assert norm(gradients) == pytest.approx(1e-10, rel=1e-6)


def test_factor_of_a_norm_that_was_computed_before_is_not_rounded_either() -> None:
    gradients = [torch.full((64,), 1e20)]
    before = bits(gradients)
    owners = parameters(gradients)
    total = fastclip.torch.get_total_norm(gradients, dtype=torch.float64)
    fastclip.torch.clip_grads_with_norm_(owners, 1e-20, total)
    assert_scaled(gradients, before, factor(float(total), 1e-20))
    assert norm(gradients) == pytest.approx(1e-20, rel=1e-6)


@pytest.mark.parametrize("order", [0.01, 0.1, 3, 64, 1e3, 1e6, 1e300])
def test_unusual_orders(order: float) -> None:
    gradients = [torch.tensor([0.5, 0.25]), torch.tensor([0.125])]
    before = bits(gradients)
    total = float(clip(parameters(gradients), 0.0625, order, dtype=torch.float64))
    assert total == pytest.approx(norm([torch.tensor([0.5, 0.25, 0.125])], order), rel=1e-10)
    assert_scaled(gradients, before, factor(total, 0.0625))
