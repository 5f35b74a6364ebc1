"""The Adam optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastclip.train._hyper_parameter import DECAY_RATE, HyperParameter, HyperParameterSetting
from fastclip.train._optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["AdamOptimizer"]


class AdamOptimizer(Optimizer):
    r"""The Adam algorithm.

    Takes the arguments of ``tf.compat.v1.train.AdamOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, 0-d array, Variable or callable
        The learning rate.
    beta1, beta2 : float, 0-d array, Variable or callable
        The decay rates :math:`\beta_1` and :math:`\beta_2` of the moments, at least 0 and below 1.
    epsilon : float, 0-d array, Variable or callable
        The constant :math:`\varepsilon`: the "epsilon hat" of the paper, which is added to the square root of
        the second moment without bias correction.
    use_own_namescope_for_non_slot_vars : bool
        Accepted for compatibility with TensorFlow, and ignored.
    use_locking, name
        See :class:`Optimizer`.
    **options
        Keyword arguments that every optimizer has, described in :class:`Optimizer`: ``clipvalue``,
        ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``, ``skip_above``, ``slot_dtype``
        and ``seed``.

    Raises
    ------
    ValueError
        If `beta1` or `beta2` is not at least 0 and below 1.

    Notes
    -----
    :math:`m \leftarrow m + (g - m)(1 - \beta_1)`, :math:`v \leftarrow v + (g^2 - v)(1 - \beta_2)`,
    :math:`w \leftarrow w - \alpha m / (\sqrt v + \varepsilon)` with
    :math:`\alpha = \mathit{lr} \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)` [1]_ [2]_. The slots are ``m`` and
    ``v``, initially 0. :math:`1 - \beta` and :math:`\alpha` are computed in float64.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/AdamOptimizer
    .. [2] Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015.
       https://arxiv.org/abs/1412.6980

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import AdamOptimizer
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = AdamOptimizer(0.5, global_clipnorm=1.0)
    >>> optimizer.apply_gradients([(np.array([30.0, -40.0]), w)])
    >>> w.round(6)
    array([0.5, 2.5])
    >>> optimizer.last_norm
    np.float64(50.0)
    """

    _rule = "adam"
    _slot_names = ("m", "v")
    #: The powers of beta1 and beta2 for the next step.
    _counter_names = ("beta1_power", "beta2_power")

    learning_rate = HyperParameterSetting()
    beta1 = HyperParameterSetting(DECAY_RATE)
    beta2 = HyperParameterSetting(DECAY_RATE)
    epsilon = HyperParameterSetting()

    def __init__(
        self,
        learning_rate: HyperParameter = 0.001,
        beta1: HyperParameter = 0.9,
        beta2: HyperParameter = 0.999,
        epsilon: HyperParameter = 1e-8,
        use_locking: bool = False,
        name: str = "Adam",
        use_own_namescope_for_non_slot_vars: bool = False,
        **options: Unpack[GradientOptions],
    ) -> None:
        hyper_parameters = {
            "learning_rate": learning_rate,
            "beta1": beta1,
            "beta2": beta2,
            "epsilon": epsilon,
        }
        super().__init__(use_locking, name, hyper_parameters, **options)

    def _with_counters(self, hyper: tuple[float, ...]) -> tuple[float, ...]:
        learning_rate, beta1, beta2, epsilon, *weight_decay = hyper
        powers = self._state.counters
        # Before the first step the counters are NaN, and the first powers are needed.
        has_stepped = not np.isnan(powers["beta1_power"])
        power1 = float(powers["beta1_power"]) if has_stepped else beta1
        power2 = float(powers["beta2_power"]) if has_stepped else beta2
        return (learning_rate, beta1, beta2, epsilon, power1, power2, *weight_decay)

    def _counters_after(self, hyper: tuple[float, ...]) -> list[tuple[npt.NDArray[np.float64], float]]:
        _, beta1, beta2, _, power1, power2 = hyper[:6]
        powers = self._state.counters
        return [(powers["beta1_power"], power1 * beta1), (powers["beta2_power"], power2 * beta2)]
