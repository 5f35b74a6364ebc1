//! A step of an optimizer: everything is looked at and checked, then measured, then updated.

pub mod arrays;
mod counters;
mod handling;
mod parts;
pub mod slots;

use crate::allocation::{OutOfMemory, collect, try_collect, with_capacity};
use crate::engine::exec::{Context, Workspace};
use crate::engine::plan::{CHUNK, Plan};
use crate::engine::segment::Segment;
use crate::error::Error;
use crate::operations::magnitude::Order;
use crate::operations::norms::measure;
use crate::operations::update::{ParameterUpdate, step};
use crate::py::arrays::batch::views;
use crate::py::arrays::view::{AcceptedDTypes, View};
use crate::py::objects::{extract, number};
use crate::py::raise::{before_writing, check_memory, detached, entry, refuse_nonfinite};
use crate::scalar::Scalar;
use arrays::{Labels, Sliced, look};
use counters::Counters;
use handling::{Handling, Policy};
use parts::{Prepared, prepare};
use pyo3::prelude::*;
use pyo3::types::PyList;
use slots::{Slots, Stepping};
use std::sync::Arc;

/// The numbers of a step.
struct Numbers<'py> {
    hyper: Vec<f64>,
    after: Vec<(Bound<'py, PyAny>, f64)>,
    skipped: Bound<'py, PyAny>,
    report: Bound<'py, PyAny>,
}

impl<'py> Numbers<'py> {
    /// AcceptedDTypes the parts of a tuple: a failing allocation stays a `MemoryError`.
    fn new(parts: &Bound<'py, PyAny>) -> PyResult<Self> {
        let moved = |pair: &Bound<'py, PyAny>| {
            let [array, value] = items(pair)?;
            Ok((array, number(&value)?))
        };
        let [hyper, after, skipped, report] = items(parts)?;
        Ok(Self { hyper: extract(&hyper, number)?, after: extract(&after, moved)?, skipped, report })
    }
}

/// The items of a tuple that has so many.
fn items<'py, const N: usize>(tuple: &Bound<'py, PyAny>) -> PyResult<[Bound<'py, PyAny>; N]> {
    let items = extract(tuple, |item| Ok(item.clone()))?;
    items.try_into().map_err(|_| Error::Value(format!("fastclip._core: a tuple has not {N} items")).into())
}

/// AcceptedDTypes a step: updates the arrays by their gradients.
///
/// `gradients` and `arrays` have one entry for each pair; without `arrays`, `gradients` are plain pairs. `whole` tells
/// that the rule changes all rows of a variable, also those without a gradient. `numbers` is called when the step has begun, and gives the hyper-parameters, and what moves on with the
/// step: arrays and the numbers that they get, the count of steps that are left out, and the array that tells of
/// the norm, see [`Counters`]. `global_step` grows by one. Returns whether the step was taken.
#[pyfunction]
#[pyo3(signature = (slots, gradients, rows, arrays, numbers, initial, handling, whole, global_step, /))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value, reason = "from one caller in `fastclip`")]
pub fn take_step<'py>(
    py: Python<'py>,
    slots: &Bound<'py, Slots>,
    gradients: &Bound<'py, PyList>,
    rows: Option<Sliced<'py>>,
    arrays: Option<&Bound<'py, PyList>>,
    numbers: &Bound<'py, PyAny>,
    initial: Vec<f64>,
    handling: Handling,
    whole: bool,
    global_step: Option<Bound<'py, PyAny>>,
) -> PyResult<bool> {
    entry(py, || {
        let slots = slots.get();
        let _stepping = Stepping::begin(py, slots)?;
        let kind = slots.kind;
        let Numbers { hyper, after, skipped, report } = Numbers::new(&numbers.call0()?)?;
        if hyper.len() != kind.hyper().len() || initial.len() != kind.slots() {
            let message = format!("this rule takes {:?} and {} slots", kind.hyper(), kind.slots());
            return Err(Error::Value(message).into());
        }
        // A handler of a signal may save the state meanwhile: it is that of before the step.
        let state = slots.state();
        let counters = Counters::new(after, global_step, skipped, report)?;
        let of_rows = match &rows {
            Some(rows) => extract(&rows.of_rows, |flag| flag.extract::<bool>())?,
            None => Vec::new(),
        };
        // What may run foreign code comes first: afterwards only what was seen is used.
        let labels = Labels::new(gradients.len());
        let as_given = match &rows {
            Some(rows) => views(&rows.given, AcceptedDTypes::Reals, labels.gradients)?,
            None => Vec::new(),
        };
        let found =
            look(&state, kind.slots(), gradients, rows.as_ref(), arrays, counters.global_step.as_ref())?;
        let labels = Labels::new(found.gradients.len());

        let norms_of = if rows.is_some() { &as_given } else { &found.gradients };
        let wide = norms_of.iter().flatten().any(|view| view.dtype.scalar == Scalar::F64);
        let mut segments: Vec<Segment<1>> = Vec::new();
        if handling.measures() {
            let read = norms_of.iter().flatten().map(read_segment);
            segments = try_collect(norms_of.len(), read)?;
        }
        let plan = Plan::new(&segments)?;

        let Prepared { mut items, owners, after, fresh, kept } = prepare(py, kind, &state, &found, whole)?;
        let mut present: Vec<usize> = with_capacity(found.gradients.len())?;
        present.extend((0..found.gradients.len()).filter(|at| found.gradients[*at].is_some()));
        let clamped: Vec<bool> = collect(present.iter().map(|at| of_rows.get(*at) == Some(&true)))?;
        if handling.measures() && segments.len() != present.len() {
            return Err(
                Error::Value("fastclip._core: gradients and those given must be as many".into()).into()
            );
        }
        let after = after.map(Arc::new);
        let context = Context::current();
        let reading = Workspace::new(context, &segments, &plan)?;
        check_memory(py)?;
        let (taken, total, magnitudes) = detached(py, || {
            let magnitudes = measure(&reading, &segments, &plan, Order::Two)?;
            let (incoming, total) = handling.decide(&magnitudes, present.len())?;
            let Some(incoming) = incoming else { return Ok((false, total, magnitudes)) };
            for (owner, item) in owners.iter().zip(&mut items) {
                item.incoming = incoming[*owner];
                if clamped[*owner] {
                    item.incoming.clamp = None;
                }
            }
            if let Some(after) = &after {
                let fresh =
                    fresh.iter().map(|(dtype, len, place)| (*dtype, *len, &after.entries[*place].slots[..]));
                Slots::initialise(context, fresh, &initial)?;
            }
            let sizes = items.iter().map(|item| (item.segment.len, moved(item, kind.slots())));
            let updating = Plan::cut(sizes, CHUNK)?;
            let workspace = Workspace::with_scratch(context, updating.bytes, 0)?;
            before_writing(plan.bytes)?;
            // SAFETY: `look` has checked that what is written overlaps nothing, and that indices are rows.
            unsafe { step(&workspace, kind, &hyper, &items, &updating) };
            Ok((true, total, magnitudes))
        })?;
        // From here on nothing may fail where the step was taken.
        let norm = total.map(|total| total.norm_divided(Order::Two, handling.loss_scale));
        drop(kept);
        if taken {
            counters.advance();
            slots.count_step();
            if let Some(after) = after {
                slots.replace(after);
            }
        } else if handling.policy() == Policy::Raise {
            let bad = present.iter().zip(&magnitudes).filter(|(_, m)| !m.is_finite());
            let bad = bad.map(|(position, _)| *position);
            return Err(refuse_nonfinite(bad, labels.gradients, norm.unwrap_or(f64::NAN)).into());
        } else {
            counters.skip();
        }
        counters.report(norm, wide);
        Ok(taken)
    })
}

/// Bytes that are moved for each real of a variable.
fn moved(item: &ParameterUpdate, slots: usize) -> usize {
    item.segment.scalar.size() * (1 + slots) + item.gradient.size() + item.copy.map_or(0, Scalar::size)
}

/// A gradient, to be read.
fn read_segment(view: &View) -> Result<Segment<1>, OutOfMemory> {
    // SAFETY: the view keeps its array alive; nothing is written.
    unsafe {
        if view.is_c_order() && view.is_aligned() {
            Ok(Segment::dense(view.dtype, view.size, [view.pointer]))
        } else {
            Segment::new(view.dtype, view.shape(), [Some(view.strided())])
        }
    }
}
