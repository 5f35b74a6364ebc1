"""The clip functions over arrays on a device."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import as_bound, as_number
from fastclip._arguments.axes import reduced_axes
from fastclip._arguments.bounds import value_bound
from fastclip._arguments.order import parse_order
from fastclip._core import DeviceArray


class DeviceNorm(np.lib.mixins.NDArrayOperatorsMixin):
    """A norm that a call over arrays on a device has computed.

    It is read from the device when it is first looked at: by ``float()``, ``item()``, ``numpy.asarray``, a
    comparison or arithmetic, in which it behaves as the NumPy scalar that other norms are.
    """

    __slots__ = ("_index", "_norms", "_value")

    def __init__(self, norms: Any, index: int = 0) -> None:
        self._norms = norms
        self._index = index
        self._value: np.floating[Any] | None = None

    def _read(self) -> np.floating[Any]:
        if self._value is None:
            norm = self._norms.at(self._index)
            # As for arrays of the host: float64 where a finite norm would be infinite in float32.
            self._value = _core.norm_scalar(norm, False)
        return self._value

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, or float64 if the norm is finite and beyond the range of float32."""
        return self._read().dtype

    def item(self) -> float:
        """Return the norm as a Python number."""
        return float(self._read())

    def __float__(self) -> float:
        return self.item()

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self._read(), dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        values = [entry._read() if isinstance(entry, DeviceNorm) else entry for entry in inputs]
        return getattr(ufunc, method)(*values, **options)

    def __bool__(self) -> bool:
        return bool(self._read())

    def __format__(self, format_spec: str) -> str:
        return format(self._read(), format_spec)

    def __reduce__(self) -> Any:
        return self._read().__reduce__()

    def __repr__(self) -> str:
        return f"DeviceNorm({self.item()!r})"


class _Argument:
    """The arrays of one argument, in the order of a walk."""

    def __init__(self, value: Any, name: str, is_tensor: bool = False) -> None:
        self.name = name
        self.tree: Any = None
        self.positions: list[int] | None = None
        if is_tensor:
            self.arrays = (value,)
        elif _core.gpu_are_arrays(value):
            # A list or tuple, which needs no walk.
            self.arrays = tuple(value)
        else:
            self.tree = _core.walk(value, name)
            entries = self.tree.entries
            self.positions = [index for index, entry in enumerate(entries) if entry is not None]
            self.arrays = tuple(entries[index] for index in self.positions)
            self.count = len(entries)
        self.is_tensor = is_tensor

    def walked(self, value: Any) -> Any:
        """Returns the tree of the argument, which is walked now if that was not needed before."""
        return _core.walk(value, self.name) if self.tree is None else self.tree

    def places(self) -> list[int]:
        """Returns the places of the arrays among the entries."""
        return list(range(len(self.arrays))) if self.positions is None else self.positions

    def entry_name(self, index: int) -> str:
        """Returns the name of an array for messages."""
        if self.is_tensor:
            return self.name
        if self.positions is None:
            return f"{self.name}[{index}]"
        return str(self.tree.name(self.positions[index]))

    def rebuilt(self, results: list[Any]) -> Any:
        """Returns the structure of the argument with other arrays."""
        if self.is_tensor:
            return results[0]
        if self.positions is None:
            return results
        entries: list[Any] = [None] * self.count
        for index, result in zip(self.positions, results, strict=True):
            entries[index] = result
        return self.tree.unflatten(entries)


def _refuse(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise TypeError(f"{name}= is not taken for arrays on a device")


def _is_maximum(ord: float) -> bool:
    order = parse_order(ord)
    if order not in (2.0, math.inf):
        raise TypeError(f"ord is {ord}; for arrays on a device it takes 2 and inf")
    return order == math.inf


def _outputs(argument: _Argument, value: Any, out: Any, is_tensor: bool) -> tuple[Any, Callable[[int], str]]:
    if not argument.arrays:
        raise ValueError(f"{argument.name} holds no array")
    if out is None:
        return None, argument.entry_name
    if out is value:
        return argument.arrays, lambda index: "out" + argument.entry_name(index)[len(argument.name) :]
    target = _Argument(out, "out", is_tensor)
    if not is_tensor and (argument.tree is not None or target.tree is not None):
        target.walked(out).check_same_structure(argument.walked(value))
    if argument.places() != target.places():
        for name, one, other in (("t_list", argument, target), ("out", target, argument)):
            missing = sorted(set(other.places()) - set(one.places()))
            if missing:
                taker = "out" if name == argument.name else argument.name
                raise ValueError(
                    f"entry {missing[0]} of {taker} is an array, where {name} has None or no entry"
                )
    return target.arrays, target.entry_name


def clip_by_global_norm(
    t_list: Any, clip_norm: Any, use_norm: Any, ord: float, out: Any, on_nonfinite: str, comm: Any, norms: Any
) -> tuple[Any, Any]:
    """Clips as :func:`fastclip.clip_by_global_norm`."""
    _refuse(comm=comm, norms=norms)
    bound = as_bound(clip_norm, "clip_norm")
    if not bound >= 0.0:
        raise ValueError(f"clip_norm is {bound}; it takes a number, 0 or more")
    maximum = _is_maximum(ord)
    argument = _Argument(t_list, "t_list")
    targets, target_name = _outputs(argument, t_list, out, False)
    if use_norm is not None:
        norm = as_number(use_norm, "use_norm")
        if norm < 0:
            raise ValueError(f"use_norm is {norm}; a norm is 0 or more")
        if on_nonfinite == "raise" and not math.isfinite(norm):
            raise _core.NonFiniteError(f"use_norm is {norm}")
        results = _core.gpu_clip_by_known_norm(
            argument.arrays, targets, (bound, norm), on_nonfinite, (argument.entry_name, target_name)
        )
        return _written(argument, results, out), use_norm
    results, found = _core.gpu_clip(
        argument.arrays,
        targets,
        (False, maximum),
        [bound],
        on_nonfinite,
        (argument.entry_name, target_name),
    )
    norm_result = DeviceNorm(found)
    if on_nonfinite == "raise" and not math.isfinite(norm_result.item()):
        raise _nonfinite_error(argument)
    return _written(argument, results, out), norm_result


def _written(argument: _Argument, results: list[DeviceArray] | None, out: Any) -> Any:
    return out if results is None else argument.rebuilt(results)


def _nonfinite_error(argument: _Argument) -> Exception:
    found = _core.gpu_norms(argument.arrays, True, False, argument.entry_name)
    norms = [found.at(index) for index in range(len(argument.arrays))]
    names = [argument.entry_name(i) for i, norm in enumerate(norms) if not math.isfinite(norm)]
    error: Exception = _core.NonFiniteError(f"NaN or infinity in {', '.join(names)}; nothing was written")
    error.norms = np.array(norms)  # type: ignore[attr-defined]
    return error


def global_norm(t_list: Any, ord: float, comm: Any) -> Any:
    """Returns the norm as :func:`fastclip.global_norm`."""
    _refuse(comm=comm)
    maximum = _is_maximum(ord)
    argument = _Argument(t_list, "t_list")
    return DeviceNorm(_core.gpu_norms(argument.arrays, False, maximum, argument.entry_name))


def tensor_norms(t_list: Any, ord: float) -> Any:
    """Returns norms as :func:`fastclip.tensor_norms`."""
    maximum = _is_maximum(ord)
    argument = _Argument(t_list, "t_list")
    found = _core.gpu_norms(argument.arrays, True, maximum, argument.entry_name)
    return [DeviceNorm(found, index) for index in range(len(argument.arrays))]


def _clip_one(t: Any, bound: float, maximum: bool, out: Any, grouping: bool | list[bool] = True) -> Any:
    argument = _Argument(t, "t", is_tensor=True)
    targets, target_name = _outputs(argument, t, out, True)
    results, _ = _core.gpu_clip(
        argument.arrays,
        targets,
        (grouping, maximum),
        [max(bound, 0.0)],
        "propagate",
        (argument.entry_name, target_name),
    )
    return _written(argument, results, out)


def clip_by_norm(t: Any, clip_norm: Any, axes: Any, ord: float, out: Any) -> Any:
    """Clips as :func:`fastclip.clip_by_norm`."""
    bound, maximum = as_bound(clip_norm, "clip_norm"), _is_maximum(ord)
    if axes is None or not isinstance(t, DeviceArray):
        return _clip_one(t, bound, maximum, out)
    reduced = list(reduced_axes(axes, t.ndim) or [])
    return _clip_one(t, bound, maximum, out, True if all(reduced) else reduced)


def clip_by_average_norm(t: Any, clip_norm: Any, out: Any) -> Any:
    """Clips as :func:`fastclip.clip_by_average_norm`."""
    bound = as_bound(clip_norm, "clip_norm")
    size = t.size if isinstance(t, DeviceArray) else 1
    return _clip_one(t, bound * max(size, 1), False, out)


def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any, out: Any) -> Any:
    """Clips as :func:`fastclip.clip_by_value`."""
    argument = _Argument(t, "t", is_tensor=True)
    targets, target_name = _outputs(argument, t, out, True)
    low = _value_bound(clip_value_min, t, "clip_value_min")
    high = _value_bound(clip_value_max, t, "clip_value_max")
    if math.isnan(low) or math.isnan(high):
        # As on the host, every element becomes NaN.
        results = _core.gpu_clip_by_known_norm(
            argument.arrays, targets, (1.0, math.nan), "propagate", (argument.entry_name, target_name)
        )
        return _written(argument, results, out)
    results = _core.gpu_clamp(argument.arrays, targets, low, high, (argument.entry_name, target_name))
    return _written(argument, results, out)


def _value_bound(bound: Any, t: Any, name: str) -> float:
    """Returns a bound, rounded to the type of the elements."""
    if isinstance(bound, DeviceArray):
        raise TypeError(f"{name} is an array on a device; it takes one number")
    array = value_bound(bound, t.dtype, t.shape, name)
    if array.size != 1:
        raise TypeError(f"{name} has the shape {array.shape}; for arrays on a device it takes one number")
    return float(array.reshape(()))


def run(wgsl: str, arrays: Any, workgroups: Any, *, entry_point: str = "main") -> None:
    """Run a compute shader over arrays on a device.

    Parameters
    ----------
    wgsl : str
        The source of the shader. Array ``i`` is bound as
        ``@group(0) @binding(i) var<storage, read_write>``, and ``arrayLength`` of it is its length. Elements
        of 16 bits are words of two elements, the first in the lower half.
    arrays : sequence of DeviceArray
        The arrays, each once. The shader must use all of them.
    workgroups : int or tuple of int
        Number of workgroups, for up to three axes.
    entry_point : str, optional
        The name of the function to run.

    Raises
    ------
    ValueError
        If the shader does not compile, with the message of the compiler; an array is given twice, or is too
        large for one binding; or `workgroups` has more axes or workgroups than devices take.
    TypeError
        If an entry of `arrays` is not a DeviceArray.
    GpuUnavailableError
        If the device is lost.

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip import gpu
    >>> x = gpu.asarray(np.arange(4, dtype=np.float32))
    >>> square = '''
    ... @group(0) @binding(0) var<storage, read_write> x: array<f32>;
    ... @compute @workgroup_size(64)
    ... fn main(@builtin(global_invocation_id) i: vec3<u32>) {
    ...     if (i.x < arrayLength(&x)) { x[i.x] *= x[i.x]; }
    ... }
    ... '''
    >>> gpu.run(square, [x], 1)
    >>> x.numpy()
    array([0., 1., 4., 9.], dtype=float32)
    """
    for name, text in (("wgsl", wgsl), ("entry_point", entry_point)):
        if not isinstance(text, str):
            raise TypeError(f"{name} is a {type(text).__name__}; it takes text")
    try:
        counts = [operator.index(count) for count in np.atleast_1d(np.asarray(workgroups, dtype=object))]
    except TypeError:
        counts = []
    if not 1 <= len(counts) <= 3 or any(not 0 < count < 2**32 for count in counts):
        raise ValueError(f"workgroups is {workgroups!r}; it takes one to three positive integers")
    if not isinstance(arrays, (list, tuple)) or not arrays:
        raise TypeError(f"arrays is a {type(arrays).__name__}; it takes a list of at least one DeviceArray")
    for index, array in enumerate(arrays):
        if isinstance(array, DeviceArray) and not array.size:
            raise ValueError(f"arrays[{index}] is empty; a shader takes arrays with elements")
    padded = [*counts, 1, 1][:3]
    _core.gpu_run(wgsl, tuple(arrays), padded, entry_point, lambda index: f"arrays[{index}]")
