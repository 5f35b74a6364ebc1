"""Optimizers of fastclip.torch move parameters as PyTorch's fused ones do."""

from __future__ import annotations

import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastclip.torch  # noqa: E402

pytestmark = pytest.mark.interop("torch")

STEPS = 100
CASES = [
    ("AdamW", {}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-6}),
    ("AdamW", {"lr": 0.01, "amsgrad": True}),
    ("AdamW", {"maximize": True}),
    ("AdamW", {"weight_decay": 0.0}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "maximize": True}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("SGD", {"lr": 0.01}),
    ("SGD", {"lr": 0.01, "momentum": 0.9}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-6}),
]


def parameters(dtype: Any, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(7, 5), (300,), (), (0, 3), (2, 3, 4, 4)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    tensors[-1] = tensors[-1].to(memory_format=torch.channels_last)
    tensors.append(torch.randn(6, 4, generator=generator, dtype=torch.float64).to(dtype).T)
    return [torch.nn.Parameter(tensor) for tensor in tensors]


def set_gradients(mine: list[Any], theirs: list[Any], step: int, every: bool = True) -> None:
    """Set the same gradients for both lists of parameters; with `every` false, not for each parameter.

    PyTorch's fused optimizers ignore strides, so that theirs are laid out as the parameters.
    """
    generator = torch.Generator().manual_seed(1000 + step)
    for index, (parameter, other) in enumerate(zip(mine, theirs, strict=True)):
        gradient = torch.randn(other.shape, generator=generator, dtype=torch.float64).to(other.dtype)
        has_gradient = every or (step + index) % 3 != 0
        parameter.grad = gradient if has_gradient else None
        if parameter is not other:
            other.grad = torch.empty_like(other).copy_(gradient) if has_gradient else None


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trajectories_agree_with_fused_ones(
    dtype: Any, name: str, options: dict[str, Any], max_norm: float | None
) -> None:
    mine, theirs = parameters(dtype), parameters(dtype)
    optimizer = getattr(fastclip.torch, name)(mine, **options, max_norm=max_norm)
    # PyTorch's fused SGD fails where some parameters have a momentum and others none yet.
    fused = {"foreach": False} if name == "SGD" else {"fused": True}
    reference = getattr(torch.optim, name)(theirs, **options, **fused)
    for step in range(STEPS):
        set_gradients(mine, theirs, step, every=False)
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in mine]
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        optimizer.step()
        reference.step()
        for parameter, gradient in zip(mine, before, strict=True):
            assert gradient is None or torch.equal(parameter.grad, gradient)
    tolerance = 1e-6 if dtype is torch.float32 else 1e-12
    for parameter, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(parameter, other, rtol=tolerance, atol=tolerance)
        for key, value in reference.state[other].items():
            if value is not None:
                torch.testing.assert_close(optimizer.state[parameter][key], value, rtol=1e-5, atol=1e-7)
                assert optimizer.state[parameter][key].stride() == value.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "options"), [("AdamW", {}), ("SGD", {"momentum": 0.9}), ("Adagrad", {})])
def test_16_bit_parameters_are_rounded_once_from_float32(
    name: str, options: dict[str, Any], dtype: Any
) -> None:
    tensors = parameters(dtype)
    optimizer = getattr(fastclip.torch, name)(tensors, lr=0.01, **options)
    for step in range(30):
        set_gradients(tensors, tensors, step)
        # The same step in float64, from the same parameters and states.
        wide = [torch.nn.Parameter(tensor.detach().double()) for tensor in tensors]
        reference = getattr(torch.optim, name)(wide, lr=0.01, foreach=False, **options)
        for tensor, other in zip(tensors, wide, strict=True):
            other.grad = tensor.grad.double()
            for key, value in optimizer.state[tensor].items():
                reference.state[other][key] = value.clone() if key == "step" else value.double()
        optimizer.step()
        reference.step()
        for tensor, other in zip(tensors, wide, strict=True):
            assert_within_one_unit(tensor, other)
            for key, value in reference.state[other].items():
                if key != "step":
                    assert_within_one_unit(optimizer.state[tensor][key], value)


def assert_within_one_unit(narrow: Any, wide: Any) -> None:
    info = torch.finfo(narrow.dtype)
    unit = info.eps * wide.abs().clamp(min=info.tiny)
    assert bool(((narrow.double() - wide).abs() <= 0.51 * unit + 1e-6).all())


def test_bfloat16_gradients_update_float32_parameters() -> None:
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        parameter = torch.nn.Parameter(torch.ones(1000))
        optimizer = fastclip.torch.AdamW([parameter], lr=0.01, max_norm=1.0)
        for step in range(5):
            generator = torch.Generator().manual_seed(step)
            gradient = torch.randn(1000, generator=generator).to(torch.bfloat16).to(dtype)
            parameter.grad = None
            if dtype is torch.bfloat16:
                parameter.grad_dtype = dtype
            parameter.grad = gradient
            optimizer.step()
        results.append(parameter.detach())
    assert torch.equal(*results)


def test_lion_agrees_with_its_formula() -> None:
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 50, dtype=torch.float64))
    optimizer = fastclip.torch.Lion([parameter], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    want, moment = parameter.detach().clone(), torch.zeros(50, dtype=torch.float64)
    for step in range(50):
        gradient = torch.sin(torch.arange(50, dtype=torch.float64) * step)
        parameter.grad = gradient.clone()
        optimizer.step()
        direction = torch.sign(0.8 * moment + 0.2 * gradient)
        want = want * (1 - 0.01 * 0.1) - 0.01 * direction
        moment = 0.95 * moment + 0.05 * gradient
    torch.testing.assert_close(parameter.detach(), want, rtol=1e-12, atol=1e-12)


def test_epsilon_stands_outside_of_the_correction_of_the_bias() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.full((1,), 1e-7)
    fastclip.torch.AdamW([parameter], lr=1e-3).step()
    assert parameter.item() == pytest.approx(-9.1e-4, rel=0.01)


def test_learning_rates_may_be_tensors_and_options_may_differ_between_groups() -> None:
    def groups(tensors: list[Any]) -> list[dict[str, Any]]:
        first = {"params": tensors[:2], "lr": torch.tensor(0.02), "amsgrad": True}
        return [first, {"params": tensors[2:], "weight_decay": 0.3, "betas": (0.5, 0.9)}]

    mine, theirs = parameters(torch.float32), parameters(torch.float32)
    optimizer = fastclip.torch.AdamW(groups(mine))
    reference = torch.optim.AdamW(groups(theirs), fused=True)
    for step in range(STEPS):
        set_gradients(mine, theirs, step)
        optimizer.step()
        reference.step()
    for parameter, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(parameter, other, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("optimizer_name", ["AdamW", "Adam", "SGD", "Adagrad", "Lion"])
def test_each_step_is_one_crossing_and_runs_no_code_of_torchs_optimizers(
    optimizer_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    core_step = fastclip._core.torch_step

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return core_step(*arguments)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("code of PyTorch's optimizers has run")

    monkeypatch.setattr(fastclip._core, "torch_step", counted)
    for name in dir(torch):
        if name.startswith("_foreach_") or name.startswith("_fused_"):
            monkeypatch.setattr(torch, name, forbidden)
    for name in ("adam", "adamw", "sgd", "adagrad"):
        monkeypatch.setattr(torch.optim._functional, name, forbidden)
        monkeypatch.setattr(sys.modules[f"torch.optim.{name}"], name, forbidden)
    tensors = parameters(torch.float32)
    class_ = getattr(fastclip.torch, optimizer_name)
    optimizer = class_([{"params": tensors[:2]}, {"params": tensors[2:], "lr": 0.5}], lr=0.1, max_norm=1.0)
    for step in range(3):
        set_gradients(tensors, tensors, step)
        versions = [tensor._version for tensor in tensors]
        optimizer.step()
        assert len(calls) == step + 1
        assert [tensor._version for tensor in tensors] == [version + 1 for version in versions]
