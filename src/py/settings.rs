//! Settings of the process: threads, SIMD level and cached memory.

use crate::engine::threads::Rule;
use crate::engine::{isa, memory, process, threads};
use pyo3::prelude::*;

/// Returns the number of threads that a call from this thread may use.
#[pyfunction]
pub fn get_num_threads() -> usize {
    threads::count()
}

/// Returns what decides the number of threads of a call from this thread, as text.
#[pyfunction]
pub fn num_threads_rule() -> String {
    match threads::decide().1 {
        Rule::Set => "set_num_threads".into(),
        Rule::Variable(name) => name.into(),
        Rule::Cores => "cores of this process".into(),
        Rule::Ranks(name, ranks) => format!("cores of this process divided by {name}={ranks}"),
    }
}

/// Sets the number of threads for the process; 0 restores the default.
#[pyfunction]
#[pyo3(signature = (n, /))]
pub fn set_num_threads(n: usize) {
    threads::set_count(n);
}

/// Sets the number of threads for calls from this thread; 0 removes the override. Returns the override before.
#[pyfunction]
#[pyo3(signature = (n, /))]
pub fn override_num_threads(n: usize) -> usize {
    threads::override_count(n)
}

/// Returns the name of the SIMD level in use.
#[pyfunction]
pub fn isa_in_use() -> &'static str {
    isa::name(isa::current())
}

/// Returns the name of the best SIMD level that this processor has.
#[pyfunction]
pub fn isa_detected() -> &'static str {
    isa::name(isa::detected())
}

/// Returns the names of all SIMD levels that this processor has.
#[pyfunction]
pub fn isa_levels() -> Vec<&'static str> {
    isa::all().into_iter().map(isa::name).collect()
}

/// Whether the processor has AVX-512, but not the instructions that the level needs.
#[pyfunction]
pub fn isa_has_early_avx512() -> bool {
    isa::has_early_avx512()
}

/// Returns a number that is different in a forked child and its parent.
#[pyfunction]
pub fn process_generation() -> u64 {
    process::generation()
}

/// Returns messages about invalid values of environment variables.
#[pyfunction]
pub fn settings_complaints() -> Vec<String> {
    [isa::complaint(), threads::complaint()].into_iter().flatten().collect()
}

/// Returns the cached memory of freed results to the system. Returns the number of bytes.
#[pyfunction]
pub fn free_cached_memory(py: Python<'_>) -> usize {
    py.detach(memory::free_cached)
}
