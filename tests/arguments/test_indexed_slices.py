"""IndexedSlices: the class, and the clip functions applied to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastclip
from support import oracle
from support.dtypes import EVERY_FLOAT
from support.strategies import finite_values


def slices(dtype: Any = np.float32) -> Any:
    """Returns slices for the rows 4, 1 and 4 of a 6 by 2 array."""
    values = np.array([[1, 2], [3, 4], [5, 6]], dtype)
    return fastclip.IndexedSlices(values, np.array([4, 1, 4]), (6, 2))


# --- the class ----------------------------------------------------------------------------------


def test_attributes() -> None:
    values, indices, shape = np.ones((2, 3), np.float16), np.array([0, 7]), np.array([9, 3])
    s = fastclip.IndexedSlices(values, indices, shape)
    assert s.values is values
    assert s.indices is indices
    assert s.dense_shape is shape
    assert s.dtype == np.float16
    assert s.shape == (9, 3)
    s = fastclip.IndexedSlices(values=values, indices=indices)
    assert s.dense_shape is None


def test_repr_has_values_and_indices() -> None:
    text = repr(slices())
    assert "IndexedSlices" in text
    assert "values" in text
    assert "indices" in text


def test_negation() -> None:
    s = slices()
    negated = -s
    assert isinstance(negated, fastclip.IndexedSlices)
    assert oracle.same_bits(negated.values, -s.values)
    assert negated.indices is s.indices
    assert negated.dense_shape is s.dense_shape
    assert s.values[0, 0] == 1


@EVERY_FLOAT
def test_to_dense_adds_repeated_rows(dtype: np.dtype[Any]) -> None:
    dense = slices(dtype).to_dense()
    expected = np.zeros((6, 2), dtype)
    expected[4] = [6, 8]
    expected[1] = [3, 4]
    assert oracle.same_bits(dense, expected)


def test_to_dense_requires_a_shape() -> None:
    s = fastclip.IndexedSlices(np.ones((1, 2)), np.array([0]))
    with pytest.raises(ValueError, match="dense_shape"):
        s.to_dense()


@pytest.mark.parametrize("row", [6, 1000, -1])
def test_to_dense_with_a_row_out_of_range(row: int) -> None:
    s = fastclip.IndexedSlices(np.ones((2, 2)), np.array([0, row]), (6, 2))
    with pytest.raises(IndexError, match=str(row)):
        s.to_dense()


@EVERY_FLOAT
def test_coalesce_sums_repeated_rows(dtype: np.dtype[Any]) -> None:
    s = slices(dtype)
    merged = s.coalesce()
    assert isinstance(merged, fastclip.IndexedSlices)
    assert sorted(np.asarray(merged.indices).tolist()) == [1, 4]
    assert merged.values.dtype == dtype
    assert merged.values.shape == (2, 2)
    assert merged.shape == (6, 2)
    assert oracle.same_bits(merged.to_dense(), s.to_dense())
    assert s.values.shape == (3, 2)


def test_coalesce_of_many_rows_agrees_with_numpy() -> None:
    rng = np.random.default_rng(1)
    values, indices = rng.standard_normal((500, 7)), rng.integers(0, 40, 500)
    merged = fastclip.IndexedSlices(values, indices, (40, 7)).coalesce()
    expected = np.zeros((40, 7))
    np.add.at(expected, indices, values)
    assert len(np.unique(merged.indices)) == len(merged.indices)
    np.testing.assert_allclose(merged.to_dense(), expected, rtol=1e-12, atol=1e-13)


def test_no_rows() -> None:
    s = fastclip.IndexedSlices(np.zeros((0, 2)), np.zeros(0, np.int64), (6, 2))
    assert not s.to_dense().any()
    assert s.coalesce().values.shape == (0, 2)
    assert fastclip.global_norm([s]) == 0


# --- the functions ------------------------------------------------------------------------------

CLIPS: dict[str, Any] = {
    "value": lambda t: fastclip.clip_by_value(t, -2.0, 2.5),
    "norm": lambda t: fastclip.clip_by_norm(t, 1.0),
    "norm_axes": lambda t: fastclip.clip_by_norm(t, 1.0, axes=1),
    "average_norm": lambda t: fastclip.clip_by_average_norm(t, 0.1),
    "global_norm": lambda t: fastclip.clip_by_global_norm([t], 1.0)[0][0],
    "use_norm": lambda t: fastclip.clip_by_global_norm([t], 1.0, 3.0)[0][0],
    "block_rms": lambda t: fastclip.clip_by_block_rms([t], 0.1)[0],
}
EVERY_CLIP = pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS.keys())


@EVERY_CLIP
@EVERY_FLOAT
def test_values_are_clipped_and_indices_and_shape_are_kept(clip: Any, dtype: np.dtype[Any]) -> None:
    if dtype.kind == "c" and clip is CLIPS["value"]:
        pytest.skip("complex numbers have no order")
    s = slices(dtype)
    before = s.values.copy()
    got = clip(s)
    assert isinstance(got, fastclip.IndexedSlices)
    assert got.indices is s.indices
    assert got.dense_shape is s.dense_shape
    assert oracle.same_bits(got.values, clip(before))
    assert not oracle.same_bits(got.values, before)
    assert oracle.same_bits(s.values, before)


def test_repeated_rows_are_not_merged() -> None:
    s = fastclip.IndexedSlices(np.array([[3.0], [4.0]]), np.array([2, 2]), (3, 1))
    assert fastclip.global_norm([s]) == 5
    np.testing.assert_array_equal(fastclip.tensor_norms([s]), [5])
    assert fastclip.clip_by_global_norm([s], 1.0)[0][0].values.shape == (2, 1)


def test_list_of_slices_arrays_and_none() -> None:
    arrays = [finite_values(np.random.default_rng(n), (5, 3), np.float32) for n in range(2)]
    mixed = [arrays[0], None, fastclip.IndexedSlices(arrays[1], np.arange(5))]
    got, norm = fastclip.clip_by_global_norm(mixed, 0.5)
    assert got[2].dense_shape is None
    oracle.assert_norm(norm, arrays)
    oracle.assert_clipped([got[0], got[2].values], arrays, oracle.norm(arrays), 0.5)
    nested = fastclip.clip_by_global_norm({"e": (mixed[2],)}, 0.5)[0]
    assert isinstance(nested["e"][0], fastclip.IndexedSlices)


def test_in_place() -> None:
    s = slices()
    values = s.values
    got, _ = fastclip.clip_by_global_norm([s], 1.0, out=[s])
    assert got[0] is s
    assert got[0].values is values
    assert np.linalg.norm(values) == pytest.approx(1, rel=1e-6)
    assert fastclip.clip_by_norm(s, 0.5, out=s) is s
    assert np.linalg.norm(values) == pytest.approx(0.5, rel=1e-6)


def test_errors_name_the_values() -> None:
    s = fastclip.IndexedSlices(np.ones((1, 2), np.int32), np.array([0]))
    with pytest.raises(TypeError, match=r"t_list\[1\].*int32"):
        fastclip.clip_by_global_norm([np.ones(2), s], 1.0)
    with pytest.raises(TypeError, match="int32"):
        fastclip.clip_by_norm(s, 1.0)


def test_nonfinite_values() -> None:
    s = fastclip.IndexedSlices(np.array([[1.0, np.nan]]), np.array([0]))
    assert oracle.all_nan(fastclip.clip_by_norm(s, 1.0).values)
    with pytest.raises(fastclip.NonFiniteError, match=r"t_list\[0\]"):
        fastclip.clip_by_global_norm([s], 1.0, on_nonfinite="raise")


# --- sums of repeated rows ----------------------------------------------------------------------


@EVERY_FLOAT
def test_sums_are_those_of_float64_rounded_once(dtype: np.dtype[Any]) -> None:
    rng = np.random.default_rng(3)
    indices = rng.integers(-5, 400, 5000)
    values = (rng.standard_normal((5000, 9)) * 10.0 ** rng.integers(-4, 4, (5000, 1))).astype(dtype)
    merged = fastclip.IndexedSlices(values, indices).coalesce()
    rows = np.unique(indices)
    wide = np.zeros((len(rows), 9), np.complex128 if dtype.kind == "c" else np.float64)
    np.add.at(wide, np.searchsorted(rows, indices), values.astype(wide.dtype))
    assert np.array_equal(merged.indices, rows)
    assert oracle.same_bits(merged.values, wide.astype(dtype))


def test_sums_have_the_same_bits_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(4)
    slices_ = fastclip.IndexedSlices(
        rng.standard_normal((30_000, 33)).astype(np.float32), rng.integers(0, 9000, 30_000)
    )
    results = []
    for threads in (1, 2, 5):
        with fastclip.threads(threads):
            results.append(slices_.coalesce())
    for result in results[1:]:
        assert oracle.same_bits(result.values, results[0].values)
        assert np.array_equal(result.indices, results[0].indices)


def test_a_single_row_keeps_its_bits() -> None:
    values = np.array([[-0.0, np.inf], [5e-324, -0.0]])
    merged = fastclip.IndexedSlices(values, [7, 3]).coalesce()
    assert oracle.same_bits(merged.values, values[::-1].copy())


@pytest.mark.parametrize("index", [np.int8, np.uint16, np.int32, np.uint64])
def test_the_dtype_of_the_indices_is_kept(index: Any) -> None:
    merged = fastclip.IndexedSlices(np.ones((3, 2), np.int32), np.array([4, 1, 4], index)).coalesce()
    assert merged.indices.dtype == index
    assert merged.values.dtype == np.int32
    assert merged.indices.tolist() == [1, 4]
    assert merged.values.tolist() == [[1, 1], [2, 2]]


@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 2, 3)])
def test_rows_of_any_shape(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    s = fastclip.IndexedSlices(np.asfortranarray(values), np.array([2, 0, 2, 2]), (3, *shape[1:]))
    assert np.array_equal(s.coalesce().values, np.stack([values[1], values[0] + values[2] + values[3]]))
    assert np.array_equal(
        s.to_dense(), np.stack([values[1], 0 * values[0], values[0] + values[2] + values[3]])
    )
