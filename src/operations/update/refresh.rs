//! Writes the low-precision copy of a variable outside of an optimizer's step.

use super::BLOCK;
use crate::allocation::OutOfMemory;
use crate::engine::exec::{self, ChunkMut, Direction};
use crate::engine::isa::Level;
use crate::engine::plan::Plan;
use crate::engine::segment::Segment;
use crate::engine::workspace::{Context, Workspace};
use crate::kernels::Float;
use crate::kernels::convert::{Convert, convert};
use crate::scalar::Scalar;
use half::{bf16, f16};

/// Writes a variable (operand 0) to its low-precision copy (operand 1), rounded once.
///
/// # Errors
///
/// If memory runs out, before anything is written.
pub fn refresh(context: Context, segment: &mut Segment<2>) -> Result<(), OutOfMemory> {
    let segments = std::slice::from_mut(segment);
    let plan = Plan::new(segments)?;
    let workspace = Workspace::with_scratch(context, plan.bytes(), 0)?;
    let level = context.level;
    exec::for_each(&workspace, segments, &plan, Direction::Forwards, |_, (), chunk, _| {
        match (chunk.scalar(), chunk.scalar_of(1)) {
            (Scalar::F32, Some(Scalar::F16)) => convert_chunk::<f32, f16>(level, chunk),
            (Scalar::F32, Some(Scalar::BF16)) => convert_chunk::<f32, bf16>(level, chunk),
            (Scalar::F64, Some(Scalar::F16)) => convert_chunk::<f64, f16>(level, chunk),
            (Scalar::F64, Some(Scalar::BF16)) => convert_chunk::<f64, bf16>(level, chunk),
            (Scalar::F64, Some(Scalar::F32)) => convert_chunk::<f64, f32>(level, chunk),
            _ => unreachable!("copies are narrower floats: the bindings check it"),
        }
    });
    Ok(())
}

/// Converts a chunk of the variable, of type `R`, to its copy, of the low-precision type `L`.
fn convert_chunk<R: Float + Convert<L>, L: Float>(level: Level, mut chunk: ChunkMut<2>) {
    let (mut values, mut converted) = ([R::ZERO; BLOCK], [L::ZERO; BLOCK]);
    let range = chunk.range();
    for start in range.clone().step_by(BLOCK) {
        let block = start..range.end.min(start + BLOCK);
        let (values, converted) = (&mut values[..block.len()], &mut converted[..block.len()]);
        chunk.gather(0, block.clone(), values);
        convert(level, values, converted);
        chunk.scatter(1, block, converted);
    }
}
