//! Norms of tensors: each tensor's magnitude, in one pass over all of them.

mod partial;
mod scaled;
#[cfg(test)]
mod tests;

use crate::allocation::{OutOfMemory, collect, try_collect};
use crate::engine::exec;
use crate::engine::isa::Level;
use crate::engine::plan::Plan;
use crate::engine::segment::{Scratch, Segment};
use crate::engine::workspace::Workspace;
use crate::operations::magnitude::{Magnitude, Order, SMALL};
use crate::scalar::Scalar;
use partial::{Reduction, largest, powers, squares};
use scaled::{Partial, measure_scaled, measure_with};
use std::ops::Range;

/// Returns the magnitude of each segment, in one pass over all of them. Orders other than 1, 2 and ∞ take two passes
/// over each segment, the first of which finds the largest element.
///
/// A float64 segment whose sum overflows or underflows is read again, scaled by a power of two.
pub fn measure<const N: usize>(
    workspace: &Workspace,
    segments: &[Segment<N>],
    plan: &Plan,
    order: Order,
) -> Result<Vec<Magnitude>, OutOfMemory> {
    let level = workspace.level;
    let one_pass = |partial: &(dyn Fn(&Segment<N>, Range<usize>, &mut Scratch) -> f64 + Sync), reduction| {
        let partials = exec::reduce(workspace, segments, plan, partial)?;
        let mut magnitudes = reduce_segments(segments, plan, &partials, reduction)?;
        for (segment, magnitude) in segments.iter().zip(&mut magnitudes) {
            if needs_scaling(segment, *magnitude, order) {
                *magnitude = measure_scaled(workspace, segment, order)?;
            }
        }
        Ok(magnitudes)
    };
    match order {
        Order::Max => one_pass(
            &|segment, range, scratch| largest(level, segment, range, segment.is_complex(), 1.0, scratch),
            Reduction::Max,
        ),
        Order::Two => {
            one_pass(&|segment, range, scratch| squares(level, segment, range, scratch), Reduction::Sum)
        }
        Order::One => one_pass(
            &|segment, range, scratch| powers(level, segment, range, 1.0, [1.0, 1.0], scratch),
            Reduction::Sum,
        ),
        Order::Power(_) => {
            try_collect(segments.len(), segments.iter().map(|s| measure_scaled(workspace, s, order)))
        }
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
    let magnitude = unscaled(match order {
        _ if segment.is_empty() => 0.0,
        Order::Max => largest(level, segment, range, segment.is_complex(), 1.0, scratch),
        Order::Two => squares(level, segment, range, scratch),
        Order::One => powers(level, segment, range, 1.0, [1.0, 1.0], scratch),
        Order::Power(_) => f64::INFINITY,
    });
    let is_final = !matches!(order, Order::Power(_)) && !needs_scaling(segment, magnitude, order);
    if segment.is_empty() || is_final {
        return magnitude;
    }
    // The only chunk is read by this thread, which cannot fail.
    let pass = |partial: &Partial, _| Ok(partial(0..segment.len(), scratch));
    measure_with(level, segment, order, pass).unwrap_or(magnitude)
}

/// Returns the magnitude of elements that were not scaled.
fn unscaled(value: f64) -> Magnitude {
    Magnitude { value, exponent: 0 }
}

/// Combines the partial results of all chunks into one magnitude for each segment.
fn reduce_segments<const N: usize>(
    segments: &[Segment<N>],
    plan: &Plan,
    partials: &[f64],
    reduction: Reduction,
) -> Result<Vec<Magnitude>, OutOfMemory> {
    let mut next = 0;
    collect((0..segments.len()).map(|index| {
        let first = next;
        while next < plan.chunks().len() && plan.chunks()[next].segment == index {
            next += 1;
        }
        unscaled(reduction.reduce(&partials[first..next]))
    }))
}

/// Whether the sum of a segment may have overflowed or underflowed, so that it must be computed again with scaling.
/// Only float64 segments do.
fn needs_scaling<const N: usize>(segment: &Segment<N>, magnitude: Magnitude, order: Order) -> bool {
    let sum = magnitude.value;
    let is_out_of_range = match order {
        Order::Two => !sum.is_finite() || sum < SMALL,
        // The absolute values are so small that they have been rounded coarsely.
        Order::One if segment.is_complex() && sum < SMALL => true,
        // The sum or the absolute value of a complex number overflowed, unless an element is infinite.
        _ => sum.is_infinite(),
    };
    is_out_of_range && segment.scalar() == Scalar::F64 && !segment.is_empty()
}
