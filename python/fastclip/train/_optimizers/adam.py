"""Adam."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastclip.train._hyper_parameter import HyperParameter, current
from fastclip.train._optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._handling import GradientHandling

__all__ = ["AdamOptimizer"]


class AdamOptimizer(Optimizer):
    r"""Adam.

    Takes the arguments of ``tf.compat.v1.train.AdamOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, array of no dimensions, Variable or callable
        The learning rate.
    beta1, beta2 : float, array of no dimensions, Variable or callable
        The decay rates of the moments.
    epsilon : float, array of no dimensions, Variable or callable
        The "epsilon hat" of the paper, which is added after the bias of the moments is corrected in the step.
    use_own_namescope_for_non_slot_vars : bool
        Accepted for TensorFlow's sake, and not used.
    use_locking, name
        See :class:`Optimizer`.
    **handling
        ``clipvalue``, ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``: see
        :class:`Optimizer`.

    Notes
    -----
    :math:`m \leftarrow m + (g - m)(1 - \beta_1)`, :math:`v \leftarrow v + (g^2 - v)(1 - \beta_2)`,
    :math:`w \leftarrow w - \alpha m / (\sqrt v + \varepsilon)` with
    :math:`\alpha = \mathit{lr} \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)` [1]_ [2]_. The slots are ``m`` and
    ``v``, at first 0. :math:`1 - \beta` and :math:`\alpha` are taken in float64.

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
    #: The powers of the betas that the next step uses.
    _counter_names = ("beta1_power", "beta2_power")
    _changes_all_rows = True

    def __init__(
        self,
        learning_rate: HyperParameter = 0.001,
        beta1: HyperParameter = 0.9,
        beta2: HyperParameter = 0.999,
        epsilon: HyperParameter = 1e-8,
        use_locking: bool = False,
        name: str = "Adam",
        use_own_namescope_for_non_slot_vars: bool = False,
        **handling: Unpack[GradientHandling],
    ) -> None:
        super().__init__(use_locking, name, **handling)
        self._learning_rate = learning_rate
        self._beta1 = beta1
        self._beta2 = beta2
        self._epsilon = epsilon

    def _hyper(self) -> tuple[float, ...]:
        learning_rate, epsilon = (
            current(self._learning_rate, "learning_rate"),
            current(self._epsilon, "epsilon"),
        )
        beta1, beta2 = current(self._beta1, "beta1"), current(self._beta2, "beta2")
        # The powers of the betas come when the step begins.
        return (learning_rate, beta1, beta2, epsilon, np.nan, np.nan)

    def _at_this_step(self, hyper: tuple[float, ...]) -> tuple[float, ...]:
        learning_rate, beta1, beta2, epsilon, _, _, *more = hyper
        powers = self._state.counters
        begun = not np.isnan(powers["beta1_power"])
        power1 = float(powers["beta1_power"]) if begun else beta1
        power2 = float(powers["beta2_power"]) if begun else beta2
        return (learning_rate, beta1, beta2, epsilon, power1, power2, *more)

    def _after(self, hyper: tuple[float, ...]) -> list[tuple[npt.NDArray[np.float64], float]]:
        _, beta1, beta2, _, power1, power2 = hyper[:6]
        powers = self._state.counters
        return [(powers["beta1_power"], power1 * beta1), (powers["beta2_power"], power2 * beta2)]
