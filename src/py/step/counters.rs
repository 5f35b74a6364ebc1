//! The counters that a step advances, and the report on norm and clipping that it writes.

use crate::allocation::with_capacity;
use crate::error::Error;
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::view::View;
use crate::with_scalar;
use pyo3::prelude::*;

/// The counters of a step.
pub struct Counters<'py> {
    /// The optimizer's counters, each with its value after the step.
    numbers: Vec<(View<'py>, f64)>,
    /// The caller's step counter, if there is one.
    pub global_step: Option<View<'py>>,
    /// The number of steps that were skipped.
    skipped: View<'py>,
    /// The report on the step, see [`Report`].
    report: View<'py>,
}

/// What a step reports: the norm of its gradients, and how they were clipped. It is written as five float64:
///
/// - whether the norm was measured (1 or 0), the norm, and whether it is returned as float64 (1 or 0);
/// - whether gradients are clipped by norm (1 or 0), and the factor that clipped them.
pub struct Report {
    /// The norm of all gradients, if it was measured.
    pub norm: Option<f64>,
    /// Whether the norm is returned as float64.
    pub is_float64: bool,
    /// The factor that clipped the gradients, if they are clipped by norm.
    pub scale: Option<f64>,
}

/// Number of float64 of a report.
const REPORT_LEN: usize = 5;

impl<'py> Counters<'py> {
    /// Reads and checks the counters. `numbers` are float64 arrays of one element, each with its value after the step;
    /// `global_step` and `skipped` are arrays of one integer; `report` is an array of five float64, see [`Report`].
    ///
    /// # Errors
    ///
    /// If an array is not writable, or has another type or size, or if `global_step` shares memory with another
    /// counter.
    pub fn new(
        numbers: Vec<(Bound<'py, PyAny>, f64)>,
        global_step: Option<Bound<'py, PyAny>>,
        skipped: Bound<'py, PyAny>,
        report: Bound<'py, PyAny>,
    ) -> PyResult<Self> {
        let mut cache = DTypeCache::default();
        let mut read = |array, name: &str, size| {
            let view = View::new(array, AcceptedDTypes::Ordered, &mut cache, || name.into())?;
            if view.size != size || !view.is_writable() {
                return Err(Error::Value(format!(
                    "{name} is {}{}; it takes {}",
                    view.describe(),
                    if view.is_writable() { "" } else { ", read-only" },
                    if size == 1 { "one writable number" } else { "five writable numbers" }
                )));
            }
            Ok(view)
        };
        let mut views = with_capacity(numbers.len())?;
        for (array, value) in numbers {
            views.push((read(array, "counter", 1)?, value));
        }
        let global_step = global_step.map(|array| read(array, "global_step", 1)).transpose()?;
        let (skipped, report) = (read(skipped, "skipped_steps", 1)?, read(report, "report", REPORT_LEN)?);
        let is_float64 = |view: &View| view.dtype.name() == "float64";
        if !views.iter().all(|(view, _)| is_float64(view))
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
            let mut others = views.iter().map(|(view, _)| view).chain([&skipped, &report]);
            if others.any(|other| counter.range_overlaps(other)) {
                let message =
                    "global_step shares memory with the optimizer's state; it takes a counter of its own";
                return Err(Error::Value(message.into()).into());
            }
        }
        Ok(Self { numbers: views, global_step, skipped, report })
    }

    /// Writes the report. Cannot fail.
    pub fn report(&self, report: &Report) {
        let number = |flag: bool| f64::from(u8::from(flag));
        let values: [f64; REPORT_LEN] = [
            number(report.norm.is_some()),
            report.norm.unwrap_or(0.0),
            number(report.is_float64),
            number(report.scale.is_some()),
            report.scale.unwrap_or(0.0),
        ];
        for (at, value) in values.into_iter().enumerate() {
            // SAFETY: five writable float64 in a row, kept alive by the view, of any alignment.
            unsafe { self.report.pointer.cast::<f64>().add(at).write_unaligned(value) };
        }
    }

    /// Advances the counters, because the step was taken. Cannot fail.
    pub fn advance(&self) {
        for (view, value) in &self.numbers {
            // SAFETY: one writable float64, kept alive by the view, of any alignment.
            unsafe { view.pointer.cast::<f64>().write_unaligned(*value) };
        }
        self.global_step.iter().for_each(count_up);
    }

    /// Counts the step as skipped. Cannot fail.
    pub fn skip(&self) {
        count_up(&self.skipped);
    }
}

/// Returns the number in an array of one element.
pub fn read_number(view: &View) -> f64 {
    with_scalar!(view.dtype.scalar, T => {
        // SAFETY: one element of this type, kept alive by the view, of any alignment.
        number(unsafe { view.pointer.cast::<T>().read_unaligned() })
    })
}

/// Adds 1 to a counter, an array of one writable element. Integers wrap around.
pub fn count_up(view: &View) {
    with_scalar!(view.dtype.scalar, T => {
        let pointer = view.pointer.cast::<T>();
        // SAFETY: one writable element of this type, kept alive by the view, of any alignment.
        unsafe { pointer.write_unaligned(Number::next(pointer.read_unaligned())) };
    });
}

fn number<T: Number>(x: T) -> f64 {
    x.to_f64()
}

/// The type of a counter's element.
trait Number: Copy {
    fn to_f64(self) -> f64;
    fn next(self) -> Self;
}

macro_rules! numbers {
    (integers: $($I:ty)*; floats: $($F:ty)*;) => {
        $(impl Number for $I {
            #[allow(clippy::cast_lossless, reason = "the same expression for every width")]
            fn to_f64(self) -> f64 {
                self as f64
            }
            fn next(self) -> Self {
                self.wrapping_add(1)
            }
        })*
        $(impl Number for $F {
            #[allow(clippy::cast_lossless, clippy::useless_conversion, reason = "the same expression for every width")]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn next(self) -> Self {
                self + <$F>::from(1_i8)
            }
        })*
    };
}

numbers! {
    integers: i8 i16 i32 i64 u8 u16 u32 u64;
    floats: half::f16 half::bf16 f32 f64;
}
