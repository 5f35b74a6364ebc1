"""Norms that are taken tensor by tensor, as the tensors arrive."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from fastclip import _core
from fastclip._arguments.arrays import as_array
from fastclip._arguments.order import parse_order

__all__ = ["NormAccumulator"]


class NormAccumulator:
    """The norm of tensors that arrive one by one, in any order and from any thread.

    Each tensor is measured once, for example in a hook of the backward pass, while it is in the cache. The
    norm of all of them then needs no pass over memory: the clip functions take it as ``use_norm=``, and
    optimizers as ``norm=``.

    Parameters
    ----------
    ord : float, optional
        Order p of the norm, a positive number or infinity.

    Raises
    ------
    ValueError
        If `ord` is not above 0.

    See Also
    --------
    global_norm : The norm of tensors that are there together.

    Notes
    -----
    The sum of the powers of each tensor is kept in float64 with an exponent of its own, and the sums are
    added exactly and rounded once. The norm therefore has the bits of :func:`global_norm` of the same
    tensors, whatever the order in which they arrived.

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> accumulator = fastclip.NormAccumulator()
    >>> accumulator.add("bias", np.array([12.0], dtype=np.float32))
    >>> accumulator.add("weight", np.array([3.0, 4.0], dtype=np.float32))
    >>> accumulator.norm()
    np.float32(13.0)
    """

    __slots__ = ("_measured", "_order")

    def __init__(self, ord: float = 2) -> None:
        self._order = parse_order(ord)
        #: For each key the magnitude, a mantissa and an exponent of two, and whether the tensor is float64.
        self._measured: dict[Hashable, tuple[tuple[float, int], bool]] = {}

    def add(self, key: Hashable, array: Any) -> None:
        """Measure a tensor.

        Parameters
        ----------
        key : hashable
            The name or number of the tensor. A tensor that was added with the same key no longer counts.
        array : array_like, tensor or IndexedSlices
            The tensor.

        Raises
        ------
        TypeError
            If `key` is not hashable, or `array` is not of floats or complex numbers, or not on the CPU.

        Examples
        --------
        >>> import fastclip
        >>> accumulator = fastclip.NormAccumulator()
        >>> accumulator.add(0, [3.0, 4.0])
        >>> accumulator.add(0, [6.0, 8.0])
        >>> accumulator.norm()
        np.float64(10.0)
        """
        hash(key)
        tensor = as_array(array, "array") if isinstance(array, (list, tuple)) else array
        if tensor is None or isinstance(tensor, dict):
            raise TypeError(f"array is {type(array).__name__}; it takes one tensor")
        magnitudes, is_float64 = _core.magnitudes([tensor], self._order)
        self._measured[key] = (magnitudes[0], is_float64)

    def norm(self) -> Any:
        """Return the norm of all tensors.

        Returns
        -------
        float32 or float64 scalar
            As :func:`global_norm`: float64 if one of the tensors is float64 or if the norm is beyond
            float32. It is
            0 before a tensor was added.

        Examples
        --------
        >>> import fastclip
        >>> fastclip.NormAccumulator().norm()
        np.float32(0.0)
        """
        return self._combined()[2]

    @property
    def ord(self) -> float:
        """The order of the norm."""
        return self._order

    def clear(self) -> None:
        """Forget all tensors, for the next step.

        Examples
        --------
        >>> import fastclip
        >>> accumulator = fastclip.NormAccumulator()
        >>> accumulator.add("w", [3.0])
        >>> accumulator.clear()
        >>> len(accumulator)
        0
        """
        self._measured.clear()

    def __len__(self) -> int:
        return len(self._measured)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(list(self._measured))

    def __contains__(self, key: object) -> bool:
        return key in self._measured

    def __float__(self) -> float:
        return float(self.norm())

    def __repr__(self) -> str:
        return f"<NormAccumulator of {len(self)} tensors with the norm {float(self):g}>"

    def _combined(self) -> tuple[float, int, Any]:
        """Return the norm as a mantissa and an exponent of two, and as a scalar."""
        # Copied in one step: other threads may be adding tensors.
        measured = list(self._measured.values())
        is_float64 = any(is_float64 for _, is_float64 in measured)
        return _core.combine_magnitudes([magnitude for magnitude, _ in measured], self._order, is_float64)
