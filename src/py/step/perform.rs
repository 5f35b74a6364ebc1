//! The part of a step that follows after all arrays have been read and checked: measures the gradients, then updates the
//! variables.

use super::pairs::{Gradient, Pair, with_gradients};
use super::registry::{Registry, initialise_slots};
use super::updates::{SeedOfStep, Updates, describe_updates};
use crate::allocation::{OutOfMemory, collect, try_collect, with_capacity};
use crate::engine::plan::{CHUNK, Plan};
use crate::engine::segment::Segment;
use crate::engine::workspace::{Context, Workspace};
use crate::operations::gradient_clipping::Verdict;
use crate::operations::magnitude::{Magnitude, Order};
use crate::operations::norms::measure;
use crate::operations::rules::RuleKind;
use crate::operations::update::{OPERANDS, ParameterUpdate, StepParameters, step};
use crate::py::arrays::view::View;
use crate::py::call::{before_writing, detached};
use crate::py::raise::check_memory;
use crate::py::tensors::opened::Lent;
use crate::scalar::Scalar;
use pyo3::prelude::*;
use std::sync::Arc;

/// A step whose arrays have been read and checked.
pub struct CheckedStep<'a, 'py> {
    /// The rules that update the pairs: at least one, each for a number of successive pairs.
    pub rules: &'a [RuleOfPairs<'a>],
    pub pairs: &'a [Pair<'py>],
    /// The registry of the optimizer, and the initial values of its slots; None if the caller owns the slots.
    pub registry: Option<(&'a Registry, &'a [f64])>,
    /// How slots of the optimizer are rounded stochastically; None if they are not.
    pub rounding: Option<SeedOfStep>,
    /// Which gradients are measured.
    pub measuring: Measuring,
    /// The memory that was lent to the step.
    pub lent: &'a Lent,
    /// Whether foreign code may have run since the memory was lent.
    pub has_run_foreign_code: bool,
}

/// A rule, and the pairs that it updates.
pub struct RuleOfPairs<'a> {
    pub kind: RuleKind,
    /// The sets of hyper-parameters that the pairs refer to, one after the other.
    pub hyper: &'a [f64],
    /// The number of pairs. If there are several rules, each pair has a dense gradient, and so one update.
    pub count: usize,
}

/// Which gradients of a step are measured.
pub enum Measuring {
    /// None: the decision about the step does not depend on them.
    Nothing,
    /// All.
    All,
    /// Those that have None here: the magnitudes of others are known, or do not matter.
    Unknown(Vec<Option<Magnitude>>),
}

/// How a step ended.
pub struct Performed<A> {
    pub outcome: Outcome,
    /// What the decision about the step was returned with.
    pub answer: A,
    /// The magnitude of each gradient; empty if they were not measured.
    pub magnitudes: Vec<Magnitude>,
    /// The registry after the step, if the step changed it.
    pub registry: Option<Arc<Registry>>,
}

/// How a step ended.
#[derive(Clone, Copy)]
pub enum Outcome {
    /// The variables were updated. `scale` is the factor that clipped the gradients, if they are clipped by norm.
    Taken { scale: Option<f64> },
    /// Nothing was updated, and the step is counted as skipped.
    Skipped,
    /// Nothing was updated, and the step raises because of NaN or infinity.
    Refused,
}

impl<'py> CheckedStep<'_, 'py> {
    /// Performs the step. `decide` is called with the magnitudes of the gradients, and with their number.
    pub fn perform<A: Send>(
        self,
        py: Python<'py>,
        decide: impl FnOnce(&[Magnitude], usize) -> Result<(Verdict, A), OutOfMemory> + Send,
    ) -> PyResult<Performed<A>> {
        let gradients = with_gradients(self.pairs)?;
        let measured = self.measuring.segments(&gradients)?;
        let are_clamped =
            gradients.iter().map(|(_, g)| g.rows.as_deref().is_some_and(|rows| rows.is_clamped));
        let are_clamped: Vec<bool> = collect(are_clamped)?;
        let plan = Plan::new(&measured)?;
        let initial = self.registry.map_or(&[][..], |(_, initial)| initial);
        let kind = self.rules.first().map_or(RuleKind::ALL[0], |rule| rule.kind);
        let Updates { mut updates, registry, new_slots, owners } = describe_updates(
            py,
            kind,
            self.registry.map(|(registry, _)| registry),
            self.rounding,
            self.pairs,
        )?;
        let registry = registry.map(Arc::new);
        let context = Context::current();
        let workspace = Workspace::new(context, &measured, &plan)?;
        if self.has_run_foreign_code || !new_slots.is_empty() {
            // Finding the owner of a new variable's memory may run foreign code too.
            self.lent.check(py)?;
        }
        check_memory(py)?;
        let (lent, rules, measuring) = (self.lent, self.rules, self.measuring);
        let performed = detached(py, || {
            let magnitudes = measuring.complete(measure(&workspace, &measured, &plan, Order::Two)?)?;
            let (verdict, answer) = decide(&magnitudes, are_clamped.len())?;
            let (mut transforms, scale) = match verdict {
                Verdict::Take { transforms, scale } => (transforms, scale),
                Verdict::Skip => return Ok((Outcome::Skipped, answer, magnitudes)),
                Verdict::Raise => return Ok((Outcome::Refused, answer, magnitudes)),
            };
            for (transform, is_clamped) in transforms.iter_mut().zip(&are_clamped) {
                if *is_clamped {
                    transform.clamp = None;
                }
            }
            initialise_slots(context, &new_slots, initial)?;
            let passes = Pass::of_rules(context, rules, &mut updates)?;
            before_writing(plan.bytes(), lent)?;
            for Pass { rule, updates, plan, workspace } in passes {
                let parameters =
                    StepParameters { hyper: rule.hyper, transforms: &transforms, measured: None };
                step(&workspace, rule.kind, parameters, updates, &plan)?;
            }
            Ok((Outcome::Taken { scale }, answer, magnitudes))
        });
        let (outcome, answer, magnitudes) = performed?;
        // If the step was taken, nothing may fail from here on.
        drop(owners);
        Ok(Performed { outcome, answer, magnitudes, registry })
    }
}

/// The pass of one rule over its updates, with everything allocated.
struct Pass<'a, 'u> {
    rule: &'a RuleOfPairs<'a>,
    updates: &'u mut [ParameterUpdate],
    plan: Plan,
    workspace: Workspace,
}

impl<'a, 'u> Pass<'a, 'u> {
    /// Returns the passes of rules over their updates.
    fn of_rules(
        context: Context,
        rules: &'a [RuleOfPairs<'a>],
        updates: &'u mut [ParameterUpdate],
    ) -> Result<Vec<Self>, OutOfMemory> {
        let mut passes = with_capacity(rules.len())?;
        let mut rest = updates;
        for (index, rule) in rules.iter().enumerate() {
            let is_last = index + 1 == rules.len();
            let count = if is_last { rest.len() } else { rule.count.min(rest.len()) };
            let (updates, others) = rest.split_at_mut(count);
            let sizes = updates.iter().map(|update| (update.segment.len(), bytes_moved(update)));
            let plan = Plan::cut(sizes, CHUNK)?;
            let workspace = Workspace::with_scratch(context, plan.bytes(), 0)?;
            passes.push(Self { rule, updates, plan, workspace });
            rest = others;
        }
        Ok(passes)
    }
}

impl Measuring {
    /// Returns the segments of the gradients to measure.
    fn segments(&self, gradients: &[(usize, &Gradient<'_>)]) -> Result<Vec<Segment<1>>, OutOfMemory> {
        let segment = |gradient: &Gradient| segment_to_read(gradient.measured());
        match self {
            Self::Nothing => Ok(Vec::new()),
            Self::All => {
                try_collect(gradients.len(), gradients.iter().map(|(_, gradient)| segment(gradient)))
            }
            Self::Unknown(known) => {
                let unknown = gradients.iter().zip(known).filter(|(_, known)| known.is_none());
                try_collect(gradients.len(), unknown.map(|((_, gradient), _)| segment(gradient)))
            }
        }
    }

    /// Returns the magnitudes of all gradients.
    fn complete(self, measured: Vec<Magnitude>) -> Result<Vec<Magnitude>, OutOfMemory> {
        let Self::Unknown(known) = self else { return Ok(measured) };
        let mut magnitudes = with_capacity(known.len())?;
        let mut measured = measured.into_iter();
        magnitudes.extend(
            known.into_iter().map(|known| known.or_else(|| measured.next()).unwrap_or(Magnitude::ZERO)),
        );
        Ok(magnitudes)
    }
}

/// Returns the number of bytes that an update moves for each real of its variable, to divide updates into chunks.
pub fn bytes_moved(update: &ParameterUpdate) -> usize {
    let size = |operand| update.segment.scalar_of(operand).map_or(0, Scalar::size);
    let rows = update.parameters.rows.as_ref().map_or(0, |rows| rows.values.scalar().size());
    (0..OPERANDS).map(size).sum::<usize>() + rows
}

/// Returns a segment to read a gradient.
pub fn segment_to_read(view: &View) -> Result<Segment<1>, OutOfMemory> {
    // SAFETY: the view keeps its array alive, and nothing is written.
    unsafe {
        if view.is_run() {
            Ok(Segment::dense(false, view.size, [Some(view.run())]))
        } else {
            Segment::new(false, view.shape(), [Some(view.operand())])
        }
    }
}
