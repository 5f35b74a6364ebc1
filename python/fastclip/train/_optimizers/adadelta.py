"""The Adadelta optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import HyperParameter, HyperParameterSetting
from fastclip.train._optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["AdadeltaOptimizer"]


class AdadeltaOptimizer(Optimizer):
    r"""The Adadelta algorithm.

    Takes the arguments of ``tf.compat.v1.train.AdadeltaOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, 0-d array, Variable or callable
        The learning rate. With 1.0, the algorithm is that of the paper.
    rho : float, 0-d array, Variable or callable
        The decay rate :math:`\rho` of the moving averages.
    epsilon : float, 0-d array, Variable or callable
        The constant :math:`\varepsilon` that is added before square roots are taken.
    use_locking, name
        See :class:`Optimizer`.
    **options
        Keyword arguments that every optimizer has, described in :class:`Optimizer`: ``clipvalue``,
        ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``, ``skip_above``, ``slot_dtype``
        and ``seed``.

    Notes
    -----
    :math:`a \leftarrow \rho a + (1 - \rho) g^2`,
    :math:`u = \sqrt{d + \varepsilon} / \sqrt{a + \varepsilon} \cdot g`,
    :math:`w \leftarrow w - \mathit{lr} \cdot u`, :math:`d \leftarrow \rho d + (1 - \rho) u^2` [1]_ [2]_. The
    slots ``accum`` and ``accum_update`` contain :math:`a` and :math:`d`, initially 0.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/AdadeltaOptimizer
    .. [2] Zeiler, "ADADELTA: an adaptive learning rate method", 2012. https://arxiv.org/abs/1212.5701

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import AdadeltaOptimizer
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = AdadeltaOptimizer(learning_rate=1.0, rho=0.75, epsilon=0.25)
    >>> optimizer.apply_gradients([(np.array([1.0, 0.0]), w)])
    >>> w.round(3), optimizer.get_slot(w, "accum")
    (array([0.293, 2.   ]), array([0.25, 0.  ]))
    """

    _rule = "adadelta"
    _slot_names = ("accum", "accum_update")

    learning_rate = HyperParameterSetting()
    rho = HyperParameterSetting()
    epsilon = HyperParameterSetting()

    def __init__(
        self,
        learning_rate: HyperParameter = 0.001,
        rho: HyperParameter = 0.95,
        epsilon: HyperParameter = 1e-8,
        use_locking: bool = False,
        name: str = "Adadelta",
        **options: Unpack[GradientOptions],
    ) -> None:
        hyper_parameters = {"learning_rate": learning_rate, "rho": rho, "epsilon": epsilon}
        super().__init__(use_locking, name, hyper_parameters, **options)
