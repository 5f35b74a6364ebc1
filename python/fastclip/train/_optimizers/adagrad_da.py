"""The AdagradDA optimizer: Adagrad with dual averaging."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastclip._variables.variable import Variable
from fastclip.train._hyper_parameter import POSITIVE, HyperParameter, HyperParameterSetting, current
from fastclip.train._optimizer import Optimizer
from fastclip.train._settings import FixedSetting
from fastclip.train._step_counter import as_step_counter

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["AdagradDAOptimizer"]


class AdagradDAOptimizer(Optimizer):
    r"""Adagrad with dual averaging, for sparse linear models.

    Takes the arguments of ``tf.compat.v1.train.AdagradDAOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, 0-d array, Variable or callable
        The learning rate.
    global_step : ndarray or Variable of an integer type, shape ()
        The number of steps taken so far, which is read in each step. It is incremented only by calls of
        :meth:`apply_gradients` that it is passed to as well.
    initial_gradient_squared_accumulator_value : float
        The initial value of the accumulators of squared gradients, above 0.
    l1_regularization_strength, l2_regularization_strength : float
        The factors :math:`l_1` and :math:`l_2` of the penalties.
    use_locking, name
        See :class:`Optimizer`.
    **options
        Keyword arguments that every optimizer has, described in :class:`Optimizer`: ``clipvalue``,
        ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``, ``skip_above``, ``slot_dtype``
        and ``seed``.

    Raises
    ------
    ValueError
        If `initial_gradient_squared_accumulator_value` is not above 0, or `global_step` is not 0-d, is
        read-only, or is not in native byte order.

    Notes
    -----
    :math:`G \leftarrow G + g`, :math:`Q \leftarrow Q + g^2`, and with :math:`T` one more than `global_step`
    :math:`w \leftarrow -\mathit{lr}\,\mathrm{sign}(G) \max(|G| - l_1 T, 0) / (l_2 T \mathit{lr} + \sqrt Q)`
    [1]_ [2]_. The previous value of the variable has no influence. The slots ``gradient_accumulator`` and
    ``gradient_squared_accumulator`` contain :math:`G`, initially 0, and :math:`Q`.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/AdagradDAOptimizer
    .. [2] Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic
       optimization", JMLR 12, 2011. https://jmlr.org/papers/v12/duchi11a.html

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import AdagradDAOptimizer
    >>> w, step = np.array([1.0, 2.0]), np.array(0)
    >>> optimizer = AdagradDAOptimizer(0.5, step, 3.0, l1_regularization_strength=0.5)
    >>> optimizer.apply_gradients([(np.array([1.0, -0.25]), w)], global_step=step)
    >>> w, step
    (array([-0.125,  0.   ]), array(1))
    """

    _rule = "adagrad_da"
    _slot_names = ("gradient_accumulator", "gradient_squared_accumulator")

    learning_rate = HyperParameterSetting()
    global_step = FixedSetting()
    initial_gradient_squared_accumulator_value = FixedSetting()
    l1_regularization_strength = HyperParameterSetting()
    l2_regularization_strength = HyperParameterSetting()

    def __init__(
        self,
        learning_rate: HyperParameter,
        global_step: npt.NDArray[np.integer[Any]] | Variable,
        initial_gradient_squared_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        use_locking: bool = False,
        name: str = "AdagradDA",
        **options: Unpack[GradientOptions],
    ) -> None:
        hyper_parameters = {
            "learning_rate": learning_rate,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
        }
        first_value = current(
            initial_gradient_squared_accumulator_value, "initial_gradient_squared_accumulator_value", POSITIVE
        )
        super().__init__(use_locking, name, hyper_parameters, (0.0, first_value), **options)
        as_step_counter(global_step)
        # The argument, not its array: if it is a Variable, a copy of the optimizer refers to the copy of it.
        self.global_step = global_step
        self.initial_gradient_squared_accumulator_value = first_value

    def _with_counters(self, hyper: tuple[float, ...]) -> tuple[float, ...]:
        step = self.global_step
        return (*hyper, float(step._data if isinstance(step, Variable) else step) + 1.0)
