//! Clipping of gradients by PyTorch's rules.

use super::plain::TorchBinding;
use crate::allocation::{collect, with_capacity};
use crate::engine::plan::Plan;
use crate::engine::segment::Segment;

use crate::engine::workspace::{Context, Workspace};
use crate::operations::clamp::{Bounds, clamp};
use crate::operations::clip::{self, Action, Actions};
use crate::operations::magnitude::{Magnitude, Order, combine};
use crate::operations::norms::measure;
use crate::operations::torch_factor::TorchFactor;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::overlap;
use crate::py::arrays::segment::append_segment;
use crate::py::arrays::view::View;
use crate::py::call::{before_writing, detached, entry};
use crate::py::objects;
use crate::py::raise::check_memory;
use crate::scalar::Scalar;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyTuple};

/// The name of the gradients, for messages.
const GRADIENTS: ArgumentName<'static> = ArgumentName::List("gradients");

/// Measures gradients by the norm of order `p` of all of them together, and scales them unless `clipping` is None.
///
/// `clipping` is a tuple of a bound and a flag. The factor is `min(1, bound / (norm + 10⁻⁶))`; with the
/// flag, nothing is written if an element is NaN or infinite. `measured` are the tensors to measure instead, if the norm
/// is not that of the gradients.
///
/// Returns the norm, whether an element is NaN or infinite, whether a tensor has float64, and the list of the norms of
/// the tensors or, unless `lists_norms`, None. Returns None, and writes nothing, if a tensor is not plain.
#[pyfunction]
#[pyo3(signature = (binding, gradients, measured, p, clipping, lists_norms, /))]
pub fn torch_clip_by_global_norm<'py>(
    py: Python<'py>,
    binding: &Bound<'_, TorchBinding>,
    gradients: &Bound<'py, PyAny>,
    measured: Option<&Bound<'py, PyAny>>,
    p: f64,
    clipping: Option<(f64, bool)>,
    lists_norms: bool,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    entry(py, || {
        let order = Order::new(p);
        let Some(written) = binding.get().read(objects::copy_to_list(gradients)?, AcceptedDTypes::Floats)?
        else {
            return Ok(None);
        };
        let measured = match measured {
            Some(tensors) => {
                match binding.get().read(objects::copy_to_list(tensors)?, AcceptedDTypes::Floats)? {
                    Some(tensors) => Some(tensors),
                    None => return Ok(None),
                }
            }
            None => None,
        };
        let read = measured.as_ref().unwrap_or(&written);
        let has_float64 = read.views.iter().flatten().any(|view| view.dtype.scalar == Scalar::F64);
        let mut described = Described::new(&read.views, measured.is_none() && clipping.is_some())?;
        let mut scaled = match (&measured, clipping) {
            (Some(_), Some(_)) => Some(Described::new(&written.views, true)?),
            _ => None,
        };
        let lent = binding.get().lent([&written, read].into_iter(), described.plan.bytes())?;
        if clipping.is_some() {
            overlap::check(py, &written.views, &written.views, true, GRADIENTS, GRADIENTS)?;
        }
        let workspace = Workspace::new(Context::current(), &described.segments, &described.plan)?;
        check_memory(py)?;
        let (magnitudes, total, is_scaled) = detached(py, || {
            let magnitudes = measure(&workspace, &described.segments, &described.plan, order)?;
            let total = combine(&magnitudes, order);
            before_writing(described.plan.bytes(), &lent)?;
            let factor = match clipping {
                Some((bound, is_refused)) if total.is_finite() || !is_refused => {
                    TorchFactor::new(total, order, bound, 1.0)
                }
                _ => None,
            };
            if let Some(factor) = factor {
                let Described { segments, plan } = scaled.as_mut().unwrap_or(&mut described);
                clip::apply(&workspace, segments, plan, Actions::All(Action::Scale(factor.of_undivided)));
            }
            Ok((magnitudes, total, factor.is_some()))
        })?;
        if is_scaled {
            binding.get().count_change(&written)?;
        }
        let norms = if lists_norms { norm_list(py, &magnitudes, order)? } else { py.None().into_bound(py) };
        let norm = objects::float(py, total.norm(order))?;
        let flag = |value| PyBool::new(py, value).to_owned().into_any();
        objects::tuple(py, [norm, flag(!total.is_finite()), flag(has_float64), norms]).map(Some)
    })
}

/// Returns the magnitude of order 2 of a tensor, as a mantissa and an exponent of two, or None if the tensor is not plain.
#[pyfunction]
#[pyo3(signature = (binding, tensor, /))]
pub fn torch_magnitude<'py>(
    py: Python<'py>,
    binding: &Bound<'py, TorchBinding>,
    tensor: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    entry(py, || {
        let list = objects::list(py, 1, std::iter::once(Ok(tensor.clone())))?;
        let Some(read) = binding.get().read(list, AcceptedDTypes::Floats)? else { return Ok(None) };
        let Described { segments, plan } = Described::new(&read.views, false)?;
        let workspace = Workspace::new(Context::current(), &segments, &plan)?;
        check_memory(py)?;
        let magnitudes = detached(py, || Ok(measure(&workspace, &segments, &plan, Order::Two)?))?;
        let Magnitude { value, exponent } = combine(&magnitudes, Order::Two);
        objects::tuple(py, [objects::float(py, value)?, objects::int(py, exponent)?]).map(Some)
    })
}

/// Multiplies gradients by `min(1, bound / (norm + 10⁻⁶))`. Returns false, and writes nothing, if a tensor is not
/// plain.
#[pyfunction]
#[pyo3(signature = (binding, gradients, norm, bound, /))]
pub fn torch_clip_by_known_norm(
    py: Python<'_>,
    binding: &Bound<'_, TorchBinding>,
    gradients: &Bound<'_, PyAny>,
    norm: f64,
    bound: f64,
) -> PyResult<bool> {
    let total = Magnitude { value: norm, exponent: 0 };
    write(binding.get(), py, gradients, false, |workspace, described| {
        // The order of the maximum: the magnitude is the norm itself.
        let factor = TorchFactor::new(total, Order::Max, bound, 1.0);
        if let Some(factor) = factor {
            let Described { segments, plan } = described;
            clip::apply(workspace, segments, plan, Actions::All(Action::Scale(factor.of_undivided)));
        }
        factor.is_some()
    })
}

/// Clamps the elements of gradients to the range from `lower` to `upper`. Returns false, and writes nothing, if a
/// tensor is not plain or has complex numbers or integers.
#[pyfunction]
#[pyo3(signature = (binding, gradients, lower, upper, /))]
pub fn torch_clip_by_value(
    py: Python<'_>,
    binding: &Bound<'_, TorchBinding>,
    gradients: &Bound<'_, PyAny>,
    lower: f64,
    upper: f64,
) -> PyResult<bool> {
    write(binding.get(), py, gradients, true, |workspace, described| {
        let Described { segments, plan } = described;
        clamp(workspace, segments, plan, Bounds::Numbers([lower, upper]));
        true
    })
}

/// Writes gradients in one pass. `pass` returns whether it has written. Returns whether all tensors are plain.
fn write(
    binding: &TorchBinding,
    py: Python<'_>,
    gradients: &Bound<'_, PyAny>,
    needs_signs: bool,
    pass: impl FnOnce(&Workspace, &mut Described) -> bool + Send,
) -> PyResult<bool> {
    entry(py, || {
        let gradients = objects::copy_to_list(gradients)?;
        if needs_signs && binding.any_is_negative(&gradients)? {
            return Ok(false);
        }
        let accepted = if needs_signs { AcceptedDTypes::Reals } else { AcceptedDTypes::Floats };
        let Some(written) = binding.read(gradients, accepted)? else { return Ok(false) };
        let mut described = Described::new(&written.views, true)?;
        overlap::check(py, &written.views, &written.views, true, GRADIENTS, GRADIENTS)?;
        let workspace = Workspace::new(Context::current(), &described.segments, &described.plan)?;
        check_memory(py)?;
        let is_changed = detached(py, || Ok(pass(&workspace, &mut described)))?;
        if is_changed {
            binding.count_change(&written)?;
        }
        Ok(true)
    })
}

/// Tensors as segments, with the plan of a pass over them.
struct Described {
    segments: Vec<Segment>,
    plan: Plan,
}

impl Described {
    /// Describes tensors, which are written in place if `is_written`.
    fn new(views: &[Option<View<'_>>], is_written: bool) -> PyResult<Self> {
        let mut segments = with_capacity(views.len())?;
        for view in views.iter().flatten() {
            append_segment(&mut segments, view, is_written.then_some(view))?;
        }
        let plan = Plan::new(&segments)?;
        Ok(Self { segments, plan })
    }
}

/// Returns the list of the norms of tensors.
fn norm_list<'py>(py: Python<'py>, magnitudes: &[Magnitude], order: Order) -> PyResult<Bound<'py, PyAny>> {
    let norms: Vec<f64> = collect(magnitudes.iter().map(|magnitude| magnitude.norm(order)))?;
    let list = objects::list(py, norms.len(), norms.iter().map(|norm| objects::float(py, *norm)))?;
    Ok(list.into_any())
}
