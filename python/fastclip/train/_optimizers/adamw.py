"""The AdamW optimizer: Adam with decoupled weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import HyperParameter, HyperParameterSetting
from fastclip.train._optimizers.adam import AdamOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["AdamWOptimizer"]


class AdamWOptimizer(AdamOptimizer):
    r"""Adam with decoupled weight decay.

    ``tf.compat.v1.train`` has no such optimizer. The arguments before `weight_decay` are those of
    :class:`AdamOptimizer`.

    Parameters
    ----------
    learning_rate : float, 0-d array, Variable or callable
        The learning rate.
    beta1, beta2, epsilon : float, 0-d array, Variable or callable
        See :class:`AdamOptimizer`.
    use_locking, name
        See :class:`Optimizer`.
    weight_decay : float, 0-d array, Variable or callable
        The weight decay, a keyword argument. In each step it is multiplied by the learning rate.
    **options
        Keyword arguments that every optimizer has, described in :class:`Optimizer`: ``clipvalue``,
        ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``, ``skip_above``, ``slot_dtype``
        and ``seed``.

    Notes
    -----
    :math:`w \leftarrow w - \mathit{lr} \cdot \mathit{decay} \cdot w`, and then the update of
    :class:`AdamOptimizer` [1]_. If the gradient is sparse, all rows decay. PyTorch adds epsilon to the square
    root after bias correction; results differ only for gradients that are about as small as epsilon.

    References
    ----------
    .. [1] Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
       https://arxiv.org/abs/1711.05101

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import AdamWOptimizer
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = AdamWOptimizer(0.1, weight_decay=0.5)
    >>> optimizer.apply_gradients([(np.array([1.0, -1.0]), w)])
    >>> w.round(6)
    array([0.85, 2.  ])
    """

    _rule = "adamw"

    weight_decay = HyperParameterSetting()

    def __init__(
        self,
        learning_rate: HyperParameter = 0.001,
        beta1: HyperParameter = 0.9,
        beta2: HyperParameter = 0.999,
        epsilon: HyperParameter = 1e-8,
        use_locking: bool = False,
        name: str = "AdamW",
        *,
        weight_decay: HyperParameter = 0.01,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, use_locking, name, **options)
        self.weight_decay = weight_decay
