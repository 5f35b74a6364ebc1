//! The functions that `fastclip` calls: one crossing each, however many arrays.

#![allow(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    reason = "arguments come from Python: extracted by value, and positional from one caller each"
)]

use super::batch::{Batch, Destination, check_given, fresh, segment, views};
use super::overlap;
use super::raise::{check_signals, detached, refuse_nonfinite};
use super::view::{Label, Takes, View};
use crate::axes::{BOUNDS, NORMS, Slices};
use crate::clip::{self, Action, Actions, Bounds};
use crate::error::Error;
use crate::exec::Context;
use crate::magnitude::{Magnitude, Order, combine, ranges};
use crate::norms::measure;
use crate::plan::Plan;
use crate::segment::{INPUT, LOWER, OPERANDS, OUTPUT, Segment, Strided, UPPER};
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
pub struct Names<'py>(Bound<'py, PyTuple>);

impl<'py> Names<'py> {
    fn input(&self) -> Label<'_, 'py> {
        Label::Listed { names: &self.0, first: 0 }
    }

    fn output(&self) -> Label<'_, 'py> {
        Label::Listed { names: &self.0, first: 2 }
    }
}

/// A norm that is known already.
#[derive(FromPyObject)]
pub struct Given {
    /// Its mantissa,
    #[pyo3(item(0))]
    root: f64,
    /// and its exponent of two.
    #[pyo3(item(1))]
    exponent: i32,
    /// The norms of this call's own tensors, if they were measured.
    #[pyo3(item(2))]
    norms: Vec<f64>,
}

/// Clips tensors by the norm of all of them together.
///
/// Returns the clipped arrays, the float64 norm, and whether it is to be a float64. `given` is the
/// norm if it is known, as a mantissa and an exponent of two.
#[pyfunction]
#[pyo3(signature = (tensors, bound, given, p, out, on_nonfinite, norms, names, /))]
pub fn clip_by_global_norm<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    bound: f64,
    given: Option<Given>,
    p: f64,
    out: Option<Bound<'py, PyAny>>,
    on_nonfinite: &str,
    norms: Option<Bound<'py, PyAny>>,
    names: Names<'py>,
) -> PyResult<(Bound<'py, PyList>, f64, bool)> {
    let policy = Policy::from_name(on_nonfinite)?;
    let order = Order::new(p);
    let destination = Destination::from(out);
    let batch = Batch::new(py, tensors, &destination, Takes::Floats, names.input(), names.output())?;
    let norms = norms.map(|array| norms_array(&batch, array, names.input())).transpose()?;

    let (segments, plan) = (&batch.segments, &batch.plan);
    let context = Context::current();
    let (norm, found, refused) = detached(py, || {
        let mut found = Vec::new();
        let (total, order) = if let Some(given) = &given {
            (Magnitude { value: given.root, exponent: given.exponent }, Order::Max)
        } else {
            found = measure(context, segments, plan, order);
            check_signals(plan.bytes)?;
            (combine(&found, order), order)
        };
        let action = if total.is_finite() {
            total.factor(order, 1.0, bound).map_or(Action::Keep, Action::Scale)
        } else if policy == Policy::Raise {
            return Ok((total.norm(order), found, true));
        } else {
            policy.action()
        };
        // SAFETY: the batch was checked: outputs overlap nothing but their own inputs.
        unsafe { clip::apply(context, segments, plan, Actions::All(action)) };
        Ok((total.norm(order), found, false))
    })?;
    let own: Vec<f64> = match given {
        Some(given) => given.norms,
        None => found.iter().map(|magnitude| magnitude.norm(order)).collect(),
    };
    if refused {
        let bad = batch.positions().zip(&own).filter(|(_, norm)| !norm.is_finite()).map(|(i, _)| i);
        return Err(refuse_nonfinite(bad, names.input(), norm).into());
    }
    if let Some(norms) = norms {
        fill(&norms, own.into_iter());
    }
    Ok((batch.results(py)?, norm, batch.is_wide()))
}

/// The array that takes per-tensor norms, checked.
fn norms_array<'py>(
    batch: &Batch<'py>,
    array: Bound<'py, PyAny>,
    input: Label<'_, '_>,
) -> PyResult<View<'py>> {
    let wanted = batch.segments.len();
    let view = View::new(array, Takes::Floats, &mut super::view::Known::default(), || "norms".into())?;
    let fits = view.dtype.name() == "float64" && view.shape() == [wanted] && view.is_writable();
    if !fits || view.may_overlap_itself() {
        return Err(Error::Value(format!(
            "norms is {}; it takes a writable float64 array of shape ({wanted},), one for each array in {}",
            if view.is_writable() { view.describe() } else { "read-only".into() },
            input.argument(),
        ))
        .into());
    }
    let own = view.extent();
    let touches = |other: &View| {
        let (Some((low, high)), Some((other_low, other_high))) = (own, other.extent()) else {
            return false;
        };
        low < other_high && other_low < high
    };
    if batch.inputs.iter().chain(batch.outputs()).flatten().any(touches) {
        return Err(Error::Value("norms shares memory with an input or an output".into()).into());
    }
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

/// The norm of all tensors together, and whether it is to be a float64.
#[pyfunction]
#[pyo3(signature = (tensors, p, names, /))]
pub fn global_norm<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    p: f64,
    names: Names<'py>,
) -> PyResult<(f64, bool)> {
    let (batch, found) = measured(py, tensors, Order::new(p), &names)?;
    Ok((combine(&found, Order::new(p)).norm(Order::new(p)), batch.is_wide()))
}

/// Each tensor's norm, and whether they are to be float64.
#[pyfunction]
#[pyo3(signature = (tensors, p, names, /))]
pub fn tensor_norms<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    p: f64,
    names: Names<'py>,
) -> PyResult<(Vec<f64>, bool)> {
    let (batch, found) = measured(py, tensors, Order::new(p), &names)?;
    Ok((found.into_iter().map(|magnitude| magnitude.norm(Order::new(p))).collect(), batch.is_wide()))
}

fn measured<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    order: Order,
    names: &Names<'py>,
) -> PyResult<(Batch<'py>, Vec<Magnitude>)> {
    let batch = Batch::new(py, tensors, &Destination::Nothing, Takes::Floats, names.input(), names.output())?;
    let (segments, plan) = (&batch.segments, &batch.plan);
    let found = detached(py, || Ok(measure(Context::current(), segments, plan, order)))?;
    Ok((batch, found))
}

/// The sum of the powers of all tensors, in a form that adds up over processes.
///
/// The sum lies in the one of several ranges that its size belongs to, scaled by that range's power
/// of two: neither a huge sum nor a tiny one is lost on the way. Two numbers follow: how many tensors
/// are not finite, and whether one is float64. The second result is each tensor's own norm.
#[pyfunction]
#[pyo3(signature = (tensors, p, names, /))]
pub fn partial_sums<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    p: f64,
    names: Names<'py>,
) -> PyResult<(Vec<f64>, Vec<f64>)> {
    let order = Order::new(p);
    let (batch, found) = measured(py, tensors, order, &names)?;
    let bad = found.iter().filter(|magnitude| !magnitude.is_finite()).count();
    let mut sums = ranges::split(combine(&found, order), order);
    sums.push(bad as f64);
    sums.push(f64::from(u8::from(batch.is_wide())));
    Ok((sums, found.iter().map(|magnitude| magnitude.norm(order)).collect()))
}

/// The norm of sums that [`partial_sums`] gave and somebody added up: as a mantissa and an exponent
/// of two, and as a float64.
#[pyfunction]
#[pyo3(signature = (sums, p, /))]
pub fn combine_sums(sums: Vec<f64>, p: f64) -> (f64, i32, f64) {
    let order = Order::new(p);
    let total = ranges::join(&sums, order);
    let (root, exponent) = total.root(order);
    (root, exponent, total.norm(order))
}

/// Clips each tensor by its own norm, divided by `divisor`: "one", "count" (the number of elements)
/// or "root" (the square root of that). `bounds` has one number for each array that is there.
#[pyfunction]
#[pyo3(signature = (tensors, bounds, divisor, p, out, names, /))]
pub fn clip_tensors<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    bounds: Vec<f64>,
    divisor: &str,
    p: f64,
    out: Option<Bound<'py, PyAny>>,
    names: Names<'py>,
) -> PyResult<Bound<'py, PyList>> {
    let order = Order::new(p);
    let destination = Destination::from(out);
    let batch = Batch::new(py, tensors, &destination, Takes::Floats, names.input(), names.output())?;
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
    detached(py, || {
        let context = Context::current();
        let found = measure(context, segments, plan, order);
        check_signals(plan.bytes)?;
        let actions: Vec<Action> = found
            .iter()
            .zip(segments)
            .zip(&bounds)
            .map(|((magnitude, segment), bound)| {
                if magnitude.is_finite() {
                    magnitude.factor(order, divide(segment), *bound).map_or(Action::Keep, Action::Scale)
                } else {
                    Action::FillNan
                }
            })
            .collect();
        // SAFETY: the batch was checked.
        unsafe { clip::apply(context, segments, plan, Actions::Each(&actions)) };
        Ok(())
    })?;
    batch.results(py)
}

/// One array as the only entry of a list, for the functions that take one.
fn alone<'py>(py: Python<'py>, array: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    Ok(PyTuple::new(py, [array])?.into_any())
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
    let (input_label, output_label) = (Label::Single("t"), Label::Single("out"));
    let mut known = super::view::Known::default();
    let inputs = views(&alone(py, tensor)?, Takes::Ordered, input_label)?;
    let mut bound = |object, name: &str| View::new(object, Takes::Ordered, &mut known, || name.to_owned());
    let (lower, upper) = (bound(lower, "clip_value_min")?, bound(upper, "clip_value_max")?);
    let outputs = match out {
        None => fresh(py, &inputs)?,
        Some(out) => {
            let outputs = views(&alone(py, &out)?, Takes::Any, output_label)?;
            check_given(&inputs, &outputs, input_label, output_label)?;
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
        segment(input, Some(output))
    } else {
        let zeros = vec![0; input.shape().len()];
        let operand = |view: &View<'py>| {
            let strides = if view.size == 1 { zeros.as_slice() } else { view.strides() };
            // The strides live in the array, which outlives the segment's construction.
            (view.pointer, strides.to_vec())
        };
        let (lo, hi) = (operand(&lower), operand(&upper));
        let mut operands: [Option<Strided>; OPERANDS] = [None; OPERANDS];
        operands[INPUT] = Some(input.strided());
        operands[OUTPUT] = Some(output.strided());
        operands[LOWER] = Some(Strided { pointer: lo.0, strides: &lo.1 });
        operands[UPPER] = Some(Strided { pointer: hi.0, strides: &hi.1 });
        // SAFETY: all arrays are alive and of one shape; the output was checked or is fresh, and
        // bounds that overlap it were copied by the caller.
        unsafe { Segment::new(input.dtype, input.shape(), operands) }
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
    detached(py, || {
        let plan = Plan::new(&segments);
        // SAFETY: checked above.
        unsafe { clip::clamp(Context::current(), &segments, &plan, bounds) };
        Ok(())
    })?;
    Ok(output.object.clone())
}

/// Refuses outputs that do not fit their inputs, as every call that is given some does.
#[pyfunction]
#[pyo3(signature = (tensors, out, names, /))]
pub fn check_outputs<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    out: Bound<'py, PyAny>,
    names: Names<'py>,
) -> PyResult<()> {
    let destination = Destination::Given(out);
    Batch::new(py, tensors, &destination, Takes::Floats, names.input(), names.output()).map(drop)
}

/// Refuses outputs that share memory with other arrays that a call reads.
#[pyfunction]
#[pyo3(signature = (tensors, out, names, /))]
pub fn check_apart<'py>(
    tensors: &Bound<'py, PyAny>,
    out: &Bound<'py, PyAny>,
    names: Names<'py>,
) -> PyResult<()> {
    let inputs = views(tensors, Takes::Any, names.input())?;
    let outputs = views(out, Takes::Any, names.output())?;
    Ok(overlap::check(&inputs, &outputs, false, names.input(), names.output())?)
}

/// What makes up slices: for each array, whether each axis is reduced.
type Axes = Vec<Vec<bool>>;

/// The norms of each array's slices, as float64 arrays whose reduced axes have length 1.
#[pyfunction]
#[pyo3(signature = (tensors, axes, p, norms, names, /))]
pub fn slice_norms<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    axes: Axes,
    p: f64,
    norms: &Bound<'py, PyAny>,
    names: Names<'py>,
) -> PyResult<()> {
    let batch = Batch::new(py, tensors, &Destination::Nothing, Takes::Floats, names.input(), names.output())?;
    let results = views(norms, Takes::Floats, names.output())?;
    let slices = sliced(&batch, &axes, &results, &[], Order::new(p))?;
    detached(py, || {
        for slices in &slices {
            // SAFETY: `norms` are fresh arrays of the caller in `fastclip`; nothing else is written.
            unsafe { slices.run(Context::current()) };
        }
        Ok(())
    })
}

/// Clips the slices of each array by their own norms. `bounds` are float64 arrays that broadcast
/// against them: the reduced axes have length 1.
#[pyfunction]
#[pyo3(signature = (tensors, axes, bounds, p, out, names, /))]
pub fn clip_slices<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    axes: Axes,
    bounds: &Bound<'py, PyAny>,
    p: f64,
    out: Option<Bound<'py, PyAny>>,
    names: Names<'py>,
) -> PyResult<Bound<'py, PyList>> {
    let destination = Destination::from(out);
    let batch = Batch::new(py, tensors, &destination, Takes::Floats, names.input(), names.output())?;
    let bounds = views(bounds, Takes::Floats, names.output())?;
    let slices = sliced(&batch, &axes, &[], &bounds, Order::new(p))?;
    detached(py, || {
        for slices in &slices {
            // SAFETY: the batch was checked.
            unsafe { slices.run(Context::current()) };
        }
        Ok(())
    })?;
    batch.results(py)
}

/// The arrays of a batch as slices, with their norms or bounds.
fn sliced(
    batch: &Batch,
    axes: &Axes,
    norms: &[Option<View>],
    bounds: &[Option<View>],
    order: Order,
) -> PyResult<Vec<Slices>> {
    let refuse =
        |what: &str| PyErr::from(Error::Value(format!("fastclip._core: {what} do not fit the arrays")));
    if axes.len() != batch.inputs.len() {
        return Err(refuse("axes"));
    }
    let mut found = Vec::with_capacity(batch.segments.len());
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
        let float64 = |views: &[Option<View>], what| match views.get(index) {
            None | Some(None) => Ok(None),
            Some(Some(view)) if reduced.len() == shape.len() && fits(view) => {
                Ok(Some((view.pointer, view.strides().to_vec())))
            }
            Some(Some(_)) => Err(refuse(what)),
        };
        let (norms, bounds) = (float64(norms, "norms")?, float64(bounds, "bounds")?);
        if norms.is_none() && bounds.is_none() {
            return Err(refuse("norms and bounds"));
        }
        let mut operands: [Option<Strided>; OPERANDS] = [None; OPERANDS];
        operands[INPUT] = Some(input.strided());
        operands[OUTPUT] = batch.outputs().get(index).and_then(Option::as_ref).map(View::strided);
        operands[NORMS] = norms.as_ref().map(|(pointer, strides)| Strided { pointer: *pointer, strides });
        operands[BOUNDS] = bounds.as_ref().map(|(pointer, strides)| Strided { pointer: *pointer, strides });
        // SAFETY: the arrays are alive; outputs were checked; norms and bounds have one float64 per
        // slice, checked above.
        found.push(unsafe { Slices::new(input.dtype, shape, reduced, operands, order) });
    }
    Ok(found)
}
