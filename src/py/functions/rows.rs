//! The order of the rows of `IndexedSlices`, and the sums of repeated rows.

use crate::engine::segment::Segment;
use crate::engine::workspace::Context;
use crate::operations::rows;
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::new_array::array_over;
use crate::py::arrays::output::OutputAllocator;
use crate::py::arrays::view::View;
use crate::py::call::entry;
use numpy::npyffi;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::os::raw::c_int;

/// The order of rows by their indices. The indices are copied: the array may change later.
#[pyclass(frozen, module = "fastclip._core")]
pub struct RowOrder {
    order: rows::RowOrder,
    /// NumPy's number of the type of the indices.
    type_number: c_int,
}

#[pymethods]
impl RowOrder {
    /// Sorts rows by their indices, a contiguous array of int64.
    #[new]
    #[pyo3(signature = (indices, /))]
    fn new(py: Python<'_>, indices: Bound<'_, PyAny>) -> PyResult<Self> {
        entry(py, || {
            let name = || "indices".to_owned();
            let view = View::new(indices, AcceptedDTypes::Ordered, &mut DTypeCache::default(), name)?;
            if view.dtype.name() != "int64" || !view.is_run() {
                return Err(PyValueError::new_err("indices must be contiguous and int64"));
            }
            let indices = if view.size == 0 {
                &[]
            } else {
                // SAFETY: a contiguous, aligned int64 array of this many elements, which the view keeps alive. The
                // interpreter is not released, so that no other thread changes the array object.
                unsafe { std::slice::from_raw_parts(view.pointer.cast::<i64>(), view.size) }
            };
            Ok(Self { order: rows::RowOrder::new(indices)?, type_number: view.numpy_dtype().1 })
        })
    }

    /// Number of different indices.
    #[getter]
    fn count(&self) -> usize {
        self.order.indices().len()
    }

    /// Returns each index once, in ascending order, as an array of int64.
    fn indices<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        entry(py, || {
            let indices = self.order.indices();
            let (pointer, owner) =
                OutputAllocator::new(py, std::iter::empty()).allocate(size_of_val(indices))?;
            // SAFETY: new memory of this size, which the owner keeps alive.
            unsafe {
                std::ptr::copy_nonoverlapping(indices.as_ptr().cast(), pointer, size_of_val(indices));
                array_over(
                    owner.into_any(),
                    pointer,
                    self.type_number,
                    &[indices.len()],
                    None,
                    npyffi::NPY_ARRAY_WRITEABLE,
                )
            }
        })
    }

    /// Returns the sum of the rows of each index: an array with as many rows, of the dtype of `rows`, which is a
    /// contiguous array of floats or complex numbers. A single row is copied. Other sums are computed in float64, and
    /// rounded once.
    #[pyo3(signature = (rows, /))]
    fn sum<'py>(&self, py: Python<'py>, rows: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        entry(py, || {
            let name = || "rows".to_owned();
            let view = View::new(rows, AcceptedDTypes::Floats, &mut DTypeCache::default(), name)?;
            if !view.is_run() || view.shape().first() != Some(&self.order.rows()) {
                let rows = self.order.rows();
                return Err(PyValueError::new_err(format!("rows must be contiguous, and {rows} of them")));
            }
            let mut shape: Vec<usize> = crate::allocation::with_capacity(view.shape().len())?;
            shape.extend_from_slice(view.shape());
            shape[0] = self.count();
            let parts = view.dtype.parts();
            // There are not more sums than rows, so that the products are in range.
            let reals = shape.iter().product::<usize>() * parts;
            let (_, type_number) = view.numpy_dtype();
            let bytes = reals * view.dtype.scalar.size();
            let (pointer, owner) = OutputAllocator::new(py, std::iter::empty()).allocate(bytes)?;
            let mut run = view.run();
            // SAFETY: the view keeps the rows alive. The interpreter is not released, so that no other thread changes the
            // array object. The sums are new memory of this size, which the owner keeps alive.
            unsafe {
                let rows = Segment::dense(false, view.size * parts, [Some(run)]);
                run.pointer = pointer;
                let mut sums = [Segment::dense(false, reals, [Some(run.written())])];
                self.order.sum(Context::current(), &rows, &mut sums)?;
                array_over(owner.into_any(), pointer, type_number, &shape, None, npyffi::NPY_ARRAY_WRITEABLE)
            }
        })
    }
}
