//! The gradients and variables of a step: looked at, and checked against each other.

use super::slots::{State, check_copy, check_variable};
use crate::allocation::{filled, reserve, with_capacity};
use crate::engine::exec::{Context, Workspace};
use crate::engine::plan::Plan;
use crate::error::Error;
use crate::operations::clip::{Action, Actions, apply};
use crate::py::arrays::batch::{segment, views};
use crate::py::arrays::output::Outputs;
use crate::py::arrays::overlap::{Clash, Part, Spans, sweep};
use crate::py::arrays::view::{AcceptedDTypes, ArgumentName, DTypeCache, View, is_plain_array};
use crate::py::objects;
use crate::py::raise::{check_memory, detached, entry_that_reads};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use std::ops::ControlFlow;

/// Gradients of rows, one entry for each pair. Repeated rows have been summed in what is applied.
#[derive(FromPyObject)]
pub struct Sliced<'py> {
    /// The rows, ascending; None where the gradient is as large as its variable.
    #[pyo3(item(0))]
    indices: Bound<'py, PyAny>,
    /// The gradients as they were given: their norms count.
    #[pyo3(item(1))]
    pub given: Bound<'py, PyAny>,
    /// Which gradients were of rows: these have been clamped before they were summed, if that is asked for.
    #[pyo3(item(2))]
    pub of_rows: Bound<'py, PyAny>,
}

const ARGUMENT: &str = "grads_and_vars";

/// What the arrays of a step are called in messages.
#[derive(Clone, Copy)]
pub struct Labels {
    /// The gradients.
    pub gradients: ArgumentName<'static, 'static>,
    /// The variables and their copies.
    pub variables: ArgumentName<'static, 'static>,
}

impl Labels {
    /// Of so many pairs.
    pub fn new(count: usize) -> Self {
        let label = |part| ArgumentName::Paired { argument: ARGUMENT, part, count };
        Self { gradients: label(0), variables: label(1) }
    }
}

/// The arrays of a step, looked at and checked.
pub struct Arrays<'py> {
    /// The gradients, by their position.
    pub gradients: Vec<Option<View<'py>>>,
    /// Ascending row indices, for gradients that are rows of their variable.
    pub indices: Vec<Option<Box<[usize]>>>,
    /// The variables, after as many the copies of those that have one, and then perhaps their slots.
    pub written: Vec<Option<View<'py>>>,
}

/// Looks at every array and refuses what does not fit. Without `arrays`, `gradients` are plain pairs. `global_step` must
/// not share memory with what is written.
pub fn look<'py>(
    state: &State,
    slots: usize,
    gradients: &Bound<'py, PyList>,
    sliced: Option<&Sliced<'py>>,
    arrays: Option<&Bound<'py, PyList>>,
    global_step: Option<&View<'py>>,
) -> PyResult<Arrays<'py>> {
    let (py, count) = (gradients.py(), gradients.len());
    let labels = Labels::new(count);
    let (mut gradients, mut written) = match arrays {
        None => views_of_pairs(gradients, labels)?,
        Some(arrays) => (
            views(gradients, AcceptedDTypes::Reals, labels.gradients)?,
            views(arrays, AcceptedDTypes::Variables, labels.variables)?,
        ),
    };
    let rows =
        sliced.map(|sliced| views(&sliced.indices, AcceptedDTypes::Ordered, labels.gradients)).transpose()?;
    if gradients.len() != written.len() || rows.as_ref().is_some_and(|rows| rows.len() != written.len()) {
        return Err(Error::Value("gradients, indices and arrays must be as many".into()).into());
    }
    let mut indices = Vec::new();
    let mut copies: Vec<Option<View>> = Vec::new();
    let mut known = DTypeCache::default();
    for (index, (gradient, variable)) in gradients.iter().zip(&written).enumerate() {
        let Some(variable) = variable else {
            return Err(
                Error::Type(format!("{} is None; it takes a variable", labels.variables.of(index))).into()
            );
        };
        check_variable(variable, || labels.variables.of(index))?;
        if let Some(gradient) = gradient {
            let of_rows = rows.as_ref().and_then(|rows| rows[index].as_ref());
            check_gradient(gradient, variable, of_rows, index, labels)?;
            if let Some(rows) = of_rows {
                reserve(&mut indices, count)?;
                indices.resize_with(index, || None);
                indices.push(Some(row_indices(rows, gradient, variable)?));
            }
        }
        if let (Some(copy), Some(_)) = (state.low_precision_copy(py, variable)?, gradient) {
            let name = || labels.variables.of(count + index);
            let copy = View::new(copy, AcceptedDTypes::Reals, &mut known, name)?;
            check_copy(&copy, variable, name)?;
            reserve(&mut copies, count)?;
            copies.resize_with(index, || None);
            copies.push(Some(copy));
        }
    }
    reserve(&mut written, copies.len())?;
    written.extend(copies);
    if gradients.iter().chain(&written).flatten().chain(global_step).any(View::has_base) {
        // What owns its memory cannot be a part of a slot; what does not, may.
        add_slots(py, state, slots, &mut written, count)?;
    }
    if let Some(counter) = global_step {
        check_counter(py, counter, &written, labels.variables)?;
    }
    apart(py, &mut gradients, &written, labels)?;
    check_memory(py)?;
    Ok(Arrays { gradients, indices, written })
}

/// Refuses a step counter that shares memory with a variable or its copy.
fn check_counter(
    py: Python<'_>,
    counter: &View,
    written: &[Option<View>],
    variables: ArgumentName<'_, '_>,
) -> PyResult<()> {
    let mut spans = Spans::with_capacity(1 + written.len())?;
    spans.push(counter, Part::Counter, 0)?;
    for (index, view) in written.iter().enumerate() {
        if let Some(view) = view {
            // As an input: overlap among the arrays that the step writes is checked by `apart`.
            spans.push(view, Part::Input, index)?;
        }
    }
    let found = sweep(py, spans, |clash| match clash {
        Clash::Between(_, (_, index)) => ControlFlow::Break(index),
        Clash::Within(..) => ControlFlow::Continue(()),
    })?;
    match found {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(index) => Err(Error::Value(format!(
            "global_step shares memory with {}; it takes a counter of its own",
            variables.of(index)
        ))
        .into()),
    }
}

/// Refuses a gradient that is not its variable's.
fn check_gradient(
    gradient: &View,
    variable: &View,
    rows: Option<&View>,
    index: usize,
    labels: Labels,
) -> Result<(), Error> {
    let name = || labels.gradients.of(index);
    let (shape, of) = (gradient.shape(), variable.shape());
    let fits = match rows {
        None => shape == of,
        Some(rows) => {
            !of.is_empty() && shape.len() == of.len() && shape[1..] == of[1..] && shape[0] == rows.size
        }
    };
    if !fits {
        return Err(Error::Value(format!(
            "{} is {} where {} is {}: {}",
            name(),
            gradient.describe(),
            labels.variables.of(index),
            variable.describe(),
            if rows.is_some() {
                "rows must have the shape of the variable's"
            } else {
                "the shapes must be the same"
            }
        )));
    }
    Ok(())
}

/// Whether an array is one aligned run in C order.
pub fn is_run(view: &View) -> bool {
    view.size == 0 || view.is_c_order() && view.is_aligned()
}

/// Indices of rows. `fastclip` has sorted them and summed repeated rows.
fn row_indices(indices: &View, gradient: &View, variable: &View) -> Result<Box<[usize]>, Error> {
    if indices.dtype.name() != "int64" || !is_run(indices) || !is_run(gradient) {
        return Err(Error::Value("rows must be contiguous, and their indices int64".into()));
    }
    let rows = variable.shape()[0];
    let mut next = 0;
    let mut found = with_capacity(indices.size)?;
    for at in 0..indices.size {
        // SAFETY: a contiguous, aligned int64 array of this many elements.
        let index = unsafe { indices.pointer.cast::<i64>().add(at).read() };
        match usize::try_from(index) {
            Ok(row) if row >= next && row < rows => {
                found.push(row);
                next = row + 1;
            }
            _ => {
                return Err(Error::Index(format!(
                    "row {index} of a variable that has {rows}, or out of order"
                )));
            }
        }
    }
    Ok(found.into())
}

/// Refuses variables that overlap each other.
#[pyfunction]
#[pyo3(signature = (arrays, argument, /))]
pub fn check_variables(arrays: &Bound<'_, PyAny>, argument: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = arrays.py();
    entry_that_reads(py, || {
        let names = objects::tuple(py, [argument.clone(), py.None().into_bound(py)])?;
        let label = ArgumentName::Listed { names: &names, first: 0 };
        let arrays = views(arrays, AcceptedDTypes::Variables, label)?;
        for (index, view) in arrays.iter().enumerate() {
            let name = || label.of(index);
            match view {
                Some(view) => check_variable(view, name)?,
                None => return Err(Error::Type(format!("{} is None; it takes a variable", name())).into()),
            }
        }
        let mut spans = Spans::with_capacity(arrays.len())?;
        for (index, view) in arrays.iter().enumerate() {
            if let Some(view) = view {
                spans.push(view, Part::Output, index)?;
            }
        }
        match sweep(py, spans, ControlFlow::Break)? {
            ControlFlow::Break(clash) => Err(refuse_clash(&clash, label).into()),
            ControlFlow::Continue(()) => Ok(()),
        }
    })
}

/// The error of variables that overlap.
fn refuse_clash(clash: &Clash, variables: ArgumentName<'_, '_>) -> Error {
    Error::Value(match clash {
        Clash::Within(_, index) => {
            format!("{} overlaps itself: elements of it share memory", variables.of(*index))
        }
        Clash::Between((_, first), (_, second)) => format!(
            "{} shares memory with {}: each variable may be there once",
            variables.of(*second.max(first)),
            variables.of(*second.min(first))
        ),
    })
}

/// Puts the slots of the variables after their copies: as many blocks of `count` as a variable has slots.
fn add_slots<'py>(
    py: Python<'py>,
    state: &State,
    slots: usize,
    written: &mut Vec<Option<View<'py>>>,
    count: usize,
) -> PyResult<()> {
    reserve(written, (1 + slots) * count)?;
    written.resize_with(2 * count, || None);
    for k in 0..slots {
        for index in 0..count {
            let place = match &written[index] {
                Some(variable) => state.position(variable, index)?,
                None => None,
            };
            let entry = place.map(|place| &state.entries[place]);
            let slot = entry.and_then(|entry| Some(entry.view_of_slot(py, entry.slots.get(k)?)));
            written.push(slot.transpose()?);
        }
    }
    Ok(())
}

/// Refuses variables, copies and slots that overlap each other. A gradient that overlaps one of them is read from a
/// copy of it, as NumPy would.
fn apart<'py>(
    py: Python<'py>,
    gradients: &mut [Option<View<'py>>],
    written: &[Option<View<'py>>],
    labels: Labels,
) -> PyResult<()> {
    let mut shared = filled(false, gradients.len())?;
    let mut spans = Spans::with_capacity(gradients.len() + written.len())?;
    for index in 0..gradients.len().max(written.len()) {
        if let Some(view) = written.get(index).and_then(Option::as_ref) {
            let part = match index / gradients.len() {
                0 => Part::Output,
                1 => Part::Copy,
                _ => Part::Slot,
            };
            spans.push(view, part, index)?;
        }
        if let Some(gradient) = gradients.get(index).and_then(Option::as_ref) {
            spans.push(gradient, Part::Input, index)?;
        }
    }
    let found = sweep(py, spans, |clash| match clash {
        Clash::Between(_, (Part::Input, gradient)) => {
            shared[gradient] = true;
            ControlFlow::Continue(())
        }
        clash => ControlFlow::Break(clash),
    })?;
    if let ControlFlow::Break(clash) = found {
        return Err(refuse_clash(&clash, labels.variables).into());
    }
    for (gradient, is_shared) in gradients.iter_mut().zip(shared) {
        if let Some(view) = gradient.as_ref().filter(|_| is_shared) {
            *gradient = Some(copied(py, view)?);
        }
    }
    Ok(())
}

/// The elements of an array in memory of our own.
fn copied<'py>(py: Python<'py>, view: &View<'py>) -> PyResult<View<'py>> {
    let copy = Outputs::new(py, std::iter::once(view)).like(view)?;
    let segments = [segment(view, Some(&copy))?];
    let plan = Plan::new(&segments)?;
    let workspace = Workspace::new(Context::current(), &segments, &plan)?;
    check_memory(py)?;
    detached(py, || {
        // SAFETY: the output is new memory.
        unsafe { apply(&workspace, &segments, &plan, Actions::All(Action::Keep)) };
        Ok(())
    })?;
    Ok(copy)
}

/// Whether all pairs are plain: tuples of an array of native byte order or None, and such an array.
#[pyfunction]
#[pyo3(signature = (pairs, /))]
pub fn are_plain_pairs(pairs: &Bound<'_, PyList>) -> bool {
    pairs.iter().all(|pair| {
        pair.cast_exact::<PyTuple>().is_ok_and(|pair| {
            let mut parts = pair.iter_borrowed();
            match (parts.next(), parts.next(), parts.next()) {
                (Some(gradient), Some(array), None) => {
                    (gradient.is_none() || is_plain_array(&gradient)) && is_plain_array(&array)
                }
                _ => false,
            }
        })
    })
}

/// Looks at the gradients and the variables of pairs.
#[allow(clippy::type_complexity, reason = "the two of them")]
fn views_of_pairs<'py>(
    pairs: &Bound<'py, PyList>,
    labels: Labels,
) -> PyResult<(Vec<Option<View<'py>>>, Vec<Option<View<'py>>>)> {
    let count = pairs.len();
    let (mut gradients, mut variables) = (with_capacity(count)?, with_capacity(count)?);
    let mut known = [DTypeCache::default(), DTypeCache::default()];
    for (index, pair) in pairs.iter().enumerate() {
        reserve(&mut gradients, 1)?;
        reserve(&mut variables, 1)?;
        let parts = pair.cast_exact::<PyTuple>().map(|pair| {
            let mut parts = pair.iter_borrowed().map(pyo3::Borrowed::to_owned);
            (parts.next(), parts.next())
        });
        let Ok((Some(gradient), Some(variable))) = parts else {
            return Err(Error::Type(format!("{ARGUMENT}[{index}] is no (gradient, variable) pair")).into());
        };
        gradients.push(if gradient.is_none() {
            None
        } else {
            Some(View::new(gradient, AcceptedDTypes::Reals, &mut known[0], || labels.gradients.of(index))?)
        });
        let name = || labels.variables.of(index);
        variables.push(Some(View::new(variable, AcceptedDTypes::Variables, &mut known[1], name)?));
    }
    Ok((gradients, variables))
}
