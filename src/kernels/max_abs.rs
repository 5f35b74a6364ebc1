//! Maximum of absolute values, max|x|, by comparing bits.
//!
//! - Formula: `max |x[i]|`; 0 for an empty slice, NaN if an element is NaN.
//! - Order: 32 lanes, then these; a maximum does not depend on it.
//! - Error: none.
//! - Bits: without the sign bit, IEEE 754 floats order as the integers with the same bits, infinity above every
//!   finite value and NaN above infinity, so an integer maximum finds all three and is the same at every level.

use fearless_simd::{Level, Simd, dispatch};
use half::{bf16, f16};

/// An element type with a maximum of absolute values.
pub trait MaxAbs: Sized {
    /// Returns max|x| as a float64: 0 for an empty slice, NaN if an element is NaN.
    fn max_abs<S: Simd>(simd: S, x: &[Self]) -> f64;
}

/// Returns max|x| of a slice as a float64: 0 for an empty slice, NaN if an element is NaN.
#[must_use]
pub fn max_abs<T: MaxAbs>(level: Level, x: &[T]) -> f64 {
    dispatch!(level, simd => T::max_abs(simd, x))
}

macro_rules! max_abs {
    ($($T:ty, $bits:ty, $signless:expr;)*) => {$(
        impl MaxAbs for $T {
            #[inline(always)]
            fn max_abs<S: Simd>(_simd: S, x: &[Self]) -> f64 {
                // Signed integers: the sign bit is clear, and SSE2 has only the signed maximum of some widths.
                let mut lanes: [$bits; 32] = [0; 32];
                let (groups, rest) = x.as_chunks::<32>();
                for group in groups {
                    for (lane, v) in lanes.iter_mut().zip(group) {
                        *lane = (*lane).max(v.to_bits() as $bits & $signless);
                    }
                }
                for (lane, v) in lanes.iter_mut().zip(rest) {
                    *lane = (*lane).max(v.to_bits() as $bits & $signless);
                }
                let largest = lanes.iter().copied().fold(0, <$bits>::max);
                super::Float::to_f64(<$T>::from_bits(largest.cast_unsigned()))
            }
        }
    )*};
}

max_abs! {
    f16, i16, i16::MAX;
    bf16, i16, i16::MAX;
    f32, i32, i32::MAX;
    f64, i64, i64::MAX;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::Float;
    use crate::kernels::oracle::{for_every_length_and_offset, samples};

    fn check<T: Float>(make: impl Fn(f64) -> T) {
        let values: Vec<T> = samples(5000).into_iter().map(make).collect();
        for_every_length_and_offset(&values, |x| {
            let want = x.iter().map(|v| v.to_f64().abs()).fold(0.0, f64::max);
            for level in isa::all() {
                assert_eq!(max_abs(level, x), want, "{level:?} {}", x.len());
            }
        });
    }

    #[test]
    fn the_maximum_is_exact_at_every_length_and_offset() {
        check(|v| v);
        check(|v| v as f32);
        check(f16::from_f64);
        check(bf16::from_f64);
    }

    #[test]
    fn nan_outranks_infinity_and_infinity_every_finite_value() {
        for level in isa::all() {
            for at in 0..40 {
                let mut x = vec![f64::MAX; 40];
                x[at] = f64::NEG_INFINITY;
                assert_eq!(max_abs(level, &x), f64::INFINITY);
                x[39 - at] = -f64::NAN;
                assert!(max_abs(level, &x).is_nan());
            }
        }
    }
}
