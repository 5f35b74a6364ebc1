//! New NumPy arrays over existing memory.

use numpy::npyffi::{self, NpyTypes, PY_ARRAY_API, PyArrayObject};
use pyo3::prelude::*;
use std::os::raw::c_int;

/// Creates an array over existing memory, with a dtype given by NumPy's type number. Without `strides` it is contiguous,
/// in C order or, where `flags` say so, in Fortran order.
///
/// # Safety
///
/// The memory must hold elements of that dtype and shape at these strides for as long as `owner` lives, which the array
/// keeps alive.
pub unsafe fn array_over<'py>(
    owner: Bound<'py, PyAny>,
    pointer: *mut u8,
    type_number: c_int,
    shape: &[usize],
    strides: Option<&[isize]>,
    flags: c_int,
) -> PyResult<Bound<'py, PyAny>> {
    let py = owner.py();
    // SAFETY: the descriptor is a new reference, which `PyArray_NewFromDescr` steals, also if it fails. Shape and strides
    // are copied. `PyArray_SetBaseObject` steals the reference to the owner, also if it fails.
    unsafe {
        let descr = PY_ARRAY_API.PyArray_DescrFromType(py, type_number);
        if descr.is_null() {
            return Err(PyErr::fetch(py));
        }
        let array = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            npyffi::get_type_object(py, NpyTypes::PyArray_Type),
            descr,
            shape.len() as c_int,
            shape.as_ptr().cast_mut().cast(),
            strides.map_or(std::ptr::null_mut(), |strides| strides.as_ptr().cast_mut()),
            pointer.cast(),
            flags,
            std::ptr::null_mut(),
        );
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        let base = owner.into_ptr();
        if PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast::<PyArrayObject>(), base) < 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(array)
    }
}
