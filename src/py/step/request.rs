//! The arguments of a step, as an object that Python creates.

use super::counters::Counters;
use super::gradient_clipping::GradientClipping;
use super::hyper_parameters::HyperParameters;
use super::slots::{CallerSlots, Slots};
use super::updates::SeedOfStep;
use crate::error::Error;
use crate::operations::gradient_clipping::GradientOptions;
use crate::operations::magnitude::Magnitude;
use crate::operations::rules::RuleKind;
use crate::py::call::entry_that_reads;
#[cfg(feature = "gpu")]
use crate::py::gpu::slots::DeviceSlots;
use crate::py::objects::{extract, to_f64};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyList;

/// The owner of the slots that a step updates.
enum SlotSource {
    /// The optimizer: the slots are memory owned by fastclip.
    Optimizer(Py<Slots>),
    /// The caller: the slots are arrays that are passed with each pair.
    Caller(Py<CallerSlots>),
    /// The optimizer: the slots are arrays on a device.
    #[cfg(feature = "gpu")]
    Device(Py<DeviceSlots>),
}

/// A sparse gradient: it has values for some rows of its variable, and is 0 elsewhere.
#[pyclass(frozen, module = "fastclip._core")]
pub struct RowGradient {
    /// The values of the rows, in ascending order of their indices, with repeated rows summed.
    pub(super) values: Py<PyAny>,
    /// The indices of the rows, without duplicates.
    pub(super) indices: Py<PyAny>,
    /// The values of the rows as the caller passed them, with repeated rows. The norm is computed from these.
    pub(super) original: Py<PyAny>,
    /// Whether the values have been clamped already: repeated rows are clamped before they are summed.
    pub(super) is_clamped: bool,
}

#[pymethods]
impl RowGradient {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.values)?;
        visit.call(&self.indices)?;
        visit.call(&self.original)
    }

    #[new]
    fn new(values: Py<PyAny>, indices: Py<PyAny>, original: Py<PyAny>, is_clamped: bool) -> Self {
        Self { values, indices, original, is_clamped }
    }
}

/// The arguments of a step.
#[pyclass(frozen, module = "fastclip._core")]
pub struct StepRequest {
    slots: SlotSource,
    pairs: Py<PyList>,
    numbers: Py<PyAny>,
    clipping: Py<GradientClipping>,
    loss_scale: f64,
    global_step: Option<Py<PyAny>>,
    /// The norm of all gradients before the division by the loss scale, if it is known: a mantissa and an exponent of two.
    norm: Option<(f64, i32)>,
}

#[pymethods]
impl StepRequest {
    /// Shows the garbage collector the objects of the request: a cycle through its list of pairs is broken there.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.pairs)?;
        visit.call(&self.numbers)?;
        self.global_step.as_ref().map_or(Ok(()), |counter| visit.call(counter))
    }

    /// `pairs` is a list of tuples `(gradient, variable)`; with [`CallerSlots`] of tuples `(gradient, variable, slots,
    /// copy, hyper, step_count)`, see `pairs.rs`. `numbers` is a function that the step calls after it has begun. It
    /// returns a tuple of:
    ///
    /// - the sets of hyper-parameters, a list of sequences of float;
    /// - the counters that the step advances, a list of pairs of a float64 array and its next value;
    /// - the number of skipped steps, an array;
    /// - the report on norm and clipping, an array. See [`Counters`] for both;
    /// - the seed of stochastic rounding and the number of the step, a pair of int; None if slots are not rounded so.
    ///
    /// `global_step` is an array of one integer, which the step increments. `norm` is the norm of all gradients, as a
    /// mantissa and an exponent of two, if the gradients are not to be measured.
    #[new]
    #[pyo3(signature = (slots, pairs, numbers, clipping, loss_scale, global_step = None, norm = None))]
    fn new(
        slots: &Bound<'_, PyAny>,
        pairs: Py<PyList>,
        numbers: Py<PyAny>,
        clipping: Py<GradientClipping>,
        loss_scale: f64,
        global_step: Option<Py<PyAny>>,
        norm: Option<(f64, i32)>,
    ) -> PyResult<Self> {
        // The types are checked here, because PyO3's derived extraction of an enum creates exceptions while it tries
        // the variants, and panics if memory runs out.
        entry_that_reads(slots.py(), || {
            let slots = if let Ok(slots) = slots.cast_exact::<Slots>() {
                SlotSource::Optimizer(slots.clone().unbind())
            } else if let Ok(slots) = slots.cast_exact::<CallerSlots>() {
                SlotSource::Caller(slots.clone().unbind())
            } else if let Some(slots) = device_slots_of(slots) {
                slots
            } else {
                return Err(Error::Type("slots must be Slots, DeviceSlots or CallerSlots".into()).into());
            };
            Ok(Self { slots, pairs, numbers, clipping, loss_scale, global_step, norm })
        })
    }
}

/// The numbers that a step reads after it has begun, and the arrays of those that it changes.
pub struct Numbers<'py> {
    pub hyper: HyperParameters,
    pub counters: Counters<'py>,
    /// How slots of the optimizer are rounded stochastically; None if they are not.
    pub rounding: Option<SeedOfStep>,
}

impl StepRequest {
    /// The slots, if the optimizer owns them; None if the caller does.
    pub fn optimizer_slots(&self) -> Option<&Slots> {
        match &self.slots {
            SlotSource::Optimizer(slots) => Some(slots.get()),
            SlotSource::Caller(_) => None,
            #[cfg(feature = "gpu")]
            SlotSource::Device(_) => None,
        }
    }

    /// The slots, if they are arrays on a device.
    #[cfg(feature = "gpu")]
    pub fn device_slots(&self) -> Option<&DeviceSlots> {
        match &self.slots {
            SlotSource::Device(slots) => Some(slots.get()),
            SlotSource::Optimizer(_) | SlotSource::Caller(_) => None,
        }
    }

    /// The rule that updates the variables.
    pub fn kind(&self) -> RuleKind {
        match &self.slots {
            SlotSource::Optimizer(slots) => slots.get().kind(),
            SlotSource::Caller(slots) => slots.get().kind(),
            #[cfg(feature = "gpu")]
            SlotSource::Device(slots) => slots.get().kind(),
        }
    }

    /// The pairs of gradients and variables.
    pub fn pairs<'py>(&self, py: Python<'py>) -> &Bound<'py, PyList> {
        self.pairs.bind(py)
    }

    /// The gradient options.
    pub fn clipping(&self) -> GradientOptions {
        self.clipping.get().options()
    }

    /// The magnitude of order 2 of all gradients, if it is known.
    pub fn known_magnitude(&self) -> Option<Magnitude> {
        let (norm, exponent) = self.norm?;
        // The root of the square of a float64 is that float64.
        Some(Magnitude { value: norm * norm, exponent })
    }

    /// The number that gradients are divided by.
    pub fn loss_scale(&self) -> f64 {
        self.loss_scale
    }

    /// Calls `numbers`, and returns what it returns.
    pub fn numbers<'py>(&self, py: Python<'py>) -> PyResult<Numbers<'py>> {
        let [sets, advanced, skipped, report, rounding] = items(&self.numbers.bind(py).call0()?)?;
        let seed_of_step = |pair: Bound<'py, PyAny>| {
            let [seed, step] = items(&pair)?;
            PyResult::Ok(SeedOfStep { seed: seed.extract()?, step: step.extract()? })
        };
        let rounding = (!rounding.is_none()).then(|| seed_of_step(rounding)).transpose()?;
        let counter = |pair: &Bound<'py, PyAny>| {
            let [array, value] = items(pair)?;
            Ok((array, to_f64(&value)?))
        };
        let sets = extract(&sets, |set| extract(set, to_f64))?;
        let global_step = self.global_step.as_ref().map(|counter| counter.bind(py).clone());
        let counters = Counters::new(extract(&advanced, counter)?, global_step, skipped, report)?;
        Ok(Numbers { hyper: HyperParameters::new(self.kind(), &sets)?, counters, rounding })
    }
}

/// Returns the slots of an optimizer whose variables are arrays on a device.
fn device_slots_of(slots: &Bound<'_, PyAny>) -> Option<SlotSource> {
    #[cfg(feature = "gpu")]
    if let Ok(slots) = slots.cast_exact::<DeviceSlots>() {
        return Some(SlotSource::Device(slots.clone().unbind()));
    }
    let _ = slots;
    None
}

/// Returns the items of a tuple of `N` items. An allocation that fails raises `MemoryError`, which `PyO3`'s extraction
/// of tuples does not promise.
fn items<'py, const N: usize>(tuple: &Bound<'py, PyAny>) -> PyResult<[Bound<'py, PyAny>; N]> {
    let items = extract(tuple, |item| Ok(item.clone()))?;
    items.try_into().map_err(|_| Error::Value(format!("fastclip._core: a tuple has not {N} items")).into())
}
