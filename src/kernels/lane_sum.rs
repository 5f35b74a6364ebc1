//! Sums over the elements of a slice, in float64 and in an order that does not depend on the width of a register.
//!
//! - Order of additions: 32 logical lanes: lane `j` adds the terms of the elements `j, j + 32, …`. After [`BLOCK`]
//!   elements (512 for 16-bit floats, the size of their conversion buffer) the lanes are added to a second set of
//!   lanes, so that no chain of additions is longer than 64 (128 for 16-bit floats). At the end the lanes are folded
//!   pairwise.
//! - Error, relative, for up to 65536 terms of the same sign: 63 + 31 + 5 roundings of additions; for 16-bit floats
//!   15 + 127 + 5.

use super::cache::{PREFETCHED_BYTES, Prefetch, prefetch_after};
use super::half_precision::{self, Half};
use fearless_simd::prelude::*;
use fearless_simd::{f32x16, f64x8};
use half::{bf16, f16};

/// Number of elements after which the lanes are added to the second set.
pub const BLOCK: usize = 2048;
const LANES: usize = 32;

/// The 32 lanes.
pub type Lanes<S> = [f64x8<S>; 4];

/// The term that an element adds to a sum. A trait, because closures are not inlined into code for a SIMD level.
pub trait Term {
    /// Adds the terms of 32 elements to the lanes. The term of 0 is 0.
    fn add<S: Simd>(&self, sums: &mut Lanes<S>, v: Lanes<S>);
}

/// An element type whose terms can be summed.
pub trait LaneSum: Sized {
    /// Returns the sum of the terms of all elements, which are converted to float64.
    fn lane_sum<S: Simd>(simd: S, x: &[Self], term: &impl Term) -> f64;
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

/// Returns the sums of each lane over at most [`BLOCK`] elements. A tail shorter than the lanes is padded with zeros,
/// which add nothing. With `prefetch`, what comes after the elements is prefetched.
#[inline(always)]
fn block_lanes<S: Simd, T: Copy + Default>(
    simd: S,
    block: &[T],
    prefetch: bool,
    load: impl Fn(S, &[T; LANES]) -> Lanes<S>,
    term: &impl Term,
) -> Lanes<S> {
    let mut sums = [f64x8::splat(simd, 0.0); 4];
    let (mut groups, rest) = block.as_chunks::<LANES>();
    if prefetch {
        let some = PREFETCHED_BYTES / size_of::<[T; LANES]>();
        while let Some((first, others)) = groups.split_at_checked(some) {
            prefetch_after(first);
            for group in first {
                term.add(&mut sums, load(simd, group));
            }
            groups = others;
        }
    }
    for group in groups {
        term.add(&mut sums, load(simd, group));
    }
    if !rest.is_empty() {
        let mut padded = [T::default(); LANES];
        padded[..rest.len()].copy_from_slice(rest);
        term.add(&mut sums, load(simd, &padded));
    }
    sums
}

/// As [`LaneSum::lane_sum`], of float32 and float64.
#[inline(always)]
fn lane_sum_full<S: Simd, T: Copy + Default>(
    simd: S,
    x: &[T],
    load: impl Fn(S, &[T; LANES]) -> Lanes<S> + Copy,
    term: &impl Term,
) -> f64 {
    if x.len() <= BLOCK {
        // The additions to the second set of lanes would add zeros.
        return fold(block_lanes(simd, x, false, load, term));
    }
    let mut outer = [f64x8::splat(simd, 0.0); 4];
    let ahead = Prefetch::of(x);
    for block in x.chunks(BLOCK) {
        add_lanes(&mut outer, block_lanes(simd, block, ahead.covers(block), load, term));
    }
    fold(outer)
}

#[inline(always)]
fn add_lanes<S: Simd>(outer: &mut Lanes<S>, inner: Lanes<S>) {
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

impl LaneSum for f32 {
    #[inline(always)]
    fn lane_sum<S: Simd>(simd: S, x: &[Self], term: &impl Term) -> f64 {
        lane_sum_full(simd, x, load_f32, term)
    }
}

impl LaneSum for f64 {
    #[inline(always)]
    fn lane_sum<S: Simd>(simd: S, x: &[Self], term: &impl Term) -> f64 {
        lane_sum_full(simd, x, load_f64, term)
    }
}

/// As [`LaneSum::lane_sum`], for 16-bit floats, which are converted to float32 in a buffer.
#[inline(always)]
fn lane_sum_half<S: Simd, H: Half>(simd: S, x: &[H], term: &impl Term) -> f64 {
    let mut buffer = [0.0_f32; half_precision::BLOCK];
    let mut outer = [f64x8::splat(simd, 0.0); 4];
    let ahead = Prefetch::of(x);
    for block in x.chunks(half_precision::BLOCK) {
        if ahead.covers(block) {
            prefetch_after(block);
        }
        let wide = &mut buffer[..block.len()];
        H::widen(simd, block, wide);
        add_lanes(&mut outer, block_lanes(simd, wide, false, load_f32, term));
    }
    fold(outer)
}

impl LaneSum for f16 {
    #[inline(always)]
    fn lane_sum<S: Simd>(simd: S, x: &[Self], term: &impl Term) -> f64 {
        lane_sum_half(simd, x, term)
    }
}

impl LaneSum for bf16 {
    #[inline(always)]
    fn lane_sum<S: Simd>(simd: S, x: &[Self], term: &impl Term) -> f64 {
        lane_sum_half(simd, x, term)
    }
}
