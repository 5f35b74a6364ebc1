//! A step of an optimizer: everything is looked at and checked, then measured, then updated.

use super::batch::views;
use super::counters::Counters;
use super::handling::{Handling, Policy};
use super::raise::{check_signals, detached, refuse_nonfinite};
use super::slots::{Key, Slots, in_the_middle};
use super::step_arrays::{Labels, Sliced, look};
use super::step_parts::{Fresh, Prepared, prepare};
use super::view::{Takes, View};
use crate::error::Error;
use crate::exec::Context;
use crate::magnitude::Order;
use crate::norms::measure;
use crate::plan::{CHUNK, Plan};
use crate::scalar::Scalar;
use crate::segment::Segment;
use crate::update::{Item, step};
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes a step: updates the arrays by their gradients.
///
/// `gradients` and `arrays` have one entry for each pair; without `arrays`, `gradients` are plain pairs. `whole` tells that rows are of a rule that changes all of a
/// variable. When the step is taken, the arrays `after` get their numbers and the counter grows by one.
/// Returns whether the step was taken, and if it was measured, the norm, and whether that is to be a float64.
#[pyfunction]
#[pyo3(signature = (slots, gradients, rows, arrays, hyper, initial, handling, whole, after, counter, /))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value, reason = "from one caller in `fastclip`")]
pub fn take_step<'py>(
    py: Python<'py>,
    slots: &Bound<'py, Slots>,
    gradients: &Bound<'py, PyList>,
    rows: Option<Sliced<'py>>,
    arrays: Option<&Bound<'py, PyList>>,
    hyper: Vec<f64>,
    initial: Vec<f64>,
    handling: Handling,
    whole: bool,
    after: Vec<(Bound<'py, PyAny>, f64)>,
    counter: Option<Bound<'py, PyAny>>,
) -> PyResult<(bool, Option<f64>, bool)> {
    let owner = slots;
    // Shared while signals may be looked at: a handler may save the state, which is that of before the step.
    let slots = owner.try_borrow()?;
    let _stepping = Stepping::begin(&slots)?;
    let kind = slots.kind;
    if hyper.len() != kind.hyper().len() || initial.len() != kind.slots() {
        return Err(
            Error::Value(format!("this rule takes {:?} and {} slots", kind.hyper(), kind.slots())).into()
        );
    }
    let counters = Counters::new(after, counter)?;
    let found = look(&slots, gradients, rows.as_ref(), arrays)?;
    let labels = Labels::new(found.gradients.len());

    let as_given = match &rows {
        Some(rows) => views(&rows.given, Takes::Reals, labels.gradients)?,
        None => Vec::new(),
    };
    let norms_of = if rows.is_some() { &as_given } else { &found.gradients };
    let wide = norms_of.iter().flatten().any(|view| view.dtype.scalar == Scalar::F64);
    let segments: Vec<Segment<1>> =
        if handling.measures() { norms_of.iter().flatten().map(read_segment).collect() } else { Vec::new() };
    let plan = Plan::new(&segments);

    let prepared = prepare(py, &slots, &found, whole)?;
    let Prepared { mut items, fresh, new, kept } = prepared;
    let present: Vec<usize> = found
        .gradients
        .iter()
        .enumerate()
        .filter(|(_, view)| view.is_some())
        .map(|(position, _)| position)
        .collect();
    let clamped: Vec<bool> = present
        .iter()
        .map(|at| rows.as_ref().is_some_and(|rows| rows.of_rows.get(*at) == Some(&true)))
        .collect();
    let context = Context::current();
    let (taken, total, magnitudes) = detached(py, || {
        let magnitudes = measure(context, &segments, &plan, Order::Two);
        check_signals(plan.bytes)?;
        let (incoming, total) = handling.decide(&magnitudes, present.len());
        let Some(incoming) = incoming else { return Ok((false, total, magnitudes)) };
        for (owner, item) in &mut items {
            item.incoming = incoming[*owner];
            if clamped[*owner] {
                item.incoming.clamp = None;
            }
        }
        Slots::initialise(context, fresh.iter().map(|f| (f.dtype, f.len, &f.slots[..])), &initial);
        let items: Vec<Item> = items.into_iter().map(|(_, item)| item).collect();
        let plan = Plan::cut(items.iter().map(|item| (item.segment.len, moved(item, kind.slots()))), CHUNK);
        // SAFETY: `look` has checked that what is written overlaps nothing, and that indices are rows.
        unsafe { step(context, kind, &hyper, &items, &plan) };
        Ok((true, total, magnitudes))
    })?;
    let norm = total.map(|total| total.norm(Order::Two) / handling.loss_scale);
    drop(kept);
    if taken {
        counters.advance();
        drop(slots);
        keep(&mut *owner.try_borrow_mut()?, fresh, new);
    } else if handling.policy() == Policy::Raise {
        let bad =
            present.iter().zip(&magnitudes).filter(|(_, m)| !m.is_finite()).map(|(position, _)| *position);
        return Err(refuse_nonfinite(bad, labels.gradients, norm.unwrap_or(f64::NAN)).into());
    }
    Ok((taken, norm, wide))
}

/// That a step is being taken, for as long as this is there.
struct Stepping(Arc<AtomicBool>);

impl Stepping {
    /// Refuses a step in the middle of another, which the handler of a signal may ask for.
    fn begin(slots: &Slots) -> PyResult<Self> {
        if slots.stepping.swap(true, Ordering::Relaxed) {
            return Err(in_the_middle("apply_gradients"));
        }
        Ok(Self(Arc::clone(&slots.stepping)))
    }
}

impl Drop for Stepping {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Bytes that are moved for each real of a variable.
fn moved(item: &Item, slots: usize) -> usize {
    item.segment.scalar.size() * (1 + slots) + item.gradient.size() + item.copy.map_or(0, Scalar::size)
}

/// A gradient, to be read.
fn read_segment(view: &View) -> Segment<1> {
    // SAFETY: the view keeps its array alive; nothing is written.
    unsafe {
        if view.is_c_order() && view.is_aligned() {
            Segment::dense(view.dtype, view.size, [view.pointer])
        } else {
            Segment::new(view.dtype, view.shape(), [Some(view.strided())])
        }
    }
}

/// Remembers the variables of a step that was taken, and their slots. The arrays are not looked at again: while the step
/// was taken, somebody may have changed their shapes.
fn keep(slots: &mut Slots, fresh: Vec<Fresh>, new: Vec<(usize, Key, Py<PyAny>)>) {
    let mut fresh = fresh.into_iter().peekable();
    let mut new = new.into_iter().peekable();
    loop {
        let next = [fresh.peek().map(|fresh| fresh.position), new.peek().map(|(position, ..)| *position)];
        let Some(position) = next.into_iter().flatten().min() else { break };
        let made = fresh.next_if(|fresh| fresh.position == position);
        let place = made.as_ref().and_then(|fresh| fresh.place);
        let made = made.map_or(Vec::new(), |fresh| fresh.slots);
        if let Some((_, key, array)) = new.next_if(|(at, ..)| *at == position) {
            slots.add(key, array, made);
        } else if let Some(entry) = place.and_then(|place| slots.entries.get_mut(place)) {
            entry.slots = made;
        }
    }
}
