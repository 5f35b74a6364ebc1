"""Sparse gradients in the functions of `fastclip.torch`: the norm is that of the coalesced tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from reference_clipping import ORDERS, assert_scaled, bits, factor, norm, parameter, same_bits

# torch warns that its sparse tensors are in beta state, and of checks of their invariants.
pytestmark = [pytest.mark.interop("torch"), pytest.mark.filterwarnings("ignore:.*[Ss]parse")]
torch = pytest.importorskip("torch")

ROWS = [4, 0, 4, 2]


def clip(*arguments: Any, **options: Any) -> Any:
    return fastclip.torch.clip_grad_norm_(*arguments, **options)


def rows(dtype: Any = None, width: int | None = 3) -> Any:
    """Returns a tensor of rows that has one row in two parts."""
    shape = (len(ROWS),) if width is None else (len(ROWS), width)
    values = torch.arange(1.0, math.prod(shape) + 1).view(shape).to(torch.float32 if dtype is None else dtype)
    return torch.sparse_coo_tensor(torch.tensor([ROWS]), values, (6, *shape[1:]))


def matrix(dtype: Any = None) -> Any:
    dense = torch.zeros(6, 5, dtype=torch.float32 if dtype is None else dtype)
    dense[1, 2], dense[1, 4], dense[4, 0] = 3.0, -4.0, 12.0
    return dense


SPARSE: dict[str, Callable[[Any], Any]] = {
    "rows": rows,
    "coalesced rows": lambda dtype: rows(dtype).coalesce(),
    "elements": lambda dtype: rows(dtype, None),
    "coalesced elements": lambda dtype: rows(dtype, None).coalesce(),
    "COO matrix": lambda dtype: matrix(dtype).to_sparse_coo(),
    "CSR": lambda dtype: matrix(dtype).to_sparse_csr(),
    "CSC": lambda dtype: matrix(dtype).to_sparse_csc(),
    "BSR": lambda dtype: matrix(dtype).to_sparse_bsr((2, 5)),
    "no elements": lambda dtype: torch.zeros(6, 5, dtype=dtype).to_sparse_coo(),
}
EVERY_SPARSE = pytest.mark.parametrize("kind", SPARSE)


def values_of(sparse: Any) -> Any:
    return sparse._values() if sparse.layout is torch.sparse_coo else sparse.values()


@EVERY_SPARSE
@pytest.mark.parametrize("order", ORDERS)
def test_norm_is_that_of_the_dense_tensor(kind: str, order: Any) -> None:
    sparse = SPARSE[kind](torch.float32)
    dense = torch.tensor([1.0, -2.0])
    exact = norm([sparse.to_dense(), dense], order)
    assert float(fastclip.torch.get_total_norm([sparse, dense], order)) == pytest.approx(exact, rel=1e-6)
    total = clip([parameter(dense.clone()), parameter(sparse)], 1.0, order, dtype=torch.float64)
    assert float(total) == pytest.approx(exact, rel=1e-13)


@EVERY_SPARSE
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64], ids=str
)
def test_values_are_scaled(kind: str, dtype: Any) -> None:
    if kind == "BSR" and dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float64
    sparse = SPARSE[kind](dtype)
    layout, is_coalesced = sparse.layout, layout_is_coalesced(sparse)
    dense = torch.tensor([8.0, -6.0])
    before = bits([values_of(sparse), dense])
    exact = norm([sparse.to_dense(), dense])
    owners = [parameter(sparse), parameter(dense)]
    total = float(clip(owners, 1.0, dtype=torch.float64))
    assert total == pytest.approx(exact, rel=1e-14)
    assert owners[0].grad is sparse
    assert sparse.layout is layout
    assert layout_is_coalesced(sparse) is is_coalesced
    assert_scaled([values_of(sparse), dense], before, factor(total, 1.0))
    assert norm([sparse.to_dense(), dense]) == pytest.approx(1.0, rel=4 * torch.finfo(dtype).eps + 1e-6)


def layout_is_coalesced(sparse: Any) -> bool | None:
    return bool(sparse.is_coalesced()) if sparse.layout is torch.sparse_coo else None


@EVERY_SPARSE
def test_versions_of_sparse_gradients(kind: str) -> None:
    sparse = SPARSE[kind](torch.float32)
    dense = torch.tensor([8.0, -6.0])
    owners = [parameter(sparse), parameter(dense)]
    for calls in (1, 2):
        clip(owners, 1.0 / calls)
        assert (sparse._version, dense._version) == (calls, calls)
    clip(owners, 1e9)
    assert (sparse._version, dense._version) == (2, 2)
    fastclip.torch.clip_grads_with_norm_(owners, 1.0, 2.0)
    assert (sparse._version, dense._version) == (3, 3)


@EVERY_SPARSE
def test_clipping_by_a_known_norm(kind: str) -> None:
    sparse, theirs = SPARSE[kind](torch.float32), SPARSE[kind](torch.float32)
    fastclip.torch.clip_grads_with_norm_([parameter(sparse)], 1.0, torch.tensor(5.0))
    theirs.mul_(1.0 / 5.000001)
    torch.testing.assert_close(sparse.to_dense(), theirs.to_dense())


def test_repeated_rows_that_cancel() -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 1, 0]]), torch.tensor([1e6, -1e6, 0.5]), (3,))
    assert clip(parameter(sparse), 1.0) == 0.5
    assert sparse._values().tolist() == [1e6, -1e6, 0.5]
    assert clip(parameter(sparse), 0.25) == 0.5
    torch.testing.assert_close(sparse._values(), torch.tensor([5e5, -5e5, 0.25]), rtol=1e-5, atol=0)


def test_gradient_of_an_embedding() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn((10, 4), generator=generator)
    indices = torch.tensor([1, 2, 1, 7])
    results = []
    for is_sparse in (True, False):
        layer = torch.nn.Embedding(10, 4, sparse=is_sparse, _weight=weight.clone())
        (layer(indices) ** 2).sum().backward()
        results.append((float(clip(layer.parameters(), 0.5)), layer.weight.grad))
    assert results[0][1].is_sparse
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(results[0][1].to_dense(), results[1][1])


@pytest.mark.parametrize("as_array", [False, True])
def test_norms_of_sparse_parameters(as_array: bool) -> None:
    sparse, dense = rows(), torch.tensor([1.0, -2.0])
    norms: Any = np.zeros(2) if as_array else torch.zeros(2, dtype=torch.float64)
    expected = [norm([sparse.to_dense()]), math.sqrt(5)]
    clip([parameter(sparse), parameter(dense)], 1.0, norms=norms)
    assert norms.tolist() == pytest.approx(expected, rel=1e-14)


@EVERY_SPARSE
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_sparse_gradients_that_are_not_finite(kind: str, value: float) -> None:
    if kind == "no elements":
        return
    sparse, dense = SPARSE[kind](torch.float32), torch.tensor([1.0, -2.0])
    values_of(sparse).view(-1)[-1] = value
    before = bits([values_of(sparse), dense])
    version = sparse._version
    owners = [("dense", parameter(dense)), ("table", parameter(sparse))]
    with pytest.raises(fastclip.torch.NonFiniteGradientError, match=r"gradients of table\.$"):
        clip(owners, 1.0, error_if_nonfinite=True)
    assert same_bits([values_of(sparse), dense], before)
    assert (sparse._version, dense._version) == (version, 0)
    result = clip(owners, 1.0)
    assert result.isnan() if math.isnan(value) else result.isinf()
    assert values_of(sparse).view(-1)[-1].isnan()
    assert dense.isnan().all() if math.isnan(value) else not dense.any()


def test_sparse_gradient_shared_by_two_parameters() -> None:
    sparse = rows()
    exact = norm([sparse.to_dense()])
    owners = [torch.nn.Parameter(torch.zeros(6, 3)) for _ in range(2)]
    for owner in owners:
        owner.grad = sparse
    assert float(clip([*owners, owners[0]], 1.0)) == pytest.approx(exact, rel=1e-6)
    assert norm([sparse.to_dense()]) == pytest.approx(1.0, rel=1e-5)
    assert sparse._version == 1


def test_sparse_gradients_over_the_same_values() -> None:
    first = rows().coalesce()
    second = torch.sparse_coo_tensor(first.indices(), first.values(), first.shape, is_coalesced=True)
    before = bits([first.values()])
    with pytest.raises(ValueError, match="gradients"):
        clip([parameter(first), parameter(second)], 1.0)
    assert same_bits([first.values()], before)


def test_value_bounds_on_sparse_gradients_are_left_to_torch() -> None:
    for sparse in (rows(), matrix().to_sparse_csr()):
        owner = parameter(sparse)
        with pytest.raises(RuntimeError) as theirs:
            torch.nn.utils.clip_grad.clip_grad_value_([owner], 1.0)
        with pytest.raises(type(theirs.value)):
            fastclip.torch.clip_grad_value_([owner], 1.0)
