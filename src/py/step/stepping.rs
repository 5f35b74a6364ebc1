//! The mark of an optimizer that is in the middle of a step.

use crate::engine::process;
use crate::py::raise::exception;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

/// The generation of the process that is in a step, plus one; 0 if no process is. A step that a signal handler begins in
/// the middle of another one is refused. A process that is forked in the middle of a step has another generation, and
/// may begin one.
#[derive(Default)]
pub struct Stepping(AtomicU64);

impl Stepping {
    /// Begins a step, which ends when the guard is dropped.
    ///
    /// # Errors
    ///
    /// If another step is in progress, which a signal handler may have interrupted.
    pub fn begin(&self, py: Python<'_>) -> PyResult<StepGuard<'_>> {
        let now = process::generation() + 1;
        if self.0.swap(now, Ordering::Relaxed) == now {
            return Err(reentrance_error(py, "apply_gradients"));
        }
        Ok(StepGuard(self))
    }

    /// Raises if a step is in progress. `what` is the name of the method that is refused.
    ///
    /// # Errors
    ///
    /// As [`Self::begin`].
    pub fn refuse(&self, py: Python<'_>, what: &str) -> PyResult<()> {
        if self.0.load(Ordering::Relaxed) == process::generation() + 1 {
            return Err(reentrance_error(py, what));
        }
        Ok(())
    }
}

/// A step in progress.
pub struct StepGuard<'a>(&'a Stepping);

impl Drop for StepGuard<'_> {
    fn drop(&mut self) {
        self.0.0.store(0, Ordering::Relaxed);
    }
}

/// The error of a call that is not allowed in the middle of a step.
fn reentrance_error(py: Python<'_>, what: &str) -> PyErr {
    exception::<PyRuntimeError>(
        py,
        &format!("{what} was called in the middle of a step of the same optimizer"),
    )
}
