//! The factor that elements are multiplied by, for every element type: bound / norm, or the inverse of a loss scale.
//!
//! It is computed in float64 and rounded once to float32 for narrower types. Where float32 would hold it as a
//! subnormal number or not at all, narrower types multiply in float64; where float64 would hold it as a subnormal
//! number, it is split into two float64 factors.

use super::exponent::mantissa_exponent;

/// What elements are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor {
    /// Factor for float32 and narrower types, unless `is_wide`.
    pub narrow: f32,
    /// The factor for float64 is `wide · lift`.
    pub wide: f64,
    /// Power of two that keeps `wide` a normal number: 1 unless the norm is extreme.
    pub lift: f64,
    /// Whether the factor is too small or too large for a normal float32, and neither 0 nor infinite.
    is_wide: bool,
}

impl Factor {
    /// Returns the factor `bound / (norm·2^exponent)`, for a norm above the bound.
    #[must_use]
    pub fn new(bound: f64, norm: f64, exponent: i32) -> Self {
        let quotient = bound / norm;
        if exponent == 0 && (quotient > 1e-290 || bound == 0.0) {
            return Self::from_f64(quotient, 1.0);
        }
        // Extreme: mantissas and exponents are divided separately, so that nothing under- or overflows.
        let (bound, bound_exponent) = mantissa_exponent(bound);
        let (norm, norm_exponent) = mantissa_exponent(norm);
        let quotient = bound / norm;
        let exponent = bound_exponent - norm_exponent - exponent;
        if exponent > -1021 {
            Self::from_f64(quotient * f64::powi(2.0, exponent), 1.0)
        } else {
            Self::from_f64(quotient * f64::powi(2.0, exponent + 1000), f64::powi(2.0, -1000))
        }
    }

    /// Returns the factor `wide · lift`.
    fn from_f64(wide: f64, lift: f64) -> Self {
        let value = wide * lift;
        let narrow = value as f32;
        let in_range = (f32::MIN_POSITIVE..=f32::MAX).contains(&narrow);
        let is_wide = value != 0.0 && value.is_finite() && !in_range || lift != 1.0;
        Self { narrow, wide, lift, is_wide }
    }

    /// Whether float32 and narrower types multiply by the factor in float64.
    #[inline(always)]
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.is_wide
    }

    /// The factor of float32 and narrower types as a float64, without `lift`. In float64 the product with an element
    /// is `x · lift · narrow_as_f64()`, exact unless `is_wide`.
    #[inline(always)]
    #[must_use]
    pub fn narrow_as_f64(&self) -> f64 {
        if self.is_wide { self.wide } else { f64::from(self.narrow) }
    }

    /// Whether even float64 multiplies by two factors, `lift` and `wide`.
    #[inline(always)]
    #[must_use]
    pub fn is_lifted(&self) -> bool {
        self.lift != 1.0
    }

    /// Whether a product may be NaN although the element is not: the factor is 0, infinite or NaN.
    #[inline(always)]
    #[must_use]
    pub fn is_special(&self) -> bool {
        self.wide == 0.0 || !self.wide.is_finite()
    }

    /// The factor that turns every element into NaN.
    pub const NAN: Self = Self { narrow: f32::NAN, wide: f64::NAN, lift: 1.0, is_wide: false };

    /// The factor that turns every finite element into 0.
    pub const ZERO: Self = Self { narrow: 0.0, wide: 0.0, lift: 1.0, is_wide: false };

    /// The factor that leaves every element unchanged.
    pub const ONE: Self = Self { narrow: 1.0, wide: 1.0, lift: 1.0, is_wide: false };
}
