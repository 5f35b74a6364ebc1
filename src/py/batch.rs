//! The arrays of one call: looked at, checked against each other, and described to the executor.

use super::output::Outputs;
use super::overlap;
use super::view::{Known, Label, Takes, View};
use crate::error::Error;
use crate::plan::Plan;
use crate::segment::{INPUT, OUTPUT, Segment};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// Where results go.
pub enum Destination<'py> {
    /// Nowhere: only numbers are wanted.
    Nothing,
    /// To fresh arrays.
    Fresh,
    /// To these, one for each input.
    Given(Bound<'py, PyAny>),
}

impl<'py> From<Option<Bound<'py, PyAny>>> for Destination<'py> {
    fn from(out: Option<Bound<'py, PyAny>>) -> Self {
        out.map_or(Self::Fresh, Self::Given)
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

/// A list or tuple as a list of its own.
fn listed<'py>(tensors: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    match tensors.cast::<PyList>() {
        Ok(list) => Ok(list.get_slice(0, list.len())),
        Err(_) => tensors.cast::<PyTuple>().map(PyTupleMethods::to_list).map_err(PyErr::from),
    }
}

/// Looks at every entry of a list or tuple.
pub fn views<'py>(
    tensors: &Bound<'py, PyAny>,
    takes: Takes,
    label: Label<'_, '_>,
) -> PyResult<Vec<Option<View<'py>>>> {
    let mut known = Known::default();
    let mut found = Vec::with_capacity(tensors.len().unwrap_or(0));
    let mut look = |(index, entry): (usize, Bound<'py, PyAny>)| -> PyResult<()> {
        found.push(if entry.is_none() {
            None
        } else {
            Some(View::new(entry, takes, &mut known, || label.of(index))?)
        });
        Ok(())
    };
    if let Ok(list) = tensors.cast::<PyList>() {
        list.iter().enumerate().try_for_each(&mut look)?;
    } else if let Ok(tuple) = tensors.cast::<PyTuple>() {
        tuple.iter().enumerate().try_for_each(&mut look)?;
    } else {
        return Err(PyTypeError::new_err("tensors must be a list or a tuple of arrays"));
    }
    Ok(found)
}

impl<'py> Batch<'py> {
    /// Looks at everything and refuses what does not fit. Nothing is written.
    pub fn new(
        py: Python<'py>,
        tensors: &Bound<'py, PyAny>,
        destination: &Destination<'py>,
        takes: Takes,
        input_label: Label<'_, '_>,
        output_label: Label<'_, '_>,
    ) -> PyResult<Self> {
        let in_place = matches!(destination, Destination::Given(out) if out.is(tensors));
        // The list may be changed by another thread while we work: what is looked at is what is returned.
        let own = if in_place { Some(listed(tensors)?) } else { None };
        let inputs = views(own.as_ref().map_or(tensors, |list| list.as_any()), takes, input_label)?;
        let targets = match destination {
            Destination::Nothing => Targets::Nowhere,
            Destination::Fresh => Targets::Arrays(fresh(py, &inputs)?),
            Destination::Given(out) => {
                if let Some(own) = own {
                    check_given(&inputs, &inputs, input_label, output_label)?;
                    Targets::Inputs(own)
                } else {
                    let outputs = views(out, Takes::Any, output_label)?;
                    check_given(&inputs, &outputs, input_label, output_label)?;
                    Targets::Arrays(outputs)
                }
            }
        };
        let mut batch = Self { inputs, targets, segments: Vec::new(), plan: Plan::default() };
        batch.segments = batch.describe();
        batch.plan = Plan::new(&batch.segments);
        Ok(batch)
    }

    fn describe(&self) -> Vec<Segment> {
        let outputs = self.outputs();
        let mut segments = Vec::with_capacity(self.inputs.len());
        for (index, input) in self.inputs.iter().enumerate() {
            if let Some(input) = input {
                segments.push(segment(input, outputs.get(index).and_then(Option::as_ref)));
            }
        }
        segments
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

    /// The outputs as a list, None where the input is.
    pub fn results(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        if let Targets::Inputs(list) = &self.targets {
            return Ok(list.clone());
        }
        let none = py.None();
        let entry = |output: &'_ Option<View<'py>>| match output {
            Some(view) => view.object.clone(),
            None => none.bind(py).clone(),
        };
        PyList::new(py, self.outputs().iter().map(entry))
    }

    /// Whether a norm over all is float64: whether an input is.
    pub fn is_wide(&self) -> bool {
        self.present().any(|view| view.dtype.scalar == crate::scalar::Scalar::F64)
    }
}

/// Fresh arrays like these.
pub fn fresh<'py>(py: Python<'py>, inputs: &[Option<View<'py>>]) -> PyResult<Vec<Option<View<'py>>>> {
    let mut outputs = Outputs::new(py, inputs.iter().flatten());
    let mut known = Known::default();
    let make = |input: &Option<View<'py>>| {
        let Some(input) = input else { return Ok(None) };
        let array = outputs.like(input)?;
        Ok(Some(View::new(array, Takes::Any, &mut known, String::new)?))
    };
    inputs.iter().map(make).collect()
}

/// Refuses outputs that are not like their inputs, or whose memory is not free to be written.
pub fn check_given(
    inputs: &[Option<View<'_>>],
    outputs: &[Option<View<'_>>],
    input_label: Label<'_, '_>,
    output_label: Label<'_, '_>,
) -> PyResult<()> {
    if inputs.len() != outputs.len() {
        return Err(Error::Value(format!(
            "{} has {} entries and {} has {}: they must be as many",
            output_label.argument(),
            outputs.len(),
            input_label.argument(),
            inputs.len()
        ))
        .into());
    }
    for (index, (input, output)) in inputs.iter().zip(outputs).enumerate() {
        let (name, of) = (|| output_label.of(index), || input_label.of(index));
        match (input, output) {
            (None, None) => {}
            (Some(input), Some(output)) => {
                let fits = output.dtype == input.dtype
                    && (std::ptr::eq(output.object.as_ptr(), input.object.as_ptr())
                        || output.shape() == input.shape());
                if !fits {
                    return Err(Error::Value(format!(
                        "{} is {} where {} is {}: dtype and shape must be the same",
                        name(),
                        output.describe(),
                        of(),
                        input.describe()
                    ))
                    .into());
                }
                if !output.is_writable() {
                    return Err(Error::Value(format!(
                        "{} ({}) is read-only: a writable array is needed to put the result in",
                        name(),
                        output.describe()
                    ))
                    .into());
                }
            }
            (Some(_), None) => {
                return Err(Error::Value(format!("{} is None where {} is an array", name(), of())).into());
            }
            (None, Some(_)) => {
                return Err(Error::Value(format!("{} is an array where {} is None", name(), of())).into());
            }
        }
    }
    Ok(overlap::check(inputs, outputs, true, input_label, output_label)?)
}

/// An input and its output as a segment.
pub fn segment(input: &View, output: Option<&View>) -> Segment {
    let run = |view: &View| view.is_aligned() && view.is_c_order();
    // SAFETY: the views keep their arrays alive; outputs were checked to be writable and apart from
    // everything else, or are fresh.
    unsafe {
        if run(input) && output.is_none_or(run) {
            let mut base = [std::ptr::null_mut(); crate::segment::OPERANDS];
            base[INPUT] = input.pointer;
            base[OUTPUT] = output.map_or(std::ptr::null_mut(), |view| view.pointer);
            return Segment::dense(input.dtype, input.size * input.dtype.parts(), base);
        }
        let operands = [Some(input.strided()), output.map(View::strided), None, None];
        Segment::new(input.dtype, input.shape(), operands)
    }
}
