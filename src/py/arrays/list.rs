//! Lists of arrays.

use super::argument_name::ArgumentName;
use super::dtypes::{AcceptedDTypes, DTypeCache};
use super::view::View;
use crate::allocation::{reserve, with_capacity};
use crate::error::Error;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// Looks at every entry of a list or tuple.
pub fn views<'py>(
    tensors: &Bound<'py, PyAny>,
    takes: AcceptedDTypes,
    label: ArgumentName<'_, '_>,
) -> PyResult<Vec<Option<View<'py>>>> {
    let mut known = DTypeCache::default();
    let mut found = with_capacity(tensors.len().unwrap_or(0))?;
    let mut look = |(index, entry): (usize, Bound<'py, PyAny>)| -> PyResult<()> {
        // The list may grow while a type is looked at for the first time.
        reserve(&mut found, 1)?;
        found.push(if entry.is_none() {
            None
        } else {
            Some(View::new(entry, takes, &mut known, || label.of(index))?)
        });
        Ok(())
    };
    if let Ok(list) = tensors.cast::<PyList>() {
        for index in 0..list.len() {
            // SAFETY: a list, whose entries are borrowed until the next line takes a reference.
            let entry = unsafe { ffi::PyList_GetItem(list.as_ptr(), index.cast_signed()) };
            if entry.is_null() {
                // The list has become shorter while a type was looked at for the first time.
                drop(PyErr::take(tensors.py()));
                break;
            }
            // SAFETY: a live object.
            look((index, unsafe { Bound::from_borrowed_ptr(tensors.py(), entry) }))?;
        }
    } else if let Ok(tuple) = tensors.cast::<PyTuple>() {
        tuple.iter().enumerate().try_for_each(&mut look)?;
    } else {
        return Err(Error::Type("tensors must be a list or a tuple of arrays".into()).into());
    }
    Ok(found)
}
