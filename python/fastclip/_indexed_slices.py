"""Sparse gradients, as some rows of a larger tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.numpy_view import numpy_view
from fastclip._numpy_memory import raises_memory_error

__all__ = ["IndexedSlices"]


class IndexedSlices:
    """Rows of a larger tensor, such as the gradient of an embedding, as ``tf.IndexedSlices`` [1]_.

    ``values[i]`` is row ``indices[i]`` of the larger tensor. A row that occurs more than once stands for the
    sum of its occurrences. The clip functions clip `values` without summing repeated rows, as TensorFlow
    does, and keep `indices` and `dense_shape`.

    Parameters
    ----------
    values : array_like or tensor, shape (n, ...)
        The rows. A tensor of torch, JAX or TensorFlow is kept as it is.
    indices : array_like of int, shape (n,)
        Index of each row in the larger tensor.
    dense_shape : sequence of int, optional
        Shape of the larger tensor.

    Raises
    ------
    TypeError
        If `indices` are not integers.
    ValueError
        If `indices` is not one-dimensional or not as long as `values`, or `dense_shape` does not end in
        the shape of a row.

    Notes
    -----
    Unlike in TensorFlow, the constructor checks its arguments.

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
        self.values = _rows(values)
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
    def dtype(self) -> Any:
        """Data type of the values: a NumPy dtype, or that of the tensor's library."""
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the larger tensor; None if `dense_shape` is None."""
        return None if self.dense_shape is None else tuple(int(n) for n in self.dense_shape)

    def __neg__(self) -> IndexedSlices:
        """Negate the values."""
        return IndexedSlices(-self.values, self.indices, self.dense_shape)

    def __repr__(self) -> str:
        fields = f"values={self.values!r}, indices={self.indices!r}, dense_shape={self.dense_shape!r}"
        return f"IndexedSlices({fields})"

    def _with_values(self, values: Any) -> IndexedSlices:
        """Returns slices with the same indices and other values of the same shape, without checks."""
        other = object.__new__(IndexedSlices)
        other.values, other.indices, other.dense_shape = values, self.indices, self.dense_shape
        return other

    @raises_memory_error
    def coalesce(self) -> IndexedSlices:
        """Sum repeated rows.

        Floats are summed in float64, in the order of the rows, and the sums are rounded once.

        Returns
        -------
        IndexedSlices
            Each row once, in ascending order of the indices; data types are kept. The rows are an array, also
            where `values` is a tensor of another library. (bfloat16 of such a tensor becomes float32 where
            ml_dtypes is not installed.)

        Examples
        --------
        >>> from fastclip import IndexedSlices
        >>> IndexedSlices([[1.0], [2.0], [3.0]], [4, 0, 4]).coalesce().values.ravel()
        array([2., 4.])
        """
        rows, sums = self._summed()
        return IndexedSlices(sums, rows.astype(self.indices.dtype, copy=False), self.dense_shape)

    @raises_memory_error
    def to_dense(self) -> npt.NDArray[Any]:
        """Return the larger tensor as an array.

        Returns
        -------
        ndarray, shape dense_shape
            Rows that `indices` does not list are 0. Repeated rows are summed, as by :meth:`coalesce`.

        Raises
        ------
        ValueError
            If `dense_shape` is None.
        IndexError
            If an index is out of the range of `dense_shape`.

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
        rows, sums = self._summed()
        dense = np.zeros((n, *sums.shape[1:]), sums.dtype)
        dense[rows] = sums
        return dense

    def _summed(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Returns each index once, in ascending order, and the sum of its rows."""
        values = self.values
        if not isinstance(values, np.ndarray):
            values = numpy_view(values, "values")
        indices = np.require(self.indices, np.int64, ["C", "A"])
        order = _core.RowOrder(indices)
        rows = order.indices()
        if values.dtype.isnative and (values.dtype.kind in "fc" or values.dtype.name == "bfloat16"):
            return rows, order.sum(np.require(values, requirements=["C", "A"]))
        sums = np.zeros((len(rows), *values.shape[1:]), values.dtype)
        np.add.at(sums, np.searchsorted(rows, indices), values)
        return rows, sums


def _rows(values: Any) -> Any:
    """Returns the rows as a tensor: as they are, or as an array if they do not tell their shape."""
    if not hasattr(type(values), "__dlpack__"):
        return np.asarray(values)
    if hasattr(values, "shape") and hasattr(values, "ndim"):
        return values
    try:
        return np.from_dlpack(values)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(f"values is a {type(values).__name__}, which cannot be read: {error}") from error
