//! Clipping of elements to a range.

use crate::allocation::{OutOfMemory, filled};
use crate::engine::plan::Plan;
use crate::engine::segment::{INPUT, LOWER, OPERANDS, OUTPUT, Operand, Segment, UPPER};
use crate::engine::workspace::{Context, Workspace};
use crate::error::Error;
use crate::operations::clamp::{Bounds, clamp};
use crate::py::arrays::call_arrays::{CallArrays, Destination, Reads};
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::segment::segment;
use crate::py::arrays::view::View;
use crate::py::call::{detached, entry};
use crate::py::raise::check_memory;
use crate::py::trees::TreeArgument;
use crate::scalar::Scalar;
use pyo3::prelude::*;
use pyo3::types::PyFloat;

/// Clips the elements of a tensor to a range. `lower` and `upper` are two numbers, if the tensor has floats, which are
/// rounded to its dtype; or arrays of its dtype, each with one element or the tensor's shape; those of a bfloat16 tensor
/// may be uint16, with the bits of bfloat16. Returns the output.
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
        let mut cache = DTypeCache::default();
        let mut read = |object: Bound<'py, PyAny>, name: &str| match object.cast_exact::<PyFloat>() {
            Ok(number) => Ok(Limit::Number(number.value())),
            Err(_) => {
                View::new(object, AcceptedDTypes::Ordered, &mut cache, || name.into()).map(Limit::Array)
            }
        };
        let limits = [read(lower, "clip_value_min")?, read(upper, "clip_value_max")?];
        let tree = TreeArgument::tensor(tensor, "t")?;
        let destination = Destination::of_tensor(tensor, out.as_ref())?;
        let arrays = CallArrays::new(py, &tree, &destination, AcceptedDTypes::Ordered, Reads::Values)?;
        let ([Some(input)], [Some(output)]) = (arrays.inputs(), arrays.outputs()) else {
            return Err(Error::Type("t is None; it takes an array".into()).into());
        };
        let has_dtype = |bound: &View| {
            bound.dtype == input.dtype
                || input.dtype.scalar == Scalar::BF16 && bound.dtype.scalar == Scalar::U16
        };
        let fits = |v: &View| has_dtype(v) && (v.size == 1 || v.shape() == input.shape());
        let (segment, bounds) = match &limits {
            [Limit::Number(lower), Limit::Number(upper)] if input.dtype.scalar.is_float() => {
                (segment(input, Some(output))?, Bounds::Numbers([*lower, *upper]))
            }
            [Limit::Array(lower), Limit::Array(upper)] if fits(lower) && fits(upper) => {
                if lower.size == 1 && upper.size == 1 {
                    (segment(input, Some(output))?, Bounds::Same([lower, upper].map(element)))
                } else {
                    (segment_with_bounds(input, output, lower, upper)?, Bounds::Each)
                }
            }
            _ => {
                return Err(Error::Value("the bounds must have the type and the shape of t".into()).into());
            }
        };
        let mut segments = [segment];
        let plan = Plan::new(&segments)?;
        let workspace = Workspace::new(Context::current(), &segments, &plan)?;
        check_memory(py)?;
        detached(py, || {
            clamp(&workspace, &mut segments, &plan, bounds);
            Ok(())
        })?;
        arrays.count_change()?;
        arrays.results(py)
    })
}

/// A bound of the range.
enum Limit<'py> {
    /// The same number for all elements, which takes less time than an array.
    Number(f64),
    Array(View<'py>),
}

/// Returns the bytes of the element of an array that has one, padded with zeros.
fn element(view: &View) -> [u8; 8] {
    let mut bytes = [0; 8];
    // SAFETY: the array has one element. Its dtype has an order, and so at most eight bytes.
    unsafe { view.pointer.copy_to_nonoverlapping(bytes.as_mut_ptr(), view.dtype.size()) };
    bytes
}

/// Describes input, output and bounds as a segment. A bound with one element is broadcast by strides of 0; other bounds
/// have the input's shape.
fn segment_with_bounds(
    input: &View,
    output: &View,
    lower: &View,
    upper: &View,
) -> Result<Segment, OutOfMemory> {
    let zeros = filled(0, input.shape().len())?;
    let [lower, upper] = [lower, upper].map(|bound| {
        let strides = if bound.size == 1 { zeros.as_slice() } else { bound.strides() };
        // Bounds of a bfloat16 tensor may be uint16 with the bits of bfloat16.
        Some(Operand { strides, scalar: input.dtype.scalar, ..bound.operand() })
    });
    let mut operands: [Option<Operand>; OPERANDS] = [None; OPERANDS];
    operands[INPUT] = Some(input.operand());
    operands[OUTPUT] = Some(output.operand().written());
    operands[LOWER] = lower;
    operands[UPPER] = upper;
    // SAFETY: all arrays are alive, and broadcast to one shape. The output was checked, or is a new array, and the caller
    // in `fastclip` copied bounds that overlap it.
    unsafe { Segment::new(false, input.shape(), operands) }
}
