//! Errors on their way to Python: the one place that chooses exception types.

use crate::error::Error;
use pyo3::exceptions::{PyArithmeticError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

pyo3::create_exception!(
    fastclip,
    NonFiniteError,
    PyArithmeticError,
    "NaN or infinity among the inputs of a call with ``on_nonfinite=\"raise\"``; nothing was written."
);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Type(_) => PyTypeError::new_err(message),
            Error::Value(_) => PyValueError::new_err(message),
            Error::NonFinite(_) => NonFiniteError::new_err(message),
        }
    }
}

/// Runs `work` without the interpreter. A panic in it, which would be a defect, becomes a
/// `RuntimeError` and not an exception that `except Exception` lets through.
pub fn detached<R: Send>(py: Python<'_>, work: impl FnOnce() -> PyResult<R> + Send) -> PyResult<R> {
    py.detach(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))).unwrap_or_else(|_| {
        Err(PyRuntimeError::new_err("fastclip failed internally (a defect: please report it)"))
    })
}
