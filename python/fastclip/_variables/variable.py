"""Variables: arrays that training updates in place, and that engines of differentiation trace."""

from __future__ import annotations

import copyreg
import operator
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastclip._arguments.arrays import as_array, describe
from fastclip._arguments.foreign import is_mutable_tensor
from fastclip._autodiff.tracing import Trace, current_trace
from fastclip._variables.registry import add_memory, add_trainable

__all__ = ["Variable"]

# An operator with an ndarray on the left calls the ufunc, which tensors of other libraries do not support.
_OPERATORS: dict[Any, Callable[..., Any]] = {
    np.add: operator.add,
    np.subtract: operator.sub,
    np.multiply: operator.mul,
    np.true_divide: operator.truediv,
    np.floor_divide: operator.floordiv,
    np.remainder: operator.mod,
    np.power: operator.pow,
    np.matmul: operator.matmul,
    np.less: operator.lt,
    np.less_equal: operator.le,
    np.greater: operator.gt,
    np.greater_equal: operator.ge,
}

#: For each engine, the advice in the error for a function that would read a traced variable as a constant.
_ADVICE = {
    "autograd": "use autograd.numpy in place of numpy in the loss",
    "jax": "use jax.numpy in place of numpy in the loss",
    "torch": "use torch's functions in the loss",
}

# Trace number of an untraced variable. autograd ignores numbers below -1, which stands for no trace.
_NO_TRACE = -2


class Variable:
    """Array that training updates in place, as ``tf.Variable`` [1]_.

    A loss uses a variable like an array: with operators, indices, and the functions of NumPy, or of autograd,
    JAX or torch while one of these differentiates the loss.

    Parameters
    ----------
    initial_value : array_like or callable
        Initial value, which is copied; or a callable without parameters that returns it. Python floats
        become float32 and Python integers int32, as in TensorFlow; arrays keep their data type.
    trainable : bool, optional
        Whether the variable is added to ``GraphKeys.TRAINABLE_VARIABLES``, the collection that
        ``compute_gradients`` uses if it is called without variables. The collection does not keep it alive.
    name : str, optional
        Name of the variable.
    constraint : callable, optional
        Function that projects the value after an update by an optimizer, as in TensorFlow.
    dtype : dtype, optional
        Data type of the array, instead of that of `initial_value`.

    Attributes
    ----------
    name : str
    trainable : bool
    constraint : callable or None

    Raises
    ------
    TypeError
        If `initial_value` does not convert to an array of numbers, or `name` is not a string.
    ValueError
        If `constraint` is not callable.

    Notes
    -----
    Two variables are equal only if they are the same object, so that variables can be keys; a comparison with
    an array is elementwise. While a loss is differentiated with respect to a variable, the variable reads as
    a value that the engine traces. Functions that would treat it as a constant, such as NumPy's own, raise
    TypeError; :meth:`numpy` returns the numbers as a constant.

    Copies (``copy.copy``, ``copy.deepcopy``) and unpickled variables have an array of their own and the
    attributes of the original, but are in no collection: only the constructor adds variables to
    ``GraphKeys.TRAINABLE_VARIABLES``.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/Variable

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> w = fastclip.Variable([1.0, 2.0], name="w")
    >>> w
    <Variable 'w' shape=(2,) dtype=float32, value=array([1., 2.], dtype=float32)>
    >>> np.float32([[1, 1]]) @ w
    array([3.], dtype=float32)
    >>> w.assign_sub([0.5, 0.5]).numpy()
    array([0.5, 1.5], dtype=float32)
    """

    __slots__ = ("__weakref__", "_data", "constraint", "name", "trainable")

    #: Makes arrays and scalars of NumPy leave binary operators to the variable.
    __array_priority__: float = 200.0

    if TYPE_CHECKING:
        # Without this line, `__getattr__` makes mypy take variables for tensors of other frameworks.
        __dlpack__: ClassVar[None]

    def __init__(
        self,
        initial_value: Any,
        trainable: bool = True,
        name: str | None = None,
        constraint: Callable[[Any], Any] | None = None,
        *,
        dtype: npt.DTypeLike | None = None,
    ) -> None:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name is {name!r}; it takes a string")
        if constraint is not None and not callable(constraint):
            raise ValueError(f"constraint is {describe(constraint)}; it takes a callable")
        if callable(initial_value) and not isinstance(initial_value, Variable):
            initial_value = initial_value()
        array = _initial(initial_value)
        if dtype is not None:
            array = array.astype(dtype, order="C", copy=True)
        if array.dtype.kind not in "fciub" and array.dtype.name != "bfloat16":
            raise TypeError(f"initial_value is {describe(array)}; it takes numbers")
        self._hold(array)
        self.trainable: bool = bool(trainable)
        self.name: str = "Variable" if name is None else name
        self.constraint: Callable[[Any], Any] | None = constraint
        if self.trainable:
            add_trainable(self)

    # The array ---------------------------------------------------------------------------------

    def _hold(self, value: npt.NDArray[Any]) -> None:
        """Sets the array that holds the value to a copy of another. Called once, when a variable is made."""
        self._data: npt.NDArray[Any] = np.array(value, order="C", copy=True)
        add_memory(self, self._data)

    @property
    def value(self) -> Any:
        """Array that assignments and updates write to.

        It is the same array throughout the life of the variable. While a loss is differentiated with respect
        to the variable, it is the value that the engine traces instead.
        """
        trace = current_trace()
        if trace is None:
            return self._data
        tracing = trace.find(self)
        return trace.constant(self._data) if tracing is None else tracing.values[self]

    def numpy(self) -> npt.NDArray[Any]:
        """Return a copy of the array. In a loss it is a constant, as in TensorFlow."""
        return self._data.copy()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the elements."""
        return self._data.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._data.size

    def __repr__(self) -> str:
        return f"<Variable {self.name!r} shape={self.shape} dtype={self.dtype}, value={self._data!r}>"

    # Copies and pickles ------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        # The array is an argument rather than part of the state, so that a copy has it from the start: an
        # optimizer that is copied too, and that the constraint refers to, needs it before the state is set.
        return type(self)._restored, (self._data,), self._state()

    @classmethod
    def _restored(cls, value: Any) -> Variable:
        """Returns a variable with a copy of an array, whose other attributes are still to be set.

        It is in no collection: only the constructor adds variables to them.
        """
        variable = object.__new__(cls)
        variable._hold(as_array(value, "value"))
        return variable

    def _state(self) -> Any:
        """Returns all attributes but the array, in the form that ``object.__reduce_ex__`` has."""
        custom = getattr(type(self), "__getstate__", None)
        if custom is not None and custom is not getattr(object, "__getstate__", None):
            return custom(self)
        slots = {}
        for name in copyreg._slotnames(type(self)):  # type: ignore[attr-defined]
            try:
                slots[name] = object.__getattribute__(self, name)
            except AttributeError:
                continue
        del slots["_data"]
        return (vars(self) if hasattr(self, "__dict__") else None), slots

    # Assignment --------------------------------------------------------------------------------

    def assign(self, value: Any) -> Variable:
        """Write a new value into the array.

        Parameters
        ----------
        value : array_like
            Value of the variable's shape. Its data type must be of the same kind; floats are rounded to the
            data type of the variable.

        Returns
        -------
        Variable
            The variable itself.

        Raises
        ------
        TypeError
            If `value` holds no numbers, or numbers of another kind, such as floats for an integer variable.
        ValueError
            If the shape differs.
        OverflowError
            If an integer is out of the range of the variable's data type.
        RuntimeError
            If a loss is being differentiated with respect to the variable.
        """
        np.copyto(self._data, self._assignable(value, "value"), casting="unsafe")
        return self

    def assign_add(self, delta: Any) -> Variable:
        """Add a value to the array in place. Otherwise like :meth:`assign`."""
        np.add(self._data, self._assignable(delta, "delta"), out=self._data, casting="unsafe")
        return self

    def assign_sub(self, delta: Any) -> Variable:
        """Subtract a value from the array in place. Otherwise like :meth:`assign`."""
        np.subtract(self._data, self._assignable(delta, "delta"), out=self._data, casting="unsafe")
        return self

    def _memory(self) -> npt.NDArray[Any]:
        """Returns the array for writing. Raises RuntimeError while the variable is traced."""
        if self._traced() is not None:
            raise RuntimeError(
                f"the variable {self.name!r} was assigned to inside the loss that is differentiated by it"
            )
        return self._data

    def _assignable(self, value: Any, name: str) -> npt.NDArray[Any]:
        """Returns a value as an array that can be assigned: of the variable's shape, kind and range."""
        self._memory()
        array = value._data if isinstance(value, Variable) else as_array(value, name)
        floats = self.dtype.kind == "f" or self.dtype.name == "bfloat16"
        is_real = array.dtype.kind in "fiub" or array.dtype.name == "bfloat16"
        if not (floats and is_real) and not (
            array.dtype.kind in "fciub" and np.can_cast(array.dtype, self.dtype, "same_kind")
        ):
            raise TypeError(
                f"{name} is {describe(array)}; the variable {self.name!r} has dtype {self.dtype} and "
                "takes numbers of that kind"
            )
        if array.shape != self.shape:
            raise ValueError(f"{name} has shape {array.shape}; the variable {self.name!r} has {self.shape}")
        if self.dtype.kind in "iu" and array.size and array.dtype != self.dtype:
            info = np.iinfo(self.dtype)
            if int(array.min()) < info.min or int(array.max()) > info.max:
                raise OverflowError(
                    f"{name} is outside of {info.min} to {info.max}, which the variable {self.name!r} of "
                    f"dtype {self.dtype} holds"
                )
        return array

    def _no_rebinding(self, other: Any) -> Any:
        # `w += g` would bind the name `w` to a new array and leave the variable unchanged.
        raise RuntimeError(
            f"the variable {self.name!r} takes no augmented assignment; use assign_add or assign_sub, "
            "or write w = w + x for a new array"
        )

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ifloordiv__ = _no_rebinding
    __imod__ = __ipow__ = __imatmul__ = _no_rebinding

    # Reading the value, traced or not ----------------------------------------------------------

    def _traced(self) -> Trace | None:
        """Returns the innermost differentiation that traces the variable; None if there is none."""
        trace = current_trace()
        return None if trace is None else trace.find(self)

    def _untraced(self, reader: str) -> npt.NDArray[Any]:
        """Returns the array for a function that would read it as a constant.

        Raises TypeError, naming the function (`reader`), while the variable is traced.
        """
        trace = self._traced()
        if trace is not None:
            raise TypeError(
                f"{reader} would take the variable {self.name!r} for a constant, where the loss is "
                f"differentiated by it with {trace.engine}: {_ADVICE[trace.engine]} (numpy() of the "
                "variable reads it as a constant)"
            )
        return self._data

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        array = self._untraced("numpy")
        converted = array if dtype is None else array.astype(dtype, copy=False)
        if copy is False and converted is not array:
            raise ValueError(f"an array of dtype {dtype} is a copy of the variable {self.name!r}")
        return converted.copy() if copy and converted is array else converted

    def _held_tensor(self) -> Any:
        """Returns the tensor that a clip function reads: the array, or the tensor that torch traces."""
        value = self.value
        return value if is_mutable_tensor(value) else np.asarray(self)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out")
        if out is not None:
            kwargs["out"] = tuple(_ufunc_output(entry, ufunc) for entry in out)
        values = [_operand(entry) for entry in inputs]
        traced = next((t for t in map(_tracing_of, inputs) if t is not None), None)
        if traced is None or traced.engine == "autograd":
            return getattr(ufunc, method)(*values, **kwargs)
        if ufunc in _OPERATORS and method == "__call__" and not kwargs:
            return _OPERATORS[ufunc](*values)
        return self._untraced(f"numpy.{ufunc.__name__}")

    def __getattr__(self, name: str) -> Any:
        # Attributes of the array or of the traced value: w.sum(), w.T, w.reshape(...).
        if name.startswith("_"):
            raise AttributeError(f"a Variable has no attribute {name!r}")
        return getattr(self.value, name)

    def __getitem__(self, index: Any) -> Any:
        return self.value[index]

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __float__(self) -> float:
        return float(self._untraced("float()"))

    def __int__(self) -> int:
        return int(self._untraced("int()"))

    def __index__(self) -> int:
        return operator.index(self._untraced("an index"))

    def __neg__(self) -> Any:
        return -self.value

    def __pos__(self) -> Any:
        value = self.value
        # Boxes of autograd have no unary plus; as they are immutable, the box itself is returned.
        return +value if hasattr(value, "__pos__") else value

    def __abs__(self) -> Any:
        return abs(self.value)

    def __add__(self, other: Any) -> Any:
        return operator.add(self.value, _operand(other))

    def __radd__(self, other: Any) -> Any:
        return operator.add(_operand(other), self.value)

    def __sub__(self, other: Any) -> Any:
        return operator.sub(self.value, _operand(other))

    def __rsub__(self, other: Any) -> Any:
        return operator.sub(_operand(other), self.value)

    def __mul__(self, other: Any) -> Any:
        return operator.mul(self.value, _operand(other))

    def __rmul__(self, other: Any) -> Any:
        return operator.mul(_operand(other), self.value)

    def __truediv__(self, other: Any) -> Any:
        return operator.truediv(self.value, _operand(other))

    def __rtruediv__(self, other: Any) -> Any:
        return operator.truediv(_operand(other), self.value)

    def __floordiv__(self, other: Any) -> Any:
        return operator.floordiv(self.value, _operand(other))

    def __rfloordiv__(self, other: Any) -> Any:
        return operator.floordiv(_operand(other), self.value)

    def __mod__(self, other: Any) -> Any:
        return operator.mod(self.value, _operand(other))

    def __rmod__(self, other: Any) -> Any:
        return operator.mod(_operand(other), self.value)

    def __pow__(self, other: Any) -> Any:
        return operator.pow(self.value, _operand(other))

    def __rpow__(self, other: Any) -> Any:
        return operator.pow(_operand(other), self.value)

    def __matmul__(self, other: Any) -> Any:
        return operator.matmul(self.value, _operand(other))

    def __rmatmul__(self, other: Any) -> Any:
        return operator.matmul(_operand(other), self.value)

    def __lt__(self, other: Any) -> Any:
        return operator.lt(self.value, _operand(other))

    def __le__(self, other: Any) -> Any:
        return operator.le(self.value, _operand(other))

    def __gt__(self, other: Any) -> Any:
        return operator.gt(self.value, _operand(other))

    def __ge__(self, other: Any) -> Any:
        return operator.ge(self.value, _operand(other))

    # autograd ----------------------------------------------------------------------------------
    #
    # autograd's functions recognise boxes by the types of their arguments. `engines/autograd.py` registers
    # Variable as such a type, so that a variable needs the attributes of a box: those of its traced value.

    @property
    def _trace(self) -> Any:
        box = self._box()
        return _NO_TRACE if box is None else box._trace

    @property
    def _node(self) -> Any:
        box = self._box()
        return None if box is None else box._node

    @property
    def _value(self) -> Any:
        box = self._box()
        return self._data if box is None else box._value

    def _box(self) -> Any:
        trace = self._traced()
        return trace.values[self] if trace is not None and trace.engine == "autograd" else None

    # JAX ---------------------------------------------------------------------------------------

    def __jax_array__(self) -> Any:
        trace = self._traced()
        if trace is not None and trace.engine == "jax":
            return trace.values[self]
        # Copied, because JAX may share the memory of an array, which it assumes to be immutable.
        return sys.modules["jax"].numpy.array(self._untraced("jax"))

    # torch -------------------------------------------------------------------------------------

    @property
    def __cuda_array_interface__(self) -> Any:
        # torch.tensor and torch.as_tensor do not call __torch_function__; without this they would read the
        # elements as constants. They raise TypeError for a value that is not a dict.
        trace = self._traced()
        if trace is not None and trace.engine == "torch":
            return "a Variable is a tensor already where torch differentiates by it: use its value"
        raise AttributeError("a Variable is no CUDA array")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        torch = sys.modules["torch"]

        def tensor(entry: Any) -> Any:
            if isinstance(entry, Variable):
                trace = entry._traced()
                if trace is not None and trace.engine == "torch":
                    return trace.values[entry]
                return torch.from_numpy(entry._untraced("torch"))
            if type(entry) in (list, tuple):
                return type(entry)(tensor(item) for item in entry)
            if type(entry) is dict:
                return {key: tensor(item) for key, item in entry.items()}
            return entry

        return func(*tensor(args), **tensor(kwargs or {}))


def _operand(value: Any) -> Any:
    """Returns an operand as the current engine computes with it: a traced value or a constant."""
    if isinstance(value, Variable):
        return value.value
    trace = current_trace()
    return trace.constant(value) if trace is not None and isinstance(value, np.ndarray) else value


def _tracing_of(value: Any) -> Trace | None:
    return value._traced() if isinstance(value, Variable) else None


def _ufunc_output(value: Any, ufunc: np.ufunc) -> Any:
    return value._untraced(f"numpy.{ufunc.__name__}(out=)") if isinstance(value, Variable) else value


def _initial(value: Any) -> npt.NDArray[Any]:
    """Returns an initial value as an array; Python's numbers get the data types of TensorFlow."""
    if isinstance(value, Variable):
        return value._data
    array = as_array(value, "initial_value")
    if not _is_python_numbers(value):
        return array
    if array.dtype == np.float64:
        return array.astype(np.float32)
    info = np.iinfo(np.int32)
    if array.dtype.kind == "i" and (not array.size or (info.min <= array.min() and array.max() <= info.max)):
        return array.astype(np.int32)
    return array


def _is_python_numbers(value: Any) -> bool:
    """Whether a value consists of Python's numbers alone, for which NumPy selects a data type."""
    if isinstance(value, (list, tuple)):
        return all(_is_python_numbers(entry) for entry in value)
    return isinstance(value, (int, float)) and not isinstance(value, np.generic)
