//! Snapshots of the arrays in a list that the Python code of `fastclip` has made.

use super::argument_name::ArgumentName;
use super::dtypes::AcceptedDTypes;
use super::view::View;
use crate::py::objects;
use crate::py::tensors::door::{Access, open};
use pyo3::prelude::*;

/// Returns a view of each array in a list or tuple; None for entries that are None.
pub fn views<'py>(
    arrays: &Bound<'py, PyAny>,
    accepted: AcceptedDTypes,
    name: ArgumentName<'_>,
) -> PyResult<Vec<Option<View<'py>>>> {
    Ok(open(&objects::copy_to_list(arrays)?, accepted, Access::default(), name)?.views)
}
