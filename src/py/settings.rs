//! Threads, SIMD level, cached memory, and the plain loops of the benchmark.

use super::arrays::view::{AcceptedDTypes, DTypeCache, View};
use super::raise::{detached, entry, entry_that_reads};
use crate::engine::{bandwidth, isa, memory, pool};
use crate::error::Error;
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

/// An aligned run of float32, and its length.
fn run<'py>(x: &Bound<'py, PyAny>, name: &str) -> PyResult<View<'py>> {
    let view = View::new(x.clone(), AcceptedDTypes::Floats, &mut DTypeCache::default(), || name.to_owned())?;
    let fits = view.dtype.name() == "float32" && view.is_c_order() && view.is_aligned();
    if fits && view.size > 0 {
        Ok(view)
    } else {
        let what = view.describe();
        Err(Error::Type(format!("{name} is {what}; it takes a C-contiguous float32 array")).into())
    }
}

/// The memory of a run, as a number, so that it can go to a thread without the interpreter.
fn address(view: &View) -> (usize, usize) {
    (view.pointer.expose_provenance(), view.size)
}

/// Reads every element: the sum, with the rounding it happens to get.
#[pyfunction]
#[pyo3(signature = (x, /))]
pub fn bandwidth_read(py: Python<'_>, x: &Bound<'_, PyAny>) -> PyResult<f32> {
    entry_that_reads(py, || {
        let x = run(x, "x")?;
        let (address, size) = address(&x);
        detached(py, || {
            // SAFETY: `x` is alive, an aligned run of `size` float32.
            let x = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address), size) };
            Ok(bandwidth::read(x, pool::threads())?)
        })
    })
}

/// Multiplies every element in place.
#[pyfunction]
#[pyo3(signature = (x, factor, /))]
pub fn bandwidth_scale(py: Python<'_>, x: &Bound<'_, PyAny>, factor: f32) -> PyResult<()> {
    entry(py, || {
        let x = run(x, "x")?;
        if !x.is_writable() {
            return Err(Error::Value("x is read-only".into()).into());
        }
        let (address, size) = address(&x);
        detached(py, || {
            // SAFETY: `x` is alive and writable, an aligned run of `size` float32.
            let x = unsafe {
                std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(address), size)
            };
            Ok(bandwidth::scale(x, factor, pool::threads())?)
        })
    })
}

/// Writes the elements of `x`, multiplied, to `out`.
#[pyfunction]
#[pyo3(signature = (x, out, factor, /))]
pub fn bandwidth_copy(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    factor: f32,
) -> PyResult<()> {
    entry(py, || {
        let (x, out) = (run(x, "x")?, run(out, "out")?);
        let (low, high) = (x.pointer.addr(), x.pointer.addr() + 4 * x.size);
        let apart = out.pointer.addr() >= high || out.pointer.addr() + 4 * out.size <= low;
        if !out.is_writable() || out.size != x.size || !apart {
            let message = "out must be writable, of the size of x, and apart from it";
            return Err(Error::Value(message.into()).into());
        }
        let ((from, size), (to, _)) = (address(&x), address(&out));
        detached(py, || {
            // SAFETY: both are alive, aligned runs of `size` float32 that do not overlap; `out` is writable.
            let (x, out) = unsafe {
                (
                    std::slice::from_raw_parts(std::ptr::with_exposed_provenance(from), size),
                    std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(to), size),
                )
            };
            Ok(bandwidth::copy(x, out, factor, pool::threads())?)
        })
    })
}
