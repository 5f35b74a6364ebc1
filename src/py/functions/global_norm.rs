//! Clipping by the norm of all tensors together.

use super::nonfinite::Policy;
use crate::allocation::{collect, with_capacity};
use crate::engine::workspace::{Context, Workspace};
use crate::error::Error;
use crate::kernels::scale::Factor;
use crate::operations::clip::{self, Action, Actions};
use crate::operations::magnitude::{Magnitude, Order, combine};
use crate::operations::norms::measure;
use crate::py::arrays::argument_name::{ArgumentName, ArgumentNames};
use crate::py::arrays::batch::{Batch, Destination};
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::view::View;
use crate::py::norm_scalar::Scalar;
use crate::py::objects::{extract, number};
use crate::py::raise::{before_writing, check_memory, detached, entry, refuse_nonfinite};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

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
        let mut batch =
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

        let mut segments = std::mem::take(&mut batch.segments);
        let plan = &batch.plan;
        let workspace = Workspace::new(Context::current(), &segments, plan)?;
        check_memory(py)?;
        let wants_norms = norms.is_some() && own.is_none();
        let (norm, found, refused) = detached(py, || {
            let (found, total, total_order) = if let Some(known) = known {
                (Vec::new(), known, Order::Max)
            } else {
                let found = measure(&workspace, &segments, plan, order)?;
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
            clip::apply(&workspace, &mut segments, plan, Actions::All(action));
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
