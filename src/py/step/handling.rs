//! What happens to the gradients of a step before the rule sees them.

use crate::allocation::{OutOfMemory, collect, filled};
use crate::kernels::scale::Factor;
use crate::operations::magnitude::{Magnitude, Order, combine};
use crate::operations::update::GradientTransform;
use pyo3::prelude::*;

/// How gradients are clipped.
#[derive(Clone, Copy, PartialEq)]
enum Clip {
    None,
    Value(f64),
    Norm(f64),
    GlobalNorm(f64),
}

/// What to do about NaN and infinity.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Propagate,
    Raise,
    Skip,
}

/// How gradients become what the rule sees.
#[derive(FromPyObject)]
pub struct Handling {
    /// `none`, `value`, `norm` or `global_norm`,
    #[pyo3(item(0))]
    clip: String,
    /// and the bound of that.
    #[pyo3(item(1))]
    bound: f64,
    /// What gradients are divided by first.
    #[pyo3(item(2))]
    pub loss_scale: f64,
    /// "propagate", "raise" or "skip".
    #[pyo3(item(3))]
    on_nonfinite: String,
}

impl Handling {
    fn clip(&self) -> Clip {
        match self.clip.as_str() {
            "value" => Clip::Value(self.bound),
            "norm" => Clip::Norm(self.bound),
            "global_norm" => Clip::GlobalNorm(self.bound),
            _ => Clip::None,
        }
    }

    /// What to do about NaN and infinity.
    pub fn policy(&self) -> Policy {
        match self.on_nonfinite.as_str() {
            "raise" => Policy::Raise,
            "skip" => Policy::Skip,
            _ => Policy::Propagate,
        }
    }

    /// Whether norms are needed to know what to do.
    pub fn measures(&self) -> bool {
        self.policy() != Policy::Propagate || matches!(self.clip(), Clip::Norm(_) | Clip::GlobalNorm(_))
    }

    /// What happens to each gradient; None if the step is not to be taken.
    pub fn decide(
        &self,
        found: &[Magnitude],
        count: usize,
    ) -> Result<(Option<Vec<GradientTransform>>, Option<Magnitude>), OutOfMemory> {
        let scale = self.loss_scale;
        let unclipped = if scale == 1.0 { Factor::ONE } else { Factor::new(1.0, scale, 0) };
        let whole = GradientTransform { factor: unclipped, clamp: None };
        if !self.measures() {
            let clamp = if let Clip::Value(bound) = self.clip() { Some(bound) } else { None };
            return Ok((Some(filled(GradientTransform { clamp, ..whole }, count)?), None));
        }
        let total = combine(found, Order::Two);
        if !total.is_finite() && self.policy() != Policy::Propagate {
            return Ok((None, Some(total)));
        }
        // Divided by the loss scale, the norm is compared with the bound; undivided, with as much more. What is
        // multiplied is undivided as well.
        let by = |magnitude: &Magnitude, bound: f64| {
            let (root, exponent) = magnitude.root(Order::Two);
            let factor = if !magnitude.is_finite() {
                Factor::NAN
            } else if magnitude.factor(Order::Two, 1.0, bound * scale).is_some() {
                Factor::new(bound, root, exponent)
            } else {
                unclipped
            };
            GradientTransform { factor, clamp: None }
        };
        let incoming = match self.clip() {
            Clip::None => filled(whole, count)?,
            Clip::Value(bound) => filled(GradientTransform { clamp: Some(bound), ..whole }, count)?,
            Clip::Norm(bound) => collect(found.iter().map(|magnitude| by(magnitude, bound)))?,
            Clip::GlobalNorm(bound) => filled(by(&total, bound), count)?,
        };
        Ok((Some(incoming), Some(total)))
    }
}
