"""Sparse gradients: some rows of a larger tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._numpy_memory import raises_memory_error

__all__ = ["IndexedSlices"]


class IndexedSlices:
    """Rows of a larger tensor, as ``tf.IndexedSlices``: what an embedding's gradient is.

    ``values[i]`` belongs to row ``indices[i]``. A row may occur more than once; what it then stands for is
    the sum. The clip functions work on `values` as they are (repeated rows are not merged, as in
    TensorFlow) and keep `indices` and `dense_shape`.

    Parameters
    ----------
    values : array_like, shape (n, ...)
        The rows.
    indices : array_like of int, shape (n,)
        Which row each is.
    dense_shape : sequence of int, optional
        The shape of the larger tensor.

    Raises
    ------
    TypeError
        If `indices` are not whole numbers.
    ValueError
        If `indices` is not one-dimensional or not as long as `values`, or `dense_shape` does not end in
        the shape of a row.

    Notes
    -----
    Unlike TensorFlow's, it is checked when it is made.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/IndexedSlices

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip import IndexedSlices
    >>> g = IndexedSlices(np.array([[1.0], [2.0], [3.0]]), [4, 0, 4], dense_shape=(5, 1))
    >>> g.coalesce().indices
    array([0, 4])
    >>> g.to_dense().ravel()
    array([2., 0., 0., 0., 4.])
    """

    __slots__ = ("dense_shape", "indices", "values")

    values: Any
    indices: Any
    dense_shape: Sequence[int] | npt.NDArray[np.integer[Any]] | None

    def __init__(
        self,
        values: npt.ArrayLike,
        indices: npt.ArrayLike,
        dense_shape: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
    ) -> None:
        self.values = values if isinstance(values, np.ndarray) else np.asarray(values)
        self.indices = indices if isinstance(indices, np.ndarray) else np.asarray(indices)
        if self.indices.size == 0 and self.indices.dtype.kind == "f":
            self.indices = self.indices.astype(np.intp)
        if self.indices.dtype.kind not in "iu":
            raise TypeError(f"indices has dtype {self.indices.dtype}; it takes whole numbers")
        if self.indices.ndim != 1:
            raise ValueError(f"indices has shape {self.indices.shape}; it takes one dimension")
        if self.values.ndim == 0 or self.values.shape[0] != self.indices.shape[0]:
            raise ValueError(
                f"values has shape {self.values.shape} and indices {self.indices.shape}: "
                "they must have as many rows"
            )
        self.dense_shape = dense_shape
        shape = self.shape
        if shape is not None and (shape[1:] != self.values.shape[1:] or len(shape) != self.values.ndim):
            raise ValueError(
                f"dense_shape is {shape}; after its first axis it must be the shape of a row, "
                f"{self.values.shape[1:]}"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""
        dtype: np.dtype[Any] = self.values.dtype
        return dtype

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the larger tensor, or None if it is not known."""
        return None if self.dense_shape is None else tuple(int(n) for n in self.dense_shape)

    def __neg__(self) -> IndexedSlices:
        """The same rows with the opposite sign."""
        return IndexedSlices(-self.values, self.indices, self.dense_shape)

    def __repr__(self) -> str:
        parts = f"values={self.values!r}, indices={self.indices!r}, dense_shape={self.dense_shape!r}"
        return f"IndexedSlices({parts})"

    def _with_values(self, values: Any) -> IndexedSlices:
        """The same rows with other values of the same shape."""
        other = object.__new__(IndexedSlices)
        other.values, other.indices, other.dense_shape = values, self.indices, self.dense_shape
        return other

    @raises_memory_error
    def coalesce(self) -> IndexedSlices:
        """Sum repeated rows.

        Sums of float16 and bfloat16 are taken in float32 and rounded once.

        Returns
        -------
        IndexedSlices
            Each row once, in ascending order; the types of values and indices are kept.

        Examples
        --------
        >>> from fastclip import IndexedSlices
        >>> IndexedSlices([[1.0], [2.0], [3.0]], [4, 0, 4]).coalesce().values.ravel()
        array([2., 4.])
        """
        rows, position = np.unique(self.indices, return_inverse=True)
        values = self._summed(len(rows), position.reshape(-1))
        return IndexedSlices(values, rows, self.dense_shape)

    @raises_memory_error
    def to_dense(self) -> npt.NDArray[Any]:
        """Return the larger tensor, with zeros where there are no rows.

        Returns
        -------
        ndarray, shape dense_shape
            Repeated rows are summed, as by :meth:`coalesce`.

        Raises
        ------
        ValueError
            If `dense_shape` is not known.
        IndexError
            If a row index is outside it.

        Examples
        --------
        >>> from fastclip import IndexedSlices
        >>> IndexedSlices([1.0, 2.0], [0, 2], dense_shape=(4,)).to_dense()
        array([1., 0., 2., 0.])
        """
        if self.shape is None:
            raise ValueError("dense_shape is None: it is needed to make the slices dense")
        n = self.shape[0]
        outside = (self.indices < 0) | (self.indices >= n)
        if outside.any():
            at = int(np.argmax(outside))
            raise IndexError(f"indices[{at}] is {self.indices[at]}; dense_shape has {n} rows")
        return self._summed(n, self.indices)

    def _summed(self, rows: int, position: npt.NDArray[Any]) -> npt.NDArray[Any]:
        dtype = self.values.dtype
        narrow = dtype.itemsize == 2 and dtype.kind not in "iu"
        sums = np.zeros((rows, *self.values.shape[1:]), np.float32 if narrow else dtype)
        np.add.at(sums, position, self.values.astype(np.float32) if narrow else self.values)
        return sums.astype(dtype) if narrow else sums
