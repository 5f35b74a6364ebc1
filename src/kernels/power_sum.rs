//! Σ|x·f·g|ᵖ in float64, for norms of other orders than 2 and infinity.
//!
//! The input is widened to float64 a block at a time. For p ≠ 1 the caller passes two
//! factors that make the largest element 1, so that no power overflows: a power of two that brings it near 1, and
//! what is left.

use super::Float;
use fearless_simd::{Level, Simd, dispatch};

const BLOCK: usize = 512;
const LANES: usize = 8;

/// Σ|x·f·g|ᵖ of a slice of at most one chunk, for factors f and g.
#[must_use]
pub fn power_sum<T: Float>(level: Level, x: &[T], p: f64, [f, g]: [f64; 2]) -> f64 {
    let mut total = 0.0;
    let mut buffer = [0.0; BLOCK];
    for block in x.chunks(BLOCK) {
        let wide = &mut buffer[..block.len()];
        for (to, from) in wide.iter_mut().zip(block) {
            *to = from.to_f64().abs() * f * g;
        }
        total += sum_of_powers(level, wide, p);
    }
    total
}

/// Σ|z·f·g|ᵖ over complex numbers given as pairs of reals.
#[must_use]
pub fn power_sum_complex<T: Float>(level: Level, pairs: &[T], p: f64, [f, g]: [f64; 2]) -> f64 {
    let mut total = 0.0;
    let mut buffer = [0.0; BLOCK];
    for block in pairs.chunks(2 * BLOCK) {
        let (pairs, _) = block.as_chunks::<2>();
        let wide = &mut buffer[..pairs.len()];
        for (to, [re, im]) in wide.iter_mut().zip(pairs) {
            *to = (re.to_f64() * f).hypot(im.to_f64() * f) * g;
        }
        total += sum_of_powers(level, wide, p);
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

fn sum_of_powers(level: Level, block: &mut [f64], p: f64) -> f64 {
    if p != 1.0 {
        if p.fract() == 0.0 && p <= 64.0 {
            let n = p as i32;
            for v in block.iter_mut() {
                *v = v.powi(n);
            }
        } else {
            for v in block.iter_mut() {
                *v = v.powf(p);
            }
        }
    }
    dispatch!(level, simd => sum(simd, block))
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
    use crate::isa;
    use crate::kernels::oracle::{exact_sum, for_every_length_and_offset, samples};
    use half::{bf16, f16};

    fn check<T: Float>(make: impl Fn(f64) -> T) {
        let values: Vec<T> = samples(5000).into_iter().map(make).collect();
        for p in [1.0, 3.0, 0.5, 2.5] {
            for_every_length_and_offset(&values, |x| {
                let want = exact_sum(x.iter().map(|v| (v.to_f64() * 0.5).abs().powf(p)));
                for level in isa::all() {
                    let got = power_sum(level, x, p, [0.5, 1.0]);
                    assert!((got - want).abs() <= 1e-13 * want, "{level:?} {p} {} {got} {want}", x.len());
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
}
