//! What a clip does to each tensor once its norm is known, and doing it.

use crate::engine::exec::{self, ChunkMut, Direction, STREAM_BYTES};
use crate::engine::isa::Level;
use crate::engine::plan::Plan;
use crate::engine::segment::{LOWER, OPERANDS, Scratch, Segment, UPPER};
use crate::engine::workspace::Workspace;
use crate::kernels::Float;
use crate::kernels::clamp::{Clamp, Clamping, clamp_changed, clamp_each};
use crate::kernels::operation::{Copying, Filling, Run, perform};
use crate::kernels::scale::{Factor, Scaling};
use crate::operations::magnitude::{Magnitude, Order};
use crate::scalar::Element;
use crate::{with_float, with_scalar};
/// What happens to a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// It stays as it is: nothing is written in place, a copy is made out of place.
    Keep,
    /// Every element is multiplied.
    Scale(Factor),
    /// Every element becomes NaN.
    FillNan,
    /// Every element becomes 0.
    FillZero,
}

impl Action {
    /// What bounds a slice of this norm. A slice that holds NaN or infinity becomes NaN, and so does one whose bound is
    /// NaN.
    #[must_use]
    pub fn bounding(magnitude: Magnitude, order: Order, bound: f64) -> Self {
        if !magnitude.is_finite() || bound.is_nan() {
            return Self::FillNan;
        }
        magnitude.factor(order, 1.0, bound).map_or(Self::Keep, Self::Scale)
    }
}

/// Actions of a call's tensors: one for all, or one each.
#[derive(Clone, Copy, Debug)]
pub enum Actions<'a> {
    /// The same for every tensor.
    All(Action),
    /// One per tensor.
    Each(&'a [Action]),
}

impl Actions<'_> {
    fn of(&self, index: usize) -> Action {
        match self {
            Self::All(action) => *action,
            Self::Each(actions) => actions[index],
        }
    }
}

/// Carries an action out on a run of memory.
pub fn act<T: Float>(level: Level, action: Action, run: Run<T>) {
    match action {
        Action::Keep => perform(level, Copying, run),
        Action::Scale(factor) => perform(level, Scaling(factor), run),
        Action::FillNan => perform(level, Filling(T::NAN), run),
        Action::FillZero => perform(level, Filling(T::ZERO), run),
    }
}

/// Whether results are to be written past the cache.
fn is_streaming(segments: &[Segment], plan: &Plan) -> bool {
    plan.bytes() >= STREAM_BYTES && segments.iter().any(|segment| !segment.is_in_place())
}

/// Carries the actions out. Cannot fail.
pub fn apply(workspace: &Workspace, segments: &mut [Segment], plan: &Plan, actions: Actions) {
    let is_idle = |index: usize, is_in_place: bool| is_in_place && actions.of(index) == Action::Keep;
    if segments.iter().enumerate().all(|(index, segment)| is_idle(index, segment.is_in_place())) {
        return;
    }
    let level = workspace.level;
    let streaming = is_streaming(segments, plan);
    exec::for_each(workspace, segments, plan, Direction::Backwards, |index, (), chunk, scratch| {
        let action = actions.of(index);
        if is_idle(index, chunk.is_in_place()) {
            return;
        }
        with_float!(chunk.scalar(), T => {
            chunk.update(streaming, scratch, |run: Run<T>, _| {
                act(level, action, run);
                true
            });
        }, else unreachable!("integers are refused at the edge"));
    });
}

/// The bounds of a clamp.
#[derive(Clone, Copy, Debug)]
pub enum Bounds {
    /// One lower and one upper bound for every element: the bytes of a value of the tensor's type, padded.
    Same([[u8; 8]; 2]),
    /// Each element has its own bounds: the segment's operands [`LOWER`] and [`UPPER`].
    Each,
}

/// Clamps every segment. In place, elements within the bounds are not written. Cannot fail.
pub fn clamp(workspace: &Workspace, segments: &mut [Segment], plan: &Plan, bounds: Bounds) {
    let level = workspace.level;
    let streaming = is_streaming(segments, plan);
    exec::for_each(workspace, segments, plan, Direction::Forwards, |_, (), chunk, scratch| {
        with_scalar!(chunk.scalar(), T => clamp_chunk::<T>(level, chunk, bounds, streaming, scratch));
    });
}

/// Elements whose own bounds are gathered at a time: they stay in the first-level cache.
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
        Bounds::Each => {
            let (mut lower, mut upper) = ([T::default(); CLAMP_BLOCK], [T::default(); CLAMP_BLOCK]);
            let bounds = chunk.read_only();
            chunk.update_blocks(CLAMP_BLOCK, scratch, |x: &mut [T], at| {
                let (lower, upper) = (&mut lower[..x.len()], &mut upper[..x.len()]);
                bounds.gather(LOWER, at..at + x.len(), lower);
                bounds.gather(UPPER, at..at + x.len(), upper);
                clamp_each(level, x, lower, upper)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::engine::segment;
    use crate::engine::workspace::Context;
    use crate::scalar::Scalar;

    fn run(input: &mut [f32], output: *mut f32, action: Action, threads: usize) {
        let run = |pointer, is_written| Some(segment::Run { pointer, scalar: Scalar::F32, is_written });
        let operands = [run(input.as_mut_ptr().cast(), false), run(output.cast(), true), None, None];
        let mut segments = [Segment::dense_in_test(false, input.len(), operands)];
        let plan = Plan::new(&segments).unwrap();
        let context = Context { level: isa::detected(), threads };
        let workspace = Workspace::new(context, &segments, &plan).unwrap();
        apply(&workspace, &mut segments, &plan, Actions::All(action));
    }

    #[test]
    fn large_and_small_outputs_are_the_same_for_any_threads() {
        for n in [0, 1, 1000, 70_001, STREAM_BYTES / 4 + 77] {
            let input: Vec<f32> = (0..n).map(|i| (i % 1013) as f32 - 500.0).collect();
            let factor = Factor::new(0.3, 1.0, 0);
            let want: Vec<f32> = input.iter().map(|v| v * factor.narrow).collect();
            for threads in [1, 3] {
                let mut out = vec![7.0; n];
                run(&mut input.clone(), out.as_mut_ptr(), Action::Scale(factor), threads);
                assert!(out == want);
                let mut same = input.clone();
                let pointer = same.as_mut_ptr();
                run(&mut same, pointer, Action::Scale(factor), threads);
                assert!(same == want);
                let mut out = vec![7.0; n];
                run(&mut input.clone(), out.as_mut_ptr(), Action::Keep, threads);
                assert!(out == input);
                run(&mut input.clone(), out.as_mut_ptr(), Action::FillNan, threads);
                assert!(out.iter().all(|v| v.is_nan()));
            }
        }
    }
}
