"""Parameters and gradients of every float type: arithmetic in float32 or float64, and one rounding a step."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    SHAPES,
    TORCH_NAMES,
    WITH_STATES,
    ReferenceLion,
    assert_states_close,
    mine,
    parameters,
    set_gradients,
    theirs,
    values,
)

pytestmark = pytest.mark.interop("torch")

NARROW = [torch.bfloat16, torch.float16]
OPTIONS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1},
    "Adam": {"lr": 0.01, "weight_decay": 0.1},
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "Adagrad": {"lr": 0.05, "initial_accumulator_value": 0.1},
    "Lion": {"lr": 0.01, "weight_decay": 0.1},
}


def wide_reference(name: str, optimizer: Any, params: list[Any], factor: float, **options: Any) -> list[Any]:
    """Returns pairs of each tensor that a step is about to write, and what it is to be in float64.

    The step is computed from the present parameters, states and gradients, which are multiplied by `factor`.
    """
    wide = [torch.nn.Parameter(parameter.detach().double()) for parameter in params]
    way = {} if name == "Lion" else {"foreach": False}
    reference = theirs(name, wide, **options, **way)
    for parameter, other in zip(params, wide, strict=True):
        other.grad = parameter.grad.double() * factor
        for key, value in optimizer.state.get(parameter, {}).items():
            reference.state[other][key] = value.clone() if key == "step" else value.double()
    reference.step()
    wanted = []
    for parameter, other in zip(params, wide, strict=True):
        wanted.append((parameter, other.detach()))
        for key, value in reference.state[other].items():
            if key != "step" and value is not None:
                wanted.append((optimizer.state[parameter][key], value))
    return wanted


def assert_rounded_once(narrow: Any, wide: Any, scale: float) -> None:
    """Checks that a tensor is a float64 one rounded to nearest, but for errors of float32 in `scale`."""
    error = 4e-7 * (wide.abs() + scale)
    lower, upper = ((wide + sign * error).to(narrow.dtype).double() for sign in (-1.0, 1.0))
    assert bool(((lower <= narrow.double()) & (narrow.double() <= upper)).all())


@pytest.mark.parametrize("max_norm", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_16_bit_parameters_are_computed_in_float32_and_rounded_once(
    name: str, dtype: Any, max_norm: float | None
) -> None:
    params = parameters(dtype=dtype)
    optimizer = mine(name, params, max_norm=max_norm, **OPTIONS[name])
    set_gradients(params, 0)
    optimizer.step()
    for step in range(1, 25):
        set_gradients(params, step)
        squares = sum(float(parameter.grad.double().square().sum()) for parameter in params)
        factor = 1.0 if max_norm is None else min(1.0, max_norm / (squares**0.5 + 1e-6))
        wanted = wide_reference(name, optimizer, params, factor, **OPTIONS[name])
        optimizer.step()
        for tensor, wide in wanted:
            if name == "Lion" and tensor is not wanted[0][0] and tensor.dtype is dtype:
                # Its direction is a sign, which the last bit may turn where the average is nearly 0.
                continue
            assert_rounded_once(tensor.detach(), wide, 0.05)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("name", TORCH_NAMES)
def test_16_bit_parameters_are_within_a_unit_of_the_fused_step(name: str, dtype: Any) -> None:
    own, other = parameters(dtype=dtype), parameters(dtype=dtype)
    options = OPTIONS[name]
    if name == "SGD":
        # PyTorch's fused SGD leaves about half of a parameter of 16 bits as it is.
        options = {"lr": 0.05, "foreach": False}
    optimizer, reference = mine(name, own, **options), theirs(name, other, **options)
    for step in range(25):
        set_gradients(own, step)
        set_gradients(other, step)
        before = [parameter.detach().double().abs() for parameter in own]
        optimizer.step()
        reference.step()
        for parameter, wanted, magnitude in zip(own, other, before, strict=True):
            info = torch.finfo(dtype)
            magnitude = torch.maximum(magnitude, wanted.detach().double().abs()).clamp(min=info.tiny)
            difference = (parameter.detach().double() - wanted.detach().double()).abs()
            assert bool((difference <= info.eps * magnitude).all())
            # Each step starts from the same numbers.
            with torch.no_grad():
                wanted.copy_(parameter)
            for key, value in optimizer.state.get(parameter, {}).items():
                reference.state[wanted][key].copy_(value)


@pytest.mark.parametrize("max_norm", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", NAMES)
def test_float64_parameters_agree_to_the_last_digits(name: str, max_norm: float | None) -> None:
    own, other = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    optimizer, reference = (
        mine(name, own, max_norm=max_norm, **OPTIONS[name]),
        theirs(name, other, **OPTIONS[name]),
    )
    for step in range(100):
        set_gradients(own, step)
        set_gradients(other, step)
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(other, max_norm)
        optimizer.step()
        reference.step()
    for parameter, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-12, atol=1e-12)
    assert_states_close(optimizer, reference, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("max_norm", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("gradient_dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_another_type_update_float32_parameters(
    name: str, gradient_dtype: Any, max_norm: float | None
) -> None:
    own, other = parameters(), parameters()
    for parameter in own:
        parameter.grad_dtype = gradient_dtype
    optimizer, reference = (
        mine(name, own, max_norm=max_norm, **OPTIONS[name]),
        theirs(name, other, **OPTIONS[name]),
    )
    for step in range(50):
        gradients = values(SHAPES, gradient_dtype, 1000 + step)
        for parameter, wanted, gradient in zip(own, other, gradients, strict=True):
            parameter.grad, wanted.grad = gradient, gradient.float()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(other, max_norm)
        optimizer.step()
        reference.step()
    for parameter, wanted in zip(own, other, strict=True):
        assert parameter.grad.dtype is gradient_dtype
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)
        assert all(value.dtype is torch.float32 for value in optimizer.state[parameter].values())


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_float32_gradients_of_16_bit_parameters_are_not_rounded_first(dtype: Any) -> None:
    # The gradient is just above the middle between two numbers of the narrow type, so that rounding it first
    # loses the half unit that decides.
    unit = torch.finfo(dtype).eps
    parameter = torch.nn.Parameter(torch.ones(64, dtype=dtype))
    parameter.grad_dtype = torch.float32
    parameter.grad = torch.full((64,), -(unit / 2 + unit**2))
    mine("SGD", [parameter], lr=1.0).step()
    assert parameter.unique().tolist() == [1.0 + unit]


def test_tiny_float16_gradients_move_parameters_as_the_fused_step_does() -> None:
    # In float16, their squares and epsilon are 0: PyTorch's loop over tensors makes infinity and NaN of them.
    own, other = (torch.nn.Parameter(torch.zeros(3, dtype=torch.float16)) for _ in range(2))
    for parameter in (own, other):
        parameter.grad = torch.tensor([1e-4, 0.0, 1.0], dtype=torch.float16)
    mine("Adam", [own], lr=0.1).step()
    theirs("Adam", [other], lr=0.1).step()
    torch.testing.assert_close(own, other, rtol=1e-3, atol=0.0)
    assert own[1].item() == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_several_types_share_a_norm(name: str) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16]

    def mixed() -> list[Any]:
        return [
            torch.nn.Parameter(tensor.to(dtype))
            for tensor, dtype in zip(values([(31,)] * 4), dtypes, strict=True)
        ]

    own, other = mixed(), mixed()
    optimizer = mine(name, own, max_norm=1.0, **OPTIONS[name])
    references = [theirs(name, [parameter], **OPTIONS[name]) for parameter in other]
    for step in range(3):
        set_gradients(own, step)
        set_gradients(other, step)
        squares = sum(float(parameter.grad.double().square().sum()) for parameter in own)
        optimizer.step()
        assert optimizer.last_norm == pytest.approx(squares**0.5, rel=1e-14)
        for parameter, reference in zip(other, references, strict=True):
            if parameter.itemsize >= 4:
                parameter.grad.mul_(1.0 / (squares**0.5 + 1e-6))
                reference.step()
    torch.testing.assert_close(own[0], other[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own[2], other[2], rtol=1e-12, atol=1e-12)


def test_the_norm_is_that_of_float64() -> None:
    # 2^24 ones: float32 sums of squares stop growing there.
    parameter = torch.nn.Parameter(torch.zeros(1 << 12, 1 << 13))
    parameter.grad = torch.ones(1, 1).expand(1 << 12, 1 << 13)
    optimizer = mine("SGD", [parameter], lr=0.0, max_norm=1.0)
    optimizer.step()
    assert optimizer.last_norm == 2.0**12.5


def test_a_norm_beyond_float32_clips_and_does_not_zero() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 3e38)
    optimizer = mine("SGD", [parameter], lr=1.0, max_norm=1.0)
    optimizer.step()
    assert optimizer.last_norm == pytest.approx(6e38, rel=1e-6)
    torch.testing.assert_close(parameter.detach(), torch.full((4,), -0.5), rtol=1e-6, atol=0.0)


def test_the_reference_of_lion_is_its_formula() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64))
    reference = ReferenceLion([parameter], lr=0.5, betas=(0.5, 0.75), weight_decay=0.5)
    parameter.grad = torch.tensor([4.0, -4.0, 0.0], dtype=torch.float64)
    reference.step()
    assert parameter.tolist() == [0.25, -0.25, 1.5]
    assert reference.state[parameter]["exp_avg"].tolist() == [1.0, -1.0, 0.0]


def test_options_cover_every_class() -> None:
    assert set(OPTIONS) == set(WITH_STATES) == set(NAMES)
