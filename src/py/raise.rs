//! Errors on their way to Python: the one place that chooses exception types.

use super::view::Label;
use crate::error::Error;
use pyo3::exceptions::{PyArithmeticError, PyIndexError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

pyo3::create_exception!(
    fastclip,
    NonFiniteError,
    PyArithmeticError,
    "NaN or infinity among the inputs of a call with ``on_nonfinite=\"raise\"``; nothing was written."
);

/// From this many bytes on, a call looks for signals between its passes.
const SIGNAL_BYTES: usize = 8 << 20;

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Type(_) => PyTypeError::new_err(message),
            Error::Value(_) => PyValueError::new_err(message),
            Error::NonFinite(_) => NonFiniteError::new_err(message),
            Error::Index(_) => PyIndexError::new_err(message),
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

/// Lets a pending signal be raised, if the pass was long enough for somebody to have lost patience.
pub fn check_signals(bytes: usize) -> PyResult<()> {
    #[allow(
        clippy::redundant_closure_for_method_calls,
        reason = "the method is not general enough in its lifetime"
    )]
    if bytes >= SIGNAL_BYTES { Python::attach(|py| py.check_signals()) } else { Ok(()) }
}

/// The error of the policy that raises: it names the entries that are not finite.
pub fn refuse_nonfinite(bad: impl Iterator<Item = usize>, label: Label<'_, '_>, norm: f64) -> Error {
    let bad: Vec<String> = bad.map(|index| label.of(index)).collect();
    let (argument, count) = (label.argument(), bad.len());
    let shown = bad.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
    Error::NonFinite(match count {
        0 => format!(
            "the norm of {argument} (use_norm, or that of all processes) is {norm}; nothing was written"
        ),
        1..=8 => format!("NaN or infinity in {shown}; nothing was written"),
        _ => format!("NaN or infinity in {count} entries of {argument}: {shown}, …; nothing was written"),
    })
}
