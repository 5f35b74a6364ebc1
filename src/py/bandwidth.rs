//! The memory bandwidth that `fastclip bench` compares with: plain loops over float32 arrays.

use super::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use super::arrays::view::View;
use super::call::{detached, entry, entry_that_reads};
use crate::engine::{bandwidth, threads};
use crate::error::Error;
use pyo3::prelude::*;

/// Checks that an array is C-contiguous, aligned, not empty, and float32.
fn float32_view<'py>(array: &Bound<'py, PyAny>, name: &str) -> PyResult<View<'py>> {
    let view =
        View::new(array.clone(), AcceptedDTypes::Floats, &mut DTypeCache::default(), || name.to_owned())?;
    let fits = view.dtype.name() == "float32" && view.is_run();
    if fits && view.size > 0 {
        Ok(view)
    } else {
        let what = view.describe();
        Err(Error::Type(format!("{name} is {what}; it takes a C-contiguous float32 array")).into())
    }
}

/// Returns address and number of elements. A number, unlike a pointer, can be sent to the code that runs with the
/// interpreter released.
fn address(view: &View) -> (usize, usize) {
    (view.pointer.expose_provenance(), view.size)
}

/// Reads every element. Returns the sum, in an unspecified order of additions.
#[pyfunction]
#[pyo3(signature = (x, /))]
pub fn bandwidth_read(py: Python<'_>, x: &Bound<'_, PyAny>) -> PyResult<f32> {
    entry_that_reads(py, || {
        let x = float32_view(x, "x")?;
        let (address, size) = address(&x);
        detached(py, || {
            // SAFETY: `x` is alive, and was checked to be `size` contiguous, aligned float32 elements.
            let x = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address), size) };
            Ok(bandwidth::read(x, threads::count())?)
        })
    })
}

/// Multiplies every element in place.
#[pyfunction]
#[pyo3(signature = (x, factor, /))]
pub fn bandwidth_scale(py: Python<'_>, x: &Bound<'_, PyAny>, factor: f32) -> PyResult<()> {
    entry(py, || {
        let x = float32_view(x, "x")?;
        if !x.is_writable() {
            return Err(Error::Value("x is read-only".into()).into());
        }
        let (address, size) = address(&x);
        detached(py, || {
            // SAFETY: `x` is alive and writable, and was checked to be `size` contiguous, aligned float32 elements.
            let x = unsafe {
                std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(address), size)
            };
            Ok(bandwidth::scale(x, factor, threads::count())?)
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
        let (x, out) = (float32_view(x, "x")?, float32_view(out, "out")?);
        if !out.is_writable() || out.size != x.size || x.range_overlaps(&out) {
            let message = "out must be writable, of the size of x, and apart from it";
            return Err(Error::Value(message.into()).into());
        }
        let ((x_address, size), (out_address, _)) = (address(&x), address(&out));
        detached(py, || {
            // SAFETY: both arrays are alive, and were checked to be `size` contiguous, aligned float32 elements. They do
            // not overlap, and `out` is writable.
            let (x, out) = unsafe {
                (
                    std::slice::from_raw_parts(std::ptr::with_exposed_provenance(x_address), size),
                    std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(out_address), size),
                )
            };
            Ok(bandwidth::copy(x, out, factor, threads::count())?)
        })
    })
}
