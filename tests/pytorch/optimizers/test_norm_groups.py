"""Norm groups: which gradients are measured together, by which bound they are clipped, what is reported."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import NAMES, WITH_STATES, mine, parameters, set_gradients, theirs  # noqa: E402

pytestmark = pytest.mark.interop("torch")


def parameter(gradient: list[float], dtype: Any = torch.float64) -> Any:
    """Returns a parameter of zeros with a gradient."""
    tensor = torch.nn.Parameter(torch.zeros(len(gradient), dtype=dtype))
    tensor.grad = torch.tensor(gradient, dtype=dtype)
    return tensor


def moved(tensor: Any) -> list[float]:
    """Returns what gradient descent with a learning rate of 1 has subtracted from zeros."""
    return [-number for number in tensor.detach().tolist()]


def factor(norm: float, bound: float) -> float:
    return min(1.0, bound / (norm + 1e-6))


# The factor ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "bound"),
    [
        ([3.0, 4.0], 1.0),
        ([3.0, 4.0], 5.0),
        # Just above the norm, the summand 1e-6 still makes the factor 1.
        ([3.0, 4.0], 5.0 + 1e-6),
        ([3.0, 4.0], 5.0 + 0.5e-6),
        ([3.0, 4.0], 100.0),
        ([3e-7, 4e-7], 1e-6),
        ([0.0, 0.0], 1.0),
        ([0.0, 0.0], 0.0),
        ([3.0, 4.0], 0.0),
        ([3e200, 4e200], 1.0),
        ([3e-200, 4e-200], 1e-300),
        ([3.0, 4.0], math.inf),
    ],
)
def test_the_factor_is_that_of_clip_grad_norm(gradient: list[float], bound: float) -> None:
    tensor = parameter(gradient)
    optimizer = mine("SGD", [tensor], lr=1.0, max_norm=bound)
    optimizer.step()
    norm = math.hypot(*gradient)
    assert optimizer.last_norm == pytest.approx(norm, rel=1e-15)
    assert optimizer.last_scale == pytest.approx(factor(norm, bound), rel=1e-15)
    assert moved(tensor) == pytest.approx([number * factor(norm, bound) for number in gradient], rel=1e-14)


def test_small_gradients_are_not_scaled_at_all() -> None:
    tensor = parameter([0.1, 0.7], torch.float32)
    optimizer = mine("SGD", [tensor], lr=1.0, max_norm=1.0)
    optimizer.step()
    assert optimizer.last_scale == 1.0
    assert moved(tensor) == tensor.grad.tolist()


def test_a_bound_may_be_a_tensor_or_an_integer_and_is_kept_as_a_float() -> None:
    for bound in (torch.tensor(2.0), 2, "2.0"):
        optimizer = mine("SGD", [parameter([3.0, 4.0])], lr=1.0, max_norm=bound)
        assert type(optimizer.max_norm) is float
        assert optimizer.max_norm == 2.0
        assert type(optimizer.state_dict()["param_groups"][0]["shared_max_norm"]) is float


# Which gradients are measured together ---------------------------------------------------------


def test_groups_without_bounds_share_the_norm_of_all() -> None:
    tensors = [parameter([2.0]), parameter([3.0]), parameter([6.0])]
    optimizer = mine("SGD", [{"params": [tensor]} for tensor in tensors], lr=1.0, max_norm=1.0)
    optimizer.step()
    assert optimizer.last_norm == pytest.approx(7.0, rel=1e-15)
    assert isinstance(optimizer.last_scale, float)
    assert [moved(tensor)[0] for tensor in tensors] == pytest.approx(
        [number / 7.000001 for number in (2.0, 3.0, 6.0)], rel=1e-14
    )


def test_groups_with_bounds_are_clipped_by_themselves_and_the_others_together() -> None:
    tensors = [parameter([g]) for g in (3.0, 1e6, 4.0, 100.0, 0.5)]
    groups: list[dict[str, Any]] = [{"params": [tensor]} for tensor in tensors]
    groups[1]["max_norm"] = 10.0
    groups[3]["max_norm"] = None
    groups[4]["max_norm"] = 1.0
    optimizer = mine("SGD", groups, lr=1.0, max_norm=1.0)
    optimizer.step()
    scales = [factor(5.0, 1.0), factor(1e6, 10.0), factor(5.0, 1.0), 1.0, 1.0]
    assert optimizer.last_scale == pytest.approx(scales, rel=1e-15)
    assert optimizer.last_norm == [5.0, 1e6, 5.0, None, 0.5]
    assert [moved(tensor)[0] for tensor in tensors] == pytest.approx(
        [number * scale for number, scale in zip((3.0, 1e6, 4.0, 100.0, 0.5), scales, strict=True)], rel=1e-14
    )


def test_two_groups_with_the_same_bound_are_still_two_norm_groups() -> None:
    tensors = [parameter([3.0]), parameter([4.0])]
    optimizer = mine("SGD", [{"params": [tensor], "max_norm": 1.0} for tensor in tensors], lr=1.0)
    optimizer.step()
    assert optimizer.last_norm == [3.0, 4.0]
    assert optimizer.max_norm is None


def test_an_exploding_group_does_not_freeze_the_others() -> None:
    calm, exploding = parameter([0.3]), parameter([math.inf])
    groups = [{"params": [calm]}, {"params": [exploding], "max_norm": 1.0}]
    optimizer = mine("SGD", groups, lr=1.0, max_norm=1.0)
    optimizer.step()
    assert moved(calm) == [0.3]
    assert math.isnan(moved(exploding)[0])
    assert optimizer.last_norm == [0.3, math.inf]


def test_an_own_bound_of_a_single_group_reports_numbers() -> None:
    tensor = parameter([3.0, 4.0])
    optimizer = mine("SGD", [{"params": [tensor], "max_norm": 1.0}], lr=1.0, max_norm=100.0)
    optimizer.step()
    assert optimizer.last_norm == 5.0
    assert optimizer.last_scale == factor(5.0, 1.0)
    assert optimizer.max_norm == 100.0


def test_a_group_without_gradients_has_a_norm_of_zero() -> None:
    tensors = [parameter([3.0]), parameter([4.0])]
    optimizer = mine(
        "SGD", [{"params": [tensors[0]]}, {"params": [tensors[1]], "max_norm": 1.0}], max_norm=1.0
    )
    tensors[1].grad = None
    optimizer.step()
    assert optimizer.last_norm == [3.0, 0.0]
    assert optimizer.last_scale == [factor(3.0, 1.0), 1.0]


def test_groups_that_are_added_share_or_have_their_bound() -> None:
    tensors = [parameter([3.0]), parameter([4.0]), parameter([12.0])]
    optimizer = mine("SGD", tensors[:1], lr=1.0, max_norm=1.0)
    optimizer.add_param_group({"params": tensors[1:2]})
    assert "max_norm" not in optimizer.param_groups[1]
    optimizer.step()
    assert optimizer.last_norm == 5.0
    optimizer.add_param_group({"params": tensors[2:], "max_norm": 2.0})
    optimizer.step()
    assert optimizer.last_norm == [5.0, 5.0, 12.0]
    optimizer.add_param_group({"params": [parameter([1.0])], "max_norm": torch.tensor(2.0)})
    assert type(optimizer.param_groups[3]["max_norm"]) is float


@pytest.mark.parametrize("bound", [-1.0, math.nan])
def test_bounds_that_groups_may_not_have(bound: float) -> None:
    optimizer = mine("SGD", [parameter([1.0])])
    with pytest.raises(ValueError, match="max_norm of a parameter group is"):
        optimizer.add_param_group({"params": [parameter([1.0])], "max_norm": bound})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="max_norm is"):
        optimizer.max_norm = bound
    assert optimizer.max_norm is None


@pytest.mark.parametrize("name", NAMES)
def test_norm_groups_clip_in_every_class(name: str) -> None:
    # The oracle clips each norm group by PyTorch's function.
    own, other = parameters(), parameters()

    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [
            {"params": params[:1]},
            {"params": params[1:2]},
            {"params": params[2:4]},
            {"params": params[4:]},
        ]

    with_bounds = groups(own)
    with_bounds[1]["max_norm"] = 0.5
    with_bounds[3]["max_norm"] = None
    optimizer = mine(name, with_bounds, lr=0.01, max_norm=2.0, **WITH_STATES[name])
    reference = theirs(name, groups(other), lr=0.01, **WITH_STATES[name])
    for step in range(30):
        set_gradients(own, step)
        set_gradients(other, step)
        shared = torch.nn.utils.clip_grad_norm_([other[0], *other[2:4]], 2.0).item()
        single = torch.nn.utils.clip_grad_norm_(other[1:2], 0.5).item()
        optimizer.step()
        reference.step()
        norms = [pytest.approx(norm, rel=1e-6) for norm in (shared, single, shared)]
        assert optimizer.last_norm == [*norms, None]
    for parameter_, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter_, wanted, rtol=1e-6, atol=1e-6)


# Reports and bounds between steps --------------------------------------------------------------


def test_nothing_is_reported_before_a_step() -> None:
    optimizer = mine("SGD", [parameter([1.0])], max_norm=1.0)
    assert optimizer.last_norm is None
    assert optimizer.last_scale is None
    assert optimizer.skipped_steps == 0


def test_without_a_bound_nothing_is_measured_but_where_the_policies_need_it() -> None:
    tensor = parameter([3.0, 4.0])
    optimizer = mine("SGD", [tensor], lr=1.0)
    optimizer.step()
    assert optimizer.last_norm is None
    assert optimizer.last_scale == 1.0
    for options in ({"on_nonfinite": "raise"}, {"on_nonfinite": "skip"}, {"skip_above": 10.0}):
        optimizer = mine("SGD", [parameter([3.0, 4.0])], lr=1.0, **options)
        optimizer.step()
        assert optimizer.last_norm == 5.0
        assert optimizer.last_scale == 1.0


def test_the_bound_of_the_optimizer_may_be_set_between_steps() -> None:
    tensors = [parameter([3.0]), parameter([4.0]), parameter([1.0])]
    groups = [{"params": tensors[:1]}, {"params": tensors[1:2]}, {"params": tensors[2:], "max_norm": 0.5}]
    optimizer = mine("SGD", groups, lr=1.0)
    assert optimizer.max_norm is None
    optimizer.step()
    assert optimizer.last_scale == [1.0, 1.0, factor(1.0, 0.5)]
    optimizer.max_norm = 1
    optimizer.step()
    assert optimizer.last_scale == [factor(5.0, 1.0), factor(5.0, 1.0), factor(1.0, 0.5)]
    assert optimizer.max_norm == 1.0
    optimizer.max_norm = None
    optimizer.step()
    assert optimizer.last_scale == [1.0, 1.0, factor(1.0, 0.5)]
    assert optimizer.param_groups[2]["max_norm"] == 0.5


def test_a_bound_that_is_set_holds_for_groups_that_are_added_later() -> None:
    optimizer = mine("SGD", [parameter([3.0])], lr=1.0)
    optimizer.max_norm = 1.0
    optimizer.add_param_group({"params": [parameter([4.0])]})
    optimizer.step()
    assert optimizer.last_norm == 5.0
    assert optimizer.last_scale == factor(5.0, 1.0)


def test_the_bound_of_a_group_may_be_set_in_it() -> None:
    tensors = [parameter([3.0]), parameter([4.0])]
    optimizer = mine("SGD", [{"params": [tensor]} for tensor in tensors], lr=1.0, max_norm=1.0)
    optimizer.param_groups[1]["max_norm"] = 2.0
    optimizer.step()
    assert optimizer.last_norm == [3.0, 4.0]
    optimizer.param_groups[1]["max_norm"] = None
    optimizer.step()
    assert optimizer.last_scale == [factor(3.0, 1.0), 1.0]
    del optimizer.param_groups[1]["max_norm"]
    optimizer.step()
    assert optimizer.last_norm == 5.0


@pytest.mark.parametrize("position", [0, 1])
def test_the_order_of_groups_with_and_without_bounds_does_not_matter(position: int) -> None:
    tensors = [parameter([3.0]), parameter([4.0]), parameter([12.0])]
    groups: list[dict[str, Any]] = [{"params": [tensor]} for tensor in tensors]
    groups[position]["max_norm"] = 1.0
    optimizer = mine("SGD", groups, lr=1.0, max_norm=2.0)
    optimizer.step()
    values = [3.0, 4.0, 12.0]
    shared = math.hypot(*(value for index, value in enumerate(values) if index != position))
    wanted = [value if index == position else shared for index, value in enumerate(values)]
    assert optimizer.last_norm == pytest.approx(wanted, rel=1e-15)
