//! Comparisons of the memory of tensors that `fastclip` reads in Python.

use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::overlap;
use crate::py::arrays::view::View;
use crate::py::call::entry_that_reads;
use crate::py::tensors::door::{Access, open};
use crate::py::trees::Tree;
use pyo3::prelude::*;

/// Raises if an output shares memory with another output or with one of `tensors`.
#[pyfunction]
#[pyo3(signature = (tensors, out, /))]
pub fn check_no_overlap(py: Python<'_>, tensors: &Bound<'_, Tree>, out: &Bound<'_, Tree>) -> PyResult<()> {
    entry_that_reads(py, || {
        let [tensors, out] = [tensors.get(), out.get()];
        let [names, out_names] = [tensors, out].map(ArgumentName::Tree);
        let inputs = open(tensors.to_open(py), AcceptedDTypes::Any, Access::default(), names)?.views;
        let outputs = open(out.to_open(py), AcceptedDTypes::Any, Access::default(), out_names)?.views;
        overlap::check(py, &inputs, &outputs, false, names, out_names)
    })
}

/// Whether two arrays have the same elements at the same addresses: memory, dtype, shape and strides.
#[pyfunction]
#[pyo3(signature = (array, other, /))]
pub fn is_same_memory<'py>(
    py: Python<'py>,
    array: &Bound<'py, PyAny>,
    other: &Bound<'py, PyAny>,
) -> PyResult<bool> {
    entry_that_reads(py, || {
        let cache = &mut DTypeCache::default();
        let mut view = |array: &Bound<'py, PyAny>| {
            View::new(array.clone(), AcceptedDTypes::Any, cache, || "array".into())
        };
        let (view, other) = (view(array)?, view(other)?);
        Ok(view.is_same_memory(&other))
    })
}
