//! The overlap check for arrays that `fastclip` reads in Python.

use crate::py::arrays::argument_name::ArgumentNames;
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::list::views;
use crate::py::arrays::overlap;
use crate::py::call::entry_that_reads;
use pyo3::prelude::*;

/// Raises if an output shares memory with another output or with one of `tensors`.
#[pyfunction]
#[pyo3(signature = (tensors, out, names, /))]
pub fn check_no_overlap<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    out: &Bound<'py, PyAny>,
    names: ArgumentNames<'py>,
) -> PyResult<()> {
    entry_that_reads(py, || {
        let inputs = views(tensors, AcceptedDTypes::Any, names.input())?;
        let outputs = views(out, AcceptedDTypes::Any, names.output())?;
        overlap::check(py, &inputs, &outputs, false, names.input(), names.output())
    })
}
