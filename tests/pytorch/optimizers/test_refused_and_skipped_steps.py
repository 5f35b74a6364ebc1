"""Steps over gradients that are not finite, or whose norm is too large: propagated, refused or skipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    TORCH_NAMES,
    WITH_STATES,
    assert_unchanged,
    mine,
    parameters,
    set_gradients,
    snapshot,
    theirs,
)

import fastclip  # noqa: E402
import fastclip.torch  # noqa: E402

pytestmark = pytest.mark.interop("torch")

BAD = [math.nan, math.inf, -math.inf]


def started(name: str, **options: Any) -> tuple[list[Any], Any]:
    """Returns parameters and an optimizer that has taken a step."""
    params = parameters()
    optimizer = mine(name, params, **WITH_STATES[name], **options)
    set_gradients(params, 0)
    optimizer.step()
    set_gradients(params, 1)
    return params, optimizer


# Propagate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("max_norm", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", TORCH_NAMES)
def test_a_step_is_taken_as_torch_takes_it_by_default(name: str, max_norm: float | None, bad: float) -> None:
    own, other = parameters(), parameters()
    optimizer, reference = mine(name, own, max_norm=max_norm), theirs(name, other)
    for step in range(3):
        for params in (own, other):
            set_gradients(params, step)
            if step == 1:
                params[0].grad[2, 3] = bad
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(other, max_norm)
        optimizer.step()
        reference.step()
        for parameter, wanted in zip(own, other, strict=True):
            torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)
        if step == 1 and max_norm is not None:
            assert math.isnan(optimizer.last_norm) if math.isnan(bad) else optimizer.last_norm == math.inf
            assert math.isnan(optimizer.last_scale) if math.isnan(bad) else optimizer.last_scale == 0.0
    assert optimizer.skipped_steps == 0


def test_an_infinite_norm_makes_finite_gradients_zero_and_infinite_ones_nan() -> None:
    finite, infinite = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
    finite.grad = torch.tensor([1.0, -2.0])
    infinite.grad = torch.tensor([math.inf, 1.0, -math.inf])
    optimizer = mine("SGD", [finite, infinite], lr=1.0, max_norm=1.0)
    optimizer.step()
    assert finite.tolist() == [0.0, 0.0]
    assert infinite.isnan().tolist() == [True, False, True]
    assert infinite[1].item() == 0.0


def test_lion_makes_nan_of_nan_and_takes_the_sign_of_infinity() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    mine("Lion", [parameter], lr=0.5).step()
    assert parameter.isnan().tolist() == [True, False, False, False]
    assert parameter[1:].tolist() == [-0.5, 0.5, 0.0]


# Raise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("max_norm", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", NAMES)
def test_a_refused_step_writes_nothing(name: str, max_norm: float | None, bad: float) -> None:
    params, optimizer = started(name, max_norm=max_norm, on_nonfinite="raise")
    params[4].grad[1, 2, 3, 0] = bad
    gradients = [parameter.grad.clone() for parameter in params]
    before, versions = snapshot(optimizer), [parameter._version for parameter in params]
    for _ in range(2):
        with pytest.raises(fastclip.torch.NonFiniteGradientError) as caught:
            optimizer.step()
        assert isinstance(caught.value, (RuntimeError, fastclip.NonFiniteError))
        assert "param_groups[0]['params'][4]" in str(caught.value)
        assert "[3]" not in str(caught.value)
        assert_unchanged(optimizer, before)
        assert [parameter._version for parameter in params] == versions
        for parameter, gradient in zip(params, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=0.0, atol=0.0, equal_nan=True)
    assert optimizer.skipped_steps == 0
    set_gradients(params, 1)
    optimizer.step()
    for parameter in params:
        if "step" in optimizer.state[parameter]:
            assert optimizer.state[parameter]["step"].item() == 2.0


def test_a_refused_first_step_leaves_the_counts_at_zero() -> None:
    own, other = parameters(), parameters()
    optimizer, reference = mine("AdamW", own, on_nonfinite="raise"), theirs("AdamW", other)
    set_gradients(own, 0)
    own[0].grad.fill_(math.nan)
    with pytest.raises(fastclip.torch.NonFiniteGradientError):
        optimizer.step()
    set_gradients(own, 1)
    set_gradients(other, 1)
    optimizer.step()
    reference.step()
    for parameter, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_the_first_gradient_after_a_step_that_was_not_taken_is_not_dampened(policy: str) -> None:
    # The momentum of a parameter has no value before its first step: PyTorch then takes the whole gradient.
    own, other = parameters(), parameters()
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    optimizer, reference = mine("SGD", own, on_nonfinite=policy, **options), theirs("SGD", other, **options)
    set_gradients(own, 0)
    own[0].grad.fill_(math.nan)
    if policy == "raise":
        with pytest.raises(fastclip.torch.NonFiniteGradientError):
            optimizer.step()
    else:
        optimizer.step()
    for step in range(1, 4):
        set_gradients(own, step)
        set_gradients(other, step)
        optimizer.step()
        reference.step()
        for parameter, wanted in zip(own, other, strict=True):
            torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)


def test_the_error_names_parameters_by_their_given_names() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    optimizer = mine("AdamW", model.named_parameters(), on_nonfinite="raise")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model[0].bias.grad[1] = math.nan
    model[1].weight.grad[0, 1] = math.inf
    with pytest.raises(fastclip.torch.NonFiniteGradientError, match=r"of 0\.bias, 1\.weight\.$") as caught:
        optimizer.step()
    norms = caught.value.norms.tolist()
    assert norms[0] == pytest.approx(6**0.5, rel=1e-15)
    assert math.isnan(norms[1])
    assert norms[2] == math.inf
    assert norms[3] == 1.0


def test_the_error_names_the_parameters_of_several_groups_and_rules() -> None:
    # Parameters without gradients, and those of another rule, do not shift the names.
    params = parameters([(2,)] * 6)
    groups = [
        {"params": [("a", params[0]), ("b", params[1])], "momentum": 0.9},
        {"params": [("c", params[2]), ("d", params[3])], "momentum": 0.0},
        {"params": [("e", params[4]), ("f", params[5])], "momentum": 0.9, "max_norm": None},
    ]
    optimizer = mine("SGD", groups, on_nonfinite="raise", max_norm=1.0)
    for index in (1, 2, 3, 5):
        params[index].grad = torch.ones(2)
    params[3].grad[0] = math.nan
    params[5].grad[0] = math.inf
    with pytest.raises(fastclip.torch.NonFiniteGradientError) as caught:
        optimizer.step()
    named = str(caught.value).partition(" of ")[2]
    assert sorted(named.rstrip(".").split(", ")) == ["d", "f"]


def test_the_error_of_many_parameters_is_short() -> None:
    params = parameters([(2,)] * 100)
    for parameter in params:
        parameter.grad = torch.full((2,), math.nan)
    optimizer = mine("SGD", params, on_nonfinite="raise")
    with pytest.raises(fastclip.torch.NonFiniteGradientError, match="100 parameters") as caught:
        optimizer.step()
    assert len(str(caught.value)) < 600


# Skip ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("max_norm", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", NAMES)
def test_a_skipped_step_writes_nothing_and_is_counted(name: str, max_norm: float | None, bad: float) -> None:
    params, optimizer = started(name, max_norm=max_norm, on_nonfinite="skip")
    params[2].grad.fill_(bad)
    before = snapshot(optimizer)
    optimizer.step()
    optimizer.step()
    assert optimizer.skipped_steps == 2
    assert_unchanged(optimizer, before)
    assert not math.isfinite(optimizer.last_norm)
    set_gradients(params, 1)
    optimizer.step()
    assert optimizer.skipped_steps == 2
    assert math.isfinite(optimizer.last_norm)
    assert not torch.equal(snapshot(optimizer)[0], before[0])


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_one_group_that_is_not_finite_stops_all_of_the_step(policy: str) -> None:
    params = parameters([(2,)] * 3)
    for parameter in params:
        parameter.grad = torch.ones(2)
    params[2].grad[1] = math.inf
    groups: list[dict[str, Any]] = [{"params": [parameter]} for parameter in params]
    groups[2]["max_norm"] = None
    optimizer = mine("SGD", groups, max_norm=1.0, on_nonfinite=policy)
    before = snapshot(optimizer)
    if policy == "raise":
        with pytest.raises(fastclip.torch.NonFiniteGradientError):
            optimizer.step()
    else:
        optimizer.step()
        assert optimizer.skipped_steps == 1
    assert_unchanged(optimizer, before)


# The norm above which steps are skipped ---------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_steps_above_a_norm_are_skipped(name: str) -> None:
    params, optimizer = started(name, max_norm=1.0, skip_above=100.0)
    before = snapshot(optimizer)
    params[1].grad[0] = 100.5
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert optimizer.last_norm > 100.0
    assert_unchanged(optimizer, before)
    params[1].grad[0] = 0.0
    optimizer.step()
    assert optimizer.skipped_steps == 1


def test_a_norm_equal_to_the_limit_is_taken() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    optimizer = mine("SGD", [parameter], lr=1.0, skip_above=5.0)
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert parameter.tolist() == [-3.0, -4.0]
    optimizer.skip_above = 4.999
    optimizer.step()
    assert optimizer.skipped_steps == 1


def test_the_limit_is_that_of_the_norm_of_all_gradients() -> None:
    params = parameters([(1,)] * 3)
    for parameter, value in zip(params, (2.0, 3.0, 6.0), strict=True):
        parameter.grad = torch.tensor([value])
    groups: list[dict[str, Any]] = [{"params": [parameter]} for parameter in params]
    groups[0]["max_norm"] = 1.0
    groups[1]["max_norm"] = None
    optimizer = mine("SGD", groups, skip_above=6.9, max_norm=1.0)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    optimizer.skip_above = 7.1
    optimizer.step()
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("bad", BAD)
def test_norms_that_are_not_finite_follow_their_policy_and_not_the_limit(bad: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, bad])
    with pytest.raises(fastclip.torch.NonFiniteGradientError):
        mine("SGD", [parameter], on_nonfinite="raise", skip_above=10.0).step()
    optimizer = mine("SGD", [parameter], on_nonfinite="skip", skip_above=10.0)
    optimizer.step()
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("bad", BAD)
def test_the_limit_is_for_finite_norms(bad: float) -> None:
    # As in fastclip.train: what becomes of NaN and infinity is the subject of on_nonfinite.
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, bad])
    optimizer = mine("SGD", [parameter], lr=1.0, skip_above=10.0)
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert parameter[0].item() == -1.0


# Errors of arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {"on_nonfinite": "ignore"},
        {"on_nonfinite": None},
        {"skip_above": -1.0},
        {"skip_above": math.nan},
        {"max_norm": -1.0},
        {"max_norm": math.nan},
        {"state_dtype": torch.float16},
        {"state_dtype": torch.int32},
        {"rounding": "up"},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 1.5},
    ],
    ids=str,
)
def test_options_that_are_refused(name: str, options: dict[str, Any]) -> None:
    option = next(iter(options))
    with pytest.raises(ValueError, match=f"^{option} is "):
        mine(name, parameters(), **options)


ERRORS: list[tuple[str, dict[str, Any]]] = [
    *[
        (name, options)
        for name in ("AdamW", "Adam")
        for options in (
            {"lr": -1.0},
            {"lr": torch.tensor([0.1, 0.2])},
            {"betas": (1.0, 0.9)},
            {"betas": (0.9, -0.1)},
            {"betas": (0.9, torch.tensor(0.99))},
            {"eps": -1e-8},
            {"weight_decay": -0.1},
            {"foreach": True, "fused": True},
            {"differentiable": True, "fused": True},
        )
    ],
    ("SGD", {"lr": -1.0}),
    ("SGD", {"momentum": -0.5}),
    ("SGD", {"weight_decay": -0.5}),
    ("SGD", {"nesterov": True}),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    ("Adagrad", {"lr": -1.0}),
    ("Adagrad", {"lr_decay": -0.5}),
    ("Adagrad", {"initial_accumulator_value": -0.5}),
    ("Adagrad", {"eps": -0.5}),
]


@pytest.mark.parametrize(("name", "options"), ERRORS, ids=str)
def test_arguments_of_torch_have_torchs_errors(name: str, options: dict[str, Any]) -> None:
    make: list[Callable[..., Any]] = [getattr(torch.optim, name), getattr(fastclip.torch, name)]
    errors = []
    for class_ in make:
        with pytest.raises((ValueError, RuntimeError, TypeError)) as caught:
            class_(parameters(), **options)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("name", TORCH_NAMES)
@pytest.mark.parametrize(
    "params",
    [
        [],
        torch.zeros(2),
        [torch.zeros(2), None],
        [{"params": []}, {"lr": 0.1}],
        [torch.zeros(2), torch.zeros(2).abs_().requires_grad_() * 2],
    ],
    ids=["none", "a tensor", "None", "a group without parameters", "no leaf"],
)
def test_parameters_that_are_refused_have_torchs_errors(name: str, params: Any) -> None:
    errors = []
    for class_ in (getattr(torch.optim, name), getattr(fastclip.torch, name)):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            class_(params)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_a_parameter_in_two_groups_is_refused_as_torch_refuses_it() -> None:
    parameter = parameters([(2,)])[0]
    with pytest.raises(ValueError, match="more than one parameter group"):
        mine("AdamW", [{"params": [parameter]}, {"params": [parameter]}])


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -1.0}], ids=str)
def test_lion_refuses_arguments_as_torch_does(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Invalid"):
        mine("Lion", parameters(), **options)
