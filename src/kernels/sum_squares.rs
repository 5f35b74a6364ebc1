//! Sum of squares, Σx², accumulated in float64.
//!
//! - Formula: `Σ x[i]²` in float64, and `Σ (x[i]·factor)²` for float64 whose squares over- or underflow.
//! - Order of additions: that of `lane_sum.rs`.
//! - Error, relative, for up to 65536 elements: the roundings of the additions, and for float64 one of the product: at
//!   most 110·2⁻⁵³. For 16-bit floats at most 150·2⁻⁵³.
//! - Bits: the order depends on the length alone. The square of a float32 (24 bits) is exact in float64 (53 bits), so
//!   that a fused multiply-add and a multiplication followed by an addition agree. The square of a float64 is rounded
//!   before it is added, without a fused multiply-add, at every level. So the bits do not depend on the level.

use super::Float;
use super::lane_sum::{LaneSum, Lanes, Term};
use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch};

/// Returns Σx² of a slice of at most one chunk.
#[must_use]
pub fn sum_squares<T: Float>(level: Level, x: &[T]) -> f64 {
    if size_of::<T>() < size_of::<f64>() {
        dispatch!(level, simd => T::lane_sum(simd, x, &ExactSquare))
    } else {
        dispatch!(level, simd => T::lane_sum(simd, x, &Square))
    }
}

/// Returns Σ(x·factor)², for float64 elements so large or small that their squares leave the range of float64.
#[must_use]
pub fn sum_squares_scaled(level: Level, x: &[f64], factor: f64) -> f64 {
    dispatch!(level, simd => f64::lane_sum(simd, x, &ScaledSquare(factor)))
}

/// x², rounded.
struct Square;

impl Term for Square {
    #[inline(always)]
    fn add<S: Simd>(&self, sums: &mut Lanes<S>, v: Lanes<S>) {
        for i in 0..4 {
            sums[i] += v[i] * v[i];
        }
    }
}

/// x², exact in float64, so that a fused multiply-add gives the same bits.
struct ExactSquare;

impl Term for ExactSquare {
    #[inline(always)]
    fn add<S: Simd>(&self, sums: &mut Lanes<S>, v: Lanes<S>) {
        for i in 0..4 {
            sums[i] = v[i].mul_add(v[i], sums[i]);
        }
    }
}

/// (x·factor)²
struct ScaledSquare(f64);

impl Term for ScaledSquare {
    #[inline(always)]
    fn add<S: Simd>(&self, sums: &mut Lanes<S>, v: Lanes<S>) {
        for i in 0..4 {
            let scaled = v[i] * self.0;
            sums[i] += scaled * scaled;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::oracle::{exact_sum, for_every_length_and_offset, samples};
    use half::{bf16, f16};

    fn exact_sum_squares<T: Float>(x: &[T]) -> f64 {
        // The square of a float64 is the exact sum of two float64: the rounded product and its error.
        exact_sum(x.iter().flat_map(|v| {
            let v = v.to_f64();
            let square = v * v;
            [square, v.mul_add(v, -square)]
        }))
    }

    fn check_against_the_exact_sum<T: Float>(make: impl Fn(f64) -> T, bound: f64) {
        let values: Vec<T> = samples(5000).into_iter().map(make).collect();
        for_every_length_and_offset(&values, |x| {
            let want = exact_sum_squares(x);
            for level in isa::all() {
                let got = sum_squares(level, x);
                assert!((got - want).abs() <= bound * want, "{level:?} {} {got} {want}", x.len());
            }
        });
    }

    #[test]
    fn f32_is_within_the_bound_of_the_exact_sum() {
        check_against_the_exact_sum(|v| v as f32, 1e-14);
    }

    #[test]
    fn f64_is_within_the_bound_of_the_exact_sum() {
        check_against_the_exact_sum(|v| v, 1.5e-14);
    }

    #[test]
    fn f16_and_bf16_are_within_the_bound_of_the_exact_sum() {
        check_against_the_exact_sum(f16::from_f64, 1e-14);
        check_against_the_exact_sum(bf16::from_f64, 1e-14);
    }

    #[test]
    fn every_level_has_the_bits_of_the_scalar_level() {
        fn check<T: Float>(values: &[T]) {
            for_every_length_and_offset(values, |x| {
                let want = sum_squares(Level::fallback(), x);
                for level in isa::all() {
                    assert_eq!(sum_squares(level, x).to_bits(), want.to_bits(), "{level:?} {}", x.len());
                }
            });
        }
        let values = samples(5000);
        check(&values);
        check(&values.iter().map(|v| *v as f32).collect::<Vec<_>>());
        check(&values.iter().map(|v| f16::from_f64(*v)).collect::<Vec<_>>());
        check(&values.iter().map(|v| bf16::from_f64(*v)).collect::<Vec<_>>());
    }

    #[test]
    fn a_nan_or_an_infinity_at_any_position_is_in_the_sum() {
        for level in isa::all() {
            for at in 0..70 {
                let mut x = vec![1.0_f32; 70];
                x[at] = f32::NAN;
                assert!(sum_squares(level, &x).is_nan());
                x[at] = f32::NEG_INFINITY;
                assert_eq!(sum_squares(level, &x), f64::INFINITY);
            }
        }
    }

    #[test]
    fn a_power_of_two_keeps_squares_in_range() {
        for level in isa::all() {
            let huge = vec![1e308; 100];
            assert_eq!(sum_squares(level, &huge), f64::INFINITY);
            let factor = f64::powi(2.0, -1000);
            let want = exact_sum_squares(&huge.iter().map(|x| x * factor).collect::<Vec<_>>());
            let got = sum_squares_scaled(level, &huge, factor);
            assert!((got - want).abs() <= 1e-14 * want);
        }
    }
}
