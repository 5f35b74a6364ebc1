//! Clipping by norm: scaling each tensor, or filling it, as its norm demands.

use crate::engine::exec::{self, Direction};
use crate::engine::isa::Level;
use crate::engine::plan::Plan;
use crate::engine::segment::Segment;
use crate::engine::workspace::Workspace;
use crate::kernels::Float;
use crate::kernels::operation::{Copying, Filling, Run, perform};
use crate::kernels::scale::{Factor, Scaling};
use crate::operations::magnitude::{Magnitude, Order};
use crate::with_float;

/// What a clip does to the elements of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Leaves them unchanged: nothing is written in place, and out of place they are copied.
    Keep,
    /// Multiplies every element.
    Scale(Factor),
    /// Replaces every element by NaN.
    FillNan,
    /// Replaces every element by 0.
    FillZero,
}

impl Action {
    /// Returns the action that brings a slice of this norm to `bound`. A slice that holds NaN or infinity becomes NaN,
    /// and so does one whose bound is NaN.
    #[must_use]
    pub fn bounding(magnitude: Magnitude, order: Order, bound: f64) -> Self {
        if !magnitude.is_finite() || bound.is_nan() {
            return Self::FillNan;
        }
        magnitude.factor(order, 1.0, bound).map_or(Self::Keep, Self::Scale)
    }
}

/// The actions on the tensors of a call.
#[derive(Clone, Copy, Debug)]
pub enum Actions<'a> {
    /// The same action on every tensor.
    All(Action),
    /// One action for each tensor.
    Each(&'a [Action]),
}

impl Actions<'_> {
    /// Returns the action on the tensor at `index`.
    fn get(&self, index: usize) -> Action {
        match self {
            Self::All(action) => *action,
            Self::Each(actions) => actions[index],
        }
    }
}

/// Performs an action on a contiguous run of elements.
pub fn act<T: Float>(level: Level, action: Action, run: Run<T>) {
    match action {
        Action::Keep => perform(level, Copying, run),
        Action::Scale(factor) => perform(level, Scaling(factor), run),
        Action::FillNan => perform(level, Filling(T::NAN), run),
        Action::FillZero => perform(level, Filling(T::ZERO), run),
    }
}

/// Performs the actions on all segments. Cannot fail.
pub fn apply(workspace: &Workspace, segments: &mut [Segment], plan: &Plan, actions: Actions) {
    let needs_no_write = |index: usize, is_in_place: bool| is_in_place && actions.get(index) == Action::Keep;
    if segments.iter().enumerate().all(|(index, segment)| needs_no_write(index, segment.is_in_place())) {
        return;
    }
    let level = workspace.level;
    let streaming = exec::is_streaming(segments, plan);
    exec::for_each(workspace, segments, plan, Direction::Backwards, |index, (), chunk, scratch| {
        let action = actions.get(index);
        if needs_no_write(index, chunk.is_in_place()) {
            return;
        }
        with_float!(chunk.scalar(), T => {
            chunk.update(streaming, scratch, |run: Run<T>, _| {
                act(level, action, run);
                true
            });
        }, else unreachable!("the bindings reject integers"));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::exec::STREAM_BYTES;
    use crate::engine::isa;
    use crate::engine::segment;
    use crate::engine::workspace::Context;
    use crate::scalar::Scalar;

    fn run(input: &mut [f32], output: *mut f32, action: Action, threads: usize) {
        let operand = |pointer, is_written| Some(segment::Run { pointer, scalar: Scalar::F32, is_written });
        let operands = [operand(input.as_mut_ptr().cast(), false), operand(output.cast(), true), None, None];
        let mut segments = [Segment::dense_in_test(false, input.len(), operands)];
        let plan = Plan::new(&segments).unwrap();
        let context = Context { level: isa::detected(), threads };
        let workspace = Workspace::new(context, &segments, &plan).unwrap();
        apply(&workspace, &mut segments, &plan, Actions::All(action));
    }

    #[test]
    fn results_do_not_depend_on_size_number_of_threads_or_output_memory() {
        for n in [0, 1, 1000, 70_001, STREAM_BYTES / 4 + 77] {
            let input: Vec<f32> = (0..n).map(|i| (i % 1013) as f32 - 500.0).collect();
            let factor = Factor::new(0.3, 1.0, 0);
            let want: Vec<f32> = input.iter().map(|v| v * factor.narrow).collect();
            for threads in [1, 3] {
                let mut out = vec![7.0; n];
                run(&mut input.clone(), out.as_mut_ptr(), Action::Scale(factor), threads);
                assert!(out == want);
                let mut in_place = input.clone();
                let pointer = in_place.as_mut_ptr();
                run(&mut in_place, pointer, Action::Scale(factor), threads);
                assert!(in_place == want);
                let mut out = vec![7.0; n];
                run(&mut input.clone(), out.as_mut_ptr(), Action::Keep, threads);
                assert!(out == input);
                run(&mut input.clone(), out.as_mut_ptr(), Action::FillNan, threads);
                assert!(out.iter().all(|v| v.is_nan()));
            }
        }
    }
}
