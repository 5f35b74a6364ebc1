//! Partial results of a norm: one number for a range of a segment.

use crate::engine::isa::Level;
use crate::engine::segment::{Scratch, Segment};
use crate::kernels::Float;
use crate::kernels::max_abs::max_abs;
use crate::kernels::power_sum::{max_abs_complex, plain_power_sum, power_sum, power_sum_complex};
use crate::kernels::sum_squares::{sum_squares, sum_squares_scaled};
use crate::operations::magnitude::pairwise;
use crate::with_float;
use std::ops::Range;

/// How the partial results of a segment's chunks are combined.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their maximum.
    Max,
    /// Their sum, added pairwise in the order of the chunks.
    Sum,
}

impl Reduction {
    /// Returns the combination of partial results; 0 if there are none.
    pub fn reduce(self, partials: &[f64]) -> f64 {
        match (self, partials) {
            (_, [single]) => *single,
            (Self::Max, partials) => partials.iter().copied().fold(0.0, max_or_nan),
            (Self::Sum, partials) => pairwise(partials, &|v| *v),
        }
    }
}

/// Returns the larger number, or NaN if one of them is NaN.
pub fn max_or_nan(a: f64, b: f64) -> f64 {
    if a.is_nan() || a >= b { a } else { b }
}

/// Returns Σx² of a range; 0 for integers.
pub fn squares<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    range: Range<usize>,
    scratch: &mut Scratch,
) -> f64 {
    with_float!(segment.scalar(), T => segment.read(range, scratch, |x: &[T]| sum_squares(level, x)), else 0.0)
}

/// Returns Σ(x·factor)² of a range of float64.
pub fn squares_scaled<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    range: Range<usize>,
    factor: f64,
    scratch: &mut Scratch,
) -> f64 {
    segment.read(range, scratch, |x: &[f64]| sum_squares_scaled(level, x, factor))
}

/// Returns max|x| of the reals of a range; 0 for integers. If `is_complex`, returns max|z·factor| of its complex
/// numbers instead.
pub fn largest<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    range: Range<usize>,
    is_complex: bool,
    factor: f64,
    scratch: &mut Scratch,
) -> f64 {
    fn max<T: Float>(level: Level, x: &[T], is_complex: bool, factor: f64) -> f64 {
        if is_complex { max_abs_complex(x, factor) } else { max_abs(level, x) }
    }
    with_float!(segment.scalar(), T => {
        segment.read(range, scratch, |x: &[T]| max(level, x, is_complex, factor))
    }, else 0.0)
}

/// Returns Σ|x|ᵖ over the reals of a range, for orders that are plain; 0 for integers.
pub fn plain_powers<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    range: Range<usize>,
    p: f64,
    scratch: &mut Scratch,
) -> f64 {
    with_float!(segment.scalar(), T => {
        segment.read(range, scratch, |x: &[T]| plain_power_sum(level, x, p))
    }, else 0.0)
}

/// Returns Σ|x·f/u|ᵖ over the elements of a range, for a power of two f and a divisor u; 0 for integers.
pub fn powers<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    range: Range<usize>,
    p: f64,
    factor_and_divisor: [f64; 2],
    scratch: &mut Scratch,
) -> f64 {
    let is_complex = segment.is_complex();
    with_float!(segment.scalar(), T => {
        segment.read(range, scratch, |x: &[T]| if is_complex {
            power_sum_complex(level, x, p, factor_and_divisor)
        } else {
            power_sum(level, x, p, factor_and_divisor)
        })
    }, else 0.0)
}
