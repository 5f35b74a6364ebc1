//! An optimizer's step: updates variables, their slots and their low-precision copies in one pass.
//!
//! Arithmetic is in float64 for float64 variables, and in float32 for all others; values of narrower types are rounded
//! once when they are stored. The gradient is converted to the type of the arithmetic, scaled and clamped a block at a
//! time, so that no clipped gradient is written to memory. Contiguous arrays of the type of the arithmetic, whose
//! gradients need only a factor, are updated a chunk at a time.

mod fill;
mod load_store;
mod refresh;

pub use fill::fill;
pub use refresh::refresh;

use crate::allocation::{OutOfMemory, collect};
use crate::engine::exec::{self, ChunkMut, Direction, Task};
use crate::engine::isa::Level;
use crate::engine::plan::Plan;
use crate::engine::segment::Segment;
use crate::engine::workspace::Workspace;
use crate::kernels::lanes::Real;
use crate::kernels::scale::Factor;
use crate::kernels::stochastic::Stream;
use crate::kernels::update::update;
use crate::kernels::update_bf16_slots::{Rounding, update_bf16_slots};
use crate::operations::norms::ChunkSquares;
use crate::operations::rules::{MAX_SLOTS, Rule, RuleKind, RuleVisitor};
use crate::scalar::Scalar;
use half::bf16;
use load_store::Arithmetic;
use std::ops::Range;

/// Number of operands of an update.
pub const OPERANDS: usize = 3 + MAX_SLOTS;
/// Index of the variable among the operands. As operand 0 it determines the order in which a pass visits the elements:
/// that of the variable's addresses.
pub const VARIABLE: usize = 0;
/// Index of the gradient among the operands.
pub const GRADIENT: usize = 1;
/// Index of the first slot among the operands.
pub const SLOTS: usize = 2;
/// Index of the low-precision copy among the operands.
pub const COPY: usize = 2 + MAX_SLOTS;

/// Transformation of a gradient before the rule is applied.
#[derive(Clone, Copy, Debug)]
pub struct GradientTransform {
    /// Factor by which every element is multiplied.
    pub factor: Factor,
    /// Bound of the absolute value of every element after that; None for no bound.
    pub clamp: Option<f64>,
}

impl GradientTransform {
    /// The transformation that leaves a gradient unchanged.
    pub const IDENTITY: Self = Self { factor: Factor::ONE, clamp: None };
}

/// The update of one variable, or of a part of it. The operands of the segment are variable, gradient, slots and copy. All
/// but the gradient are written. The gradient is absent if it is a [`RowGradient`].
pub type ParameterUpdate = Task<UpdateParameters, OPERANDS>;

/// Parameters of the update of one variable.
#[derive(Debug)]
pub struct UpdateParameters {
    /// Index of the gradient's transform among those of the step.
    pub gradient: usize,
    /// Index of the set of hyper-parameters among those of the step.
    pub hyper: usize,
    /// The gradient, if it is sparse and the rule updates all rows.
    pub rows: Option<Box<RowGradient>>,
    /// How variable and slots of bfloat16 are rounded stochastically; None to round them to the nearest.
    pub rounding: Option<StochasticRounding>,
}

/// The random bits of an update.
#[derive(Clone, Copy, Debug)]
pub struct StochasticRounding {
    /// The random bits of the variable.
    pub stream: Stream,
    /// The index, in the variable, of the first real that is updated.
    pub first: u64,
}

/// A sparse gradient: it has values for some rows of its variable, and is 0 elsewhere. It serves rules that update the
/// other rows too. The segment of the update must be dense.
#[derive(Debug)]
pub struct RowGradient {
    /// Indices of the rows, in ascending order, without duplicates.
    pub indices: Box<[usize]>,
    /// Number of reals in a row.
    pub row_len: usize,
    /// Values of the rows, one after the other: dense.
    pub values: Segment<1>,
}

/// Number of reals in a block, which are loaded at a time: so few that reading the next gradients overlaps with writing
/// the last results. ARCHITECTURE.md has the measurement.
const BLOCK: usize = 256;

/// Parameters of a step, to which its updates refer by index.
#[derive(Clone, Copy)]
pub struct StepParameters<'a> {
    /// One or more sets of the rule's hyper-parameters, one after the other.
    pub hyper: &'a [f64],
    /// The transform of each gradient.
    pub transforms: &'a [GradientTransform],
    /// Where the sums of squares of updated variables are stored, if they are measured in the same pass. All of them are
    /// contiguous, and of float32 or float64.
    pub measured: Option<&'a ChunkSquares<'a>>,
}

/// Performs an optimizer's step: all updates, in one pass.
///
/// # Errors
///
/// If memory runs out, before anything is written.
pub fn step(
    workspace: &Workspace,
    kind: RuleKind,
    parameters: StepParameters,
    updates: &mut [ParameterUpdate],
    plan: &Plan,
) -> Result<(), OutOfMemory> {
    let hyper_count = kind.hyper().len();
    let first = parameters.hyper.get(..hyper_count).unwrap_or(&[]);
    kind.with(first, Step { workspace, parameters, hyper_count, updates, plan })
}

/// The arguments of [`step`], for the rule that `RuleKind::with` selects.
struct Step<'a> {
    workspace: &'a Workspace,
    parameters: StepParameters<'a>,
    /// Number of hyper-parameters in a set.
    hyper_count: usize,
    updates: &'a mut [ParameterUpdate],
    plan: &'a Plan,
}

impl RuleVisitor for Step<'_> {
    type Result = Result<(), OutOfMemory>;

    fn visit<A: Rule<f32, N>, B: Rule<f64, N>, const N: usize>(self, _: A, _: B) -> Self::Result {
        let rules =
            collect(self.parameters.hyper.chunks_exact(self.hyper_count).map(|h| (A::new(h), B::new(h))))?;
        let StepParameters { transforms, measured, .. } = self.parameters;
        let level = self.workspace.level;
        let direction = Direction::Backwards;
        exec::for_each(
            self.workspace,
            self.updates,
            self.plan,
            direction,
            |index, parameters, mut chunk, _| {
                let (rule_f32, rule_f64) = rules[parameters.hyper];
                let gradient =
                    Gradient { transform: transforms[parameters.gradient], rows: parameters.rows.as_deref() };
                if chunk.scalar() == Scalar::F64 {
                    update_chunk(level, rule_f64, gradient, parameters.rounding, &mut chunk);
                    measure_chunk::<f64>(level, measured, index, &mut chunk);
                } else {
                    if has_bf16_slots(&chunk, N) {
                        update_bf16_chunk(level, rule_f32, gradient, parameters.rounding, &mut chunk);
                    } else {
                        update_chunk(level, rule_f32, gradient, parameters.rounding, &mut chunk);
                    }
                    measure_chunk::<f32>(level, measured, index, &mut chunk);
                }
            },
        );
        Ok(())
    }
}

/// A gradient and its transform.
#[derive(Clone, Copy)]
struct Gradient<'a> {
    transform: GradientTransform,
    /// The gradient, if it is sparse; None if it is the operand [`GRADIENT`].
    rows: Option<&'a RowGradient>,
}

/// Measures the chunk of a variable that has just been updated, while it is in the cache.
fn measure_chunk<R: Arithmetic>(
    level: Level,
    measured: Option<&ChunkSquares>,
    index: usize,
    chunk: &mut ChunkMut<OPERANDS>,
) {
    if let Some(measured) = measured {
        let range = chunk.range();
        measured.measure(level, index, range.start, chunk.run_mut::<R>(VARIABLE, range));
    }
}

/// Updates one chunk of a variable, its slots and its low-precision copy.
fn update_chunk<R: Arithmetic, K: Rule<R, N>, const N: usize>(
    level: Level,
    rule: K,
    gradient: Gradient,
    rounding: Option<StochasticRounding>,
    chunk: &mut ChunkMut<OPERANDS>,
) {
    let range = chunk.range();
    let GradientTransform { factor, clamp } = gradient.transform;
    let plain_factor = R::plain(factor).filter(|_| clamp.is_none());
    let is_direct = chunk.is_dense()
        && chunk.scalar() == R::SCALAR
        && (0..N).all(|k| chunk.scalar_of(SLOTS + k) == Some(R::SCALAR));
    if let (true, Some(factor)) = (is_direct, plain_factor)
        && chunk.scalar_of(GRADIENT) == Some(R::SCALAR)
        && chunk.scalar_of(COPY).is_none()
    {
        let g = chunk.read_only().run::<R>(GRADIENT, range.clone());
        let (w, slots) = chunk.runs_mut::<R, R, N>(VARIABLE, SLOTS..SLOTS + N, &range);
        update(level, rule, factor, g, w, slots);
        return;
    }
    let mut buffer = [R::ZERO; BLOCK];
    for start in range.clone().step_by(BLOCK) {
        let block = start..range.end.min(start + BLOCK);
        let g = &mut buffer[..block.len()];
        let factor = R::load_gradient(level, gradient, plain_factor, chunk, block.clone(), g);
        if is_direct {
            let (w, slots) = chunk.runs_mut::<R, R, N>(VARIABLE, SLOTS..SLOTS + N, &block);
            update(level, rule, factor, g, w, slots);
            if chunk.scalar_of(COPY).is_some() {
                // The variable is first copied to the buffer, because the low-precision copy cannot be borrowed for
                // writing together with it. The gradient in the buffer is no longer needed.
                g.copy_from_slice(chunk.run_mut(VARIABLE, block.clone()));
                R::store_copy(level, chunk, block, g);
            }
        } else {
            update_staged(level, rule, (factor, g), rounding, chunk, block);
        }
    }
}

/// Returns whether a chunk is dense, and has `count` slots, all of them bfloat16.
fn has_bf16_slots(chunk: &ChunkMut<OPERANDS>, count: usize) -> bool {
    count > 0
        && chunk.is_dense()
        && (0..count).all(|k| chunk.scalar_of(SLOTS + k) == Some(Scalar::BF16))
        && chunk.scalar() != Scalar::F64
}

/// Updates one chunk of a variable, its slots, for which [`has_bf16_slots`] is true, and its low-precision copy.
fn update_bf16_chunk<K: Rule<f32, N>, const N: usize>(
    level: Level,
    rule: K,
    gradient: Gradient,
    rounding: Option<StochasticRounding>,
    chunk: &mut ChunkMut<OPERANDS>,
) {
    let range = chunk.range();
    let GradientTransform { factor, clamp } = gradient.transform;
    let plain_factor = f32::plain(factor).filter(|_| clamp.is_none());
    let rounding_from = |start: usize| match rounding {
        None => Rounding::Nearest,
        Some(StochasticRounding { stream, first }) => Rounding::Stochastic {
            streams: std::array::from_fn(|pair| stream.of_pair((SLOTS / 2 + pair) as u64)),
            start: first + start as u64,
        },
    };
    let slots = SLOTS..SLOTS + N;
    if let (Some(factor), Scalar::F32, None) = (plain_factor, chunk.scalar(), chunk.scalar_of(COPY))
        && chunk.scalar_of(GRADIENT) == Some(Scalar::F32)
    {
        let g = chunk.read_only().run::<f32>(GRADIENT, range.clone());
        let (w, slots) = chunk.runs_mut::<f32, bf16, N>(VARIABLE, slots, &range);
        update_bf16_slots(level, rule, (factor, g), w, slots, rounding_from(range.start));
        return;
    }
    let (mut gradients, mut variables) = ([0.0; BLOCK], [0.0; BLOCK]);
    for start in range.clone().step_by(BLOCK) {
        let block = start..range.end.min(start + BLOCK);
        let (g, w) = (&mut gradients[..block.len()], &mut variables[..block.len()]);
        let factor = f32::load_gradient(level, gradient, plain_factor, chunk, block.clone(), g);
        f32::load_block(level, chunk, VARIABLE, block.clone(), w);
        let runs = chunk.array_of_runs_mut::<bf16, N>(slots.clone(), &block);
        update_bf16_slots(level, rule, (factor, g), w, runs, rounding_from(start));
        f32::store_block(level, chunk, VARIABLE, block.clone(), w, rounding);
        f32::store_copy(level, chunk, block, w);
    }
}

/// Updates a block of arrays that are strided, or whose types differ from that of the arithmetic: loads it into
/// buffers, updates these, and stores them.
fn update_staged<R: Arithmetic, K: Rule<R, N>, const N: usize>(
    level: Level,
    rule: K,
    (factor, g): (R, &[R]),
    rounding: Option<StochasticRounding>,
    chunk: &mut ChunkMut<OPERANDS>,
    block: Range<usize>,
) {
    let (mut variable, mut slots) = ([R::ZERO; BLOCK], [[R::ZERO; BLOCK]; N]);
    let w = &mut variable[..block.len()];
    R::load_block(level, chunk, VARIABLE, block.clone(), w);
    let mut slots = slots.each_mut().map(|slot| &mut slot[..block.len()]);
    for (k, slot) in slots.iter_mut().enumerate() {
        R::load_block(level, chunk, SLOTS + k, block.clone(), slot);
    }
    update(level, rule, factor, g, w, slots.each_mut().map(|slot| &mut **slot));
    R::store_block(level, chunk, VARIABLE, block.clone(), w, rounding);
    for (k, slot) in slots.iter().enumerate() {
        R::store_block(level, chunk, SLOTS + k, block.clone(), slot, rounding);
    }
    R::store_copy(level, chunk, block, w);
}

#[cfg(test)]
mod tests;
