"""Parameters with gradients, and a small transformer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from fastclip.cli.bench.inputs.shapes import SHAPES, Shapes

__all__ = ["BOUND", "Parameters", "shapes_of", "small_transformer"]

#: The bound of norms: below the norm of the gradients of every row.
BOUND = 1.0


def shapes_of(name: str, *, is_small: bool) -> Shapes:
    """Return the shapes of a case of the other suites, or those of one tensor of 512 elements."""
    size = "small" if is_small else "full"
    return ((8,) if is_small else (512,),) if name == "one" else SHAPES[size][name]()


class Parameters:
    """Parameters of given shapes, whose gradients can be restored."""

    def __init__(self, shapes: Shapes, dtype: str = "float32") -> None:
        self._torch = importlib.import_module("torch")
        generator = self._torch.Generator().manual_seed(2024)
        kind = getattr(self._torch, dtype)
        self.tensors: list[Any] = []
        self._gradients: list[Any] = []
        for shape in shapes:
            values = self._torch.randn(shape, generator=generator).to(kind)
            parameter = self._torch.nn.Parameter(values)
            parameter.grad = self._torch.randn(shape, generator=generator).to(kind)
            self.tensors.append(parameter)
            self._gradients.append(parameter.grad.clone())

    def restore(self) -> None:
        """Write the gradients again, as a backward pass would."""
        with self._torch.no_grad():
            for parameter, gradient in zip(self.tensors, self._gradients, strict=True):
                parameter.grad.copy_(gradient)


def small_transformer(*, is_small: bool) -> tuple[Any, Callable[[], Any]]:
    """Return a transformer, and a function that runs its forward and backward pass."""
    torch = importlib.import_module("torch")
    width, layers, length = (16, 1, 4) if is_small else (256, 4, 32)
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    inputs = torch.randn(8, length, width)

    def backward() -> Any:
        model.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    return model, backward
