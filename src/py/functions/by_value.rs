//! Clipping of elements to a range.

use crate::allocation::filled;
use crate::engine::plan::Plan;
use crate::engine::segment::{INPUT, LOWER, OPERANDS, OUTPUT, Operand, Segment, UPPER};
use crate::engine::workspace::{Context, Workspace};
use crate::error::Error;
use crate::operations::clip::{self, Bounds};
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::batch::{fresh, segment};
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::list::views;
use crate::py::arrays::output_check::check_given;
use crate::py::arrays::view::View;
use crate::py::objects;
use crate::py::raise::{check_memory, detached, entry};
use pyo3::prelude::*;

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
            let mut operands: [Option<Operand>; OPERANDS] = [None; OPERANDS];
            operands[INPUT] = Some(input.operand());
            operands[OUTPUT] = Some(output.operand().written());
            operands[LOWER] = Some(Operand { strides: strides(&lower), ..lower.operand() });
            operands[UPPER] = Some(Operand { strides: strides(&upper), ..upper.operand() });
            // SAFETY: all arrays are alive and of one shape; the output was checked or is fresh, and
            // bounds that overlap it were copied by the caller.
            unsafe { Segment::new(false, input.shape(), operands)? }
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
        let mut segments = [segment];
        let plan = Plan::new(&segments)?;
        let workspace = Workspace::new(Context::current(), &segments, &plan)?;
        check_memory(py)?;
        detached(py, || {
            clip::clamp(&workspace, &mut segments, &plan, bounds);
            Ok(())
        })?;
        Ok(output.owner().clone())
    })
}
