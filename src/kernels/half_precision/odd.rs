//! Rounding to odd.

use fearless_simd::prelude::*;

/// A float64 as a float32, towards the neighbour with an odd last bit if it lies between two.
///
/// Rounding that on to 16 bits gives what rounding the float64 would have given: the odd bit keeps
/// the memory of which side of a tie it was on (Boldo and Melquiond, "Emulation of FMA and
/// correctly rounded sums: proved algorithms using rounding to odd", 2008).
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

/// The bits of 2^-100: below it the fused multiply-add loses what is missing itself.
pub(super) const SMALL_BF16: u32 = (127 - 100) << 23;

/// Whether this level has a fused multiply-add; without one the compiler would call a function for it.
#[inline(always)]
pub(super) fn has_fma<S: Simd>(simd: S) -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return simd.level().as_avx2().is_some();
    #[cfg(target_arch = "aarch64")]
    return simd.level().as_neon().is_some();
    #[allow(unreachable_code, reason = "on other architectures")]
    {
        let _ = simd;
        false
    }
}

/// The product in float32, towards the neighbour with an odd last bit if it lies between two.
///
/// A fused multiply-add gives what rounding has taken off, exactly for products above 2^-100.
#[inline(always)]
pub(super) fn odd_product(x: f32, factor: f32, fused: bool) -> f32 {
    if !fused {
        return f64_to_f32_odd(f64::from(x) * f64::from(factor));
    }
    let product = x * factor;
    let rest = x.mul_add(factor, -product);
    let bits = product.to_bits();
    // Away from zero if what is missing has the sign of the product, else towards it.
    let step = ((rest.to_bits() ^ bits).cast_signed() >> 31) | 1;
    // Not `rest != 0.0`: of an infinite product nothing but NaN is missing, and it has to stay.
    #[allow(clippy::double_comparisons, reason = "false for NaN")]
    let inexact_even = (rest < 0.0 || rest > 0.0) && bits & 1 == 0;
    f32::from_bits(bits.wrapping_add_signed(if inexact_even { step } else { 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::half_precision::f32_to_f16;

    #[test]
    fn rounding_to_odd_first_gives_the_single_rounding() {
        // A tie in float16 that rounding to float32 first would create: just above 1 + 2^-11.
        let above = 1.0 + f64::powi(2.0, -11) + f64::powi(2.0, -40);
        assert_eq!(f32_to_f16(above as f32), 0x3c00, "the double rounding that is to be avoided");
        assert_eq!(f32_to_f16(f64_to_f32_odd(above)), 0x3c01);
        let below = 1.0 + 3.0 * f64::powi(2.0, -11) - f64::powi(2.0, -40);
        assert_eq!(f32_to_f16(f64_to_f32_odd(below)), 0x3c01);
        assert_eq!(f64_to_f32_odd(1.5), 1.5);
        assert_eq!(f64_to_f32_odd(-0.0).to_bits(), (-0.0_f32).to_bits());
        assert!(f64_to_f32_odd(f64::NAN).is_nan());
        assert_eq!(f64_to_f32_odd(f64::INFINITY), f32::INFINITY);
    }
}
