"""Lion."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from fastclip.torch._optimizers.fused_step import FusedStep

__all__ = ["Lion"]


class _LionOfTensors(Optimizer):
    """Lion by operations on tensors, for parameters that fastclip does not take."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            lr = float(group["lr"])
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                moment = state["exp_avg"]
                gradient = -gradient if group["maximize"] else gradient
                direction = torch.lerp(moment, gradient, 1.0 - beta1).sign_()
                parameter.mul_(1.0 - lr * group["weight_decay"]).add_(direction, alpha=-lr)
                moment.lerp_(gradient, 1.0 - beta2)


class Lion(FusedStep):
    """Lion, with clipping and update in one call [1]_.

    Each step moves a parameter by ``lr`` in the direction of the sign of an average of gradients.

    Parameters
    ----------
    params : iterable
        Parameters, pairs of names and parameters, or dicts of parameter groups, see `Adam`.
    lr : float or Tensor, optional
        The learning rate: a tenth of that of AdamW, or less.
    betas : tuple of float, optional
        The decay rates of the average that gives the direction, and of that which is kept.
    weight_decay : float, optional
        The multiple of the parameter that, times the learning rate, is subtracted from it.
    maximize : bool, optional
        Whether the objective is maximized.
    max_norm, on_nonfinite, skip_above, state_dtype, rounding, seed : optional
        See `Adam`.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    .. [1] Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2.

    Examples
    --------
    >>> import torch
    >>> import fastclip.torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = fastclip.torch.Lion([weight], lr=0.1, max_norm=1.0)
    >>> weight.grad = torch.tensor([3.0, -4.0])
    >>> optimizer.step()
    >>> weight.detach()
    tensor([0.9000, 1.1000])
    """

    _torch_class = _LionOfTensors
    _counts_steps = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        on_nonfinite: str = "propagate",
        skip_above: float | None = None,
        state_dtype: torch.dtype | None = None,
        rounding: str = "stochastic",
        seed: int = 0,
    ) -> None:
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for index, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        self._set_options(max_norm, on_nonfinite, skip_above, state_dtype, rounding, seed)
        defaults = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)
        self._store_options()

    def _rule_of(self, group: dict[str, Any]) -> tuple[str, list[float], tuple[str, ...]]:
        beta1, beta2 = group["betas"]
        hyper = [
            float(group["lr"]),
            float(beta1),
            float(beta2),
            float(group["weight_decay"]),
            float(group["maximize"]),
        ]
        return "lion", hyper, ("exp_avg",)
