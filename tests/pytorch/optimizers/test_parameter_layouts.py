"""Parameters, gradients and states of any strides, and memory that parameters have no part in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import NAMES, WITH_STATES, mine, same_bits, theirs, values  # noqa: E402

pytestmark = pytest.mark.interop("torch")

OPTIONS = {name: {**options, "lr": 0.01} for name, options in WITH_STATES.items()}


def numbers(shape: tuple[int, ...], seed: int = 0) -> Any:
    return values([shape], seed=seed)[0]


LAYOUTS: dict[str, Callable[[], Any]] = {
    "transposed": lambda: numbers((9, 40)).T,
    "permuted": lambda: numbers((3, 5, 7)).permute(2, 0, 1),
    "every second column": lambda: numbers((8, 30))[:, ::2],
    "every third number": lambda: numbers((100,))[1::3],
    "middle of a row": lambda: numbers((6, 50))[:, 3:-5],
    "channels last": lambda: numbers((4, 3, 6, 5)).to(memory_format=torch.channels_last),
    "channels last in three dimensions": lambda: numbers((2, 3, 4, 3, 2)).to(
        memory_format=torch.channels_last_3d
    ),
    "at an odd address": lambda: numbers((101,))[1:],
    "diagonal": lambda: numbers((20, 20)).diagonal(),
    "one number of many": lambda: numbers((20, 20))[7, 3],
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def contiguous_reference(name: str, tensor: Any, max_norm: float | None, gradients: list[Any]) -> Any:
    """Returns the contiguous parameter that PyTorch's optimizer makes of a tensor."""
    parameter = torch.nn.Parameter(tensor.detach().contiguous().clone(memory_format=torch.contiguous_format))
    reference = theirs(name, [parameter], **OPTIONS[name])
    for gradient in gradients:
        parameter.grad = gradient.contiguous().clone(memory_format=torch.contiguous_format)
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_([parameter], max_norm)
        reference.step()
    return parameter


@EVERY_LAYOUT
@pytest.mark.parametrize("max_norm", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_any_layout(name: str, max_norm: float | None, layout: str) -> None:
    parameter = torch.nn.Parameter(LAYOUTS[layout]())
    assert parameter.stride() == LAYOUTS[layout]().stride()
    gradients = [numbers(tuple(parameter.shape), 10 + step) for step in range(5)]
    wanted = contiguous_reference(name, parameter, max_norm, gradients)
    optimizer = mine(name, [parameter], max_norm=max_norm, **OPTIONS[name])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        assert same_bits(parameter.grad, gradient)
    torch.testing.assert_close(parameter.detach(), wanted.detach(), rtol=1e-6, atol=1e-6)
    laid_out = torch.zeros_like(parameter).stride()
    for key, value in optimizer.state[parameter].items():
        if key != "step":
            assert value.stride() == laid_out


@EVERY_LAYOUT
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_any_layout(name: str, layout: str) -> None:
    gradients = [LAYOUTS[layout]() * (step + 1) for step in range(3)]
    gradients = [LAYOUTS[layout]().copy_(gradient) for gradient in gradients]
    assert gradients[0].stride() == LAYOUTS[layout]().stride()
    for memory_format in (torch.contiguous_format, torch.preserve_format):
        start = torch.empty_like(gradients[0], memory_format=memory_format).copy_(
            numbers(tuple(gradients[0].shape), 5)
        )
        wanted = contiguous_reference(name, start, 0.5, gradients)
        parameter = torch.nn.Parameter(start)
        optimizer = mine(name, [parameter], max_norm=0.5, **OPTIONS[name])
        for gradient in gradients:
            parameter.grad = gradient
            optimizer.step()
            assert parameter.grad is gradient
        torch.testing.assert_close(parameter.detach(), wanted.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_repeat_memory(name: str) -> None:
    gradients = [
        torch.tensor(2.0).expand(6, 4),
        numbers((4,)).expand(6, 4),
        numbers((6, 1)).expand(6, 4),
        numbers((9,)).as_strided((6, 4), (1, 1)),
    ]
    start = numbers((6, 4), 3)
    wanted = contiguous_reference(name, start, 0.5, gradients)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = mine(name, [parameter], max_norm=0.5, **OPTIONS[name])
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), wanted.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_memory_between_the_numbers_of_parameters_is_not_written(name: str) -> None:
    memory = numbers((12, 40))
    before = memory.clone()
    views = {"strided": (slice(0, 12, 3), slice(1, 40, 2)), "block": (slice(1, 2), slice(4, 11))}
    params = [torch.nn.Parameter(memory[view]) for view in views.values()]
    for step, parameter in enumerate(params):
        parameter.grad = numbers(tuple(parameter.shape), step)
    optimizer = mine(name, params, max_norm=0.5, **OPTIONS[name])
    optimizer.step()
    is_parameter = torch.zeros(12, 40, dtype=torch.bool)
    for view in views.values():
        is_parameter[view] = True
    assert same_bits(memory[~is_parameter], before[~is_parameter])
    assert not bool((memory[is_parameter] == before[is_parameter]).any())


@pytest.mark.parametrize("name", NAMES)
def test_states_of_other_strides_than_the_parameter(name: str) -> None:
    # A checkpoint of a model in another memory format has such states.
    results = []
    for is_changed in (False, True):
        parameter = torch.nn.Parameter(numbers((4, 3, 6, 5)).to(memory_format=torch.channels_last))
        optimizer = mine(name, [parameter], max_norm=0.5, **OPTIONS[name])
        for step in range(4):
            parameter.grad = numbers((4, 3, 6, 5), step)
            optimizer.step()
            if is_changed:
                state = optimizer.state[parameter]
                for key in state:
                    if key != "step":
                        state[key] = state[key].contiguous().clone()
        results.append(parameter.detach())
    assert same_bits(*results)


def test_gradients_with_a_negative_bit_are_read_with_their_signs() -> None:
    # The imaginary part of a conjugated tensor is lazily negated.
    gradient = torch.complex(torch.zeros(5), torch.arange(5.0)).conj().imag
    assert gradient.is_neg()
    own, other = torch.nn.Parameter(torch.zeros(5)), torch.nn.Parameter(torch.zeros(5))
    own.grad, other.grad = gradient, gradient.resolve_neg().clone()
    mine("SGD", [own], lr=1.0).step()
    theirs("SGD", [other], lr=1.0).step()
    assert torch.equal(own, other)
    assert own.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("name", NAMES)
def test_empty_parameters_and_optimizers_without_gradients(name: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(0, 3))
    other = torch.nn.Parameter(torch.ones(2))
    optimizer = mine(name, [parameter, other], max_norm=1.0, **OPTIONS[name])
    optimizer.step()
    assert len(optimizer.state) == (2 if name == "Adagrad" else 0)
    assert optimizer.last_norm == 0.0
    assert optimizer.last_scale == 1.0
    parameter.grad = torch.zeros(0, 3)
    optimizer.step()
    assert optimizer.last_norm == 0.0
    assert other.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_with_gradients_move_as_in_torch(name: str) -> None:
    own, other = (torch.nn.Parameter(numbers((5,))) for _ in range(2))
    for parameter in (own, other):
        parameter.grad = numbers((5,), 1)
        parameter.requires_grad_(False)
    mine(name, [own], **OPTIONS[name]).step()
    theirs(name, [other], **OPTIONS[name]).step()
    torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)
