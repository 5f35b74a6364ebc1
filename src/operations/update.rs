//! An optimizer's step: every variable, its slots and its low-precision copy, in one pass.
//!
//! The gradient is brought to the variable's type, scaled (that is the clip: no clipped gradient is ever written)
//! and clamped on the way in, a block at a time; the rule does the rest. What needs neither conversion nor clamping
//! nor a copy goes through a whole chunk at once, scaled in the registers.

use crate::allocation::OutOfMemory;
use crate::engine::exec::{self, Context, Direction, Workspace};
use crate::engine::isa::Level;
use crate::engine::plan::Plan;
use crate::engine::segment::{Layout, Segment};
use crate::kernels::Float;
use crate::kernels::clamp::Clamping;
use crate::kernels::convert::{Convert, convert};
use crate::kernels::lanes::Real;
use crate::kernels::operation::{Run, perform};
use crate::kernels::scale::{Factor, Scaling};
use crate::kernels::update::update;
use crate::operations::rules::{MAX_SLOTS, Rule, RuleKind, RuleVisitor};
use crate::scalar::Scalar;
use half::{bf16, f16};
use std::ops::Range;

/// How many arrays an update walks side by side.
pub const OPERANDS: usize = 3 + MAX_SLOTS;
/// The operand that is updated. It leads: the others are walked in its order.
pub const VARIABLE: usize = 0;
/// The operand that is read.
pub const GRADIENT: usize = 1;
/// The first slot.
pub const SLOTS: usize = 2;
/// The low-precision copy.
pub const COPY: usize = 2 + MAX_SLOTS;

/// What happens to a gradient on its way in.
#[derive(Clone, Copy, Debug)]
pub struct GradientTransform {
    /// What it is multiplied by.
    pub factor: Factor,
    /// What its elements are then clamped to, from minus this to this.
    pub clamp: Option<f64>,
}

/// A variable's part in a step.
#[derive(Debug)]
pub struct ParameterUpdate {
    /// Variable, gradient, slots and copy.
    pub segment: Segment<OPERANDS>,
    /// The type of the gradient.
    pub gradient: Scalar,
    /// The type of the copy, if there is one.
    pub copy: Option<Scalar>,
    /// The gradient is made of rows of the variable: what lies between them is 0.
    pub rows: Option<Rows>,
    /// What happens to the gradient.
    pub incoming: GradientTransform,
}

/// A gradient of few rows, for a rule that changes all of them. The gradient operand holds the rows, one after the
/// other, and everything is dense.
#[derive(Debug)]
pub struct Rows {
    /// Which rows, ascending, each once.
    pub indices: Box<[usize]>,
    /// Reals in a row.
    pub len: usize,
}

/// Reals that are brought in at a time: so few that reading the next gradients overlaps with writing what was updated.
/// See ARCHITECTURE.md for the measurement.
const BLOCK: usize = 256;

/// AcceptedDTypes the step. Cannot fail.
///
/// # Safety
///
/// Variables, slots and copies must not overlap each other or a gradient; indices must lie within their variables.
pub unsafe fn step(
    workspace: &Workspace,
    kind: RuleKind,
    hyper: &[f64],
    items: &[ParameterUpdate],
    plan: &Plan,
) {
    kind.with(hyper, Pass { workspace, items, plan });
}

struct Pass<'a> {
    workspace: &'a Workspace,
    items: &'a [ParameterUpdate],
    plan: &'a Plan,
}

impl RuleVisitor for Pass<'_> {
    type Result = ();

    fn visit<A: Rule<f32, N>, B: Rule<f64, N>, const N: usize>(self, narrow: A, wide: B) {
        let level = self.workspace.level;
        exec::for_each(self.workspace, self.plan, Direction::Backwards, |index, range, _| {
            let item = &self.items[index];
            // SAFETY: by the contract of `step`, which alone makes a pass; chunks are disjoint ranges.
            unsafe {
                match item.segment.scalar {
                    Scalar::F32 => update_range(level, narrow, item, range),
                    Scalar::F64 => update_range(level, wide, item, range),
                    _ => unreachable!("variables are float32 or float64: checked at the edge"),
                }
            }
        });
    }
}

/// # Safety
///
/// As [`step`], for a range that no other thread works on.
unsafe fn update_range<R, K, const N: usize>(
    level: Level,
    rule: K,
    item: &ParameterUpdate,
    range: Range<usize>,
) where
    R: Variable,
    K: Rule<R, N>,
{
    let segment = &item.segment;
    let dense = segment.layout == Layout::Dense;
    let plain = R::plain(item.incoming.factor).filter(|_| item.incoming.clamp.is_none());
    if let (true, Some(factor), None, None) = (dense, plain, item.copy, &item.rows)
        && item.gradient == segment.scalar
    {
        // SAFETY: dense operands, of this type; what is written is ours alone.
        unsafe {
            let g = segment.run::<R>(GRADIENT, range.clone());
            let slots = std::array::from_fn(|k| segment.run_mut::<R>(SLOTS + k, range.clone()));
            update(level, rule, factor, g, segment.run_mut(VARIABLE, range), slots);
        }
        return;
    }
    for start in range.clone().step_by(BLOCK) {
        let block = start..range.end.min(start + BLOCK);
        // SAFETY: as above, and for a part of this range.
        unsafe {
            if dense {
                update_dense(level, rule, item, plain, block);
            } else {
                update_walked(level, rule, item, plain, block);
            }
        }
    }
}

/// # Safety
///
/// As [`update_range`], for at most a block of dense operands.
unsafe fn update_dense<R, K, const N: usize>(
    level: Level,
    rule: K,
    item: &ParameterUpdate,
    plain: Option<R>,
    block: Range<usize>,
) where
    R: Variable,
    K: Rule<R, N>,
{
    let mut gradient = [R::ZERO; BLOCK];
    let g = &mut gradient[..block.len()];
    // SAFETY: the caller's contract.
    unsafe {
        let factor = R::load_gradient(level, item, plain, block.clone(), g);
        let w = item.segment.run_mut::<R>(VARIABLE, block.clone());
        let slots = std::array::from_fn(|k| item.segment.run_mut::<R>(SLOTS + k, block.clone()));
        update(level, rule, factor, g, w, slots);
        R::store_copy(level, item, block, w);
    }
}

/// # Safety
///
/// As [`update_range`], for at most a block.
unsafe fn update_walked<R, K, const N: usize>(
    level: Level,
    rule: K,
    item: &ParameterUpdate,
    plain: Option<R>,
    block: Range<usize>,
) where
    R: Variable,
    K: Rule<R, N>,
{
    let (mut gradient, mut variable) = ([R::ZERO; BLOCK], [R::ZERO; BLOCK]);
    let mut state = [[R::ZERO; BLOCK]; N];
    let g = &mut gradient[..block.len()];
    let w = &mut variable[..block.len()];
    // SAFETY: the caller's contract; gathered and scattered positions are those of this block.
    unsafe {
        let factor = R::load_gradient(level, item, plain, block.clone(), g);
        item.segment.gather(VARIABLE, block.clone(), w);
        let mut slots = state.each_mut().map(|slot| &mut slot[..block.len()]);
        for (k, slot) in slots.iter_mut().enumerate() {
            item.segment.gather(SLOTS + k, block.clone(), slot);
        }
        update(level, rule, factor, g, w, slots);
        item.segment.scatter(VARIABLE, block.clone(), w);
        for (k, slot) in state.iter().enumerate() {
            item.segment.scatter(SLOTS + k, block.clone(), &slot[..block.len()]);
        }
        R::store_copy(level, item, block, w);
    }
}

/// A variable's type, with the ways from the types of gradients and to those of copies.
trait Variable: Real {
    /// Brings a block of the gradient to this type. Returns what is left to multiply it by.
    ///
    /// # Safety
    ///
    /// As [`update_range`].
    unsafe fn load_gradient(
        level: Level,
        item: &ParameterUpdate,
        plain: Option<Self>,
        block: Range<usize>,
        to: &mut [Self],
    ) -> Self;

    /// Refreshes a block of the copy.
    ///
    /// # Safety
    ///
    /// As [`update_range`].
    unsafe fn store_copy(level: Level, item: &ParameterUpdate, block: Range<usize>, w: &[Self]);
}

impl<R> Variable for R
where
    R: Real + Convert<f32> + Convert<f16> + Convert<bf16>,
    f16: Convert<R>,
    bf16: Convert<R>,
    f32: Convert<R>,
    f64: Convert<R>,
{
    unsafe fn load_gradient(
        level: Level,
        item: &ParameterUpdate,
        plain: Option<R>,
        block: Range<usize>,
        to: &mut [R],
    ) -> R {
        let GradientTransform { factor, clamp } = item.incoming;
        // Rounding may take a float64 out of the range of the variable: it is scaled before.
        let first = item.gradient.size() > size_of::<R>();
        let early = if first { factor } else { Factor::ONE };
        // SAFETY: the caller's contract.
        unsafe {
            match item.gradient {
                Scalar::F16 => take::<f16, R>(level, item, block, to, early),
                Scalar::BF16 => take::<bf16, R>(level, item, block, to, early),
                Scalar::F32 => take::<f32, R>(level, item, block, to, early),
                Scalar::F64 => take::<f64, R>(level, item, block, to, early),
                _ => unreachable!("gradients are floats: checked at the edge"),
            }
        }
        if let (false, Some(factor)) = (first, plain) {
            return factor;
        }
        if !first {
            perform(level, Scaling(factor), Run::InPlace(to));
        }
        if let Some(bound) = clamp {
            let hi = R::from_f64(bound);
            perform(level, Clamping { lo: -hi, hi }, Run::InPlace(to));
        }
        R::from_f64(1.0)
    }

    unsafe fn store_copy(level: Level, item: &ParameterUpdate, block: Range<usize>, w: &[R]) {
        // SAFETY: the caller's contract.
        unsafe {
            match item.copy {
                None => {}
                Some(Scalar::F16) => give::<f16, R>(level, item, block, w),
                Some(Scalar::BF16) => give::<bf16, R>(level, item, block, w),
                Some(Scalar::F32) => give::<f32, R>(level, item, block, w),
                Some(_) => unreachable!("copies are narrower floats: checked at the edge"),
            }
        }
    }
}

/// # Safety
///
/// As [`update_range`], where the gradient has this type.
unsafe fn take<G: Convert<R> + Float, R: Real>(
    level: Level,
    item: &ParameterUpdate,
    block: Range<usize>,
    to: &mut [R],
    factor: Factor,
) {
    let segment = &item.segment;
    let mut buffer = [G::ZERO; BLOCK];
    let scaled = &mut buffer[..block.len()];
    if let Some(rows) = &item.rows {
        to.fill(R::ZERO);
        let (first, last) = (block.start / rows.len, (block.end - 1) / rows.len);
        let from = rows.indices.partition_point(|row| *row < first);
        for (position, row) in rows.indices.iter().enumerate().skip(from) {
            if *row > last {
                break;
            }
            let within = (row * rows.len).max(block.start)..((row + 1) * rows.len).min(block.end);
            let at = position * rows.len + (within.start - row * rows.len);
            let scaled = &mut scaled[..within.len()];
            let target = &mut to[within.start - block.start..within.end - block.start];
            // SAFETY: the gradient operand is dense and holds as many rows as there are indices.
            scaled.copy_from_slice(unsafe { segment.run::<G>(GRADIENT, at..at + within.len()) });
            scale_and_convert(level, scaled, target, factor);
        }
    } else if factor == Factor::ONE && segment.layout == Layout::Dense {
        // SAFETY: a dense operand of this type.
        convert(level, unsafe { segment.run::<G>(GRADIENT, block) }, to);
    } else {
        segment.gather(GRADIENT, block, scaled);
        scale_and_convert(level, scaled, to, factor);
    }
}

fn scale_and_convert<G: Convert<R> + Float, R>(level: Level, from: &mut [G], to: &mut [R], factor: Factor) {
    if factor != Factor::ONE {
        perform(level, Scaling(factor), Run::InPlace(from));
    }
    convert(level, from, to);
}

/// # Safety
///
/// As [`update_range`], where the copy has this type.
unsafe fn give<L: Float, R: Convert<L>>(level: Level, item: &ParameterUpdate, block: Range<usize>, w: &[R]) {
    let segment = &item.segment;
    if segment.layout == Layout::Dense {
        // SAFETY: a dense operand of this type, ours alone in this block.
        convert(level, w, unsafe { segment.run_mut::<L>(COPY, block) });
    } else {
        let mut buffer = [L::ZERO; BLOCK];
        let narrow = &mut buffer[..block.len()];
        convert(level, w, narrow);
        // SAFETY: as above.
        unsafe { segment.scatter(COPY, block, narrow) };
    }
}

/// Writes a low-precision copy anew: the first operand is the variable, the second the copy, of this type.
///
/// # Safety
///
/// The copy must not overlap the variable, and nothing else may use its memory.
pub unsafe fn refresh(context: Context, segment: &Segment<2>, copy: Scalar) -> Result<(), OutOfMemory> {
    /// # Safety
    ///
    /// As [`refresh`], of these types.
    unsafe fn block<R: Float + Convert<L>, L: Float>(
        level: Level,
        segment: &Segment<2>,
        block: Range<usize>,
    ) {
        let (mut wide, mut narrow) = ([R::ZERO; BLOCK], [L::ZERO; BLOCK]);
        let (wide, narrow) = (&mut wide[..block.len()], &mut narrow[..block.len()]);
        segment.gather(0, block.clone(), wide);
        convert(level, wide, narrow);
        // SAFETY: the caller's contract.
        unsafe { segment.scatter(1, block, narrow) };
    }
    let plan = Plan::new(std::slice::from_ref(segment))?;
    let workspace = Workspace::with_scratch(context, plan.bytes, 0)?;
    exec::for_each(&workspace, &plan, Direction::Forwards, |_, range, _| {
        for start in range.clone().step_by(BLOCK) {
            let at = start..range.end.min(start + BLOCK);
            // SAFETY: blocks are disjoint; the types are those of the operands.
            unsafe {
                match (segment.scalar, copy) {
                    (Scalar::F32, Scalar::F16) => block::<f32, f16>(context.level, segment, at),
                    (Scalar::F32, Scalar::BF16) => block::<f32, bf16>(context.level, segment, at),
                    (Scalar::F64, Scalar::F16) => block::<f64, f16>(context.level, segment, at),
                    (Scalar::F64, Scalar::BF16) => block::<f64, bf16>(context.level, segment, at),
                    (Scalar::F64, Scalar::F32) => block::<f64, f32>(context.level, segment, at),
                    _ => unreachable!("copies are narrower floats: checked at the edge"),
                }
            }
        }
    });
    Ok(())
}

/// Puts one value in each segment.
///
/// # Safety
///
/// The segments must be dense, of float32 or float64, and nothing else may use their memory.
pub unsafe fn fill(context: Context, segments: &[Segment<1>], values: &[f64]) -> Result<(), OutOfMemory> {
    let plan = Plan::new(segments)?;
    let workspace = Workspace::with_scratch(context, plan.bytes, 0)?;
    exec::for_each(&workspace, &plan, Direction::Forwards, |index, range, _| {
        let segment = &segments[index];
        // SAFETY: the caller's contract; chunks are disjoint.
        unsafe {
            match segment.scalar {
                Scalar::F32 => segment.run_mut::<f32>(0, range).fill(values[index] as f32),
                Scalar::F64 => segment.run_mut::<f64>(0, range).fill(values[index]),
                _ => unreachable!("slots are float32 or float64"),
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::engine::segment::Strided;
    use crate::kernels::lanes::Lanes;
    use crate::kernels::oracle::samples;
    use crate::scalar::DType;

    const F32: DType = DType { scalar: Scalar::F32, complex: false };

    /// Hyper-parameters that are in the range of each.
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

    /// The rule on one number after the other, without a register or a driver.
    struct Plainly<'a> {
        g: &'a [f32],
        w: &'a mut [f32],
        slots: &'a mut [Vec<f32>],
    }

    impl RuleVisitor for Plainly<'_> {
        type Result = ();

        fn visit<A: Rule<f32, N>, B: Rule<f64, N>, const N: usize>(self, narrow: A, _: B) {
            for i in 0..self.w.len() {
                let (w, slots) =
                    narrow.update(self.g[i], self.w[i], std::array::from_fn(|k| self.slots[k][i]));
                self.w[i] = w.canonical();
                (0..N).for_each(|k| self.slots[k][i] = slots[k].canonical());
            }
        }
    }

    fn gradient(n: usize) -> Vec<f32> {
        samples(n).into_iter().map(|v| (v as f32).clamp(-9.0, 9.0)).collect()
    }

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

        fn base(&mut self, with_copy: bool) -> [*mut u8; OPERANDS] {
            let mut base = [std::ptr::null_mut(); OPERANDS];
            base[VARIABLE] = self.w.as_mut_ptr().cast();
            base[GRADIENT] = self.g.as_mut_ptr().cast();
            for (k, slot) in self.slots.iter_mut().enumerate() {
                base[SLOTS + k] = slot.as_mut_ptr().cast();
            }
            if with_copy {
                base[COPY] = self.copy.as_mut_ptr().cast();
            }
            base
        }

        fn bits(&self) -> Vec<u32> {
            self.w.iter().chain(self.slots.iter().flatten()).map(|v| v.to_bits()).collect()
        }
    }

    fn take(kind: RuleKind, item: ParameterUpdate, level: Level, threads: usize) {
        let items = [item];
        let plan = Plan::cut(items.iter().map(|item| (item.segment.len, 16)), 1000).unwrap();
        let workspace = Workspace::with_scratch(Context { level, threads }, plan.bytes, 0).unwrap();
        // SAFETY: the operands are vectors of their own, as long as the segment.
        unsafe { step(&workspace, kind, &hyper(kind), &items, &plan) };
    }

    const AS_IT_IS: GradientTransform = GradientTransform { factor: Factor::ONE, clamp: None };

    #[test]
    fn every_rule_has_the_same_bits_on_every_level_and_number_of_threads() {
        for kind in RuleKind::ALL {
            for n in [1, 15, 16, 17, 1023, 5000] {
                let mut want = Case::new(n, kind.slots());
                kind.with(&hyper(*kind), Plainly { g: &want.g, w: &mut want.w, slots: &mut want.slots });
                for level in isa::all() {
                    for (threads, with_copy) in [(1, false), (3, false), (2, true)] {
                        let mut case = Case::new(n, kind.slots());
                        let item = ParameterUpdate {
                            // SAFETY: vectors of this length.
                            segment: unsafe { Segment::dense(F32, n, case.base(with_copy)) },
                            gradient: Scalar::F32,
                            copy: with_copy.then_some(Scalar::BF16),
                            rows: None,
                            incoming: AS_IT_IS,
                        };
                        take(*kind, item, level, threads);
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
    fn walked_memory_is_updated_as_a_run_is_and_what_lies_between_stays() {
        for kind in RuleKind::ALL {
            let n = 3000;
            let mut want = Case::new(n, kind.slots());
            kind.with(&hyper(*kind), Plainly { g: &want.g, w: &mut want.w, slots: &mut want.slots });
            let mut case = Case::new(n, kind.slots());
            let mut spread: Vec<f32> = case.w.iter().flat_map(|v| [*v, 77.0]).collect();
            let mut base = case.base(true);
            base[VARIABLE] = spread.as_mut_ptr().cast();
            let (four, two, eight) = ([4], [2], [8]);
            let operands = std::array::from_fn(|k| {
                let strides: &[isize] = match k {
                    VARIABLE => &eight,
                    COPY => &two,
                    _ => &four,
                };
                (!base[k].is_null()).then_some(Strided { pointer: base[k], strides })
            });
            let mut sizes = [4; OPERANDS];
            sizes[COPY] = 2;
            // SAFETY: vectors of this length, the variable's of twice that.
            let segment = unsafe { Segment::mixed(F32, &[n], operands, sizes) }.unwrap();
            let item = ParameterUpdate {
                segment,
                gradient: Scalar::F32,
                copy: Some(Scalar::BF16),
                rows: None,
                incoming: AS_IT_IS,
            };
            take(*kind, item, isa::detected(), 3);
            case.w = spread.iter().step_by(2).copied().collect();
            assert!(case.bits() == want.bits(), "{kind:?}");
            assert!(spread.iter().skip(1).step_by(2).all(|v| *v == 77.0));
        }
    }

    #[test]
    fn rows_are_a_gradient_that_is_zero_elsewhere() {
        let (rows, len) = (700, 3);
        let indices: Box<[usize]> = (0..rows).filter(|row| row % 5 == 2 || *row > 690).collect();
        for kind in [RuleKind::Adam, RuleKind::AdamW] {
            let mut want = Case::new(rows * len, 2);
            for (i, g) in want.g.iter_mut().enumerate() {
                *g = if indices.contains(&(i / len)) { *g } else { 0.0 };
            }
            let mut case = Case::new(rows * len, 2);
            case.g = indices.iter().flat_map(|row| want.g[row * len..(row + 1) * len].to_vec()).collect();
            kind.with(&hyper(kind), Plainly { g: &want.g, w: &mut want.w, slots: &mut want.slots });
            let item = ParameterUpdate {
                // SAFETY: vectors of this length; the gradient's rows are as many as the indices.
                segment: unsafe { Segment::dense(F32, rows * len, case.base(false)) },
                gradient: Scalar::F32,
                copy: None,
                rows: Some(Rows { indices: indices.clone(), len }),
                incoming: AS_IT_IS,
            };
            take(kind, item, isa::detected(), 2);
            assert!(case.bits() == want.bits(), "{kind:?}");
        }
    }

    #[test]
    fn gradients_are_scaled_then_clamped_and_may_be_of_any_float_type() {
        fn check<G: Float>(scalar: Scalar, make: impl Fn(f32) -> G) {
            let n = 2100;
            for factor in [Factor::ONE, Factor::new(0.3, 1.0, 0), Factor::new(1e-42, 1.0, 0)] {
                for clamp in [None, Some(0.25)] {
                    let mut case = Case::new(n, 0);
                    let mut g: Vec<G> = case.g.iter().map(|v| make(*v)).collect();
                    let mut base = case.base(false);
                    base[GRADIENT] = g.as_mut_ptr().cast();
                    let item = ParameterUpdate {
                        // SAFETY: vectors of this length.
                        segment: unsafe { Segment::dense(F32, n, base) },
                        gradient: scalar,
                        copy: None,
                        rows: None,
                        incoming: GradientTransform { factor, clamp },
                    };
                    let before = case.w.clone();
                    take(RuleKind::GradientDescent, item, isa::detected(), 2);
                    let wide = factor.is_wide() || scalar == Scalar::F64;
                    let scale = if wide { factor.wide * factor.lift } else { f64::from(factor.narrow) };
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
}
