"""Gradients of every layout, shared and empty ones, in the functions of `fastclip.torch`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    versions,
)
from support import oracle
from support.dtypes import FLOAT_DTYPES
from support.strategies import PROPERTY, array_lists
from support.tensor_kinds import from_torch, to_torch

pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

TORCH_CLIP_GRAD_NORM = torch.nn.utils.clip_grad.clip_grad_norm_

#: Layouts of a tensor of shape (4, 3, 6, 2), as views of it or copies.
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, 2),
    "permuted": lambda t: t.permute(3, 0, 2, 1),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every second": lambda t: t[::2, :, ::2],
    "a column": lambda t: t[:, 1, 2, 0],
    "transposed slice": lambda t: t[1:, :, 1:4].transpose(0, 3),
    "diagonal": lambda t: t.diagonal(dim1=0, dim2=2),
    "offset": lambda t: t.flatten()[5:],
    "no axes": lambda t: t[1, 2, 3, 1],
    "one element": lambda t: t[1:2, 2, 3, 1],
    "empty": lambda t: t[:0],
    "empty inside": lambda t: t[:, 1:1],
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
WRITERS: dict[str, Callable[[list[Any]], Any]] = {
    "clip_grad_norm_": lambda owners: fastclip.torch.clip_grad_norm_(owners, 1.0),
    "clip_grads_with_norm_": lambda owners: fastclip.torch.clip_grads_with_norm_(owners, 1.0, 5.0),
    "clip_grad_value_": lambda owners: fastclip.torch.clip_grad_value_(owners, 1.0),
}
EVERY_WRITER = pytest.mark.parametrize("writer", WRITERS)


def clip(*arguments: Any, **options: Any) -> Any:
    return fastclip.torch.clip_grad_norm_(*arguments, **options)


# --- layouts ------------------------------------------------------------------------------------


def memory(dtype: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    return torch.randn((4, 3, 6, 2), generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype: Any, layout: str) -> None:
    base = memory(dtype)
    gradient = LAYOUTS[layout](base)
    strides, address, size = gradient.stride(), gradient.data_ptr(), norm([gradient])
    before, rest = bits([gradient]), base.clone()
    owner = parameter(gradient)
    total = float(clip(owner, size / 3, dtype=torch.float64))
    assert total == pytest.approx(size, rel=1e-14)
    assert_scaled([gradient], before, factor(total, size / 3))
    assert owner.grad is gradient
    assert (gradient.stride(), gradient.data_ptr()) == (strides, address)
    # What lies between the elements is left as it is.
    with torch.no_grad():
        gradient.copy_(to_torch(before[0]))
    assert torch.equal(base, rest)


@pytest.mark.parametrize("order", ORDERS)
def test_all_layouts_together(order: Any) -> None:
    gradients = [layout(memory(dtype)) for dtype in DTYPES for layout in LAYOUTS.values()]
    before, exact = bits(gradients), norm(gradients, order)
    total = float(clip(parameters(gradients), 2.0, order))
    assert total == pytest.approx(exact, rel=1e-13)
    assert_scaled(gradients, before, factor(total, 2.0))
    assert versions(gradients) == [1] * len(gradients)


@PROPERTY
@given(
    arrays=array_lists(FLOAT_DTYPES, ("C", "F", "permuted", "stepped", "offset", "misaligned")),
    max_norm=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 100.0, 1e30, math.inf]) | st.floats(0, 1e9),
    order=st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, math.inf]) | st.floats(0.5, 8.0),
)
def test_values_and_layouts_in_general(arrays: list[Any], max_norm: float, order: float) -> None:
    gradients = [to_torch(array) for array in arrays]
    before = bits(gradients)
    norms = torch.full((len(gradients),), math.nan, dtype=torch.float64)
    owners = parameters(gradients)
    total = float(clip(owners, max_norm, order, True, dtype=torch.float64, norms=norms))
    # Of moduli in the subnormal range of float64, the oracle has few digits.
    is_known = not oracle.has_denormal_moduli(before)
    exact = oracle.norm(before, order) if before else 0
    if is_known and exact <= oracle.FLOAT64_MAX:
        oracle.assert_norm_value(total, exact, np.dtype(np.float64), order)
        for own, array in zip(norms.tolist(), before, strict=True):
            oracle.assert_norm_value(own, oracle.norm([array], order), np.dtype(np.float64), order)
    if not math.isfinite(total):
        return
    scale = factor(total, max_norm)
    if max_norm == 0 or scale >= np.finfo(np.float64).tiny:
        assert_scaled(gradients, before, scale)
        return
    # The factor is not in the normal range of float64, but its products may be.
    for gradient, array in zip(gradients, before, strict=True):
        info = torch.finfo(gradient.dtype)
        np.testing.assert_allclose(
            oracle.float64_parts(from_torch(gradient)),
            oracle.float64_parts(array) / total * max_norm,
            rtol=2 * info.eps,
            atol=info.smallest_normal * info.eps,
        )


@PROPERTY
@given(
    arrays=array_lists(FLOAT_DTYPES, ("C", "F", "stepped"), kinds=("normal", "sparse"), min_size=1),
    max_norm=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    order=st.sampled_from([1.0, 1.5, 2.0, 3.0]),
)
def test_results_are_those_of_torch_in_general(arrays: list[Any], max_norm: float, order: float) -> None:
    gradients = [to_torch(array) for array in arrays]
    theirs = parameters([gradient.clone() for gradient in gradients])
    result = clip(parameters(gradients), max_norm, order)
    expected = TORCH_CLIP_GRAD_NORM(theirs, max_norm, order)
    # torch rounds the norm of 16-bit gradients to 16 bits.
    tolerance = max(4 * torch.finfo(gradient.dtype).eps for gradient in gradients) + 1e-6
    assert float(result) == pytest.approx(float(expected), rel=tolerance, abs=1e-7)
    for own, other in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(own, other.grad, rtol=tolerance, atol=tolerance / 100)


# --- lazy bits ----------------------------------------------------------------------------------


def test_gradients_that_are_lazily_conjugated() -> None:
    base = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex128)
    owner = parameter(base.conj())
    assert owner.grad.is_conj()
    total = clip(owner, 1.0)
    assert float(total) == pytest.approx(math.sqrt(30), rel=1e-14)
    torch.testing.assert_close(
        owner.grad, torch.tensor([1 - 2j, 3 + 4j], dtype=torch.complex128) / (total + 1e-6)
    )


def test_gradients_that_are_lazily_negated() -> None:
    base = torch.tensor([1 + 2j, 3 - 4j])
    owner = parameter(base.conj().imag)
    assert owner.grad.is_neg()
    assert float(clip(owner, 1.0)) == pytest.approx(math.sqrt(20), rel=1e-6)
    torch.testing.assert_close(owner.grad, torch.tensor([-2.0, 4.0]) / math.sqrt(20))
    torch.testing.assert_close(base.real, torch.tensor([1.0, 3.0]))


def test_value_bounds_on_gradients_that_are_lazily_negated() -> None:
    # torch's function on several tensors at once refuses them, the one on each alone takes them.
    owner = parameter(torch.tensor([1 + 2j, 3 - 0.5j]).conj().imag)
    fastclip.torch.clip_grad_value_(owner, 1.0, foreach=False)
    assert owner.grad.tolist() == [-1.0, 0.5]


# --- gradients that are there several times -----------------------------------------------------


def test_parameter_given_twice_is_counted_and_scaled_once() -> None:
    for times in (2, 5):
        owner, other = parameters([torch.tensor([3.0, 4.0]), torch.tensor([12.0])])
        result = clip([owner] * times + [other] + [owner], 1.0)
        assert result == 13.0
        torch.testing.assert_close(owner.grad, torch.tensor([3.0, 4.0]) / 13.000001)
        torch.testing.assert_close(other.grad, torch.tensor([12.0]) / 13.000001)
        assert versions([owner.grad, other.grad]) == [1, 1]


@pytest.mark.parametrize("order", ORDERS)
def test_parameters_with_one_gradient_in_common(order: Any) -> None:
    gradient = torch.tensor([3.0, 4.0])
    owners = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for owner in owners:
        owner.grad = gradient
    before, exact = bits([gradient]), norm([gradient], order)
    total = float(clip(owners, 1.0, order, dtype=torch.float64))
    assert total == pytest.approx(exact, rel=1e-14)
    assert_scaled([gradient], before, factor(total, 1.0))
    assert gradient._version == 1
    assert all(owner.grad is gradient for owner in owners)


@EVERY_WRITER
def test_every_function_writes_a_shared_gradient_once(writer: str) -> None:
    once, twice = parameter(torch.tensor([3.0, 4.0])), parameter(torch.tensor([3.0, 4.0]))
    WRITERS[writer]([once])
    WRITERS[writer]([twice, twice])
    assert torch.equal(once.grad, twice.grad)
    assert twice.grad._version == 1


def test_tied_weights_of_a_module() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    module[1].weight = module[0].weight
    module(torch.ones(2, 3)).sum().backward()
    owners = [module[0].weight, module[0].bias, module[1].weight, module[1].bias]
    gradients = [owner.grad.clone() for owner in dict.fromkeys(owners)]
    assert float(clip(owners, 0.5)) == pytest.approx(norm(gradients), rel=1e-6)
    assert norm([owner.grad for owner in dict.fromkeys(owners)]) == pytest.approx(0.5, rel=1e-5)


def test_total_norm_counts_a_tensor_once() -> None:
    tensor = torch.tensor([3.0, 4.0])
    assert fastclip.torch.get_total_norm([tensor, tensor, torch.tensor([12.0]), tensor]) == 13.0
    # Tensors of their own over one memory are several tensors.
    assert float(fastclip.torch.get_total_norm([tensor, tensor[:]])) == pytest.approx(math.sqrt(50))


# --- gradients that overlap ---------------------------------------------------------------------


OVERLAPPING: dict[str, Callable[[Any], list[Any]]] = {
    "the same elements": lambda t: [t, t[:]],
    "a part": lambda t: [t, t[3:5]],
    "the last and the first": lambda t: [t[:6], t[5:]],
    "detached": lambda t: [t, torch.ones(3), t.detach()],
    "of another dtype": lambda t: [t, t.view(torch.int32).view(torch.float32)],
    "reshaped": lambda t: [t.view(5, 2), t.view(2, 5)],
    "with itself": lambda t: [t[:1].expand(4)],
    "with itself, in part": lambda t: [torch.ones(3), t.unfold(0, 4, 2)],
}


@EVERY_WRITER
@pytest.mark.parametrize("overlap", OVERLAPPING)
def test_gradients_that_overlap_are_refused(writer: str, overlap: str) -> None:
    base = torch.arange(1.0, 11) * 10
    gradients = OVERLAPPING[overlap](base)
    before = bits([base])
    with pytest.raises(ValueError, match=r"gradients\[\d\]"):
        WRITERS[writer](parameters(gradients))
    assert same_bits([base], before)
    assert base._version == 0
    assert all(torch.equal(tensor, torch.ones(3)) for tensor in gradients if tensor.shape == (3,))


@EVERY_WRITER
def test_gradients_between_the_elements_of_each_other(writer: str) -> None:
    base = torch.arange(1.0, 41).view(4, 10)
    columns = [base[:, ::2], base[:, 1::2]]
    copies = [column.clone() for column in columns]
    WRITERS[writer](parameters(columns))
    WRITERS[writer](parameters(copies))
    assert all(torch.equal(column, copy) for column, copy in zip(columns, copies, strict=True))


def test_total_norm_of_tensors_that_overlap() -> None:
    base = torch.tensor([3.0, 4.0])
    assert float(fastclip.torch.get_total_norm([base[:1].expand(4), base])) == pytest.approx(math.sqrt(61))


# --- empty tensors ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [*ORDERS, 1e-3, 1e3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_gradients_under_every_order(order: Any, dtype: Any) -> None:
    owners = parameters([torch.empty(0, dtype=dtype), torch.empty((2, 0, 3), dtype=dtype)])
    for max_norm in (0.0, 1.0):
        assert clip(owners, max_norm, order, True) == 0.0
    assert fastclip.torch.get_total_norm([owner.grad for owner in owners], order) == 0.0
    assert [owner.grad.shape for owner in owners] == [(0,), (2, 0, 3)]


@pytest.mark.parametrize("order", ORDERS)
def test_empty_gradients_beside_others(order: Any) -> None:
    owners = parameters([torch.empty(0), torch.tensor([3.0, 4.0]), torch.empty((1, 0))])
    exact = norm([owners[1].grad], order)
    before = bits([owners[1].grad])
    total = float(clip(owners, 1.0, order, dtype=torch.float64))
    assert total == pytest.approx(exact, rel=1e-14)
    assert_scaled([owners[1].grad], before, factor(total, 1.0))


@EVERY_WRITER
def test_empty_gradients_in_every_function(writer: str) -> None:
    owner = parameter(torch.empty((3, 0)))
    WRITERS[writer]([owner])
    assert from_torch(owner.grad).shape == (3, 0)


# --- sizes --------------------------------------------------------------------------------------


def test_many_gradients() -> None:
    gradients = [torch.full((number % 7,), float(number % 5)) for number in range(3000)]
    before, exact = bits(gradients), norm(gradients)
    total = float(clip(parameters(gradients), 1.0, dtype=torch.float64))
    assert total == pytest.approx(exact, rel=1e-14)
    assert_scaled(gradients, before, factor(total, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_long_enough_for_several_threads(dtype: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    gradients = [torch.randn((900, 1100), generator=generator).to(dtype) for _ in range(2)]
    gradients[1] = gradients[1].T
    before = bits(gradients)
    exact = math.sqrt(float(oracle.sum_of_squares(before)))
    total = float(clip(parameters(gradients), 1.0, dtype=torch.float64))
    assert total == pytest.approx(exact, rel=1e-14)
    assert_scaled(gradients, before, factor(total, 1.0))
