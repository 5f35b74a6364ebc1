//! Steps of optimizers over arrays on a device.

use super::array::DeviceArray;
use super::slots::{DeviceSlots, Entry, LastStep};
use crate::allocation::with_capacity;
use crate::gpu::array::{Array, Element};
use crate::gpu::clip;
use crate::gpu::plan::{Change, Grouping, Key, Order, Plan, known, make};
use crate::gpu::step::{Outcome, Parameters, divided, take};
use crate::operations::gradient_clipping::Clip;
use crate::py::call::detached;
use crate::py::raise::nonfinite_error;
use crate::py::step::counters::Report;
use crate::py::step::pairs::{GRADIENTS, VARIABLES};
use crate::py::step::request::StepRequest;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::collections::HashSet;
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
    let (mut hyper, counters) = request.numbers(py)?;
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
        let plan = plan(&roles, grouping, change)?;
        Ok(take(&device, &plan, &parameters, &new_slots)?)
    })?;
    if outcome == Outcome::Refused {
        return Err(refusal(py, &roles[0], &pairs, parameters.loss_scale)?);
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
    if gradient.array.element == Element::I32 {
        return Err(PyTypeError::new_err(format!(
            "{} is an array of dtype int32; it takes float32, float16 and bfloat16",
            GRADIENTS.entry(index)
        )));
    }
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
    entries: Vec<(u64, Entry)>,
    /// The slots that the step creates.
    new_slots: Vec<Arc<Array>>,
}

/// Finds or creates the slots of the variables.
fn operands(slots: &DeviceSlots, pairs: &[Pair<'_>]) -> PyResult<Operands> {
    let count = slots.kind().slots();
    let mut registry = slots.living();
    // Nothing may fail after the update is submitted.
    registry.reserve(pairs.len())?;
    let mut operands =
        Operands { roles: vec![Vec::new(); 2 + count], entries: Vec::new(), new_slots: Vec::new() };
    let mut variables = HashSet::new();
    let slot_ids: HashSet<u64> = registry.slot_ids().collect();
    for pair in pairs {
        let variable = pair.variable.get();
        if !variables.insert(variable.id) {
            return Err(PyValueError::new_err(format!(
                "{} is the same array as another variable",
                VARIABLES.entry(pair.index)
            )));
        }
        if slot_ids.contains(&variable.id) {
            return Err(PyValueError::new_err(format!(
                "{} is a slot of the optimizer",
                VARIABLES.entry(pair.index)
            )));
        }
        let known = registry.entry(variable.id);
        let Some(gradient) = &pair.gradient else {
            if known.is_none() {
                operands.entries.push((variable.id, Entry::new(variable)));
            }
            continue;
        };
        let mut push = |slots: &[Arc<Array>]| {
            let arrays = [&gradient.get().array, &variable.array];
            for (role, array) in operands.roles.iter_mut().zip(arrays.into_iter().chain(slots)) {
                role.push(Arc::clone(array));
            }
        };
        match known {
            Some(entry) if entry.slots.len() == count => push(&entry.slots),
            _ => {
                let mut entry = Entry::new(variable);
                entry.slots = Entry::create_slots(&variable.array, count)?;
                push(&entry.slots);
                operands.new_slots.extend(entry.slots.iter().cloned());
                operands.entries.push((variable.id, entry));
            }
        }
    }
    if operands.roles[0].is_empty() {
        return Err(PyValueError::new_err("there is no gradient"));
    }
    for pair in pairs {
        let Some(gradient) = &pair.gradient else { continue };
        let id = gradient.get().id;
        if id != pair.variable.get().id && variables.contains(&id) || slot_ids.contains(&id) {
            return Err(PyValueError::new_err(format!(
                "{} is also another variable or a slot of the optimizer, which the step writes",
                GRADIENTS.entry(pair.index)
            )));
        }
    }
    Ok(operands)
}

/// Returns the plan of a step, which is kept.
fn plan(
    roles: &[Vec<Arc<Array>>],
    grouping: Grouping,
    change: Change,
) -> Result<Arc<Plan>, crate::gpu::error::GpuError> {
    let arrays = roles.iter().flatten().map(|array| array.id).collect();
    let key = Key { arrays, inputs: roles[0].len(), grouping, order: Order::Euclidean, change };
    let device = &roles[0][0].device;
    if let Some(plan) = known(device, &key)? {
        return Ok(plan);
    }
    let operands: Vec<_> = roles.iter().map(Vec::as_slice).collect();
    make(device, key, &operands, true)
}

/// Returns the error of a step with NaN or infinity in its gradients.
fn refusal(py: Python<'_>, gradients: &[Arc<Array>], pairs: &[Pair<'_>], loss_scale: f64) -> PyResult<PyErr> {
    let norms = detached(py, || {
        let roles = [gradients.to_vec()];
        let plan = plan(&roles, Grouping::Each, Change::Nothing)?;
        Ok(clip::norms(&gradients[0].device, &plan)?.values()?.to_vec())
    })?;
    let indices = pairs.iter().filter(|pair| pair.gradient.is_some()).map(|pair| pair.index);
    let bad = indices.zip(&norms).filter(|(_, norm)| !norm.is_finite()).map(|(index, _)| index);
    let norms: Vec<f64> = norms.iter().map(|norm| divided(*norm, loss_scale)).collect();
    Ok(nonfinite_error(py, bad, GRADIENTS, f64::NAN, Some(&norms)))
}
