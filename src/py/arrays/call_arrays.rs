//! The arrays of one call: looked at, checked against each other, and described to the executor.

use super::argument_name::ArgumentName;
use super::dtypes::AcceptedDTypes;
use super::list::views;
use super::output::Outputs;
use super::output_check::check_given;
use super::view::View;
use crate::allocation::{OutOfMemory, try_collect, with_capacity};
use crate::engine::plan::Plan;
use crate::engine::segment::{INPUT, OUTPUT, Segment};
use crate::py::objects;
use crate::py::raise::check_memory;
use pyo3::prelude::*;
use pyo3::types::PyList;

/// Where results go.
pub enum Destination<'py> {
    /// Nowhere: only numbers are wanted.
    Nothing,
    /// To fresh arrays.
    Fresh,
    /// To these, one for each input.
    Arrays(Bound<'py, PyAny>),
}

impl<'py> From<Option<Bound<'py, PyAny>>> for Destination<'py> {
    fn from(out: Option<Bound<'py, PyAny>>) -> Self {
        out.map_or(Self::Fresh, Self::Arrays)
    }
}

/// What a call works on.
pub struct Batch<'py> {
    /// The inputs, by their position; None where the entry is.
    pub inputs: Vec<Option<View<'py>>>,
    targets: Targets<'py>,
    /// The inputs that are there, with their outputs.
    pub segments: Vec<Segment>,
    /// The segments in chunks.
    pub plan: Plan,
}

/// Where the results of a batch are.
enum Targets<'py> {
    Nowhere,
    /// In the inputs themselves: the list of them.
    Inputs(Bound<'py, PyList>),
    Arrays(Vec<Option<View<'py>>>),
}

impl<'py> Batch<'py> {
    /// Looks at everything and refuses what does not fit. Nothing is written.
    pub fn new(
        py: Python<'py>,
        tensors: &Bound<'py, PyAny>,
        destination: &Destination<'py>,
        takes: AcceptedDTypes,
        input_label: ArgumentName<'_, '_>,
        output_label: ArgumentName<'_, '_>,
    ) -> PyResult<Self> {
        let in_place = matches!(destination, Destination::Arrays(out) if out.is(tensors));
        // The list may be changed by another thread while we work: what is looked at is what is returned.
        let own = if in_place { Some(objects::list_of(tensors)?) } else { None };
        let inputs = views(own.as_ref().map_or(tensors, |list| list.as_any()), takes, input_label)?;
        let targets = match destination {
            Destination::Nothing => Targets::Nowhere,
            Destination::Fresh => Targets::Arrays(fresh(py, &inputs)?),
            Destination::Arrays(out) => {
                if let Some(own) = own {
                    check_given(py, &inputs, &inputs, input_label, output_label)?;
                    Targets::Inputs(own)
                } else {
                    let outputs = views(out, AcceptedDTypes::Any, output_label)?;
                    check_given(py, &inputs, &outputs, input_label, output_label)?;
                    Targets::Arrays(outputs)
                }
            }
        };
        let mut batch = Self { inputs, targets, segments: Vec::new(), plan: Plan::default() };
        batch.segments = batch.describe()?;
        batch.plan = Plan::new(&batch.segments)?;
        check_memory(py)?;
        Ok(batch)
    }

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

    /// The outputs by their position; empty if there are none.
    pub fn outputs(&self) -> &[Option<View<'py>>] {
        match &self.targets {
            Targets::Nowhere => &[],
            Targets::Inputs(_) => &self.inputs,
            Targets::Arrays(outputs) => outputs,
        }
    }

    /// The inputs that are there.
    pub fn present(&self) -> impl Iterator<Item = &View<'py>> {
        self.inputs.iter().flatten()
    }

    /// The positions of the inputs that are there.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.inputs.iter().enumerate().filter_map(|(index, input)| input.as_ref().map(|_| index))
    }

    /// The outputs as a list, None where the input is. It is made before they are written: afterwards nothing may fail.
    pub fn results(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        if let Targets::Inputs(list) = &self.targets {
            return Ok(list.clone());
        }
        let entry = |output: &'_ Option<View<'py>>| {
            Ok(output.as_ref().map_or_else(|| py.None().into_bound(py), |view| view.owner().clone()))
        };
        objects::list(py, self.outputs().len(), self.outputs().iter().map(entry))
    }

    /// Whether a norm over all is float64: whether an input is.
    pub fn is_wide(&self) -> bool {
        self.present().any(|view| view.dtype.scalar == crate::scalar::Scalar::F64)
    }
}

/// Fresh arrays like these.
pub fn fresh<'py>(py: Python<'py>, inputs: &[Option<View<'py>>]) -> PyResult<Vec<Option<View<'py>>>> {
    let mut outputs = Outputs::new(py, inputs.iter().flatten());
    let make = |input: &Option<View<'py>>| input.as_ref().map(|input| outputs.like(input)).transpose();
    try_collect(inputs.len(), inputs.iter().map(make))
}

/// An input and its output as a segment.
pub fn segment(input: &View, output: Option<&View>) -> Result<Segment, OutOfMemory> {
    let is_run = |view: &View| view.is_aligned() && view.is_c_order();
    let is_complex = input.dtype.complex;
    // SAFETY: the views keep their arrays alive; outputs were checked to be writable and to overlap nothing else, or are
    // newly allocated.
    unsafe {
        if is_run(input) && output.is_none_or(is_run) {
            let mut runs = [None; crate::engine::segment::OPERANDS];
            runs[INPUT] = Some(input.run());
            runs[OUTPUT] = output.map(|view| view.run().written());
            return Ok(Segment::dense(is_complex, input.size * input.dtype.parts(), runs));
        }
        let operands = [Some(input.operand()), output.map(|view| view.operand().written()), None, None];
        Segment::new(is_complex, input.shape(), operands)
    }
}
