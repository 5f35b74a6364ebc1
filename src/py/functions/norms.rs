//! Norms of tensors.

use crate::allocation::{OutOfMemory, with_capacity};
use crate::engine::workspace::{Context, Workspace};
use crate::operations::magnitude::{Magnitude, Order, combine, ranges};
use crate::operations::norms::measure;
use crate::py::arrays::call_arrays::{CallArrays, Destination, Reads};
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::call::{detached, entry_that_reads};
use crate::py::norm_scalar::NormScalar;
use crate::py::objects::{self, extract, to_f64};
use crate::py::trees::TreeArgument;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// Returns the norm of all tensors together, a NumPy scalar.
#[pyfunction]
#[pyo3(signature = (t_list, p, /))]
pub fn global_norm<'py>(py: Python<'py>, t_list: &Bound<'py, PyAny>, p: f64) -> PyResult<Bound<'py, PyAny>> {
    entry_that_reads(py, || {
        let order = Order::new(p);
        let measured = Measured::new(py, t_list, order)?;
        Ok(NormScalar::new(py, measured.has_float64)?.finish(measured.total().norm(order)))
    })
}

/// Returns a norm as a NumPy scalar: float64 if `is_float64`, or if the norm is finite and out of range of float32;
/// else float32.
#[pyfunction]
#[pyo3(signature = (norm, is_float64, /))]
pub fn norm_scalar(py: Python<'_>, norm: f64, is_float64: bool) -> PyResult<Bound<'_, PyAny>> {
    entry_that_reads(py, || Ok(NormScalar::new(py, is_float64)?.finish(norm)))
}

/// Returns the list of each tensor's norm, and whether an input is float64 (and so the norms should be).
#[pyfunction]
#[pyo3(signature = (t_list, p, /))]
pub fn tensor_norms<'py>(
    py: Python<'py>,
    t_list: &Bound<'py, PyAny>,
    p: f64,
) -> PyResult<Bound<'py, PyTuple>> {
    entry_that_reads(py, || {
        let measured = Measured::new(py, t_list, Order::new(p))?;
        let norms = measured.norms(py)?.into_any();
        objects::tuple(py, [norms, objects::bool(py, measured.has_float64)])
    })
}

/// Returns the list of each tensor's magnitude, a tuple of a mantissa and an exponent of two, and whether an input is
/// float64 (and so the norms should be). See [`Magnitude`].
#[pyfunction]
#[pyo3(signature = (t_list, p, /))]
pub fn magnitudes<'py>(py: Python<'py>, t_list: &Bound<'py, PyAny>, p: f64) -> PyResult<Bound<'py, PyTuple>> {
    entry_that_reads(py, || {
        let measured = Measured::new(py, t_list, Order::new(p))?;
        let pair = |magnitude: &Magnitude| {
            let Magnitude { value, exponent } = *magnitude;
            objects::tuple(py, [objects::float(py, value)?, objects::int(py, exponent)?]).map(Bound::into_any)
        };
        let list = objects::list(py, measured.magnitudes.len(), measured.magnitudes.iter().map(pair))?;
        objects::tuple(py, [list.into_any(), objects::bool(py, measured.has_float64)])
    })
}

/// Returns the norm of tensors whose [`magnitudes`] were measured: as a mantissa and an exponent of two, and as a NumPy
/// scalar, float64 if `is_float64`. The order of the list makes no difference.
#[pyfunction]
#[pyo3(signature = (magnitudes, p, is_float64, /))]
pub fn combine_magnitudes<'py>(
    py: Python<'py>,
    magnitudes: &Bound<'py, PyAny>,
    p: f64,
    is_float64: bool,
) -> PyResult<Bound<'py, PyTuple>> {
    entry_that_reads(py, || {
        let order = Order::new(p);
        let magnitudes = extract(magnitudes, |pair| {
            let (value, exponent) = pair.extract()?;
            Ok(Magnitude { value, exponent })
        })?;
        let total = combine(&magnitudes, order);
        let (root, exponent) = total.root(order);
        let scalar = NormScalar::new(py, is_float64)?.finish(total.norm(order));
        objects::tuple(py, [objects::float(py, root)?, objects::int(py, exponent)?, scalar])
    })
}

/// Returns the sum of the powers of all tensors, in a form that adds up over processes.
///
/// The first result is a list of sums, one for each of several ranges of sizes. The sum of this call is in the range
/// that its size belongs to, scaled by that range's power of two, so that neither a huge sum nor a tiny one is lost.
/// Two numbers follow: the count of tensors that contain NaN or infinity, and 1 if an input is float64, else 0. The
/// second result is the list of each tensor's norm. The third is the list of indices, among the tensors that are not
/// None, of those that contain NaN or infinity.
#[pyfunction]
#[pyo3(signature = (t_list, p, /))]
pub fn partial_sums<'py>(
    py: Python<'py>,
    t_list: &Bound<'py, PyAny>,
    p: f64,
) -> PyResult<Bound<'py, PyTuple>> {
    entry_that_reads(py, || {
        let order = Order::new(p);
        let measured = Measured::new(py, t_list, order)?;
        let nonfinite = nonfinite_segments(&measured.magnitudes)?;
        let mut sums = ranges::split(measured.total(), order);
        sums.push(nonfinite.len() as f64);
        sums.push(f64::from(u8::from(measured.has_float64)));
        let sums = objects::list(py, sums.len(), sums.iter().map(|sum| objects::float(py, *sum)))?;
        let norms = measured.norms(py)?;
        let nonfinite =
            objects::list(py, nonfinite.len(), nonfinite.iter().map(|index| objects::index(py, *index)))?;
        objects::tuple(py, [sums, norms, nonfinite].map(Bound::into_any))
    })
}

/// Returns the norm of sums that [`partial_sums`] returned and that were added up over processes: its mantissa, its
/// exponent of two, and the norm as a float.
#[pyfunction]
#[pyo3(signature = (sums, p, /))]
pub fn combine_sums<'py>(py: Python<'py>, sums: &Bound<'py, PyAny>, p: f64) -> PyResult<Bound<'py, PyTuple>> {
    entry_that_reads(py, || {
        let order = Order::new(p);
        let total = ranges::join(&extract(sums, to_f64)?, order);
        let (root, exponent) = total.root(order);
        let norm = total.norm(order);
        objects::tuple(
            py,
            [objects::float(py, root)?, objects::int(py, exponent)?, objects::float(py, norm)?],
        )
    })
}

/// Returns the indices of the magnitudes that are NaN or infinite.
pub(super) fn nonfinite_segments(magnitudes: &[Magnitude]) -> Result<Vec<usize>, OutOfMemory> {
    let mut nonfinite = with_capacity(magnitudes.len())?;
    nonfinite.extend((0..magnitudes.len()).filter(|index| !magnitudes[*index].is_finite()));
    Ok(nonfinite)
}

/// The magnitudes of a call's tensors.
struct Measured {
    order: Order,
    /// One magnitude for each tensor that is not None.
    magnitudes: Vec<Magnitude>,
    /// Whether a tensor is float64.
    has_float64: bool,
}

impl Measured {
    /// Reads and measures tensors.
    fn new<'py>(py: Python<'py>, t_list: &Bound<'py, PyAny>, order: Order) -> PyResult<Self> {
        let tree = TreeArgument::container(t_list, "t_list")?;
        let destination = Destination::Nowhere;
        let arrays = CallArrays::new(py, &tree, &destination, AcceptedDTypes::Floats, Reads::Magnitudes)?;
        let (segments, plan) = (&arrays.segments, &arrays.plan);
        let workspace = Workspace::new(Context::current(), segments, plan)?;
        let magnitudes = detached(py, || Ok(measure(&workspace, segments, plan, order)?))?;
        Ok(Self { order, magnitudes, has_float64: arrays.has_float64() })
    }

    /// Returns the magnitude of all tensors together.
    fn total(&self) -> Magnitude {
        combine(&self.magnitudes, self.order)
    }

    /// Returns the list of each tensor's norm.
    fn norms<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let norms = self.magnitudes.iter().map(|magnitude| objects::float(py, magnitude.norm(self.order)));
        objects::list(py, self.magnitudes.len(), norms)
    }
}
