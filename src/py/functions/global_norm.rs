//! Clipping by the norm of all tensors together.

use super::norms::nonfinite_segments;
use super::on_nonfinite::OnNonFinite;
use crate::allocation::collect;
use crate::engine::workspace::{Context, Workspace};
use crate::error::Error;
use crate::kernels::scale::Factor;
use crate::operations::clip::{self, Action, Actions};
use crate::operations::magnitude::{Magnitude, Order, combine};
use crate::operations::norms::measure;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::call_arrays::{CallArrays, Destination, Reads};
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::view::View;
use crate::py::call::{before_writing, detached, entry};
use crate::py::norm_scalar::NormScalar;
use crate::py::objects::{extract, to_f64};
use crate::py::raise::{check_memory, nonfinite_error};
use crate::py::trees::TreeArgument;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// A global norm that was computed before the call: `use_norm`, or the norm of all processes.
#[derive(FromPyObject)]
pub struct KnownNorm<'py> {
    /// Mantissa of the norm.
    #[pyo3(item(0))]
    mantissa: f64,
    /// Exponent of two of the norm.
    #[pyo3(item(1))]
    exponent: i32,
    /// Whether the norm is returned as float64: an input of some process is float64.
    #[pyo3(item(2))]
    is_float64: bool,
    /// The norm of each tensor of this call if it was measured; else None.
    #[pyo3(item(3))]
    tensor_norms: Option<Bound<'py, PyAny>>,
    /// Indices, among the tensors that are not None, of those that contain NaN or infinity.
    #[pyo3(item(4))]
    nonfinite: Bound<'py, PyAny>,
}

impl KnownNorm<'_> {
    fn magnitude(&self) -> Magnitude {
        Magnitude { value: self.mantissa, exponent: self.exponent }
    }

    /// Converts the norms of this call's tensors, if there are any.
    fn tensor_norms(
        &self,
        arrays: &CallArrays<'_, '_>,
        input_name: ArgumentName<'_>,
    ) -> PyResult<Option<Vec<f64>>> {
        let Some(norms) = &self.tensor_norms else { return Ok(None) };
        let norms = extract(norms, to_f64)?;
        if norms.len() != arrays.segments.len() {
            return Err(Error::Value(format!(
                "{} has {} arrays, and had another number when its norm was taken",
                input_name.argument(),
                arrays.segments.len()
            ))
            .into());
        }
        Ok(Some(norms))
    }
}

/// Clips tensors by the norm of all of them together.
///
/// Returns the tuple of the list of outputs and the norm, a NumPy scalar. `known_norm` is the norm, if it was computed
/// before. The norm of each tensor is written to the array `norms` if there is one.
#[pyfunction]
#[pyo3(signature = (t_list, bound, known_norm, p, out, on_nonfinite, norms, /))]
pub fn clip_by_global_norm<'py>(
    py: Python<'py>,
    t_list: &Bound<'py, PyAny>,
    bound: f64,
    known_norm: Option<KnownNorm<'py>>,
    p: f64,
    out: Option<Bound<'py, PyAny>>,
    on_nonfinite: &str,
    norms: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyTuple>> {
    entry(py, || {
        let on_nonfinite = OnNonFinite::from_name(on_nonfinite)?;
        let order = Order::new(p);
        let tree = TreeArgument::returned_container(t_list, "t_list")?;
        let destination = Destination::of_containers(py, t_list, &tree, out.as_ref())?;
        let mut arrays = CallArrays::new(py, &tree, &destination, AcceptedDTypes::Floats, Reads::Magnitudes)?;
        let name = ArgumentName::Tree(&tree);
        let norms = norms.map(|array| norms_view(py, &arrays, array, name)).transpose()?;
        let mut tensor_norms = match &known_norm {
            Some(known_norm) => known_norm.tensor_norms(&arrays, name)?,
            None => None,
        };
        let known_magnitude = known_norm.as_ref().map(KnownNorm::magnitude);
        let is_float64 =
            known_norm.as_ref().map_or_else(|| arrays.has_float64(), |known_norm| known_norm.is_float64);
        // The objects that are returned are created now, except for new tensors: after the pass that writes to tensors of
        // the caller nothing may fail.
        let scalar = NormScalar::new(py, is_float64)?;
        let answer = match arrays.written(py) {
            Some(written) => Ok(scalar.after(&written)?),
            None => Err(scalar),
        };
        let lent = arrays.lent()?;

        let (segments, plan) = (&mut arrays.segments, &arrays.plan);
        let workspace = Workspace::new(Context::current(), segments, plan)?;
        check_memory(py)?;
        let needs_tensor_norms = norms.is_some() && tensor_norms.is_none();
        let (norm, magnitudes, taken) = detached(py, || {
            let (magnitudes, total, total_order) = if let Some(magnitude) = known_magnitude {
                // A known norm is no sum of powers: it is its own root, as with the order of the maximum.
                (Vec::new(), magnitude, Order::Max)
            } else {
                let magnitudes = measure(&workspace, segments, plan, order)?;
                let total = combine(&magnitudes, order);
                (magnitudes, total, order)
            };
            if needs_tensor_norms {
                tensor_norms = Some(collect(magnitudes.iter().map(|magnitude| magnitude.norm(order)))?);
            }
            before_writing(plan.bytes(), &lent)?;
            let norm = total.norm(total_order);
            let Some(action) = action(total, total_order, bound, known_magnitude.is_some(), on_nonfinite)
            else {
                return Ok((norm, magnitudes, None));
            };
            clip::apply(&workspace, segments, plan, Actions::All(action));
            Ok((norm, magnitudes, Some(action)))
        })?;
        let Some(action) = taken else {
            let nonfinite = match &known_norm {
                Some(known_norm) => extract(&known_norm.nonfinite, |index| index.extract())?,
                None => nonfinite_segments(&magnitudes)?,
            };
            if tensor_norms.is_none() && known_norm.is_none() {
                tensor_norms = Some(collect(magnitudes.iter().map(|magnitude| magnitude.norm(order)))?);
            }
            let indices = arrays.indices()?;
            let nonfinite = nonfinite.into_iter().filter_map(|segment: usize| indices.get(segment).copied());
            return Err(nonfinite_error(py, nonfinite, name, norm, tensor_norms.as_deref()));
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(scalar) => scalar.after(&arrays.results(py)?)?,
        };
        if let (Some(norms), Some(tensor_norms)) = (norms, tensor_norms) {
            write_norms(&norms, &tensor_norms);
        }
        if action != Action::Keep || arrays.writes_unclipped() {
            arrays.count_change()?;
        }
        Ok(answer.finish(norm))
    })
}

/// Returns the action that bounds tensors of the norm `total`; `None` if the call is to raise.
fn action(
    total: Magnitude,
    order: Order,
    bound: f64,
    is_known: bool,
    on_nonfinite: OnNonFinite,
) -> Option<Action> {
    if total.is_finite() {
        let factor = total.factor(order, 1.0, bound);
        // The bound 0 gives zeros for every norm, also for a known norm of 0.
        let factor = factor.or_else(|| (bound == 0.0 && is_known).then_some(Factor::ZERO));
        return Some(factor.map_or(Action::Keep, Action::Scale));
    }
    match on_nonfinite {
        OnNonFinite::Propagate => Some(Action::FillNan),
        OnNonFinite::Zero => Some(Action::FillZero),
        OnNonFinite::Raise => None,
    }
}

/// Checks the array that the norms of the tensors are written to: float64, writable, one element for each segment, and
/// disjoint from inputs and outputs.
fn norms_view<'py>(
    py: Python<'py>,
    arrays: &CallArrays<'_, 'py>,
    array: Bound<'py, PyAny>,
    input_name: ArgumentName<'_>,
) -> PyResult<View<'py>> {
    let count = arrays.segments.len();
    let view = View::new(array, AcceptedDTypes::Floats, &mut DTypeCache::default(), || "norms".into())?;
    let fits = view.dtype.name() == "float64" && view.shape() == [count] && view.is_writable();
    if !fits || view.may_overlap_itself()? {
        return Err(Error::Value(format!(
            "norms is {}; it takes a writable float64 array of shape ({count},), one for each array in {}",
            if view.is_writable() { view.describe() } else { "read-only".into() },
            input_name.argument(),
        ))
        .into());
    }
    if arrays.inputs().iter().chain(arrays.outputs()).flatten().any(|other| view.range_overlaps(other)) {
        return Err(Error::Value("norms shares memory with an input or an output".into()).into());
    }
    check_memory(py)?;
    Ok(view)
}

/// Writes the norms of the tensors to the array that [`norms_view`] checked. Cannot fail.
fn write_norms(view: &View, norms: &[f64]) {
    let stride = view.strides().first().copied().unwrap_or(0);
    for (index, norm) in norms.iter().enumerate() {
        // SAFETY: `norms_view` checked that the array is writable float64 and has one element for each norm. It need
        // not be aligned.
        unsafe {
            view.pointer.wrapping_offset(index as isize * stride).cast::<f64>().write_unaligned(*norm);
        }
    }
}
