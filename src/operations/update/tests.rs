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
    let parameters = UpdateParameters { gradient: 0, hyper: 0, rows: None, rounding: None };
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
    let parameters = StepParameters { hyper: &hyper(kind), transforms: &[transform], measured: None };
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
        let variable =
            Operand { pointer: spread.as_mut_ptr().cast(), strides: &eight, ..operands[VARIABLE].unwrap() };
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

#[test]
fn slots_of_bfloat16_are_rounded_alike_in_registers_and_in_buffers() {
    // Strided slots are rounded in buffers. The values include NaN and infinities.
    let n = 2100;
    for kind in RuleKind::ALL.iter().filter(|kind| kind.slots() > 0) {
        for rounding in [None, Some(Stream::new(5, 3, 1))] {
            for variable in [Scalar::F32, Scalar::BF16] {
                let results = [1, 2].map(|stride| {
                    isa::all().into_iter().map(move |level| {
                        let case = Case::new(n, kind.slots());
                        let mut g: Vec<f32> = gradient(n);
                        g[7] = f32::NAN;
                        g[40] = f32::INFINITY;
                        g[n - 1] = f32::NEG_INFINITY;
                        let mut w = case.w.clone();
                        let mut narrow_w: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
                        let mut slots: Vec<Vec<bf16>> = case
                            .slots
                            .iter()
                            .map(|slot| {
                                let values = slot.iter().map(|v| bf16::from_f32(*v));
                                values.flat_map(|v| std::iter::repeat_n(v, stride as usize)).collect()
                            })
                            .collect();
                        let (four, two, strided) = ([4], [2], [2 * stride]);
                        let mut operands = [None; OPERANDS];
                        let operand = |run: Run, strides| {
                            let Run { pointer, scalar, is_written } = run;
                            Some(Operand { pointer, strides, scalar, is_written })
                        };
                        operands[VARIABLE] = match variable {
                            Scalar::F32 => operand(run(&mut w, variable, true), &four[..]),
                            _ => operand(run(&mut narrow_w, variable, true), &two[..]),
                        };
                        operands[GRADIENT] = operand(run(&mut g, Scalar::F32, false), &four[..]);
                        for (k, values) in slots.iter_mut().enumerate() {
                            operands[SLOTS + k] = operand(run(values, Scalar::BF16, true), &strided[..]);
                        }
                        let mut update = parameter_update(Segment::in_test(false, &[n], operands));
                        update.parameters.rounding =
                            rounding.map(|stream| StochasticRounding { stream, first: 5 });
                        run_update(*kind, update, level, 2);
                        let w = w.iter().map(|v| v.to_bits());
                        let w = w.chain(narrow_w.iter().map(|v| u32::from(v.to_bits())));
                        let slots =
                            slots.iter().flat_map(|slot| slot.iter().step_by(stride as usize).take(n));
                        w.chain(slots.map(|v| u32::from(v.to_bits()))).collect::<Vec<u32>>()
                    })
                });
                let [dense, strided] = results.map(Iterator::collect::<Vec<_>>);
                assert!(dense.iter().chain(&strided).all(|bits| *bits == dense[0]), "{kind:?} {rounding:?}");
            }
        }
    }
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
            Some(Operand { pointer: run.pointer, strides, scalar: run.scalar, is_written: run.is_written })
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
    let parameters =
        StepParameters { hyper: &sets, transforms: &[GradientTransform::IDENTITY], measured: None };
    run_step(kind, parameters, updates.collect(), isa::detected(), 2);
    for (i, case) in cases.iter().enumerate() {
        let mut want = Case::new(700 + i, 2);
        let hyper = &sets[i % 3 * count..(i % 3 + 1) * count];
        kind.with(hyper, ScalarUpdate { g: &want.g, w: &mut want.w, slots: &mut want.slots });
        assert!(case.bits() == want.bits(), "{i}");
    }
}
