//! Rounding to odd: of two neighbouring float32 values, the one with an odd last bit is taken.
//!
//! Rounding the result to 16 bits gives the bits of a single rounding: the odd bit preserves on which side of a tie
//! the exact value was (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
//! rounding to odd", 2008).

use fearless_simd::prelude::*;

/// Converts a float64 to float32; if it lies between two float32 values, to the one with an odd last bit.
#[inline(always)]
#[must_use]
pub fn f64_to_f32_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    let bits = nearest.to_bits();
    let step = if back.abs() < x.abs() { 1 } else { u32::MAX };
    let inexact_even = back != x && bits & 1 == 0 && x.abs() < f64::INFINITY;
    f32::from_bits(if inexact_even { bits.wrapping_add(step) } else { bits })
}

/// Bits of the float32 2^-100. For smaller products of bfloat16 the remainder that a fused multiply-add computes may
/// be below float32 itself.
pub(super) const MIN_FUSED_BF16: u32 = (127 - 100) << 23;

/// Whether this level has a fused multiply-add instruction; without one the compiler would call a function for it.
#[inline(always)]
pub(super) fn has_fma<S: Simd>(simd: S) -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return simd.level().as_avx2().is_some();
    #[cfg(target_arch = "aarch64")]
    return simd.level().as_neon().is_some();
    #[allow(unreachable_code, reason = "reached on other architectures")]
    {
        let _ = simd;
        false
    }
}

/// Returns the product in float32; if it lies between two float32 values, the one with an odd last bit.
///
/// With `fused`, a fused multiply-add computes the remainder of the rounded product, exactly for products above
/// 2^-100; without it, the product is computed in float64.
#[inline(always)]
pub(super) fn product_to_odd(x: f32, factor: f32, fused: bool) -> f32 {
    if !fused {
        return f64_to_f32_odd(f64::from(x) * f64::from(factor));
    }
    let product = x * factor;
    let remainder = x.mul_add(factor, -product);
    let bits = product.to_bits();
    // Away from zero if the remainder has the sign of the product, else towards zero.
    let step = ((remainder.to_bits() ^ bits).cast_signed() >> 31) | 1;
    // Not `remainder != 0.0`: that of an infinite product is NaN, and the product has to stay infinite.
    #[allow(clippy::double_comparisons, reason = "has to be false for NaN")]
    let inexact_even = (remainder < 0.0 || remainder > 0.0) && bits & 1 == 0;
    f32::from_bits(bits.wrapping_add_signed(if inexact_even { step } else { 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::half_precision::f32_to_f16;

    #[test]
    fn rounding_to_odd_before_16_bits_gives_the_bits_of_one_rounding() {
        // Just above 1 + 2^-11, a tie of float16 that rounding to float32 lands on.
        let above = 1.0 + f64::powi(2.0, -11) + f64::powi(2.0, -40);
        assert_eq!(f32_to_f16(above as f32), 0x3c00, "two roundings give the wrong bits");
        assert_eq!(f32_to_f16(f64_to_f32_odd(above)), 0x3c01);
        let below = 1.0 + 3.0 * f64::powi(2.0, -11) - f64::powi(2.0, -40);
        assert_eq!(f32_to_f16(f64_to_f32_odd(below)), 0x3c01);
        assert_eq!(f64_to_f32_odd(1.5), 1.5);
        assert_eq!(f64_to_f32_odd(-0.0).to_bits(), (-0.0_f32).to_bits());
        assert!(f64_to_f32_odd(f64::NAN).is_nan());
        assert_eq!(f64_to_f32_odd(f64::INFINITY), f32::INFINITY);
    }
}
