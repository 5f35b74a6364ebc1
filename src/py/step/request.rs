//! The request for a step, as Python makes it.

use super::counters::Counters;
use super::gradient_clipping::GradientClipping;
use super::hyper_parameters::HyperParameters;
use super::slots::{CallerSlots, Slots};
use crate::error::Error;
use crate::operations::rules::RuleKind;
use crate::py::call::entry_that_reads;
use crate::py::objects::{extract, to_f64};
use pyo3::prelude::*;
use pyo3::types::PyList;

/// Where the slots of a step are.
enum SlotSource {
    /// In memory that the optimizer keeps.
    Kept(Py<Slots>),
    /// In arrays that are passed with each pair.
    Caller(Py<CallerSlots>),
}

/// A gradient that has values for some rows of its variable, and is 0 elsewhere.
#[pyclass(frozen, module = "fastclip._core")]
pub struct RowGradient {
    /// The rows, each once, in ascending order.
    pub(super) values: Py<PyAny>,
    /// Their indices.
    pub(super) indices: Py<PyAny>,
    /// The rows as the caller passed them, of which the norm is taken: some may be repeated.
    pub(super) given: Py<PyAny>,
    /// Whether the rows have been clamped, which happens before repeated rows are summed.
    pub(super) is_clamped: bool,
}

#[pymethods]
impl RowGradient {
    #[new]
    fn new(values: Py<PyAny>, indices: Py<PyAny>, given: Py<PyAny>, is_clamped: bool) -> Self {
        Self { values, indices, given, is_clamped }
    }
}

/// All that a step takes.
#[pyclass(frozen, module = "fastclip._core")]
pub struct StepRequest {
    slots: SlotSource,
    pairs: Py<PyList>,
    numbers: Py<PyAny>,
    clipping: Py<GradientClipping>,
    loss_scale: f64,
    global_step: Option<Py<PyAny>>,
}

#[pymethods]
impl StepRequest {
    /// `pairs` is a list of tuples `(gradient, variable)`; with [`CallerSlots`] of tuples `(gradient, variable, slots,
    /// copy, hyper, step_count)`, see `pairs.rs`. `numbers` is called when the step has begun, and returns a tuple of:
    ///
    /// - the sets of hyper-parameters, a list;
    /// - the counters that the step advances, a list of pairs of a float64 array and its next value;
    /// - the number of skipped steps and the report on the norm, two arrays. See [`Counters`].
    ///
    /// `global_step` grows by one.
    #[new]
    #[pyo3(signature = (slots, pairs, numbers, clipping, loss_scale, global_step = None))]
    fn new(
        slots: &Bound<'_, PyAny>,
        pairs: Py<PyList>,
        numbers: Py<PyAny>,
        clipping: Py<GradientClipping>,
        loss_scale: f64,
        global_step: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        // By hand: the derived extraction of an enum creates exceptions on the way, and panics where memory runs out.
        entry_that_reads(slots.py(), || {
            let slots = if let Ok(slots) = slots.cast_exact::<Slots>() {
                SlotSource::Kept(slots.clone().unbind())
            } else if let Ok(slots) = slots.cast_exact::<CallerSlots>() {
                SlotSource::Caller(slots.clone().unbind())
            } else {
                return Err(Error::Type("slots must be Slots or CallerSlots".into()).into());
            };
            Ok(Self { slots, pairs, numbers, clipping, loss_scale, global_step })
        })
    }
}

impl StepRequest {
    /// The optimizer's own slots; None if the caller passes them.
    pub fn kept_slots(&self) -> Option<&Slots> {
        match &self.slots {
            SlotSource::Kept(slots) => Some(slots.get()),
            SlotSource::Caller(_) => None,
        }
    }

    /// The rule.
    pub fn kind(&self) -> RuleKind {
        match &self.slots {
            SlotSource::Kept(slots) => slots.get().kind(),
            SlotSource::Caller(slots) => slots.get().kind(),
        }
    }

    /// The pairs of gradients and variables.
    pub fn pairs<'py>(&self, py: Python<'py>) -> &Bound<'py, PyList> {
        self.pairs.bind(py)
    }

    /// How gradients are clipped.
    pub fn clipping(&self) -> &GradientClipping {
        self.clipping.get()
    }

    /// What gradients are divided by.
    pub fn loss_scale(&self) -> f64 {
        self.loss_scale
    }

    /// Calls `numbers`, and returns the sets of hyper-parameters and the counters.
    pub fn numbers<'py>(&self, py: Python<'py>) -> PyResult<(HyperParameters, Counters<'py>)> {
        let [sets, advanced, skipped, report] = items(&self.numbers.bind(py).call0()?)?;
        let counter = |pair: &Bound<'py, PyAny>| {
            let [array, value] = items(pair)?;
            Ok((array, to_f64(&value)?))
        };
        let sets = extract(&sets, |set| extract(set, to_f64))?;
        let global_step = self.global_step.as_ref().map(|counter| counter.bind(py).clone());
        let counters = Counters::new(extract(&advanced, counter)?, global_step, skipped, report)?;
        Ok((HyperParameters::new(self.kind(), &sets)?, counters))
    }
}

/// Takes the items out of a tuple that has so many. A failing allocation is a `MemoryError`, which `PyO3`'s extraction of
/// tuples does not promise.
fn items<'py, const N: usize>(tuple: &Bound<'py, PyAny>) -> PyResult<[Bound<'py, PyAny>; N]> {
    let items = extract(tuple, |item| Ok(item.clone()))?;
    items.try_into().map_err(|_| Error::Value(format!("fastclip._core: a tuple has not {N} items")).into())
}
