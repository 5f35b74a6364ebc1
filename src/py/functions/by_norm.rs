//! Clipping of each tensor by its own norm.

use crate::allocation::with_capacity;
use crate::engine::segment::Segment;
use crate::engine::workspace::{Context, Workspace};
use crate::error::Error;
use crate::operations::clip::{self, Action, Actions};
use crate::operations::magnitude::Order;
use crate::operations::norms::measure;
use crate::py::arrays::call_arrays::{CallArrays, Destination, Reads};
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::call::{before_writing, detached, entry};
use crate::py::raise::check_memory;
use crate::py::trees::{Tree, TreeArgument};
use pyo3::prelude::*;

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
            _ => Err(Error::Value(format!(
                "fastclip._core: divisor is {name:?}; it takes \"one\" or \"count\""
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

/// Clips a tensor by its norm, divided by `divisor`: "one" or "count" (the number of elements). Returns the output.
#[pyfunction]
#[pyo3(signature = (t, bound, divisor, p, out, /))]
pub fn clip_tensor<'py>(
    py: Python<'py>,
    t: &Bound<'py, PyAny>,
    bound: f64,
    divisor: &str,
    p: f64,
    out: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(py, || {
        let tree = TreeArgument::tensor(t, "t")?;
        let destination = Destination::of_tensor(t, out.as_ref())?;
        clip_each(py, &tree, &destination, bound, Divisor::from_name(divisor)?, Order::new(p))
    })
}

/// Clips each tensor of a container by its root mean square. Returns the container of outputs.
#[pyfunction]
#[pyo3(signature = (t_list, bound, out, /))]
pub fn clip_by_block_rms<'py>(
    py: Python<'py>,
    t_list: &Bound<'py, PyAny>,
    bound: f64,
    out: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(py, || {
        let tree = TreeArgument::returned_container(t_list, "t_list")?;
        let destination = Destination::of_containers(py, t_list, &tree, out.as_ref())?;
        clip_each(py, &tree, &destination, bound, Divisor::Root, Order::Two)
    })
}

/// Clips each tensor by its own norm, divided by `divisor`.
fn clip_each<'py>(
    py: Python<'py>,
    tree: &Tree,
    destination: &Destination<'py>,
    bound: f64,
    divisor: Divisor,
    order: Order,
) -> PyResult<Bound<'py, PyAny>> {
    let mut arrays = CallArrays::new(py, tree, destination, AcceptedDTypes::Floats, Reads::Magnitudes)?;
    let lent = arrays.lent()?;
    let (segments, plan) = (&mut arrays.segments, &arrays.plan);
    let workspace = Workspace::new(Context::current(), segments, plan)?;
    check_memory(py)?;
    let is_unchanged = detached(py, || {
        let magnitudes = measure(&workspace, segments, plan, order)?;
        let mut actions: Vec<Action> = with_capacity(magnitudes.len())?;
        actions.extend(magnitudes.iter().zip(&*segments).map(|(magnitude, segment)| {
            if magnitude.is_finite() {
                let factor = magnitude.factor(order, divisor.value(segment), bound);
                factor.map_or(Action::Keep, Action::Scale)
            } else {
                Action::FillNan
            }
        }));
        before_writing(plan.bytes(), &lent)?;
        clip::apply(&workspace, segments, plan, Actions::Each(&actions));
        Ok(actions.iter().all(|action| *action == Action::Keep))
    })?;
    if !is_unchanged || arrays.writes_unclipped() {
        arrays.count_change()?;
    }
    arrays.results(py)
}
