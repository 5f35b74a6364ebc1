"""Adadelta."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import HyperParameter
from fastclip.train._optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["AdadeltaOptimizer"]


class AdadeltaOptimizer(Optimizer):
    r"""Adadelta.

    Takes the arguments of ``tf.compat.v1.train.AdadeltaOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, array of no dimensions, Variable or callable
        The learning rate. 1.0 is that of the paper.
    rho : float, array of no dimensions, Variable or callable
        :math:`\rho`.
    epsilon : float, array of no dimensions, Variable or callable
        :math:`\varepsilon`.
    use_locking, name
        See :class:`Optimizer`.
    **options
        ``clipvalue``, ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``: see
        :class:`Optimizer`.

    Notes
    -----
    :math:`a \leftarrow \rho a + (1 - \rho) g^2`,
    :math:`u = \sqrt{d + \varepsilon} / \sqrt{a + \varepsilon} \cdot g`,
    :math:`w \leftarrow w - \mathit{lr} \cdot u`, :math:`d \leftarrow \rho d + (1 - \rho) u^2` [1]_ [2]_. The
    slots ``accum`` and ``accum_update`` hold :math:`a` and :math:`d`, at first 0.

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
