//! Python objects, created by calls that report failure: `PyO3`'s own constructors panic where memory runs out.

use super::raise::check_memory;
use crate::allocation::{reserve, with_capacity};
use crate::error::Error;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList, PyTuple};

/// Creates a Python float.
pub fn float(py: Python<'_>, value: f64) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: the call returns a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyFloat_FromDouble(value)) }
}

/// Creates a Python int.
pub fn int(py: Python<'_>, value: i32) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: the call returns a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyLong_FromLong(value.into())) }
}

/// Creates a Python int that is an index.
pub fn index(py: Python<'_>, value: usize) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: the call returns a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyLong_FromSize_t(value)) }
}

/// Returns a Python bool. Nothing is allocated.
pub fn bool(py: Python<'_>, value: bool) -> Bound<'_, PyAny> {
    PyBool::new(py, value).to_owned().into_any()
}

/// Creates a Python string.
pub fn string<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: pointer and length are those of the text. The call returns a new reference, or null with an error set.
    unsafe {
        let string = ffi::PyUnicode_FromStringAndSize(text.as_ptr().cast(), text.len().cast_signed());
        Bound::from_owned_ptr_or_err(py, string)
    }
}

/// Creates a list of `count` items.
///
/// # Errors
///
/// The first error of an item; and a `ValueError` if there are fewer than `count` items.
pub fn list<'py>(
    py: Python<'py>,
    count: usize,
    items: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: the call returns a new reference, or null with an error set.
    let list = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyList_New(count.cast_signed()))? };
    let mut filled = 0;
    for (index, item) in items.take(count).enumerate() {
        // SAFETY: the list is new, no other code has changed it, and it has `count` entries that are not set. The call
        // steals the reference to the item.
        if unsafe { ffi::PyList_SetItem(list.as_ptr(), index.cast_signed(), item?.into_ptr()) } < 0 {
            return Err(PyErr::fetch(py));
        }
        filled = index + 1;
    }
    if filled != count {
        return Err(Error::Value(format!("fastclip._core: {filled} items for a list of {count}")).into());
    }
    Ok(list.cast_into::<PyList>()?)
}

/// Copies the entries of a list or tuple to a new list.
///
/// # Errors
///
/// A `TypeError` for any other object.
pub fn copy_to_list<'py>(items: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: both calls return a new list, or null with an error set, and get an object of the type that they need.
    // The entries of a list are copied as they are stored, also if a subclass overrides methods.
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

/// Copies the entries of any sequence or iterable of Python's own types to a new list.
pub fn sequence_to_list<'py>(items: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: the call returns a new list, or null with an error set.
    let list = unsafe { Bound::from_owned_ptr_or_err(items.py(), ffi::PySequence_List(items.as_ptr()))? };
    Ok(list.cast_into::<PyList>()?)
}

/// Copies the entries of a list to a new tuple.
pub fn list_to_tuple<'py>(items: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyTuple>> {
    // SAFETY: the call returns a new tuple, or null with an error set.
    let tuple = unsafe { Bound::from_owned_ptr_or_err(items.py(), ffi::PyList_AsTuple(items.as_ptr()))? };
    Ok(tuple.cast_into::<PyTuple>()?)
}

/// Creates an empty dict.
pub fn dict(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    // SAFETY: the call returns a new dict, or null with an error set.
    let dict = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyDict_New())? };
    Ok(dict.cast_into::<PyDict>()?)
}

/// Returns a new list of the keys of a dict.
pub fn dict_keys<'py>(dict: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: the call returns a new list, or null with an error set.
    let keys = unsafe { Bound::from_owned_ptr_or_err(dict.py(), ffi::PyDict_Keys(dict.as_ptr()))? };
    Ok(keys.cast_into::<PyList>()?)
}

/// Returns a new list of the values of a dict.
pub fn dict_values<'py>(dict: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: the call returns a new list, or null with an error set.
    let values = unsafe { Bound::from_owned_ptr_or_err(dict.py(), ffi::PyDict_Values(dict.as_ptr()))? };
    Ok(values.cast_into::<PyList>()?)
}

/// Creates a tuple.
pub fn tuple<'py, const N: usize>(
    py: Python<'py>,
    items: [Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyTuple>> {
    // SAFETY: the call returns a new reference, or null with an error set.
    let tuple = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyTuple_New(N.cast_signed()))? };
    for (index, item) in items.into_iter().enumerate() {
        // SAFETY: the tuple is new, and has N entries that are not set. The call steals the reference to the item.
        if unsafe { ffi::PyTuple_SetItem(tuple.as_ptr(), index.cast_signed(), item.into_ptr()) } < 0 {
            return Err(PyErr::fetch(py));
        }
    }
    Ok(tuple.cast_into::<PyTuple>()?)
}

/// Converts the items of a list or tuple to Rust values.
///
/// # Errors
///
/// The first error of `convert`; and a `TypeError` for an object that is neither a list nor a tuple.
pub fn extract<'py, T>(
    items: &Bound<'py, PyAny>,
    convert: impl Fn(&Bound<'py, PyAny>) -> PyResult<T>,
) -> PyResult<Vec<T>> {
    let py = items.py();
    let mut values = with_capacity(items.len()?)?;
    let mut push = |item: Bound<'py, PyAny>| {
        reserve(&mut values, 1)?;
        values.push(convert(&item)?);
        check_memory(py)
    };
    if let Ok(list) = items.cast::<PyList>() {
        list.iter().try_for_each(&mut push)?;
    } else if let Ok(tuple) = items.cast::<PyTuple>() {
        tuple.iter().try_for_each(&mut push)?;
    } else {
        return Err(Error::Type("fastclip._core takes lists and tuples".into()).into());
    }
    Ok(values)
}

/// Converts a Python number to a float64, see [`extract`].
pub fn to_f64(item: &Bound<'_, PyAny>) -> PyResult<f64> {
    item.extract()
}
