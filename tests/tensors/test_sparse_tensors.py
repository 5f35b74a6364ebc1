"""Sparse gradients of the frameworks: the values are clipped, the indices kept, and the kind, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip import IndexedSlices
from support import oracle
from support.attempts import attempt
from support.clip_calls import CLIPS, EVERY_NORM, NORMS, clips_for
from support.dtypes import EVERY_FLOAT
from support.strategies import finite_values
from support.tensor_kinds import EVERY_FRAMEWORK, KINDS, Kind, from_torch, to_torch

pytestmark = pytest.mark.filterwarnings("ignore")

#: Row 4 twice: repeated rows are not merged.
ROWS = [4, 0, 4, 2]
#: Functions whose results for one axis of rows are those for the values alone.
SHAPELESS = [name for name in CLIPS if name != "adaptive_clip"]


def rows(dtype: Any = np.float32, seed: int = 1, shape: tuple[int, ...] = (4, 3)) -> Any:
    return finite_values(np.random.default_rng(seed), shape, dtype)


def torch_sparse(values: Any, size: int = 6) -> Any:
    import torch

    return torch.sparse_coo_tensor(
        torch.tensor([ROWS[: len(values)]]), to_torch(values), (size, *values.shape[1:])
    )


# --- torch's sparse tensors ---------------------------------------------------------------------


@pytest.mark.interop("torch")
@EVERY_FLOAT
def test_torch_sparse_tensors(dtype: np.dtype[Any]) -> None:
    torch = pytest.importorskip("torch")
    for shape in ((4, 3), (4,), (4, 2, 3), (0, 3)):
        values = rows(dtype, shape=shape)
        for name, clip in clips_for(dtype):
            if name not in SHAPELESS:
                continue
            sparse = torch_sparse(values.copy())
            (result,), (expected,) = clip([sparse]), clip([values])
            assert type(result) is torch.Tensor, name
            assert result.layout == torch.sparse_coo, name
            assert result.shape == sparse.shape, name
            assert result.dtype == sparse.dtype, name
            assert torch.equal(result._indices(), sparse._indices()), name
            assert oracle.same_bits(from_torch(result._values()), expected), name
            assert oracle.same_bits(from_torch(sparse._values()), values), name
            assert result._values().data_ptr() != sparse._values().data_ptr() or not len(values), name


@pytest.mark.interop("torch")
@EVERY_NORM
def test_norms_of_torch_sparse_tensors_do_not_merge_rows(norm: Any) -> None:
    pytest.importorskip("torch")
    got, expected = norm([torch_sparse(rows()), rows(seed=2)]), norm([rows(), rows(seed=2)])
    assert type(got) is type(expected)
    assert oracle.same_bits(got, expected)


@pytest.mark.interop("torch")
def test_coalesced_tensors_stay_coalesced() -> None:
    torch = pytest.importorskip("torch")
    sparse = torch_sparse(rows()).coalesce()
    assert sparse.is_coalesced()
    (result,), _ = fastclip.clip_by_global_norm([sparse], 0.5)
    assert result.is_coalesced()
    assert torch.equal(result.indices(), sparse.indices())
    (result,), _ = fastclip.clip_by_global_norm([torch_sparse(rows())], 0.5)
    assert not result.is_coalesced()
    # Dense, the result is the sum of its rows.
    dense = np.zeros((6, 3), np.float32)
    np.add.at(dense, ROWS, fastclip.clip_by_norm(rows(), 0.5))
    np.testing.assert_allclose(result.to_dense().numpy(), dense, rtol=1e-6)


@pytest.mark.interop("torch")
def test_gradient_of_an_embedding_among_dense_ones() -> None:
    torch = pytest.importorskip("torch")
    embedding = torch.nn.Embedding(10, 3, sparse=True)
    head = torch.nn.Linear(3, 1)
    head(embedding(torch.tensor([1, 7, 1]))).sum().backward()
    grads = {name: p.grad for name, p in [("e", embedding.weight), *head.named_parameters()]}
    values = [from_torch(grads["e"]._values()), from_torch(grads["weight"]), from_torch(grads["bias"])]
    expected, expected_norm = fastclip.clip_by_global_norm(values, 0.5)
    clipped, norm = fastclip.clip_by_global_norm(grads, 0.5)
    assert oracle.same_bits(norm, expected_norm)
    assert clipped["e"].layout == torch.sparse_coo
    assert oracle.same_bits(from_torch(clipped["e"]._values()), expected[0])
    assert oracle.same_bits(from_torch(clipped["weight"]), expected[1])
    assert oracle.same_bits(from_torch(clipped["bias"]), expected[2])


@pytest.mark.interop("torch")
def test_torch_sparse_tensors_in_place_are_right_or_refused() -> None:
    torch = pytest.importorskip("torch")
    sparse = torch_sparse(rows())
    (expected,), _ = fastclip.clip_by_global_norm([rows()], 0.5)
    returned, refusal = attempt(lambda: fastclip.clip_by_global_norm([sparse], 0.5, out=[sparse]), TypeError)
    if refusal is not None:
        assert "out[0]" in refusal
        assert oracle.same_bits(from_torch(sparse._values()), rows())
    else:
        assert returned[0][0] is sparse
        assert torch.equal(sparse._indices()[0], torch.tensor(ROWS))
        assert oracle.same_bits(from_torch(sparse._values()), expected)


@pytest.mark.interop("torch")
def test_sparse_outputs_that_do_not_match_are_refused() -> None:
    torch = pytest.importorskip("torch")
    sparse, dense = torch_sparse(rows()), torch.zeros(6, 3)
    other = torch_sparse(rows(shape=(3, 3)))
    for tensor, out in ((sparse, dense), (dense, sparse), (sparse, other)):
        with pytest.raises((TypeError, ValueError), match="out"):
            fastclip.clip_by_global_norm([tensor], 0.5, out=[out])
    assert not dense.any()
    assert oracle.same_bits(from_torch(sparse._values()), rows())


@pytest.mark.interop("torch")
def test_several_sparse_dimensions_are_clipped_or_refused() -> None:
    torch = pytest.importorskip("torch")
    dense = to_torch(rows()) * (to_torch(rows()) > 0)
    sparse = dense.to_sparse(2)
    values = from_torch(sparse._values())
    assert values.ndim == 1
    returned, refusal = attempt(lambda: fastclip.clip_by_global_norm([sparse], 0.5), TypeError)
    if refusal is not None:
        assert "t_list[0]" in refusal
        return
    (result,), norm = returned
    assert oracle.same_bits(norm, fastclip.global_norm([values]))
    assert torch.equal(result._indices(), sparse._indices())
    assert oracle.same_bits(from_torch(result._values()), fastclip.clip_by_norm(values, 0.5))
    assert torch.equal(result.to_dense(), fastclip.clip_by_norm(dense, 0.5))


@pytest.mark.interop("torch")
def test_sparse_tensors_on_another_device_are_refused() -> None:
    torch = pytest.importorskip("torch")
    on_meta = torch.sparse_coo_tensor(
        torch.zeros(1, 2, dtype=torch.int64, device="meta"), torch.ones(2, 3, device="meta"), (6, 3)
    )
    with pytest.raises(TypeError, match=r"t_list\[0\].*meta"):
        fastclip.global_norm([on_meta])


@pytest.mark.interop("torch")
def test_sparse_tensors_that_require_grad_are_read() -> None:
    torch = pytest.importorskip("torch")
    sparse = torch_sparse(rows()).requires_grad_()
    assert oracle.same_bits(fastclip.global_norm([sparse]), fastclip.global_norm([rows()]))
    with torch.no_grad():
        (result,), _ = fastclip.clip_by_global_norm([sparse], 0.5)
    assert oracle.same_bits(from_torch(result._values()), fastclip.clip_by_norm(rows(), 0.5))


# --- TensorFlow's IndexedSlices -----------------------------------------------------------------


@pytest.mark.interop("tensorflow")
@EVERY_FLOAT
def test_indexed_slices_of_tensorflow(dtype: np.dtype[Any]) -> None:
    tf = pytest.importorskip("tensorflow")
    values = rows(dtype)
    for shape in (None, tf.constant([6, 3])):
        slices = tf.IndexedSlices(tf.constant(values), tf.constant(ROWS), shape)
        for name, clip in clips_for(dtype):
            if name not in SHAPELESS:
                continue
            (result,), (expected,) = clip([slices]), clip([values])
            assert type(result) is tf.IndexedSlices, name
            assert KINDS["tensorflow"].is_result(result.values), name
            assert oracle.same_bits(KINDS["tensorflow"].read(result.values), expected), name
            assert result.indices is slices.indices, name
            assert result.dense_shape is slices.dense_shape, name


@pytest.mark.interop("tensorflow")
@EVERY_NORM
def test_norms_of_indexed_slices_of_tensorflow(norm: Any) -> None:
    tf = pytest.importorskip("tensorflow")
    slices = tf.IndexedSlices(tf.constant(rows()), tf.constant(ROWS), tf.constant([6, 3]))
    got, expected = norm([slices, None, rows(seed=2)]), norm([rows(), None, rows(seed=2)])
    assert type(got) is type(expected)
    assert oracle.same_bits(got, expected)


@pytest.mark.interop("tensorflow")
def test_indexed_slices_of_tensorflow_are_immutable() -> None:
    tf = pytest.importorskip("tensorflow")
    slices = tf.IndexedSlices(tf.constant(rows()), tf.constant(ROWS))
    with pytest.raises(TypeError, match=r"(?i)out\[0\].*immutable"):
        fastclip.clip_by_global_norm([slices], 0.5, out=[slices])


# --- fastclip's IndexedSlices -------------------------------------------------------------------


@EVERY_FRAMEWORK
def test_indexed_slices_over_tensors(kind: Kind) -> None:
    for dtype in (np.float32, np.float64):
        for indices in (np.array(ROWS), ROWS, kind.make(np.array(ROWS))):
            for shape in (None, (6, 3)):
                slices = IndexedSlices(kind.make(rows(dtype)), indices, shape)
                assert slices.dtype == np.dtype(dtype) or str(dtype.__name__) in str(slices.dtype)
                for name, clip in clips_for(np.dtype(dtype)):
                    if name not in SHAPELESS:
                        continue
                    (result,), (expected,) = clip([slices]), clip([rows(dtype)])
                    assert type(result) is IndexedSlices, name
                    assert kind.is_result(result.values), name
                    assert oracle.same_bits(kind.read(result.values), expected), name
                    assert result.indices is slices.indices, name
                    assert result.dense_shape is slices.dense_shape, name
                for norm in NORMS.values():
                    assert oracle.same_bits(norm([slices]), norm([rows(dtype)]))


@EVERY_FRAMEWORK
def test_wrong_indices_and_shapes_are_refused(kind: Kind) -> None:
    values = kind.make(rows())
    with pytest.raises(TypeError, match="indices"):
        IndexedSlices(values, kind.make(np.array([0.5, 1, 2, 3])))
    with pytest.raises(ValueError, match="indices"):
        IndexedSlices(values, kind.make(np.array([0, 1, 2])))
    with pytest.raises(ValueError, match="indices"):
        IndexedSlices(values, kind.make(np.array([[0, 1, 2, 3]])))
    with pytest.raises(ValueError, match="dense_shape"):
        IndexedSlices(values, ROWS, (6, 4))


@EVERY_FRAMEWORK
def test_methods_of_indexed_slices_over_tensors(kind: Kind) -> None:
    slices = IndexedSlices(kind.make(rows()), kind.make(np.array(ROWS)), (6, 3))
    plain = IndexedSlices(rows(), np.array(ROWS), (6, 3))
    assert slices.shape == (6, 3)
    np.testing.assert_array_equal(np.asarray(slices.to_dense()), plain.to_dense())
    coalesced = slices.coalesce()
    np.testing.assert_array_equal(np.asarray(coalesced.values), plain.coalesce().values)
    np.testing.assert_array_equal(np.asarray(coalesced.indices), plain.coalesce().indices)
    np.testing.assert_array_equal(np.asarray((-slices).values), -rows())


@pytest.mark.interop("torch")
def test_indexed_slices_over_torch_in_place() -> None:
    pytest.importorskip("torch")
    values = to_torch(rows())
    slices = IndexedSlices(values, ROWS, (6, 3))
    (result,), _ = fastclip.clip_by_global_norm([slices], 0.5, out=[slices])
    assert result is slices
    assert slices.values is values
    assert oracle.same_bits(from_torch(values), fastclip.clip_by_norm(rows(), 0.5))
    other = IndexedSlices(to_torch(np.zeros((4, 3), "f4")), ROWS, (6, 3))
    assert fastclip.clip_by_norm(IndexedSlices(rows(), ROWS, (6, 3)), 0.5, out=other) is other
    assert oracle.same_bits(from_torch(other.values), fastclip.clip_by_norm(rows(), 0.5))


@pytest.mark.interop("jax")
def test_indexed_slices_over_immutable_values_are_refused_as_outputs() -> None:
    slices = IndexedSlices(KINDS["jax"].make(rows()), ROWS, (6, 3))
    with pytest.raises(TypeError, match=r"(?i)out\[0\].*immutable"):
        fastclip.clip_by_global_norm([slices], 0.5, out=[slices])


def test_indexed_slices_over_exporters_and_buffers() -> None:
    for name in ("exporter", "memoryview", "mmap", "ctypes"):
        slices, refusal = attempt(lambda: IndexedSlices(KINDS[name].make(rows()), ROWS, (6, 3)))  # noqa: B023
        if refusal is not None:
            assert "values" in refusal, name
            continue
        (result,), _ = fastclip.clip_by_global_norm([slices], 0.5)
        assert type(result.values) is np.ndarray
        assert oracle.same_bits(result.values, fastclip.clip_by_norm(rows(), 0.5))
