"""Adam with decoupled weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import HyperParameter
from fastclip.train._optimizers.adam import AdamOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["AdamWOptimizer"]


class AdamWOptimizer(AdamOptimizer):
    r"""Adam with decoupled weight decay.

    TensorFlow's v1 optimizers have none; the arguments are those of :class:`AdamOptimizer`, after the decay,
    and the keyword arguments of :class:`Optimizer`.

    Parameters
    ----------
    weight_decay : float, array of no dimensions, Variable or callable
        The decay, times the learning rate.
    learning_rate : float, array of no dimensions, Variable or callable
        The learning rate.
    beta1, beta2, epsilon : float, array of no dimensions, Variable or callable
        See :class:`AdamOptimizer`.
    use_locking, name
        See :class:`Optimizer`.
    **options
        ``clipvalue``, ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``: see
        :class:`Optimizer`.

    Notes
    -----
    :math:`w \leftarrow w - \mathit{lr} \cdot \mathit{decay} \cdot w`, and then the update of
    :class:`AdamOptimizer` [1]_. With a gradient of rows all rows decay. In PyTorch epsilon is added to the
    corrected root: the same but for gradients about as small as epsilon.

    References
    ----------
    .. [1] Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
       https://arxiv.org/abs/1711.05101

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import AdamWOptimizer
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = AdamWOptimizer(weight_decay=0.5, learning_rate=0.1)
    >>> optimizer.apply_gradients([(np.array([1.0, -1.0]), w)])
    >>> w.round(6)
    array([0.85, 2.  ])
    """

    _rule = "adamw"

    def __init__(
        self,
        weight_decay: HyperParameter,
        learning_rate: HyperParameter = 0.001,
        beta1: HyperParameter = 0.9,
        beta2: HyperParameter = 0.999,
        epsilon: HyperParameter = 1e-8,
        use_locking: bool = False,
        name: str = "AdamW",
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, use_locking, name, **options)
        self._hyper_parameters["weight_decay"] = weight_decay
