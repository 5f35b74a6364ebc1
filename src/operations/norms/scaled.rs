//! Norms in two passes: the largest element, then a sum of powers of elements that are scaled by a power of two.
//!
//! Needed for orders other than 1, 2 and ∞, and for float64 tensors whose sum overflowed or underflowed.

use super::partial::{Reduction, largest, powers, squares_scaled};
use super::unscaled;
use crate::allocation::OutOfMemory;
use crate::engine::exec;
use crate::engine::isa::Level;
use crate::engine::plan::Plan;
use crate::engine::segment::{Scratch, Segment};
use crate::engine::workspace::Workspace;
use crate::operations::magnitude::{Magnitude, Order};
use crate::scalar::Scalar;
use std::ops::Range;

/// A function that computes the partial result of a range of the segment.
pub type Partial<'a> = dyn Fn(Range<usize>, &mut Scratch) -> f64 + Sync + 'a;

/// Returns the magnitude of a segment, by [`measure_with`], on the threads of a workspace.
pub fn measure_scaled<const N: usize>(
    workspace: &Workspace,
    segment: &Segment<N>,
    order: Order,
) -> Result<Magnitude, OutOfMemory> {
    let segments = std::slice::from_ref(segment);
    let plan = Plan::new(segments)?;
    measure_with(workspace.level, segment, order, |partial: &Partial, reduction| {
        let partials = exec::reduce(workspace, segments, &plan, |_, range, scratch| partial(range, scratch))?;
        Ok(reduction.reduce(&partials))
    })
}

/// Returns the magnitude of a segment. `pass` computes partial results of the whole segment, by the function that it
/// receives, and returns their reduction.
pub fn measure_with<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    order: Order,
    mut pass: impl FnMut(&Partial, Reduction) -> Result<f64, OutOfMemory>,
) -> Result<Magnitude, OutOfMemory> {
    let mut maximum = |is_complex: bool, factor: f64| {
        pass(&|range, scratch| largest(level, segment, range, is_complex, factor, scratch), Reduction::Max)
    };
    // The largest real, also of complex numbers: their absolute value may overflow or underflow.
    let largest_real = maximum(false, 1.0)?;
    if largest_real == 0.0 || !largest_real.is_finite() {
        return Ok(unscaled(largest_real));
    }
    let exponent = exponent_of(largest_real);
    // 2^1074 is beyond float64. 2^1022 is enough: it brings the smallest float64, 2^-1074, to 2^-52.
    let exponent = exponent.max(-1022);
    let factor = f64::powi(2.0, -exponent);
    if order == Order::Max {
        return Ok(if segment.is_complex() {
            Magnitude { value: maximum(true, factor)?, exponent }
        } else {
            unscaled(largest_real)
        });
    }
    // For other orders than 1 and 2 elements are divided by the largest one, which becomes exactly 1: its power neither
    // overflows nor underflows.
    let divisor = match order {
        Order::Power(_) if segment.is_complex() => maximum(true, factor)?,
        Order::Power(_) => largest_real * factor,
        _ => 1.0,
    };
    let partial = |range: Range<usize>, scratch: &mut Scratch| match order {
        Order::Two if segment.scalar() == Scalar::F64 => {
            squares_scaled(level, segment, range, factor, scratch)
        }
        _ => powers(level, segment, range, order.p(), [factor, divisor], scratch),
    };
    let sum = pass(&partial, Reduction::Sum)?;
    Ok(match order {
        Order::Power(p) => Magnitude::from_powers(sum, p, divisor, exponent),
        _ => Magnitude { value: sum, exponent },
    })
}

/// Returns the exponent of the largest power of two that is not above a positive number.
pub fn exponent_of(x: f64) -> i32 {
    let biased = (x.to_bits() >> 52) as i32;
    if biased == 0 { -1074 + 63 - x.to_bits().leading_zeros() as i32 } else { biased - 1023 }
}
