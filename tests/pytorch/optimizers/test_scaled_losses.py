"""Scaled losses: `torch.amp.GradScaler`, and the attributes by which it passes scales to a step."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    TORCH_NAMES,
    WITH_STATES,
    assert_states_close,
    assert_unchanged,
    mine,
    parameters,
    same_bits,
    set_gradients,
    snapshot,
    theirs,
)

pytestmark = pytest.mark.interop("torch")


@pytest.mark.parametrize("fused", [None, False, True])
@pytest.mark.parametrize("name", TORCH_NAMES)
def test_the_scaler_is_never_told_to_leave_the_division_to_the_step(name: str, fused: bool | None) -> None:
    assert fused is not True or theirs(name, parameters())._step_supports_amp_scaling
    optimizer = mine(name, parameters(), fused=fused, max_norm=1.0)
    copies = [optimizer, pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)]
    loaded = mine(name, parameters(), fused=fused)
    loaded.load_state_dict(theirs(name, parameters()).state_dict())
    for each in [*copies, loaded]:
        each.add_param_group({"params": parameters([(2,)])})
        assert not hasattr(each, "_step_supports_amp_scaling")


def train(
    model: Any, optimizer: Any, scaler: Any, max_norm: float | None, bad_step: int | None
) -> list[float]:
    """Returns the scales of ten steps, of which one may have an infinite loss."""
    scales = []
    for step in range(10):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(6, 4, generator=generator)
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        scaler.scale(loss * (float("inf") if step == bad_step else 1.0)).backward()
        if max_norm is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


@pytest.mark.parametrize("bad_step", [None, 0, 4])
@pytest.mark.parametrize("way", ["clipped by the step", "unscaled and clipped before", "unclipped"])
@pytest.mark.parametrize("name", NAMES)
def test_training_with_a_scaler_is_that_of_torch(name: str, way: str, bad_step: int | None) -> None:
    models, scales = [], []
    for make in (mine, theirs):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
        by_step = make is mine and way == "clipped by the step"
        options = {"max_norm": 0.05} if by_step else {}
        # PyTorch's fused optimizers would divide the gradients by the scale after clipping.
        options.update({"foreach": False} if make is theirs and name != "Lion" else {})
        optimizer = make(name, model.parameters(), lr=0.01, **WITH_STATES[name], **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
        before = None if by_step or way == "unclipped" else 0.05
        scales.append(train(model, optimizer, scaler, before, bad_step))
        models.append(model)
        if make is mine:
            counts = [state["step"].item() for state in optimizer.state.values() if "step" in state]
            assert set(counts) <= {10.0 - (bad_step is not None)}
            if by_step:
                # Gradients were divided by the scale before the step measured them.
                assert optimizer.last_norm < 100.0
    assert scales[0] == scales[1]
    for own, wanted in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-6, atol=2e-6)


def test_an_infinite_gradient_skips_the_step() -> None:
    params = parameters()
    optimizer = mine("AdamW", params, max_norm=1.0)
    set_gradients(params, 0)
    optimizer.step()
    before = snapshot(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    set_gradients(params, 1)
    params[0].grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert_unchanged(optimizer, before)
    assert scaler.get_scale() == 2.0**15


def test_scaled_gradients_of_bfloat16_are_divided_once() -> None:
    params = parameters(dtype=torch.bfloat16)
    other = parameters(dtype=torch.bfloat16)
    first, second = mine("SGD", params, lr=0.5), mine("SGD", other, lr=0.5)
    set_gradients(params, 0)
    set_gradients(other, 0)
    for parameter in params:
        parameter.grad *= 2.0**10
    first.grad_scale = torch.tensor(2.0**10)
    first.step()
    second.step()
    assert all(same_bits(*pair) for pair in zip(params, other, strict=True))


# The attributes --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1024.0, 3.0, 0.125])
@pytest.mark.parametrize("name", TORCH_NAMES)
def test_a_step_divides_by_grad_scale_as_the_fused_step_does(name: str, scale: float) -> None:
    own, other = parameters(), parameters()
    optimizer, reference = mine(name, own, **WITH_STATES[name]), theirs(name, other, **WITH_STATES[name])
    for step in range(5):
        for params, stepped in ((own, optimizer), (other, reference)):
            set_gradients(params, step)
            for parameter in params:
                parameter.grad *= scale
            stepped.grad_scale, stepped.found_inf = torch.tensor(scale), torch.tensor(0.0)
        gradients = [parameter.grad.clone() for parameter in own]
        optimizer.step()
        reference.step()
        assert all(same_bits(p.grad, g) for p, g in zip(own, gradients, strict=True))
    for parameter, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)
    assert_states_close(optimizer, reference)


@pytest.mark.parametrize("name", NAMES)
def test_norms_are_those_of_gradients_after_the_division(name: str) -> None:
    own, other = parameters(), parameters()
    options = {"lr": 0.01, "max_norm": 0.5, "skip_above": 100.0, **WITH_STATES[name]}
    scaled, plain = mine(name, own, **options), mine(name, other, **options)
    for step in range(3):
        set_gradients(own, step)
        set_gradients(other, step)
        for parameter in own:
            parameter.grad *= 4096.0
        scaled.grad_scale = torch.tensor(4096.0)
        scaled.step()
        plain.step()
        assert scaled.last_norm == plain.last_norm
        assert scaled.last_scale == plain.last_scale
    assert all(same_bits(*pair) for pair in zip(snapshot(scaled), snapshot(plain), strict=True))
    assert scaled.skipped_steps == 0


def test_a_scale_under_which_gradients_overflow_float32_is_divided_first() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 2.0**127)
    optimizer = mine("SGD", [parameter], lr=1.0, max_norm=1.0)
    optimizer.grad_scale = torch.tensor(2.0**127)
    optimizer.step()
    assert optimizer.last_norm == 2.0
    torch.testing.assert_close(parameter.detach(), torch.full((4,), -0.5), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_found_inf_skips_a_step(name: str) -> None:
    params = parameters()
    optimizer = mine(name, params, max_norm=1.0, **WITH_STATES[name])
    set_gradients(params, 0)
    optimizer.step()
    before = snapshot(optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    assert optimizer.step(lambda: 5.0) == 5.0
    assert_unchanged(optimizer, before)
    assert optimizer.skipped_steps == 1
    optimizer.found_inf = torch.zeros(1)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert not same_bits(params[0], before[0])


def test_a_first_step_that_found_inf_skips_leaves_no_count() -> None:
    own, other = parameters(), parameters()
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    optimizer, reference = mine("SGD", own, **options), theirs("SGD", other, foreach=False, **options)
    set_gradients(own, 0)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    del optimizer.found_inf
    for step in range(1, 3):
        set_gradients(own, step)
        set_gradients(other, step)
        optimizer.step()
        reference.step()
    for parameter, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)
