"""RMSProp."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import HyperParameter
from fastclip.train._optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["RMSPropOptimizer"]


class RMSPropOptimizer(Optimizer):
    r"""RMSProp, with momentum and a centered form.

    Takes the arguments of ``tf.compat.v1.train.RMSPropOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, array of no dimensions, Variable or callable
        The learning rate.
    decay : float, array of no dimensions, Variable or callable
        :math:`\rho`.
    momentum : float, array of no dimensions, Variable or callable
        :math:`\mu`.
    epsilon : float, array of no dimensions, Variable or callable
        :math:`\varepsilon`.
    centered : bool
        Whether to divide by the deviation of the gradient instead of its root mean square.
    use_locking, name
        See :class:`Optimizer`.
    **options
        ``clipvalue``, ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``: see
        :class:`Optimizer`.

    Notes
    -----
    :math:`s \leftarrow s + (g^2 - s)(1 - \rho)`,
    :math:`m \leftarrow \mu m + \mathit{lr} \cdot g / \sqrt{s + \varepsilon}`, :math:`w \leftarrow w - m` [1]_
    [2]_. Centered, with :math:`c \leftarrow c + (g - c)(1 - \rho)`, the root is that of
    :math:`s - c^2 + \varepsilon` [3]_. The slots are ``rms`` (at first 1, as in TensorFlow), ``momentum``
    and, if centered, ``mg`` (at first 0).

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/RMSPropOptimizer
    .. [2] Tieleman and Hinton, "Lecture 6.5: rmsprop", Coursera: Neural Networks for Machine Learning, 2012.
    .. [3] Graves, "Generating sequences with recurrent neural networks", 2013.
       https://arxiv.org/abs/1308.0850

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import RMSPropOptimizer
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = RMSPropOptimizer(0.5, epsilon=0.0)
    >>> optimizer.apply_gradients([(np.array([1.0, -1.0]), w)])
    >>> w
    array([0.5, 2.5])
    """

    _rule = "rms_prop"
    _slot_names: tuple[str, ...] = ("rms", "momentum")

    def __init__(
        self,
        learning_rate: HyperParameter,
        decay: HyperParameter = 0.9,
        momentum: HyperParameter = 0.0,
        epsilon: HyperParameter = 1e-10,
        use_locking: bool = False,
        centered: bool = False,
        name: str = "RMSProp",
        **options: Unpack[GradientOptions],
    ) -> None:
        hyper_parameters = {
            "learning_rate": learning_rate,
            "decay": decay,
            "momentum": momentum,
            "epsilon": epsilon,
        }
        first_values: tuple[float, ...] = (1.0, 0.0)
        if centered:
            self._rule, self._slot_names = "centered_rms_prop", ("rms", "momentum", "mg")
            first_values = (1.0, 0.0, 0.0)
        super().__init__(use_locking, name, hyper_parameters, first_values, **options)
