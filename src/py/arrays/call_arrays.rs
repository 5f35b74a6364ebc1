//! The input and output arrays of one call, checked and described as segments.

use super::argument_name::ArgumentNames;
use super::dtypes::AcceptedDTypes;
use super::list::views;
use super::output::empty_like_each;
use super::output_check::check_outputs;
use super::segment::segment;
use super::view::View;
use crate::allocation::{OutOfMemory, with_capacity};
use crate::engine::plan::Plan;
use crate::engine::segment::Segment;
use crate::py::objects;
use crate::py::raise::check_memory;
use crate::scalar::Scalar;
use pyo3::prelude::*;
use pyo3::types::PyList;

/// The destination of a call's results.
pub enum Destination<'py> {
    /// No arrays are written: the results are numbers.
    Nowhere,
    /// New arrays are allocated.
    NewArrays,
    /// A list or tuple of arrays, one for each input. It may be the list of the inputs, for a call in place.
    Arrays(Bound<'py, PyAny>),
}

impl<'py> From<Option<Bound<'py, PyAny>>> for Destination<'py> {
    fn from(out: Option<Bound<'py, PyAny>>) -> Self {
        out.map_or(Self::NewArrays, Self::Arrays)
    }
}

/// The arrays of one call.
pub struct CallArrays<'py> {
    /// The inputs; None for an entry that is None.
    pub inputs: Vec<Option<View<'py>>>,
    outputs: Outputs<'py>,
    /// One segment for each input that is not None, with its output.
    pub segments: Vec<Segment>,
    /// The plan of a pass over the segments.
    pub plan: Plan,
}

/// The outputs of one call.
enum Outputs<'py> {
    /// The call has no outputs.
    None,
    /// The outputs are the inputs. The list, owned by fastclip, has the same arrays.
    Inputs(Bound<'py, PyList>),
    /// One output for each input; None where the input is None.
    Arrays(Vec<Option<View<'py>>>),
}

impl<'py> CallArrays<'py> {
    /// Reads and checks all arrays of a call that writes to `destination`, and allocates new outputs. Writes nothing.
    pub fn new(
        py: Python<'py>,
        tensors: &Bound<'py, PyAny>,
        destination: &Destination<'py>,
        accepted: AcceptedDTypes,
        names: &ArgumentNames<'py>,
    ) -> PyResult<Self> {
        let (input_name, output_name) = (names.input(), names.output());
        let in_place = matches!(destination, Destination::Arrays(out) if out.is(tensors));
        // Another thread may change the caller's list during the call. A copy of the list makes sure that the arrays
        // that are read are those that are returned.
        let list = if in_place { Some(objects::copy_to_list(tensors)?) } else { None };
        let inputs = views(list.as_ref().map_or(tensors, |list| list.as_any()), accepted, input_name)?;
        let outputs = match (destination, list) {
            (Destination::Nowhere, _) => Outputs::None,
            (Destination::NewArrays, _) => Outputs::Arrays(empty_like_each(py, &inputs)?),
            (Destination::Arrays(_), Some(list)) => {
                check_outputs(py, &inputs, &inputs, input_name, output_name)?;
                Outputs::Inputs(list)
            }
            (Destination::Arrays(out), None) => {
                let outputs = views(out, AcceptedDTypes::Any, output_name)?;
                check_outputs(py, &inputs, &outputs, input_name, output_name)?;
                Outputs::Arrays(outputs)
            }
        };
        let mut arrays = Self { inputs, outputs, segments: Vec::new(), plan: Plan::default() };
        arrays.segments = arrays.describe()?;
        arrays.plan = Plan::new(&arrays.segments)?;
        check_memory(py)?;
        Ok(arrays)
    }

    /// Describes each input that is not None, with its output, as a segment.
    fn describe(&self) -> Result<Vec<Segment>, OutOfMemory> {
        let outputs = self.outputs();
        let mut segments = with_capacity(self.inputs.len())?;
        for (index, input) in self.inputs.iter().enumerate() {
            if let Some(input) = input {
                segments.push(segment(input, outputs.get(index).and_then(Option::as_ref))?);
            }
        }
        Ok(segments)
    }

    /// Returns the outputs, one for each input; an empty slice if the call has none.
    pub fn outputs(&self) -> &[Option<View<'py>>] {
        match &self.outputs {
            Outputs::None => &[],
            Outputs::Inputs(_) => &self.inputs,
            Outputs::Arrays(outputs) => outputs,
        }
    }

    /// Returns the index, among all inputs, of each input that is not None: of each segment.
    pub fn indices(&self) -> Result<Vec<usize>, OutOfMemory> {
        let mut indices = with_capacity(self.inputs.len())?;
        indices.extend((0..self.inputs.len()).filter(|index| self.inputs[*index].is_some()));
        Ok(indices)
    }

    /// Returns a list of the outputs, None where the input is None. It must be created before the outputs are written,
    /// because nothing may fail after that.
    pub fn results(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        if let Outputs::Inputs(list) = &self.outputs {
            return Ok(list.clone());
        }
        let entry = |output: &'_ Option<View<'py>>| {
            Ok(output.as_ref().map_or_else(|| py.None().into_bound(py), |view| view.owner().clone()))
        };
        objects::list(py, self.outputs().len(), self.outputs().iter().map(entry))
    }

    /// Whether an input is float64, or complex with float64 parts: then the norm of all inputs is float64.
    pub fn has_float64(&self) -> bool {
        self.inputs.iter().flatten().any(|view| view.dtype.scalar == Scalar::F64)
    }
}
