//! Errors on their way to Python: the one place that chooses exception types, and where a call is entered.

use super::arrays::argument_name::ArgumentName;
use super::reserve;
use crate::allocation::OutOfMemory;
use crate::error::Error;
use pyo3::exceptions::{
    PyArithmeticError, PyIndexError, PyMemoryError, PyRuntimeError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::{PyTypeInfo, ffi};
use std::panic::{AssertUnwindSafe, catch_unwind};

pyo3::create_exception!(
    fastclip,
    NonFiniteError,
    PyArithmeticError,
    "NaN or infinity among the inputs of a call with ``on_nonfinite=\"raise\"``; nothing was written."
);

/// From this many bytes on, a call looks for signals between its passes.
const SIGNAL_BYTES: usize = 8 << 20;

/// An exception of this type. It is made at once, by calls that answer with a `MemoryError` where memory runs out:
/// `PyO3` makes exceptions later, and aborts then.
pub fn exception<E: PyTypeInfo>(py: Python<'_>, message: &str) -> PyErr {
    // SAFETY: the text is as long as the string; the error indicator is set by one of the two calls.
    unsafe {
        let text = ffi::PyUnicode_FromStringAndSize(message.as_ptr().cast(), message.len().cast_signed());
        if !text.is_null() {
            ffi::PyErr_SetObject(E::type_object_raw(py).cast(), text);
            ffi::Py_DECREF(text);
        }
    }
    PyErr::fetch(py)
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| match error {
            Error::Type(message) => exception::<PyTypeError>(py, &message),
            Error::Value(message) => exception::<PyValueError>(py, &message),
            Error::NonFinite(message) => exception::<NonFiniteError>(py, &message),
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

/// The exception of a call for which the reserve had to be used.
fn memory_error(py: Python<'_>) -> PyErr {
    // SAFETY: sets an exception that Python has ready.
    unsafe { ffi::PyErr_NoMemory() };
    PyErr::fetch(py)
}

/// Refuses to go on if memory has run out in this call. Whatever writes asks this right before it does.
pub fn check_memory(py: Python<'_>) -> PyResult<()> {
    if reserve::was_used() { Err(memory_error(py)) } else { Ok(()) }
}

/// The exception of a panic.
fn failure(py: Python<'_>, panic: &(dyn std::any::Any + Send)) -> PyErr {
    // `PyO3` panics so where an object cannot be made.
    let texts = ["Python API call failed", "PyObject pointer is null"];
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
    if reserve::was_used() || texts.iter().any(|known| text.contains(known)) {
        // The error that Python has set is replaced.
        return memory_error(py);
    }
    exception::<PyRuntimeError>(py, "fastclip failed internally (a defect: please report it)")
}

/// Runs a call from Python. A panic in it, which would be a defect, becomes a `RuntimeError` and not an exception that
/// `except Exception` lets through; if memory ran out, a `MemoryError`.
pub fn entry<R>(py: Python<'_>, call: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    // A handler of a signal may make a call in the middle of another.
    let outer = reserve::mark(false);
    let result = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(failure(py, &*panic)));
    reserve::mark(outer);
    result
}

/// As [`entry`], of a call that writes nothing but its result.
pub fn entry_that_reads<R>(py: Python<'_>, call: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    entry(py, || {
        let result = call()?;
        check_memory(py)?;
        Ok(result)
    })
}

/// Runs `work` without the interpreter.
pub fn detached<R: Send>(py: Python<'_>, work: impl FnOnce() -> PyResult<R> + Send) -> PyResult<R> {
    py.detach(|| catch_unwind(AssertUnwindSafe(work))).unwrap_or_else(|panic| Err(failure(py, &*panic)))
}

/// What a call does between measuring and writing: it refuses to go on if memory has run out, and lets a pending signal
/// be raised, if the pass was long enough for somebody to have lost patience.
pub fn before_writing(bytes: usize) -> PyResult<()> {
    if reserve::was_used() {
        Python::attach(check_memory)?;
    }
    #[allow(
        clippy::redundant_closure_for_method_calls,
        reason = "the method is not general enough in its lifetime"
    )]
    if bytes >= SIGNAL_BYTES { Python::attach(|py| py.check_signals()) } else { Ok(()) }
}

/// The error of the policy that raises: it names the entries that hold NaN or infinity, `bad`.
pub fn refuse_nonfinite(bad: impl Iterator<Item = usize>, label: ArgumentName<'_, '_>, norm: f64) -> Error {
    const SHOWN: usize = 8;
    let (mut shown, mut count) = (String::new(), 0);
    for index in bad {
        if count < SHOWN {
            shown += if count == 0 { "" } else { ", " };
            shown += &label.of(index);
        }
        count += 1;
    }
    let argument = label.argument();
    Error::NonFinite(match count {
        0 => format!(
            "the norm of {argument} (use_norm, or that of all processes) is {norm}; nothing was written"
        ),
        1..=SHOWN => format!("NaN or infinity in {shown}; nothing was written"),
        _ => format!("NaN or infinity in {count} entries of {argument}: {shown}, …; nothing was written"),
    })
}
