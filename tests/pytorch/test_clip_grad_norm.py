"""`fastclip.torch.clip_grad_norm_` on float32: torch's signature and results, the factor, the versions."""

from __future__ import annotations

import inspect
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
    parameters_with_copies,
    same_bits,
    some_gradients,
    versions,
)

pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

#: torch's own function, whatever is put into `torch.nn.utils` later.
TORCH_CLIP_GRAD_NORM = torch.nn.utils.clip_grad.clip_grad_norm_

EVERY_ORDER = pytest.mark.parametrize("order", ORDERS)
EVERY_MAX_NORM = pytest.mark.parametrize("max_norm", [0.0, 1e-30, 1e-3, 1.0, 6.0, 1e4, math.inf])


def clip(*arguments: Any, **options: Any) -> Any:
    return fastclip.torch.clip_grad_norm_(*arguments, **options)


# --- results ------------------------------------------------------------------------------------


@EVERY_ORDER
@EVERY_MAX_NORM
def test_norm_and_gradients_are_those_of_torch(order: Any, max_norm: float) -> None:
    ours, theirs = parameters(some_gradients()), parameters(some_gradients())
    result = clip(ours, max_norm, order)
    expected = TORCH_CLIP_GRAD_NORM(theirs, max_norm, order)
    torch.testing.assert_close(result, expected)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-6, atol=1e-38)


@EVERY_ORDER
def test_norm_is_the_exact_one(order: Any) -> None:
    gradients = some_gradients()
    expected = norm(gradients, order)
    result = clip(parameters(gradients), 1e9, order)
    assert result.dtype == torch.float32
    assert float(result) == pytest.approx(expected, rel=2**-24)
    assert float(clip(parameters(gradients), 1e9, order, dtype=torch.float64)) == pytest.approx(
        expected, rel=1e-14
    )


@EVERY_ORDER
@EVERY_MAX_NORM
def test_gradients_are_products_with_the_factor_of_the_float64_norm(order: Any, max_norm: float) -> None:
    owners = parameters(some_gradients())
    gradients = [owner.grad for owner in owners]
    before = bits(gradients)
    total = float(clip(owners, max_norm, order, dtype=torch.float64))
    assert total == pytest.approx(norm(some_gradients(), order), rel=1e-14)
    assert_scaled(gradients, before, factor(total, max_norm))
    assert all(owner.grad is gradient for owner, gradient in zip(owners, gradients, strict=True))


@pytest.mark.parametrize("foreach", [None, False, True])
@EVERY_ORDER
def test_one_scale_for_all_gradients(order: Any, foreach: bool | None) -> None:
    # test_clip_grad_norm of torch's test_nn.py.
    layer = torch.nn.Linear(10, 10)
    gradients = [torch.arange(1.0, 101).view(10, 10), torch.ones(10).div(1000)]
    for owner, gradient in zip(layer.parameters(), gradients, strict=True):
        owner.grad = gradient.clone()
    before = norm(gradients, order)
    result = clip(layer.parameters(), 2, norm_type=order, foreach=foreach)
    after = norm([owner.grad for owner in layer.parameters()], order)
    assert float(result) == pytest.approx(before, rel=1e-6)
    assert after == pytest.approx(2.0, rel=1e-5)
    assert after <= before
    scales = torch.cat(
        [
            owner.grad.div(gradient).view(-1)
            for owner, gradient in zip(layer.parameters(), gradients, strict=True)
        ]
    )
    assert float(scales.std()) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("foreach", [None, False, True])
@EVERY_ORDER
def test_small_gradients_are_left_as_they_are(order: Any, foreach: bool | None) -> None:
    gradients = [torch.rand(10, 10).div(10000), torch.ones(10).div(500)]
    owners = parameters_with_copies(gradients)
    max_norm = 2 * norm(gradients, order)
    result = clip(owners, max_norm, norm_type=order, foreach=foreach)
    assert float(result) == pytest.approx(max_norm / 2, rel=1e-6)
    for owner, gradient in zip(owners, gradients, strict=True):
        assert torch.equal(owner.grad, gradient)
        assert owner.grad._version == 0


def test_result_is_a_number_of_its_own() -> None:
    owners = parameters(some_gradients())
    first = clip(owners, 1.0)
    second = clip(owners, 1.0)
    assert type(first) is torch.Tensor
    assert first.shape == ()
    assert first.device.type == "cpu"
    assert not first.requires_grad
    assert float(second) == pytest.approx(1.0, rel=1e-5)
    assert float(first) > 5.0


# --- the factor ---------------------------------------------------------------------------------


def test_epsilon_is_added_to_the_norm() -> None:
    # Norms of the bound, and just below it: torch's epsilon makes their factor less than 1.
    for size in (1.0, 1.0 - 5e-7):
        owner = parameter(torch.tensor([size, 0.0], dtype=torch.float64))
        clip(owner, 1.0)
        assert owner.grad[0] == size * (1.0 / (size + 1e-6))
        assert owner.grad._version == 1


def test_factor_is_1_where_the_norm_and_the_epsilon_are_the_bound() -> None:
    owner = parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    clip(owner, 5.0 + 1e-6)
    assert owner.grad.tolist() == [3.0, 4.0]
    assert owner.grad._version == 0


def test_epsilon_bounds_the_factor_of_norms_that_are_smaller_than_it() -> None:
    owner = parameter(torch.tensor([1e-7, -2e-9]))
    before = bits([owner.grad])
    total = float(clip(owner, 1e-7, dtype=torch.float64))
    assert_scaled([owner.grad], before, 1e-7 / (total + 1e-6))
    assert float(owner.grad[0]) == pytest.approx(1e-8 / 1.1, rel=1e-6)


def test_bound_0_multiplies_by_0() -> None:
    # Multiplied, not assigned: the signs stay.
    owner = parameter(torch.tensor([-0.0, 0.0, 1.0, -1.0]))
    other = parameter(torch.zeros(3))
    assert float(clip([owner, other], 0.0)) == pytest.approx(math.sqrt(2))
    assert owner.grad.tolist() == [0.0] * 4
    assert torch.signbit(owner.grad).tolist() == [True, False, False, True]
    assert versions([owner.grad, other.grad]) == [1, 1]


def test_bound_0_and_norm_0() -> None:
    owner = parameter(torch.tensor([0.0, -0.0]))
    assert clip(owner, 0.0) == 0.0
    assert torch.signbit(owner.grad).tolist() == [False, True]
    assert owner.grad._version == 1


def test_infinite_bound_leaves_finite_gradients() -> None:
    gradients = some_gradients()
    owners = parameters_with_copies(gradients)
    clip(owners, "inf")
    assert same_bits([owner.grad for owner in owners], bits(gradients))
    assert versions([owner.grad for owner in owners]) == [0] * len(owners)


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_"]
)
def test_signatures_begin_with_those_of_torch(name: str) -> None:
    original = getattr(torch.nn.utils, name)
    theirs = list(inspect.signature(original).parameters.values())
    ours = list(inspect.signature(getattr(fastclip.torch, name)).parameters.values())
    for own, other in zip(ours, theirs, strict=False):
        assert (own.name, own.kind, own.default) == (other.name, other.kind, other.default)
    assert len(ours) >= len(theirs)
    assert all(added.kind is inspect.Parameter.KEYWORD_ONLY for added in ours[len(theirs) :])


@pytest.mark.parametrize(
    "max_norm",
    [1, True, "1.0", np.float32(1), np.array(1.0), 1.0],
    ids=["int", "bool", "str", "float32", "array", "float"],
)
def test_max_norm_is_whatever_float_takes(max_norm: Any) -> None:
    owner = parameter(torch.tensor([3.0, 4.0]))
    assert clip(owner, max_norm) == 5.0
    torch.testing.assert_close(owner.grad, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("order", ["inf", math.inf, np.inf, "2", 2, "1.0", np.float32(1.5)])
def test_norm_type_is_whatever_float_takes(order: Any) -> None:
    owner = parameter(torch.tensor([3.0, 4.0]))
    expected = norm([owner.grad], order)
    assert float(clip(owner, 1.0, order)) == pytest.approx(expected, rel=1e-6)


def test_numbers_may_be_tensors() -> None:
    owner = parameter(torch.tensor([3.0, 4.0]))
    assert clip(owner, torch.tensor(1.0), torch.tensor(math.inf)) == 4.0
    torch.testing.assert_close(owner.grad, torch.tensor([0.75, 1.0]))


def test_numbers_that_float_refuses() -> None:
    owner = parameter(torch.tensor([3.0, 4.0]))
    with pytest.raises(ValueError, match="could not convert"):
        clip(owner, "large")
    with pytest.raises(ValueError, match="could not convert"):
        clip(owner, 1.0, "fro")
    with pytest.raises(TypeError):
        clip(owner, None)
    assert owner.grad.tolist() == [3.0, 4.0]


CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda items: (item for item in items),
    "iterator": iter,
    "values of a dict": lambda items: dict(enumerate(items)).values(),
    "set": set,
    "ParameterList": torch.nn.ParameterList,
    "named parameters": lambda items: torch.nn.ParameterList(items).named_parameters(),
    "list of pairs": lambda items: [(str(item.shape), item) for item in items],
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_of_parameters(container: str) -> None:
    gradients = some_gradients()
    owners = parameters_with_copies(gradients)
    result = clip(CONTAINERS[container](owners), 1.0)
    assert float(result) == pytest.approx(norm(gradients), rel=1e-6)
    assert norm([owner.grad for owner in owners]) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (5,), (2, 3)])
def test_single_parameter(shape: tuple[int, ...]) -> None:
    gradient = torch.full(shape, -3.0)
    owner = parameter(gradient.clone())
    assert float(clip(owner, 0.5)) == pytest.approx(norm([gradient]))
    torch.testing.assert_close(owner.grad, gradient * factor(norm([gradient]), 0.5))


def test_tensors_that_are_no_parameters() -> None:
    owner = torch.zeros(2)
    owner.grad = torch.tensor([3.0, 4.0])
    assert clip([owner], 1.0) == 5.0
    torch.testing.assert_close(owner.grad, torch.tensor([0.6, 0.8]))


def test_gradient_that_is_a_parameter() -> None:
    owner = parameter(torch.nn.Parameter(torch.tensor([3.0, 4.0])))
    assert clip([owner], 1.0) == 5.0
    torch.testing.assert_close(owner.grad.detach(), torch.tensor([0.6, 0.8]))


def test_parameters_without_gradients() -> None:
    owners = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    for without in (owners, [], (), owners[0], {}):
        result = clip(without, 1.0)
        assert result.shape == ()
        assert result.dtype == torch.float32
        assert result == 0.0
    owners[1].grad = torch.tensor([3.0, 4.0])
    assert clip(owners, 1.0) == 5.0
    assert owners[0].grad is owners[2].grad is None
    torch.testing.assert_close(owners[1].grad, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("names", [False, True])
def test_exhausted_generator_is_warned_of(names: bool) -> None:
    module = torch.nn.Linear(2, 2)
    generator = module.named_parameters() if names else module.parameters()
    list(generator)
    with pytest.warns(
        UserWarning, match="`parameters` is an empty generator, no gradient clipping"
    ) as caught:
        assert clip(generator, 1.0) == 0.0
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="empty generator") as theirs:
        TORCH_CLIP_GRAD_NORM(generator, 1.0)
    assert str(caught[0].message) == str(theirs[0].message)
    assert caught[0].category is theirs[0].category


@pytest.mark.parametrize("without", [list, tuple, lambda: iter(())])
def test_other_empty_containers_are_not_warned_of(without: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clip(without(), 1.0) == 0.0


# --- version counters ---------------------------------------------------------------------------


def test_a_call_counts_one_change_of_each_gradient() -> None:
    owners = parameters(some_gradients())
    gradients = [owner.grad for owner in owners]
    for calls in (1, 2, 3):
        clip(owners, 1.0 / calls)
        assert versions(gradients) == [calls] * len(gradients)
    clip(owners, 100.0)
    assert versions(gradients) == [3] * len(gradients)
    assert versions(owners) == [0] * len(owners)


def test_gradients_that_are_views_of_one_tensor() -> None:
    flat = torch.arange(1.0, 11)
    owners = parameters([flat[:4].view(2, 2), flat[4:], flat[:0]])
    assert float(clip(owners, 1.0)) == pytest.approx(math.sqrt(385), rel=1e-6)
    torch.testing.assert_close(flat, torch.arange(1.0, 11) / (math.sqrt(385) + 1e-6))
    assert flat._version >= 1


def test_backward_through_a_gradient_that_was_clipped_raises() -> None:
    owner = parameter(torch.tensor([3.0, 4.0], requires_grad=True))
    loss = (owner.grad**2).sum()
    clip(owner, 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backward_through_a_gradient_that_was_not_clipped() -> None:
    owner = parameter(torch.tensor([3.0, 4.0], requires_grad=True))
    loss = (owner.grad**2).sum()
    clip(owner, 10.0)
    loss.backward()
    assert owner.grad.grad.tolist() == [6.0, 8.0]


def test_in_the_hook_of_a_parameter() -> None:
    owner = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    seen = []

    def hook(tensor: Any) -> None:
        seen.append(float(clip(tensor, 1.0)))

    owner.register_post_accumulate_grad_hook(hook)
    (owner**2).sum().backward()
    assert seen == [10.0]
    torch.testing.assert_close(owner.grad, torch.tensor([0.6, 0.8]))
