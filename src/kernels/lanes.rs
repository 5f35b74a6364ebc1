//! Arithmetic of update rules, for one number or a vector register of numbers.
//!
//! An update rule is written once, over [`Lanes`]. It runs on vector registers, and on single numbers at the end of a
//! slice where fewer are left than fill a register.
//!
//! - Error: ½ ulp for each operation: IEEE 754's, rounded once. `powf` has the error of the C library's function.
//! - Bits: they do not depend on the width of the registers: products are not fused with additions, and `powf` is the
//!   C library's for each number.

use super::scale::{Factor, Scalable};
use super::{Clamp, Float};
use fearless_simd::prelude::*;
use fearless_simd::{f32x16, f64x8};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// One number of type `R`, or a vector register of such numbers.
#[allow(clippy::return_self_not_must_use, reason = "arithmetic: operators are not marked either")]
pub trait Lanes<R>:
    Copy
    + Neg<Output = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Add<R, Output = Self>
    + Sub<R, Output = Self>
    + Mul<R, Output = Self>
    + Div<R, Output = Self>
{
    /// Returns a value of the same width as this one with `x` in every lane.
    fn broadcast(self, x: R) -> Self;
    /// Returns √x.
    fn sqrt(self) -> Self;
    /// Returns |x|.
    fn abs(self) -> Self;
    /// Returns |x| with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// Returns 1 with the sign of x, and x where x is 0 or NaN.
    fn sign(self) -> Self;
    /// Returns the larger of two numbers, and `other` where one of them is NaN.
    fn max(self, other: Self) -> Self;
    /// Returns max(x, 0), and NaN where x is NaN.
    fn positive_part(self) -> Self;
    /// Returns x to the power `exponent`, by the C library's function.
    fn powf(self, exponent: R) -> Self;
    /// Returns x / divisor, and x where x is 0, whatever the divisor is: 0/0 is 0.
    fn div_unless_zero(self, divisor: Self) -> Self;
    /// Returns x, and [`Float::NAN`] where x is any NaN.
    fn canonical(self) -> Self;

    /// Returns sign(x)·max(|x| − threshold, 0): soft thresholding, the proximal operator of an l1 penalty.
    #[inline(always)]
    fn shrink<T>(self, threshold: T) -> Self
    where
        Self: Sub<T, Output = Self>,
    {
        (self.abs() - threshold).positive_part().copysign(self)
    }
}

/// An element type of variables: float32 or float64.
pub trait Real: Float + Scalable + Clamp + Lanes<Self> {
    /// Vector of 64 bytes: one register, or several narrower ones.
    type Vector<S: Simd>: Lanes<Self>;
    /// Number of elements in a [`Real::Vector`].
    const LANES: usize;

    /// Returns the value nearest to a float64.
    fn from_f64(x: f64) -> Self;
    /// Returns the factor as one number of this type, or `None` if it is too small or too large for that.
    fn plain(factor: Factor) -> Option<Self>;
    /// Loads the first [`Real::LANES`] elements of a slice.
    fn load<S: Simd>(simd: S, from: &[Self]) -> Self::Vector<S>;
    /// Stores to the first [`Real::LANES`] elements of a slice.
    fn store<S: Simd>(vector: Self::Vector<S>, to: &mut [Self]);
}

macro_rules! real {
    ($($T:ident, $V:ident, $lanes:literal, |$factor:ident| $single:expr;)*) => {$(
        impl Lanes<$T> for $T {
            #[inline(always)]
            fn broadcast(self, x: $T) -> Self {
                x
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $T::sqrt(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $T::abs(self)
            }
            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                $T::copysign(self, sign)
            }
            #[inline(always)]
            fn sign(self) -> Self {
                if self == 0.0 || self.is_nan() { self } else { $T::copysign(1.0, self) }
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                if self >= other { self } else { other }
            }
            #[inline(always)]
            fn positive_part(self) -> Self {
                if self <= 0.0 { 0.0 } else { self }
            }
            #[inline(always)]
            fn powf(self, exponent: $T) -> Self {
                $T::powf(self, exponent)
            }
            #[inline(always)]
            fn div_unless_zero(self, divisor: Self) -> Self {
                if self == 0.0 { self } else { self / divisor }
            }
            #[inline(always)]
            fn canonical(self) -> Self {
                if self.is_nan() { <$T>::NAN } else { self }
            }
        }

        impl<S: Simd> Lanes<$T> for $V<S> {
            #[inline(always)]
            fn broadcast(self, x: $T) -> Self {
                $V::splat(self.token(), x)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                SimdFloat::sqrt(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                SimdBase::abs(self)
            }
            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                SimdFloat::copysign(self, sign)
            }
            #[inline(always)]
            fn sign(self) -> Self {
                let one = SimdFloat::copysign(self.broadcast(1.0), self);
                (self.simd_gt(0.0) | self.simd_lt(0.0)).select(one, self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                self.simd_ge(other).select(self, other)
            }
            #[inline(always)]
            fn positive_part(self) -> Self {
                self.simd_le(0.0).select(self.broadcast(0.0), self)
            }
            #[inline(always)]
            fn powf(mut self, exponent: $T) -> Self {
                for x in self.as_mut_slice() {
                    *x = x.powf(exponent);
                }
                self
            }
            #[inline(always)]
            fn div_unless_zero(self, divisor: Self) -> Self {
                self.simd_eq(0.0).select(self, self / divisor)
            }
            #[inline(always)]
            fn canonical(self) -> Self {
                self.simd_eq(self).select(self, self.broadcast(<$T>::NAN))
            }
        }

        impl Real for $T {
            type Vector<S: Simd> = $V<S>;
            const LANES: usize = $lanes;

            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $T
            }
            #[inline(always)]
            fn plain($factor: Factor) -> Option<Self> {
                $single
            }
            #[inline(always)]
            fn load<S: Simd>(simd: S, from: &[Self]) -> Self::Vector<S> {
                $V::from_slice(simd, &from[..$lanes])
            }
            #[inline(always)]
            fn store<S: Simd>(vector: Self::Vector<S>, to: &mut [Self]) {
                vector.store_slice(&mut to[..$lanes]);
            }
        }
    )*};
}

real! {
    f32, f32x16, 16, |factor| (!factor.is_wide()).then_some(factor.narrow);
    f64, f64x8, 8, |factor| (!factor.is_lifted()).then_some(factor.wide);
}
