"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from fastclip.torch._optimizers.fused_step import FusedStep

__all__ = ["Adam", "AdamW"]


class _AdamStep(FusedStep):
    """The step of Adam and AdamW."""

    def _rule_of(self, group: dict[str, Any]) -> tuple[str, list[float], tuple[str, ...]]:
        beta1, beta2 = group["betas"]
        hyper = [
            float(group["lr"]),
            float(beta1),
            float(beta2),
            float(group["eps"]),
            float(group["weight_decay"]),
            float(group["decoupled_weight_decay"]),
            float(group["maximize"]),
            # Powers of the betas, which depend on the step count of each parameter.
            0.0,
            0.0,
        ]
        if group["amsgrad"]:
            return "torch_ams_grad", hyper, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        return "torch_adam", hyper, ("exp_avg", "exp_avg_sq")


class Adam(_AdamStep, torch.optim.Adam):
    """Adam as in `torch.optim.Adam`, with clipping and update in one call [1]_.

    Parameters
    ----------
    params : iterable
        Parameters, pairs of names and parameters, or dicts of parameter groups. A group with the key
        ``"max_norm"`` is a norm group of its own.
    lr : float or Tensor, optional
        The learning rate.
    betas : tuple of float, optional
        The decay rates of the first and the second moment.
    eps : float, optional
        Is added to the root of the second moment, after the correction of its bias.
    weight_decay : float, optional
        The multiple of the parameter that is added to the gradient, or, with `decoupled_weight_decay`,
        times the learning rate subtracted from the parameter.
    amsgrad : bool, optional
        Whether the largest second moment so far takes the place of the second moment.
    foreach, fused : bool, optional
        Taken as in PyTorch, and not used for tensors on the CPU.
    maximize : bool, optional
        Whether the objective is maximized.
    capturable, differentiable : bool, optional
        As in PyTorch, whose code takes the steps then.
    decoupled_weight_decay : bool, optional
        Whether the weight decay is that of AdamW.
    max_norm : float, optional
        The bound of the norm of the gradients of all groups without a ``"max_norm"`` of their own. They are
        multiplied by ``min(1, max_norm / (norm + 1e-6))``, as `torch.nn.utils.clip_grad_norm_` does, but the
        gradients are not written.
    on_nonfinite : {"propagate", "raise", "skip"}, optional
        What a step does if a gradient contains NaN or infinity: it is taken, raises, or is skipped and
        counted.
    skip_above : float, optional
        The norm of all gradients above which a step is skipped and counted. It applies to finite norms;
        `on_nonfinite` says what becomes of others.
    state_dtype : torch.dtype, optional
        The type of the moments, `torch.bfloat16` or `torch.float32`. The default is that of the parameter.
    rounding : {"stochastic", "nearest"}, optional
        How moments and parameters of bfloat16 are rounded where `state_dtype` is given. Otherwise they are
        rounded to the nearest.
    seed : int, optional
        The seed of stochastic rounding.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    .. [1] Kingma and Ba, "Adam: a method for stochastic optimization", 2015, in the form of
    `torch.optim.Adam`.

    Examples
    --------
    >>> import torch
    >>> import fastclip.torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = fastclip.torch.Adam([weight], lr=0.1, max_norm=1.0)
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> optimizer.step()
    >>> weight.detach(), optimizer.last_norm
    (tensor([0.9000, 0.9000]), 5.0)
    """

    _torch_class = torch.optim.Adam

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
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
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        self._store_options()


class AdamW(_AdamStep, torch.optim.AdamW):
    """AdamW as in `torch.optim.AdamW`, with clipping and update in one call [1]_.

    Parameters
    ----------
    params : iterable
        Parameters, pairs of names and parameters, or dicts of parameter groups, see `Adam`.
    lr : float or Tensor, optional
        The learning rate.
    betas : tuple of float, optional
        The decay rates of the first and the second moment.
    eps : float, optional
        Is added to the root of the second moment, after the correction of its bias.
    weight_decay : float, optional
        The multiple of the parameter that, times the learning rate, is subtracted from it.
    amsgrad : bool, optional
        Whether the largest second moment so far takes the place of the second moment.
    maximize : bool, optional
        Whether the objective is maximized.
    foreach, fused : bool, optional
        Taken as in PyTorch, and not used for tensors on the CPU.
    capturable, differentiable : bool, optional
        As in PyTorch, whose code takes the steps then.
    max_norm, on_nonfinite, skip_above, state_dtype, rounding, seed : optional
        See `Adam`.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    .. [1] Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, in the form of
       `torch.optim.AdamW`.

    Examples
    --------
    >>> import torch
    >>> import fastclip.torch
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = fastclip.torch.AdamW(model.parameters(), lr=1e-3, max_norm=1.0)
    >>> model(torch.ones(2, 3)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.last_scale
    0.249...
    """

    _torch_class = torch.optim.Adam

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
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
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self._store_options()
