//! Clamping: max(min(x, hi), lo), in place or out of place.
//!
//! - Formula: `x[i] ← max(min(x[i], hi), lo)`, as `np.minimum` and `np.maximum`: a NaN stays NaN, and a NaN bound
//!   gives NaN. With lo > hi the result is lo. No additions.
//! - Error: none. Every result is a copy of the element or of a bound.
//! - Bits: a result has all bits of what it is a copy of, those of NaNs included, signalling ones too, so they do not
//!   depend on the level. For that reason 16-bit floats are compared by their bits, without a conversion to float32.

mod groups;
mod half_bits;

use super::operation::Operation;
use fearless_simd::{Level, Simd, dispatch};
use groups::{clamp_groups, clamp_groups_to_same_bounds};
use half::{bf16, f16};
use half_bits::clamp_bits;

/// An element type that can be clamped.
pub trait Clamp: Sized + Copy + Default {
    /// Clamps each element to the same two bounds.
    fn clamp_all<S: Simd>(simd: S, x: &mut [Self], lo: Self, hi: Self);
    /// Clamps each element to the same two bounds, and writes the result to `out`. The slices have the same length.
    fn clamp_all_to<S: Simd>(simd: S, x: &[Self], out: &mut [Self], lo: Self, hi: Self);
    /// Clamps each element to its own bounds. Writes only groups of elements that change, and returns whether one
    /// does. The slices have the same length.
    fn clamp_each<S: Simd>(simd: S, x: &mut [Self], lo: &[Self], hi: &[Self]) -> bool;
    /// Clamps each element to the same two bounds. Writes only groups of elements that change, and returns whether
    /// one does.
    fn clamp_changed<S: Simd>(simd: S, x: &mut [Self], lo: Self, hi: Self) -> bool;
}

/// Clamps each element to the same two bounds.
pub fn clamp_all<T: Clamp>(level: Level, x: &mut [T], lo: T, hi: T) {
    dispatch!(level, simd => T::clamp_all(simd, x, lo, hi));
}

/// Clamps each element to the same two bounds. Writes only groups of elements that change, and returns whether one
/// does.
pub fn clamp_changed<T: Clamp>(level: Level, x: &mut [T], lo: T, hi: T) -> bool {
    dispatch!(level, simd => T::clamp_changed(simd, x, lo, hi))
}

/// Clamping to the same two bounds as an [`Operation`].
#[derive(Clone, Copy, Debug)]
pub struct Clamping<T> {
    /// Lower bound.
    pub lo: T,
    /// Upper bound.
    pub hi: T,
}

impl<T: Clamp> Operation<T> for Clamping<T> {
    #[inline(always)]
    fn in_place<S: Simd>(self, simd: S, x: &mut [T]) {
        T::clamp_all(simd, x, self.lo, self.hi);
    }

    #[inline(always)]
    fn out_of_place<S: Simd>(self, simd: S, x: &[T], out: &mut [T]) {
        T::clamp_all_to(simd, x, out, self.lo, self.hi);
    }
}

/// Clamps each element to its own bounds. Writes only groups of elements that change, and returns whether one does.
/// The slices have the same length.
pub fn clamp_each<T: Clamp>(level: Level, x: &mut [T], lo: &[T], hi: &[T]) -> bool {
    dispatch!(level, simd => T::clamp_each(simd, x, lo, hi))
}

macro_rules! clamp_float {
    ($($T:ty, $clamp:ident;)*) => {$(
        /// Clamps one element. Comparisons with NaN are false: a NaN element is returned, and so is a NaN bound
        /// unless the element is NaN.
        #[inline(always)]
        #[allow(clippy::manual_clamp, reason = "the standard clamp panics on lo > hi and on NaN bounds")]
        fn $clamp(x: $T, lo: $T, hi: $T) -> $T {
            let below = if x <= hi || x.is_nan() { x } else { hi };
            if below >= lo || below.is_nan() { below } else { lo }
        }

        impl Clamp for $T {
            #[inline(always)]
            fn clamp_all<S: Simd>(_simd: S, x: &mut [Self], lo: Self, hi: Self) {
                for v in x {
                    *v = $clamp(*v, lo, hi);
                }
            }

            #[inline(always)]
            fn clamp_all_to<S: Simd>(_simd: S, x: &[Self], out: &mut [Self], lo: Self, hi: Self) {
                for (to, v) in out.iter_mut().zip(x) {
                    *to = $clamp(*v, lo, hi);
                }
            }

            #[inline(always)]
            fn clamp_each<S: Simd>(_simd: S, x: &mut [Self], lo: &[Self], hi: &[Self]) -> bool {
                clamp_groups(x, [lo, hi], $clamp, |a, b| a.to_bits() ^ b.to_bits())
            }

            #[inline(always)]
            fn clamp_changed<S: Simd>(_simd: S, x: &mut [Self], lo: Self, hi: Self) -> bool {
                clamp_groups_to_same_bounds(x, |v| $clamp(v, lo, hi), |a, b| a.to_bits() ^ b.to_bits())
            }
        }
    )*};
}

clamp_float! {
    f32, clamp_f32;
    f64, clamp_f64;
}

macro_rules! clamp_int {
    ($($T:ty)*) => {$(
        impl Clamp for $T {
            #[inline(always)]
            fn clamp_all<S: Simd>(_simd: S, x: &mut [Self], lo: Self, hi: Self) {
                for v in x {
                    *v = (*v).min(hi).max(lo);
                }
            }

            #[inline(always)]
            fn clamp_all_to<S: Simd>(_simd: S, x: &[Self], out: &mut [Self], lo: Self, hi: Self) {
                for (to, v) in out.iter_mut().zip(x) {
                    *to = (*v).min(hi).max(lo);
                }
            }

            #[inline(always)]
            fn clamp_each<S: Simd>(_simd: S, x: &mut [Self], lo: &[Self], hi: &[Self]) -> bool {
                clamp_groups(x, [lo, hi], |v, lo, hi| v.min(hi).max(lo), |a, b| a ^ b)
            }

            #[inline(always)]
            fn clamp_changed<S: Simd>(_simd: S, x: &mut [Self], lo: Self, hi: Self) -> bool {
                clamp_groups_to_same_bounds(x, |v| v.min(hi).max(lo), |a, b| a ^ b)
            }
        }
    )*};
}

clamp_int! { i8 i16 i32 i64 u8 u16 u32 u64 }

macro_rules! clamp_half {
    ($($T:ty)*) => {$(
        impl Clamp for $T {
            #[inline(always)]
            fn clamp_all<S: Simd>(_simd: S, x: &mut [Self], lo: Self, hi: Self) {
                let (lo, hi, infinity) = (lo.to_bits(), hi.to_bits(), Self::INFINITY.to_bits());
                for v in x {
                    *v = Self::from_bits(clamp_bits(v.to_bits(), lo, hi, infinity));
                }
            }

            #[inline(always)]
            fn clamp_all_to<S: Simd>(_simd: S, x: &[Self], out: &mut [Self], lo: Self, hi: Self) {
                let (lo, hi, infinity) = (lo.to_bits(), hi.to_bits(), Self::INFINITY.to_bits());
                for (to, v) in out.iter_mut().zip(x) {
                    *to = Self::from_bits(clamp_bits(v.to_bits(), lo, hi, infinity));
                }
            }

            #[inline(always)]
            fn clamp_each<S: Simd>(_simd: S, x: &mut [Self], lo: &[Self], hi: &[Self]) -> bool {
                let infinity = Self::INFINITY.to_bits();
                let bits = |v: Self, lo: Self, hi: Self| {
                    clamp_bits(v.to_bits(), lo.to_bits(), hi.to_bits(), infinity)
                };
                let clamp = |v, lo, hi| Self::from_bits(bits(v, lo, hi));
                clamp_groups(x, [lo, hi], clamp, |a, b| a.to_bits() ^ b.to_bits())
            }

            #[inline(always)]
            fn clamp_changed<S: Simd>(_simd: S, x: &mut [Self], lo: Self, hi: Self) -> bool {
                let (lo, hi, infinity) = (lo.to_bits(), hi.to_bits(), Self::INFINITY.to_bits());
                let clamp = |v: Self| Self::from_bits(clamp_bits(v.to_bits(), lo, hi, infinity));
                clamp_groups_to_same_bounds(x, clamp, |a, b| a.to_bits() ^ b.to_bits())
            }
        }
    )*};
}

clamp_half! { f16 bf16 }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::Float;
    use crate::kernels::oracle::{for_every_length_and_offset, samples};

    fn check<T: Float>(make: impl Fn(f64) -> T) {
        let mut values: Vec<T> = samples(5000).into_iter().map(&make).collect();
        for i in (0..values.len()).step_by(37) {
            values[i] = T::NAN;
        }
        let (lo, hi) = (make(-0.25), make(0.5));
        let want = |v: &T| {
            let x = v.to_f64();
            if x.is_nan() { x } else { x.clamp(lo.to_f64(), hi.to_f64()) }
        };
        for_every_length_and_offset(&values, |x| {
            for level in isa::all() {
                let mut all = x.to_vec();
                clamp_all(level, &mut all, lo, hi);
                let mut out_of_place = vec![T::NAN; x.len()];
                dispatch!(level, simd => T::clamp_all_to(simd, x, &mut out_of_place, lo, hi));
                let mut each = x.to_vec();
                let bounds = [vec![lo; x.len()], vec![hi; x.len()]];
                let bits = |x: &[T]| x.iter().map(|v| v.to_f64().to_bits()).collect::<Vec<_>>();
                let changed = clamp_each(level, &mut each, &bounds[0], &bounds[1]);
                assert_eq!(changed, bits(x) != bits(&all), "{level:?} {}", x.len());
                let mut groups = x.to_vec();
                let changed = bits(x) != bits(&all);
                assert_eq!(clamp_changed(level, &mut groups, lo, hi), changed, "{level:?} {}", x.len());
                assert!(bits(&groups) == bits(&all), "{level:?} {}", x.len());
                assert!(!clamp_changed(level, &mut groups, lo, hi));
                for i in 0..x.len() {
                    let want = want(&x[i]);
                    for got in [&all, &out_of_place, &each].map(|got| got[i].to_f64()) {
                        assert!(got == want || got.is_nan() && want.is_nan(), "{level:?} {i}");
                    }
                }
            }
        });
    }

    #[test]
    fn floats_are_clamped_and_a_nan_stays_nan() {
        check(|v| v);
        check(|v| v as f32);
        check(f16::from_f64);
        check(bf16::from_f64);
    }

    #[test]
    fn crossed_bounds_give_the_lower_one_and_nan_bounds_give_nan() {
        for level in isa::all() {
            let mut x = [0.0_f32, 5.0, -5.0];
            let mut n = [7_u8];
            assert!(!clamp_changed(level, &mut n, 5, 10) && clamp_changed(level, &mut n, 10, 5) && n == [10]);
            clamp_all(level, &mut x, 2.0, 1.0);
            assert_eq!(x, [2.0; 3]);
            clamp_all(level, &mut x, f32::NAN, 1.0);
            assert!(x.iter().all(|v| v.is_nan()));
            let mut x = [1.0_f64];
            clamp_all(level, &mut x, 0.0, f64::NAN);
            assert!(x[0].is_nan());
            let mut n = [200_u8, 3, 100];
            clamp_all(level, &mut n, 10, 150);
            assert_eq!(n, [150, 10, 100]);
            clamp_all(level, &mut n, 10, 5);
            assert_eq!(n, [10; 3]);
        }
    }

    #[test]
    fn elements_within_the_bounds_keep_their_bits() {
        for level in isa::all() {
            let mut x = [-0.0_f32, 0.0, f32::MIN_POSITIVE / 2.0];
            let before = x.map(f32::to_bits);
            clamp_all(level, &mut x, 0.0, 1.0);
            assert_eq!(x.map(f32::to_bits), before);
        }
    }

    /// Compares every clamped 16-bit float with the result of the comparisons in float32.
    fn check_against_float32<T: Float>(from_bits: fn(u16) -> T, to_bits: fn(T) -> u16) {
        let all: Vec<T> = (0..=u16::MAX).map(from_bits).collect();
        let number = |x: f64| all.iter().copied().find(|v| v.to_f64() == x).unwrap();
        let [zero, one, two] = [0.0, 1.0, 2.0].map(number);
        let [minus_zero, minus_one] = [0x8000, to_bits(one) | 0x8000].map(from_bits);
        let infinities = [f64::INFINITY, f64::NEG_INFINITY].map(number);
        let bounds = [zero, minus_zero, one, minus_one, two, infinities[0], infinities[1], T::NAN];
        for level in isa::all() {
            for lo in bounds {
                for hi in bounds {
                    let (mut together, mut each) = (all.clone(), all.clone());
                    clamp_all(level, &mut together, lo, hi);
                    clamp_each(level, &mut each, &vec![lo; all.len()], &vec![hi; all.len()]);
                    for ((x, a), b) in all.iter().zip(&together).zip(&each) {
                        let [wide, low, high] = [*x, lo, hi].map(|v| v.to_f64() as f32);
                        let below = if wide <= high || wide.is_nan() { *x } else { hi };
                        let wide = below.to_f64() as f32;
                        let want = if wide >= low || wide.is_nan() { below } else { lo };
                        assert_eq!(to_bits(*a), to_bits(want), "{level:?} {x:?} {lo:?} {hi:?}");
                        assert_eq!(to_bits(*b), to_bits(want), "{level:?} {x:?} {lo:?} {hi:?}");
                    }
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn float16_and_bfloat16_are_ordered_by_their_bits_as_by_their_values() {
        check_against_float32(f16::from_bits, f16::to_bits);
        check_against_float32(bf16::from_bits, bf16::to_bits);
    }
}
