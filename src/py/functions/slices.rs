//! Norms of slices, and clipping of each slice by its norm. A slice has all elements of a tensor that differ only in
//! their indices along the reduced axes.

use crate::allocation::with_capacity;
use crate::engine::segment::{INPUT, OPERANDS, OUTPUT, Operand};
use crate::engine::workspace::Context;
use crate::error::Error;
use crate::operations::axes::{BOUNDS, NORMS, PreparedSlices, Slices};
use crate::operations::magnitude::Order;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::call_arrays::{CallArrays, Destination, Reads};
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::list::views;
use crate::py::arrays::view::View;
use crate::py::call::{before_writing, detached, entry, entry_that_reads};
use crate::py::objects::extract;
use crate::py::raise::check_memory;
use crate::py::tensors::opened::Lent;
use crate::py::trees::Tree;
use pyo3::prelude::*;

/// Measures the slices of each tensor of a tree. The norms are written to `norms`, one float64 array for each tensor, whose reduced
/// axes have length 1. `axes` has one list of bools for each tensor: whether each axis is reduced.
#[pyfunction]
#[pyo3(signature = (tensors, axes, p, norms, /))]
pub fn slice_norms<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, Tree>,
    axes: &Bound<'py, PyAny>,
    p: f64,
    norms: &Bound<'py, PyAny>,
) -> PyResult<()> {
    entry_that_reads(py, || {
        let destination = Destination::Nowhere;
        let tensors = SlicedTensors::new(py, tensors.get(), axes, &destination)?;
        let norms = views(norms, AcceptedDTypes::Floats, ArgumentName::List("norms"))?;
        let slices = tensors.slices(&norms, &[], Order::new(p))?;
        detached(py, || measure_and_clip(slices, &Lent::default())).map(drop)
    })
}

/// Clips each slice of each tensor of a tree by its norm. `bounds` has one float64 array for each tensor, whose reduced
/// axes have length 1. `out` is a tree of outputs, which may be the same tree. Returns the outputs.
#[pyfunction]
#[pyo3(signature = (tensors, axes, bounds, p, out, /))]
pub fn clip_slices<'py>(
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
        let slices = tensors.slices(&[], &bounds, Order::new(p))?;
        let lent = tensors.arrays.lent()?;
        check_memory(py)?;
        if detached(py, || measure_and_clip(slices, &lent))? {
            tensors.arrays.count_change()?;
        }
        tensors.arrays.results(py)
    })
}

/// Measures slices, and clips those that have an output. Everything that may fail comes before the first output is
/// written. Returns whether any output was written.
fn measure_and_clip(slices: Vec<Slices>, lent: &Lent) -> PyResult<bool> {
    let mut prepared = with_capacity(slices.len())?;
    for slices in slices {
        prepared.push(slices.prepare(Context::current())?);
    }
    before_writing(prepared.iter().map(PreparedSlices::bytes).sum(), lent)?;
    let mut is_written = false;
    for slices in &mut prepared {
        is_written |= slices.finish();
    }
    Ok(is_written)
}

/// The tensors of a call, with the axes that make up their slices.
pub(super) struct SlicedTensors<'a, 'py> {
    pub(super) arrays: CallArrays<'a, 'py>,
    /// For each input, whether each axis is reduced.
    is_reduced: Vec<Vec<bool>>,
}

impl<'a, 'py> SlicedTensors<'a, 'py> {
    /// Reads and checks the tensors of a call, its outputs, and the axes.
    pub(super) fn new(
        py: Python<'py>,
        tree: &'a Tree,
        axes: &Bound<'py, PyAny>,
        destination: &'a Destination<'py>,
    ) -> PyResult<Self> {
        let is_reduced = extract(axes, |axes| extract(axes, |axis| axis.extract()))?;
        let arrays = CallArrays::new(py, tree, destination, AcceptedDTypes::Floats, Reads::Magnitudes)?;
        if is_reduced.len() != arrays.inputs().len() {
            return Err(does_not_fit("axes"));
        }
        Ok(Self { arrays, is_reduced })
    }

    /// Returns index, view and reduced axes of each input that is not None.
    pub(super) fn inputs(&self) -> impl Iterator<Item = (usize, &View<'py>, &[bool])> {
        let inputs = self.arrays.inputs().iter().zip(&self.is_reduced).enumerate();
        inputs.filter_map(|(index, (input, is_reduced))| Some((index, input.as_ref()?, &is_reduced[..])))
    }

    /// Returns the output at `index`, if the call has outputs.
    pub(super) fn output(&self, index: usize) -> Option<&View<'py>> {
        self.arrays.outputs().get(index).and_then(Option::as_ref)
    }

    /// Describes the tensors as slices. Each tensor must have an array of norms to be written, of bounds, or both.
    fn slices(&self, norms: &[Option<View>], bounds: &[Option<View>], order: Order) -> PyResult<Vec<Slices>> {
        let mut slices = with_capacity(self.arrays.segments.len())?;
        for (index, input, is_reduced) in self.inputs() {
            let norms = per_slice(norms, "norms", index, input, is_reduced)?;
            let bounds = per_slice(bounds, "bounds", index, input, is_reduced)?;
            if norms.is_none() && bounds.is_none() {
                return Err(does_not_fit("norms and bounds"));
            }
            if norms.is_some_and(|norms| !norms.is_writable()) {
                return Err(does_not_fit("read-only norms"));
            }
            let mut operands: [Option<Operand>; OPERANDS] = [None; OPERANDS];
            operands[INPUT] = Some(input.operand());
            operands[OUTPUT] = self.output(index).map(|view| view.operand().written());
            operands[NORMS] = norms.map(|view| view.operand().written());
            operands[BOUNDS] = bounds.map(View::operand);
            // SAFETY: the arrays are alive; outputs were checked; norms and bounds have one float64 per slice, as
            // `per_slice` checked.
            slices.push(unsafe { Slices::new(input.dtype, input.shape(), is_reduced, operands, order)? });
        }
        Ok(slices)
    }
}

/// Returns the array at `index`, if there is one. It must have one float64 for each slice of `input`: the shape of
/// `input`, except that reduced axes have length 1.
fn per_slice<'a, 'py>(
    views: &'a [Option<View<'py>>],
    what: &str,
    index: usize,
    input: &View,
    is_reduced: &[bool],
) -> PyResult<Option<&'a View<'py>>> {
    let Some(view) = views.get(index).and_then(Option::as_ref) else { return Ok(None) };
    let shape = input.shape();
    let has_rank = view.shape().len() == shape.len() && is_reduced.len() == shape.len();
    let mut axes = view.shape().iter().zip(shape).zip(is_reduced);
    let fits = axes.all(|((len, input_len), is_reduced)| *len == if *is_reduced { 1 } else { *input_len });
    if has_rank && fits && view.dtype.name() == "float64" { Ok(Some(view)) } else { Err(does_not_fit(what)) }
}

/// Returns the error about arguments from `fastclip` that do not fit each other: a defect.
pub(super) fn does_not_fit(what: &str) -> PyErr {
    Error::Value(format!("fastclip._core: {what} do not fit the arrays")).into()
}
