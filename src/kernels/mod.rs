//! Kernels: the loops over slices, one kernel a file, each a generic body that is compiled for every SIMD level.
//!
//! `README.md` in this folder lists what each computes, its error bound and its cost. A kernel gets contiguous,
//! aligned slices; it knows nothing of threads, strides or Python, and it cannot fail.

pub mod cache;
pub mod clamp;
pub mod columns;
pub mod convert;
pub mod exponent;
pub mod factor;
pub mod half_precision;
pub mod lane_sum;
pub mod lanes;
pub mod max_abs;
pub mod operation;
pub mod power_sum;
pub mod row_sum;
pub mod scale;
pub mod stochastic;
pub mod sum_squares;
pub mod update;
pub mod update_bf16_slots;

use crate::scalar::Element;
use half::{bf16, f16};

/// A float type that norms, scaling and clamping are defined for.
pub trait Float:
    Element
    + PartialEq
    + std::fmt::Debug
    + lane_sum::LaneSum
    + max_abs::MaxAbs
    + scale::Scalable
    + columns::Columns
    + Clamp
{
    /// The NaN that every computation of fastclip returns: quiet, positive, without payload.
    const NAN: Self;
    /// Zero.
    const ZERO: Self;
    /// Returns the value as a float64, exactly.
    fn to_f64(self) -> f64;
    /// Returns the value nearest to a float64, ties to even.
    fn rounded(x: f64) -> Self;
}

pub use clamp::Clamp;

macro_rules! float {
    ($($T:ty: $nan:expr, $zero:expr, $to_f64:expr, $rounded:expr;)*) => {$(
        impl Float for $T {
            const NAN: Self = $nan;
            const ZERO: Self = $zero;
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to_f64(self)
            }
            #[inline(always)]
            fn rounded(x: f64) -> Self {
                $rounded(x)
            }
        }
    )*};
}

float! {
    f16: f16::NAN, f16::ZERO, |x: f16| f64::from(half_precision::f16_to_f32(x.to_bits())), |x| Self::from_bits(half_precision::f32_to_f16(half_precision::f64_to_f32_odd(x)));
    bf16: bf16::NAN, bf16::ZERO, |x: bf16| f64::from(half_precision::bf16_to_f32(x.to_bits())), |x| Self::from_bits(half_precision::f32_to_bf16(half_precision::f64_to_f32_odd(x)));
    f32: f32::NAN, 0.0, f64::from, |x| x as Self;
    f64: f64::NAN, 0.0, |x: f64| x, |x| x;
}

#[cfg(test)]
mod nan_bits;
#[cfg(test)]
pub(crate) mod oracle;
#[cfg(test)]
mod output_hashes;
