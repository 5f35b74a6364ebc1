//! The overlap check, for arrays that `fastclip` reads itself.

use crate::py::arrays::argument_name::ArgumentNames;
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::list::views;
use crate::py::arrays::overlap;
use crate::py::raise::entry_that_reads;
use pyo3::prelude::*;

/// Refuses outputs that share memory with other arrays that a call reads.
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
