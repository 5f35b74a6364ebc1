//! Clipping of each tensor by its own norm.

use crate::allocation::with_capacity;
use crate::engine::segment::Segment;
use crate::engine::workspace::{Context, Workspace};
use crate::error::Error;
use crate::operations::clip::{self, Action, Actions};
use crate::operations::magnitude::Order;
use crate::operations::norms::measure;
use crate::py::arrays::argument_name::ArgumentNames;
use crate::py::arrays::call_arrays::{CallArrays, Destination};
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::call::{before_writing, detached, entry};
use crate::py::objects::{extract, to_f64};
use crate::py::raise::check_memory;
use pyo3::prelude::*;
use pyo3::types::PyList;

/// The number that a tensor's norm is divided by before it is compared with the bound.
#[derive(Clone, Copy)]
enum Divisor {
    /// 1: the norm itself is bounded.
    One,
    /// The number of elements.
    Count,
    /// The square root of the number of elements: for the norm of order 2, the root mean square is bounded.
    Root,
}

impl Divisor {
    fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "one" => Ok(Self::One),
            "count" => Ok(Self::Count),
            "root" => Ok(Self::Root),
            _ => Err(Error::Value(format!(
                "fastclip._core: divisor is {name:?}; it takes \"one\", \"count\" or \"root\""
            ))),
        }
    }

    /// Returns the divisor of a segment's norm.
    fn value(self, segment: &Segment) -> f64 {
        let count = (segment.len() / if segment.is_complex() { 2 } else { 1 }).max(1) as f64;
        match self {
            Self::One => 1.0,
            Self::Count => count,
            Self::Root => count.sqrt(),
        }
    }
}

/// Clips each tensor by its own norm, divided by `divisor`: "one", "count" (the number of elements) or "root" (the square
/// root of that number). `bounds` has one number for each tensor that is not None. Returns the list of outputs.
#[pyfunction]
#[pyo3(signature = (tensors, bounds, divisor, p, out, names, /))]
pub fn clip_tensors<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    bounds: &Bound<'py, PyAny>,
    divisor: &str,
    p: f64,
    out: Option<Bound<'py, PyAny>>,
    names: ArgumentNames<'py>,
) -> PyResult<Bound<'py, PyList>> {
    entry(py, || {
        let (order, divisor) = (Order::new(p), Divisor::from_name(divisor)?);
        let bounds = extract(bounds, to_f64)?;
        let mut arrays =
            CallArrays::new(py, tensors, &Destination::from(out), AcceptedDTypes::Floats, &names)?;
        let results = arrays.results(py)?;
        let (segments, plan) = (&mut arrays.segments, &arrays.plan);
        if bounds.len() != segments.len() {
            return Err(Error::Value(format!("{} bounds for {} arrays", bounds.len(), segments.len())).into());
        }
        let workspace = Workspace::new(Context::current(), segments, plan)?;
        check_memory(py)?;
        detached(py, || {
            let magnitudes = measure(&workspace, segments, plan, order)?;
            let tensors = magnitudes.iter().zip(&*segments).zip(&bounds);
            let mut actions: Vec<Action> = with_capacity(magnitudes.len())?;
            actions.extend(tensors.map(|((magnitude, segment), bound)| {
                if magnitude.is_finite() {
                    let factor = magnitude.factor(order, divisor.value(segment), *bound);
                    factor.map_or(Action::Keep, Action::Scale)
                } else {
                    Action::FillNan
                }
            }));
            before_writing(plan.bytes())?;
            clip::apply(&workspace, segments, plan, Actions::Each(&actions));
            Ok(())
        })?;
        Ok(results)
    })
}
