"""Parameters with gradients, and what clipping makes of them: norms and factors in float64, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from support import oracle
from support.tensor_kinds import from_torch

#: The orders that torch's own tests of `clip_grad_norm_` use, and the sum of the absolute values.
ORDERS: tuple[Any, ...] = (0.5, 1, 1.5, 2, 4, "inf")


def parameter(gradient: Any) -> Any:
    """Returns a parameter with the shape, dtype and device of a gradient, which becomes its gradient."""
    import torch

    if gradient.layout in (torch.strided, torch.sparse_coo):
        value = torch.zeros(gradient.shape, dtype=gradient.dtype, device=gradient.device)
    else:
        value = torch.zeros_like(gradient)
    new = torch.nn.Parameter(value)
    new.grad = gradient
    return new


def parameters(gradients: Iterable[Any]) -> list[Any]:
    return [parameter(gradient) for gradient in gradients]


def parameters_with_copies(gradients: Iterable[Any]) -> list[Any]:
    """Returns parameters with copies of gradients, in the same layout."""
    return [parameter(gradient.clone()) for gradient in gradients]


def some_gradients(dtype: Any = None, seed: int = 1) -> list[Any]:
    """Returns gradients of several shapes, with a norm of about 9."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shapes: list[tuple[int, ...]] = [(4, 3), (57,), (), (1, 2, 2, 3)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(torch.float32 if dtype is None else dtype) for tensor in tensors]


def bits(tensors: Iterable[Any]) -> list[Any]:
    """Returns copies of tensors, to be compared with them later by `same_bits`."""
    return [from_torch(tensor).copy() for tensor in tensors]


def same_bits(tensors: Iterable[Any], before: Sequence[Any]) -> bool:
    return all(
        oracle.same_bits(from_torch(tensor), array) for tensor, array in zip(tensors, before, strict=True)
    )


def versions(tensors: Iterable[Any]) -> list[int]:
    return [tensor._version for tensor in tensors]


def moduli(tensors: Iterable[Any]) -> list[float]:
    return [size for tensor in tensors for size in oracle.moduli(from_torch(tensor)).tolist()]


def norm(tensors: Iterable[Any], order: Any = 2) -> float:
    """Returns the norm of all elements together, correct to about 15 digits."""
    sizes, p = moduli(tensors), float(order)
    largest = max(sizes, default=0.0)
    if p == math.inf or largest == 0.0:
        return largest
    return largest * math.fsum((size / largest) ** p for size in sizes) ** (1.0 / p)


def factor(norm: float, max_norm: float) -> float:
    """Returns the factor of torch's `clip_grad_norm_` in float64."""
    return min(1.0, max_norm / (norm + 1e-6))


def assert_scaled(gradients: Iterable[Any], before: Sequence[Any], factor: float) -> None:
    """Checks that gradients are those before times a factor.

    The products are rounded once. Elements narrower than float64 are multiplied by the factor rounded to
    float32, unless that is subnormal.
    """
    for gradient, array in zip(gradients, before, strict=True):
        expected = oracle.scaled(array, factor)
        assert oracle.same_bits(from_torch(gradient), expected), f"{gradient} is not {expected}"
