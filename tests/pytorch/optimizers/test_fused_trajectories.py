"""Trajectories of 100 steps, with and without clipping, beside PyTorch's fused optimizers."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    assert_states_close,
    mine,
    parameters,
    set_gradients,
    theirs,
)

pytestmark = pytest.mark.interop("torch")

STEPS = 100

CASES: list[tuple[str, dict[str, Any]]] = [
    *[
        (name, options)
        for name in ("AdamW", "Adam")
        for options in (
            {},
            {"lr": 0.03, "betas": (0.8, 0.95)},
            {"betas": (0.0, 0.99)},
            {"betas": (0.9, 0.5)},
            {"weight_decay": 0.1},
            {"weight_decay": 0.0},
            {"eps": 0.1},
            {"amsgrad": True},
            {"maximize": True},
            {"amsgrad": True, "maximize": True, "weight_decay": 0.3, "eps": 1e-3, "lr": 0.02},
            {"lr": torch.tensor(0.003)},
        )
    ],
    ("Adam", {"decoupled_weight_decay": True, "weight_decay": 0.2}),
    ("SGD", {}),
    ("SGD", {"lr": 0.03, "weight_decay": 0.1}),
    ("SGD", {"maximize": True}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.4}),
    ("SGD", {"momentum": 1.0, "dampening": 1.0}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": torch.tensor(0.03), "momentum": 0.5}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1}),
    ("Adagrad", {"weight_decay": 0.1}),
    ("Adagrad", {"initial_accumulator_value": 0.5}),
    ("Adagrad", {"eps": 0.1, "maximize": True}),
    ("Adagrad", {"lr": torch.tensor(0.05), "lr_decay": 0.01, "initial_accumulator_value": 2.0}),
    ("Lion", {}),
    ("Lion", {"lr": 0.02, "betas": (0.7, 0.9), "weight_decay": 0.3}),
    ("Lion", {"lr": torch.tensor(0.002), "maximize": True}),
]


def identify(value: Any) -> str:
    if isinstance(value, str):
        return value
    return ",".join(f"{key}={option}" for key, option in value.items()) or "default"


@pytest.mark.parametrize("max_norm", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=identify)
def test_every_option_follows_the_fused_optimizer(
    name: str, options: dict[str, Any], max_norm: float | None
) -> None:
    own, other = parameters(), parameters()
    optimizer, reference = mine(name, own, max_norm=max_norm, **options), theirs(name, other, **options)
    for step in range(STEPS):
        set_gradients(own, step)
        set_gradients(other, step)
        if max_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(other, max_norm)
        optimizer.step()
        reference.step()
    for parameter, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)
    assert_states_close(optimizer, reference)
    if max_norm is not None:
        assert optimizer.last_norm == pytest.approx(norm.item(), rel=1e-6)
        assert optimizer.last_scale == pytest.approx(max_norm / (norm.item() + 1e-6), rel=1e-6)


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
@pytest.mark.parametrize("beta2", [0.0, 1e-6])
def test_a_second_moment_that_forgets_keeps_small_gradients(name: str, beta2: float) -> None:
    # v + (g² - v)(1 - β₂) cancels where v is large, g small and β₂ near 0; β₂·v + (1 - β₂)g² does not.
    own, other = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
    options = {"lr": 0.01, "betas": (0.0, beta2), "weight_decay": 0.0}
    optimizer, reference = mine(name, [own], **options), theirs(name, [other], **options)
    for gradient in (3.0, 1e-4, 1e-3):
        for parameter in (own, other):
            parameter.grad = torch.tensor([gradient, -gradient, 2.0])
        optimizer.step()
        reference.step()
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("max_norm", [None, 2.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {}),
        ("AdamW", {"amsgrad": True, "maximize": True}),
        ("Adam", {"weight_decay": 0.1}),
        ("SGD", {"momentum": 0.9, "dampening": 0.5, "nesterov": False}),
        ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("Adagrad", {"lr_decay": 0.1}),
        ("Lion", {"weight_decay": 0.1}),
    ],
    ids=identify,
)
def test_gradients_now_and_then_give_every_parameter_a_count_of_its_own(
    name: str, options: dict[str, Any], max_norm: float | None
) -> None:
    own, other = parameters(), parameters()
    # PyTorch's fused SGD fails where some parameters have a momentum and others none yet.
    way = {"foreach": False} if name == "SGD" else {}
    optimizer = mine(name, own, max_norm=max_norm, **options)
    reference = theirs(name, other, **options, **way)
    for step in range(STEPS):

        def has_gradient(index: int, step: int = step) -> bool:
            # The last parameter gets its first gradient late, the first one in every step.
            return step % (index + 1) == 0 and (index < 4 or step >= 30)

        set_gradients(own, step, has_gradient)
        set_gradients(other, step, has_gradient)
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(other, max_norm)
        optimizer.step()
        reference.step()
        if name in ("AdamW", "Adam", "Adagrad"):
            counts = [
                float(optimizer.state[parameter]["step"]) for parameter in own if parameter in optimizer.state
            ]
            wanted = [
                float(reference.state[parameter]["step"])
                for parameter in other
                if parameter in reference.state
            ]
            assert counts == wanted
    for parameter, wanted_parameter in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted_parameter, rtol=1e-6, atol=1e-6)
    assert_states_close(optimizer, reference)


GROUPS: dict[str, list[dict[str, Any]]] = {
    "AdamW": [
        {"lr": 0.02, "betas": (0.5, 0.9)},
        {"weight_decay": 0.3, "amsgrad": True},
        {"eps": 0.01, "maximize": True, "lr": torch.tensor(0.004)},
        {"amsgrad": True, "weight_decay": 0.0},
        {},
    ],
    "Adam": [
        {"lr": 0.02, "betas": (0.5, 0.9)},
        {"weight_decay": 0.3, "amsgrad": True},
        {"eps": 0.01, "maximize": True},
        {"decoupled_weight_decay": True, "weight_decay": 0.5},
        {},
    ],
    "SGD": [
        {"lr": 0.02},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "dampening": 0.3, "maximize": True},
        {"weight_decay": 0.3},
        {"lr": torch.tensor(0.01), "momentum": 0.7},
    ],
    "Adagrad": [
        {"lr": 0.02},
        {"lr_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
        {"eps": 0.1},
        {},
    ],
    "Lion": [
        {"lr": 0.02},
        {"betas": (0.5, 0.6)},
        {"weight_decay": 0.1, "maximize": True},
        {"lr": 0.0},
        {},
    ],
}


@pytest.mark.parametrize("max_norm", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", NAMES)
def test_groups_have_hyper_parameters_of_their_own(name: str, max_norm: float | None) -> None:
    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [
            {"params": [parameter], **options}
            for parameter, options in zip(params, GROUPS[name], strict=True)
        ]

    own, other = parameters(), parameters()
    optimizer = mine(name, groups(own), max_norm=max_norm)
    reference = theirs(name, groups(other))
    for step in range(STEPS):
        set_gradients(own, step)
        set_gradients(other, step)
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(other, max_norm)
        optimizer.step()
        reference.step()
    for parameter, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)
    assert_states_close(optimizer, reference)


@pytest.mark.parametrize("name", NAMES)
def test_hyper_parameters_may_change_between_steps(name: str) -> None:
    own, other = parameters(), parameters()
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer, reference = mine(name, own, max_norm=1.0, **options), theirs(name, other, **options)
    for step in range(40):
        for changed in (optimizer, reference):
            group = changed.param_groups[0]
            group["lr"] = 0.01 / (1 + step)
            group["weight_decay"] = 0.1 * (step % 3)
            group["maximize"] = step % 5 == 0
            if "betas" in group:
                group["betas"] = (0.9 - 0.01 * step, 0.999 - 0.001 * step)
            if name == "SGD":
                group["momentum"] = 0.9 - 0.02 * step
        set_gradients(own, step)
        set_gradients(other, step)
        torch.nn.utils.clip_grad_norm_(other, 1.0)
        optimizer.step()
        reference.step()
    for parameter, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)


def test_a_group_that_is_added_later_starts_at_its_first_step() -> None:
    own, other = parameters(), parameters()
    optimizer = mine("AdamW", own[:2], lr=0.01, max_norm=1.0)
    reference = theirs("AdamW", other[:2], lr=0.01)
    for step in range(20):
        if step == 10:
            optimizer.add_param_group({"params": own[2:], "lr": 0.03})
            reference.add_param_group({"params": other[2:], "lr": 0.03})
        used = 2 if step < 10 else 5
        set_gradients(own[:used], step)
        set_gradients(other[:used], step)
        torch.nn.utils.clip_grad_norm_(other[:used], 1.0)
        optimizer.step()
        reference.step()
    for parameter, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)
    assert isinstance(optimizer.last_norm, float)


def test_the_first_step_of_a_tiny_gradient_moves_by_torchs_rule() -> None:
    # Outside of the correction of the bias, an epsilon of 1e-8 takes an eleventh of it: §7's rule takes 3/4.
    own, other = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    for parameter in (own, other):
        parameter.grad = torch.full((1,), 1e-7)
    mine("AdamW", [own], lr=1e-3).step()
    theirs("AdamW", [other], lr=1e-3).step()
    assert own.item() == pytest.approx(-1e-3 * 1e-7 / (1e-7 + 1e-8), rel=1e-6)
    assert own.item() == pytest.approx(other.item(), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_as_learning_rate_is_read_anew_at_every_step(name: str) -> None:
    own, other = parameters(), parameters()
    rate = torch.tensor(0.01, dtype=torch.float64)
    optimizer, reference = mine(name, own, lr=rate), theirs(name, other, lr=0.01)
    for step in range(5):
        rate.fill_(0.01 / (step + 1))
        reference.param_groups[0]["lr"] = 0.01 / (step + 1)
        set_gradients(own, step)
        set_gradients(other, step)
        optimizer.step()
        reference.step()
    assert optimizer.param_groups[0]["lr"] is rate
    for parameter, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)
