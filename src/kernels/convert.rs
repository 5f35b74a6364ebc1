//! Conversion of slices from one float type to another: of gradients to the type of their variable, and of variables
//! to that of their low-precision copy.
//!
//! - Formula: `to[i] = from[i]`, rounded to the nearest, ties to even. No additions.
//! - Error: none to a wider type, else ½ ulp: one rounding. float64 is rounded to odd in float32 before it is rounded
//!   to 16 bits, which gives the bits of a single rounding.
//! - Bits: IEEE 754 defines the rounding. A NaN becomes quiet and keeps its sign and as much of its payload as fits;
//!   bfloat16 to float32, and a type to itself, copy the bits.

use super::half_precision::{BLOCK, Half, f64_to_f32_odd};
use fearless_simd::{Level, Simd, dispatch};
use half::{bf16, f16};

/// A float type that slices can be converted from, to `T`.
pub trait Convert<T>: Sized {
    /// Computes `to[i] = from[i]`. The slices have the same length.
    fn convert<S: Simd>(simd: S, from: &[Self], to: &mut [T]);
}

/// Computes `to[i] = from[i]`, rounded to the nearest, ties to even. The slices have the same length.
pub fn convert<A: Convert<B>, B>(level: Level, from: &[A], to: &mut [B]) {
    dispatch!(level, simd => A::convert(simd, from, to));
}

macro_rules! convert_each {
    ($($A:ty => $B:ty, |$x:ident| $y:expr;)*) => {$(
        impl Convert<$B> for $A {
            #[inline(always)]
            fn convert<S: Simd>(_simd: S, from: &[Self], to: &mut [$B]) {
                for ($x, to) in from.iter().zip(to) {
                    *to = $y;
                }
            }
        }
    )*};
}

convert_each! {
    f32 => f32, |x| *x;
    f64 => f64, |x| *x;
    f32 => f64, |x| f64::from(*x);
    f64 => f32, |x| *x as f32;
}

macro_rules! convert_half {
    ($($H:ty)*) => {$(
        impl Convert<f32> for $H {
            #[inline(always)]
            fn convert<S: Simd>(simd: S, from: &[Self], to: &mut [f32]) {
                <$H>::widen(simd, from, to);
            }
        }

        impl Convert<$H> for f32 {
            #[inline(always)]
            fn convert<S: Simd>(simd: S, from: &[Self], to: &mut [$H]) {
                <$H>::narrow(simd, from, to);
            }
        }

        impl Convert<f64> for $H {
            #[inline(always)]
            fn convert<S: Simd>(simd: S, from: &[Self], to: &mut [f64]) {
                let mut buffer = [0.0_f32; BLOCK];
                for (from, to) in from.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
                    let wide = &mut buffer[..from.len()];
                    <$H>::widen(simd, from, wide);
                    f32::convert(simd, wide, to);
                }
            }
        }

        impl Convert<$H> for f64 {
            #[inline(always)]
            fn convert<S: Simd>(simd: S, from: &[Self], to: &mut [$H]) {
                let mut buffer = [0.0_f32; BLOCK];
                for (from, to) in from.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
                    let odd = &mut buffer[..from.len()];
                    for (x, odd) in from.iter().zip(&mut *odd) {
                        *odd = f64_to_f32_odd(*x);
                    }
                    <$H>::narrow(simd, odd, to);
                }
            }
        }
    )*};
}

convert_half! { f16 bf16 }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::oracle::samples;

    #[test]
    fn conversions_round_once_and_widening_is_exact() {
        let values = samples(3000);
        for level in isa::all() {
            let mut halves = vec![bf16::ZERO; values.len()];
            convert(level, &values, &mut halves);
            for (x, h) in values.iter().zip(&halves) {
                assert_eq!(h.to_bits(), bf16::from_f64(*x).to_bits(), "{x:e}");
            }
            let mut halves = vec![f16::ZERO; values.len()];
            convert(level, &values, &mut halves);
            for (x, h) in values.iter().zip(&halves) {
                assert_eq!(h.to_bits(), f16::from_f64(*x).to_bits(), "{x:e}");
            }
            let (mut wide, mut single) = (vec![0.0_f64; values.len()], vec![0.0_f32; values.len()]);
            convert(level, &halves, &mut wide);
            convert(level, &halves, &mut single);
            for ((h, w), s) in halves.iter().zip(&wide).zip(&single) {
                assert_eq!(h.to_f64().to_bits(), w.to_bits());
                assert_eq!(f64::from(*s).to_bits(), w.to_bits());
            }
            let mut back = vec![f16::ZERO; values.len()];
            convert(level, &single, &mut back);
            assert!(back.iter().zip(&halves).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}
