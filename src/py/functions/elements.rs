//! Clipping of each element by a bound of its own and the norm of its slice.

use super::slices::{SlicedTensors, does_not_fit};
use crate::allocation::with_capacity;
use crate::engine::segment::Operand;
use crate::engine::workspace::Context;
use crate::operations::axes::elements::{self, Elements};
use crate::operations::magnitude::Order;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::call_arrays::Destination;
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::list::views;
use crate::py::arrays::view::View;
use crate::py::call::{before_writing, detached, entry};
use crate::py::raise::check_memory;
use crate::py::trees::Tree;
use pyo3::prelude::*;

/// Clips each element of each tensor of a tree by its own bound and the norm of its slice. `axes` has one list of bools
/// for each tensor: whether each axis is reduced. `bounds` has one array of float32 or float64 for each tensor, with as many axes, each
/// of length 1 or that of the tensor's axis. `out` is a tree of outputs, which may be the same tree. Returns the outputs.
#[pyfunction]
#[pyo3(signature = (tensors, axes, bounds, p, out, /))]
pub fn clip_elements<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, Tree>,
    axes: &Bound<'py, PyAny>,
    bounds: &Bound<'py, PyAny>,
    p: f64,
    out: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(py, || {
        let destination = Destination::of_containers(py, tensors.as_any(), tensors.get(), out.as_ref())?;
        let tensors = SlicedTensors::new(py, tensors.get(), axes, &destination)?;
        let bounds = views(bounds, AcceptedDTypes::Floats, ArgumentName::List("bounds"))?;
        let mut tensors_with_bounds = with_bounds(&tensors, &bounds, Order::new(p))?;
        let lent = tensors.arrays.lent()?;
        check_memory(py)?;
        detached(py, || {
            let context = Context::current();
            for tensor in &mut tensors_with_bounds {
                tensor.measure(context)?;
            }
            let (plan, workspace) = elements::prepare(context, &tensors_with_bounds)?;
            before_writing(plan.bytes(), &lent)?;
            elements::clip(&workspace, &mut tensors_with_bounds, &plan);
            Ok(())
        })?;
        tensors.arrays.count_change()?;
        tensors.arrays.results(py)
    })
}

/// Describes tensors with the bounds of their elements.
fn with_bounds(tensors: &SlicedTensors, bounds: &[Option<View>], order: Order) -> PyResult<Vec<Elements>> {
    let mut described = with_capacity(tensors.arrays.segments.len())?;
    for (index, input, is_reduced) in tensors.inputs() {
        let shape = input.shape();
        if is_reduced.len() != shape.len() {
            return Err(does_not_fit("axes"));
        }
        let fits = |view: &&View| {
            matches!(view.dtype.name(), "float32" | "float64")
                && view.shape().len() == shape.len()
                && view.shape().iter().zip(shape).all(|(len, input_len)| *len == 1 || len == input_len)
        };
        let Some(bound) = bounds.get(index).and_then(Option::as_ref).filter(fits) else {
            return Err(does_not_fit("bounds"));
        };
        let Some(output) = tensors.output(index) else { return Err(does_not_fit("outputs")) };
        let mut strides: Vec<isize> = with_capacity(shape.len())?;
        let axes = bound.shape().iter().zip(bound.strides());
        strides.extend(axes.map(|(len, stride)| if *len == 1 { 0 } else { *stride }));
        let bound = Operand { strides: &strides, ..bound.operand() };
        let operands = [input.operand(), output.operand().written(), bound];
        // SAFETY: the arrays are alive; outputs were checked; the bounds broadcast to the input's shape, checked above.
        described.push(unsafe { Elements::new(input.dtype, shape, is_reduced, operands, order)? });
    }
    Ok(described)
}
