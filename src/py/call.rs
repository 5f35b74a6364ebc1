//! Running a call from Python: panics, memory that runs out, signals, and the release of the interpreter.

use super::raise::{check_memory, panic_error};
use super::reserve;
use super::tensors::opened::Lent;
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bytes of a pass from which on a call checks for signals between its passes.
pub const SIGNAL_BYTES: usize = 8 << 20;

/// Runs a call from Python. A panic, which is a defect, becomes a `RuntimeError`, or a `MemoryError` if memory ran out.
/// (`PyO3`'s exception for panics is no `Exception`, and `except Exception` does not catch it.)
pub fn entry<R>(py: Python<'_>, call: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    // A signal handler may make a call during another one. The mark of that call is restored afterwards.
    let outer = reserve::set_used(false);
    let result = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(panic_error(py, &*panic)));
    reserve::set_used(outer);
    result
}

/// As [`entry`], for a call that writes nothing except its result. Raises a `MemoryError` at its end if the memory
/// reserve was used.
pub fn entry_that_reads<R>(py: Python<'_>, call: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    entry(py, || {
        let result = call()?;
        check_memory(py)?;
        Ok(result)
    })
}

/// Runs `work` with the interpreter released.
pub fn detached<R: Send>(py: Python<'_>, work: impl FnOnce() -> PyResult<R> + Send) -> PyResult<R> {
    py.detach(|| catch_unwind(AssertUnwindSafe(work))).unwrap_or_else(|panic| Err(panic_error(py, &*panic)))
}

/// Runs the last checks between measuring and writing. Raises a `MemoryError` if the memory reserve was used. Lets
/// handlers of pending signals run, and raise, if the pass before was of so many `bytes` that a user may have
/// interrupted it; then checks that they have left the call the memory that was lent to it.
pub fn before_writing(bytes: usize, lent: &Lent) -> PyResult<()> {
    if reserve::was_used() {
        Python::attach(check_memory)?;
    }
    if bytes < SIGNAL_BYTES {
        return Ok(());
    }
    Python::attach(|py| {
        py.check_signals()?;
        lent.check(py)
    })
}
