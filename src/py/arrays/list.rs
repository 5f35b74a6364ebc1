//! Snapshots of the arrays in a list or tuple.

use super::argument_name::ArgumentName;
use super::dtypes::{AcceptedDTypes, DTypeCache};
use super::view::View;
use crate::allocation::{reserve, with_capacity};
use crate::error::Error;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// Returns a view of each array in a list or tuple; None for entries that are None.
pub fn views<'py>(
    tensors: &Bound<'py, PyAny>,
    accepted: AcceptedDTypes,
    name: ArgumentName<'_, '_>,
) -> PyResult<Vec<Option<View<'py>>>> {
    let mut cache = DTypeCache::default();
    let mut views = with_capacity(tensors.len().unwrap_or(0))?;
    let mut read = |(index, entry): (usize, Bound<'py, PyAny>)| -> PyResult<()> {
        // The list may grow while Python code runs, to recognise a dtype that is not cached.
        reserve(&mut views, 1)?;
        views.push(if entry.is_none() {
            None
        } else {
            Some(View::new(entry, accepted, &mut cache, || name.entry(index))?)
        });
        Ok(())
    };
    if let Ok(list) = tensors.cast::<PyList>() {
        for index in 0..list.len() {
            // SAFETY: `list` is a list. The entry is borrowed, and the next unsafe block takes a reference before
            // other code runs.
            let entry = unsafe { ffi::PyList_GetItem(list.as_ptr(), index.cast_signed()) };
            if entry.is_null() {
                // The list was shortened while Python code ran, to recognise a dtype that is not cached.
                drop(PyErr::take(tensors.py()));
                break;
            }
            // SAFETY: `entry` is a live object.
            read((index, unsafe { Bound::from_borrowed_ptr(tensors.py(), entry) }))?;
        }
    } else if let Ok(tuple) = tensors.cast::<PyTuple>() {
        tuple.iter().enumerate().try_for_each(&mut read)?;
    } else {
        return Err(Error::Type("tensors must be a list or a tuple of arrays".into()).into());
    }
    Ok(views)
}
