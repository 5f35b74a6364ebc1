//! Norms of the slices of tensors, and clipping by them.

use crate::allocation::with_capacity;
use crate::engine::segment::{INPUT, OPERANDS, OUTPUT, Operand};
use crate::engine::workspace::Context;
use crate::error::Error;
use crate::operations::axes::{BOUNDS, NORMS, PreparedSlices, Slices};
use crate::operations::magnitude::Order;
use crate::py::arrays::argument_name::ArgumentNames;
use crate::py::arrays::batch::{Batch, Destination};
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::list::views;
use crate::py::arrays::view::View;
use crate::py::objects::extract;
use crate::py::raise::{before_writing, check_memory, detached, entry, entry_that_reads};
use pyo3::prelude::*;
use pyo3::types::PyList;

/// What makes up slices: for each array, whether each axis is reduced.
pub(super) fn reduced_axes(axes: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<bool>>> {
    extract(axes, |axes| extract(axes, |axis| axis.extract()))
}

/// The norms of each array's slices, as float64 arrays whose reduced axes have length 1.
#[pyfunction]
#[pyo3(signature = (tensors, axes, p, norms, names, /))]
pub fn slice_norms<'py>(
    py: Python<'py>,
    tensors: &Bound<'py, PyAny>,
    axes: &Bound<'py, PyAny>,
    p: f64,
    norms: &Bound<'py, PyAny>,
    names: ArgumentNames<'py>,
) -> PyResult<()> {
    entry_that_reads(py, || {
        let axes = reduced_axes(axes)?;
        let batch = Batch::new(
            py,
            tensors,
            &Destination::Nothing,
            AcceptedDTypes::Floats,
            names.input(),
            names.output(),
        )?;
        let results = views(norms, AcceptedDTypes::Floats, names.output())?;
        let slices = sliced(&batch, &axes, &results, &[], Order::new(p))?;
        detached(py, || run(slices))
    })
}

/// Clips the slices of each array by their own norms. `bounds` are float64 arrays that broadcast
/// against them: the reduced axes have length 1.
#[pyfunction]
#[pyo3(signature = (tensors, axes, bounds, p, out, names, /))]
pub fn clip_slices<'py>(
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
        let slices = sliced(&batch, &axes, &[], &bounds, Order::new(p))?;
        let results = batch.results(py)?;
        check_memory(py)?;
        detached(py, || run(slices))?;
        Ok(results)
    })
}

/// The error of a call from `fastclip` that is not as it has to be.
pub(super) fn misfit(what: &str) -> PyErr {
    Error::Value(format!("fastclip._core: {what} do not fit the arrays")).into()
}

/// Measures slices, and clips them where they have an output. All that may fail comes before the first output is
/// written.
fn run(slices: Vec<Slices>) -> PyResult<()> {
    let mut prepared = with_capacity(slices.len())?;
    for slices in slices {
        prepared.push(slices.prepare(Context::current())?);
    }
    before_writing(prepared.iter().map(PreparedSlices::bytes).sum())?;
    prepared.iter_mut().for_each(PreparedSlices::finish);
    Ok(())
}

/// The arrays of a batch as slices, with their norms or bounds.
fn sliced(
    batch: &Batch,
    axes: &[Vec<bool>],
    norms: &[Option<View>],
    bounds: &[Option<View>],
    order: Order,
) -> PyResult<Vec<Slices>> {
    if axes.len() != batch.inputs.len() {
        return Err(misfit("axes"));
    }
    let mut found = with_capacity(batch.segments.len())?;
    for (index, input) in batch.inputs.iter().enumerate() {
        let Some(input) = input else { continue };
        let reduced = &axes[index];
        let shape = input.shape();
        let fits = |view: &View| {
            view.dtype.name() == "float64"
                && view.shape().len() == shape.len()
                && view
                    .shape()
                    .iter()
                    .zip(shape)
                    .zip(reduced)
                    .all(|((n, of), r)| *n == if *r { 1 } else { *of })
        };
        let float64 = |views: &'_ [Option<View>], what| match views.get(index) {
            Some(Some(view)) if reduced.len() != shape.len() || !fits(view) => Err(misfit(what)),
            _ => Ok(()),
        };
        float64(norms, "norms")?;
        float64(bounds, "bounds")?;
        let operand = |views: &'_ [Option<View>]| views.get(index).is_some_and(Option::is_some);
        if !operand(norms) && !operand(bounds) {
            return Err(misfit("norms and bounds"));
        }
        let mut operands: [Option<Operand>; OPERANDS] = [None; OPERANDS];
        operands[INPUT] = Some(input.operand());
        operands[OUTPUT] =
            batch.outputs().get(index).and_then(Option::as_ref).map(|view| view.operand().written());
        operands[NORMS] = norms.get(index).and_then(Option::as_ref).map(|view| view.operand().written());
        operands[BOUNDS] = bounds.get(index).and_then(Option::as_ref).map(View::operand);
        if norms.get(index).is_some_and(|view| view.as_ref().is_some_and(|view| !view.is_writable())) {
            return Err(misfit("read-only norms"));
        }
        // SAFETY: the arrays are alive; outputs were checked; norms and bounds have one float64 per
        // slice, checked above.
        found.push(unsafe { Slices::new(input.dtype, shape, reduced, operands, order)? });
    }
    Ok(found)
}
