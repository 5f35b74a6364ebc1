//! Steps of optimizers over arrays on a device.

use super::array::DeviceArray;
use super::slots::{DeviceSlots, Entry, LastStep};
use crate::allocation::{OutOfMemory, with_capacity};
use crate::gpu::array::{Array, Element};
use crate::gpu::clip;
use crate::gpu::error::GpuError;
use crate::gpu::norms::Norms;
use crate::gpu::plan::{Change, Grouping, Key, Order, Plan, known, make};
use crate::gpu::step::{Outcome, Parameters, divided, take};
use crate::operations::gradient_clipping::Clip;
use crate::py::call::detached;
use crate::py::raise::{NonFiniteError, exception, nonfinite_error};
use crate::py::step::counters::Report;
use crate::py::step::pairs::{GRADIENTS, VARIABLES};
use crate::py::step::request::{Numbers, StepRequest};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::collections::HashMap;
use std::sync::Arc;

/// A gradient and its variable. The index is that among all pairs.
struct Pair<'py> {
    index: usize,
    gradient: Option<Bound<'py, DeviceArray>>,
    variable: Bound<'py, DeviceArray>,
}

/// Takes a step. Returns false if it was skipped.
pub fn take_step(py: Python<'_>, request: &StepRequest, slots: &DeviceSlots) -> PyResult<bool> {
    let _guard = slots.begin_step(py)?;
    let Numbers { mut hyper, counters, .. } = request.numbers(py)?;
    hyper.at_step(0, None)?;
    let parameters = Parameters {
        options: request.clipping(),
        loss_scale: request.loss_scale(),
        coefficients: (slots.rule.coefficients)(hyper.used()),
    };
    let pairs = read_pairs(py, request)?;
    let Some(device) = pairs.first().map(|pair| Arc::clone(&pair.variable.get().array.device)) else {
        return Err(PyValueError::new_err("there is no pair"));
    };
    device.check()?;
    // After this, nothing runs code of the caller before the counters are advanced.
    let Operands { roles, entries, new_slots } = operands(slots, &pairs)?;
    let is_measured = parameters.options.needs_norms();
    let grouping =
        if matches!(parameters.options.clip, Clip::Norm(_)) { Grouping::Each } else { Grouping::Global };
    let change = Change::Update { rule: slots.kind(), is_measured };
    let (outcome, norms) = detached(py, || {
        // If the step is not taken, its new slots are dropped.
        let is_kept = new_slots.is_empty() || !parameters.options.may_refuse();
        let plan = plan(&roles, grouping.clone(), change, is_kept)?;
        Ok(take(&device, &plan, &parameters, &new_slots)?)
    })?;
    if outcome == Outcome::Refused {
        let measured = norms.filter(|_| grouping == Grouping::Each);
        return Err(refusal(py, &roles[0], &pairs, measured, parameters.loss_scale)?);
    }
    let is_taken = outcome == Outcome::Taken;
    if is_taken {
        slots.living().set(entries);
        counters.advance();
    } else {
        counters.skip();
    }
    // The report of the host says that nothing was measured there.
    counters.report(&Report { norm: None, is_float64: false, scale: None });
    let Parameters { options, loss_scale, .. } = parameters;
    slots.report_step(LastStep { norms, options, loss_scale, is_skipped: !is_taken });
    Ok(is_taken)
}

/// Reads the pairs of a request, and checks types and shapes.
fn read_pairs<'py>(py: Python<'py>, request: &StepRequest) -> PyResult<Vec<Pair<'py>>> {
    let list = request.pairs(py);
    let mut pairs: Vec<Pair<'py>> = with_capacity(list.len())?;
    for (index, pair) in list.iter().enumerate() {
        let pair = pair.cast_into_exact::<PyTuple>().map_err(PyErr::from)?;
        let (gradient, variable) = (pair.get_item(0)?, pair.get_item(1)?);
        let on_device = |object: Bound<'py, PyAny>, name: String| {
            object.cast_into_exact::<DeviceArray>().map_err(|error| {
                let object = error.into_inner();
                let kind = object.get_type().name().map_or_else(|_| "object".into(), |name| name.to_string());
                PyTypeError::new_err(format!(
                    "{name} is a {kind} in host memory beside arrays on a device; fastclip.gpu.asarray copies it there"
                ))
            })
        };
        let variable = on_device(variable, VARIABLES.entry(index))?;
        let gradient =
            if gradient.is_none() { None } else { Some(on_device(gradient, GRADIENTS.entry(index))?) };
        check_pair(gradient.as_ref().map(Bound::get), variable.get(), index)?;
        if let Some(first) = pairs.first()
            && first.variable.get().index != variable.get().index
        {
            return Err(PyTypeError::new_err(format!(
                "{} is on another device than the variables before it",
                VARIABLES.entry(index)
            )));
        }
        pairs.push(Pair { index, gradient, variable });
    }
    Ok(pairs)
}

/// Checks a gradient and its variable.
fn check_pair(gradient: Option<&DeviceArray>, variable: &DeviceArray, index: usize) -> PyResult<()> {
    if variable.array.element != Element::F32 {
        return Err(PyTypeError::new_err(format!(
            "{} is {}; variables on a device are float32",
            VARIABLES.entry(index),
            variable.describe()
        )));
    }
    let Some(gradient) = gradient else { return Ok(()) };
    gradient.check_is_float(|| Ok(GRADIENTS.entry(index)))?;
    if gradient.index != variable.index {
        return Err(PyTypeError::new_err(format!(
            "{} is on another device than its variable",
            GRADIENTS.entry(index)
        )));
    }
    if gradient.shape != variable.shape {
        return Err(PyValueError::new_err(format!(
            "{} is {} where {} is {}: the shapes must be the same",
            GRADIENTS.entry(index),
            gradient.describe(),
            VARIABLES.entry(index),
            variable.describe()
        )));
    }
    Ok(())
}

/// The arrays of a step.
struct Operands {
    /// Gradients, variables, and each slot, of the pairs that have a gradient.
    roles: Vec<Vec<Arc<Array>>>,
    /// The entries of the registry that the step changes.
    entries: Vec<Entry>,
    /// The slots that the step creates.
    new_slots: Vec<Arc<Array>>,
}

/// Finds or creates the slots of the variables.
fn operands(slots: &DeviceSlots, pairs: &[Pair<'_>]) -> PyResult<Operands> {
    let count = slots.kind().slots();
    let known = known_entries(slots, pairs)?;
    let mut roles = with_capacity(2 + count)?;
    for _ in 0..2 + count {
        roles.push(with_capacity(pairs.len())?);
    }
    let mut entries = with_capacity(pairs.len())?;
    let mut new_slots = with_capacity(pairs.len().saturating_mul(count))?;
    for (pair, known) in pairs.iter().zip(known) {
        let variable = pair.variable.get();
        let Some(gradient) = &pair.gradient else {
            if known.is_none() {
                entries.push(Entry::new(variable));
            }
            continue;
        };
        let mut push = |slots: &[Arc<Array>]| {
            let arrays = [&gradient.get().array, &variable.array];
            for (role, array) in roles.iter_mut().zip(arrays.into_iter().chain(slots)) {
                role.push(Arc::clone(array));
            }
        };
        match known {
            Some(entry) if entry.slots.len() == count => push(&entry.slots),
            _ => {
                let mut entry = Entry::new(variable);
                entry.slots = Entry::create_slots(&variable.array, count)?;
                push(&entry.slots);
                new_slots.extend(entry.slots.iter().cloned());
                entries.push(entry);
            }
        }
    }
    if roles[0].is_empty() {
        return Err(PyValueError::new_err("there is no gradient"));
    }
    Ok(Operands { roles, entries, new_slots })
}

/// Returns what the optimizer knows of the variables, after checking that no array that the step writes is another one
/// that it uses.
fn known_entries(slots: &DeviceSlots, pairs: &[Pair<'_>]) -> PyResult<Vec<Option<Entry>>> {
    let mut known = with_capacity(pairs.len())?;
    // The pair of each variable, and whether the step writes the variable.
    let mut variables: HashMap<u64, (usize, bool)> = HashMap::new();
    let bytes = pairs.len().saturating_mul(size_of::<(u64, (usize, bool))>());
    variables.try_reserve(pairs.len()).map_err(|_| OutOfMemory { bytes })?;
    let mut registry = slots.living();
    // Nothing may fail after the update is submitted.
    let reserved = registry.reserve(pairs.len());
    // A gradient or a variable that is a slot, with its name.
    let mut slot = None;
    let mut twice = None;
    for pair in pairs {
        let variable = pair.variable.get();
        known.push(registry.entry(variable.id).cloned());
        if registry.entry_of_slot(variable.id).is_some() {
            slot = slot.or(Some((VARIABLES, pair.index)));
        }
        if variable.array.len > 0
            && let Some((other, _)) = variables.insert(variable.id, (pair.index, pair.gradient.is_some()))
        {
            twice = twice.or(Some((pair.index, other)));
        }
    }
    let is_written = |id: u64| variables.get(&id).is_some_and(|(_, is_written)| *is_written);
    let is_own = |pair: &Pair<'_>, id: u64| id == pair.variable.get().id;
    let mut also_written = None;
    for pair in pairs {
        let Some(gradient) = &pair.gradient else { continue };
        let id = gradient.get().id;
        if !is_own(pair, id) && is_written(id) {
            also_written = also_written.or(Some(pair.index));
        }
        if registry.entry_of_slot(id).is_some_and(|entry| is_written(entry.id)) {
            slot = slot.or(Some((GRADIENTS, pair.index)));
        }
    }
    // Errors are objects of Python, whose creation may run its garbage collector, and that code of the caller.
    drop(registry);
    reserved?;
    if let Some((index, other)) = twice {
        return Err(PyValueError::new_err(format!(
            "{} is the same array as {}",
            VARIABLES.entry(index),
            VARIABLES.entry(other)
        )));
    }
    if let Some((name, index)) = slot {
        return Err(PyValueError::new_err(format!(
            "{} is a slot of the optimizer, which the step writes",
            name.entry(index)
        )));
    }
    if let Some(index) = also_written {
        return Err(PyValueError::new_err(format!(
            "{} is also the variable of another pair, which the step writes",
            GRADIENTS.entry(index)
        )));
    }
    Ok(known)
}

/// Returns the plan of a step, which is kept if `is_kept`.
fn plan(
    roles: &[Vec<Arc<Array>>],
    grouping: Grouping,
    change: Change,
    is_kept: bool,
) -> Result<Arc<Plan>, GpuError> {
    let mut arrays = with_capacity(roles.iter().map(Vec::len).sum())?;
    arrays.extend(roles.iter().flatten().map(|array| array.id));
    let key = Key { arrays, inputs: roles[0].len(), grouping, order: Order::Euclidean, change };
    let device = &roles[0][0].device;
    if let Some(plan) = known(device, &key)? {
        return Ok(plan);
    }
    let operands: Vec<_> = roles.iter().map(Vec::as_slice).collect();
    make(device, key, &operands, is_kept)
}

/// Returns the error of a step with NaN or infinity in its gradients.
fn refusal(
    py: Python<'_>,
    gradients: &[Arc<Array>],
    pairs: &[Pair<'_>],
    measured: Option<Norms>,
    loss_scale: f64,
) -> PyResult<PyErr> {
    let norms = detached(py, || {
        let measured = if let Some(norms) = measured {
            norms
        } else {
            let plan = plan(&[gradients.to_vec()], Grouping::Each, Change::Nothing, true)?;
            clip::norms(&gradients[0].device, &plan)?
        };
        Ok(measured.values()?.to_vec())
    })?;
    if norms.iter().all(|norm| norm.is_finite()) {
        // Another thread has written the gradients since.
        let message = format!("NaN or infinity in {}; nothing was written", GRADIENTS.argument());
        return Ok(exception::<NonFiniteError>(py, &message));
    }
    let indices = pairs.iter().filter(|pair| pair.gradient.is_some()).map(|pair| pair.index);
    let bad = indices.zip(&norms).filter(|(_, norm)| !norm.is_finite()).map(|(index, _)| index);
    let norms: Vec<f64> = norms.iter().map(|norm| divided(*norm, loss_scale)).collect();
    Ok(nonfinite_error(py, bad, GRADIENTS, f64::NAN, Some(&norms)))
}
