"""The base class of optimizers."""

from __future__ import annotations

import copyreg
import inspect
import operator
import reprlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence, Set
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import as_output, describe
from fastclip._arguments.devices import check_device_variables, check_one_memory, is_on_device
from fastclip._arguments.foreign import is_mutable_tensor
from fastclip._autodiff.gradients import compute_gradients
from fastclip._norm_accumulator import NormAccumulator
from fastclip._variables.var_list import is_container, named_variables
from fastclip.train._arrays import as_variable, view_of_variable
from fastclip.train._gradient_options import (
    CLIP,
    ClipSetting,
    check_one_clip,
    checked_loss_scale,
    checked_policy,
    checked_skip_limit,
    compiled_options,
    current_loss_scale,
    row_bound,
)
from fastclip.train._hyper_parameter import HyperParameter, HyperParameterSetting, current_values
from fastclip.train._known_norm import known_norm
from fastclip.train._live_state import LiveState, fill_slot, loaded_counters, new_slots, slot_values
from fastclip.train._lost_variables import MANY, warn_of_lost_variables
from fastclip.train._pairs import as_pairs
from fastclip.train._settings import FixedSetting, Setting, settings_of
from fastclip.train._slot_options import (
    ROUNDED_STEPS,
    check_narrow_slots,
    checked_seed,
    checked_slot_dtype,
    seed_and_step,
)
from fastclip.train._state_dict import ParsedStateDict, build_state_dict, check_prefix
from fastclip.train._step_counter import as_step_counter
from fastclip.train._variables_of_arrays import check_copies_with_optimizer, variables_of_arrays

if TYPE_CHECKING:
    from fastclip._core import DeviceArray
    from fastclip._indexed_slices import IndexedSlices
    from fastclip._typing import (
        ArrayBackend,
        ArrayLike,
        Backend,
        Buffer,
        DTypeT,
        Gradient,
        Norm,
        OneOrMore,
        ResultT,
        ShapeT,
        Tensor,
        TensorBackend,
        TorchTensor,
        Trainable,
        Trainables,
        Updated,
        VariableT,
    )
    from fastclip._variables.variable import Variable

__all__ = ["Optimizer"]

_Array = npt.NDArray[Any]
#: Sets of hyper-parameters, counters with their values after the step, the number of skipped steps, the
#: report on the norm, and the seed of stochastic rounding with the number of the step: see `StepRequest` in
#: `src/py/step/request.rs`.
_Numbers = tuple[
    list[tuple[float, ...]],
    list[tuple[npt.NDArray[np.float64], float]],
    npt.NDArray[np.int64],
    npt.NDArray[np.float64],
    tuple[int, int] | None,
]


class Optimizer:
    """The base class of all optimizers, with the methods of ``tf.compat.v1.train.Optimizer``.

    Create one of its subclasses, such as :class:`AdamOptimizer`. Each takes the arguments of TensorFlow's
    optimizer of the same name, and the keyword arguments below.

    A variable is float32 or float64, and is updated in place: an array, a :class:`fastclip.Variable`, a torch
    tensor on the CPU or any writable buffer. The optimizer identifies a variable by the address and layout of
    its memory, so that a new view of the same memory has the same slots (see Notes). A gradient is an array
    of float16, bfloat16, float32 or float64, anything that ``np.asarray`` converts to such an array, a tensor
    of torch, JAX or TensorFlow on the CPU, :class:`fastclip.IndexedSlices`, or None.

    Variables and gradients may be on a graphics processor, as :class:`fastclip.gpu.DeviceArray`:
    ``GradientDescentOptimizer``, ``MomentumOptimizer``, ``AdamOptimizer`` and ``AdamWOptimizer`` update such
    variables, which are float32, by gradients of float32, float16 or bfloat16. The slots are on the device
    too. :attr:`last_norm` and :attr:`last_scale` are read from there when they are looked at, and wait for
    the step. All variables of an optimizer are in the same memory. A variable is known as long as its array
    exists; it has no low-precision copy.

    Clipping is part of the update: one pass reads the gradients to compute their norm, and the pass that
    updates the variables scales them. Clipped gradients are not stored, and the gradients that are passed in
    are never changed.

    Parameters
    ----------
    use_locking : bool
        Accepted for compatibility with TensorFlow, and ignored: threads that share an optimizer take their
        steps one after the other.
    name : str
        The name of the optimizer. It must not be empty.
    hyper_parameters : mapping of str to hyper-parameter
        Passed by subclasses: the hyper-parameters by the names of their arguments, in the order of the rule.
    first_values : sequence of float, optional
        Passed by subclasses: the first value of each slot, 0 by default.
    clipvalue : float, optional
        The bound on the absolute value of each element of a gradient, as in :func:`fastclip.clip_by_value`.
    clipnorm : float, optional
        The bound on the norm of each gradient, as in :func:`fastclip.clip_by_norm`.
    global_clipnorm : float, optional
        The bound on the norm of all gradients together, as in :func:`fastclip.clip_by_global_norm`. At most
        one of `clipvalue`, `clipnorm` and `global_clipnorm` may be passed.
    on_nonfinite : {"propagate", "raise", "skip"}
        What to do if a gradient contains NaN or infinity. "propagate" takes the step, as TensorFlow does; if
        gradients are clipped by norm, the variables become NaN. "raise" raises
        :class:`fastclip.NonFiniteError`, and "skip" skips the step: both leave variables, slots and counters
        unchanged. To check the gradients, both need a pass that reads them, unless their norm is computed for
        clipping anyway.
    loss_scale : float, 0-d array or callable, optional
        The factor by which the loss was multiplied (loss scaling). Gradients are divided by it before they
        are clipped.
    skip_above : float, optional
        A step is skipped if the global norm of its gradients, after the division by `loss_scale` and before
        clipping, is finite and larger than this. Such a step changes nothing and is counted, as with
        ``on_nonfinite="skip"``. The norm is compared in float64. It needs a pass that reads the gradients,
        unless that is made for clipping anyway.
    slot_dtype : {None, "bfloat16"}, optional
        The dtype of the slots: by default that of their variable. bfloat16 halves the memory of the slots of
        float32 variables. They are computed in the dtype of the variable and rounded stochastically, so that
        small changes to a moving average do not vanish, but are kept on average. Not for variables on a
        device, nor for FTRL, AdagradDA and centered RMSProp, which need more precise slots.
    seed : int, optional
        The seed of stochastic rounding, from 0 to 2**64 - 1. The random bits depend on the seed, the number
        of the step, the number of the variable and the place of the element in its memory, and neither on
        the number of threads nor on the processor.

    Attributes
    ----------
    last_norm : np.float32, np.float64 or None
        The global norm of the gradients in the last step, after the division by `loss_scale` and before
        clipping; None if it was not computed.
    last_scale : float or None
        The factor that clipped the gradients of the last step, not including the division by `loss_scale`:
        with `global_clipnorm` that of all gradients, with `clipnorm` the smallest of the factors of single
        gradients. It is 1.0 if no gradient was clipped, and NaN if they are clipped by norm and one contained
        NaN or infinity. None with `clipvalue`, which clips elements, and after a step that was skipped.
    skipped_steps : int
        The number of steps that ``on_nonfinite="skip"`` and `skip_above` have skipped.

    Notes
    -----
    A hyper-parameter may be a number, a 0-d array, a 0-d Variable, or a function without parameters that
    returns a number. It is read once in each step.

    Hyper-parameters and the keyword arguments above are attributes that can be set between steps, such as
    ``optimizer.learning_rate = 0.01``; the values are checked as by the constructor. An assignment during a
    step, by a function that is a hyper-parameter or by a signal handler, takes effect in the next step. To
    replace one way to clip by another, set the first to None. Arguments that determine the slots, such as
    `initial_accumulator_value` and `slot_dtype`, can be read only.

    A sparse gradient (:class:`fastclip.IndexedSlices`) may contain a row more than once. Repeated rows are
    summed before the update, but the norm is that of the rows as they were passed, as in
    ``tf.clip_by_global_norm``. Only rows that have a gradient are updated, except by Adam and AdamW, which
    update the other rows too, with a gradient of 0.

    `on_nonfinite` checks the gradients only: the update by a finite gradient may still overflow.

    The slots of a variable are kept as long as its memory: as long as the array lives that owns the memory,
    which is the last ``base`` of a view, or a torch tensor over it. The optimizer does not keep it alive. A
    name that is bound to a new array in each step (``w = w * 0.9``) is another variable each time, and the
    slots of the previous one are dropped; a RuntimeWarning says so, once, after ten variables.
    Memory of other objects than arrays and torch tensors, such as a ``bytearray``, a memory-mapped file or a
    tensor that was passed through DLPack, is kept alive together with the slots. :meth:`forget` drops the
    slots of one variable.

    An optimizer whose variables are Variables can be copied by ``copy.deepcopy`` and pickled, together with
    them: ``copy.deepcopy((model, optimizer))``. The slots of the copy belong to the copied Variables, which
    the copy keeps alive, and both continue with the same bits. No other thread may take a step meanwhile. An
    optimizer whose variables are arrays or tensors raises TypeError.

    A call that raises has changed nothing: neither variables nor slots nor counters. There are two
    exceptions: the `constraint` of a Variable is called after the update, and a signal such as Ctrl-C that
    arrives during the update is raised after it. In both cases, variables, slots and counters are all
    updated.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/Optimizer
    .. [2] https://keras.io/api/optimizers/
    """

    #: Values of `gate_gradients`, as in TensorFlow.
    GATE_NONE = 0
    GATE_OP = 1
    GATE_GRAPH = 2

    #: The name of the update rule.
    _rule: str
    #: The names of the slots, in the order of the rule.
    _slot_names: tuple[str, ...] = ()
    #: The names of the optimizer's counters: numbers, besides the slots, that steps change.
    _counter_names: ClassVar[tuple[str, ...]] = ()
    #: The hyper-parameters by their names, in the order of the rule.
    _hyper_parameters: ClassVar[dict[str, HyperParameterSetting]] = {}

    clipvalue = ClipSetting(doc="The bound on the absolute value of each element of a gradient, or None.")
    clipnorm = ClipSetting(doc="The bound on the norm of each gradient, or None.")
    global_clipnorm = ClipSetting(doc="The bound on the norm of all gradients together, or None.")
    on_nonfinite = Setting(checked_policy)
    loss_scale = Setting(checked_loss_scale)
    skip_above = Setting(checked_skip_limit)
    slot_dtype = FixedSetting(checked_slot_dtype)
    seed = Setting(checked_seed)

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        settings = settings_of(cls).items()
        cls._hyper_parameters = {
            name: setting for name, setting in settings if isinstance(setting, HyperParameterSetting)
        }

    def __init__(
        self,
        use_locking: bool,
        name: str,
        hyper_parameters: Mapping[str, HyperParameter],
        first_values: Sequence[float] = (),
        *,
        clipvalue: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        on_nonfinite: str = "propagate",
        loss_scale: HyperParameter | None = None,
        skip_above: float | None = None,
        slot_dtype: Any = None,
        seed: int = 0,
    ) -> None:
        if not name:
            raise ValueError("Must specify the optimizer name")
        if not hasattr(self, "_rule"):
            raise TypeError("Optimizer is the base class of optimizers; create one of its subclasses")
        self._name = name
        clips = {"clipvalue": clipvalue, "clipnorm": clipnorm, "global_clipnorm": global_clipnorm}
        check_one_clip(clips)
        options = {
            **clips,
            "on_nonfinite": on_nonfinite,
            "loss_scale": loss_scale,
            "skip_above": skip_above,
            "slot_dtype": slot_dtype,
            "seed": seed,
        }
        #: The values of the settings by their names; but one entry for the three options that clip.
        self._settings: dict[str, Any] = {CLIP: None}
        for argument, value in {**hyper_parameters, **options}.items():
            setattr(self, argument, value)
        #: The first value of each slot.
        self._first_values = tuple(first_values) or (0.0,) * len(self._slot_names)
        if self._has_narrow_slots:
            check_narrow_slots(self._rule, self._first_values, type(self).__name__)
        self._state = LiveState.initial(self, self._first_values, self._all_counter_names)
        self._locks: dict[int, threading.RLock] = {}
        #: Whether the warning about lost variables has been given, which comes once.
        self._has_warned = False

    if not TYPE_CHECKING:
        # Hidden from type checkers, which would accept any attribute otherwise.
        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and not any(name in vars(each) for each in type(self).__mro__):
                options = settings_of(Optimizer)
                own = settings_of(type(self)).items()
                settable = [
                    other
                    for other, setting in own
                    if other not in options and not isinstance(setting, FixedSetting)
                ]
                raise AttributeError(
                    f"{type(self).__name__} has no attribute {name!r}; these can be set: "
                    f"{', '.join([*settable, *options, 'skipped_steps'])} (and, of a subclass, the "
                    "attributes that its class has)"
                )
            super().__setattr__(name, value)

    @property
    def _lock(self) -> threading.RLock:
        """The lock that this process holds during a step.

        It is reentrant, because a hyper-parameter may be a function that uses the optimizer. Each process has
        a lock of its own: in a process that is forked while another thread is in a step, the lock of the
        parent process would never be released.
        """
        generation = _core.process_generation()
        lock = self._locks.get(generation)
        return self._locks.setdefault(generation, threading.RLock()) if lock is None else lock

    @property
    def _slots(self) -> Any:
        return self._state.slots

    @property
    def _has_narrow_slots(self) -> bool:
        """Whether the slots are bfloat16."""
        return self._settings["slot_dtype"] is not None and bool(self._slot_names)

    @property
    def _all_counter_names(self) -> tuple[str, ...]:
        """The names of the counters, with that of the steps that round slots, if there are such steps."""
        return (*self._counter_names, ROUNDED_STEPS) if self._has_narrow_slots else self._counter_names

    @property
    def last_norm(self) -> Norm | None:
        """The global norm of the gradients in the last step, before clipping; None if it was not computed."""
        return self._state.last_norm()

    @property
    def last_scale(self) -> float | None:
        """The factor that clipped the gradients in the last step, 1 if none was; None with `clipvalue`."""
        return self._state.last_scale()

    @property
    def skipped_steps(self) -> int:
        """The number of steps that ``on_nonfinite="skip"`` and `skip_above` have skipped."""
        return int(self._state.skipped_steps)

    @skipped_steps.setter
    def skipped_steps(self, count: int) -> None:
        number = operator.index(count)
        if number < 0:
            raise ValueError(f"skipped_steps is {number}; it takes 0 or more")
        self._state.skipped_steps[...] = number

    # The hyper-parameters of a step ------------------------------------------------------------

    def _with_counters(self, hyper: tuple[float, ...]) -> tuple[float, ...]:
        """Return all numbers that the rule takes: the hyper-parameters, and the counters of this step."""
        return hyper

    def _counters_after(self, hyper: tuple[float, ...]) -> list[tuple[npt.NDArray[np.float64], float]]:
        """Return the counters that the step changes, with their values after it.

        `hyper` is what :meth:`_with_counters` returned.
        """
        return []

    # Gradients -----------------------------------------------------------------------------------

    @overload
    def compute_gradients(
        self,
        loss: Callable[..., Any],
        var_list: OneOrMore[Variable] | None = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: Any = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Tensor | ArrayLike | None = None,
        *,
        backend: ArrayBackend = None,
    ) -> list[tuple[npt.NDArray[Any] | None, Variable]]: ...
    @overload
    def compute_gradients(
        self,
        loss: Callable[..., Any],
        var_list: OneOrMore[np.ndarray[ShapeT, DTypeT]],
        gate_gradients: int = GATE_OP,
        aggregation_method: Any = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Tensor | ArrayLike | None = None,
        *,
        backend: ArrayBackend = None,
    ) -> list[tuple[np.ndarray[ShapeT, DTypeT] | None, np.ndarray[ShapeT, DTypeT]]]: ...
    @overload
    def compute_gradients(
        self,
        loss: Callable[..., Any],
        var_list: OneOrMore[TorchTensor[ResultT]],
        gate_gradients: int = GATE_OP,
        aggregation_method: Any = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Tensor | ArrayLike | None = None,
        *,
        backend: TensorBackend = None,
    ) -> list[tuple[ResultT | IndexedSlices | None, ResultT]]: ...
    @overload
    def compute_gradients(
        self,
        loss: Callable[..., Any],
        var_list: OneOrMore[VariableT],
        gate_gradients: int = GATE_OP,
        aggregation_method: Any = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Tensor | ArrayLike | None = None,
        *,
        backend: Backend = None,
    ) -> list[tuple[npt.NDArray[Any] | IndexedSlices | None, VariableT]]: ...
    @overload
    def compute_gradients(
        self,
        loss: Callable[..., Any],
        var_list: Trainables | None = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: Any = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Tensor | ArrayLike | None = None,
        *,
        backend: Backend = None,
    ) -> list[tuple[Any, Any]]: ...
    def compute_gradients(
        self,
        loss: Callable[..., Any],
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: Any = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Any = None,
        *,
        backend: str | Callable[..., Any] | None = None,
    ) -> list[tuple[Any, Any]]:
        """Compute the gradients of a loss with respect to variables: the first half of :meth:`minimize`.

        See :func:`fastclip.train.compute_gradients`, which takes the same arguments.

        Returns
        -------
        list of (gradient or None, variable)
            One pair for each variable in `var_list`.

        Examples
        --------
        >>> import autograd.numpy as np
        >>> from fastclip import Variable
        >>> from fastclip.train import GradientDescentOptimizer
        >>> w = Variable([1.0, 2.0])
        >>> GradientDescentOptimizer(0.1).compute_gradients(lambda: np.sum(w**2), [w])[0][0]
        array([2., 4.], dtype=float32)
        """
        return compute_gradients(
            loss,
            var_list,
            gate_gradients,
            aggregation_method,
            colocate_gradients_with_ops,
            grad_loss,
            backend=backend,
        )

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Gradient | None, Updated]],
        global_step: npt.NDArray[np.integer[Any]] | Variable | None = None,
        name: str | None = None,
        *,
        norm: float | NormAccumulator | None = None,
    ) -> None:
        """Update variables by their gradients: the second half of :meth:`minimize`.

        Parameters
        ----------
        grads_and_vars : iterable of (gradient, variable)
            The pairs that :meth:`compute_gradients` returns, for example. A gradient has the shape of its
            variable. A variable whose gradient is None is not updated.
        global_step : ndarray or Variable of an integer type, shape (), optional
            A counter of steps, which is incremented by 1.
        name : str, optional
            Accepted for compatibility with TensorFlow, and ignored.
        norm : float or NormAccumulator, optional
            The norm of all gradients as they are passed, such as that of :func:`fastclip.accumulate`. The
            gradients are not measured then, nor checked for NaN and infinity: `on_nonfinite` applies to
            `norm` alone.

        Raises
        ------
        TypeError
            If an entry of `grads_and_vars` is not a pair, or is a pair (variable, gradient) of a Variable and
            its gradient; if a gradient or variable has a type that is not accepted; or if `grads_and_vars` is
            a set, which has no order.
        ValueError
            If there are no pairs, which is also the case for an iterator that was used up before; if no pair
            has a gradient; if the shapes of a gradient and its variable differ; if a variable is read-only,
            occurs twice or shares memory with another variable.
        IndexError
            If a sparse gradient has the index of a row that its variable lacks.
        RuntimeError
            If a variable with a constraint has a sparse gradient, or if a signal handler calls this method
            while it interrupts a step of the same optimizer.
        NonFiniteError
            If a gradient contains NaN or infinity, and the optimizer has ``on_nonfinite="raise"``. Its
            attribute `norms` has the norm of each gradient that is not None, divided by `loss_scale`.

        Examples
        --------
        >>> import numpy as np
        >>> from fastclip.train import MomentumOptimizer
        >>> w = np.array([1.0, 2.0])
        >>> optimizer = MomentumOptimizer(learning_rate=0.1, momentum=0.9, global_clipnorm=1.0)
        >>> optimizer.apply_gradients([(np.array([3.0, 4.0]), w)])
        >>> w
        array([0.94, 1.92])
        >>> optimizer.last_norm
        np.float64(5.0)
        """
        entries = _pairs_of(grads_and_vars)
        counter = None if global_step is None else as_step_counter(global_step)
        # One copy for the whole step: an assignment to an attribute takes effect in the next one.
        settings = self._settings.copy()
        options = compiled_options(settings)
        loss_scale = current_loss_scale(settings["loss_scale"])
        known = None if norm is None else known_norm(norm, settings)
        pairs = as_pairs(entries, row_bound(settings, loss_scale))
        if all(gradient is None for gradient, _ in entries):
            names = [_name_of(variable) for _, variable in entries]
            raise ValueError(f"No gradients provided for any variable: {names}.")
        if known is not None and is_on_device(pairs.arrays[0][1]):
            raise ValueError(
                "norm takes gradients in host memory; those of variables on a device are measured"
            )
        with self._lock:
            self._warn_of_lost_variables()
            # Read before the step begins, because hyper-parameters may be functions of the caller.
            hyper = current_values(self._hyper_parameters, settings)
            live = self._state
            previous = live.slots
            live.use_memory_of(pairs.arrays[0][1], self, self._first_values)
            slots = self._slots
            request = _core.StepRequest(
                slots,
                pairs.arrays,
                # Called after the step has begun, when signal handlers can no longer step or load a state.
                lambda: self._numbers(hyper, slots, settings),
                options,
                loss_scale,
                counter,
                known,
            )
            try:
                is_taken = _core.take_step(request)
            except BaseException:
                # An interrupt may come after a step that was taken.
                if slots is not previous and not slots.steps():
                    live.slots = previous
                raise
            for variable in pairs.constrained if is_taken else ():
                self._constrain(variable)

    def _warn_of_lost_variables(self) -> None:
        """Warn, once, if many variables no longer exist.

        A step calls this before it begins, because the warning may be an error.
        """
        count = self._slots.lost()
        if count >= MANY and not self._has_warned:
            self._has_warned = True
            warn_of_lost_variables(self._name, count, stacklevel=3)

    def _numbers(self, hyper: tuple[float, ...], slots: _core.Slots, settings: Mapping[str, Any]) -> _Numbers:
        """Return the numbers that a step reads, and the arrays of those that it changes."""
        live = self._state
        if live.slots is not slots:
            raise RuntimeError("load_state_dict was called in the middle of apply_gradients")
        hyper = self._with_counters(hyper)
        counters = self._counters_after(hyper)
        rounding = seed_and_step(settings, live.counters)
        if rounding is not None:
            counters = [*counters, (live.counters[ROUNDED_STEPS], float(rounding[1]))]
        return [hyper], counters, live.skipped_steps, live.report, rounding

    def _constrain(self, variable: Any) -> None:
        """Apply the constraint of a Variable, and write the result to its low-precision copy too."""
        variable.assign(variable.constraint(variable))
        self._slots.refresh_copy(variable.value)

    def minimize(
        self,
        loss: Callable[..., Any],
        global_step: npt.NDArray[np.integer[Any]] | Variable | None = None,
        var_list: Trainables | None = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: Any = None,
        colocate_gradients_with_ops: bool = False,
        name: str | None = None,
        grad_loss: Tensor | ArrayLike | None = None,
        *,
        backend: Backend = None,
    ) -> None:
        """Take one step to reduce a loss: call :meth:`compute_gradients`, then :meth:`apply_gradients`.

        Raises
        ------
        ValueError
            If the loss does not depend on any of the variables.

        Examples
        --------
        >>> import autograd.numpy as np
        >>> from fastclip import Variable
        >>> from fastclip.train import AdamOptimizer
        >>> w = Variable([1.0, -2.0])
        >>> optimizer = AdamOptimizer(0.1)
        >>> for _ in range(200):
        ...     optimizer.minimize(lambda: np.sum((w - 3.0) ** 2), var_list=[w])
        >>> bool(abs(w.value - 3.0).max() < 0.1)
        True
        """
        grads_and_vars = self.compute_gradients(
            loss,
            var_list,
            gate_gradients,
            aggregation_method,
            colocate_gradients_with_ops,
            grad_loss,
            backend=backend,
        )
        if all(gradient is None for gradient, _ in grads_and_vars):
            names = [_name_of(variable) for _, variable in grads_and_vars]
            raise ValueError(
                "No gradients provided for any variable, check your loss for operations that do not support "
                f"gradients, between variables {names} and loss {loss}."
            )
        self.apply_gradients(grads_and_vars, global_step=global_step, name=name)

    # Slots and copies ----------------------------------------------------------------------------

    def get_name(self) -> str:
        """Return the name of the optimizer."""
        return self._name

    @overload
    def get_slot(self, var: Trainable | Buffer, name: str) -> _Array | None: ...
    @overload
    def get_slot(self, var: DeviceArray, name: str) -> DeviceArray | None: ...
    def get_slot(self, var: Updated, name: str) -> Any:
        """Return a slot of a variable: an array that the optimizer keeps for it.

        Parameters
        ----------
        var : ndarray, Variable or torch tensor
            A variable.
        name : str
            The name of the slot, such as "momentum". :meth:`get_slot_names` lists the names.

        Returns
        -------
        ndarray or DeviceArray, shape and dtype of `var`, or None
            An array that shares the slot's memory: each step changes it, and writing to it changes the slot.
            None if there is no slot of this name, or the variable has not been updated yet. With
            ``slot_dtype="bfloat16"`` it has the dtype of ml_dtypes or, where that is not installed, is an
            array of uint16 that has the bits.
        """
        array = as_variable(var, "var")
        with self._lock:
            slots = self._slots.get(array) if self._state.has_memory_of(array) else None
        if slots is None or name not in self._slot_names:
            return None
        return slots[self._slot_names.index(name)]

    def get_slot_names(self) -> list[str]:
        """Return the sorted names of the slots. The list is empty before the first step."""
        with self._lock:
            return sorted(self._slot_names) if self._slots.has_slots() else []

    def variables(self) -> list[_Array]:
        """Return the optimizer's arrays: first its counters, then the slots of each variable."""
        with self._lock:
            slots = [slot for _, slots in self._slots.entries() for slot in slots]
            return [*self._state.current_counters().values(), *slots]

    def set_low_precision_copy(
        self, variable: Trainable | Buffer, copy: np.ndarray[Any, Any] | TorchTensor[Any] | Buffer | None
    ) -> None:
        """Keep a low-precision copy of a variable, which then holds the master weights.

        The copy is written now, and again in each update of the variable, by the same pass over memory.

        Parameters
        ----------
        variable : ndarray, Variable or torch tensor
            A float32 or float64 variable in host memory.
        copy : ndarray, torch tensor or None
            An array of the variable's shape and of a narrower type: float16, bfloat16, or, if the variable is
            float64, float32. None removes the variable's copy: it is no longer written.

        Raises
        ------
        TypeError
            If the type of `copy` or `variable` is not accepted.
        ValueError
            If `copy` has another shape, is read-only, or shares memory with the variable.

        Examples
        --------
        >>> import numpy as np
        >>> from fastclip.train import GradientDescentOptimizer
        >>> master, half = np.ones(3, np.float32), np.empty(3, np.float16)
        >>> optimizer = GradientDescentOptimizer(0.1)
        >>> optimizer.set_low_precision_copy(master, half)
        >>> optimizer.apply_gradients([(np.ones(3, np.float16), master)])
        >>> half
        array([0.9, 0.9, 0.9], dtype=float16)
        """
        array = as_variable(variable, "variable")
        if is_on_device(array):
            raise TypeError(f"variable is {array!r}; variables on a device have no low-precision copies")
        if copy is not None and not is_mutable_tensor(copy):
            copy = as_output(copy, "copy")
        with self._lock:
            self._slots.refuse_while_stepping("set_low_precision_copy")
            self._state.use_memory_of(array, self, self._first_values)
            self._slots.set_copy(array, copy)

    def forget(self, variable: Any) -> None:
        """Drop what the optimizer keeps for a variable: its slots and its low-precision copy.

        A step on the variable after that begins with new slots. The optimizer's counters, such as the powers
        of Adam's betas, belong to all variables, and stay.

        Parameters
        ----------
        variable : ndarray, Variable or torch tensor
            A variable that was passed to :meth:`apply_gradients`, :meth:`load_state_dict` or
            :meth:`set_low_precision_copy`.

        Raises
        ------
        TypeError
            If the type of `variable` is not accepted.
        ValueError
            If the optimizer keeps nothing for this variable.
        RuntimeError
            If a signal handler calls this method while it interrupts a step of the same optimizer.

        Examples
        --------
        >>> import numpy as np
        >>> from fastclip.train import MomentumOptimizer
        >>> w = np.ones(3)
        >>> optimizer = MomentumOptimizer(0.1, 0.9)
        >>> optimizer.apply_gradients([(np.ones(3), w)])
        >>> optimizer.forget(w)
        >>> print(optimizer.get_slot(w, "momentum"))
        None
        """
        array = as_variable(variable, "variable")
        with self._lock:
            self._slots.refuse_while_stepping("forget")
            live = self._state
            copied = [kept for kept in live.copied_variables if kept._data is not array]
            if not (live.has_memory_of(array) and live.slots.forget(array)):
                raise ValueError(
                    f"variable is {describe(array)} that the optimizer {self._name!r} does not know: it has "
                    "neither slots nor a low-precision copy of it"
                )
            live.copied_variables = copied

    # Saving and loading --------------------------------------------------------------------------

    def state_dict(self, prefix: str = "") -> dict[str, Any]:
        """Return a copy of the optimizer's state.

        Training that resumes from it, with the same variables and hyper-parameters, gives the same bits.

        Parameters
        ----------
        prefix : str, optional
            The beginning of every key, such as ``"adam."``. With different prefixes, one file can contain the
            states of several optimizers, and the weights too. No prefix may begin with another one, which
            does not happen if each ends with the first dot in it.

        Returns
        -------
        dict of str to ndarray
            Copies, which ``np.savez`` and ``safetensors.numpy.save_file`` can store. Variables are numbered
            in the order in which they were first passed to :meth:`apply_gradients`. Those that no longer
            exist, or that :meth:`forget` has dropped, are left out and have no number. (The annotation does
            not say that the values are arrays, because type checkers would then refuse
            ``np.savez(file, **state)``: the function has a keyword argument that is a bool.)

        Raises
        ------
        TypeError
            If `prefix` is not a string.

        Notes
        -----
        The values of the variables, hyper-parameters and low-precision copies are not included, nor is the
        seed. Slots of bfloat16 are stored as uint16, their bits, which every file format takes.

        Examples
        --------
        >>> import numpy as np
        >>> from fastclip.train import AdamOptimizer
        >>> w, g = np.ones(2, np.float32), np.ones(2, np.float32)
        >>> first = AdamOptimizer()
        >>> first.apply_gradients([(g, w)])
        >>> saved, weights = first.state_dict(), w.copy()
        >>> second = AdamOptimizer()
        >>> second.load_state_dict(saved, [weights])
        >>> first.apply_gradients([(g, w)])
        >>> second.apply_gradients([(g, weights)])
        >>> w.tobytes() == weights.tobytes()
        True

        A file with the weights and the state:

        >>> import io
        >>> file = io.BytesIO()
        >>> np.savez(file, w=w, **first.state_dict(prefix="adam."))
        >>> saved = np.load(io.BytesIO(file.getvalue()))
        >>> second.load_state_dict(saved, [saved["w"]], prefix="adam.")
        """
        check_prefix(prefix)
        with self._lock:
            while True:
                live = self._state
                steps = live.slots.steps()
                state = build_state_dict(
                    self._rule,
                    self._slot_names,
                    [
                        (variable, [slot_values(slot) for slot in slots])
                        for variable, slots in live.slots.entries()
                    ],
                    {**live.current_counters(), "skipped_steps": live.skipped_steps},
                    prefix,
                    self.slot_dtype if self._has_narrow_slots else None,
                )
                # A signal handler may have taken a step, or loaded a state, while slots were copied.
                if live is self._state and live.slots.steps() == steps:
                    return state

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        var_list: Iterable[Updated] | None = None,
        prefix: str = "",
    ) -> None:
        """Replace the optimizer's state by one that :meth:`state_dict` returned.

        Parameters
        ----------
        state_dict : mapping of str to ndarray
            The saved state, for example from ``np.load`` or ``safetensors.numpy.load_file``.
        var_list : iterable of variables, optional
            The variables, in the order in which they were first passed to the saved optimizer's
            :meth:`apply_gradients`. By default, the variables of this optimizer, in the order in which they
            were first passed to it, without those that no longer exist. A state that was saved before the
            first step fits any variables. The variables of a dict are its values, in the order of the dict.
        prefix : str, optional
            The prefix that was passed to :meth:`state_dict`. Entries whose keys begin with it are the state,
            and all others are ignored. Without a prefix, every entry must belong to the state.

        Raises
        ------
        TypeError
            If `state_dict` is not a mapping with strings as keys, a variable has a type that is not accepted,
            or `prefix` is not a string.
        ValueError
            If the state is that of another kind of optimizer, of another version, or of other variables; if
            it is incomplete; if an entry has a dtype, shape or value that :meth:`state_dict` does not
            produce; or if `var_list` is an iterator that is empty or was used up before. The optimizer then
            keeps its state.
        """
        check_prefix(prefix)
        with self._lock:
            self._slots.refuse_while_stepping("load_state_dict")
            previous = self._state
            registered = [array for array, _ in previous.slots.entries()]
            arrays = registered if var_list is None else _variables(var_list)
            on_device = is_on_device(arrays[0]) if arrays else not isinstance(previous.slots, _core.Slots)
            check_one_memory(arrays, "var_list")
            if on_device:
                check_device_variables(arrays, "var_list")
            else:
                _core.check_variables(arrays, "var_list")
            views = [view_of_variable(array) for array in arrays]
            slot_dtype = self.slot_dtype if self._has_narrow_slots else None
            loaded = ParsedStateDict(state_dict, self._rule, self._slot_names, views, prefix, slot_dtype)
            has_slots = [values is not None for values in loaded.slots]
            counters = loaded_counters(self._all_counter_names, loaded.other, any(has_slots), prefix)
            slots = new_slots(self, self._first_values, on_device)
            for arrays_of_slots, values in zip(slots.load(arrays, has_slots), loaded.slots, strict=True):
                for slot, value in zip(arrays_of_slots, values or (), strict=True):
                    fill_slot(slot, value)
            if type(slots) is type(previous.slots):
                if on_device:
                    slots.take_report(previous.slots)
                else:
                    slots.take_copies(previous.slots)
            skipped_steps = np.array(loaded.skipped_steps, np.int64)
            copied = previous.copied_variables if var_list is None else []
            # One assignment, so that an interrupt finds either the previous state or the loaded one.
            self._state = LiveState(slots, counters, skipped_steps, previous.report, copied)

    # Copies and pickles --------------------------------------------------------------------------

    def __copy__(self) -> Any:
        raise TypeError(
            f"{type(self).__name__} cannot be copied without its variables: use copy.deepcopy, of a tuple of "
            "the model and the optimizer; or make another optimizer, and give it state_dict() by "
            "load_state_dict()"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return what ``pickle`` and ``copy.deepcopy`` need: a new object of the class, and the state of it.

        Raises
        ------
        TypeError
            If a variable is not a Variable, but an array or a tensor.
        RuntimeError
            In the middle of a step.
        """
        return copyreg.__newobj__, (type(self),), self._copied_state()  # type: ignore[attr-defined]

    def _copied_state(self) -> dict[str, Any]:
        """Return all that makes up the optimizer, in terms of Variables and of arrays that are copies."""
        kind = type(self).__name__
        others = ("_state", "_locks", "_settings")
        with self._lock:
            self._slots.refuse_while_stepping("pickle or copy.deepcopy")
            while True:
                live, steps = self._state, self._slots.steps()
                variables = variables_of_arrays([array for array, _ in live.slots.entries()], kind)
                copies = live.slots.copies()
                for _, copy in copies:
                    check_copies_with_optimizer(copy, kind)
                with_copies = variables_of_arrays([array for array, _ in copies], kind)
                state = {
                    "attributes": {key: value for key, value in vars(self).items() if key not in others},
                    "settings": dict(self._settings),
                    "state": Optimizer.state_dict(self),
                    "report": live.report.copy(),
                    "variables": variables,
                    "copies": list(zip(with_copies, [copy for _, copy in copies], strict=True)),
                }
                # A signal handler may have taken a step, or loaded a state, in the meantime.
                if live is self._state and live.slots.steps() == steps:
                    return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state["attributes"])
        self._settings = state["settings"]
        self._locks = {}
        self._state = LiveState.initial(self, self._first_values, self._all_counter_names)
        Optimizer.load_state_dict(self, state["state"], state["variables"])
        for variable, copy in state["copies"]:
            self._slots.set_copy(variable._data, copy, write=False)
        self._state.report[...] = state["report"]
        copied = {id(variable): variable for variable, _ in state["copies"]}
        copied.update((id(variable), variable) for variable in state["variables"])
        self._state.copied_variables = list(copied.values())

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        options = settings_of(Optimizer)
        own = [name for name in settings_of(type(self)) if name not in options]
        shown = {name: getattr(self, name) for name in [*own, *options]}
        # Options are shown if they differ from their defaults.
        for name in options:
            if shown[name] is None or (name, shown[name]) in (("on_nonfinite", "propagate"), ("seed", 0)):
                del shown[name]
        parameter = inspect.signature(type(self)).parameters.get("name")
        if parameter is None or self._name != parameter.default:
            shown["name"] = self._name
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _name_of(variable: Any) -> str:
    """Return the name of a variable if it has one, else its description, for messages."""
    name = getattr(variable, "name", None)
    return name if isinstance(name, str) else describe(variable)


def _pairs_of(grads_and_vars: Any) -> list[Any]:
    """Return the pairs of a step as a new list."""
    if isinstance(grads_and_vars, Set) and not isinstance(grads_and_vars, MappingView):
        raise TypeError(
            f"grads_and_vars is a {type(grads_and_vars).__name__}, which has no order; it takes a list of "
            "(gradient, variable) pairs"
        )
    try:
        entries = list(grads_and_vars)
    except TypeError:
        raise TypeError(
            f"grads_and_vars is a {type(grads_and_vars).__name__}; it takes (gradient, variable) pairs"
        ) from None
    if not entries:
        hint = ""
        if isinstance(grads_and_vars, Iterator):
            hint = (
                f" grads_and_vars is a {type(grads_and_vars).__name__} that is empty or was used up before."
            )
        raise ValueError(f"No variables provided.{hint}")
    return entries


def _variables(var_list: Any) -> list[_Array]:
    """Return the arrays over the memory of the variables in a list."""
    if not is_container(var_list):
        raise TypeError(f"var_list is {describe(var_list)}; it takes a list of variables")
    return [as_variable(variable, name) for name, variable in named_variables(var_list)]
