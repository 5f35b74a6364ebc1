"""The clip functions agree with TensorFlow's, except in listed cases where fastclip differs deliberately.

TensorFlow's results are read from ``support/data/tensorflow_clip.npz``, which
``support/recorders/clipping.py`` wrote; the last tests call TensorFlow where it is installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastclip

pytest.importorskip("ml_dtypes")

from support.recorders import clipping as recorder
from support.recorders.clipping import AGREEMENT, BFLOAT16, DIFFERENCE, REFUSAL, SEED, Case, Slices

VERSIONS, CASES = recorder.load()
AGREEMENTS = [case for case in CASES if case.group == AGREEMENT]
REFUSALS = [case for case in CASES if case.group == REFUSAL]
DIFFERENCES = {case.id: case for case in CASES if case.group == DIFFERENCE}
LOW_PRECISION = (np.dtype(np.float16), BFLOAT16)

# TensorFlow computes the norm, the factor and the product each in the dtype of the tensor, and rounds five or
# six times. fastclip rounds once, from a float64 norm. The difference is TensorFlow's error: over many random
# inputs up to 2 epsilon in float32 and float64. fastclip's float64 norm has a relative error of up to 1e-14.
RELATIVE_TOLERANCE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}

# In float16 and bfloat16 TensorFlow multiplies and divides by numbers rounded to 11 and 8 bits. The error is
# up to 2 units in the last place in every recorded result, and 3 in about one result of ten thousand. The
# tests that call TensorFlow have other random numbers, and TensorFlow may sum in another order there.
RECORDED_UNITS = 2
LIVE_UNITS = 3


def case_id(case: Case) -> str:
    return case.id


def to_fastclip(value: Any) -> Any:
    """Copies an argument, with ``Slices`` converted to fastclip's ``IndexedSlices``."""
    if isinstance(value, Slices):
        return fastclip.IndexedSlices(*(to_fastclip(part) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(to_fastclip(entry) for entry in value)
    return value.copy() if isinstance(value, np.ndarray) else value


def call(case: Case) -> Any:
    """Returns fastclip's result for a case."""
    arguments = {key: to_fastclip(value) for key, value in case.arguments.items()}
    return getattr(fastclip, case.function)(**arguments)


def value_of(entry: Any) -> Any:
    return entry.values if isinstance(entry, Slices | fastclip.IndexedSlices) else entry


def present(entries: Sequence[Any]) -> list[NDArray[Any]]:
    """Returns the arrays of a list, without its None entries."""
    return [value_of(entry) for entry in entries if entry is not None]


def ordinals(array: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the ordinal of each 16-bit float among all floats of its dtype; that of both zeros is 0."""
    bits = array.view(np.int16).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def units_apart(actual: NDArray[Any], expected: NDArray[Any]) -> int:
    """Returns the largest difference of 16-bit floats, in units in the last place."""
    finite = np.isfinite(expected.astype(np.float64))
    distance = np.abs(ordinals(actual) - ordinals(expected))[finite]
    return int(distance.max(initial=0))


def assert_close(
    actual: Any, expected: NDArray[Any], units: int, precision: np.dtype[Any] | None = None
) -> None:
    """Checks dtype, shape and values.

    Parameters
    ----------
    actual, expected : ndarray
        The results of fastclip and of TensorFlow.
    units : int
        The difference allowed in 16-bit floats, in units in the last place.
    precision : dtype or None
        The dtype in which TensorFlow held the norm, if it was not the array's.
    """
    assert isinstance(actual, np.ndarray | np.generic)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    actual = np.asarray(actual)
    if expected.dtype in LOW_PRECISION:
        wide, expected_wide = actual.astype(np.float64), expected.astype(np.float64)
        np.testing.assert_array_equal(np.isnan(wide), np.isnan(expected_wide))
        infinite = np.isinf(expected_wide)
        np.testing.assert_array_equal(wide[infinite], expected_wide[infinite])
        assert units_apart(actual, expected) <= units
        return
    real = expected.real.dtype
    tolerance = RELATIVE_TOLERANCE[real]
    if precision is not None:
        tolerance = max(tolerance, RELATIVE_TOLERANCE.get(precision, 0.0))
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=0)


def assert_agrees(actual: Any, expected: Any, units: int, precision: np.dtype[Any] | None = None) -> None:
    """Checks the containers, and the values with `assert_close`."""
    if expected is None:
        assert actual is None
    elif isinstance(expected, Slices):
        assert isinstance(actual, fastclip.IndexedSlices)
        assert_close(actual.values, expected.values, units, precision)
        assert_same_rows(actual, expected)
    elif isinstance(expected, list):
        assert type(actual) is list
        assert len(actual) == len(expected)
        for entry, expected_entry in zip(actual, expected, strict=True):
            assert_agrees(entry, expected_entry, units, precision)
    else:
        assert_close(actual, expected, units, precision)


def assert_same_rows(actual: fastclip.IndexedSlices, expected: Slices) -> None:
    """Checks that indices and dense shape are kept."""
    np.testing.assert_array_equal(actual.indices, expected.indices)
    assert np.asarray(actual.indices).dtype == expected.indices.dtype
    if expected.dense_shape is None:
        assert actual.dense_shape is None
    else:
        np.testing.assert_array_equal(np.asarray(actual.dense_shape), expected.dense_shape)


def assert_norm_agrees(actual: Any, expected: NDArray[Any], entries: Sequence[Any], units: int) -> None:
    """Checks a norm, which is at least float32 in fastclip and has the list's dtype in TensorFlow."""
    double = any(array.dtype in (np.float64, np.complex128) for array in present(entries))
    assert isinstance(actual, np.float64 if double else np.float32)
    assert_close(actual.astype(expected.dtype), expected, units)


def assert_case_agrees(case: Case, units: int) -> None:
    """Checks fastclip's result against the recorded one."""
    actual, expected = call(case), case.result
    if case.function == "clip_by_value":
        assert_clipped_by_value(actual, expected, case)
    elif case.function == "global_norm":
        assert_norm_agrees(actual, expected, case.arguments["t_list"], units)
    elif case.function == "clip_by_global_norm":
        assert isinstance(actual, tuple)
        clipped, norm = actual
        expected_clipped, expected_norm = expected
        precision = recorder.use_norm_dtype(case.arguments)
        assert_agrees(clipped, expected_clipped, units, precision)
        if "use_norm" in case.arguments:
            assert_returned_unchanged(norm, case.arguments["use_norm"])
        else:
            assert_norm_agrees(norm, expected_norm, case.arguments["t_list"], units)
    else:
        assert_agrees(actual, expected, units)


def assert_returned_unchanged(norm: Any, use_norm: Any) -> None:
    assert type(norm) is type(use_norm)
    if isinstance(use_norm, np.ndarray | np.generic):
        assert norm.dtype == use_norm.dtype
        assert norm.shape == use_norm.shape
    np.testing.assert_array_equal(float(norm), float(use_norm))


def assert_clipped_by_value(actual: Any, expected: Any, case: Case) -> None:
    """Checks exact agreement, since clip_by_value does not round."""
    if isinstance(expected, Slices):
        assert isinstance(actual, fastclip.IndexedSlices)
        assert_same_rows(actual, expected)
    actual, expected = value_of(actual), value_of(expected)
    assert isinstance(actual, np.ndarray | np.generic)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if expected.dtype in LOW_PRECISION:
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_array_equal(actual, expected)
    # Where an element and a bound are zeros of different signs, TensorFlow's result depends on the dtype.
    bounds = [np.asarray(case.arguments[f"clip_value_{end}"]) for end in ("min", "max")]
    if expected.dtype.kind == "f" and all(bound.all() for bound in bounds):
        zero = expected == 0
        np.testing.assert_array_equal(np.signbit(actual[zero]), np.signbit(expected[zero]))


# --- agreement ---------------------------------------------------------------


def test_recorded_clipping_cases_are_those_of_the_recorder() -> None:
    def described(cases: Sequence[Case]) -> list[tuple[str, str, str, str | None]]:
        return [(case.id, case.function, case.group, case.raises) for case in cases]

    assert described(CASES) == described(recorder.build_cases())
    assert VERSIONS["tensorflow"]


@pytest.mark.parametrize("case", AGREEMENTS, ids=case_id)
def test_agrees_with_tensorflow(case: Case) -> None:
    assert_case_agrees(case, RECORDED_UNITS)


@pytest.mark.parametrize("case", REFUSALS, ids=case_id)
def test_refuses_what_tensorflow_refuses(case: Case) -> None:
    assert case.result in ("InvalidArgumentError", "TypeError", "ValueError")
    exception = {"TypeError": TypeError, "ValueError": ValueError}[case.raises or ""]
    with pytest.raises(exception):
        call(case)


# --- differences -------------------------------------------------------------


def input_of(case: Case) -> NDArray[Any]:
    """Returns the array that a case clips."""
    arguments = case.arguments
    return present(arguments["t_list"])[0] if "t_list" in arguments else value_of(arguments["t"])


def output_of(case: Case, result: Any) -> NDArray[Any]:
    """Returns the clipped array of a result."""
    if case.function == "clip_by_global_norm":
        return present(result[0])[0]
    array: NDArray[Any] = value_of(result)
    return array


def difference(*ids: str) -> pytest.MarkDecorator:
    """Returns a mark that runs a test with the recorded cases of these ids."""
    return pytest.mark.parametrize("case", [DIFFERENCES[name] for name in ids], ids=case_id)


@difference("clip_by_norm-unclipped", "clip_by_global_norm-unclipped")
def test_unclipped_is_bit_identical_where_tensorflow_rounds(case: Case) -> None:
    t = input_of(case)
    tensorflow = output_of(case, case.result)
    assert (tensorflow != t).any()
    np.testing.assert_allclose(tensorflow, t, rtol=1e-6)
    assert output_of(case, call(case)).tobytes() == t.tobytes()


@difference("clip_by_norm-inf", "clip_by_average_norm-inf")
def test_inf_makes_all_nan_where_tensorflow_gives_zeros(case: Case) -> None:
    np.testing.assert_array_equal(output_of(case, case.result), [0, np.nan, 0, 0])
    assert np.isnan(output_of(case, call(case))).all()


@difference("clip_by_norm-inf-in-a-row")
def test_inf_makes_its_slice_nan_where_tensorflow_gives_zeros(case: Case) -> None:
    np.testing.assert_array_equal(output_of(case, case.result)[1], [np.nan, 0])
    result = output_of(case, call(case))
    np.testing.assert_allclose(result, [[0.6, 0.8], [np.nan, np.nan], [0.5, 0.25]], rtol=1e-6)


@difference(
    "clip_by_norm-infinite-clip-norm",
    "clip_by_average_norm-infinite-clip-norm",
    "clip_by_global_norm-infinite-clip-norm",
)
def test_infinite_clip_norm_changes_nothing_where_tensorflow_gives_nan(case: Case) -> None:
    assert np.isnan(output_of(case, case.result)).any()
    np.testing.assert_array_equal(output_of(case, call(case)), input_of(case))


@difference(
    "clip_by_norm-zeros-and-zero-clip-norm",
    "clip_by_norm-zero-row-and-zero-clip-norm",
    "clip_by_global_norm-zeros-and-zero-clip-norm",
)
def test_zero_norm_and_zero_clip_norm_give_zeros_where_tensorflow_gives_nan(case: Case) -> None:
    assert np.isnan(output_of(case, case.result)).any()
    np.testing.assert_array_equal(output_of(case, call(case)), np.zeros_like(input_of(case)))


@difference("clip_by_average_norm-negative-clip-norm")
def test_negative_clip_norm_is_treated_as_zero_where_tensorflow_does_not_clip(case: Case) -> None:
    np.testing.assert_array_equal(output_of(case, case.result), input_of(case))
    np.testing.assert_array_equal(output_of(case, call(case)), [0, 0])


@difference("clip_by_global_norm-negative-clip-norm")
def test_negative_clip_norm_is_refused_where_tensorflow_does_not_clip(case: Case) -> None:
    np.testing.assert_array_equal(output_of(case, case.result), input_of(case))
    with pytest.raises(ValueError, match="clip_norm"):
        call(case)


@difference(
    "clip_by_norm-nan-clip-norm",
    "clip_by_average_norm-nan-clip-norm",
    "clip_by_global_norm-nan-clip-norm",
)
def test_nan_clip_norm_is_refused_where_tensorflow_gives_nan(case: Case) -> None:
    assert np.isnan(output_of(case, case.result)).all()
    with pytest.raises(ValueError, match="clip_norm"):
        call(case)


@difference(
    *(
        f"{function}-{dtype}-{size}"
        for function in ("clip_by_norm", "clip_by_global_norm")
        for dtype in ("float16", "bfloat16", "float32", "float64")
        for size in ("large", "small")
    )
)
def test_clips_where_tensorflow_overflows_or_underflows(case: Case) -> None:
    t = input_of(case)
    wide = t.astype(np.float64)
    norm = math.hypot(*wide)
    expected = wide / norm * case.arguments["clip_norm"]
    with np.errstate(invalid="ignore"):
        error = np.abs(output_of(case, case.result).astype(np.float64)[:2] / expected[:2] - 1)
    assert not (error < 0.01).any(), "TensorFlow clips this as it should"

    result = call(case)
    array = output_of(case, result)
    assert array.dtype == t.dtype
    if t.dtype in LOW_PRECISION:
        # The conversion of the expected values rounds to nearest even, like fastclip.
        assert units_apart(array, expected.astype(t.dtype)) <= 1
    else:
        tolerance = RELATIVE_TOLERANCE[t.dtype]
        smallest = 2 * float(np.finfo(t.dtype).smallest_subnormal)
        np.testing.assert_allclose(array, expected, rtol=tolerance, atol=smallest)
    if case.function == "clip_by_global_norm":
        np.testing.assert_allclose(float(result[1]), norm, rtol=1e-7, atol=1e-323)


@difference("global_norm-long-sum")
def test_long_float32_sum_is_exact_where_tensorflow_accumulates_in_float32(case: Case) -> None:
    t = input_of(case)
    exact = math.sqrt(t.size) * float(t[0])
    assert abs(float(case.result) - exact) > 3e-5
    norm = call(case)
    assert isinstance(norm, np.float32)
    assert abs(float(norm) - exact) <= np.spacing(np.float32(exact))


@difference("global_norm-float16", "global_norm-bfloat16", "clip_by_global_norm-float16-norm")
def test_norm_is_float32_where_tensorflow_keeps_the_low_precision(case: Case) -> None:
    t = input_of(case)
    is_clip = case.function == "clip_by_global_norm"
    tensorflow = case.result[1] if is_clip else case.result
    assert tensorflow.dtype == t.dtype
    exact = math.sqrt(math.fsum(t.astype(np.float64) ** 2))
    assert abs(float(tensorflow) - exact) > np.spacing(np.float32(exact))
    norm = call(case)[1] if is_clip else call(case)
    assert isinstance(norm, np.float32)
    assert abs(float(norm) - exact) <= np.spacing(np.float32(exact))


@difference("clip_by_average_norm-float64", "clip_by_average_norm-float16")
def test_average_norm_accepts_every_float_where_tensorflow_accepts_float32(case: Case) -> None:
    assert case.result == "InvalidArgumentError"
    result = call(case)
    assert result.dtype == input_of(case).dtype
    np.testing.assert_allclose(result, [0.6, -0.8], rtol=2 * np.finfo(result.dtype).eps)


@difference("clip_by_average_norm-slices")
def test_average_norm_keeps_slices_where_tensorflow_makes_them_dense(case: Case) -> None:
    assert isinstance(case.result, np.ndarray)
    assert case.result.shape == (3, 2)
    result = call(case)
    assert isinstance(result, fastclip.IndexedSlices)
    assert_same_rows(result, case.arguments["t"])
    # The four values have norm 5.
    np.testing.assert_allclose(result.values, [[0.6, 0], [0, -0.8]], rtol=1e-6)


@difference("clip_by_norm-complex64", "global_norm-complex64")
def test_complex_has_a_norm_where_tensorflow_refuses(case: Case) -> None:
    assert case.result == "InvalidArgumentError"
    result = call(case)
    if case.function == "global_norm":
        assert isinstance(result, np.float32)
        assert result == 5
    else:
        assert result.dtype == np.complex64
        np.testing.assert_allclose(result, [0.6, 0.8j], rtol=1e-6)


@difference("global_norm-mixed-dtypes", "clip_by_global_norm-mixed-dtypes")
def test_dtypes_may_be_mixed_where_tensorflow_refuses(case: Case) -> None:
    assert case.result == "InvalidArgumentError"
    result = call(case)
    norm = result if case.function == "global_norm" else result[1]
    assert isinstance(norm, np.float64)
    np.testing.assert_allclose(norm, 13, rtol=1e-14)
    if case.function == "clip_by_global_norm":
        for array, t in zip(result[0], case.arguments["t_list"], strict=True):
            assert array.dtype == t.dtype
            np.testing.assert_allclose(array, t / t.dtype.type(13), rtol=2 * np.finfo(t.dtype).eps)


def test_every_recorded_difference_is_tested() -> None:
    tested = {
        case.id
        for function in list(globals().values())
        for mark in getattr(function, "pytestmark", [])
        if mark.name == "parametrize"
        for case in mark.args[1]
        if isinstance(case, Case)
    }
    assert set(DIFFERENCES) <= tested


# --- TensorFlow itself, where it is installed ----------------------------------

LIVE_DTYPES = ("-float32-", "-float64-", "-bfloat16-", "-int64-", "-uint8-", "-mixed-dtypes")
LIVE = [
    case
    for case in recorder.build_cases(SEED + 1)
    if case.group == AGREEMENT and any(dtype in case.id for dtype in LIVE_DTYPES)
]


@pytest.fixture(scope="module")
def tensorflow() -> Any:
    pytest.importorskip("tensorflow")
    return recorder.import_tensorflow()


@pytest.mark.interop("tensorflow")
# TensorFlow's import emits warnings.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", LIVE, ids=case_id)
def test_agrees_with_installed_tensorflow(tensorflow: Any, case: Case) -> None:
    """Compares cases with other random numbers than the recorded ones."""
    result = recorder.run_tensorflow(tensorflow, case)
    assert_case_agrees(replace(case, result=result), LIVE_UNITS)
