//! Sum of powers, Σ|x·f/u|ᵖ in float64, for norms of other orders than 2 and infinity.
//!
//! [`plain_power_sum`] computes Σ|x|ᵖ for p that are multiples of ½, at most 6: products of the elements and their
//! square roots, in vector registers. No power of a float32 leaves the range of float64, so that the elements need not
//! be scaled. Its order of additions is that of `lane_sum.rs`; each power adds at most 6·2⁻⁵³ to the error. The rest is
//! about [`power_sum`], which serves all orders and elements:
//!
//! - Formula: elements are converted to float64, a block at a time. For p ≠ 1 the caller passes a power of two f that
//!   brings the largest element into [1, 2), and that product as the divisor u. The ratio |x·f/u| of the largest
//!   element is then exactly 1, and so is its power, however large p is. The ratios of other elements are products
//!   with 1/u, and at most 1. A division would be more exact, but the bound does not need it (order 3 of float32: 16
//!   % slower). For p < 1 the powers of elements far below the largest matter: if the product with f is subnormal or
//!   nearly so, the power is computed as the product of two.
//! - Order of additions: 8 lanes over blocks of 512 elements, folded pairwise; the sums of the blocks in their order.
//! - Error, relative: for up to 65536 elements 63 + 3 + 127 = 193 roundings of additions, so 193·2⁻⁵³. Each power
//!   adds 2p·2⁻⁵³ for the two roundings of its ratio (nothing if u = 1), and (p − 1)·2⁻⁵³ from `powi` for integer p
//!   up to 64, or the error of `powf`, the C library's. The absolute value of a complex number adds that of its
//!   `hypot`.
//! - Bits: the order of additions depends on the length alone, and the powers are computed by scalar functions at
//!   every level, so the bits do not depend on it.

use super::Float;
use super::exponent::mantissa_exponent;
use super::lane_sum::{Lanes, Term};
use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch};

const BLOCK: usize = 512;
const LANES: usize = 8;

/// Elements whose product with f is below this, 2^-900, have their power computed as a product of two if p < 1.
const FAR_BELOW: f64 = f64::from_bits((1023 - 900) << 52);
/// Exponent of the power of two that such elements are multiplied by: large enough for the smallest subnormal number,
/// and small enough for 2^-900 times the largest number.
const LIFT: i32 = 100;

/// Largest order that [`plain_power_sum`] takes: the smallest float32 to this power is a normal float64, and sums of the
/// largest one to this power are finite.
const MAX_PLAIN_ORDER: f64 = 6.0;

/// Whether [`plain_power_sum`] takes this order.
#[must_use]
pub fn is_plain(p: f64) -> bool {
    p <= MAX_PLAIN_ORDER && (2.0 * p).fract() == 0.0
}

/// Returns Σ|x|ᵖ of a slice of at most one chunk.
///
/// # Panics
///
/// Unless [`is_plain`].
#[must_use]
pub fn plain_power_sum<T: Float>(level: Level, x: &[T], p: f64) -> f64 {
    assert!(is_plain(p));
    // Outside of the dispatch: inside of it, the loop over the factors is not divided by `has_root`, and takes five times
    // as long.
    let power = PlainPower::new(p);
    dispatch!(level, simd => T::lane_sum(simd, x, &power))
}

/// |x|ᵖ for a plain order p: |x| to the power `whole`, times √|x| if `has_root`.
pub(super) struct PlainPower {
    pub whole: usize,
    pub has_root: bool,
}

impl PlainPower {
    pub fn new(p: f64) -> Self {
        Self { whole: p as usize, has_root: p.fract() != 0.0 }
    }
}

impl Term for PlainPower {
    #[inline(always)]
    fn add<S: Simd>(&self, sums: &mut Lanes<S>, v: Lanes<S>) {
        for i in 0..4 {
            let abs = v[i].abs();
            let mut power = if self.has_root { abs.sqrt() } else { abs };
            for _ in usize::from(!self.has_root)..self.whole {
                power *= abs;
            }
            sums[i] += power;
        }
    }
}

/// Returns Σ|x·f/u|ᵖ of a slice of at most one chunk, for a power of two f and a divisor u.
#[must_use]
pub fn power_sum<T: Float>(level: Level, x: &[T], p: f64, [f, u]: [f64; 2]) -> f64 {
    sum_powers::<T, _>(level, x, |x, f| x.to_f64().abs() * f, p, [f, u])
}

/// Returns Σ|z·f/u|ᵖ of complex numbers, given as pairs of real and imaginary part.
#[must_use]
pub fn power_sum_complex<T: Float>(level: Level, pairs: &[T], p: f64, [f, u]: [f64; 2]) -> f64 {
    let (pairs, _) = pairs.as_chunks::<2>();
    sum_powers::<T, _>(level, pairs, |[re, im], f| (re.to_f64() * f).hypot(im.to_f64() * f), p, [f, u])
}

/// Returns `Σ(abs_times(x, f)/u)ᵖ`, where `abs_times` returns an absolute value times a factor.
#[inline(always)]
fn sum_powers<T: Float, U>(
    level: Level,
    items: &[U],
    abs_times: impl Fn(&U, f64) -> f64,
    p: f64,
    [f, u]: [f64; 2],
) -> f64 {
    let mut total = 0.0;
    let mut buffer = [0.0; BLOCK];
    for block in items.chunks(BLOCK) {
        let ratios = &mut buffer[..block.len()];
        for (to, item) in ratios.iter_mut().zip(block) {
            *to = abs_times(item, f);
        }
        if u != 1.0 {
            let inverse = 1.0 / u;
            for ratio in &mut *ratios {
                let product = *ratio * inverse;
                *ratio = if *ratio >= u || product > 1.0 { 1.0 } else { product };
            }
        }
        raise_to_power(ratios, p);
        // The range of narrower types does not reach that far below the largest element.
        if p < 1.0 && size_of::<T>() == size_of::<f64>() {
            let lift = f64::powi(2.0, LIFT);
            let unlift = (p * f64::from(mantissa_exponent(f).1 - LIFT)).exp2();
            for (power, item) in ratios.iter_mut().zip(block) {
                if abs_times(item, f) < FAR_BELOW {
                    *power = (abs_times(item, lift) / u).powf(p) * unlift;
                }
            }
        }
        total += dispatch!(level, simd => sum(simd, ratios));
    }
    total
}

/// Returns max|z|·factor over complex numbers, given as pairs of real and imaginary part; NaN if a part is NaN.
#[must_use]
pub fn max_abs_complex<T: Float>(pairs: &[T], factor: f64) -> f64 {
    let (pairs, _) = pairs.as_chunks::<2>();
    pairs.iter().fold(0.0, |largest: f64, [re, im]| {
        let abs = (re.to_f64() * factor).hypot(im.to_f64() * factor);
        let is_nan = re.to_f64().is_nan() || im.to_f64().is_nan() || largest.is_nan();
        if is_nan { f64::NAN } else { largest.max(abs) }
    })
}

/// Replaces each number by its power of exponent p.
fn raise_to_power(block: &mut [f64], p: f64) {
    if p == 1.0 {
        return;
    }
    if p.fract() == 0.0 && p <= 64.0 {
        let n = p as i32;
        for v in block {
            *v = v.powi(n);
        }
    } else {
        for v in block {
            *v = v.powf(p);
        }
    }
}

/// Returns the sum of at most a block, in eight lanes that are folded pairwise.
#[inline(always)]
fn sum<S: Simd>(_simd: S, x: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for (lane, v) in lanes.iter_mut().zip(group) {
            *lane += v;
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += v;
    }
    let a = lanes;
    ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::oracle::{exact_sum, for_every_length_and_offset, samples};
    use half::{bf16, f16};

    /// Returns a power without the C library's function, by operations that round once each.
    fn power(x: f64, p: f64) -> f64 {
        match p {
            0.5 => x.sqrt(),
            1.0 => x,
            2.5 => x * x * x.sqrt(),
            3.0 => x * x * x,
            _ => unreachable!(),
        }
    }

    fn check<T: Float>(make: impl Fn(f64) -> T) {
        let values: Vec<T> = samples(5000).into_iter().map(make).collect();
        for p in [1.0, 3.0, 0.5, 2.5] {
            for_every_length_and_offset(&values, |x| {
                let want = exact_sum(x.iter().map(|v| power((v.to_f64() * 0.5).abs(), p)));
                for level in isa::all() {
                    let got = power_sum(level, x, p, [0.5, 1.0]);
                    assert!((got - want).abs() <= 1e-14 * want, "{level:?} {p} {} {got} {want}", x.len());
                }
                let want = exact_sum(x.iter().map(|v| power(v.to_f64().abs(), p)));
                let first = plain_power_sum(isa::all()[0], x, p);
                assert!((first - want).abs() <= 1.5e-14 * want, "{p} {} {first} {want}", x.len());
                for level in isa::all() {
                    assert_eq!(plain_power_sum(level, x, p).to_bits(), first.to_bits(), "{level:?} {p}");
                }
            });
        }
    }

    #[test]
    fn sums_are_within_the_bound_of_the_exact_sum() {
        check(|v| v);
        check(|v| v as f32);
        check(f16::from_f64);
        check(bf16::from_f64);
    }

    #[test]
    fn plain_powers_of_all_float32_are_in_range() {
        for p in (1..=12).map(|i| 0.5 * f64::from(i)) {
            assert!(is_plain(p));
            for x in [f32::from_bits(1), f32::MIN_POSITIVE, 1.0, f32::MAX] {
                let sum = plain_power_sum(isa::current(), &[x; 100], p) / 100.0;
                assert!(sum.is_normal());
                assert!((sum.powf(1.0 / p) / f64::from(x) - 1.0).abs() < 1e-13, "{p} {x} {sum}");
            }
        }
        assert!(!is_plain(6.5) && !is_plain(0.25) && !is_plain(3.1) && !is_plain(f64::INFINITY));
        assert!(plain_power_sum(isa::current(), &[1.0, f64::NAN], 0.5).is_nan());
        assert_eq!(plain_power_sum(isa::current(), &[1.0, f64::NEG_INFINITY], 3.0), f64::INFINITY);
    }

    #[test]
    fn complex_numbers_enter_by_their_absolute_value() {
        for level in isa::all() {
            let z = [3.0, 4.0, -5.0, 12.0];
            assert_eq!(power_sum_complex(level, &z, 1.0, [1.0, 1.0]), 18.0);
            assert_eq!(max_abs_complex(&z, 1.0), 13.0);
            assert!(max_abs_complex(&[f64::NAN, f64::INFINITY, 1.0, 1.0], 1.0).is_nan());
        }
    }

    #[test]
    fn the_power_of_the_largest_element_is_one_at_every_order() {
        for level in isa::all() {
            for x in samples(200) {
                let unit = x.abs();
                for p in [5e-324, 1e-3, 0.5, 3.0, 64.0, 65.0, 1e20, f64::MAX] {
                    assert_eq!(power_sum(level, &[x, -x, x], p, [1.0, unit]), 3.0, "{p} {x}");
                    let z = [0.75 * x, x];
                    let unit = max_abs_complex(&z, 1.0);
                    assert_eq!(power_sum_complex(level, &z, p, [1.0, unit]), 1.0, "{p} {x}");
                }
            }
        }
    }

    #[test]
    fn elements_far_below_the_largest_enter_at_small_orders() {
        // The largest is 1.5·2^1023, the smallest 2^-1074.
        let largest = 1.5 * f64::powi(2.0, 1023);
        let factors = [f64::powi(2.0, -1023), 1.5];
        for level in isa::all() {
            for p in [5e-324, 1e-300, 1e-3, 0.01] {
                let want = 1.0 + f64::exp2(p * -2097.0) * 1.5_f64.powf(-p);
                let got = power_sum(level, &[largest, 5e-324], p, factors);
                assert!((got - want).abs() < 1e-14 * want, "{p} {got} {want}");
                let got = power_sum_complex(level, &[0.0, largest, 5e-324, 0.0, 0.0, 0.0], p, factors);
                assert!((got - want).abs() < 1e-14 * want, "{p} {got} {want}");
            }
        }
    }
}
