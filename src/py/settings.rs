//! Threads, SIMD level and cached memory.

use crate::engine::{isa, memory, pool};
use pyo3::prelude::*;

/// Threads that a call made from this thread may use.
#[pyfunction]
pub fn get_num_threads() -> usize {
    pool::threads()
}

/// Sets the number of threads for the process; 0 goes back to the default.
#[pyfunction]
#[pyo3(signature = (n, /))]
pub fn set_num_threads(n: usize) {
    pool::set_threads(n);
}

/// Sets the number of threads for calls made from this thread; 0 takes that back. Returns the last.
#[pyfunction]
#[pyo3(signature = (n, /))]
pub fn override_num_threads(n: usize) -> usize {
    pool::override_threads(n)
}

/// The name of the SIMD level in use.
#[pyfunction]
pub fn isa_in_use() -> &'static str {
    isa::name(isa::current())
}

/// The name of the best SIMD level this processor has.
#[pyfunction]
pub fn isa_detected() -> &'static str {
    isa::name(isa::detected())
}

/// The names of all SIMD levels this processor has.
#[pyfunction]
pub fn isa_levels() -> Vec<&'static str> {
    isa::all().into_iter().map(isa::name).collect()
}

/// A number that is another in a forked child than in its parent.
#[pyfunction]
pub fn process_generation() -> u64 {
    pool::generation()
}

/// What is wrong with the environment variables.
#[pyfunction]
pub fn settings_complaints() -> Vec<String> {
    [isa::complaint(), pool::complaint()].into_iter().flatten().collect()
}

/// Gives memory that results have left behind back to the system. Returns the number of bytes.
#[pyfunction]
pub fn free_cached_memory(py: Python<'_>) -> usize {
    py.detach(memory::free_cached)
}
