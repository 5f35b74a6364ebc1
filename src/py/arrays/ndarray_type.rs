//! The type object of NumPy's arrays.

use numpy::npyffi::{self, NpyTypes};
use pyo3::ffi;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicPtr, Ordering};

/// NumPy's type object of arrays, null before [`load_numpy`].
static NDARRAY: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(std::ptr::null_mut());

/// Looks NumPy's C interface up.
pub fn load_numpy(py: Python<'_>) {
    // SAFETY: looks up a static of NumPy's.
    let array = unsafe { npyffi::get_type_object(py, NpyTypes::PyArray_Type) };
    NDARRAY.store(array, Ordering::Relaxed);
}

/// Whether an object is exactly an array, of no subclass.
pub fn is_exactly_array(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: reads the type of a live object.
    unsafe { ffi::Py_TYPE(object.as_ptr()) == NDARRAY.load(Ordering::Relaxed) }
}

/// Whether an object is an array, perhaps of a subclass.
pub fn is_array(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: looks at the type of a live object.
    is_exactly_array(object) || unsafe { npyffi::PyArray_Check(object.py(), object.as_ptr()) != 0 }
}
