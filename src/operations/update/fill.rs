//! Fills new slots with their initial values.

use crate::allocation::OutOfMemory;
use crate::engine::exec::{self, Direction};
use crate::engine::plan::Plan;
use crate::engine::segment::Segment;
use crate::engine::workspace::{Context, Workspace};
use crate::kernels::Float;
use crate::scalar::Scalar;
use half::bf16;

/// Fills each segment with its initial value. The segments must be dense, and bfloat16, float32 or float64.
///
/// # Errors
///
/// If memory runs out, before anything is written.
pub fn fill(context: Context, segments: &mut [Segment<1>], values: &[f64]) -> Result<(), OutOfMemory> {
    let plan = Plan::new(segments)?;
    let workspace = Workspace::with_scratch(context, plan.bytes(), 0)?;
    exec::for_each(&workspace, segments, &plan, Direction::Forwards, |index, (), mut chunk, _| {
        let range = chunk.range();
        match chunk.scalar() {
            Scalar::BF16 => chunk.run_mut::<bf16>(0, range).fill(bf16::rounded(values[index])),
            Scalar::F32 => chunk.run_mut::<f32>(0, range).fill(values[index] as f32),
            Scalar::F64 => chunk.run_mut::<f64>(0, range).fill(values[index]),
            _ => unreachable!("slots are allocated as bfloat16, float32 or float64"),
        }
    });
    Ok(())
}
