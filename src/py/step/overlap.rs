//! The overlap check of a step: no array that it writes may share memory with another array of the step.

use super::checks::check_variable;
use super::pairs::{Gradient, Pair, copy_name, slot_name, step_count_name};
use super::registry::Registry;
use crate::allocation::{filled, reserve, with_capacity};
use crate::engine::plan::Plan;
use crate::engine::workspace::{Context, Workspace};
use crate::error::Error;
use crate::operations::clip::{Action, Actions, apply};
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::output::OutputAllocator;
use crate::py::arrays::overlap::{Clash, Part, Spans, sweep};
use crate::py::arrays::segment::segment;
use crate::py::arrays::view::View;
use crate::py::call::{detached, entry_that_reads};
use crate::py::objects;
use crate::py::raise::check_memory;
use crate::py::tensors::door::{Access, open};
use pyo3::prelude::*;
use std::ops::ControlFlow;

/// The index of `global_step` among the counters of a step, after those of the variables.
const GLOBAL_STEP: usize = u32::MAX as usize;

/// Checks that variables, low-precision copies, slots and counters overlap neither each other nor themselves. A
/// gradient that overlaps one of them is replaced by a copy, so that the result is that of NumPy's in-place operators.
pub fn check_overlap<'py>(
    py: Python<'py>,
    pairs: &mut [Pair<'py>],
    variables: ArgumentName<'_>,
    registry: Option<&Registry>,
    global_step: Option<&View<'py>>,
) -> PyResult<()> {
    let optimizer_slots = match registry {
        Some(registry) if may_be_views_of_slots(pairs, global_step) => registered_slots(py, registry, pairs)?,
        _ => Vec::new(),
    };
    let mut overlapping = filled(false, pairs.len())?;
    let mut spans = Spans::with_capacity(2 * pairs.len() + optimizer_slots.len() + 1)?;
    for (index, pair) in pairs.iter().enumerate() {
        spans.push(&pair.variable, Part::Output, index)?;
        if let Some(gradient) = &pair.gradient {
            spans.push(&gradient.values, Part::Input, index)?;
        }
        if let Some(copy) = pair.copy() {
            spans.push(copy, Part::Copy, index)?;
        }
        for slot in pair.slots() {
            spans.push(slot, Part::Slot, index)?;
        }
        if let Some(step_count) = pair.step_count() {
            spans.push(step_count, Part::Counter, index)?;
        }
    }
    for (index, slot) in &optimizer_slots {
        spans.push(slot, Part::Slot, *index)?;
    }
    if let Some(counter) = global_step {
        spans.push(counter, Part::Counter, GLOBAL_STEP)?;
    }
    let conflict = sweep(py, spans, |clash| match clash {
        Clash::Between(_, (Part::Input, index)) => {
            overlapping[index] = true;
            ControlFlow::Continue(())
        }
        clash => ControlFlow::Break(clash),
    })?;
    if let ControlFlow::Break(clash) = conflict {
        return Err(conflict_error(&clash, |array| name(variables, array)).into());
    }
    for (pair, is_overlapping) in pairs.iter_mut().zip(overlapping) {
        if let Some(gradient) = pair.gradient.as_mut().filter(|_| is_overlapping) {
            copy_values(py, gradient)?;
        }
    }
    check_memory(py)
}

/// Whether an array of the step may be a view of a slot. An array that owns its memory is not a view.
fn may_be_views_of_slots(pairs: &[Pair], global_step: Option<&View>) -> bool {
    let gradient = |pair: &Pair| pair.gradient.as_ref().is_some_and(|gradient| gradient.values.has_base());
    let copy = |pair: &Pair| pair.copy().is_some_and(View::has_base);
    global_step.is_some_and(View::has_base)
        || pairs.iter().any(|pair| pair.variable.has_base() || gradient(pair) || copy(pair))
}

/// Returns views of the slots that the optimizer owns for the variables of the pairs, each with the index of its pair.
fn registered_slots<'py>(
    py: Python<'py>,
    registry: &Registry,
    pairs: &[Pair<'py>],
) -> PyResult<Vec<(usize, View<'py>)>> {
    let mut slots = with_capacity(pairs.len())?;
    for (index, pair) in pairs.iter().enumerate() {
        if let Some(place) = registry.position(&pair.variable, index)? {
            let entry = &registry.entries[place];
            for slot in &*entry.slots {
                reserve(&mut slots, 1)?;
                slots.push((index, entry.view_of_slot(py, slot)?));
            }
        }
    }
    Ok(slots)
}

/// Returns the name of an array that the step writes, for messages.
fn name(variables: ArgumentName<'_>, (part, index): (Part, usize)) -> String {
    match part {
        Part::Copy => copy_name(variables, index),
        Part::Slot => slot_name(variables, index),
        Part::Counter if index == GLOBAL_STEP => "global_step".into(),
        Part::Counter => step_count_name(variables, index),
        Part::Input | Part::Output => variables.entry(index),
    }
}

/// The error of arrays that overlap. `name` returns the name of an array, for messages.
fn conflict_error(clash: &Clash, name: impl Fn((Part, usize)) -> String) -> Error {
    Error::Value(match *clash {
        Clash::Within(part, index) => {
            format!("{} overlaps itself: elements of it share memory", name((part, index)))
        }
        Clash::Between(first, second) => {
            let (later, earlier) = (first.max(second), first.min(second));
            let reason = if later.0 == Part::Counter {
                "; it takes a counter of its own"
            } else {
                ": each variable may be there once"
            };
            format!("{} shares memory with {}{reason}", name(later), name(earlier))
        }
    })
}

/// Replaces the values of a gradient by a copy.
fn copy_values<'py>(py: Python<'py>, gradient: &mut Gradient<'py>) -> PyResult<()> {
    let copy = OutputAllocator::new(py, std::iter::once(&gradient.values)).empty_like(&gradient.values)?;
    let mut segments = [segment(&gradient.values, Some(&copy))?];
    let plan = Plan::new(&segments)?;
    let workspace = Workspace::new(Context::current(), &segments, &plan)?;
    check_memory(py)?;
    detached(py, || {
        apply(&workspace, &mut segments, &plan, Actions::All(Action::Keep));
        Ok(())
    })?;
    gradient.values = copy;
    Ok(())
}

/// Checks that variables overlap neither each other nor themselves.
#[pyfunction]
#[pyo3(signature = (arrays, argument, /))]
pub fn check_variables(arrays: &Bound<'_, PyAny>, argument: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = arrays.py();
    entry_that_reads(py, || {
        let argument: String = argument.extract()?;
        let names = ArgumentName::List(&argument);
        let access = Access { writes: true, needs_signs: true, is_recorded: false };
        let arrays = open(&objects::copy_to_list(arrays)?, AcceptedDTypes::Variables, access, names)?.views;
        let mut spans = Spans::with_capacity(arrays.len())?;
        for (index, view) in arrays.iter().enumerate() {
            let Some(view) = view else {
                return Err(
                    Error::Type(format!("{} is None; it takes a variable", names.entry(index))).into()
                );
            };
            check_variable(view, || names.entry(index))?;
            spans.push(view, Part::Output, index)?;
        }
        match sweep(py, spans, ControlFlow::Break)? {
            ControlFlow::Break(clash) => Err(conflict_error(&clash, |(_, index)| names.entry(index)).into()),
            ControlFlow::Continue(()) => Ok(()),
        }
    })
}
