//! Sum of squares, Σx², accumulated in float64.
//!
//! - Formula: `Σ x[i]²` in float64, and `Σ (x[i]·factor)²` for float64 whose squares over- or underflow.
//! - Order of additions: 32 logical lanes, whatever the width of a register: lane `j` adds the squares of the
//!   elements `j, j + 32, …`. After [`BLOCK`] elements (512 for 16-bit floats, the size of their conversion buffer)
//!   the lanes are added to a second set of lanes, so that no chain of additions is longer than 64 (128 for 16-bit
//!   floats). At the end the lanes are folded pairwise.
//! - Error, relative, for up to 65536 elements: 63 + 31 + 5 roundings of additions, and for float64 one of the
//!   product: at most 110·2⁻⁵³. For 16-bit floats 15 + 127 + 5: at most 150·2⁻⁵³.
//! - Bits: the order depends on the length alone. The square of a float32 (24 bits) is exact in float64 (53 bits), so
//!   that a fused multiply-add and a multiplication followed by an addition agree. The square of a float64 is rounded
//!   before it is added, without a fused multiply-add, at every level. So the bits do not depend on the level.

use super::half_precision::{self, Half};
use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, f32x16, f64x8};
use half::{bf16, f16};

/// Number of elements after which the lanes are added to the second set.
pub const BLOCK: usize = 2048;
const LANES: usize = 32;

/// The 32 lanes.
type Lanes<S> = [f64x8<S>; 4];

/// An element type with a sum of squares.
pub trait SumSquares: Sized {
    /// Returns Σx² in float64; the module states the order of the additions.
    fn sum_squares<S: Simd>(simd: S, x: &[Self]) -> f64;
}

/// Returns Σx² of a slice of at most one chunk.
#[must_use]
pub fn sum_squares<T: SumSquares>(level: Level, x: &[T]) -> f64 {
    dispatch!(level, simd => T::sum_squares(simd, x))
}

/// Returns Σ(x·factor)², for float64 elements so large or small that their squares leave the range of float64.
#[must_use]
pub fn sum_squares_scaled(level: Level, x: &[f64], factor: f64) -> f64 {
    dispatch!(level, simd => {
        let mut outer = [f64x8::splat(simd, 0.0); 4];
        for block in x.chunks(BLOCK) {
            let inner = block_lanes(simd, block, |simd, c: &[f64; LANES]| {
                load_f64(simd, c).map(|v| v * factor)
            });
            add(&mut outer, inner);
        }
        fold(outer)
    })
}

#[inline(always)]
fn load_f32<S: Simd>(simd: S, c: &[f32; LANES]) -> Lanes<S> {
    let (a, b) = f32x16::from_slice(simd, &c[..16]).widen();
    let (d, e) = f32x16::from_slice(simd, &c[16..]).widen();
    [a, b, d, e]
}

#[inline(always)]
fn load_f64<S: Simd>(simd: S, c: &[f64; LANES]) -> Lanes<S> {
    [
        f64x8::from_slice(simd, &c[..8]),
        f64x8::from_slice(simd, &c[8..16]),
        f64x8::from_slice(simd, &c[16..24]),
        f64x8::from_slice(simd, &c[24..]),
    ]
}

/// Returns the sums of squares of each lane over at most [`BLOCK`] elements. A tail shorter than the lanes is padded
/// with zeros, which add nothing.
#[inline(always)]
fn block_lanes<S: Simd, T: Copy + Default>(
    simd: S,
    block: &[T],
    load: impl Fn(S, &[T; LANES]) -> Lanes<S>,
) -> Lanes<S> {
    let mut acc = [f64x8::splat(simd, 0.0); 4];
    let (groups, rest) = block.as_chunks::<LANES>();
    for group in groups {
        let v = load(simd, group);
        acc[0] += v[0] * v[0];
        acc[1] += v[1] * v[1];
        acc[2] += v[2] * v[2];
        acc[3] += v[3] * v[3];
    }
    if !rest.is_empty() {
        let mut padded = [T::default(); LANES];
        padded[..rest.len()].copy_from_slice(rest);
        let v = load(simd, &padded);
        for i in 0..4 {
            acc[i] += v[i] * v[i];
        }
    }
    acc
}

/// As [`block_lanes`], for squares that are exact in float64, where a fused multiply-add gives the same bits.
#[inline(always)]
fn block_lanes_fused<S: Simd>(simd: S, block: &[f32]) -> Lanes<S> {
    let mut acc = [f64x8::splat(simd, 0.0); 4];
    let (groups, rest) = block.as_chunks::<LANES>();
    for group in groups {
        let v = load_f32(simd, group);
        acc[0] = v[0].mul_add(v[0], acc[0]);
        acc[1] = v[1].mul_add(v[1], acc[1]);
        acc[2] = v[2].mul_add(v[2], acc[2]);
        acc[3] = v[3].mul_add(v[3], acc[3]);
    }
    if !rest.is_empty() {
        let mut padded = [0.0; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        let v = load_f32(simd, &padded);
        for i in 0..4 {
            acc[i] = v[i].mul_add(v[i], acc[i]);
        }
    }
    acc
}

#[inline(always)]
fn add<S: Simd>(outer: &mut Lanes<S>, inner: Lanes<S>) {
    for i in 0..4 {
        outer[i] += inner[i];
    }
}

/// Folds the lanes pairwise: 32, 16, 8, 4, 2, 1.
#[inline(always)]
fn fold<S: Simd>(lanes: Lanes<S>) -> f64 {
    let v = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
    let mut a = [0.0; 8];
    v.store_slice(&mut a);
    ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
}

impl SumSquares for f32 {
    #[inline(always)]
    fn sum_squares<S: Simd>(simd: S, x: &[Self]) -> f64 {
        let mut outer = [f64x8::splat(simd, 0.0); 4];
        for block in x.chunks(BLOCK) {
            add(&mut outer, block_lanes_fused(simd, block));
        }
        fold(outer)
    }
}

impl SumSquares for f64 {
    #[inline(always)]
    fn sum_squares<S: Simd>(simd: S, x: &[Self]) -> f64 {
        let mut outer = [f64x8::splat(simd, 0.0); 4];
        for block in x.chunks(BLOCK) {
            add(&mut outer, block_lanes(simd, block, load_f64));
        }
        fold(outer)
    }
}

/// Returns Σx² of 16-bit floats, converted to float32 in a buffer.
#[inline(always)]
fn sum_squares_half<S: Simd, H: Half>(simd: S, x: &[H]) -> f64 {
    let mut buffer = [0.0_f32; half_precision::BLOCK];
    let mut outer = [f64x8::splat(simd, 0.0); 4];
    for block in x.chunks(half_precision::BLOCK) {
        let wide = &mut buffer[..block.len()];
        H::widen(simd, block, wide);
        add(&mut outer, block_lanes_fused(simd, wide));
    }
    fold(outer)
}

impl SumSquares for f16 {
    #[inline(always)]
    fn sum_squares<S: Simd>(simd: S, x: &[Self]) -> f64 {
        sum_squares_half(simd, x)
    }
}

impl SumSquares for bf16 {
    #[inline(always)]
    fn sum_squares<S: Simd>(simd: S, x: &[Self]) -> f64 {
        sum_squares_half(simd, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::Float;
    use crate::kernels::oracle::{exact_sum, for_every_length_and_offset, samples};

    fn exact_sum_squares<T: Float>(x: &[T]) -> f64 {
        // The square of a float64 is the exact sum of two float64: the rounded product and its error.
        exact_sum(x.iter().flat_map(|v| {
            let v = v.to_f64();
            let square = v * v;
            [square, v.mul_add(v, -square)]
        }))
    }

    fn check_against_the_exact_sum<T: Float>(make: impl Fn(f64) -> T, bound: f64) {
        let values: Vec<T> = samples(5000).into_iter().map(make).collect();
        for_every_length_and_offset(&values, |x| {
            let want = exact_sum_squares(x);
            for level in isa::all() {
                let got = sum_squares(level, x);
                assert!((got - want).abs() <= bound * want, "{level:?} {} {got} {want}", x.len());
            }
        });
    }

    #[test]
    fn f32_is_within_the_bound_of_the_exact_sum() {
        check_against_the_exact_sum(|v| v as f32, 1e-14);
    }

    #[test]
    fn f64_is_within_the_bound_of_the_exact_sum() {
        check_against_the_exact_sum(|v| v, 1.5e-14);
    }

    #[test]
    fn f16_and_bf16_are_within_the_bound_of_the_exact_sum() {
        check_against_the_exact_sum(f16::from_f64, 1e-14);
        check_against_the_exact_sum(bf16::from_f64, 1e-14);
    }

    #[test]
    fn every_level_has_the_bits_of_the_scalar_level() {
        fn check<T: Float>(values: &[T]) {
            for_every_length_and_offset(values, |x| {
                let want = sum_squares(Level::fallback(), x);
                for level in isa::all() {
                    assert_eq!(sum_squares(level, x).to_bits(), want.to_bits(), "{level:?} {}", x.len());
                }
            });
        }
        let values = samples(5000);
        check(&values);
        check(&values.iter().map(|v| *v as f32).collect::<Vec<_>>());
        check(&values.iter().map(|v| f16::from_f64(*v)).collect::<Vec<_>>());
        check(&values.iter().map(|v| bf16::from_f64(*v)).collect::<Vec<_>>());
    }

    #[test]
    fn a_nan_or_an_infinity_at_any_position_is_in_the_sum() {
        for level in isa::all() {
            for at in 0..70 {
                let mut x = vec![1.0_f32; 70];
                x[at] = f32::NAN;
                assert!(sum_squares(level, &x).is_nan());
                x[at] = f32::NEG_INFINITY;
                assert_eq!(sum_squares(level, &x), f64::INFINITY);
            }
        }
    }

    #[test]
    fn a_power_of_two_keeps_squares_in_range() {
        for level in isa::all() {
            let huge = vec![1e308; 100];
            assert_eq!(sum_squares(level, &huge), f64::INFINITY);
            let factor = f64::powi(2.0, -1000);
            let want = exact_sum_squares(&huge.iter().map(|x| x * factor).collect::<Vec<_>>());
            let got = sum_squares_scaled(level, &huge, factor);
            assert!((got - want).abs() <= 1e-14 * want);
        }
    }
}
