//! A step of an optimizer: reads and checks all arrays, then measures the gradients, then updates the variables.

mod checks;
pub mod counters;
pub mod gradient_clipping;
mod hyper_parameters;
pub mod overlap;
mod owner;
pub mod pairs;
mod registry;
pub mod request;
pub mod slots;
pub mod stepping;
mod updates;

use crate::allocation::{OutOfMemory, collect, try_collect};
use crate::engine::plan::{CHUNK, Plan};
use crate::engine::segment::Segment;
use crate::engine::workspace::{Context, Workspace};
use crate::operations::gradient_clipping::{Decision, Verdict};
use crate::operations::magnitude::Order;
use crate::operations::norms::measure;
use crate::operations::update::{OPERANDS, ParameterUpdate, StepParameters, step};
use crate::py::arrays::view::View;
use crate::py::call::{before_writing, detached, entry};
use crate::py::raise::{check_memory, nonfinite_error};
use crate::scalar::Scalar;
use counters::Report;
use overlap::check_overlap;
use pairs::{GRADIENTS, read_pairs, with_gradients};
use pyo3::prelude::*;
use registry::initialise_slots;
use request::StepRequest;
use std::sync::Arc;
use updates::{Updates, describe_updates};

/// Takes a step: updates variables by their gradients. Returns false if the step was skipped.
#[pyfunction]
#[pyo3(signature = (request, /))]
pub fn take_step(py: Python<'_>, request: &Bound<'_, StepRequest>) -> PyResult<bool> {
    entry(py, || {
        let request = request.get();
        #[cfg(feature = "gpu")]
        if let Some(slots) = request.device_slots() {
            return crate::py::gpu::step::take_step(py, request, slots);
        }
        let (kind, clipping, loss_scale) = (request.kind(), request.clipping(), request.loss_scale());
        let slots = request.optimizer_slots();
        let _guard = slots.map(|slots| slots.begin_step(py)).transpose()?;
        let (mut hyper, counters) = request.numbers(py)?;
        // From here on a signal handler may save the state, and gets the state before the step.
        let mut registry = slots.map(slots::Slots::registry);
        // Reading arrays may run foreign code. The code after that uses only the views.
        let pairs::ReadPairs { mut pairs, written, has_foreign_copies } =
            read_pairs(py, request, registry.as_deref(), &mut hyper)?;
        if let (Some(slots), Some(registry)) = (slots, &mut registry) {
            // The views are taken already, so that a variable in the registry is the one that has its address now.
            slots.drop_lost(py, registry)?;
        }
        let registry = registry.as_deref();
        check_overlap(py, &mut pairs, registry, counters.global_step.as_ref())?;

        let gradients = with_gradients(&pairs)?;
        let is_float64 = gradients.iter().any(|(_, g)| g.measured().dtype.scalar == Scalar::F64);
        let mut measured: Vec<Segment<1>> = Vec::new();
        if clipping.needs_norms() {
            let segments = gradients.iter().map(|(_, gradient)| segment_to_read(gradient.measured()));
            measured = try_collect(gradients.len(), segments)?;
        }
        let is_clamped = |rows: &pairs::Rows| rows.is_clamped;
        let are_clamped = gradients.iter().map(|(_, g)| g.rows.as_deref().is_some_and(is_clamped));
        let are_clamped: Vec<bool> = collect(are_clamped)?;
        let initial = slots.map_or(&[][..], slots::Slots::initial);
        let plan = Plan::new(&measured)?;
        let Updates { mut updates, registry, new_slots, owners } =
            describe_updates(py, kind, registry, &pairs)?;
        let registry = registry.map(Arc::new);
        let context = Context::current();
        let workspace = Workspace::new(context, &measured, &plan)?;
        let lent = &written.lent;
        if has_foreign_copies || !new_slots.is_empty() {
            // Reading a copy, and finding the owner of a new variable's memory, may run foreign code after the views of
            // tensors were taken.
            lent.check(py)?;
        }
        check_memory(py)?;
        let (outcome, total, magnitudes) = detached(py, || {
            let magnitudes = measure(&workspace, &measured, &plan, Order::Two)?;
            let Decision { verdict, total } = clipping.decide(loss_scale, &magnitudes, are_clamped.len())?;
            let (mut transforms, scale) = match verdict {
                Verdict::Take { transforms, scale } => (transforms, scale),
                Verdict::Skip => return Ok((Outcome::Skipped, total, magnitudes)),
                Verdict::Raise => return Ok((Outcome::Refused, total, magnitudes)),
            };
            for (transform, is_clamped) in transforms.iter_mut().zip(&are_clamped) {
                if *is_clamped {
                    transform.clamp = None;
                }
            }
            initialise_slots(context, &new_slots, initial)?;
            let sizes = updates.iter().map(|update| (update.segment.len(), bytes_moved(update)));
            let update_plan = Plan::cut(sizes, CHUNK)?;
            let workspace = Workspace::with_scratch(context, update_plan.bytes(), 0)?;
            before_writing(plan.bytes(), lent)?;
            let parameters = StepParameters { hyper: hyper.used(), transforms: &transforms };
            step(&workspace, kind, parameters, &mut updates, &update_plan)?;
            Ok((Outcome::Taken { scale }, total, magnitudes))
        })?;
        // If the step was taken, nothing may fail from here on.
        let norm = total.map(|total| total.norm_divided(Order::Two, loss_scale));
        drop(owners);
        let mut report = Report { norm, is_float64, scale: None };
        if let Outcome::Taken { scale } = outcome {
            report.scale = scale;
            counters.advance();
            let updated = pairs.iter().filter(|pair| pair.gradient.is_some());
            updated.filter_map(pairs::Pair::step_count).for_each(counters::count_up);
            if let Some(slots) = slots {
                slots.count_step();
                if let Some(registry) = registry {
                    slots.replace(registry);
                }
            }
        } else if let Outcome::Refused = outcome {
            let bad = gradients.iter().zip(&magnitudes).filter(|(_, m)| !m.is_finite());
            let bad = bad.map(|((index, _), _)| *index);
            let norms = magnitudes.iter().map(|magnitude| magnitude.norm_divided(Order::Two, loss_scale));
            let norms: Vec<f64> = collect(norms)?;
            return Err(nonfinite_error(py, bad, GRADIENTS, norm.unwrap_or(f64::NAN), Some(&norms)));
        } else {
            counters.skip();
        }
        counters.report(&report);
        if let Outcome::Taken { .. } = outcome {
            written.count_change()?;
        }
        Ok(matches!(outcome, Outcome::Taken { .. }))
    })
}

/// How a step ended.
#[derive(Clone, Copy)]
enum Outcome {
    /// The variables were updated. `scale` is the factor that clipped the gradients, if they are clipped by norm.
    Taken { scale: Option<f64> },
    /// Nothing was updated, and the step is counted as skipped.
    Skipped,
    /// Nothing was updated, and the step raises because of NaN or infinity.
    Refused,
}

/// Returns the number of bytes that an update moves for each real of its variable, to divide updates into chunks.
fn bytes_moved(update: &ParameterUpdate) -> usize {
    let size = |operand| update.segment.scalar_of(operand).map_or(0, Scalar::size);
    let rows = update.parameters.rows.as_ref().map_or(0, |rows| rows.values.scalar().size());
    (0..OPERANDS).map(size).sum::<usize>() + rows
}

/// Returns a segment to read a gradient.
fn segment_to_read(view: &View) -> Result<Segment<1>, OutOfMemory> {
    // SAFETY: the view keeps its array alive, and nothing is written.
    unsafe {
        if view.is_run() {
            Ok(Segment::dense(false, view.size, [Some(view.run())]))
        } else {
            Segment::new(false, view.shape(), [Some(view.operand())])
        }
    }
}
