//! The factor by which PyTorch clips gradients.

use crate::kernels::exponent::mantissa_exponent;
use crate::kernels::scale::Factor;
use crate::operations::magnitude::{Magnitude, Order};

/// What PyTorch adds to a norm before the bound is divided by it.
const EPSILON: f64 = 1e-6;

/// The factor of PyTorch's `clip_grad_norm_`, min(1, bound / (norm + 10⁻⁶)), of gradients that are divided by a loss scale
/// before they are clipped.
#[derive(Clone, Copy, Debug)]
pub struct TorchFactor {
    /// The factor of gradients before the division.
    pub of_undivided: Factor,
    /// The factor of gradients after the division: at most 1, or NaN.
    pub of_divided: f64,
}

impl TorchFactor {
    /// Returns the factor of gradients that are divided but not clipped.
    #[must_use]
    pub fn unclipped(loss_scale: f64) -> Self {
        let of_undivided = if loss_scale == 1.0 { Factor::ONE } else { Factor::new(1.0, loss_scale, 0) };
        Self { of_undivided, of_divided: 1.0 }
    }

    /// Returns the factor from the magnitude of the gradients before the division; None if it is 1 after the division.
    /// `bound` is not negative.
    ///
    /// It is 0 if an element is infinite, unless the bound is infinite too, and NaN if an element is NaN.
    #[must_use]
    pub fn new(total: Magnitude, order: Order, bound: f64, loss_scale: f64) -> Option<Self> {
        let (root, exponent) = total.root(order);
        if root.is_nan() || bound.is_nan() || root.is_infinite() && bound.is_infinite() {
            return Some(Self { of_undivided: Factor::NAN, of_divided: f64::NAN });
        }
        if root.is_infinite() {
            return Some(Self { of_undivided: Factor::ZERO, of_divided: 0.0 });
        }
        let norm = total.norm_divided(order, loss_scale) + EPSILON;
        if norm <= bound {
            return None;
        }
        let of_undivided = if norm.is_infinite() {
            // The norm alone is beyond float64, and the epsilon is nothing beside it.
            Factor::new(bound, root, exponent)
        } else {
            let (mantissa, scale_exponent) = mantissa_exponent(loss_scale);
            Factor::new(bound, norm * mantissa, scale_exponent)
        };
        Some(Self { of_undivided, of_divided: bound / norm })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factor(magnitude: Magnitude, bound: f64, loss_scale: f64) -> Option<f64> {
        let factor = TorchFactor::new(magnitude, Order::Two, bound, loss_scale)?.of_undivided;
        Some(factor.wide * factor.lift)
    }

    fn square(value: f64) -> Magnitude {
        Magnitude { value, exponent: 0 }
    }

    #[test]
    fn factor_has_the_epsilon_and_is_at_most_one() {
        assert_eq!(factor(square(25.0), 1.0, 1.0), Some(1.0 / 5.000_001));
        assert_eq!(factor(square(25.0), 5.0, 1.0), Some(5.0 / 5.000_001));
        assert_eq!(factor(square(25.0), 5.000_001, 1.0), None);
        assert_eq!(factor(square(0.0), 0.0, 1.0), Some(0.0));
        assert_eq!(factor(square(25.0), f64::INFINITY, 1.0), None);
    }

    #[test]
    fn gradients_are_divided_before_they_are_measured() {
        let found = factor(square((5.0 * 1024.0_f64).powi(2)), 1.0, 1024.0).unwrap();
        assert!((found * 1024.0 * 5.000_001 - 1.0).abs() < 1e-15);
        assert_eq!(factor(square(1.0), 1.0, 1024.0), None);
    }

    #[test]
    fn infinite_elements_give_zero_and_nan_gives_nan() {
        assert_eq!(factor(square(f64::INFINITY), 1.0, 1.0), Some(0.0));
        assert!(factor(square(f64::INFINITY), f64::INFINITY, 1.0).unwrap().is_nan());
        assert!(factor(square(f64::NAN), 1.0, 1.0).unwrap().is_nan());
    }

    #[test]
    fn finite_gradients_with_a_norm_beyond_float64_are_clipped() {
        let huge = Magnitude { value: 1.0, exponent: 1100 };
        let found = TorchFactor::new(huge, Order::Two, 1.0, 1.0).unwrap().of_undivided;
        assert!(found.wide > 0.0 && found.is_lifted());
        assert_eq!(factor(huge, f64::INFINITY, 1.0), None);
    }
}
