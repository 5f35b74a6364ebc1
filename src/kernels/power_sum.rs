//! Σ|x·f/u|ᵖ in float64, for norms of other orders than 2 and infinity.
//!
//! The input is widened to float64 a block at a time. For p ≠ 1 the caller passes a power of two f that brings the
//! largest element into [1, 2), and as u what it becomes there. The ratio of the largest element is set to exactly 1, and
//! so is its power, however large p is; the others are products with 1/u, which a division would be more exact than, but
//! not more than the bound asks for (order 3 of float32: 16 % slower), and no ratio is above 1. For p < 1 the powers of elements far
//! below the largest count: those whose product with f is subnormal or near it are raised in two parts.

use super::Float;
use super::exponent::normalised;
use fearless_simd::{Level, Simd, dispatch};

const BLOCK: usize = 512;
const LANES: usize = 8;

/// An element below this, relative to the largest, is raised in two parts where its power may count: 2^-900.
const FAR_BELOW: f64 = f64::from_bits((1023 - 900) << 52);
/// The exponent of what such an element is multiplied by: enough for the smallest subnormal, and not too much for
/// 2^-900 of the largest number.
const LIFT: i32 = 100;

/// Σ|x·f/u|ᵖ of a slice of at most one chunk, for a power of two f and a divisor u.
#[must_use]
pub fn power_sum<T: Float>(level: Level, x: &[T], p: f64, [f, u]: [f64; 2]) -> f64 {
    sum_over::<T, _>(level, x, |x, f| x.to_f64().abs() * f, p, [f, u])
}

/// Σ|z·f/u|ᵖ over complex numbers given as pairs of reals.
#[must_use]
pub fn power_sum_complex<T: Float>(level: Level, pairs: &[T], p: f64, [f, u]: [f64; 2]) -> f64 {
    let (pairs, _) = pairs.as_chunks::<2>();
    sum_over::<T, _>(level, pairs, |[re, im], f| (re.to_f64() * f).hypot(im.to_f64() * f), p, [f, u])
}

/// Σ(size(item, f)/u)ᵖ, where `size` is an absolute value times a factor.
#[inline(always)]
fn sum_over<T: Float, U>(
    level: Level,
    items: &[U],
    size: impl Fn(&U, f64) -> f64,
    p: f64,
    [f, u]: [f64; 2],
) -> f64 {
    let mut total = 0.0;
    let mut buffer = [0.0; BLOCK];
    for block in items.chunks(BLOCK) {
        let ratios = &mut buffer[..block.len()];
        for (to, item) in ratios.iter_mut().zip(block) {
            *to = size(item, f);
        }
        if u != 1.0 {
            let inverse = 1.0 / u;
            for ratio in &mut *ratios {
                let product = *ratio * inverse;
                *ratio = if *ratio >= u || product > 1.0 { 1.0 } else { product };
            }
        }
        raise(ratios, p);
        // Narrower types do not reach that far.
        if p < 1.0 && size_of::<T>() == size_of::<f64>() {
            let lift = f64::powi(2.0, LIFT);
            let lowered = (p * f64::from(normalised(f).1 - LIFT)).exp2();
            for (power, item) in ratios.iter_mut().zip(block) {
                if size(item, f) < FAR_BELOW {
                    *power = (size(item, lift) / u).powf(p) * lowered;
                }
            }
        }
        total += dispatch!(level, simd => sum(simd, ratios));
    }
    total
}

/// max|z| over complex numbers given as pairs of reals, times `factor`; NaN if there is one.
#[must_use]
pub fn max_abs_complex<T: Float>(pairs: &[T], factor: f64) -> f64 {
    let (pairs, _) = pairs.as_chunks::<2>();
    pairs.iter().fold(0.0, |largest: f64, [re, im]| {
        let size = (re.to_f64() * factor).hypot(im.to_f64() * factor);
        let broken = re.to_f64().is_nan() || im.to_f64().is_nan() || largest.is_nan();
        if broken { f64::NAN } else { largest.max(size) }
    })
}

/// Each number to the power p.
fn raise(block: &mut [f64], p: f64) {
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

/// Eight lanes, folded pairwise.
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

    /// The power without the C library's function, by operations that round once each.
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
            });
        }
    }

    #[test]
    fn it_is_near_the_exact_sum() {
        check(|v| v);
        check(|v| v as f32);
        check(f16::from_f64);
        check(bf16::from_f64);
    }

    #[test]
    fn complex_numbers_count_by_their_absolute_value() {
        for level in isa::all() {
            let z = [3.0, 4.0, -5.0, 12.0];
            assert_eq!(power_sum_complex(level, &z, 1.0, [1.0, 1.0]), 18.0);
            assert_eq!(max_abs_complex(&z, 1.0), 13.0);
            assert!(max_abs_complex(&[f64::NAN, f64::INFINITY, 1.0, 1.0], 1.0).is_nan());
        }
    }

    #[test]
    fn the_largest_element_counts_as_one_whatever_the_order() {
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
    fn elements_far_below_the_largest_count_for_small_orders() {
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
