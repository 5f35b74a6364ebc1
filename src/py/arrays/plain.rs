//! Quick checks whether arguments are plain arrays: exactly `ndarray`, in native byte order. These need no conversion in
//! Python.

use super::ndarray_type::is_exactly_array;
use crate::py::call::entry_that_reads;
use crate::py::objects;
use numpy::npyffi::PyArrayObject;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use pyo3::{Borrowed, ffi};

/// Whether an object is exactly an `ndarray`, not of a subclass, in native byte order.
pub fn is_plain_array(object: &Bound<'_, PyAny>) -> bool {
    is_exactly_array(object) && {
        // SAFETY: the object is a live array, and so its descriptor is alive.
        let order = unsafe { (*(*object.as_ptr().cast::<PyArrayObject>()).fields.descr).fields.byteorder };
        !matches!(order as u8, b'>' | b'<')
    }
}

/// Whether an entry of a list is a plain array or None.
fn is_plain_entry(entry: &Bound<'_, PyAny>) -> bool {
    is_plain_array(entry) || entry.is_none()
}

/// Whether `tensors` is a list or tuple of plain arrays and None.
#[pyfunction]
#[pyo3(signature = (tensors, /))]
pub fn is_plain(tensors: &Bound<'_, PyAny>) -> bool {
    if let Ok(list) = tensors.cast_exact::<PyList>() {
        list.iter().all(|entry| is_plain_entry(&entry))
    } else if let Ok(tuple) = tensors.cast_exact::<PyTuple>() {
        tuple.iter_borrowed().all(|entry| is_plain_entry(&entry))
    } else {
        false
    }
}

/// Returns a new list of the entries of a list or tuple, if they are plain arrays and None, which need no conversion in
/// Python; else None. The caller's list is read once, here.
#[pyfunction]
#[pyo3(signature = (tensors, /))]
pub fn plain_list<'py>(py: Python<'py>, tensors: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyList>>> {
    entry_that_reads(py, || {
        if !tensors.is_exact_instance_of::<PyList>() && !tensors.is_exact_instance_of::<PyTuple>() {
            return Ok(None);
        }
        let list = objects::copy_to_list(tensors)?;
        // SAFETY: no other code has a reference to the new list, so its entries stay alive.
        let entry = |index| unsafe { Borrowed::from_ptr(py, ffi::PyList_GetItem(list.as_ptr(), index)) };
        let is_plain = (0..list.len().cast_signed()).all(|index| is_plain_entry(&entry(index)));
        Ok(is_plain.then_some(list))
    })
}
