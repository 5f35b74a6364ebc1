"""Optimizers of `fastclip.torch`, each beside the one that it is compared with, over equal parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

# The search for doctests imports this file, also where PyTorch is not installed.
pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

import fastclip.torch  # noqa: E402

#: The classes that derive from one of PyTorch's.
TORCH_NAMES = ("AdamW", "Adam", "SGD", "Adagrad")
NAMES = (*TORCH_NAMES, "Lion")

#: Options with which each class has all its states.
WITH_STATES: dict[str, dict[str, Any]] = {
    "AdamW": {"amsgrad": True},
    "Adam": {},
    "SGD": {"momentum": 0.9},
    "Adagrad": {},
    "Lion": {},
}

#: Shapes of parameters: a matrix, a vector that is longer than a register, a number, nothing, and images.
SHAPES = ((7, 5), (67,), (), (0, 3), (2, 3, 4, 4))


class ReferenceLion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, algorithm 2) by operations on tensors, in the arithmetic of the parameters."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    @torch.no_grad()
    def _update(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            lr, decay = float(group["lr"]), group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = -parameter.grad if group["maximize"] else parameter.grad
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                moment = state["exp_avg"]
                direction = torch.sign(beta1 * moment + (1.0 - beta1) * gradient)
                parameter.copy_(parameter * (1.0 - lr * decay) - lr * direction)
                moment.copy_(beta2 * moment + (1.0 - beta2) * gradient)


def mine(name: str, params: Any, **options: Any) -> Any:
    """Returns an optimizer of `fastclip.torch`."""
    return getattr(fastclip.torch, name)(params, **options)


def theirs(name: str, params: Any, **options: Any) -> Any:
    """Returns the optimizer of PyTorch, fused unless the options say otherwise, or `ReferenceLion`."""
    if name == "Lion":
        return ReferenceLion(params, **options)
    if not {"fused", "foreach"} & set(options):
        options["fused"] = True
    return getattr(torch.optim, name)(params, **options)


def values(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: Any = torch.float32, seed: int = 0
) -> list[Any]:
    """Returns tensors of numbers from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def parameters(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: Any = torch.float32, seed: int = 0
) -> list[Any]:
    """Returns parameters of numbers from a normal distribution, the same for the same arguments."""
    return [torch.nn.Parameter(tensor) for tensor in values(shapes, dtype, seed)]


def set_gradients(
    params: Sequence[Any], step: int, has_gradient: Callable[[int], bool] | None = None
) -> None:
    """Gives parameters the gradients of a step, the same for parameters of the same shapes.

    Parameters
    ----------
    params : sequence of Parameter
        The parameters.
    step : int
        The number of the step.
    has_gradient : callable, optional
        Whether the parameter at an index gets a gradient, else None.
    """
    generator = torch.Generator().manual_seed(1000 + step)
    for index, parameter in enumerate(params):
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        if has_gradient is None or has_gradient(index):
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        else:
            parameter.grad = None


def tensors_of(optimizer: Any) -> list[Any]:
    """Returns the parameters of an optimizer, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def assert_states_close(optimizer: Any, reference: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Checks that two optimizers have the same entries in their states, nearly equal, and laid out alike."""
    for parameter, other in zip(tensors_of(optimizer), tensors_of(reference), strict=True):
        state = {key: value for key, value in optimizer.state.get(parameter, {}).items() if value is not None}
        wanted = {key: value for key, value in reference.state.get(other, {}).items() if value is not None}
        assert list(state) == list(wanted)
        for key, value in wanted.items():
            assert state[key].stride() == value.stride()
            torch.testing.assert_close(state[key], value, rtol=rtol, atol=atol)


def same_bits(first: Any, second: Any) -> bool:
    """Returns whether two tensors have the same bits: also the same NaNs and zeros."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = widths[first.itemsize]
    return torch.equal(first.detach().contiguous().view(bits), second.detach().contiguous().view(bits))


def snapshot(optimizer: Any) -> list[Any]:
    """Returns copies of all tensors that a step may write: parameters and states."""
    copies = []
    for parameter in tensors_of(optimizer):
        copies.append(parameter.detach().clone())
        copies += [
            value.clone() for value in optimizer.state.get(parameter, {}).values() if value is not None
        ]
    return copies


def assert_unchanged(optimizer: Any, before: Sequence[Any]) -> None:
    """Checks that parameters and states have the bits of a snapshot."""
    assert all(same_bits(*pair) for pair in zip(snapshot(optimizer), before, strict=True))
