"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from fastclip.torch._optimizers.fused_step import FusedStep

__all__ = ["SGD"]

#: The position of the dampening among the hyper-parameters of the rule with momentum.
_DAMPENING = 2


class SGD(FusedStep, torch.optim.SGD):
    """Gradient descent as in `torch.optim.SGD`, with clipping and update in one call [1]_.

    Parameters
    ----------
    params : iterable
        Parameters, pairs of names and parameters, or dicts of parameter groups, see `Adam`.
    lr : float or Tensor, optional
        The learning rate.
    momentum : float, optional
        The decay rate of the sum of gradients.
    dampening : float, optional
        The part of a gradient that is not added to the sum, except for the first.
    weight_decay : float or Tensor, optional
        The multiple of the parameter that is added to the gradient.
    nesterov : bool, optional
        Whether momentum is that of Nesterov.
    maximize : bool, optional
        Whether the objective is maximized.
    foreach, fused : bool, optional
        Taken as in PyTorch, and not used for tensors on the CPU.
    differentiable : bool, optional
        As in PyTorch, whose code takes the steps then.
    max_norm, on_nonfinite, skip_above, state_dtype, rounding, seed : optional
        See `Adam`.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    .. [1] Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
    learning",
       2013, in the form of `torch.optim.SGD`.

    Examples
    --------
    >>> import torch
    >>> import fastclip.torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = fastclip.torch.SGD([weight], lr=0.5, momentum=0.9, max_norm=1.0)
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> optimizer.step()
    >>> weight.detach()
    tensor([0.7000, 0.6000])
    """

    _torch_class = torch.optim.SGD
    _counts_steps = False
    _has_first_step = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | torch.Tensor = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        max_norm: float | None = None,
        on_nonfinite: str = "propagate",
        skip_above: float | None = None,
        state_dtype: torch.dtype | None = None,
        rounding: str = "stochastic",
        seed: int = 0,
    ) -> None:
        self._set_options(max_norm, on_nonfinite, skip_above, state_dtype, rounding, seed)
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self._store_options()

    def _rule_of(self, group: dict[str, Any]) -> tuple[str, list[float], tuple[str, ...]]:
        lr, decay, maximize = float(group["lr"]), float(group["weight_decay"]), float(group["maximize"])
        momentum = float(group["momentum"])
        if momentum == 0.0:
            return "torch_plain_sgd", [lr, decay, maximize], ()
        hyper = [lr, momentum, float(group["dampening"]), decay, float(group["nesterov"]), maximize]
        return "torch_sgd", hyper, ("momentum_buffer",)

    def _hyper_of_first_step(self, hyper: list[float]) -> list[float]:
        # The sum is 0 before it, and the first gradient is not dampened.
        return [*hyper[:_DAMPENING], 0.0, *hyper[_DAMPENING + 1 :]]
