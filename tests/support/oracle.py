"""Reference results of every clipping function, in plain Python and NumPy.

Norms are exact: sums of squares are computed in integers, and the root to 130 bits as a ``Fraction``.
Products are rounded once, to nearest even. The code is slow, short, and independent of fastclip, which it
does not import.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32_TINY = 2.0**-126
FLOAT64_SMALLEST = Fraction(2) ** -1074
FLOAT64_TINY = Fraction(2) ** -1022
FLOAT64_MAX = Fraction(np.finfo(np.float64).max)
#: Relative error allowed in a float64 norm.
NORM_TOLERANCE = Fraction(1, 10**14)


# --- values -------------------------------------------------------------------------------------


def float64_parts(array: Any) -> Array:
    """Returns the reals of an array as a flat float64 array: all real parts, then all imaginary parts."""
    array = np.asarray(array)
    if np.iscomplexobj(array):
        wide = array.astype(np.complex128).ravel()
        return np.concatenate([wide.real, wide.imag])
    with np.errstate(all="ignore"):  # ml_dtypes warns of NaN
        return np.asarray(array.astype(np.float64)).ravel()


def moduli(array: Any, exponent: int = 0) -> Array:
    """Returns the absolute values divided by ``2**exponent``, as a flat float64 array."""
    array = np.asarray(array)
    if np.iscomplexobj(array):
        wide = array.astype(np.complex128).ravel()
        parts = zip(np.ldexp(wide.real, -exponent), np.ldexp(wide.imag, -exponent), strict=True)
        return np.array([math.hypot(float(x), float(y)) for x, y in parts], np.float64)
    return np.ldexp(np.abs(float64_parts(array)), -exponent)


def all_finite(arrays: Iterable[Any]) -> bool:
    return all(bool(np.isfinite(float64_parts(array)).all()) for array in arrays)


def same_bits(a: Any, b: Any) -> bool:
    """Whether dtype, shape and every bit agree (strides may differ)."""
    a, b = np.asarray(a), np.asarray(b)
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def all_nan(array: Any) -> bool:
    """Whether every element is NaN, in both parts if the elements are complex."""
    return bool(np.isnan(float64_parts(array)).all())


# --- rounding -----------------------------------------------------------------------------------


def round_to(values: Array, dtype: npt.DTypeLike) -> Array:
    """Rounds float64 ``values`` once, to nearest even, to a real floating-point ``dtype``."""
    dtype = np.dtype(dtype)
    if dtype == BFLOAT16:
        return _round_to_bfloat16(values)
    with np.errstate(all="ignore"):
        return np.asarray(values.astype(dtype))


def _round_to_bfloat16(values: Array) -> Array:
    # bfloat16 has 8 significant bits, the last of them never below 2**-133. The values are rounded to
    # integers times that bit, since a cast from float64 may go through float32 and round twice.
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    _, exponent = np.frexp(np.where(finite, values, 0.0))
    quantum = np.maximum(exponent - 8, -133)
    with np.errstate(all="ignore"):
        rounded = np.ldexp(np.rint(np.ldexp(np.where(finite, values, 0.0), -quantum)), quantum)
        rounded = np.copysign(rounded, values)
        single = np.where(finite, rounded, values).astype(np.float32)
    bits = np.asarray(single).view(np.uint32) >> np.uint32(16)
    return np.asarray(bits.astype(np.uint16)).view(BFLOAT16)


def to_float(value: Fraction) -> float:
    """Returns the nearest float64, infinity above the largest."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def to_float32(value: Fraction) -> np.float32:
    with np.errstate(all="ignore"):
        return np.float32(to_float(value))


# --- norms --------------------------------------------------------------------------------------


def sum_of_squares(arrays: Iterable[Any]) -> Fraction:
    """Returns the exact sum of squares of finite elements."""
    per_exponent: dict[int, int] = {}
    for array in arrays:
        mantissas, exponents = np.frexp(float64_parts(array))
        integers = np.ldexp(mantissas, 53).astype(np.int64)
        for exponent in np.unique(exponents).tolist():
            squares = sum(m * m for m in integers[exponents == exponent].tolist())
            per_exponent[exponent] = per_exponent.get(exponent, 0) + squares
    total = Fraction(0)
    for exponent, squares in per_exponent.items():
        total += squares * Fraction(2) ** (2 * (exponent - 53))
    return total


def square_root(value: Fraction) -> Fraction:
    """Returns the square root, rounded down, to more than 120 bits."""
    if value == 0:
        return Fraction(0)
    magnitude = value.numerator.bit_length() - value.denominator.bit_length()
    shift = 130 - magnitude // 2
    scaled_up = value * Fraction(4) ** shift
    return math.isqrt(scaled_up.numerator // scaled_up.denominator) / Fraction(2) ** shift


def norm(arrays: Iterable[Any], ord: float = 2) -> Fraction:
    """Returns the norm of all elements of ``arrays``: exact for ``ord`` 2, of reals also for 1 and inf."""
    arrays = list(arrays)
    if ord == 2:
        return square_root(sum_of_squares(arrays))
    # Scaled so that the largest modulus is about 1: no power overflows, and only moduli too small to affect
    # the norm are denormal.
    largest_part = max(
        (float(np.abs(float64_parts(array)).max(initial=0.0)) for array in arrays), default=0.0
    )
    if largest_part == 0.0:
        return Fraction(0)
    exponent = math.frexp(largest_part)[1]
    sizes = np.concatenate([moduli(array, exponent) for array in arrays])
    unit = Fraction(2) ** exponent
    if math.isinf(ord):
        return unit * Fraction(float(sizes.max()))
    if ord == 1:
        return unit * sum((Fraction(size) for size in sizes.tolist()), Fraction(0))
    total = math.fsum(size**ord for size in sizes.tolist())
    return unit * Fraction(total ** (1.0 / ord))


def has_denormal_moduli(arrays: Iterable[Any]) -> bool:
    """Whether complex128 elements are so small that their moduli have few significant bits in float64."""
    doubles = [float64_parts(array) for array in arrays if np.asarray(array).dtype == np.complex128]
    largest = max((float(np.abs(parts).max(initial=0.0)) for parts in doubles), default=0.0)
    return 0.0 < largest < 2.0**-1000


def norm_dtype(arrays: Iterable[Any], value: Fraction) -> np.dtype[Any]:
    """Returns float64 if an input has that precision or if the norm overflows float32, else float32."""
    dtypes = [np.asarray(array).dtype for array in arrays]
    is_float64 = any(dtype in (np.float64, np.complex128) for dtype in dtypes)
    return np.dtype(np.float64 if is_float64 or np.isinf(to_float32(value)) else np.float32)


def assert_norm_value(got: Any, exact: Fraction, dtype: np.dtype[Any], ord: float = 2) -> None:
    """Checks a norm: within one ulp of ``exact`` in float32, within a relative error of 1e-14 in float64."""
    value = float(got)
    assert np.isfinite(value), f"norm {value} of finite elements; exact: {to_float(exact)}"
    error = abs(Fraction(value) - exact)
    # Powers other than the square are rounded, and the root of a small order magnifies that error.
    slack = Fraction(0) if ord in (1, 2, math.inf) else Fraction(max(1.0, 1.0 / ord)) / 10**12
    if dtype == np.float32:
        ulp = Fraction(float(np.spacing(to_float32(exact))))
        assert error <= ulp + slack * exact, f"{value} is not within 1 ulp of {to_float(exact)}"
    else:
        allowed = max((NORM_TOLERANCE + slack) * exact, FLOAT64_SMALLEST)
        assert error <= allowed, f"{value} is off {to_float(exact)} by {to_float(error / exact)}"


def assert_norm(got: Any, arrays: Sequence[Any], ord: float = 2) -> None:
    """Checks the value and the type of a norm of finite ``arrays``."""
    exact = norm(arrays, ord)
    assert exact <= FLOAT64_MAX, "the oracle was asked for a norm that float64 cannot hold"
    dtype = norm_dtype(arrays, exact)
    assert isinstance(got, np.generic), f"{got!r} is a {type(got)}, not a NumPy scalar"
    assert got.dtype == dtype
    assert_norm_value(got, exact, dtype, ord)


# --- scaling ------------------------------------------------------------------------------------


def scale(norm: float, clip: float) -> float:
    """Returns ``clip / max(norm, clip)`` in float64."""
    return 1.0 if norm <= clip else clip / norm


def scaled(array: Any, factor: float) -> Array:
    """Returns the product of an array and a factor, rounded once.

    float64 elements are multiplied by the float64 factor. Narrower elements are multiplied by the factor
    rounded to float32: the exact product fits float64 and is rounded to the dtype. A factor too small for a
    normal float32 stays in float64.
    """
    array = np.asarray(array)
    if np.iscomplexobj(array):
        product = np.empty(array.shape, array.dtype)
        product.real = scaled(array.real, factor)
        product.imag = scaled(array.imag, factor)
        return product
    if factor == 1.0:
        return np.array(array)
    with np.errstate(all="ignore"):
        if array.dtype == np.float64:
            return np.asarray(array * np.float64(factor))
        single = float(np.float32(factor))
        wide = np.asarray(array.astype(np.float64)) * (single if single >= FLOAT32_TINY else factor)
    return round_to(wide, array.dtype)


def scale_candidates(norm: Fraction, clip: float) -> list[float]:
    """Returns the float64 factors that result from norms within the tolerance, the likeliest first."""
    if math.isinf(clip) or norm * (1 + 2 * NORM_TOLERANCE) <= Fraction(clip):
        return [1.0]
    likeliest = min(float(Fraction(clip) / norm), 1.0)
    here = int(np.float64(likeliest).view(np.int64))
    top = int(np.float64(1.0).view(np.int64))
    steps = sorted(range(-100, 101), key=abs) if clip > 0 else [0]
    bits = [here + step for step in steps if 0 <= here + step <= top]
    if norm - Fraction(clip) < FLOAT64_SMALLEST:
        bits.append(top)  # both are denormal: no float64 lies between them
    return [float(value) for value in np.array(bits, np.int64).view(np.float64)]


def _assert_close_products(outputs: Sequence[Array], inputs: Sequence[Array], scale: Fraction) -> None:
    """Checks products with a factor too small for a normal float64, whose rounding error is tolerated."""
    for output, array in zip(outputs, inputs, strict=True):
        info: Any = ml_dtypes.finfo(array.dtype)  # type: ignore[no-untyped-call]
        smallest, epsilon = Fraction(float(info.smallest_subnormal)), Fraction(float(info.eps))
        for got, element in zip(float64_parts(output), float64_parts(array), strict=True):
            exact = Fraction(float(element)) * scale
            allowed = abs(exact) * (NORM_TOLERANCE + epsilon) + smallest
            if scale < FLOAT64_SMALLEST and got == 0:
                continue  # the factor is below the smallest float64
            assert abs(Fraction(float(got)) - exact) <= allowed, f"{got} for {to_float(exact)}"


def assert_clipped(outputs: Sequence[Any], inputs: Sequence[Any], norm: Fraction, clip: float) -> None:
    """Checks that all outputs are their inputs times the same factor, one that follows from ``norm``."""
    outputs = [np.asarray(output) for output in outputs]
    inputs = [np.asarray(array) for array in inputs]
    assert len(outputs) == len(inputs)
    for output, array in zip(outputs, inputs, strict=True):
        assert output.dtype == array.dtype
        assert output.shape == array.shape
    is_float64 = any(array.dtype in (np.float64, np.complex128) for array in inputs)
    if is_float64 and 0 < clip < math.inf and Fraction(clip) < norm * FLOAT64_TINY:
        _assert_close_products(outputs, inputs, Fraction(clip) / norm)
        return
    tried: set[float] = set()
    for factor in scale_candidates(norm, clip):
        single = float(np.float32(factor))
        key = factor if is_float64 or single < FLOAT32_TINY else single
        if key in tried:
            continue
        tried.add(key)
        pairs = zip(outputs, inputs, strict=True)
        if all(same_bits(output, scaled(array, factor)) for output, array in pairs):
            return
    likeliest = scale_candidates(norm, clip)[0]
    raise AssertionError(
        f"no scale near {likeliest!r} (norm {to_float(norm)!r}, clip {clip!r}) explains the outputs\n"
        f"inputs:   {inputs}\noutputs:  {outputs}\n"
        f"expected: {[scaled(array, likeliest) for array in inputs]}"
    )


# --- the functions ------------------------------------------------------------------------------


def clip_by_value(array: Any, low: Any, high: Any) -> Array:
    """Returns ``max(min(array, high), low)`` in the dtype of ``array``, NaN where any of them is NaN."""
    array = np.asarray(array)
    with np.errstate(all="ignore"):
        low = np.asarray(np.asarray(low).astype(array.dtype))
        high = np.asarray(np.asarray(high).astype(array.dtype))
        if array.dtype == BFLOAT16:
            wide = [part.astype(np.float32) for part in (array, low, high)]
            return np.asarray(np.maximum(np.minimum(wide[0], wide[2]), wide[1])).astype(BFLOAT16)
        return np.asarray(np.maximum(np.minimum(array, high), low))


def slices_along(shape: tuple[int, ...], axes: Any) -> Iterator[tuple[Any, ...]]:
    """Yields the indices of the slices that a norm over ``axes`` reduces; None means all axes."""
    count = len(shape)
    if axes is None:
        reduced = set(range(count))
    else:
        listed = [axes] if isinstance(axes, (int, np.integer)) else list(axes)
        reduced = {int(axis) % count for axis in listed}
    choices = [[slice(None)] if axis in reduced else list(range(shape[axis])) for axis in range(count)]
    yield from itertools.product(*choices)


def assert_clipped_by_norm(output: Any, array: Any, clip: Any, axes: Any = None, ord: float = 2) -> None:
    """Checks that ``output`` is ``array * clip / max(norm, clip)`` in each slice along ``axes``."""
    output, array = np.asarray(output), np.asarray(array)
    limits = np.broadcast_to(np.maximum(np.asarray(clip, np.float64), 0.0), array.shape)
    for index in slices_along(array.shape, axes):
        exact = norm([array[index]], ord)
        limit = np.asarray(limits[index])
        if limit.size and bool((limit == limit.flat[0]).all()):
            assert_clipped([output[index]], [array[index]], exact, float(limit.flat[0]))
            continue
        # Where the limit differs within the slice, each element has a factor of its own.
        for place in np.ndindex(limit.shape):
            assert_clipped(
                [np.asarray(output[index])[place]],
                [np.asarray(array[index])[place]],
                exact,
                float(limit[place]),
            )
    assert output.dtype == array.dtype
    assert output.shape == array.shape


def average_norm(array: Any) -> Fraction:
    """Returns the norm divided by the number of elements."""
    array = np.asarray(array)
    return norm([array]) / Fraction(max(array.size, 1))


def root_mean_square(array: Any) -> Fraction:
    array = np.asarray(array)
    return square_root(sum_of_squares([array]) / max(array.size, 1))


def unit_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes that one output unit spans, by the convention of optax and the NFNet authors."""
    if sum(side != 1 for side in shape) <= 1:
        return tuple(range(len(shape)))
    if len(shape) in (2, 3):
        return (0,)
    if len(shape) in (4, 5):
        return tuple(range(len(shape) - 1))
    raise ValueError(f"no rule for {len(shape)} dimensions")


def assert_adaptively_clipped(
    output: Any,
    parameter: Any,
    gradient: Any,
    clipping: float = 0.01,
    eps: float = 1e-3,
    axes: Any = None,
) -> None:
    """Checks that each unit is clipped to ``clipping * max(norm of the parameter's unit, eps)``."""
    output, gradient, parameter = map(np.asarray, (output, gradient, parameter))
    for index in slices_along(gradient.shape, unit_axes(gradient.shape) if axes is None else axes):
        limit = Fraction(clipping) * max(norm([parameter[index]]), Fraction(eps))
        # The limit is rounded to float64, an error far below the rounding error of the float32 factor.
        assert_clipped([output[index]], [gradient[index]], norm([gradient[index]]), to_float(limit))
    assert output.dtype == gradient.dtype
    assert output.shape == gradient.shape
