//! What an optimizer's step does with its gradients before the rule is applied: how it scales and clips them, and whether
//! it is taken at all.

use crate::allocation::{OutOfMemory, collect, filled};
use crate::kernels::exponent::mantissa_exponent;
use crate::kernels::scale::Factor;
use crate::operations::magnitude::{Magnitude, Order, combine};
use crate::operations::update::GradientTransform;

/// The clipping method, with its bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// Gradients are not clipped.
    None,
    /// The bound of the absolute value of each element.
    Value(f64),
    /// The bound of the norm of each gradient.
    Norm(f64),
    /// The bound of the norm of all gradients together.
    GlobalNorm(f64),
}

/// What a step does if a gradient holds NaN or infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFinitePolicy {
    /// The step is taken.
    Propagate,
    /// The step raises.
    Raise,
    /// The step is skipped and counted.
    Skip,
}

/// The gradient options of an optimizer.
#[derive(Clone, Copy, Debug)]
pub struct GradientOptions {
    /// How gradients are clipped.
    pub clip: Clip,
    /// The policy for NaN and infinity.
    pub policy: NonFinitePolicy,
    /// The norm of all gradients above which a step is skipped and counted, if the norm is finite.
    pub skip_above: Option<f64>,
}

/// What is done with a step.
#[derive(Debug)]
pub enum Verdict {
    /// It is taken.
    Take {
        /// The transform of each gradient.
        transforms: Vec<GradientTransform>,
        /// The factor that clips the gradients; the smallest if each has its own. It is 1 if none is clipped, and NaN if
        /// one is filled with NaN. None if gradients are clipped by value: their elements have no common factor.
        scale: Option<f64>,
    },
    /// It is skipped and counted.
    Skip,
    /// It raises.
    Raise,
}

/// The decision about a step.
#[derive(Debug)]
pub struct Decision {
    /// What is done with the step.
    pub verdict: Verdict,
    /// The magnitude of all gradients together; None if they were not measured.
    pub total: Option<Magnitude>,
}

impl GradientOptions {
    /// Whether the norms of the gradients decide whether the step is taken.
    pub fn may_refuse(&self) -> bool {
        self.policy != NonFinitePolicy::Propagate || self.skip_above.is_some()
    }

    /// Whether the decision depends on the norms of the gradients.
    pub fn needs_norms(&self) -> bool {
        self.may_refuse() || matches!(self.clip, Clip::Norm(_) | Clip::GlobalNorm(_))
    }

    /// Decides whether the step is taken, and computes the transforms of `count` gradients, which include the division
    /// by `loss_scale`. `magnitudes` are those of the undivided gradients; they are not used unless norms are needed.
    pub fn decide(
        &self,
        loss_scale: f64,
        magnitudes: &[Magnitude],
        count: usize,
    ) -> Result<Decision, OutOfMemory> {
        let factor = if loss_scale == 1.0 { Factor::ONE } else { Factor::new(1.0, loss_scale, 0) };
        let unclipped = GradientTransform { factor, clamp: None };
        let clamped = |bound| GradientTransform { clamp: Some(bound), ..unclipped };
        if !self.needs_norms() {
            let (transform, scale) = match self.clip {
                Clip::Value(bound) => (clamped(bound), None),
                _ => (unclipped, Some(1.0)),
            };
            let verdict = Verdict::Take { transforms: filled(transform, count)?, scale };
            return Ok(Decision { verdict, total: None });
        }
        let total = combine(magnitudes, Order::Two);
        if let Some(verdict) = self.refusal(total, loss_scale) {
            return Ok(Decision { verdict, total: Some(total) });
        }
        let bounded = |magnitude: &Magnitude, bound: f64| {
            let clip_factor = ClipFactor::new(*magnitude, bound, loss_scale);
            GradientTransform { factor: clip_factor.of_undivided(unclipped.factor), clamp: None }
        };
        let scale = |magnitude: &Magnitude, bound: f64| {
            ClipFactor::new(*magnitude, bound, loss_scale).of_divided(loss_scale)
        };
        let (transforms, scale) = match self.clip {
            Clip::None => (filled(unclipped, count)?, Some(1.0)),
            Clip::Value(bound) => (filled(clamped(bound), count)?, None),
            Clip::Norm(bound) => {
                let smallest = magnitudes.iter().map(|magnitude| scale(magnitude, bound)).fold(1.0, smaller);
                (collect(magnitudes.iter().map(|magnitude| bounded(magnitude, bound)))?, Some(smallest))
            }
            Clip::GlobalNorm(bound) => (filled(bounded(&total, bound), count)?, Some(scale(&total, bound))),
        };
        Ok(Decision { verdict: Verdict::Take { transforms, scale }, total: Some(total) })
    }

    /// Returns the verdict on a step that is not taken because of the norm of its gradients; None if it is taken.
    fn refusal(&self, total: Magnitude, loss_scale: f64) -> Option<Verdict> {
        if total.is_finite() {
            let limit = self.skip_above?;
            return (total.norm_divided(Order::Two, loss_scale) > limit).then_some(Verdict::Skip);
        }
        match self.policy {
            NonFinitePolicy::Propagate => None,
            NonFinitePolicy::Raise => Some(Verdict::Raise),
            NonFinitePolicy::Skip => Some(Verdict::Skip),
        }
    }
}

/// The smaller of two numbers; NaN if one is NaN.
fn smaller(a: f64, b: f64) -> f64 {
    if a.is_nan() || a < b { a } else { b }
}

/// How gradients of some norm are brought to a bound.
enum ClipFactor {
    /// They are within the bound.
    Unclipped,
    /// They contain NaN or infinity, and become NaN.
    Nan,
    /// They are multiplied by `bound / (root · 2^exponent)`, whose divisor is the norm before the division by the loss
    /// scale.
    Scaled { bound: f64, root: f64, exponent: i32 },
}

impl ClipFactor {
    /// `magnitude` is that of the gradients before they are divided by the loss scale.
    fn new(magnitude: Magnitude, bound: f64, loss_scale: f64) -> Self {
        // The undivided norm is compared with the bound times the loss scale, because the factor multiplies undivided
        // gradients.
        if !magnitude.is_finite() {
            Self::Nan
        } else if magnitude.factor(Order::Two, 1.0, bound * loss_scale).is_some() {
            let (root, exponent) = magnitude.root(Order::Two);
            Self::Scaled { bound, root, exponent }
        } else {
            Self::Unclipped
        }
    }

    /// The factor of gradients that have not been divided by the loss scale. `unclipped` divides them by it.
    fn of_undivided(&self, unclipped: Factor) -> Factor {
        match *self {
            Self::Unclipped => unclipped,
            Self::Nan => Factor::NAN,
            Self::Scaled { bound, root, exponent } => Factor::new(bound, root, exponent),
        }
    }

    /// The factor of gradients that have been divided by the loss scale, at most 1.
    fn of_divided(&self, loss_scale: f64) -> f64 {
        match *self {
            Self::Unclipped => 1.0,
            Self::Nan => f64::NAN,
            Self::Scaled { bound, root, exponent } => {
                // The norm is divided by the mantissa of the loss scale, and its exponent subtracted: neither the
                // quotient nor a product overflows.
                let (mantissa, scale_exponent) = mantissa_exponent(loss_scale);
                let factor = Factor::new(bound, root / mantissa, exponent - scale_exponent);
                (factor.wide * factor.lift).min(1.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(clip: Clip, skip_above: Option<f64>) -> GradientOptions {
        GradientOptions { clip, policy: NonFinitePolicy::Propagate, skip_above }
    }

    fn magnitude(square: f64) -> Magnitude {
        Magnitude { value: square, exponent: 0 }
    }

    fn scale_of(clip: Clip, loss_scale: f64, magnitudes: &[Magnitude]) -> Option<f64> {
        let decision = options(clip, None).decide(loss_scale, magnitudes, magnitudes.len()).unwrap();
        match decision.verdict {
            Verdict::Take { scale, .. } => scale,
            Verdict::Skip | Verdict::Raise => panic!("the step is not taken"),
        }
    }

    #[test]
    fn scale_is_the_factor_after_the_division_by_the_loss_scale() {
        let norms = [magnitude(9.0), magnitude(16.0)];
        assert_eq!(scale_of(Clip::GlobalNorm(1.0), 1.0, &norms), Some(1.0 / 5.0));
        assert_eq!(scale_of(Clip::GlobalNorm(1.0), 2.0, &norms), Some(1.0 / 2.5));
        assert_eq!(scale_of(Clip::GlobalNorm(5.0), 1.0, &norms), Some(1.0));
        assert_eq!(scale_of(Clip::GlobalNorm(1.0), 1e300, &norms), Some(1.0));
        assert_eq!(scale_of(Clip::GlobalNorm(0.0), 1e-300, &norms), Some(0.0));
        assert_eq!(scale_of(Clip::Norm(1.0), 1.0, &norms), Some(1.0 / 4.0));
        assert_eq!(scale_of(Clip::Norm(3.0), 1.0, &norms), Some(3.0 / 4.0));
        assert_eq!(scale_of(Clip::Norm(4.0), 1.0, &norms), Some(1.0));
        assert_eq!(scale_of(Clip::None, 1.0, &norms), Some(1.0));
        assert_eq!(scale_of(Clip::Value(1.0), 1.0, &norms), None);
    }

    #[test]
    fn scale_is_nan_with_nan_and_neither_overflows_nor_underflows() {
        let bad = [magnitude(9.0), magnitude(f64::NAN), magnitude(f64::INFINITY)];
        for clip in [Clip::Norm(1.0), Clip::GlobalNorm(1.0)] {
            assert!(scale_of(clip, 1.0, &bad).is_some_and(f64::is_nan));
        }
        // The norm is 2^1000; divided by the loss scale it is 2^2000.
        let huge = [Magnitude { value: 1.0, exponent: 1000 }];
        let loss_scale = f64::powi(2.0, -1000);
        let bound = f64::powi(2.0, 1000);
        assert_eq!(scale_of(Clip::GlobalNorm(bound), loss_scale, &huge), Some(f64::powi(2.0, -1000)));
        assert_eq!(scale_of(Clip::GlobalNorm(f64::powi(2.0, -60)), 1.0, &huge), Some(f64::powi(2.0, -1060)));
    }

    #[test]
    fn steps_above_the_limit_are_skipped_unless_they_are_not_finite() {
        let is_skipped = |limit: f64, loss_scale: f64, squares: &[f64]| {
            let magnitudes: Vec<_> = squares.iter().copied().map(magnitude).collect();
            let decision =
                options(Clip::None, Some(limit)).decide(loss_scale, &magnitudes, squares.len()).unwrap();
            assert!(decision.total.is_some());
            matches!(decision.verdict, Verdict::Skip)
        };
        assert!(is_skipped(4.9, 1.0, &[9.0, 16.0]));
        assert!(!is_skipped(5.0, 1.0, &[9.0, 16.0]));
        assert!(!is_skipped(2.5, 2.0, &[9.0, 16.0]));
        assert!(is_skipped(2.4, 2.0, &[9.0, 16.0]));
        assert!(!is_skipped(0.0, 1.0, &[0.0]));
        assert!(!is_skipped(f64::INFINITY, 1e-300, &[1e300]));
        // Finite gradients whose norm is beyond float64 after the division.
        assert!(is_skipped(f64::MAX, 1e-300, &[1e300]));
        for bad in [f64::NAN, f64::INFINITY] {
            assert!(!is_skipped(1.0, 1.0, &[9.0, bad]));
        }
    }
}
