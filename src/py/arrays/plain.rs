//! Quick checks whether arguments are plain arrays: exactly `ndarray`, in native byte order. These need no conversion in
//! Python.

use super::dtypes::SWAPPED;
use super::ndarray_type::is_exactly_array;
use numpy::npyffi::PyArrayObject;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// Whether an object is exactly an `ndarray`, not of a subclass, in native byte order.
#[inline]
pub fn is_plain_array(object: &Bound<'_, PyAny>) -> bool {
    is_exactly_array(object) && is_native(object)
}

/// Whether an array, or an instance of a subclass, is in native byte order.
#[inline]
pub fn is_native(array: &Bound<'_, PyAny>) -> bool {
    // SAFETY: the object is a live array, as the caller checked, and so its descriptor is alive.
    let order = unsafe { (*(*array.as_ptr().cast::<PyArrayObject>()).fields.descr).fields.byteorder };
    order as u8 != SWAPPED
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
