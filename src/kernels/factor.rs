//! Factors that tensors are scaled by, exact beyond the range of their type.

use super::exponent::normalised;

/// What elements are multiplied by: between 0 and 1, or the inverse of a loss scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor {
    /// The factor for float32 and narrower, unless `is_wide`.
    pub narrow: f32,
    /// The factor for float64 is `wide · lift`.
    pub wide: f64,
    /// A power of two that keeps `wide` a normal number: 1 but for extreme norms.
    pub lift: f64,
    /// The factor is so small, or so large, that a float32 would hold it badly: narrow types use float64 as well.
    is_wide: bool,
}

impl Factor {
    /// The factor `bound / (norm·2^exponent)`, for a norm above the bound.
    #[must_use]
    pub fn new(bound: f64, norm: f64, exponent: i32) -> Self {
        let plain = bound / norm;
        if exponent == 0 && (plain > 1e-290 || bound == 0.0) {
            return Self::from_wide(plain, 1.0);
        }
        // Extreme: mantissas and exponents by themselves, so that nothing under- or overflows.
        let (bound, bound_exponent) = normalised(bound);
        let (norm, norm_exponent) = normalised(norm);
        let quotient = bound / norm;
        let exponent = bound_exponent - norm_exponent - exponent;
        if exponent > -1021 {
            Self::from_wide(quotient * f64::powi(2.0, exponent), 1.0)
        } else {
            Self::from_wide(quotient * f64::powi(2.0, exponent + 1000), f64::powi(2.0, -1000))
        }
    }

    fn from_wide(wide: f64, lift: f64) -> Self {
        let value = wide * lift;
        let narrow = value as f32;
        let in_range = (f32::MIN_POSITIVE..=f32::MAX).contains(&narrow);
        let is_wide = value != 0.0 && value.is_finite() && !in_range || lift != 1.0;
        Self { narrow, wide, lift, is_wide }
    }

    /// Whether narrow types take the factor in float64.
    #[inline(always)]
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.is_wide
    }

    /// The factor of float32 and narrower types as a float64, without `lift`. In float64 the product with an element is
    /// `x · lift · narrow_as_f64()`, exact unless `is_wide`.
    #[inline(always)]
    #[must_use]
    pub fn narrow_as_f64(&self) -> f64 {
        if self.is_wide { self.wide } else { f64::from(self.narrow) }
    }

    /// Whether even float64 takes the factor in two parts.
    #[inline(always)]
    #[must_use]
    pub fn is_lifted(&self) -> bool {
        self.lift != 1.0
    }

    /// Whether a product may be NaN where the element is not: the factor is 0, infinite or NaN.
    #[inline(always)]
    #[must_use]
    pub fn is_special(&self) -> bool {
        self.wide == 0.0 || !self.wide.is_finite()
    }

    /// The factor that turns every element into NaN.
    pub const NAN: Self = Self { narrow: f32::NAN, wide: f64::NAN, lift: 1.0, is_wide: false };

    /// The factor that turns every finite element into 0.
    pub const ZERO: Self = Self { narrow: 0.0, wide: 0.0, lift: 1.0, is_wide: false };

    /// The factor that leaves every element as it is.
    pub const ONE: Self = Self { narrow: 1.0, wide: 1.0, lift: 1.0, is_wide: false };
}
