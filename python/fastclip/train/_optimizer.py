"""The base class of optimizers."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import as_output, describe
from fastclip._arguments.foreign import foreign_array, framework
from fastclip._autodiff.gradients import compute_gradients
from fastclip._variables.variable import Variable
from fastclip.train import _state as state
from fastclip.train._arrays import as_variable
from fastclip.train._gradient_options import GradientClipping
from fastclip.train._hyper_parameter import HyperParameter, current
from fastclip.train._live_state import LiveState, loaded_counters
from fastclip.train._pairs import as_pairs
from fastclip.train._step_counter import as_step_counter

__all__ = ["Optimizer"]

_Array = npt.NDArray[Any]
#: The hyper-parameters of a step, the counters with their values after it, the number of skipped steps, and
#: the report on the norm.
_Numbers = tuple[
    list[tuple[float, ...]],
    list[tuple[npt.NDArray[np.float64], float]],
    npt.NDArray[np.int64],
    npt.NDArray[np.float64],
]


class Optimizer:
    """The base of all optimizers, with the methods of ``tf.compat.v1.train.Optimizer``.

    Use one of its subclasses, such as :class:`AdamOptimizer`. Each takes the arguments of TensorFlow's
    optimizer of that name, and the keyword arguments below.

    A variable is an array that is updated in place, a :class:`fastclip.Variable`, a torch tensor on the CPU
    or any writable buffer; it is of float32 or float64. It is known again by its memory: a view that is made
    anew for each step finds the slots of the step before. A gradient is an array of float16, bfloat16,
    float32 or float64, anything that ``np.asarray`` makes one of, a tensor of torch, JAX or TensorFlow on the
    CPU, :class:`fastclip.IndexedSlices`, or None.

    Gradients are clipped on their way into the update: one pass reads them for the norm, and the pass that
    updates scales them. No clipped gradient is written, and the gradients handed in are never changed.

    Parameters
    ----------
    use_locking : bool
        Accepted and not used: steps of one optimizer follow each other, whatever thread they come from.
    name : str
        The name of the optimizer, not empty.
    clipvalue : float, optional
        Clip each element to at most this magnitude, as :func:`fastclip.clip_by_value`.
    clipnorm : float, optional
        Clip each gradient by its own norm, as :func:`fastclip.clip_by_norm`.
    global_clipnorm : float, optional
        Clip all gradients by the norm of all of them, as :func:`fastclip.clip_by_global_norm`. At most one
        of the three may be given.
    on_nonfinite : {"propagate", "raise", "skip"}
        What to do when a gradient holds NaN or infinity. "propagate" goes on, as TensorFlow does: with a norm
        to clip by, the variables become NaN. "raise" raises :class:`fastclip.NonFiniteError` and "skip"
        leaves the step out; either way nothing changes. They take a pass over the gradients, unless a norm is
        measured anyhow.
    loss_scale : float, array of no dimensions or callable, optional
        What the loss was multiplied by, and the gradients are divided by before anything else.

    Attributes
    ----------
    last_norm : np.float32, np.float64 or None
        The global norm of the gradients at the last step, after the division by `loss_scale` and before
        clipping; None if it was not measured.
    skipped_steps : int
        How many steps were left out by ``on_nonfinite="skip"``.

    Notes
    -----
    Hyper-parameters may be numbers, arrays of no dimensions, Variables that hold one, or functions without
    parameters; they are read once at each step.

    A gradient of some rows (IndexedSlices) has repeated rows summed before the update; for the norm it counts
    as it is, as in ``tf.clip_by_global_norm``. It changes these rows alone, but for Adam and AdamW, where
    rows without a gradient have one of 0.

    A gradient that is finite may still take a variable out of its range: what is watched by `on_nonfinite` is
    what comes in.

    A call that raises has changed nothing: neither variables nor slots nor counters. There are two
    exceptions: a `constraint` of a Variable is called when the update is done, and a signal such as Ctrl-C
    that comes during the update is raised when it is done. Counters and variables agree either way.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/Optimizer
    .. [2] https://keras.io/api/optimizers/
    """

    GATE_NONE = 0
    GATE_OP = 1
    GATE_GRAPH = 2

    #: The name of the update rule.
    _rule: str
    #: The names of the slots, in the order of the rule.
    _slot_names: tuple[str, ...] = ()
    #: The names of the numbers that the rule keeps besides slots.
    _counter_names: ClassVar[tuple[str, ...]] = ()

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
    ) -> None:
        if not name:
            raise ValueError("Must specify the optimizer name")
        if not hasattr(self, "_rule"):
            raise TypeError("Optimizer is what optimizers have in common; make one of its subclasses")
        self._name = name
        #: Hyper-parameters by the names of the constructor's arguments, in the order of the rule.
        self._hyper_parameters = dict(hyper_parameters)
        #: The first value of each slot.
        self._first_values = tuple(first_values) or (0.0,) * len(self._slot_names)
        self._clipping = GradientClipping(clipvalue, clipnorm, global_clipnorm, on_nonfinite, loss_scale)
        self._state = LiveState.initial(self._rule, self._first_values, self._counter_names)
        self._locks: dict[int, threading.RLock] = {}

    @property
    def _lock(self) -> threading.RLock:
        """The lock of this process. A hyper-parameter that uses the optimizer may take it again.

        A process that is forked while another thread is in a step would find its parent's lock held for good.
        """
        generation = _core.process_generation()
        lock = self._locks.get(generation)
        return self._locks.setdefault(generation, threading.RLock()) if lock is None else lock

    @property
    def _slots(self) -> _core.Slots:
        return self._state.slots

    @property
    def last_norm(self) -> np.floating[Any] | None:
        """The global norm of the gradients at the last step, before clipping; None if it was not measured."""
        return self._state.last_norm()

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out by ``on_nonfinite="skip"``."""
        return int(self._state.skipped_steps)

    @skipped_steps.setter
    def skipped_steps(self, count: int) -> None:
        number = operator.index(count)
        if number < 0:
            raise ValueError(f"skipped_steps is {number}; it takes 0 or more")
        self._state.skipped_steps[...] = number

    # The hyper-parameters of a step ------------------------------------------------------------

    def _current_hyper_parameters(self) -> tuple[float, ...]:
        """Return the hyper-parameters as numbers, in the order of the rule.

        It is called before the step begins, because hyper-parameters may be the caller's functions.
        """
        return tuple([current(value, name) for name, value in self._hyper_parameters.items()])

    def _with_counters(self, hyper: tuple[float, ...]) -> tuple[float, ...]:
        """Return all numbers that the rule takes: the hyper-parameters, and the counters of this step."""
        return hyper

    def _counters_after(self, hyper: tuple[float, ...]) -> list[tuple[npt.NDArray[np.float64], float]]:
        """Return the counters that the step changes, with their values after it.

        `hyper` is what :meth:`_with_counters` returned.
        """
        return []

    # Gradients -----------------------------------------------------------------------------------

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
        """Compute the gradients of a loss: the first half of :meth:`minimize`.

        See :func:`fastclip.train.compute_gradients`, which takes the same arguments.

        Returns
        -------
        list of (gradient or None, variable)
            One pair for each variable of `var_list`.

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
        self, grads_and_vars: Iterable[Any], global_step: Any = None, name: str | None = None
    ) -> None:
        """Update variables by their gradients: the second half of :meth:`minimize`.

        Parameters
        ----------
        grads_and_vars : iterable of (gradient, variable)
            As :meth:`compute_gradients` returns them. Gradients have the shapes of their variables; a pair
            whose gradient is None is left as it is.
        global_step : ndarray or Variable of an integer type, shape (), optional
            Grows by one.
        name : str, optional
            Accepted for TensorFlow's sake, and not used.

        Raises
        ------
        TypeError
            If a pair is no pair, or a gradient or variable is of a type that is not taken.
        ValueError
            If there are no pairs, or none has a gradient; if a gradient has not the shape of its variable; if
            a variable is read-only, is there twice or shares memory with another.
        IndexError
            If a row index is outside its variable.
        RuntimeError
            If a gradient is of rows and its variable has a constraint, or it is called in the middle of a
            step of this optimizer, by the handler of a signal.
        NonFiniteError
            If a gradient is not finite and the optimizer has ``on_nonfinite="raise"``.

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
        try:
            listed = list(grads_and_vars)
        except TypeError:
            raise TypeError(
                f"grads_and_vars is a {type(grads_and_vars).__name__}; it takes (gradient, variable) pairs"
            ) from None
        if not listed:
            raise ValueError("No variables provided.")
        counter = None if global_step is None else as_step_counter(global_step)
        loss_scale = self._clipping.loss_scale()
        pairs = as_pairs(listed, self._clipping.row_bound(loss_scale))
        if all(gradient is None for gradient, _ in listed):
            names = [_name_of(variable) for _, variable in listed]
            raise ValueError(f"No gradients provided for any variable: {names}.")
        with self._lock:
            hyper = self._current_hyper_parameters()
            slots = self._slots
            request = _core.StepRequest(
                slots,
                pairs.arrays,
                # Called when the step has begun: signal handlers can neither step nor load a state any more.
                lambda: self._numbers(hyper, slots),
                self._clipping.compiled,
                loss_scale,
                counter,
            )
            taken = _core.take_step(request)
            for variable in pairs.constrained if taken else ():
                self._constrain(variable)

    def _numbers(self, hyper: tuple[float, ...], slots: _core.Slots) -> _Numbers:
        """Return the numbers that a step reads, and those that it changes."""
        live = self._state
        if live.slots is not slots:
            raise RuntimeError("load_state_dict was called in the middle of apply_gradients")
        hyper = self._with_counters(hyper)
        return [hyper], self._counters_after(hyper), live.skipped_steps, live.report

    def _constrain(self, variable: Any) -> None:
        variable.assign(variable.constraint(variable))
        self._slots.refresh_copy(variable.value)

    def minimize(
        self,
        loss: Callable[..., Any],
        global_step: Any = None,
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: Any = None,
        colocate_gradients_with_ops: bool = False,
        name: str | None = None,
        grad_loss: Any = None,
        *,
        backend: str | Callable[..., Any] | None = None,
    ) -> None:
        """Take one step that makes a loss smaller: :meth:`compute_gradients`, then :meth:`apply_gradients`.

        Raises
        ------
        ValueError
            If the loss depends on none of the variables.

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

    # What it keeps -------------------------------------------------------------------------------

    def get_name(self) -> str:
        """Return the name of the optimizer."""
        return self._name

    def get_slot(self, var: Any, name: str) -> _Array | None:
        """Return what is kept for a variable under a name.

        Parameters
        ----------
        var : ndarray, Variable or torch tensor
            A variable.
        name : str
            One of :meth:`get_slot_names`.

        Returns
        -------
        ndarray, shape and dtype of `var`, or None
            An array over the slot's own memory: it changes with each step, and writing to it changes the
            slot. None if there is no such slot, or the variable has had no gradient yet.
        """
        array = as_variable(var, "var")
        with self._lock:
            slots = self._slots.of(array)
        if slots is None or name not in self._slot_names:
            return None
        return slots[self._slot_names.index(name)]

    def get_slot_names(self) -> list[str]:
        """Return the names of the slots that were made so far, sorted."""
        with self._lock:
            return sorted(self._slot_names) if self._slots.has_slots() else []

    def variables(self) -> list[_Array]:
        """Return all arrays that the optimizer keeps: counters first, then the slots of each variable."""
        with self._lock:
            slots = [slot for _, slots in self._slots.entries() for slot in slots]
            return [*self._state.other().values(), *slots]

    def set_low_precision_copy(self, variable: Any, copy: Any) -> None:
        """Keep a low-precision copy of a variable up to date: the variable then is the master weights.

        The copy is refreshed now, and in the same pass as each update, which saves reading the variable
        again.

        Parameters
        ----------
        variable : ndarray, Variable or torch tensor
            Of float32 or float64.
        copy : ndarray, torch tensor or None
            Of the variable's shape and a narrower type: float16, bfloat16, or for a float64 variable float32.
            None takes the copy away.

        Raises
        ------
        TypeError
            If it is of another type.
        ValueError
            If it is of another shape, read-only, or shares memory with the variable.

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
        if copy is not None:
            is_torch = framework(copy) == "torch"
            copy = foreign_array(copy, "copy", to_write=True) if is_torch else as_output(copy, "copy")
        with self._lock:
            self._slots.refuse_while_stepping("set_low_precision_copy")
            self._slots.set_copy(array, copy)

    # Resuming ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, _Array]:
        """Return all that is needed to go on later with the same bits, but the variables themselves.

        Returns
        -------
        dict of str to ndarray
            Plain arrays, copied, which ``np.savez`` and ``safetensors.numpy.save_file`` take. Variables are
            numbered in the order in which the optimizer first met them.

        Notes
        -----
        Hyper-parameters are not part of it, nor are low-precision copies.

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
        """
        with self._lock:
            while True:
                live = self._state
                steps = live.slots.steps()
                saved = state.saved(
                    self._rule,
                    self._slot_names,
                    live.slots.entries(),
                    {**live.other(), "skipped_steps": live.skipped_steps},
                )
                # The handler of a signal may have stepped while slots were copied.
                if live is self._state and live.slots.steps() == steps:
                    return saved

    def load_state_dict(self, state_dict: Mapping[str, Any], var_list: Iterable[Any] | None = None) -> None:
        """Go on from a state that :meth:`state_dict` gave.

        Parameters
        ----------
        state_dict : mapping of str to ndarray
            Such as ``np.load`` or ``safetensors.numpy.load_file`` return.
        var_list : iterable of variables, optional
            The variables, in the order in which the optimizer that was saved first met them: that of the
            pairs of its first step. May be left out if this optimizer has met them already, in the same
            order. A state that was saved before the first step fits any variables.

        Raises
        ------
        TypeError
            If `state_dict` is no mapping of names, or a variable is of a type that is not taken.
        ValueError
            If the state is of another optimizer, version, or of other variables, is not complete, or holds an
            entry of another dtype, shape or range than what :meth:`state_dict` gives. Nothing has changed
            then.
        """
        with self._lock:
            self._slots.refuse_while_stepping("load_state_dict")
            met = [array for array, _ in self._slots.entries()]
            arrays = met if var_list is None else _variables(var_list)
            _core.check_variables(arrays, "var_list")
            loaded = state.Loaded(state_dict, self._rule, self._slot_names, arrays)
            begun = any(values is not None for values in loaded.slots)
            counters = loaded_counters(self._counter_names, loaded.other, begun)
            slots = _core.Slots(self._rule, self._first_values)
            made = slots.load(arrays, [values is not None for values in loaded.slots])
            for own, values in zip(made, loaded.slots, strict=True):
                for slot, value in zip(own, values or (), strict=True):
                    np.copyto(slot, value)
            slots.take_copies(self._slots)
            skipped_steps = np.array(loaded.skipped_steps, np.int64)
            # All at once: an interrupt finds the state as it was, or the one that was loaded.
            self._state = LiveState(slots, counters, skipped_steps, self._state.report)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # What it keeps belongs to variables, which a copy would share or lose.
        raise TypeError(
            f"{type(self).__name__} can be neither copied nor pickled; make another, and give it "
            "state_dict() by load_state_dict()"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}>"


def _name_of(variable: Any) -> str:
    name = getattr(variable, "name", None)
    return name if isinstance(name, str) else describe(variable)


def _variables(var_list: Any) -> list[_Array]:
    if isinstance(var_list, (np.ndarray, Variable)) or not isinstance(var_list, Iterable):
        raise TypeError(f"var_list is {describe(var_list)}; it takes a list of variables")
    return [as_variable(variable, f"var_list[{i}]") for i, variable in enumerate(var_list)]
