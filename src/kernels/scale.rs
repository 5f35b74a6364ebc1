//! Scaling: x·s, in place or out of place, each element the correctly rounded product.
//!
//! - Formula: `x[i] ← x[i]·s`, with the [`Factor`] s rounded once from float64 to float32 for float32 and narrower
//!   types. No additions.
//! - Error: ½ ulp of the type, at every level. A float32 product is one IEEE multiplication. A float16 or bfloat16
//!   product has more bits than float32 holds, and rounding it twice can be wrong; `half_precision/products.rs`
//!   tells when.
//! - Bits: each product is rounded once as IEEE 754 defines, so they do not depend on the level. A NaN times a number
//!   keeps its sign and its payload and becomes quiet, as IEEE 754 recommends and every processor does. A NaN from
//!   0·∞ or from a factor that is NaN has the bits of [`Float::NAN`]; processors disagree about those, so factors
//!   that may produce one take a separate path ([`Factor::is_special`]).

use super::Float;
use super::cache::{PREFETCHED_BYTES, Prefetch, prefetch_after};
pub use super::factor::Factor;
use super::half_precision::{self, GROUP, Half, f64_to_f32_odd};
use super::operation::Operation;
use fearless_simd::{Level, Simd, dispatch};
use half::{bf16, f16};

/// An element type that slices can be scaled of.
pub trait Scalable: Sized {
    /// Computes `x[i] ← x[i]·factor`, correctly rounded.
    fn scale<S: Simd>(simd: S, x: &mut [Self], factor: Factor);
    /// Computes `out[i] ← x[i]·factor`, correctly rounded. The slices have the same length.
    fn scale_to<S: Simd>(simd: S, x: &[Self], out: &mut [Self], factor: Factor);
    /// Returns one element times the factor, with the bits that [`Scalable::scale`] gives it.
    #[must_use]
    fn product(self, factor: Factor) -> Self;
}

/// Computes `x[i] ← x[i]·factor`, correctly rounded.
pub fn scale<T: Scalable>(level: Level, x: &mut [T], factor: Factor) {
    dispatch!(level, simd => T::scale(simd, x, factor));
}

/// Scaling as an [`Operation`].
#[derive(Clone, Copy, Debug)]
pub struct Scaling(pub Factor);

impl<T: Scalable> Operation<T> for Scaling {
    #[inline(always)]
    fn in_place<S: Simd>(self, simd: S, x: &mut [T]) {
        T::scale(simd, x, self.0);
    }

    #[inline(always)]
    fn out_of_place<S: Simd>(self, simd: S, x: &[T], out: &mut [T]) {
        T::scale_to(simd, x, out, self.0);
    }
}

/// Returns `product`, that of `x` and a factor for which [`Factor::is_special`] holds, or [`Float::NAN`] where the
/// product is a NaN that does not come from `x`.
#[inline(always)]
pub(crate) fn with_canonical_nan<T: Float>(x: T, factor: f64, product: T) -> T {
    let is_new = !x.to_f64().is_nan() || factor.is_nan();
    if product.to_f64().is_nan() && is_new { T::NAN } else { product }
}

macro_rules! scale_float {
    ($($T:ty, |$v:ident, $factor:ident| $product:expr, $is_extreme:ident => $extreme:expr;)*) => {$(
        impl Scalable for $T {
            #[inline(always)]
            fn scale<S: Simd>(_simd: S, x: &mut [Self], $factor: Factor) {
                if $factor.is_special() {
                    for v in x {
                        let $v = *v;
                        *v = with_canonical_nan($v, $factor.wide, $extreme);
                    }
                } else if $factor.$is_extreme() {
                    for v in x {
                        let $v = *v;
                        *v = $extreme;
                    }
                } else {
                    for v in x {
                        let $v = *v;
                        *v = $product;
                    }
                }
            }

            #[inline(always)]
            fn scale_to<S: Simd>(_simd: S, x: &[Self], out: &mut [Self], $factor: Factor) {
                if $factor.is_special() {
                    for (to, v) in out.iter_mut().zip(x) {
                        let $v = *v;
                        *to = with_canonical_nan($v, $factor.wide, $extreme);
                    }
                } else if $factor.$is_extreme() {
                    for (to, v) in out.iter_mut().zip(x) {
                        let $v = *v;
                        *to = $extreme;
                    }
                } else {
                    for (to, v) in out.iter_mut().zip(x) {
                        let $v = *v;
                        *to = $product;
                    }
                }
            }

            #[inline(always)]
            fn product(self, $factor: Factor) -> Self {
                let $v = self;
                if $factor.is_special() {
                    with_canonical_nan($v, $factor.wide, $extreme)
                } else if $factor.$is_extreme() {
                    $extreme
                } else {
                    $product
                }
            }
        }
    )*};
}

scale_float! {
    f32, |v, factor| v * factor.narrow, is_wide => (f64::from(v) * factor.lift * factor.wide) as f32;
    f64, |v, factor| v * factor.wide, is_lifted => v * factor.lift * factor.wide;
}

/// Scales 16-bit floats that were converted to float32: multiplies in float64 and rounds each product to odd in
/// float32, from where rounding to 16 bits gives the correctly rounded product.
#[inline(always)]
fn scale_in_f64(block: &mut [f32], factor: Factor) {
    let exact = factor.narrow_as_f64();
    let product = |x: f32| f64_to_f32_odd(f64::from(x) * factor.lift * exact);
    if factor.is_special() {
        for v in block {
            *v = with_canonical_nan(*v, factor.wide, product(*v));
        }
    } else {
        for v in block {
            *v = product(*v);
        }
    }
}

/// Returns the products of 16-bit floats, correctly rounded.
#[inline(always)]
fn scaled<S: Simd, H: Half>(simd: S, x: &[H; GROUP], factor: Factor) -> [H; GROUP] {
    if !factor.is_wide() && !factor.is_special() {
        let (products, are_rounded_once) = H::products_via_f32(simd, x, factor.narrow);
        if are_rounded_once {
            return products;
        }
    }
    let mut wide = [0.0; GROUP];
    H::widen(simd, x, &mut wide);
    scale_in_f64(&mut wide, factor);
    let mut products = [H::default(); GROUP];
    H::narrow(simd, &wide, &mut products);
    products
}

/// As [`scaled`], for fewer elements; the others of the result mean nothing.
#[inline(always)]
fn scaled_rest<S: Simd, H: Half>(simd: S, rest: &[H], factor: Factor) -> [H; GROUP] {
    let mut padded = [H::default(); GROUP];
    padded[..rest.len()].copy_from_slice(rest);
    scaled(simd, &padded, factor)
}

macro_rules! scale_half {
    ($($T:ty, $widen:path, $narrow:path;)*) => {$(
        impl Scalable for $T {
            #[inline(always)]
            fn scale<S: Simd>(simd: S, x: &mut [Self], factor: Factor) {
                let ahead = Prefetch::of(x);
                let (groups, rest) = x.as_chunks_mut::<GROUP>();
                for groups in groups.chunks_mut(PREFETCHED_BYTES / size_of::<[Self; GROUP]>()) {
                    if ahead.covers(groups) {
                        prefetch_after(groups);
                    }
                    for group in groups {
                        *group = scaled(simd, group, factor);
                    }
                }
                if !rest.is_empty() {
                    let products = scaled_rest(simd, rest, factor);
                    rest.copy_from_slice(&products[..rest.len()]);
                }
            }

            #[inline(always)]
            fn scale_to<S: Simd>(simd: S, x: &[Self], out: &mut [Self], factor: Factor) {
                let (groups, rest) = x.as_chunks::<GROUP>();
                let (out, rest_of_out) = out.as_chunks_mut::<GROUP>();
                for (group, to) in groups.iter().zip(out) {
                    *to = scaled(simd, group, factor);
                }
                if !rest.is_empty() {
                    rest_of_out.copy_from_slice(&scaled_rest(simd, rest, factor)[..rest.len()]);
                }
            }

            #[inline(always)]
            fn product(self, factor: Factor) -> Self {
                let mut wide = [$widen(self.to_bits())];
                scale_in_f64(&mut wide, factor);
                <$T>::from_bits($narrow(wide[0]))
            }
        }
    )*};
}

scale_half! {
    f16, half_precision::f16_to_f32, half_precision::f32_to_f16;
    bf16, half_precision::bf16_to_f32, half_precision::f32_to_bf16;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::oracle::{for_every_length_and_offset, samples};

    fn bits<T: Float>(x: &[T]) -> Vec<u64> {
        x.iter().map(|v| v.to_f64().to_bits()).collect()
    }

    fn check<T: Float>(make: impl Fn(f64) -> T, factor: Factor, product: impl Fn(T) -> T) {
        let values: Vec<T> = samples(5000).into_iter().map(make).collect();
        for_every_length_and_offset(&values, |x| {
            let want: Vec<T> = x.iter().map(|v| product(*v)).collect();
            for level in isa::all() {
                let mut got = x.to_vec();
                scale(level, &mut got, factor);
                assert!(bits(&got) == bits(&want), "{level:?} {}", x.len());
                let mut out = vec![T::NAN; x.len()];
                dispatch!(level, simd => T::scale_to(simd, x, &mut out, factor));
                assert!(bits(&out) == bits(&want), "{level:?} {}", x.len());
            }
        });
    }

    #[test]
    fn each_element_is_the_correctly_rounded_product() {
        for c in [0.3, 0.9999, 1e-4, 1.0 / 3.0, 2e-6] {
            let factor = Factor::new(c, 1.0, 0);
            let s = factor.narrow;
            check(|v| v, factor, |v| v * c);
            check(|v| v as f32, factor, |v| v * s);
            // The product of 11 (8) bits and 24 is exact in float64.
            check(f16::from_f64, factor, |v| nearest(v.to_f64() * f64::from(s), f16::from_bits));
            check(bf16::from_f64, factor, |v| nearest(v.to_f64() * f64::from(s), bf16::from_bits));
        }
    }

    /// Returns the nearest value of a 16-bit type, ties to even, by bisection over its bits.
    fn nearest<T: Float>(x: f64, from_bits: fn(u16) -> T) -> T {
        let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
        let value = |bits: u16| from_bits(bits).to_f64();
        let (mut low, mut high) = (0, 0x7bff);
        if value(0x7c00).is_finite() {
            high = 0x7f7f;
        }
        while high - low > 1 {
            let middle = u16::midpoint(low, high);
            if value(middle) <= x.abs() { low = middle } else { high = middle }
        }
        let (below, above) = (x.abs() - value(low), value(high) - x.abs());
        let up = above < below || above == below && low & 1 == 1;
        from_bits(sign | if up { high } else { low })
    }

    #[test]
    fn every_16_bit_float_is_rounded_once_where_rounding_twice_would_differ() {
        let factors =
            [0.333_333_34_f32, 0.700_012_3, 0.001_234_567, 0.999_999_94, 3.1e-5, 0.5, 0.75, 1.0 / 1024.0];
        let all: Vec<u16> = (0..=u16::MAX).collect();
        for s in factors {
            let factor = Factor::new(f64::from(s), 1.0, 0);
            for level in isa::all() {
                let mut halves: Vec<f16> = all.iter().map(|b| f16::from_bits(*b)).collect();
                scale(level, &mut halves, factor);
                let mut bfloats: Vec<bf16> = all.iter().map(|b| bf16::from_bits(*b)).collect();
                scale(level, &mut bfloats, factor);
                for b in &all {
                    let x = f16::from_bits(*b).to_f64();
                    if x.is_finite() {
                        let want = nearest(x * f64::from(s), f16::from_bits);
                        assert_eq!(halves[usize::from(*b)].to_bits(), want.to_bits(), "{level:?} {x} {s}");
                    }
                    let x = bf16::from_bits(*b).to_f64();
                    if x.is_finite() {
                        let want = nearest(x * f64::from(s), bf16::from_bits);
                        assert_eq!(bfloats[usize::from(*b)].to_bits(), want.to_bits(), "{level:?} {x} {s}");
                    }
                }
            }
        }
    }

    fn check_single_products<T: Float>(values: &[T], factors: &[Factor], bits: impl Fn(T) -> u64) {
        for &factor in factors {
            for level in isa::all() {
                let mut want = values.to_vec();
                scale(level, &mut want, factor);
                for (x, want) in values.iter().zip(want) {
                    assert_eq!(bits(x.product(factor)), bits(want), "{level:?} {x:?} {factor:?}");
                }
            }
        }
    }

    fn check_every_16_bit_float(factors: &[Factor]) {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        check_single_products(&halves, factors, |v| v.to_bits().into());
        let bfloats: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        check_single_products(&bfloats, factors, |v| v.to_bits().into());
    }

    #[test]
    fn a_single_product_has_the_bits_of_a_scaled_slice() {
        let factors = [(0.3, 1.0, 0), (1e-10, 1e30, 0), (1.0, 1.0, 1030), (0.0, 3.0, 0), (1e-5, 1.0, 3)];
        let factors = factors.map(|(bound, norm, exponent)| Factor::new(bound, norm, exponent));
        let factors: Vec<Factor> =
            factors.into_iter().chain([Factor::ONE, Factor::ZERO, Factor::NAN]).collect();
        check_every_16_bit_float(&factors);
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let floats: Vec<f32> = all.iter().map(|b| f32::from_bits(u32::from(*b) << 16 | 0x1234)).collect();
        check_single_products(&floats, &factors, |v| v.to_bits().into());
        let doubles: Vec<f64> = all.iter().map(|b| f64::from_bits(u64::from(*b) << 48 | 0x1234)).collect();
        check_single_products(&doubles, &factors, f64::to_bits);
    }

    #[test]
    fn products_via_float32_are_those_of_float64_for_factors_of_any_length_and_size() {
        // Mantissas of 1 to 24 bits: the shorter, the more products are ties.
        for bits in 1..=24 {
            let mantissa = 1.0 - f64::powi(2.0, -bits);
            let exponents = [0, -1, -13, -60, -100, -125];
            let factors = exponents.map(|exponent| Factor::new(mantissa * f64::powi(2.0, exponent), 1.0, 0));
            check_every_16_bit_float(&factors);
        }
    }

    #[test]
    fn a_factor_below_float32_multiplies_in_float64() {
        let factor = Factor::new(1e-10, 1e30, 0);
        assert!(factor.is_wide());
        for level in isa::all() {
            let mut x = [1e30_f32, -3e29];
            scale(level, &mut x, factor);
            assert_eq!(x, [1e-10, -3e-11]);
        }
    }

    #[test]
    fn a_norm_beyond_float64_has_an_exact_factor() {
        // The norm is 2^1030: 1 / 2^1030 is below the normal range, so it is split.
        let factor = Factor::new(1.0, 1.0, 1030);
        for level in isa::all() {
            let mut x = [f64::powi(2.0, 1023), -f64::powi(2.0, 1020)];
            scale(level, &mut x, factor);
            assert_eq!(x, [f64::powi(2.0, -7), -f64::powi(2.0, -10)]);
        }
    }

    #[test]
    fn factors_zero_nan_and_one() {
        for level in isa::all() {
            let mut x = [1.0_f32, -2.0];
            scale(level, &mut x, Factor::ONE);
            assert_eq!(x, [1.0, -2.0]);
            scale(level, &mut x, Factor::new(0.0, 3.0, 0));
            assert_eq!(x, [0.0, 0.0]);
            scale(level, &mut x, Factor::NAN);
            assert!(x.iter().all(|v| v.is_nan()));
        }
    }
}
