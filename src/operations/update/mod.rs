//! An optimizer's step: updates variables, their slots and their low-precision copies in one pass.
//!
//! Arithmetic is in float64 for float64 variables, and in float32 for all others, whose values are rounded once when
//! they are stored. The gradient is converted to that type, scaled (which clips it: no clipped gradient is written to
//! memory) and clamped a block at a time. Contiguous arrays of the type of the arithmetic, whose gradients need only a
//! factor, are updated a chunk at a time.

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
use crate::kernels::scale::Factor;
use crate::kernels::update::update;
use crate::operations::rules::{MAX_SLOTS, Rule, RuleKind, RuleVisitor};
use crate::scalar::Scalar;
use load_store::Arithmetic;
use std::ops::Range;

/// Number of operands of an update.
pub const OPERANDS: usize = 3 + MAX_SLOTS;
/// Index of the variable among the operands. It leads: all operands are read and written in the order of its addresses.
pub const VARIABLE: usize = 0;
/// Index of the gradient.
pub const GRADIENT: usize = 1;
/// Index of the first slot.
pub const SLOTS: usize = 2;
/// Index of the low-precision copy.
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
    /// Leaves the gradient unchanged.
    pub const IDENTITY: Self = Self { factor: Factor::ONE, clamp: None };
}

/// The update of one variable, or of a part of it.
#[derive(Debug)]
pub struct ParameterUpdate {
    /// Variable, gradient, slots and copy. All but the gradient are written. The gradient is absent if it is a
    /// [`RowGradient`].
    pub segment: Segment<OPERANDS>,
    /// Parameters of the update.
    pub parameters: UpdateParameters,
}

/// Parameters of the update of one variable.
#[derive(Debug)]
pub struct UpdateParameters {
    /// Index of the gradient, and of its transform, among those of the step.
    pub gradient: usize,
    /// Index of the set of hyper-parameters among those of the step.
    pub hyper: usize,
    /// The gradient, if it has values for some rows of the variable only and is 0 elsewhere.
    pub rows: Option<Box<RowGradient>>,
}

/// A gradient with values for some rows of its variable, for rules that change the other rows too. The segment of the
/// variable must be dense.
#[derive(Debug)]
pub struct RowGradient {
    /// Indices of the rows, in ascending order, without duplicates.
    pub indices: Box<[usize]>,
    /// Number of reals in a row.
    pub row_len: usize,
    /// Values of the rows, one after the other: dense.
    pub values: Segment<1>,
}

impl Task<OPERANDS> for ParameterUpdate {
    type Parameters = UpdateParameters;

    fn segment(&self) -> &Segment<OPERANDS> {
        &self.segment
    }

    fn parameters(&self) -> &UpdateParameters {
        &self.parameters
    }
}

/// Number of reals that are loaded at a time: so few that reading the next gradients overlaps with writing the last
/// results.
/// ARCHITECTURE.md has the measurement.
const BLOCK: usize = 256;

/// Parameters that the updates of a step share, and refer to by index.
#[derive(Clone, Copy)]
pub struct StepParameters<'a> {
    /// One or more sets of the rule's hyper-parameters, one after the other.
    pub hyper: &'a [f64],
    /// The transform of each gradient.
    pub transforms: &'a [GradientTransform],
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
        let (level, transforms) = (self.workspace.level, self.parameters.transforms);
        let direction = Direction::Backwards;
        exec::for_each(self.workspace, self.updates, self.plan, direction, |_, parameters, chunk, _| {
            let (rule_f32, rule_f64) = rules[parameters.hyper];
            let gradient =
                Gradient { transform: transforms[parameters.gradient], rows: parameters.rows.as_deref() };
            match chunk.scalar() {
                Scalar::F64 => update_chunk(level, rule_f64, gradient, chunk),
                _ => update_chunk(level, rule_f32, gradient, chunk),
            }
        });
        Ok(())
    }
}

/// A gradient and its transform.
#[derive(Clone, Copy)]
struct Gradient<'a> {
    transform: GradientTransform,
    /// The values, if they are those of some rows; None if they are the operand [`GRADIENT`].
    rows: Option<&'a RowGradient>,
}

/// Updates one chunk of a variable and its slots and copy.
fn update_chunk<R: Arithmetic, K: Rule<R, N>, const N: usize>(
    level: Level,
    rule: K,
    gradient: Gradient,
    mut chunk: ChunkMut<OPERANDS>,
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
        let (w, slots) = chunk.runs_mut::<R, N>(VARIABLE, SLOTS..SLOTS + N, &range);
        update(level, rule, factor, g, w, slots);
        return;
    }
    let mut buffer = [R::ZERO; BLOCK];
    for start in range.clone().step_by(BLOCK) {
        let block = start..range.end.min(start + BLOCK);
        let g = &mut buffer[..block.len()];
        let factor = R::load_gradient(level, gradient, plain_factor, &chunk, block.clone(), g);
        if is_direct {
            let (w, slots) = chunk.runs_mut::<R, N>(VARIABLE, SLOTS..SLOTS + N, &block);
            update(level, rule, factor, g, w, slots);
            if chunk.scalar_of(COPY).is_some() {
                // The block of the gradient is not needed any more, and the copy cannot be written while the variable
                // is borrowed from the same chunk.
                g.copy_from_slice(chunk.run_mut(VARIABLE, block.clone()));
                R::store_copy(level, &mut chunk, block, g);
            }
        } else {
            update_staged(level, rule, factor, g, &mut chunk, block);
        }
    }
}

/// Updates a block of arrays that are strided, or of other types than the arithmetic: they are loaded into buffers,
/// updated there, and stored.
fn update_staged<R: Arithmetic, K: Rule<R, N>, const N: usize>(
    level: Level,
    rule: K,
    factor: R,
    g: &[R],
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
    R::store_block(level, chunk, VARIABLE, block.clone(), w);
    for (k, slot) in slots.iter().enumerate() {
        R::store_block(level, chunk, SLOTS + k, block.clone(), slot);
    }
    R::store_copy(level, chunk, block, w);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::engine::segment::{Operand, Run};
    use crate::engine::workspace::Context;
    use crate::kernels::Float;
    use crate::kernels::lanes::Lanes;
    use crate::kernels::oracle::samples;
    use half::{bf16, f16};

    /// Returns valid hyper-parameters of a rule.
    fn hyper(kind: RuleKind) -> Vec<f64> {
        let value = |name: &str| match name {
            "learning_rate_power" => -0.5,
            "step" => 3.0,
            "use_nesterov" => 1.0,
            "epsilon" => 1e-3,
            _ => 0.1,
        };
        kind.hyper().iter().map(|name| value(name)).collect()
    }

    /// Reference: applies a rule to one number after the other, without SIMD.
    struct ScalarUpdate<'a> {
        g: &'a [f32],
        w: &'a mut [f32],
        slots: &'a mut [Vec<f32>],
    }

    impl RuleVisitor for ScalarUpdate<'_> {
        type Result = ();

        fn visit<A: Rule<f32, N>, B: Rule<f64, N>, const N: usize>(self, rule: A, _: B) {
            for i in 0..self.w.len() {
                let (w, slots) = rule.update(self.g[i], self.w[i], std::array::from_fn(|k| self.slots[k][i]));
                self.w[i] = w.canonical();
                (0..N).for_each(|k| self.slots[k][i] = slots[k].canonical());
            }
        }
    }

    fn gradient(n: usize) -> Vec<f32> {
        samples(n).into_iter().map(|v| (v as f32).clamp(-9.0, 9.0)).collect()
    }

    /// A gradient, a variable, its slots and its low-precision copy.
    struct Case {
        g: Vec<f32>,
        w: Vec<f32>,
        slots: Vec<Vec<f32>>,
        copy: Vec<bf16>,
    }

    impl Case {
        fn new(n: usize, slots: usize) -> Self {
            let w = (0..n).map(|i| (i % 37) as f32 - 18.0).collect();
            let slots = (0..slots).map(|k| (0..n).map(|i| 0.5 + ((i + k) % 7) as f32).collect()).collect();
            Self { g: gradient(n), w, slots, copy: vec![bf16::ZERO; n] }
        }

        /// Returns the arrays as contiguous runs, without the copy unless `with_copy`.
        fn runs(&mut self, with_copy: bool) -> [Option<Run>; OPERANDS] {
            let mut runs = [None; OPERANDS];
            runs[VARIABLE] = Some(run(&mut self.w, Scalar::F32, true));
            runs[GRADIENT] = Some(run(&mut self.g, Scalar::F32, false));
            for (k, slot) in self.slots.iter_mut().enumerate() {
                runs[SLOTS + k] = Some(run(slot, Scalar::F32, true));
            }
            runs[COPY] = with_copy.then(|| run(&mut self.copy, Scalar::BF16, true));
            runs
        }

        /// Returns the update of all arrays.
        fn update(&mut self, with_copy: bool) -> ParameterUpdate {
            let (len, runs) = (self.w.len(), self.runs(with_copy));
            parameter_update(Segment::dense_in_test(false, len, runs))
        }

        fn bits(&self) -> Vec<u32> {
            self.w.iter().chain(self.slots.iter().flatten()).map(|v| v.to_bits()).collect()
        }
    }

    fn run<T>(values: &mut [T], scalar: Scalar, is_written: bool) -> Run {
        Run { pointer: values.as_mut_ptr().cast(), scalar, is_written }
    }

    fn parameter_update(segment: Segment<OPERANDS>) -> ParameterUpdate {
        let parameters = UpdateParameters { gradient: 0, hyper: 0, rows: None };
        ParameterUpdate { segment, parameters }
    }

    fn run_step(
        kind: RuleKind,
        parameters: StepParameters,
        mut updates: Vec<ParameterUpdate>,
        level: Level,
        threads: usize,
    ) {
        let plan = Plan::cut(updates.iter().map(|update| (update.segment.len(), 16)), 1000).unwrap();
        let workspace = Workspace::with_scratch(Context { level, threads }, plan.bytes(), 0).unwrap();
        step(&workspace, kind, parameters, &mut updates, &plan).unwrap();
    }

    fn run_update(kind: RuleKind, update: ParameterUpdate, level: Level, threads: usize) {
        run_transformed_update(kind, update, GradientTransform::IDENTITY, level, threads);
    }

    fn run_transformed_update(
        kind: RuleKind,
        update: ParameterUpdate,
        transform: GradientTransform,
        level: Level,
        threads: usize,
    ) {
        let parameters = StepParameters { hyper: &hyper(kind), transforms: &[transform] };
        run_step(kind, parameters, vec![update], level, threads);
    }

    #[test]
    fn bits_of_a_rule_depend_neither_on_simd_level_nor_on_threads() {
        for kind in RuleKind::ALL {
            for n in [1, 15, 16, 17, 1023, 5000] {
                let mut want = Case::new(n, kind.slots());
                kind.with(&hyper(*kind), ScalarUpdate { g: &want.g, w: &mut want.w, slots: &mut want.slots });
                for level in isa::all() {
                    for (threads, with_copy) in [(1, false), (3, false), (2, true)] {
                        let mut case = Case::new(n, kind.slots());
                        let update = case.update(with_copy);
                        run_update(*kind, update, level, threads);
                        assert!(case.bits() == want.bits(), "{kind:?} {level:?} {n}");
                        if with_copy {
                            let copy = want.w.iter().map(|v| bf16::from_f32(*v).to_bits());
                            assert!(case.copy.iter().map(|v| v.to_bits()).eq(copy), "{kind:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_strided_variable_is_updated_like_a_dense_one_and_gaps_are_not_written() {
        for kind in RuleKind::ALL {
            let n = 3000;
            let mut want = Case::new(n, kind.slots());
            kind.with(&hyper(*kind), ScalarUpdate { g: &want.g, w: &mut want.w, slots: &mut want.slots });
            let mut case = Case::new(n, kind.slots());
            let mut spread: Vec<f32> = case.w.iter().flat_map(|v| [*v, 77.0]).collect();
            let runs = case.runs(true);
            let (four, two, eight) = ([4], [2], [8]);
            let mut operands = runs.map(|run| {
                run.map(|Run { pointer, scalar, is_written }| {
                    let strides: &[isize] = if scalar == Scalar::BF16 { &two } else { &four };
                    Operand { pointer, strides, scalar, is_written }
                })
            });
            let variable = Operand {
                pointer: spread.as_mut_ptr().cast(),
                strides: &eight,
                ..operands[VARIABLE].unwrap()
            };
            operands[VARIABLE] = Some(variable);
            let update = parameter_update(Segment::in_test(false, &[n], operands));
            run_update(*kind, update, isa::detected(), 3);
            case.w = spread.iter().step_by(2).copied().collect();
            assert!(case.bits() == want.bits(), "{kind:?}");
            assert!(spread.iter().skip(1).step_by(2).all(|v| *v == 77.0));
        }
    }

    #[test]
    fn a_row_gradient_equals_a_gradient_that_is_zero_elsewhere() {
        let (rows_count, len) = (700, 3);
        let indices: Box<[usize]> = (0..rows_count).filter(|row| row % 5 == 2 || *row > 690).collect();
        for kind in [RuleKind::Adam, RuleKind::AdamW] {
            let mut want = Case::new(rows_count * len, 2);
            for (i, g) in want.g.iter_mut().enumerate() {
                *g = if indices.contains(&(i / len)) { *g } else { 0.0 };
            }
            let mut case = Case::new(rows_count * len, 2);
            case.g = indices.iter().flat_map(|row| want.g[row * len..(row + 1) * len].to_vec()).collect();
            kind.with(&hyper(kind), ScalarUpdate { g: &want.g, w: &mut want.w, slots: &mut want.slots });
            let mut values = case.g.clone();
            let values_len = values.len();
            let rows = [Some(run(&mut values, Scalar::F32, false))];
            let rows = Segment::dense_in_test(false, values_len, rows);
            let mut runs = case.runs(false);
            runs[GRADIENT] = None;
            let mut update = parameter_update(Segment::dense_in_test(false, rows_count * len, runs));
            update.parameters.rows =
                Some(Box::new(RowGradient { indices: indices.clone(), row_len: len, values: rows }));
            run_update(kind, update, isa::detected(), 2);
            assert!(case.bits() == want.bits(), "{kind:?}");
        }
    }

    #[test]
    fn gradients_are_scaled_then_clamped_and_may_be_of_any_float_type() {
        fn check<G: Float>(scalar: Scalar, convert: impl Fn(f32) -> G) {
            let n = 2100;
            for factor in [Factor::ONE, Factor::new(0.3, 1.0, 0), Factor::new(1e-42, 1.0, 0)] {
                for clamp in [None, Some(0.25)] {
                    let mut case = Case::new(n, 0);
                    let mut g: Vec<G> = case.g.iter().map(|v| convert(*v)).collect();
                    let mut runs = case.runs(false);
                    runs[GRADIENT] = Some(run(&mut g, scalar, false));
                    let update = parameter_update(Segment::dense_in_test(false, n, runs));
                    let transform = GradientTransform { factor, clamp };
                    let before = case.w.clone();
                    run_transformed_update(RuleKind::GradientDescent, update, transform, isa::detected(), 2);
                    let is_float64 = factor.is_wide() || scalar == Scalar::F64;
                    let scale = if is_float64 { factor.wide * factor.lift } else { f64::from(factor.narrow) };
                    for i in 0..n {
                        let mut scaled = (g[i].to_f64() * scale) as f32;
                        if let Some(bound) = clamp {
                            scaled = scaled.clamp(-(bound as f32), bound as f32);
                        }
                        assert_eq!(case.w[i], before[i] - scaled * 0.1, "{scalar:?} {factor:?} {clamp:?}");
                    }
                }
            }
        }
        check(Scalar::F32, |v| v);
        check(Scalar::F64, f64::from);
        check(Scalar::F16, f16::from_f32);
        check(Scalar::BF16, bf16::from_f32);
    }

    /// Converts values to float32.
    fn to_float32<T: Float>(values: &[T]) -> Vec<f32> {
        values.iter().map(|v| v.to_f64() as f32).collect()
    }

    #[test]
    fn narrow_variables_and_slots_are_computed_in_float32_and_rounded_once() {
        fn check<W: Float, S: Float>(
            kind: RuleKind,
            (variable, to_w): (Scalar, impl Fn(f32) -> W),
            (slot, to_s): (Scalar, impl Fn(f32) -> S),
            stride: usize,
        ) {
            let n = 2600;
            let case = Case::new(n, kind.slots());
            let mut w: Vec<W> = case.w.iter().map(|v| to_w(v * 1.37)).collect();
            let mut slots: Vec<Vec<S>> =
                case.slots.iter().map(|slot| slot.iter().map(|v| to_s(v * 0.71)).collect()).collect();
            let mut want_w = to_float32(&w);
            let mut want_slots: Vec<Vec<f32>> = slots.iter().map(|slot| to_float32(slot)).collect();
            kind.with(&hyper(kind), ScalarUpdate { g: &case.g, w: &mut want_w, slots: &mut want_slots });

            let mut spread: Vec<W> = w.iter().flat_map(|v| std::iter::repeat_n(*v, stride)).collect();
            let mut g = case.g.clone();
            let bytes = |scalar: Scalar, stride: usize| [(scalar.size() * stride) as isize];
            let (w_strides, g_strides, slot_strides) =
                (bytes(variable, stride), bytes(Scalar::F32, 1), bytes(slot, 1));
            let mut operands = [None; OPERANDS];
            let operand = |run: Run, strides| {
                Some(Operand {
                    pointer: run.pointer,
                    strides,
                    scalar: run.scalar,
                    is_written: run.is_written,
                })
            };
            operands[VARIABLE] = operand(run(&mut spread, variable, true), &w_strides[..]);
            operands[GRADIENT] = operand(run(&mut g, Scalar::F32, false), &g_strides);
            for (k, values) in slots.iter_mut().enumerate() {
                operands[SLOTS + k] = operand(run(values, slot, true), &slot_strides);
            }
            let update = parameter_update(Segment::in_test(false, &[n], operands));
            run_update(kind, update, isa::detected(), 2);
            w = spread.iter().step_by(stride).copied().collect();
            let bits = |v: f64| v.to_bits();
            for i in 0..n {
                assert_eq!(bits(w[i].to_f64()), bits(to_w(want_w[i]).to_f64()), "{kind:?} {i}");
                for (values, want) in slots.iter().zip(&want_slots) {
                    assert_eq!(bits(values[i].to_f64()), bits(to_s(want[i]).to_f64()), "{kind:?} {i}");
                }
            }
        }
        for kind in RuleKind::ALL {
            for stride in [1, 3] {
                let (b, h, f) = (bf16::from_f32, f16::from_f32, |v: f32| v);
                check(*kind, (Scalar::BF16, b), (Scalar::F32, f), stride);
                check(*kind, (Scalar::F32, f), (Scalar::BF16, b), stride);
                check(*kind, (Scalar::F16, h), (Scalar::BF16, b), stride);
                check(*kind, (Scalar::BF16, b), (Scalar::BF16, b), stride);
            }
        }
    }

    #[test]
    fn each_variable_has_the_hyper_parameters_that_it_refers_to() {
        let kind = RuleKind::Adam;
        let sets: Vec<f64> =
            (0..3).flat_map(|k| hyper(kind).into_iter().map(move |h| h / f64::from(k + 1))).collect();
        let count = kind.hyper().len();
        let mut cases: Vec<Case> = (0..5).map(|i| Case::new(700 + i, 2)).collect();
        let updates = cases.iter_mut().enumerate().map(|(i, case)| {
            let mut update = case.update(false);
            update.parameters.hyper = i % 3;
            update
        });
        let parameters = StepParameters { hyper: &sets, transforms: &[GradientTransform::IDENTITY] };
        run_step(kind, parameters, updates.collect(), isa::detected(), 2);
        for (i, case) in cases.iter().enumerate() {
            let mut want = Case::new(700 + i, 2);
            let hyper = &sets[i % 3 * count..(i % 3 + 1) * count];
            kind.with(hyper, ScalarUpdate { g: &want.g, w: &mut want.w, slots: &mut want.slots });
            assert!(case.bits() == want.bits(), "{i}");
        }
    }
}
