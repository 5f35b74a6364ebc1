"""Adagrad."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from fastclip.torch._optimizers.fused_step import FusedStep

__all__ = ["Adagrad"]


class Adagrad(FusedStep, torch.optim.Adagrad):
    """Adagrad as in `torch.optim.Adagrad`, with clipping and update in one call [1]_.

    Parameters
    ----------
    params : iterable
        Parameters, pairs of names and parameters, or dicts of parameter groups, see `Adam`.
    lr : float or Tensor, optional
        The learning rate.
    lr_decay : float, optional
        The learning rate of step t is ``lr / (1 + (t - 1) * lr_decay)``.
    weight_decay : float, optional
        The multiple of the parameter that is added to the gradient.
    initial_accumulator_value : float, optional
        The sum of squares before the first step.
    eps : float, optional
        Is added to the root of the sum of squares.
    foreach, fused : bool, optional
        Taken as in PyTorch, and not used for tensors on the CPU.
    maximize : bool, optional
        Whether the objective is maximized.
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
    .. [1] Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization",
       2011, in the form of `torch.optim.Adagrad`.

    Examples
    --------
    >>> import torch
    >>> import fastclip.torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = fastclip.torch.Adagrad([weight], lr=0.1, max_norm=1.0)
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> optimizer.step()
    >>> weight.detach()
    tensor([0.9000, 0.9000])
    """

    _torch_class = torch.optim.Adagrad

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
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
            lr_decay,
            weight_decay,
            initial_accumulator_value,
            eps,
            foreach,
            maximize=maximize,
            differentiable=differentiable,
            fused=fused,
        )
        self._store_options()
        # PyTorch's constructor has created the sums, in the type of the parameters.
        for group in self.param_groups:
            dtype = group.get("state_dtype")
            for parameter in group["params"] if dtype is not None else ():
                state = self.state[parameter]
                if state["sum"].is_floating_point():
                    state["sum"] = state["sum"].to(dtype)

    def _rule_of(self, group: dict[str, Any]) -> tuple[str, list[float], tuple[str, ...]]:
        hyper = [
            float(group["lr"]),
            float(group["lr_decay"]),
            float(group["weight_decay"]),
            float(group["eps"]),
            float(group["maximize"]),
            # The number of the step, which depends on the step count of each parameter.
            0.0,
        ]
        return "torch_adagrad", hyper, ("sum",)

    def _first_slot(self, group: dict[str, Any], name: str, parameter: torch.Tensor) -> torch.Tensor:
        return super()._first_slot(group, name, parameter).fill_(group["initial_accumulator_value"])
