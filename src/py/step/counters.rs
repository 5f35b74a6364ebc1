//! What moves on when a step is taken, besides variables and slots.

use crate::allocation::with_capacity;
use crate::error::Error;
use crate::py::arrays::view::{AcceptedDTypes, DTypeCache, View};
use pyo3::prelude::*;

/// The counters of a step, looked at.
pub struct Counters<'py> {
    numbers: Vec<(View<'py>, f64)>,
    /// `global_step`, if there is one. It is the caller's.
    pub global_step: Option<View<'py>>,
    skipped: View<'py>,
    report: View<'py>,
}

impl<'py> Counters<'py> {
    /// Refuses what is no writable number. `after` are float64 arrays with what they become when the step is taken;
    /// `skipped` counts the steps that are not; `report` takes whether the norm was measured, the norm, and whether it
    /// is to be a float64.
    pub fn new(
        after: Vec<(Bound<'py, PyAny>, f64)>,
        global_step: Option<Bound<'py, PyAny>>,
        skipped: Bound<'py, PyAny>,
        report: Bound<'py, PyAny>,
    ) -> PyResult<Self> {
        let mut known = DTypeCache::default();
        let mut look = |object, name: &str, size| {
            let view = View::new(object, AcceptedDTypes::Ordered, &mut known, || name.into())?;
            if view.size != size || !view.is_writable() {
                return Err(Error::Value(format!(
                    "{name} is {}{}; it takes {}",
                    view.describe(),
                    if view.is_writable() { "" } else { ", read-only" },
                    if size == 1 { "one writable number" } else { "three writable numbers" }
                )));
            }
            Ok(view)
        };
        let mut numbers = with_capacity(after.len())?;
        for (object, value) in after {
            numbers.push((look(object, "counter", 1)?, value));
        }
        let global_step = global_step.map(|object| look(object, "global_step", 1)).transpose()?;
        let (skipped, report) = (look(skipped, "skipped_steps", 1)?, look(report, "report", 3)?);
        let is_float64 = |view: &View| view.dtype.name() == "float64";
        if !numbers.iter().all(|(view, _)| is_float64(view))
            || !is_float64(&report)
            || !report.is_c_order()
            || global_step.iter().chain([&skipped]).any(|view| view.dtype.scalar.is_float())
        {
            return Err(Error::Type(
                "counters are float64, and the number of steps is a whole number".into(),
            )
            .into());
        }
        if let Some(counter) = &global_step {
            let mut own = numbers.iter().map(|(view, _)| view).chain([&skipped, &report]);
            if own.any(|other| counter.meets(other)) {
                let message =
                    "global_step shares memory with what the optimizer keeps; it takes a counter of its own";
                return Err(Error::Value(message.into()).into());
            }
        }
        Ok(Self { numbers, global_step, skipped, report })
    }

    /// Tells what was measured: the norm, and whether it is to be a float64. Cannot fail.
    pub fn report(&self, norm: Option<f64>, wide: bool) {
        let values = [f64::from(u8::from(norm.is_some())), norm.unwrap_or(0.0), f64::from(u8::from(wide))];
        for (at, value) in values.into_iter().enumerate() {
            // SAFETY: three writable float64 in a row, alive; unaligned perhaps.
            unsafe { self.report.pointer.cast::<f64>().add(at).write_unaligned(value) };
        }
    }

    /// The step was taken. Cannot fail.
    pub fn advance(&self) {
        for (view, value) in &self.numbers {
            // SAFETY: one writable float64, alive; unaligned perhaps.
            unsafe { view.pointer.cast::<f64>().write_unaligned(*value) };
        }
        self.global_step.iter().for_each(count_up);
    }

    /// The step was left out. Cannot fail.
    pub fn skip(&self) {
        count_up(&self.skipped);
    }
}

/// Adds 1 to a counter.
fn count_up(view: &View) {
    // SAFETY: one writable number of this many bytes, alive; unaligned perhaps. In two's complement a signed
    // number grows as an unsigned one does.
    unsafe {
        match view.dtype.size() {
            1 => grow::<u8>(view.pointer, |n| n.wrapping_add(1)),
            2 => grow::<u16>(view.pointer, |n| n.wrapping_add(1)),
            4 => grow::<u32>(view.pointer, |n| n.wrapping_add(1)),
            _ => grow::<u64>(view.pointer, |n| n.wrapping_add(1)),
        }
    }
}

/// # Safety
///
/// The pointer must be one to a `T` that may be read and written.
unsafe fn grow<T>(pointer: *mut u8, next: impl FnOnce(T) -> T) {
    let pointer = pointer.cast::<T>();
    // SAFETY: the caller's contract.
    unsafe { pointer.write_unaligned(next(pointer.read_unaligned())) };
}
