//! The quick checks whether arguments are plain arrays, which need no conversion in Python.

use super::ndarray_type::is_exactly_array;
use crate::py::objects;
use crate::py::raise::entry_that_reads;
use numpy::npyffi::PyArrayObject;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use pyo3::{Borrowed, ffi};

/// Whether an object is just an array (of no subclass), in native byte order.
pub fn is_plain_array(object: &Bound<'_, PyAny>) -> bool {
    is_exactly_array(object) && {
        // SAFETY: the object is an array, alive, and so is its descriptor.
        let order = unsafe { (*(*object.as_ptr().cast::<PyArrayObject>()).fields.descr).fields.byteorder };
        !matches!(order as u8, b'>' | b'<')
    }
}

/// Whether an entry is a plain array or None.
fn is_plain_entry(entry: &Bound<'_, PyAny>) -> bool {
    is_plain_array(entry) || entry.is_none()
}

/// Whether `tensors` is a list or tuple of plain arrays in native byte order, and None.
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

/// The entries of a list or tuple as a list of our own, if they are plain arrays in native byte order, and None, and so
/// need no looking into from Python; else None. The caller's list is read once, here.
#[pyfunction]
#[pyo3(signature = (tensors, /))]
pub fn plain_list<'py>(py: Python<'py>, tensors: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyList>>> {
    entry_that_reads(py, || {
        if !tensors.is_exact_instance_of::<PyList>() && !tensors.is_exact_instance_of::<PyTuple>() {
            return Ok(None);
        }
        let own = objects::list_of(tensors)?;
        // SAFETY: a new list that nobody else has: its entries stay.
        let entry = |at| unsafe { Borrowed::from_ptr(py, ffi::PyList_GetItem(own.as_ptr(), at)) };
        let plain = (0..own.len().cast_signed()).all(|at| is_plain_entry(&entry(at)));
        Ok(plain.then_some(own))
    })
}
