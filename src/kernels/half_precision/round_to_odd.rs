//! Rounding to odd: of two neighbouring float32 values, the one with an odd last bit is taken.
//!
//! Rounding the result to 16 bits gives the bits of a single rounding: the odd bit preserves on which side of a tie
//! the exact value was (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
//! rounding to odd", 2008).

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
