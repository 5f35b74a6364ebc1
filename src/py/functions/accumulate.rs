//! Accumulation of gradients: sums of micro-batches, with their norm from the same pass.

use crate::allocation::{collect, reserve, try_collect, with_capacity};
use crate::engine::plan::{CHUNK, Plan};
use crate::engine::segment::Segment;
use crate::engine::workspace::{Context, Workspace};
use crate::error::Error;
use crate::kernels::scale::Factor;
use crate::operations::magnitude::{Magnitude, Order, combine};
use crate::operations::norms::{ChunkSquares, measure};
use crate::operations::rules::RuleKind;
use crate::operations::update::{GradientTransform, ParameterUpdate, StepParameters, step};
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::view::View;
use crate::py::call::{before_writing, detached, entry};
use crate::py::norm_scalar::NormScalar;
use crate::py::raise::check_memory;
use crate::py::step::checks::check_variable;
use crate::py::step::overlap::check_overlap;
use crate::py::step::pairs::Pair;
use crate::py::step::perform::{bytes_moved, segment_to_read};
use crate::py::step::updates::{Updates, describe_updates};
use crate::py::tensors::door::{Access, Prepared, open_both};
use crate::py::trees::TreeArgument;
use crate::scalar::Scalar;
use pyo3::prelude::*;

/// Adds gradients, multiplied by a finite number, to the tensors of a container of the same structure. Returns the norm of
/// the sums, a NumPy scalar. A gradient may be None.
#[pyfunction]
#[pyo3(signature = (sums, gradients, scale, /))]
pub fn accumulate<'py>(
    py: Python<'py>,
    sums: &Bound<'py, PyAny>,
    gradients: &Bound<'py, PyAny>,
    scale: f64,
) -> PyResult<Bound<'py, PyAny>> {
    entry(py, || {
        let (sum_tree, gradient_tree) =
            (TreeArgument::container(sums, "acc")?, TreeArgument::container(gradients, "grads")?);
        gradient_tree.check_same_structure(py, &sum_tree)?;
        let (sum_names, gradient_names) = (ArgumentName::Tree(&sum_tree), ArgumentName::Tree(&gradient_tree));
        let reads = Access { needs_signs: true, ..Access::default() };
        let (mut read, mut sums) = open_both(
            Prepared::new(gradient_tree.to_open(py), AcceptedDTypes::Reals, reads, gradient_names)?,
            Prepared::new(
                sum_tree.to_open(py),
                AcceptedDTypes::Reals,
                Access { writes: true, ..reads },
                sum_names,
            )?,
        )?;
        let mut lent = sums.lent()?;
        lent.append(read.lent()?)?;
        // Sums without a gradient are measured only.
        let (mut pairs, mut unchanged) = (with_capacity(sums.views.len())?, Vec::new());
        for index in 0..sums.views.len() {
            let (sum, gradient) = (sums.views[index].take(), read.views[index].take());
            match (sum, gradient) {
                (None, None) => {}
                (Some(sum), Some(gradient)) => {
                    check_variable(&sum, || sum_names.entry(index))?;
                    check_pair(&sum, &gradient, (sum_names, gradient_names), index)?;
                    pairs.push(Pair::new(sum, gradient));
                }
                (Some(sum), None) => {
                    reserve(&mut unchanged, 1)?;
                    unchanged.push(sum);
                }
                (None, Some(_)) => {
                    let (sum, gradient) = (sum_names.entry(index), gradient_names.entry(index));
                    return Err(Error::Value(format!("{sum} is None where {gradient} is an array")).into());
                }
            }
        }
        let is_f64 = |view: &View| view.dtype.scalar == Scalar::F64;
        let has_float64 = unchanged.iter().any(is_f64) || pairs.iter().any(|pair| is_f64(&pair.variable));
        check_overlap(py, &mut pairs, sum_names, None, None)?;
        let scalar = NormScalar::new(py, has_float64)?;
        let kind = RuleKind::GradientDescent;
        let Updates { mut updates, .. } = describe_updates(py, kind, None, None, &pairs)?;
        let updated = pairs.iter().map(|pair| segment_to_read(&pair.variable));
        let updated: Vec<Segment<1>> = try_collect(pairs.len(), updated)?;
        let unchanged: Vec<Segment<1>> = try_collect(unchanged.len(), unchanged.iter().map(segment_to_read))?;
        let passes = Passes::new(&updates, &updated, &unchanged)?;
        check_memory(py)?;
        let factor = Factor::new(scale.abs(), 1.0, 0);
        // w ← w − lr·g, with the learning rate −1 or 1.
        let learning_rate = if scale < 0.0 { 1.0 } else { -1.0 };
        let transforms: Vec<_> = collect(pairs.iter().map(|_| GradientTransform { factor, clamp: None }))?;
        let total = detached(py, || {
            before_writing(passes.update_plan.bytes(), &lent)?;
            let parameters =
                StepParameters { hyper: &[learning_rate], transforms: &transforms, measured: None };
            Ok(passes.run(parameters, &mut updates, &updated, &unchanged)?)
        })?;
        sums.count_change()?;
        Ok(scalar.finish(total.norm(Order::Two)))
    })
}

/// Checks a sum and what is added to it.
fn check_pair(
    sum: &View,
    gradient: &View,
    (sum_names, gradient_names): (ArgumentName<'_>, ArgumentName<'_>),
    index: usize,
) -> Result<(), Error> {
    let describe = || {
        let (sum_name, gradient_name) = (sum_names.entry(index), gradient_names.entry(index));
        format!("{sum_name} is {} where {gradient_name} is {}", sum.describe(), gradient.describe())
    };
    if gradient.shape() != sum.shape() {
        return Err(Error::Value(format!("{}: the shapes must be the same", describe())));
    }
    if gradient.dtype.size() > sum.dtype.size() {
        return Err(Error::Type(format!(
            "{}: a sum takes gradients of its own or a narrower type",
            describe()
        )));
    }
    Ok(())
}

/// The passes of an accumulation, with everything allocated.
struct Passes {
    context: Context,
    update_plan: Plan,
    update: Workspace,
    /// The plan of the sums that are updated, whose chunks are those of a norm.
    norm_plan: Plan,
    norm: Workspace,
    unchanged_plan: Plan,
    unchanged: Workspace,
    /// Whether sums are measured while they are in the cache: they and what is added are contiguous.
    is_one_pass: bool,
}

impl Passes {
    fn new(
        updates: &[ParameterUpdate],
        updated: &[Segment<1>],
        unchanged: &[Segment<1>],
    ) -> Result<Self, Error> {
        let context = Context::current();
        let update_plan =
            Plan::cut(updates.iter().map(|update| (update.segment.len(), bytes_moved(update))), CHUNK)?;
        let norm_plan = Plan::new(updated)?;
        let unchanged_plan = Plan::new(unchanged)?;
        let is_direct = |update: &ParameterUpdate| {
            update.segment.is_dense() && matches!(update.segment.scalar(), Scalar::F32 | Scalar::F64)
        };
        Ok(Self {
            context,
            update: Workspace::with_scratch(context, update_plan.bytes(), 0)?,
            norm: Workspace::new(context, updated, &norm_plan)?,
            unchanged: Workspace::new(context, unchanged, &unchanged_plan)?,
            is_one_pass: updates.iter().all(is_direct),
            update_plan,
            norm_plan,
            unchanged_plan,
        })
    }

    /// Updates the sums, and returns the magnitude of all of them.
    fn run(
        &self,
        parameters: StepParameters,
        updates: &mut [ParameterUpdate],
        updated: &[Segment<1>],
        unchanged: &[Segment<1>],
    ) -> Result<Magnitude, Error> {
        let _ = self.context;
        let kind = RuleKind::GradientDescent;
        let mut magnitudes = measure(&self.unchanged, unchanged, &self.unchanged_plan, Order::Two)?;
        reserve(&mut magnitudes, updated.len())?;
        let measured = if self.is_one_pass {
            let squares = ChunkSquares::new(&self.norm_plan)?;
            let parameters = StepParameters { measured: Some(&squares), ..parameters };
            step(&self.update, kind, parameters, updates, &self.update_plan)?;
            squares.magnitudes(&self.norm, updated)?
        } else {
            step(&self.update, kind, parameters, updates, &self.update_plan)?;
            measure(&self.norm, updated, &self.norm_plan, Order::Two)?
        };
        magnitudes.extend(measured);
        Ok(combine(&magnitudes, Order::Two))
    }
}
