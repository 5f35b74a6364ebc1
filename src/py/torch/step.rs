//! A step of an optimizer of `fastclip.torch`: over all parameters that have a gradient, in one call.

use super::plain::{PlainTensors, TorchBinding};
use crate::allocation::{collect, reserve, with_capacity};
use crate::error::Error;
use crate::kernels::stochastic::Stream;
use crate::operations::magnitude::{Magnitude, Order};
use crate::operations::norm_groups::{GroupNorms, NormGroups};
use crate::operations::rules::RuleKind;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::view::View;
use crate::py::call::entry;
use crate::py::objects::{self, extract, to_f64};
use crate::py::step::checks::check_copy;
use crate::py::step::counters::{count_up, read_number};
use crate::py::step::gradient_clipping::policy_of;
use crate::py::step::hyper_parameters::HyperParameters;
use crate::py::step::overlap::check_overlap;
use crate::py::step::pairs::{Pair, check_slot, check_step_count, copy_name};
use crate::py::step::perform::{CheckedStep, Measuring, Outcome, Performed, RuleOfPairs};
use crate::py::step::slots::rule_kind;
use crate::py::tensors::opened::Lent;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// The name of the parameters, for messages.
const PARAMETERS: ArgumentName<'static> = ArgumentName::List("parameters");

/// The tensors of a step: lists with an entry for each parameter.
#[derive(FromPyObject)]
pub struct StepTensors<'py> {
    #[pyo3(item(0))]
    parameters: Bound<'py, PyAny>,
    #[pyo3(item(1))]
    gradients: Bound<'py, PyAny>,
    /// A list for each slot of the rule.
    #[pyo3(item(2))]
    slots: Bound<'py, PyAny>,
    /// The step counts, tensors of one number; None if the rule has none.
    #[pyo3(item(3))]
    step_counts: Option<Bound<'py, PyAny>>,
    /// The low-precision copies, None for a parameter that has none; None if there are none.
    #[pyo3(item(4))]
    copies: Option<Bound<'py, PyAny>>,
}

/// The parameters of a step that one rule updates.
#[derive(FromPyObject)]
pub struct StepPart<'py> {
    /// The name of the rule.
    #[pyo3(item(0))]
    rule: Bound<'py, PyAny>,
    #[pyo3(item(1))]
    tensors: StepTensors<'py>,
    /// The sets of hyper-parameters.
    #[pyo3(item(2))]
    sets: Bound<'py, PyAny>,
    /// Tuples of a number of successive parameters, their set and their norm group.
    #[pyo3(item(3))]
    runs: Bound<'py, PyAny>,
    /// The seed of stochastic rounding, and the numbers of the parameters, on which the random bits depend; None to round
    /// to the nearest.
    #[pyo3(item(4))]
    rounding: Option<(u64, Bound<'py, PyAny>)>,
    /// For each gradient, its magnitude as a tuple of a mantissa and an exponent, or None to measure it; None to measure
    /// all.
    #[pyo3(item(5))]
    known: Option<Bound<'py, PyAny>>,
}

/// The conditions of a step.
#[derive(FromPyObject)]
pub struct StepConditions<'py> {
    /// The bound of each norm group; None for a group that is not clipped.
    #[pyo3(item(0))]
    bounds: Bound<'py, PyAny>,
    #[pyo3(item(1))]
    on_nonfinite: Bound<'py, PyAny>,
    #[pyo3(item(2))]
    skip_above: Option<f64>,
    /// The number that gradients are divided by.
    #[pyo3(item(3))]
    loss_scale: f64,
}

/// Takes a step. `parts` is a list of tuples, see [`StepPart`], of which no two have a parameter in common; `conditions` is
/// a tuple, see [`StepConditions`].
///
/// Returns how the step ended ("taken", "skipped" or "refused"), the norm of each norm group or None, the factor of each
/// norm group, and the norm of each gradient if the step was refused because of NaN or infinity. Returns None, and writes
/// nothing, if a tensor is not plain.
#[pyfunction]
#[pyo3(signature = (binding, parts, conditions, /))]
pub fn torch_step<'py>(
    py: Python<'py>,
    binding: &Bound<'py, TorchBinding>,
    parts: &Bound<'py, PyAny>,
    conditions: StepConditions<'py>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    entry(py, || {
        let parts = extract(parts, |part| part.extract::<StepPart<'_>>())?;
        let mut groups = conditions.read()?;
        let mut prepared = with_capacity(parts.len())?;
        for part in parts {
            // All foreign code comes before tensors are read.
            let Some(part) = part.prepare(binding.get(), &mut groups)? else { return Ok(None) };
            prepared.push(part);
        }
        let mut step = ReadStep::default();
        let mut rules = with_capacity(prepared.len())?;
        for part in prepared {
            let (kind, first) = (part.kind, step.pairs.len());
            let Some(hyper) = part.read(binding.get(), &mut step)? else { return Ok(None) };
            rules.push((kind, hyper, step.pairs.len() - first));
        }
        let ReadStep { mut pairs, written, lent, known } = step;
        check_overlap(py, &mut pairs, PARAMETERS, None, None)?;
        let known_of =
            |index: usize| if groups.is_measured(index) { known[index] } else { Some(Magnitude::ZERO) };
        let known: Vec<_> = collect((0..pairs.len()).map(known_of))?;
        let rules: Vec<_> = collect(rules.iter().map(|(kind, hyper, count)| RuleOfPairs {
            kind: *kind,
            hyper: hyper.used(),
            count: *count,
        }))?;
        let step = CheckedStep {
            rules: &rules,
            pairs: &pairs,
            registry: None,
            rounding: None,
            measuring: Measuring::Unknown(known),
            lent: &lent,
            has_run_foreign_code: false,
        };
        let performed = step.perform(py, |magnitudes, _| groups.decide(magnitudes))?;
        let Performed { outcome, answer: GroupNorms { norms, scales }, magnitudes, .. } = performed;
        if let Outcome::Taken { .. } = outcome {
            pairs.iter().filter_map(Pair::step_count).for_each(count_up);
            written.iter().try_for_each(|tensors| binding.get().count_change(tensors))?;
        }
        let name = objects::string(
            py,
            match outcome {
                Outcome::Taken { .. } => "taken",
                Outcome::Skipped => "skipped",
                Outcome::Refused => "refused",
            },
        )?;
        let norm =
            |norm: &Option<f64>| norm.map_or(Ok(py.None().into_bound(py)), |norm| objects::float(py, norm));
        let norms = objects::list(py, norms.len(), norms.iter().map(norm))?;
        let scales = objects::list(py, scales.len(), scales.iter().map(|scale| objects::float(py, *scale)))?;
        let each = if let Outcome::Refused = outcome {
            let norm = |magnitude: &Magnitude| magnitude.norm_divided(Order::Two, groups.loss_scale);
            let norms = magnitudes.iter().map(|magnitude| objects::float(py, norm(magnitude)));
            objects::list(py, magnitudes.len(), norms)?.into_any()
        } else {
            py.None().into_bound(py)
        };
        objects::tuple(py, [name, norms.into_any(), scales.into_any(), each]).map(Some)
    })
}

/// Converts a magnitude: None, or a tuple of a mantissa and an exponent of two.
fn to_magnitude(item: &Bound<'_, PyAny>) -> PyResult<Option<Magnitude>> {
    if item.is_none() {
        return Ok(None);
    }
    let (value, exponent) = item.extract()?;
    Ok(Some(Magnitude { value, exponent }))
}

impl StepConditions<'_> {
    /// Converts the conditions. The groups have no gradients yet.
    fn read(self) -> PyResult<NormGroups> {
        let policy = policy_of(&self.on_nonfinite.extract::<String>()?)?;
        let bounds = extract(&self.bounds, |bound| bound.extract::<Option<f64>>())?;
        let (skip_above, loss_scale) = (self.skip_above, self.loss_scale);
        Ok(NormGroups { bounds, group_of: Vec::new(), policy, skip_above, loss_scale })
    }
}

/// The parameters of a step that one rule updates, after everything that may run foreign code.
struct PreparedPart<'py> {
    kind: RuleKind,
    hyper: HyperParameters,
    /// The set of hyper-parameters of each parameter.
    set_of: Vec<usize>,
    /// The seed and the numbers of the parameters, if arrays of bfloat16 are rounded stochastically.
    rounding: Option<(u64, Vec<u64>)>,
    /// The magnitude of each gradient that is known.
    known: Option<Vec<Option<Magnitude>>>,
    parameters: Bound<'py, PyList>,
    gradients: Bound<'py, PyList>,
    slots: Vec<Bound<'py, PyList>>,
    step_counts: Option<Bound<'py, PyList>>,
    copies: Option<Bound<'py, PyList>>,
}

impl<'py> StepPart<'py> {
    /// Converts the numbers, and appends the norm groups of the gradients to `groups`. Returns None if a tensor is not
    /// plain.
    fn prepare(self, binding: &TorchBinding, groups: &mut NormGroups) -> PyResult<Option<PreparedPart<'py>>> {
        let kind = rule_kind(&self.rule.extract::<String>()?)?;
        let sets = extract(&self.sets, |set| extract(set, to_f64))?;
        let to_numbers =
            |(seed, numbers)| PyResult::Ok((seed, extract(&numbers, |number| number.extract())?));
        let rounding: Option<(u64, Vec<u64>)> = self.rounding.map(to_numbers).transpose()?;
        let known = self.known.map(|known| extract(&known, to_magnitude)).transpose()?;
        let tensors = self.tensors;
        let list = |items: &Bound<'py, PyAny>| objects::copy_to_list(items);
        let (parameters, gradients) = (list(&tensors.parameters)?, list(&tensors.gradients)?);
        let slots: Vec<Bound<'py, PyList>> = extract(&tensors.slots, list)?;
        let step_counts = tensors.step_counts.as_ref().map(list).transpose()?;
        let copies = tensors.copies.as_ref().map(list).transpose()?;
        let count = parameters.len();
        let mut set_of = with_capacity(count)?;
        for (length, set, group) in extract(&self.runs, |run| run.extract::<(usize, usize, usize)>())? {
            if group >= groups.bounds.len() {
                return Err(Error::Value(format!("fastclip._core: there is no norm group {group}")).into());
            }
            reserve(&mut set_of, length)?;
            reserve(&mut groups.group_of, length)?;
            set_of.extend(std::iter::repeat_n(set, length));
            groups.group_of.extend(std::iter::repeat_n(group, length));
        }
        let lists = [&gradients].into_iter().chain(&slots).chain(&step_counts).chain(&copies);
        if slots.len() != kind.slots()
            || lists.map(PyListMethods::len).any(|length| length != count)
            || set_of.len() != count
            || rounding.as_ref().is_some_and(|(_, numbers)| numbers.len() != count)
            || known.as_ref().is_some_and(|known| known.len() != count)
        {
            return Err(Error::Value("fastclip._core: the lists of a step differ in length".into()).into());
        }
        for tensors in [&parameters, &gradients].into_iter().chain(&slots) {
            if binding.any_is_negative(tensors)? {
                return Ok(None);
            }
        }
        let hyper = HyperParameters::new(kind, &sets)?;
        Ok(Some(PreparedPart {
            kind,
            hyper,
            set_of,
            rounding,
            known,
            parameters,
            gradients,
            slots,
            step_counts,
            copies,
        }))
    }
}

/// The tensors of a step, read and checked.
#[derive(Default)]
struct ReadStep<'py> {
    pairs: Vec<Pair<'py>>,
    /// The tensors whose change is to be counted: parameters and low-precision copies.
    written: Vec<PlainTensors<'py>>,
    lent: Lent,
    /// The magnitude of each gradient, if it is known.
    known: Vec<Option<Magnitude>>,
}

impl<'py> PreparedPart<'py> {
    /// Reads and checks the tensors, and appends them to those of the step. Returns the hyper-parameters that they use, or
    /// None if a tensor is not plain. Runs no foreign code.
    fn read(mut self, binding: &TorchBinding, step: &mut ReadStep<'py>) -> PyResult<Option<HyperParameters>> {
        let read = |list, accepted| binding.read(list, accepted);
        let Some(mut parameters) = read(self.parameters, AcceptedDTypes::Reals)? else { return Ok(None) };
        let Some(mut gradients) = read(self.gradients, AcceptedDTypes::Reals)? else { return Ok(None) };
        let mut slots = with_capacity(self.slots.len())?;
        for slot in self.slots {
            let Some(tensors) = read(slot, AcceptedDTypes::Reals)? else { return Ok(None) };
            slots.push(tensors);
        }
        let (mut step_counts, mut copies) = (None, None);
        if let Some(tensors) = self.step_counts {
            let Some(tensors) = read(tensors, AcceptedDTypes::Ordered)? else { return Ok(None) };
            step_counts = Some(tensors);
        }
        if let Some(tensors) = self.copies {
            let Some(tensors) = read(tensors, AcceptedDTypes::Reals)? else { return Ok(None) };
            copies = Some(tensors);
        }
        let bytes = gradients.views.iter().flatten().map(|view| view.size * view.dtype.size()).sum();
        let all = [&parameters, &gradients].into_iter().chain(&slots).chain(&step_counts).chain(&copies);
        step.lent.append(binding.lent(all, bytes)?)?;
        let count = parameters.views.len();
        reserve(&mut step.pairs, count)?;
        reserve(&mut step.known, count)?;
        for index in 0..count {
            let variable = taken(&mut parameters, index, "a parameter")?;
            let gradient = taken(&mut gradients, index, "the gradient")?;
            if gradient.shape() != variable.shape() {
                return Err(Error::Value(format!(
                    "the gradient of {} is {} where the parameter is {}: the shapes must be the same",
                    PARAMETERS.entry(index),
                    gradient.describe(),
                    variable.describe()
                ))
                .into());
            }
            let mut slot_views = with_capacity(slots.len())?;
            for tensors in &mut slots {
                let slot = taken(tensors, index, "a slot")?;
                check_slot(&slot, &variable, PARAMETERS, index)?;
                slot_views.push(slot);
            }
            let mut step_count = None;
            if let Some(tensors) = &mut step_counts {
                let view = taken(tensors, index, "the step count")?;
                check_step_count(&view, PARAMETERS, index)?;
                step_count = Some(view);
            }
            let next_step = step_count.as_ref().map(|view| read_number(view) + 1.0);
            let mut pair = Pair::new(variable, gradient);
            if let Some(copy) = copies.as_mut().and_then(|copies| copies.views[index].take()) {
                check_copy(&copy, &pair.variable, || copy_name(PARAMETERS, index))?;
                pair.set_copy(copy);
            }
            pair.set_caller_arrays(slot_views, step_count);
            pair.hyper = self.hyper.at_step(self.set_of[index], next_step)?;
            if let Some((seed, numbers)) = &self.rounding {
                let Some(next_step) = next_step else {
                    return Err(
                        Error::Value("fastclip._core: stochastic rounding needs step counts".into()).into()
                    );
                };
                pair.rounding = Some(Stream::new(*seed, next_step as u64, numbers[index]));
            }
            step.pairs.push(pair);
            step.known.push(self.known.as_ref().and_then(|known| known[index]));
        }
        reserve(&mut step.written, 2)?;
        step.written.push(parameters);
        step.written.extend(copies);
        Ok(Some(self.hyper))
    }
}

/// Takes the view of the tensor at `index`.
fn taken<'py>(tensors: &mut PlainTensors<'py>, index: usize, what: &str) -> Result<View<'py>, Error> {
    let view = tensors.views[index].take();
    view.ok_or_else(|| Error::Type(format!("{what} of {} is None", PARAMETERS.entry(index))))
}
