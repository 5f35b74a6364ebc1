"""The RMSProp optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import HyperParameter, HyperParameterSetting
from fastclip.train._optimizer import Optimizer
from fastclip.train._settings import FixedSetting

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["RMSPropOptimizer"]


class RMSPropOptimizer(Optimizer):
    r"""RMSProp with momentum, plain or centered.

    Takes the arguments of ``tf.compat.v1.train.RMSPropOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, 0-d array, Variable or callable
        The learning rate.
    decay : float, 0-d array, Variable or callable
        The decay rate :math:`\rho` of the moving averages.
    momentum : float, 0-d array, Variable or callable
        The momentum :math:`\mu`.
    epsilon : float, 0-d array, Variable or callable
        The constant :math:`\varepsilon` that is added before the square root is taken.
    centered : bool
        Whether to divide by the standard deviation of the gradient, which needs another slot, instead of its
        root mean square.
    use_locking, name
        See :class:`Optimizer`.
    **options
        Keyword arguments that every optimizer has, described in :class:`Optimizer`: ``clipvalue``,
        ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``, ``skip_above``, ``slot_dtype``
        and ``seed``.

    Notes
    -----
    :math:`s \leftarrow s + (g^2 - s)(1 - \rho)`,
    :math:`m \leftarrow \mu m + \mathit{lr} \cdot g / \sqrt{s + \varepsilon}`, :math:`w \leftarrow w - m` [1]_
    [2]_. If centered, with :math:`c \leftarrow c + (g - c)(1 - \rho)`, the square root is that of
    :math:`s - c^2 + \varepsilon` [3]_. The slots ``rms``, ``momentum`` and, if centered, ``mg`` contain
    :math:`s` (initially 1, as in TensorFlow), :math:`m` and :math:`c` (initially 0).

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

    learning_rate = HyperParameterSetting()
    decay = HyperParameterSetting()
    momentum = HyperParameterSetting()
    epsilon = HyperParameterSetting()
    centered = FixedSetting()

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
        self.centered = bool(centered)
