//! Exceptions: the one module that chooses exception types.

use super::arrays::argument_name::ArgumentName;
use super::norm_scalar::norm_array;
use super::{objects, reserve};
use crate::allocation::OutOfMemory;
use crate::error::Error;
use pyo3::exceptions::{
    PyArithmeticError, PyIndexError, PyMemoryError, PyRuntimeError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::{PyTypeInfo, ffi};

pyo3::create_exception!(
    fastclip,
    NonFiniteError,
    PyArithmeticError,
    "NaN or infinity among the inputs of a call with ``on_nonfinite=\"raise\"``; nothing was written.

Attributes
----------
norms : ndarray of float64, or None
    The norm of each tensor that is not None, in their order: NaN or infinite for the tensors that the message names. An
    optimizer has divided them by its loss scale. None if the tensors were not measured, because the call was passed
    their norm (`use_norm`)."
);

/// Creates an exception at once, by calls that raise a `MemoryError` where memory runs out. (`PyO3` creates exceptions
/// later, and aborts the process then.)
pub fn exception<E: PyTypeInfo>(py: Python<'_>, message: &str) -> PyErr {
    let text = match objects::string(py, message) {
        Ok(text) => text,
        Err(error) => return error,
    };
    // SAFETY: both objects are alive. The call sets the error indicator.
    unsafe { ffi::PyErr_SetObject(E::type_object_raw(py).cast(), text.as_ptr()) };
    PyErr::fetch(py)
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| match error {
            Error::Type(message) => exception::<PyTypeError>(py, &message),
            Error::Value(message) => exception::<PyValueError>(py, &message),
            Error::Index(message) => exception::<PyIndexError>(py, &message),
            Error::Memory(error) => exception::<PyMemoryError>(py, &error.to_string()),
        })
    }
}

impl From<OutOfMemory> for PyErr {
    fn from(error: OutOfMemory) -> Self {
        Error::Memory(error).into()
    }
}

/// Returns the exception of a call that used the memory reserve.
fn memory_error(py: Python<'_>) -> PyErr {
    // SAFETY: sets an exception that Python has allocated before.
    unsafe { ffi::PyErr_NoMemory() };
    PyErr::fetch(py)
}

/// Raises a `MemoryError` if the memory reserve was used in this call. A call that writes checks this right before it
/// writes.
pub fn check_memory(py: Python<'_>) -> PyResult<()> {
    if reserve::was_used() { Err(memory_error(py)) } else { Ok(()) }
}

/// Returns the exception of a panic.
pub fn panic_error(py: Python<'_>, panic: &(dyn std::any::Any + Send)) -> PyErr {
    // The messages of `PyO3`'s panics where an object cannot be created.
    const PYO3_OUT_OF_MEMORY: [&str; 2] = ["Python API call failed", "PyObject pointer is null"];
    let message = panic.downcast_ref::<&str>().copied();
    let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
    if reserve::was_used() || PYO3_OUT_OF_MEMORY.iter().any(|text| message.contains(text)) {
        // Replaces the error that Python has set.
        return memory_error(py);
    }
    exception::<PyRuntimeError>(py, "fastclip failed internally (a defect: please report it)")
}

/// Returns the error of `on_nonfinite="raise"`, or the `MemoryError` of an allocation for it. It names the entries that
/// contain NaN or infinity, whose indices are `nonfinite`. `norms` are those of the tensors, if they were measured.
pub fn nonfinite_error(
    py: Python<'_>,
    nonfinite: impl Iterator<Item = usize>,
    name: ArgumentName<'_>,
    norm: f64,
    norms: Option<&[f64]>,
) -> PyErr {
    const SHOWN: usize = 8;
    let (mut shown, mut count) = (String::new(), 0);
    for index in nonfinite {
        if count < SHOWN {
            shown += if count == 0 { "" } else { ", " };
            shown += &name.entry(index);
        }
        count += 1;
    }
    let argument = name.argument();
    let message = match count {
        0 => format!(
            "the norm of {argument} (use_norm, norm, or that of all processes) is {norm}; nothing was written"
        ),
        1..=SHOWN => format!("NaN or infinity in {shown}; nothing was written"),
        _ => format!("NaN or infinity in {count} entries of {argument}: {shown}, …; nothing was written"),
    };
    nonfinite_exception(py, &message, norms).unwrap_or_else(|error| error)
}

/// Creates a [`NonFiniteError`].
fn nonfinite_exception(py: Python<'_>, message: &str, norms: Option<&[f64]>) -> PyResult<PyErr> {
    let class = NonFiniteError::type_object_raw(py).cast();
    let arguments = objects::tuple(py, [objects::string(py, message)?])?;
    // SAFETY: the call takes a class and a tuple, and returns a new reference, or null with an error set.
    let error =
        unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyObject_CallObject(class, arguments.as_ptr()))? };
    if let Some(norms) = norms {
        let norms = norm_array(py, norms)?;
        // SAFETY: both objects are alive, and the name ends with a zero byte.
        if unsafe { ffi::PyObject_SetAttrString(error.as_ptr(), c"norms".as_ptr(), norms.as_ptr()) } < 0 {
            return Err(PyErr::fetch(py));
        }
    }
    check_memory(py)?;
    // SAFETY: the exception is an instance of the class.
    unsafe { ffi::PyErr_SetObject(class, error.as_ptr()) };
    Ok(PyErr::fetch(py))
}
