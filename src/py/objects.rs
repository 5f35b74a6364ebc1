//! Python objects made so that running out of memory is an error: `PyO3`'s own constructors panic.

use super::raise::check_memory;
use crate::allocation::{reserve, with_capacity};
use crate::error::Error;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// A float.
pub fn float(py: Python<'_>, value: f64) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: the call gives a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyFloat_FromDouble(value)) }
}

/// A whole number.
pub fn integer(py: Python<'_>, value: i32) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: the call gives a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyLong_FromLong(value.into())) }
}

/// A position in a list.
pub fn position(py: Python<'_>, value: usize) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: the call gives a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyLong_FromSize_t(value)) }
}

/// A list of `count` items.
///
/// # Errors
///
/// Those of the items, and if there are fewer.
pub fn list<'py>(
    py: Python<'py>,
    count: usize,
    items: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: the call gives a new reference, or null with an error set.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyList_New(count.cast_signed()))? };
    let mut filled = 0;
    for (at, item) in items.take(count).enumerate() {
        // SAFETY: a new list that nobody else has changed, of so many entries that are not set; the call takes over the
        // reference.
        if unsafe { ffi::PyList_SetItem(made.as_ptr(), at.cast_signed(), item?.into_ptr()) } < 0 {
            return Err(PyErr::fetch(py));
        }
        filled = at + 1;
    }
    if filled != count {
        return Err(Error::Value(format!("fastclip._core: {filled} items for a list of {count}")).into());
    }
    Ok(made.cast_into::<PyList>()?)
}

/// What a list or tuple holds, as a list of our own.
///
/// # Errors
///
/// If it is neither.
pub fn list_of<'py>(items: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: both calls give a new list, or null with an error set; the objects are what they take. A list's entries
    // are taken as they are stored, whatever a subclass makes of them.
    let list = unsafe {
        let list = if items.is_instance_of::<PyList>() {
            ffi::PyList_GetSlice(items.as_ptr(), 0, isize::MAX)
        } else if items.is_instance_of::<PyTuple>() {
            ffi::PySequence_List(items.as_ptr())
        } else {
            return Err(Error::Type("tensors must be a list or a tuple of arrays".into()).into());
        };
        Bound::from_owned_ptr_or_err(items.py(), list)?
    };
    Ok(list.cast_into::<PyList>()?)
}

/// A tuple of these items.
pub fn tuple<'py, const N: usize>(
    py: Python<'py>,
    items: [Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyTuple>> {
    // SAFETY: the call gives a new reference, or null with an error set.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyTuple_New(N.cast_signed()))? };
    for (at, item) in items.into_iter().enumerate() {
        // SAFETY: a new tuple of so many entries that are not set; the call takes over the reference.
        if unsafe { ffi::PyTuple_SetItem(made.as_ptr(), at.cast_signed(), item.into_ptr()) } < 0 {
            return Err(PyErr::fetch(py));
        }
    }
    Ok(made.cast_into::<PyTuple>()?)
}

/// The items of a list or tuple as Rust values.
pub fn extract<'py, T>(
    items: &Bound<'py, PyAny>,
    one: impl Fn(&Bound<'py, PyAny>) -> PyResult<T>,
) -> PyResult<Vec<T>> {
    let py = items.py();
    let mut found = with_capacity(items.len()?)?;
    let mut push = |item: Bound<'py, PyAny>| {
        reserve(&mut found, 1)?;
        found.push(one(&item)?);
        check_memory(py)
    };
    if let Ok(list) = items.cast::<PyList>() {
        list.iter().try_for_each(&mut push)?;
    } else if let Ok(tuple) = items.cast::<PyTuple>() {
        tuple.iter().try_for_each(&mut push)?;
    } else {
        return Err(Error::Type("fastclip._core takes lists and tuples".into()).into());
    }
    Ok(found)
}

/// A float64 of a list.
pub fn number(item: &Bound<'_, PyAny>) -> PyResult<f64> {
    item.extract()
}
