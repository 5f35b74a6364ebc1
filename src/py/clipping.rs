//! The functions that `fastclip` calls: one crossing each, however many arrays.

#![allow(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    reason = "arguments come from Python: extracted by value, and positional from one caller each"
)]

use super::arrays::batch::{Batch, Destination, check_given, fresh, segment, views};
use super::arrays::overlap;
use super::arrays::view::{AcceptedDTypes, ArgumentName, DTypeCache, View};
use super::objects::{self, Scalar, extract, float, number};
use super::raise::{before_writing, check_memory, detached, entry, entry_that_reads, refuse_nonfinite};
use crate::allocation::{collect, filled, with_capacity};
use crate::engine::plan::Plan;
use crate::engine::segment::{INPUT, LOWER, OPERANDS, OUTPUT, Operand, Segment, UPPER};
use crate::engine::workspace::{Context, Workspace};
use crate::error::Error;
use crate::kernels::scale::Factor;
use crate::operations::axes::elements::{self, Elements};
use crate::operations::axes::{BOUNDS, NORMS, Slices};
use crate::operations::clip::{self, Action, Actions, Bounds};
use crate::operations::magnitude::{Magnitude, Order, combine, ranges};
use crate::operations::norms::measure;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// What to do about NaN and infinity.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Propagate,
    Raise,
    Zero,
}

impl Policy {
    fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "propagate" => Ok(Self::Propagate),
            "raise" => Ok(Self::Raise),
            "zero" => Ok(Self::Zero),
            _ => Err(Error::Value(format!(
                "on_nonfinite is {name:?}; it takes \"propagate\", \"raise\" or \"zero\""
            ))),
        }
    }

    fn action(self) -> Action {
        if self == Self::Zero { Action::FillZero } else { Action::FillNan }
    }
}

/// The names of a call's arguments, for messages: the inputs' argument and entries, and the outputs'.
///
/// They are looked into only when there is something to say.
#[derive(FromPyObject)]
#[pyo3(transparent)]
pub struct ArgumentNames<'py>(Bound<'py, PyTuple>);

impl<'py> ArgumentNames<'py> {
    fn input(&self) -> ArgumentName<'_, 'py> {
        ArgumentName::Listed { names: &self.0, first: 0 }
    }

    fn output(&self) -> ArgumentName<'_, 'py> {
        ArgumentName::Listed { names: &self.0, first: 2 }
    }
}

/// A norm that is known already.
#[derive(FromPyObject)]
pub struct KnownNorm<'py> {
    /// Its mantissa,
    #[pyo3(item(0))]
    root: f64,
    /// and its exponent of two.
    #[pyo3(item(1))]
    exponent: i32,
    /// Whether an input of any process is float64.
    #[pyo3(item(2))]
    wide: bool,
    /// The norms of this call's own tensors if they were measured, or None.
    #[pyo3(item(3))]
    norms: Option<Bound<'py, PyAny>>,
    /// The positions, among the tensors that are there, of those that hold NaN or infinity.
    #[pyo3(item(4))]
    nonfinite: Bound<'py, PyAny>,
}

/// Clips tensors by the norm of all of them together.
///
/// Returns the clipped arrays and the norm, a scalar of NumPy's. `given` is the norm if it is known.
#[pyfunction]
#[pyo3(signature = (tensors, bound, given, p, out, on_nonfinite, norms, names, /))]
pub fn clip_by_global_norm<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    bound: f64,
    given: Option<KnownNorm<'py>>,
    p: f64,
    out: Option<Bound<'py, PyAny>>,
    on_nonfinite: &str,
    norms: Option<Bound<'py, PyAny>>,
    names: ArgumentNames<'py>,
) -> PyResult<Bound<'py, PyTuple>> {
    entry(py, || {
        let policy = Policy::from_name(on_nonfinite)?;
        let order = Order::new(p);
        let destination = Destination::from(out);
        let batch =
            Batch::new(py, tensors, &destination, AcceptedDTypes::Floats, names.input(), names.output())?;
        let norms = norms.map(|array| norms_array(py, &batch, array, names.input())).transpose()?;
        let mut own = match &given {
            Some(KnownNorm { norms: Some(own), .. }) => Some(extract(own, number)?),
            _ => None,
        };
        if own.as_ref().is_some_and(|own| own.len() != batch.segments.len()) {
            return Err(Error::Value(format!(
                "{} has {} arrays, and had another number when its norm was taken",
                names.input().argument(),
                batch.segments.len()
            ))
            .into());
        }
        let known = given.as_ref().map(|given| Magnitude { value: given.root, exponent: given.exponent });
        let wide = given.as_ref().map_or_else(|| batch.is_wide(), |given| given.wide);
        // All that is returned is made now: after the writing pass nothing may fail.
        let answer = Scalar::new(py, wide)?.paired_with(batch.results(py)?.as_any())?;

        let (segments, plan) = (&batch.segments, &batch.plan);
        let workspace = Workspace::new(Context::current(), segments, plan)?;
        check_memory(py)?;
        let wants_norms = norms.is_some() && own.is_none();
        let (norm, found, refused) = detached(py, || {
            let (found, total, total_order) = if let Some(known) = known {
                (Vec::new(), known, Order::Max)
            } else {
                let found = measure(&workspace, segments, plan, order)?;
                let total = combine(&found, order);
                (found, total, order)
            };
            if wants_norms {
                own = Some(collect(found.iter().map(|magnitude| magnitude.norm(order)))?);
            }
            before_writing(plan.bytes())?;
            let norm = total.norm(total_order);
            let action = if total.is_finite() {
                let factor = total.factor(total_order, 1.0, bound);
                // The bound 0 gives zeros whatever the norm, also where the caller says that it is 0.
                let factor = factor.or_else(|| (bound == 0.0 && known.is_some()).then_some(Factor::ZERO));
                factor.map_or(Action::Keep, Action::Scale)
            } else if policy == Policy::Raise {
                return Ok((norm, found, true));
            } else {
                policy.action()
            };
            // SAFETY: the batch was checked: outputs overlap nothing but their own inputs.
            unsafe { clip::apply(&workspace, segments, plan, Actions::All(action)) };
            Ok((norm, found, false))
        })?;
        if refused {
            let bad = if let Some(given) = &given {
                extract(&given.nonfinite, |item| item.extract())?
            } else {
                let mut bad = with_capacity(found.len())?;
                bad.extend((0..found.len()).filter(|at| !found[*at].is_finite()));
                bad
            };
            let positions = with_positions(&batch)?;
            let bad = bad.into_iter().filter_map(|at: usize| positions.get(at).copied());
            return Err(refuse_nonfinite(bad, names.input(), norm).into());
        }
        if let (Some(norms), Some(own)) = (norms, own) {
            fill(&norms, own.into_iter());
        }
        Ok(answer.finish(norm))
    })
}

/// The positions of the inputs that are there.
fn with_positions(batch: &Batch) -> PyResult<Vec<usize>> {
    let mut positions = with_capacity(batch.inputs.len())?;
    positions.extend(batch.positions());
    Ok(positions)
}

/// The array that takes per-tensor norms, checked.
fn norms_array<'py>(
    py: Python<'py>,
    batch: &Batch<'py>,
    array: Bound<'py, PyAny>,
    input: ArgumentName<'_, '_>,
) -> PyResult<View<'py>> {
    let wanted = batch.segments.len();
    let view = View::new(array, AcceptedDTypes::Floats, &mut DTypeCache::default(), || "norms".into())?;
    let fits = view.dtype.name() == "float64" && view.shape() == [wanted] && view.is_writable();
    if !fits || view.may_overlap_itself()? {
        return Err(Error::Value(format!(
            "norms is {}; it takes a writable float64 array of shape ({wanted},), one for each array in {}",
            if view.is_writable() { view.describe() } else { "read-only".into() },
            input.argument(),
        ))
        .into());
    }
    if batch.inputs.iter().chain(batch.outputs()).flatten().any(|other| view.meets(other)) {
        return Err(Error::Value("norms shares memory with an input or an output".into()).into());
    }
    check_memory(py)?;
    Ok(view)
}

/// Writes numbers to a one-dimensional float64 array.
fn fill(view: &View, values: impl Iterator<Item = f64>) {
    let stride = view.strides().first().copied().unwrap_or(0);
    for (i, value) in values.enumerate() {
        // SAFETY: `norms_array`: writable float64, as many as there are values; unaligned perhaps.
        unsafe { view.pointer.wrapping_offset(i as isize * stride).cast::<f64>().write_unaligned(value) };
    }
}

/// The norm of all tensors together, a scalar of NumPy's.
#[pyfunction]
#[pyo3(signature = (tensors, p, names, /))]
pub fn global_norm<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    p: f64,
    names: ArgumentNames<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    entry_that_reads(py, || {
        let (batch, found) = measured(py, tensors, Order::new(p), &names)?;
        let norm = combine(&found, Order::new(p)).norm(Order::new(p));
        Ok(Scalar::new(py, batch.is_wide())?.finish(norm))
    })
}

/// A norm as a scalar of NumPy's: a float64 if `wide`, or if it is a finite number beyond float32.
#[pyfunction]
#[pyo3(signature = (norm, wide, /))]
pub fn norm_scalar(py: Python<'_>, norm: f64, wide: bool) -> PyResult<Bound<'_, PyAny>> {
    entry_that_reads(py, || Ok(Scalar::new(py, wide)?.finish(norm)))
}

/// Each tensor's norm, and whether they are to be float64.
#[pyfunction]
#[pyo3(signature = (tensors, p, names, /))]
pub fn tensor_norms<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    p: f64,
    names: ArgumentNames<'py>,
) -> PyResult<Bound<'py, PyTuple>> {
    entry_that_reads(py, || {
        let order = Order::new(p);
        let (batch, found) = measured(py, tensors, order, &names)?;
        let norms = found.iter().map(|magnitude| float(py, magnitude.norm(order)));
        let norms = objects::list(py, found.len(), norms)?;
        objects::tuple(py, [norms.into_any(), boolean(py, batch.is_wide())])
    })
}

fn boolean(py: Python<'_>, value: bool) -> Bound<'_, PyAny> {
    pyo3::types::PyBool::new(py, value).to_owned().into_any()
}

fn measured<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    order: Order,
    names: &ArgumentNames<'py>,
) -> PyResult<(Batch<'py>, Vec<Magnitude>)> {
    let batch = Batch::new(
        py,
        tensors,
        &Destination::Nothing,
        AcceptedDTypes::Floats,
        names.input(),
        names.output(),
    )?;
    let (segments, plan) = (&batch.segments, &batch.plan);
    let workspace = Workspace::new(Context::current(), segments, plan)?;
    let found = detached(py, || Ok(measure(&workspace, segments, plan, order)?))?;
    Ok((batch, found))
}

/// The sum of the powers of all tensors, in a form that adds up over processes.
///
/// The sum lies in the one of several ranges that its size belongs to, scaled by that range's power
/// of two: neither a huge sum nor a tiny one is lost on the way. Two numbers follow: how many tensors
/// are not finite, and whether one is float64. The second result is each tensor's own norm, the third the positions,
/// among the tensors that are there, of those that are not finite.
#[pyfunction]
#[pyo3(signature = (tensors, p, names, /))]
pub fn partial_sums<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    p: f64,
    names: ArgumentNames<'py>,
) -> PyResult<Bound<'py, PyTuple>> {
    entry_that_reads(py, || {
        let order = Order::new(p);
        let (batch, found) = measured(py, tensors, order, &names)?;
        let bad = || (0..found.len()).filter(|at| !found[*at].is_finite());
        let mut sums = ranges::split(combine(&found, order), order);
        sums.push(bad().count() as f64);
        sums.push(f64::from(u8::from(batch.is_wide())));
        let sums = objects::list(py, sums.len(), sums.iter().map(|sum| float(py, *sum)))?;
        let norms = found.iter().map(|magnitude| float(py, magnitude.norm(order)));
        let norms = objects::list(py, found.len(), norms)?;
        let bad = objects::list(py, bad().count(), bad().map(|at| objects::position(py, at)))?;
        objects::tuple(py, [sums, norms, bad].map(Bound::into_any))
    })
}

/// The norm of sums that [`partial_sums`] gave and somebody added up: as a mantissa and an exponent
/// of two, and as a float64.
#[pyfunction]
#[pyo3(signature = (sums, p, /))]
pub fn combine_sums<'py>(py: Python<'py>, sums: &Bound<'py, PyAny>, p: f64) -> PyResult<Bound<'py, PyTuple>> {
    entry_that_reads(py, || {
        let order = Order::new(p);
        let total = ranges::join(&extract(sums, number)?, order);
        let (root, exponent) = total.root(order);
        let parts = [float(py, root)?, objects::integer(py, exponent)?, float(py, total.norm(order))?];
        objects::tuple(py, parts)
    })
}

/// Clips each tensor by its own norm, divided by `divisor`: "one", "count" (the number of elements)
/// or "root" (the square root of that). `bounds` has one number for each array that is there.
#[pyfunction]
#[pyo3(signature = (tensors, bounds, divisor, p, out, names, /))]
pub fn clip_tensors<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    bounds: &Bound<'py, PyAny>,
    divisor: &str,
    p: f64,
    out: Option<Bound<'py, PyAny>>,
    names: ArgumentNames<'py>,
) -> PyResult<Bound<'py, PyList>> {
    entry(py, || {
        let order = Order::new(p);
        let bounds = extract(bounds, number)?;
        let destination = Destination::from(out);
        let batch =
            Batch::new(py, tensors, &destination, AcceptedDTypes::Floats, names.input(), names.output())?;
        let (segments, plan) = (&batch.segments, &batch.plan);
        if bounds.len() != segments.len() {
            return Err(Error::Value(format!("{} bounds for {} arrays", bounds.len(), segments.len())).into());
        }
        let divide = |segment: &Segment| {
            let count = (segment.len / if segment.complex { 2 } else { 1 }).max(1) as f64;
            match divisor {
                "count" => count,
                "root" => count.sqrt(),
                _ => 1.0,
            }
        };
        let results = batch.results(py)?;
        let workspace = Workspace::new(Context::current(), segments, plan)?;
        check_memory(py)?;
        detached(py, || {
            let found = measure(&workspace, segments, plan, order)?;
            let each = found.iter().zip(segments).zip(&bounds);
            let mut actions: Vec<Action> = with_capacity(found.len())?;
            actions.extend(each.map(|((magnitude, segment), bound)| {
                if magnitude.is_finite() {
                    magnitude.factor(order, divide(segment), *bound).map_or(Action::Keep, Action::Scale)
                } else {
                    Action::FillNan
                }
            }));
            before_writing(plan.bytes())?;
            // SAFETY: the batch was checked.
            unsafe { clip::apply(&workspace, segments, plan, Actions::Each(&actions)) };
            Ok(())
        })?;
        Ok(results)
    })
}

/// One array as the only entry of a list, for the functions that take one.
fn alone<'py>(py: Python<'py>, array: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    Ok(objects::tuple(py, [array.clone()])?.into_any())
}

/// Clamps an array. `lower` and `upper` are arrays of its type: of one element, or of its shape.
#[pyfunction]
#[pyo3(signature = (tensor, lower, upper, out, /))]
pub fn clip_by_value<'py>(
    py: Python<'py>,
    tensor: &Bound<'py, PyAny>,
    lower: Bound<'py, PyAny>,
    upper: Bound<'py, PyAny>,
    out: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(py, || {
        let (input_label, output_label) = (ArgumentName::Single("t"), ArgumentName::Single("out"));
        let mut known = DTypeCache::default();
        let inputs = views(&alone(py, tensor)?, AcceptedDTypes::Ordered, input_label)?;
        let mut bound =
            |object, name: &str| View::new(object, AcceptedDTypes::Ordered, &mut known, || name.to_owned());
        let (lower, upper) = (bound(lower, "clip_value_min")?, bound(upper, "clip_value_max")?);
        let outputs = match out {
            None => fresh(py, &inputs)?,
            Some(out) => {
                let outputs = views(&alone(py, &out)?, AcceptedDTypes::Any, output_label)?;
                check_given(py, &inputs, &outputs, input_label, output_label)?;
                outputs
            }
        };
        let ([Some(input)], [Some(output)]) = (&inputs[..], &outputs[..]) else {
            return Err(Error::Type("t is None; it takes an array".into()).into());
        };
        let fits = |v: &View| v.dtype == input.dtype && (v.size == 1 || v.shape() == input.shape());
        if !fits(&lower) || !fits(&upper) {
            return Err(Error::Value("the bounds must have the type and the shape of t".into()).into());
        }
        let single = lower.size == 1 && upper.size == 1;
        let segment = if single {
            segment(input, Some(output))?
        } else {
            let zeros = filled(0, input.shape().len())?;
            let operand = |view: &View<'py>| view.size == 1;
            let strides = |view| if operand(view) { zeros.as_slice() } else { view.strides() };
            let mut operands: [Option<Strided>; OPERANDS] = [None; OPERANDS];
            operands[INPUT] = Some(input.strided());
            operands[OUTPUT] = Some(output.strided());
            operands[LOWER] = Some(Strided { pointer: lower.pointer, strides: strides(&lower) });
            operands[UPPER] = Some(Strided { pointer: upper.pointer, strides: strides(&upper) });
            // SAFETY: all arrays are alive and of one shape; the output was checked or is fresh, and
            // bounds that overlap it were copied by the caller.
            unsafe { Segment::new(input.dtype, input.shape(), operands)? }
        };
        let bounds = if single {
            Bounds::Same([&lower, &upper].map(|view| {
                let mut bytes = [0; 8];
                // SAFETY: one element of at most eight bytes.
                unsafe { view.pointer.copy_to_nonoverlapping(bytes.as_mut_ptr(), view.dtype.size()) };
                bytes
            }))
        } else {
            Bounds::Each
        };
        let segments = [segment];
        let plan = Plan::new(&segments)?;
        let workspace = Workspace::new(Context::current(), &segments, &plan)?;
        check_memory(py)?;
        detached(py, || {
            // SAFETY: checked above.
            unsafe { clip::clamp(&workspace, &segments, &plan, bounds) };
            Ok(())
        })?;
        Ok(output.owner().clone())
    })
}

/// Refuses outputs that share memory with other arrays that a call reads.
#[pyfunction]
#[pyo3(signature = (tensors, out, names, /))]
pub fn check_no_overlap<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    out: &Bound<'py, PyAny>,
    names: ArgumentNames<'py>,
) -> PyResult<()> {
    entry_that_reads(py, || {
        let inputs = views(tensors, AcceptedDTypes::Any, names.input())?;
        let outputs = views(out, AcceptedDTypes::Any, names.output())?;
        overlap::check(py, &inputs, &outputs, false, names.input(), names.output())
    })
}

/// What makes up slices: for each array, whether each axis is reduced.
fn reduced_axes(axes: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<bool>>> {
    extract(axes, |axes| extract(axes, |axis| axis.extract()))
}

/// The norms of each array's slices, as float64 arrays whose reduced axes have length 1.
#[pyfunction]
#[pyo3(signature = (tensors, axes, p, norms, names, /))]
pub fn slice_norms<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    axes: &Bound<'py, PyAny>,
    p: f64,
    norms: &Bound<'py, PyAny>,
    names: ArgumentNames<'py>,
) -> PyResult<()> {
    entry_that_reads(py, || {
        let axes = reduced_axes(axes)?;
        let batch = Batch::new(
            py,
            tensors,
            &Destination::Nothing,
            AcceptedDTypes::Floats,
            names.input(),
            names.output(),
        )?;
        let results = views(norms, AcceptedDTypes::Floats, names.output())?;
        let slices = sliced(&batch, &axes, &results, &[], Order::new(p))?;
        detached(py, || run(&slices))
    })
}

/// Clips the slices of each array by their own norms. `bounds` are float64 arrays that broadcast
/// against them: the reduced axes have length 1.
#[pyfunction]
#[pyo3(signature = (tensors, axes, bounds, p, out, names, /))]
pub fn clip_slices<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    axes: &Bound<'py, PyAny>,
    bounds: &Bound<'py, PyAny>,
    p: f64,
    out: Option<Bound<'py, PyAny>>,
    names: ArgumentNames<'py>,
) -> PyResult<Bound<'py, PyList>> {
    entry(py, || {
        let axes = reduced_axes(axes)?;
        let destination = Destination::from(out);
        let batch =
            Batch::new(py, tensors, &destination, AcceptedDTypes::Floats, names.input(), names.output())?;
        let bounds = views(bounds, AcceptedDTypes::Floats, names.output())?;
        let slices = sliced(&batch, &axes, &[], &bounds, Order::new(p))?;
        let results = batch.results(py)?;
        check_memory(py)?;
        detached(py, || run(&slices))?;
        Ok(results)
    })
}

/// Clips each element of each array by its own bound and the norm of its slice. `bounds` are float64 arrays with as many
/// axes as the arrays, each of length 1 or that of the array's axis.
#[pyfunction]
#[pyo3(signature = (tensors, axes, bounds, p, out, names, /))]
pub fn clip_elements<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    axes: &Bound<'py, PyAny>,
    bounds: &Bound<'py, PyAny>,
    p: f64,
    out: Option<Bound<'py, PyAny>>,
    names: ArgumentNames<'py>,
) -> PyResult<Bound<'py, PyList>> {
    entry(py, || {
        let axes = reduced_axes(axes)?;
        let destination = Destination::from(out);
        let batch =
            Batch::new(py, tensors, &destination, AcceptedDTypes::Floats, names.input(), names.output())?;
        let bounds = views(bounds, AcceptedDTypes::Floats, names.output())?;
        let mut found = by_element(&batch, &axes, &bounds, Order::new(p))?;
        let results = batch.results(py)?;
        check_memory(py)?;
        detached(py, || {
            let context = Context::current();
            for tensor in &mut found {
                tensor.measure(context)?;
            }
            let (plan, workspace) = elements::prepare(context, &found)?;
            before_writing(plan.bytes())?;
            // SAFETY: outputs were checked, and bounds that overlap one were copied by the caller.
            unsafe { elements::clip(&workspace, &found, &plan) };
            Ok(())
        })?;
        Ok(results)
    })
}

/// The arrays of a batch with bounds for their elements.
fn by_element(
    batch: &Batch,
    axes: &[Vec<bool>],
    bounds: &[Option<View>],
    order: Order,
) -> PyResult<Vec<Elements>> {
    let mut found = with_capacity(batch.segments.len())?;
    for (index, input) in batch.inputs.iter().enumerate() {
        let Some(input) = input else { continue };
        let shape = input.shape();
        let reduced = axes.get(index).filter(|reduced| reduced.len() == shape.len());
        let Some(reduced) = reduced else { return Err(misfit("axes")) };
        let fits = |view: &&View| {
            view.dtype.name() == "float64"
                && view.shape().len() == shape.len()
                && view.shape().iter().zip(shape).all(|(n, of)| *n == 1 || n == of)
        };
        let Some(bound) = bounds.get(index).and_then(Option::as_ref).filter(fits) else {
            return Err(misfit("bounds"));
        };
        let Some(output) = batch.outputs().get(index).and_then(Option::as_ref) else {
            return Err(misfit("outputs"));
        };
        let mut strides: Vec<isize> = with_capacity(shape.len())?;
        let steps = bound.shape().iter().zip(bound.strides());
        strides.extend(steps.map(|(n, stride)| if *n == 1 { 0 } else { *stride }));
        let bound = Strided { pointer: bound.pointer, strides: &strides };
        let operands = [input.strided(), output.strided(), bound];
        // SAFETY: the arrays are alive; outputs were checked; the bounds reach as far as the array, checked above.
        found.push(unsafe { Elements::new(input.dtype, shape, reduced, operands, order)? });
    }
    Ok(found)
}

/// The error of a call from `fastclip` that is not as it has to be.
fn misfit(what: &str) -> PyErr {
    Error::Value(format!("fastclip._core: {what} do not fit the arrays")).into()
}

/// Measures slices, and clips them where they have an output. All that may fail comes before the first output is
/// written.
fn run(slices: &[Slices]) -> PyResult<()> {
    let mut prepared = with_capacity(slices.len())?;
    for slices in slices {
        // SAFETY: norms are fresh arrays of the caller in `fastclip`.
        prepared.push(unsafe { slices.prepare(Context::current())? });
    }
    before_writing(slices.iter().map(Slices::bytes).sum())?;
    for (slices, prepared) in slices.iter().zip(&prepared) {
        // SAFETY: outputs were checked, or there are none.
        unsafe { slices.finish(prepared) };
    }
    Ok(())
}

/// The arrays of a batch as slices, with their norms or bounds.
fn sliced(
    batch: &Batch,
    axes: &[Vec<bool>],
    norms: &[Option<View>],
    bounds: &[Option<View>],
    order: Order,
) -> PyResult<Vec<Slices>> {
    if axes.len() != batch.inputs.len() {
        return Err(misfit("axes"));
    }
    let mut found = with_capacity(batch.segments.len())?;
    for (index, input) in batch.inputs.iter().enumerate() {
        let Some(input) = input else { continue };
        let reduced = &axes[index];
        let shape = input.shape();
        let fits = |view: &View| {
            view.dtype.name() == "float64"
                && view.shape().len() == shape.len()
                && view
                    .shape()
                    .iter()
                    .zip(shape)
                    .zip(reduced)
                    .all(|((n, of), r)| *n == if *r { 1 } else { *of })
        };
        let float64 = |views: &'_ [Option<View>], what| match views.get(index) {
            Some(Some(view)) if reduced.len() != shape.len() || !fits(view) => Err(misfit(what)),
            _ => Ok(()),
        };
        float64(norms, "norms")?;
        float64(bounds, "bounds")?;
        let operand = |views: &'_ [Option<View>]| views.get(index).is_some_and(Option::is_some);
        if !operand(norms) && !operand(bounds) {
            return Err(misfit("norms and bounds"));
        }
        let mut operands: [Option<Strided>; OPERANDS] = [None; OPERANDS];
        operands[INPUT] = Some(input.strided());
        operands[OUTPUT] = batch.outputs().get(index).and_then(Option::as_ref).map(View::strided);
        operands[NORMS] = norms.get(index).and_then(Option::as_ref).map(View::strided);
        operands[BOUNDS] = bounds.get(index).and_then(Option::as_ref).map(View::strided);
        if norms.get(index).is_some_and(|view| view.as_ref().is_some_and(|view| !view.is_writable())) {
            return Err(misfit("read-only norms"));
        }
        // SAFETY: the arrays are alive; outputs were checked; norms and bounds have one float64 per
        // slice, checked above.
        found.push(unsafe { Slices::new(input.dtype, shape, reduced, operands, order)? });
    }
    Ok(found)
}
