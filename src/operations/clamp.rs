//! Clipping by value: clamping every element between two bounds.

use crate::engine::exec::{self, ChunkMut, Direction};
use crate::engine::isa::Level;
use crate::engine::plan::Plan;
use crate::engine::segment::{LOWER, OPERANDS, Scratch, Segment, UPPER};
use crate::engine::workspace::Workspace;
use crate::kernels::Float;
use crate::kernels::clamp::{Clamp, Clamping, clamp_changed, clamp_each};
use crate::kernels::operation::{Run, perform};
use crate::scalar::{Element, Scalar};
use crate::{with_float, with_scalar};

/// The bounds of a clamp.
#[derive(Clone, Copy, Debug)]
pub enum Bounds {
    /// One lower and one upper bound for all elements: the bytes of two values of the tensor's type, padded to eight.
    Same([[u8; 8]; 2]),
    /// One lower and one upper bound for all elements, rounded to the type of each tensor. All tensors have floats.
    Numbers([f64; 2]),
    /// A lower and an upper bound for each element: the segment's operands [`LOWER`] and [`UPPER`].
    Each,
}

/// Clamps every segment. In place, elements within the bounds are not written. Cannot fail.
pub fn clamp(workspace: &Workspace, segments: &mut [Segment], plan: &Plan, bounds: Bounds) {
    let level = workspace.level;
    let streaming = exec::is_streaming(segments, plan);
    exec::for_each(workspace, segments, plan, Direction::Forwards, |_, (), chunk, scratch| {
        let bounds = match bounds {
            Bounds::Numbers(numbers) => Bounds::Same(numbers.map(|number| rounded(number, chunk.scalar()))),
            bounds => bounds,
        };
        with_scalar!(chunk.scalar(), T => clamp_chunk::<T>(level, chunk, bounds, streaming, scratch));
    });
}

/// Returns the bytes of a number that is rounded to a floating-point type, padded with zeros.
fn rounded(number: f64, scalar: Scalar) -> [u8; 8] {
    let mut bytes = [0; 8];
    with_float!(
        scalar,
        T => {
            let number = T::rounded(number).to_ne_bytes();
            bytes[..number.len()].copy_from_slice(&number);
        },
        else {}
    );
    bytes
}

/// Number of elements whose bounds are gathered at a time: the buffers stay in the first-level cache.
const CLAMP_BLOCK: usize = 1024;

fn clamp_chunk<T: Clamp + Element>(
    level: Level,
    chunk: ChunkMut<OPERANDS>,
    bounds: Bounds,
    streaming: bool,
    scratch: &mut Scratch,
) {
    match bounds {
        Bounds::Same(bytes) => {
            let [lo, hi] = bytes.map(|bytes| bytemuck::pod_read_unaligned::<T>(&bytes[..size_of::<T>()]));
            chunk.update(streaming, scratch, |run, _| match run {
                Run::InPlace(x) => clamp_changed(level, x, lo, hi),
                run => {
                    perform(level, Clamping { lo, hi }, run);
                    true
                }
            });
        }
        Bounds::Numbers(_) => unreachable!("they have been rounded"),
        Bounds::Each => {
            let (mut lower, mut upper) = ([T::default(); CLAMP_BLOCK], [T::default(); CLAMP_BLOCK]);
            let operands = chunk.read_only();
            chunk.update_blocks(CLAMP_BLOCK, scratch, |x: &mut [T], at| {
                let (lower, upper) = (&mut lower[..x.len()], &mut upper[..x.len()]);
                operands.gather(LOWER, at..at + x.len(), lower);
                operands.gather(UPPER, at..at + x.len(), upper);
                clamp_each(level, x, lower, upper)
            });
        }
    }
}
