//! Arithmetic that reads the same for one number and for a register of them.
//!
//! An update rule is written once, over [`Lanes`]; it runs on registers, and on single numbers where fewer are
//! left than fill one. Every operation is IEEE's, rounded once, and products are not fused with additions: the
//! same bits come out, whatever the width.

use super::scale::{Factor, Scalable};
use super::{Clamp, Float};
use fearless_simd::prelude::*;
use fearless_simd::{f32x16, f64x8};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// One or several numbers of type `R`.
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
    /// As many times this number.
    fn filled(self, x: R) -> Self;
    /// √x
    fn sqrt(self) -> Self;
    /// |x|
    fn abs(self) -> Self;
    /// |x| with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// max(x, 0), and NaN where x is.
    fn positive_part(self) -> Self;
    /// x to a power, by the C library's function.
    fn powf(self, exponent: R) -> Self;
    /// x / divisor, and x where it is 0, whatever the divisor is: 0/0 is 0 here.
    fn over(self, divisor: Self) -> Self;
    /// x, and where it is NaN the one with the bits of [`Float::NAN`].
    fn canonical(self) -> Self;

    /// sign(x)·max(|x| − threshold, 0): what an l1 penalty does.
    #[inline(always)]
    fn shrink<T>(self, threshold: T) -> Self
    where
        Self: Sub<T, Output = Self>,
    {
        (self.abs() - threshold).positive_part().copysign(self)
    }
}

/// A type that variables may have: float32 or float64.
pub trait Real: Float + Scalable + Clamp + Lanes<Self> {
    /// A register of them, or several: 64 bytes.
    type Vector<S: Simd>: Lanes<Self>;
    /// How many that are.
    const LANES: usize;

    /// The nearest value.
    fn from_f64(x: f64) -> Self;
    /// The factor as one number of this type, unless it is too extreme for that.
    fn plain(factor: Factor) -> Option<Self>;
    /// The first [`Real::LANES`] elements of a slice.
    fn load<S: Simd>(simd: S, from: &[Self]) -> Self::Vector<S>;
    /// Writes to the first [`Real::LANES`] elements of a slice.
    fn store<S: Simd>(vector: Self::Vector<S>, to: &mut [Self]);
}

macro_rules! real {
    ($($T:ident, $V:ident, $lanes:literal, |$factor:ident| $plain:expr;)*) => {$(
        impl Lanes<$T> for $T {
            #[inline(always)]
            fn filled(self, x: $T) -> Self {
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
            fn positive_part(self) -> Self {
                if self <= 0.0 { 0.0 } else { self }
            }
            #[inline(always)]
            fn powf(self, exponent: $T) -> Self {
                $T::powf(self, exponent)
            }
            #[inline(always)]
            fn over(self, divisor: Self) -> Self {
                if self == 0.0 { self } else { self / divisor }
            }
            #[inline(always)]
            fn canonical(self) -> Self {
                if self.is_nan() { <$T>::NAN } else { self }
            }
        }

        impl<S: Simd> Lanes<$T> for $V<S> {
            #[inline(always)]
            fn filled(self, x: $T) -> Self {
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
            fn positive_part(self) -> Self {
                self.simd_le(0.0).select(self.filled(0.0), self)
            }
            #[inline(always)]
            fn powf(mut self, exponent: $T) -> Self {
                for x in self.as_mut_slice() {
                    *x = x.powf(exponent);
                }
                self
            }
            #[inline(always)]
            fn over(self, divisor: Self) -> Self {
                self.simd_eq(0.0).select(self, self / divisor)
            }
            #[inline(always)]
            fn canonical(self) -> Self {
                self.simd_eq(self).select(self, self.filled(<$T>::NAN))
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
                $plain
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
