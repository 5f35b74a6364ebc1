//! Snapshots that Python code holds between two calls, so that a tensor is looked at once.

use super::exchange::Exchange;
use super::origin::Origin;
use crate::py::arrays::view::{StoredView, View};
use crate::py::call::entry_that_reads;
use crate::py::objects;
use pyo3::prelude::*;

/// A tensor that has been read: its memory, dtype, shape and strides, and the kind of its results.
#[pyclass(frozen, module = "fastclip._core")]
pub struct Snapshot {
    view: StoredView,
    origin: Origin,
    /// The exchange functions that have lent the memory, see [`super::opened::Lent`].
    lender: Option<Exchange>,
    /// The tensor, if it has a version counter.
    tensor: Option<Py<PyAny>>,
    /// The memory that the view is a copy of, see [`super::opened::Opened::copied`].
    copied: Option<StoredView>,
}

impl Snapshot {
    /// Stores a view.
    pub fn new(
        view: &View,
        origin: Origin,
        lender: Option<Exchange>,
        tensor: Option<Bound<'_, PyAny>>,
        copied: Option<&View>,
    ) -> PyResult<Self> {
        let copied = copied.map(View::stored).transpose()?;
        Ok(Self { view: view.stored()?, origin, lender, tensor: tensor.map(Bound::unbind), copied })
    }

    /// Returns the tensor, if it has a version counter.
    pub fn tensor(&self) -> Option<&Py<PyAny>> {
        self.tensor.as_ref()
    }

    /// Returns the view.
    pub fn view<'py>(&self, py: Python<'py>) -> PyResult<View<'py>> {
        Ok(self.view.view(py)?)
    }

    /// Returns a view of the memory that the tensor was copied from, if it was.
    pub fn copied<'py>(&self, py: Python<'py>) -> PyResult<Option<View<'py>>> {
        Ok(self.copied.as_ref().map(|view| view.view(py)).transpose()?)
    }

    /// Returns the kind of results.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns the exchange functions that have lent the memory, if there are any.
    pub fn lender(&self) -> Option<Exchange> {
        self.lender
    }
}

#[pymethods]
impl Snapshot {
    /// The shape, a tuple.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        entry_that_reads(py, || {
            let view = self.view.view(py)?;
            let lengths = view.shape().iter().map(|length| objects::index(py, *length));
            let list = objects::list(py, view.shape().len(), lengths)?;
            Ok(list.to_tuple().into_any())
        })
    }

    /// Whether the memory may be written.
    #[getter]
    fn is_writable(&self, py: Python<'_>) -> PyResult<bool> {
        entry_that_reads(py, || Ok(self.view.view(py)?.is_writable()))
    }

    /// The name of the dtype.
    #[getter]
    fn dtype_name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        entry_that_reads(py, || objects::string(py, self.view.dtype().name()))
    }

    /// An array over the memory. bfloat16 stands as uint16 where NumPy has no such dtype.
    fn array<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        entry_that_reads(py, || self.view.view(py)?.array())
    }
}
