//! Norms.

use crate::engine::workspace::{Context, Workspace};
use crate::operations::magnitude::{Magnitude, Order, combine, ranges};
use crate::operations::norms::measure;
use crate::py::arrays::argument_name::ArgumentNames;
use crate::py::arrays::batch::{Batch, Destination};
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::norm_scalar::Scalar;
use crate::py::objects::{self, extract, float, number};
use crate::py::raise::{detached, entry_that_reads};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// The norm of all tensors together, a scalar of NumPy's.
#[pyfunction]
#[pyo3(signature = (tensors, p, names, /))]
pub fn global_norm<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    p: f64,
    names: ArgumentNames<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    entry_that_reads(py, || {
        let (batch, found) = measured(py, tensors, Order::new(p), &names)?;
        let norm = combine(&found, Order::new(p)).norm(Order::new(p));
        Ok(Scalar::new(py, batch.is_wide())?.finish(norm))
    })
}

/// A norm as a scalar of NumPy's: a float64 if `wide`, or if it is a finite number beyond float32.
#[pyfunction]
#[pyo3(signature = (norm, wide, /))]
pub fn norm_scalar(py: Python<'_>, norm: f64, wide: bool) -> PyResult<Bound<'_, PyAny>> {
    entry_that_reads(py, || Ok(Scalar::new(py, wide)?.finish(norm)))
}

/// Each tensor's norm, and whether they are to be float64.
#[pyfunction]
#[pyo3(signature = (tensors, p, names, /))]
pub fn tensor_norms<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    p: f64,
    names: ArgumentNames<'py>,
) -> PyResult<Bound<'py, PyTuple>> {
    entry_that_reads(py, || {
        let order = Order::new(p);
        let (batch, found) = measured(py, tensors, order, &names)?;
        let norms = found.iter().map(|magnitude| float(py, magnitude.norm(order)));
        let norms = objects::list(py, found.len(), norms)?;
        objects::tuple(py, [norms.into_any(), boolean(py, batch.is_wide())])
    })
}

fn boolean(py: Python<'_>, value: bool) -> Bound<'_, PyAny> {
    pyo3::types::PyBool::new(py, value).to_owned().into_any()
}

fn measured<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    order: Order,
    names: &ArgumentNames<'py>,
) -> PyResult<(Batch<'py>, Vec<Magnitude>)> {
    let batch = Batch::new(
        py,
        tensors,
        &Destination::Nothing,
        AcceptedDTypes::Floats,
        names.input(),
        names.output(),
    )?;
    let (segments, plan) = (&batch.segments, &batch.plan);
    let workspace = Workspace::new(Context::current(), segments, plan)?;
    let found = detached(py, || Ok(measure(&workspace, segments, plan, order)?))?;
    Ok((batch, found))
}

/// The sum of the powers of all tensors, in a form that adds up over processes.
///
/// The sum lies in the one of several ranges that its size belongs to, scaled by that range's power
/// of two: neither a huge sum nor a tiny one is lost on the way. Two numbers follow: how many tensors
/// are not finite, and whether one is float64. The second result is each tensor's own norm, the third the positions,
/// among the tensors that are there, of those that are not finite.
#[pyfunction]
#[pyo3(signature = (tensors, p, names, /))]
pub fn partial_sums<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    p: f64,
    names: ArgumentNames<'py>,
) -> PyResult<Bound<'py, PyTuple>> {
    entry_that_reads(py, || {
        let order = Order::new(p);
        let (batch, found) = measured(py, tensors, order, &names)?;
        let bad = || (0..found.len()).filter(|at| !found[*at].is_finite());
        let mut sums = ranges::split(combine(&found, order), order);
        sums.push(bad().count() as f64);
        sums.push(f64::from(u8::from(batch.is_wide())));
        let sums = objects::list(py, sums.len(), sums.iter().map(|sum| float(py, *sum)))?;
        let norms = found.iter().map(|magnitude| float(py, magnitude.norm(order)));
        let norms = objects::list(py, found.len(), norms)?;
        let bad = objects::list(py, bad().count(), bad().map(|at| objects::position(py, at)))?;
        objects::tuple(py, [sums, norms, bad].map(Bound::into_any))
    })
}

/// The norm of sums that [`partial_sums`] gave and somebody added up: as a mantissa and an exponent
/// of two, and as a float64.
#[pyfunction]
#[pyo3(signature = (sums, p, /))]
pub fn combine_sums<'py>(py: Python<'py>, sums: &Bound<'py, PyAny>, p: f64) -> PyResult<Bound<'py, PyTuple>> {
    entry_that_reads(py, || {
        let order = Order::new(p);
        let total = ranges::join(&extract(sums, number)?, order);
        let (root, exponent) = total.root(order);
        let parts = [float(py, root)?, objects::integer(py, exponent)?, float(py, total.norm(order))?];
        objects::tuple(py, parts)
    })
}
