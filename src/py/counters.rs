//! What moves on when a step is taken, besides variables and slots.

use super::view::{Known, Takes, View};
use crate::error::Error;
use pyo3::prelude::*;

/// The counters of a step, looked at.
pub struct Counters<'py> {
    numbers: Vec<(View<'py>, f64)>,
    counter: Option<View<'py>>,
}

impl<'py> Counters<'py> {
    /// Refuses what is no writable number.
    pub fn new(
        after: Vec<(Bound<'py, PyAny>, f64)>,
        counter: Option<Bound<'py, PyAny>>,
    ) -> Result<Self, Error> {
        let mut look = |object| {
            let view = View::new(object, Takes::Ordered, &mut Known::default(), || "counter".into())?;
            if view.size == 1 && view.is_writable() {
                Ok(view)
            } else {
                Err(Error::Value(format!("counter is {}; it takes one writable number", view.describe())))
            }
        };
        let numbers = after.into_iter().map(|(object, value)| Ok((look(object)?, value)));
        let numbers = numbers.collect::<Result<Vec<_>, Error>>()?;
        let counter = counter.map(&mut look).transpose()?;
        if numbers.iter().any(|(view, _)| view.dtype.name() != "float64")
            || counter.as_ref().is_some_and(|view| view.dtype.scalar.is_float())
        {
            return Err(Error::Type(
                "counters are float64, and the number of steps is a whole number".into(),
            ));
        }
        Ok(Self { numbers, counter })
    }

    /// The step was taken. Cannot fail.
    pub fn advance(&self) {
        for (view, value) in &self.numbers {
            // SAFETY: one writable float64, alive; unaligned perhaps.
            unsafe { view.pointer.cast::<f64>().write_unaligned(*value) };
        }
        if let Some(view) = &self.counter {
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
