//! A step of an optimizer: reads and checks all arrays, then measures the gradients, then updates the variables.

pub mod checks;
pub mod counters;
pub mod gradient_clipping;
pub mod hyper_parameters;
pub mod overlap;
mod owner;
pub mod pairs;
pub mod perform;
mod registry;
pub mod request;
pub mod slots;
pub mod stepping;
pub mod updates;

use crate::allocation::collect;
use crate::operations::gradient_clipping::Decision;
use crate::operations::magnitude::Order;
use crate::py::call::entry;
use crate::py::raise::nonfinite_error;
use crate::scalar::Scalar;
use counters::Report;
use overlap::check_overlap;
use pairs::{GRADIENTS, VARIABLES, read_pairs, with_gradients};
use perform::{CheckedStep, Measuring, Outcome, Performed, RuleOfPairs};
use pyo3::prelude::*;
use request::{Numbers, StepRequest};

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
        let Numbers { mut hyper, counters, rounding } = request.numbers(py)?;
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
        check_overlap(py, &mut pairs, VARIABLES, registry, counters.global_step.as_ref())?;

        let gradients = with_gradients(&pairs)?;
        let is_float64 = gradients.iter().any(|(_, g)| g.measured().dtype.scalar == Scalar::F64);
        let known = request.known_magnitude();
        let step = CheckedStep {
            rules: &[RuleOfPairs { kind, hyper: hyper.used(), count: pairs.len() }],
            pairs: &pairs,
            registry: registry.zip(slots.map(slots::Slots::initial)),
            rounding,
            measuring: if clipping.needs_norms() && known.is_none() {
                Measuring::All
            } else {
                Measuring::Nothing
            },
            lent: &written.lent,
            has_run_foreign_code: has_foreign_copies,
        };
        let performed = step.perform(py, |measured, count| {
            let magnitudes = known.as_ref().map_or(measured, std::slice::from_ref);
            let Decision { verdict, total } = clipping.decide(loss_scale, magnitudes, count)?;
            Ok((verdict, total))
        })?;
        let Performed { outcome, answer: total, magnitudes, registry } = performed;
        let norm = total.map(|total| total.norm_divided(Order::Two, loss_scale));
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
