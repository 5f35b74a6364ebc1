//! Norms of tensors: each tensor's magnitude, in one pass over all of them.

mod partial;
mod scaled;
#[cfg(test)]
mod tests;

use crate::allocation::{OutOfMemory, collect, try_collect};
use crate::engine::exec;
use crate::engine::isa::Level;
use crate::engine::plan::{Chunk, Plan};
use crate::engine::segment::{Scratch, Segment};
use crate::engine::workspace::Workspace;
use crate::kernels::Float;
use crate::kernels::columns;
use crate::kernels::power_sum::is_plain;
use crate::kernels::sum_squares::sum_squares;
use crate::operations::magnitude::{Magnitude, Order, SMALL};
use crate::scalar::{DType, Scalar};
pub use partial::max_or_nan;
use partial::{Reduction, largest, plain_powers, powers, squares};
use scaled::{Partial, measure_scaled, measure_with};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Returns the magnitude of each segment, in one pass over all of them. Orders that are not plain (see `power_sum.rs`)
/// take two passes over each segment, the first of which finds the largest element.
///
/// A float64 segment whose sum overflows or underflows is read again, scaled by a power of two.
pub fn measure<const N: usize>(
    workspace: &Workspace,
    segments: &[Segment<N>],
    plan: &Plan,
    order: Order,
) -> Result<Vec<Magnitude>, OutOfMemory> {
    if takes_two_passes(order) {
        return try_collect(segments.len(), segments.iter().map(|s| measure_scaled(workspace, s, order)));
    }
    let level = workspace.level;
    let partials = exec::reduce(workspace, segments, plan, |segment, range, scratch| {
        unscaled_partial(level, segment, range, order, scratch)
    })?;
    combine_chunks(workspace, segments, plan, order, &partials)
}

/// Returns the magnitude of each segment from the partial result of each chunk of the plan. The order is plain.
fn combine_chunks<const N: usize>(
    workspace: &Workspace,
    segments: &[Segment<N>],
    plan: &Plan,
    order: Order,
    partials: &[f64],
) -> Result<Vec<Magnitude>, OutOfMemory> {
    let reduction = if order == Order::Max { Reduction::Max } else { Reduction::Sum };
    let mut next = 0;
    try_collect(
        segments.len(),
        segments.iter().enumerate().map(|(index, segment)| {
            let first = next;
            while next < plan.chunks().len() && plan.chunks()[next].segment == index {
                next += 1;
            }
            let value = reduction.reduce(&partials[first..next]);
            if !segment.is_empty() && needs_scaling(segment.dtype(), value, order) {
                measure_scaled(workspace, segment, order)
            } else {
                Ok(unscaled_magnitude(value, order))
            }
        }),
    )
}

/// The sums of squares of the chunks of a pass that writes what it measures.
#[derive(Debug)]
pub struct ChunkSquares<'a> {
    plan: &'a Plan,
    /// The bits of the sum of each chunk.
    sums: Vec<AtomicU64>,
}

impl<'a> ChunkSquares<'a> {
    /// Allocates the sums of the chunks of a plan.
    ///
    /// # Errors
    ///
    /// If memory runs out.
    pub fn new(plan: &'a Plan) -> Result<Self, OutOfMemory> {
        let count = plan.chunks().len();
        Ok(Self { plan, sums: collect((0..count).map(|_| AtomicU64::new(0)))? })
    }

    /// Measures a contiguous chunk, which starts at the real number `start` of its segment.
    pub fn measure<T: Float>(&self, level: Level, segment: usize, start: usize, x: &[T]) {
        let is_before = |chunk: &Chunk| (chunk.segment, chunk.range.start) < (segment, start);
        let at = self.plan.chunks().partition_point(is_before);
        if let Some(sum) = self.sums.get(at) {
            sum.store(sum_squares(level, x).to_bits(), Ordering::Relaxed);
        }
    }

    /// Returns the magnitude of each segment, after the pass: that of order 2, with the bits that [`measure`] returns.
    ///
    /// # Errors
    ///
    /// If memory runs out.
    pub fn magnitudes<const N: usize>(
        self,
        workspace: &Workspace,
        segments: &[Segment<N>],
    ) -> Result<Vec<Magnitude>, OutOfMemory> {
        let sums: Vec<f64> = collect(self.sums.into_iter().map(|sum| f64::from_bits(sum.into_inner())))?;
        combine_chunks(workspace, segments, self.plan, Order::Two, &sums)
    }
}

/// Returns the magnitude of a segment of at most one chunk, computed by the calling thread without an allocation. It
/// has the bits that [`measure`] returns.
pub fn measure_chunk<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    order: Order,
    scratch: &mut Scratch,
) -> Magnitude {
    let range = 0..segment.len();
    if segment.is_empty() {
        return Magnitude::ZERO;
    }
    if !takes_two_passes(order) {
        let value = unscaled_partial(level, segment, range, order, scratch);
        if !needs_scaling(segment.dtype(), value, order) {
            return unscaled_magnitude(value, order);
        }
    }
    // The only chunk is read by this thread, which cannot fail.
    let pass = |partial: &Partial, _| Ok(partial(0..segment.len(), scratch));
    measure_with(level, segment, order, pass).unwrap_or(Magnitude { value: f64::NAN, exponent: 0 })
}

/// Whether the largest element has to be known before powers can be summed.
fn takes_two_passes(order: Order) -> bool {
    matches!(order, Order::Power(p) if !is_plain(p))
}

/// Returns the partial result of a range without scaling; infinity, which scaling follows, for powers of complex
/// numbers.
fn unscaled_partial<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    range: Range<usize>,
    order: Order,
    scratch: &mut Scratch,
) -> f64 {
    match order {
        Order::Max => largest(level, segment, range, segment.is_complex(), 1.0, scratch),
        Order::Two => squares(level, segment, range, scratch),
        Order::One if segment.is_complex() => powers(level, segment, range, 1.0, [1.0, 1.0], scratch),
        Order::Power(_) if segment.is_complex() => f64::INFINITY,
        Order::One | Order::Power(_) => plain_powers(level, segment, range, order.p(), scratch),
    }
}

/// Returns the magnitude of elements that were not scaled, of the given maximum or sum.
pub fn unscaled_magnitude(value: f64, order: Order) -> Magnitude {
    match order {
        Order::Power(p) => Magnitude::from_powers(value, p, 1.0, 0),
        _ => unscaled(value),
    }
}

/// Returns the magnitude of elements that were not scaled.
fn unscaled(value: f64) -> Magnitude {
    Magnitude { value, exponent: 0 }
}

/// Whether [`accumulate`] measures slices of this type: complex numbers only if their real and imaginary parts can be
/// taken as reals.
#[must_use]
pub fn is_accumulated(dtype: DType, order: Order) -> bool {
    match order {
        Order::Two => true,
        Order::One | Order::Max => !dtype.complex,
        Order::Power(_) => !dtype.complex && !takes_two_passes(order),
    }
}

/// Adds the terms of one real of each slice to the sums, or maxima, of the slices: `sum[j] + error[j]`, or `sum[j]` if
/// it is not finite.
pub fn accumulate<T: Float>(level: Level, order: Order, sum: &mut [f64], error: &mut [f64], x: &[T]) {
    match order {
        Order::Two => columns::accumulate(level, sum, error, x),
        Order::Max => columns::accumulate_max(level, sum, x),
        Order::One | Order::Power(_) => columns::accumulate_powers(level, sum, error, x, order.p()),
    }
}

/// Whether the sum of a segment may have overflowed or underflowed, so that it must be computed again with scaling.
/// Only sums of float64 do; powers of complex numbers are always scaled.
pub fn needs_scaling(dtype: DType, sum: f64, order: Order) -> bool {
    let is_out_of_range = match order {
        Order::Power(_) if dtype.complex => return true,
        Order::Two => !sum.is_finite() || sum < SMALL,
        Order::Power(p) => !sum.is_finite() || p > 1.0 && sum < SMALL,
        // The absolute values are so small that they have been rounded coarsely.
        Order::One if dtype.complex && sum < SMALL => true,
        // The sum or the absolute value of a complex number overflowed, unless an element is infinite.
        _ => sum.is_infinite(),
    };
    is_out_of_range && dtype.scalar == Scalar::F64
}
