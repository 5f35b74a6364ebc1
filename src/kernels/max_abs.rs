//! max|x|, by comparing bits.
//!
//! Without the sign, IEEE floats order as the integers that their bits are, infinity above every
//! finite value and NaN above infinity: an integer maximum finds all three, on every level alike.

use fearless_simd::{Level, Simd, dispatch};
use half::{bf16, f16};

/// Maximum of absolute values of a slice of this type.
pub trait MaxAbs: Sized {
    /// max|x| as a float64, 0 for an empty slice, NaN if a NaN is among them.
    fn max_abs<S: Simd>(simd: S, x: &[Self]) -> f64;
}

/// max|x| of a slice: 0 if empty, NaN if it holds one.
#[must_use]
pub fn max_abs<T: MaxAbs>(level: Level, x: &[T]) -> f64 {
    dispatch!(level, simd => T::max_abs(simd, x))
}

macro_rules! max_abs {
    ($($T:ty, $bits:ty, $signless:expr;)*) => {$(
        impl MaxAbs for $T {
            #[inline(always)]
            fn max_abs<S: Simd>(_simd: S, x: &[Self]) -> f64 {
                // Signed: the sign bit is clear, and older levels have only the signed maximum.
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
    fn it_is_the_largest_at_every_length_and_offset() {
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
