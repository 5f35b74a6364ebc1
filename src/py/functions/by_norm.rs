//! Clipping of each tensor by its own norm.

use crate::allocation::with_capacity;
use crate::engine::segment::Segment;
use crate::engine::workspace::{Context, Workspace};
use crate::error::Error;
use crate::operations::clip::{self, Action, Actions};
use crate::operations::magnitude::Order;
use crate::operations::norms::measure;
use crate::py::arrays::argument_name::ArgumentNames;
use crate::py::arrays::batch::{Batch, Destination};
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::objects::{extract, number};
use crate::py::raise::{before_writing, check_memory, detached, entry};
use pyo3::prelude::*;
use pyo3::types::PyList;

/// Clips each tensor by its own norm, divided by `divisor`: "one", "count" (the number of elements)
/// or "root" (the square root of that). `bounds` has one number for each array that is there.
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
        let order = Order::new(p);
        let bounds = extract(bounds, number)?;
        let destination = Destination::from(out);
        let mut batch =
            Batch::new(py, tensors, &destination, AcceptedDTypes::Floats, names.input(), names.output())?;
        let mut segments = std::mem::take(&mut batch.segments);
        let plan = &batch.plan;
        if bounds.len() != segments.len() {
            return Err(Error::Value(format!("{} bounds for {} arrays", bounds.len(), segments.len())).into());
        }
        let divide = |segment: &Segment| {
            let count = (segment.len() / if segment.is_complex() { 2 } else { 1 }).max(1) as f64;
            match divisor {
                "count" => count,
                "root" => count.sqrt(),
                _ => 1.0,
            }
        };
        let results = batch.results(py)?;
        let workspace = Workspace::new(Context::current(), &segments, plan)?;
        check_memory(py)?;
        detached(py, || {
            let found = measure(&workspace, &segments, plan, order)?;
            let each = found.iter().zip(&segments).zip(&bounds);
            let mut actions: Vec<Action> = with_capacity(found.len())?;
            actions.extend(each.map(|((magnitude, segment), bound)| {
                if magnitude.is_finite() {
                    magnitude.factor(order, divide(segment), *bound).map_or(Action::Keep, Action::Scale)
                } else {
                    Action::FillNan
                }
            }));
            before_writing(plan.bytes())?;
            clip::apply(&workspace, &mut segments, plan, Actions::Each(&actions));
            Ok(())
        })?;
        Ok(results)
    })
}
