//! Clipping of elements by bounds of their own and the norms of their slices.

use super::slices::{misfit, reduced_axes};
use crate::allocation::with_capacity;
use crate::engine::segment::Operand;
use crate::engine::workspace::Context;
use crate::operations::axes::elements::{self, Elements};
use crate::operations::magnitude::Order;
use crate::py::arrays::argument_name::ArgumentNames;
use crate::py::arrays::batch::{Batch, Destination};
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::list::views;
use crate::py::arrays::view::View;
use crate::py::raise::{before_writing, check_memory, detached, entry};
use pyo3::prelude::*;
use pyo3::types::PyList;

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
            elements::clip(&workspace, &mut found, &plan);
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
        let bound = Operand { strides: &strides, ..bound.operand() };
        let operands = [input.operand(), output.operand().written(), bound];
        // SAFETY: the arrays are alive; outputs were checked; the bounds reach as far as the array, checked above.
        found.push(unsafe { Elements::new(input.dtype, shape, reduced, operands, order)? });
    }
    Ok(found)
}
