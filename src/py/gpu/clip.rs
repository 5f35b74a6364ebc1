//! Norms and clipping of arrays on a device.

use super::arguments::Arrays;
use crate::gpu::array::Element;
use crate::gpu::clip::{self, OnNonFinite};
use crate::gpu::norms::Norms;
use crate::gpu::plan::{Axes, Change, Grouping, Order};
use crate::py::call::{detached, entry_that_reads};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// The norms of one call, on the device until they are looked at.
#[pyclass(frozen, module = "fastclip._core")]
pub struct DeviceNorms(Norms);

#[pymethods]
impl DeviceNorms {
    /// Returns the norm at an index.
    fn at(&self, py: Python<'_>, index: usize) -> PyResult<f64> {
        entry_that_reads(py, || detached(py, || Ok(self.0.values()?[index])))
    }
}

/// Returns the norm of all arrays together, or of each.
#[pyfunction]
pub fn gpu_norms<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyTuple>,
    each: bool,
    maximum: bool,
    names: &Bound<'py, PyAny>,
) -> PyResult<DeviceNorms> {
    entry_that_reads(py, || {
        let arrays = Arrays::new(list, names)?;
        arrays.check_floats()?;
        let call = (grouping_of(each), order(maximum), Change::Nothing);
        let (plan, _) = arrays.plan(None, names, call)?;
        let device = arrays.device();
        Ok(DeviceNorms(detached(py, || Ok(clip::norms(device, &plan)?))?))
    })
}

/// Clips arrays by their norm together (grouping False), each by its own (True), or the slices of one array along axes
/// (a list that says which axes a slice has). `bounds` has one bound for each norm. Returns the list of
/// new results, or None, and the norms.
#[pyfunction]
#[pyo3(signature = (list, out, grouping_and_maximum, bounds, on_nonfinite, names))]
pub fn gpu_clip<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyTuple>,
    out: Option<&Bound<'py, PyTuple>>,
    grouping_and_maximum: (Bound<'py, PyAny>, bool),
    bounds: &Bound<'py, PyAny>,
    on_nonfinite: &str,
    names: [Bound<'py, PyAny>; 2],
) -> PyResult<(Option<Bound<'py, PyList>>, DeviceNorms)> {
    entry_that_reads(py, || {
        let [names, out_names] = names;
        let (grouping, maximum) = grouping_and_maximum;
        let mode = on_nonfinite_mode(on_nonfinite)?;
        let bounds: Vec<f64> = bounds.extract()?;
        let arrays = Arrays::new(list, &names)?;
        arrays.check_floats()?;
        let grouping = if let Ok(each) = grouping.extract::<bool>() {
            grouping_of(each)
        } else {
            let shape = arrays.entries[0].get().shape.clone();
            Grouping::Slices(Axes { shape, is_reduced: grouping.extract()? })
        };
        let call = (grouping, order(maximum), Change::Scale);
        let (results, norms) =
            arrays.write(out, &out_names, call, |device, plan| clip::clip(device, plan, &bounds, mode))?;
        Ok((results, DeviceNorms(norms)))
    })
}

/// Clips arrays by a norm that is known. Returns the list of new results, or None.
#[pyfunction]
#[pyo3(signature = (list, out, bound_and_norm, on_nonfinite, names))]
pub fn gpu_clip_by_known_norm<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyTuple>,
    out: Option<&Bound<'py, PyTuple>>,
    bound_and_norm: (f64, f64),
    on_nonfinite: &str,
    names: [Bound<'py, PyAny>; 2],
) -> PyResult<Option<Bound<'py, PyList>>> {
    entry_that_reads(py, || {
        let [names, out_names] = names;
        let (bound, norm) = bound_and_norm;
        let mode = on_nonfinite_mode(on_nonfinite)?;
        let arrays = Arrays::new(list, &names)?;
        arrays.check_floats()?;
        let call = (Grouping::Global, Order::Euclidean, Change::Scale);
        let submit = |device: &_, plan: &_| clip::clip_by_known_norm(device, plan, bound, norm, mode);
        Ok(arrays.write(out, &out_names, call, submit)?.0)
    })
}

/// Limits elements to an interval. Returns the list of new results, or None.
#[pyfunction]
#[pyo3(signature = (list, out, low, high, names))]
pub fn gpu_clamp<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyTuple>,
    out: Option<&Bound<'py, PyTuple>>,
    low: f64,
    high: f64,
    names: [Bound<'py, PyAny>; 2],
) -> PyResult<Option<Bound<'py, PyList>>> {
    entry_that_reads(py, || {
        let [names, out_names] = names;
        let arrays = Arrays::new(list, &names)?;
        let is_integer = arrays.entries[0].get().array.element == Element::I32;
        let bits =
            |bound: f64| if is_integer { (bound as i32).cast_unsigned() } else { (bound as f32).to_bits() };
        let call = (Grouping::Global, Order::Euclidean, Change::Clamp);
        let (low, high) = (bits(low), bits(high));
        Ok(arrays.write(out, &out_names, call, |device, plan| clip::clamp(device, plan, low, high))?.0)
    })
}

fn grouping_of(each: bool) -> Grouping {
    if each { Grouping::Each } else { Grouping::Global }
}

fn order(maximum: bool) -> Order {
    if maximum { Order::Maximum } else { Order::Euclidean }
}

fn on_nonfinite_mode(name: &str) -> PyResult<OnNonFinite> {
    match name {
        "propagate" => Ok(OnNonFinite::Propagate),
        "raise" => Ok(OnNonFinite::Raise),
        "zero" => Ok(OnNonFinite::Zero),
        other => Err(PyValueError::new_err(format!(
            "on_nonfinite is {other:?}; it takes 'propagate', 'raise' or 'zero'"
        ))),
    }
}
