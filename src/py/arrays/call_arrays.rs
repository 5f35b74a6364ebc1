//! The input and output tensors of one call, checked and described as segments.

use super::argument_name::ArgumentName;
use super::dtypes::AcceptedDTypes;
use super::output::results_like;
use super::output_check::check_outputs;
use super::overlap;
use super::segment::append_segment;
use super::view::View;
use crate::allocation::{OutOfMemory, with_capacity};
use crate::engine::plan::Plan;
use crate::engine::segment::Segment;
use crate::py::call::SIGNAL_BYTES;
use crate::py::objects;
use crate::py::raise::check_memory;
use crate::py::tensors::door::{Access, Prepared, open_both};
use crate::py::tensors::opened::{Lent, Opened};
use crate::py::trees::{Tree, TreeArgument};
use crate::scalar::Scalar;
use pyo3::prelude::*;

/// The destination of a call's results.
pub enum Destination<'py> {
    /// No tensors are written: the results are numbers.
    Nowhere,
    /// New tensors are allocated.
    New,
    /// The inputs are written.
    Inputs,
    /// Other tensors are written, of the structure of the inputs.
    Tensors(TreeArgument<'py>),
}

impl<'py> Destination<'py> {
    /// Returns the destination of a call on containers with the argument `out`.
    pub fn of_containers(
        py: Python<'py>,
        tensors: &Bound<'py, PyAny>,
        tree: &Tree,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        match out {
            None => Ok(Self::New),
            Some(out) if out.is(tensors) => Ok(Self::Inputs),
            Some(out) => {
                let out = TreeArgument::returned_container(out, "out")?;
                out.check_same_structure(py, tree)?;
                Ok(Self::Tensors(out))
            }
        }
    }

    /// Returns the destination of a call on one tensor with the argument `out`.
    pub fn of_tensor(tensor: &Bound<'py, PyAny>, out: Option<&Bound<'py, PyAny>>) -> PyResult<Self> {
        match out {
            None => Ok(Self::New),
            Some(out) if out.is(tensor) => Ok(Self::Inputs),
            Some(out) => Ok(Self::Tensors(TreeArgument::tensor(out, "out")?)),
        }
    }
}

/// What a call computes from its inputs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Numbers that do not depend on signs, and multiples of the inputs.
    Magnitudes,
    /// Results that depend on signs.
    Values,
}

/// The tensors of one call.
pub struct CallArrays<'a, 'py> {
    tree: &'a Tree,
    destination: &'a Destination<'py>,
    opened: Opened<'py>,
    /// The outputs, unless they are the inputs or there are none.
    outputs: Opened<'py>,
    /// One segment for each input that is not None, with its output.
    pub segments: Vec<Segment>,
    /// The plan of a pass over the segments.
    pub plan: Plan,
}

impl<'a, 'py> CallArrays<'a, 'py> {
    /// Reads and checks all tensors of a call, and allocates new outputs. Writes nothing.
    pub fn new(
        py: Python<'py>,
        tree: &'a Tree,
        destination: &'a Destination<'py>,
        accepted: AcceptedDTypes,
        reads: Reads,
    ) -> PyResult<Self> {
        let in_place = matches!(destination, Destination::Inputs);
        let access = Access {
            writes: in_place,
            needs_signs: reads == Reads::Values
                || matches!(destination, Destination::New | Destination::Tensors(_)),
            is_recorded: matches!(destination, Destination::New),
        };
        let name = ArgumentName::Tree(tree);
        let inputs = Prepared::new(tree.to_open(py), accepted, access, name)?;
        let (opened, mut outputs) = match destination {
            Destination::Tensors(out) => {
                let access = Access { writes: true, needs_signs: true, is_recorded: false };
                let entries = out.to_open(py);
                let outputs = Prepared::new(entries, AcceptedDTypes::Any, access, ArgumentName::Tree(out))?;
                open_both(inputs, outputs)?
            }
            _ => (inputs.open()?, Opened::default()),
        };
        match destination {
            Destination::Nowhere => {}
            Destination::New => outputs.views = results_like(py, &opened)?,
            Destination::Inputs => {
                check_outputs(py, &opened.views, &opened.views, name, ArgumentName::InPlace(tree))?;
            }
            Destination::Tensors(out) => {
                check_outputs(py, &opened.views, &outputs.views, name, ArgumentName::Tree(out))?;
                if !opened.copied.is_empty() {
                    overlap::check(py, &opened.copied, &outputs.views, false, name, ArgumentName::Tree(out))?;
                }
            }
        }
        let mut arrays =
            Self { tree, destination, opened, outputs, segments: Vec::new(), plan: Plan::default() };
        arrays.segments = arrays.describe()?;
        arrays.plan = Plan::new(&arrays.segments)?;
        check_memory(py)?;
        Ok(arrays)
    }

    /// Describes each input that is not None, with its output, as a segment.
    fn describe(&self) -> Result<Vec<Segment>, OutOfMemory> {
        let outputs = self.outputs();
        let mut segments = with_capacity(self.inputs().len())?;
        for (index, input) in self.inputs().iter().enumerate() {
            if let Some(input) = input {
                append_segment(&mut segments, input, outputs.get(index).and_then(Option::as_ref))?;
            }
        }
        Ok(segments)
    }

    /// Returns the inputs; None for an entry that is None.
    pub fn inputs(&self) -> &[Option<View<'py>>] {
        &self.opened.views
    }

    /// Returns the outputs, one for each input; an empty slice if the call has none.
    pub fn outputs(&self) -> &[Option<View<'py>>] {
        match self.destination {
            Destination::Inputs => &self.opened.views,
            _ => &self.outputs.views,
        }
    }

    /// Returns the index, among all inputs, of each input that is not None: of each segment.
    pub fn indices(&self) -> Result<Vec<usize>, OutOfMemory> {
        let mut indices = with_capacity(self.inputs().len())?;
        indices.extend((0..self.inputs().len()).filter(|index| self.inputs()[*index].is_some()));
        Ok(indices)
    }

    /// Returns what exchange functions have lent to the call, to be checked after handlers of signals have run.
    pub fn lent(&self) -> PyResult<Lent> {
        if self.plan.bytes() < SIGNAL_BYTES {
            return Ok(Lent::default());
        }
        let mut lent = self.opened.lent()?;
        lent.append(self.outputs.lent()?)?;
        Ok(lent)
    }

    /// Returns what the call returns, if that exists before the pass that writes: the tensors that are written.
    pub fn written(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        match self.destination {
            Destination::Nowhere | Destination::New => None,
            Destination::Inputs => Some(self.tree.written(py)),
            Destination::Tensors(out) => Some(out.written(py)),
        }
    }

    /// Returns what the call returns, after the pass that writes: the tensors that were written, or new ones. Cannot fail
    /// if [`written`](Self::written) returned them before.
    pub fn results(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(written) = self.written(py) {
            return Ok(written);
        }
        let views = self.outputs();
        let result = |index: usize| match &views[index] {
            None => Ok(py.None().into_bound(py)),
            Some(view) if self.opened.has_arrays_only() => Ok(view.owner().clone()),
            Some(view) => self.opened.origin(index).result(py, view),
        };
        let results = objects::list(py, views.len(), (0..views.len()).map(result))?;
        let results = self.tree.build(results)?;
        check_memory(py)?;
        Ok(results)
    }

    /// Whether tensors are written that are not clipped: not where every output is its own input.
    pub fn writes_unclipped(&self) -> bool {
        !matches!(self.destination, Destination::Inputs)
            && self.inputs().iter().zip(self.outputs()).any(|(input, output)| match (input, output) {
                (Some(input), Some(output)) => !output.is_same_memory(input),
                _ => false,
            })
    }

    /// Counts a change of the tensors that were written.
    pub fn count_change(&self) -> PyResult<()> {
        match self.destination {
            Destination::Inputs => self.opened.count_change(),
            Destination::Tensors(_) => self.outputs.count_change(),
            Destination::Nowhere | Destination::New => Ok(()),
        }
    }

    /// Whether an input is float64, or complex with float64 parts: then the norm of all inputs is float64.
    pub fn has_float64(&self) -> bool {
        self.inputs().iter().flatten().any(|view| view.dtype.scalar == Scalar::F64)
    }
}
