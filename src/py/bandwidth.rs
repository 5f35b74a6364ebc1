//! Plain loops over memory, for the benchmark.

use super::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use super::arrays::view::View;
use super::raise::{detached, entry, entry_that_reads};
use crate::engine::{bandwidth, pool};
use crate::error::Error;
use pyo3::prelude::*;

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
