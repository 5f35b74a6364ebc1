//! NumPy's `ndarray` type.

use numpy::npyffi::{self, NpyTypes};
use pyo3::ffi;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The type object of `ndarray`; null before [`load_numpy`].
static NDARRAY: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(std::ptr::null_mut());

/// Loads NumPy's C API and caches the type object of `ndarray`. Called when the module is initialised.
pub fn load_numpy(py: Python<'_>) {
    // SAFETY: reads a static entry of NumPy's API table.
    let array = unsafe { npyffi::get_type_object(py, NpyTypes::PyArray_Type) };
    NDARRAY.store(array, Ordering::Relaxed);
}

/// Whether the type of an object is `ndarray`, not a subclass.
pub fn is_exactly_array(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: reads the type of a live object.
    unsafe { ffi::Py_TYPE(object.as_ptr()) == NDARRAY.load(Ordering::Relaxed) }
}

/// Whether an object is an `ndarray` or an instance of a subclass.
pub fn is_array(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: reads the type of a live object.
    is_exactly_array(object) || unsafe { npyffi::PyArray_Check(object.py(), object.as_ptr()) != 0 }
}
