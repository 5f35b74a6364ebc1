//! The tensors of a call after the door: their views, and what is to be known of them besides.

use super::dlpack;
use super::exchange::Exchange;
use super::frameworks::Autograd;
use super::origin::Origin;
use super::snapshot::Snapshot;
use crate::allocation::{reserve, with_capacity};
use crate::error::Error;
use crate::py::arrays::view::View;
use crate::py::objects;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyList;

/// The tensors of an argument.
#[derive(Default)]
pub struct Opened<'py> {
    /// A view of each entry; None for an entry that is None.
    pub views: Vec<Option<View<'py>>>,
    /// The memory of entries that are arrays and were copied, those in swapped byte order, in a view that shows it in
    /// native byte order; empty if none was copied.
    pub copied: Vec<Option<View<'py>>>,
    /// The kind of each entry; empty if all are arrays.
    pub(super) origins: Vec<Origin>,
    /// The exchange functions that lent the memory of each entry; empty if none was lent.
    pub(super) lenders: Vec<Option<Exchange>>,
    /// The tensors among the entries that have a version counter: those of the library with autograd.
    pub(super) versioned: Option<Bound<'py, PyList>>,
    /// The indices of those that were not read before, in ascending order.
    pub(super) versioned_indices: Vec<usize>,
}

impl<'py> Opened<'py> {
    /// Returns the kind of the entry at `index`.
    pub fn origin(&self, index: usize) -> &Origin {
        self.origins.get(index).unwrap_or(&Origin::Array)
    }

    /// Whether all entries are arrays.
    pub fn has_arrays_only(&self) -> bool {
        self.origins.is_empty()
    }

    /// Returns what was lent by exchange functions, to be checked after handlers of signals have run.
    pub fn lent(&self) -> PyResult<Lent> {
        let mut lent = Lent(with_capacity(self.lenders.len())?);
        for (view, lender) in self.views.iter().zip(&self.lenders) {
            if let (Some(view), Some(exchange)) = (view, lender) {
                lent.push(view, *exchange)?;
            }
        }
        Ok(lent)
    }

    /// Counts a change of the tensors that have a version counter.
    pub fn count_change(&self) -> PyResult<()> {
        self.versioned.as_ref().map_or(Ok(()), count_change)
    }

    /// Takes the view of the entry at `index`, and its tensor if that has a version counter.
    pub fn take(&mut self, index: usize) -> PyResult<Option<(View<'py>, Option<Bound<'py, PyAny>>)>> {
        let tensor = self.tensor(index)?;
        Ok(self.views.get_mut(index).and_then(Option::take).map(|view| (view, tensor)))
    }

    /// Returns the tensor at `index`, if it has a version counter.
    fn tensor(&self, index: usize) -> PyResult<Option<Bound<'py, PyAny>>> {
        match (&self.versioned, self.versioned_indices.binary_search(&index)) {
            (Some(tensors), Ok(at)) => Ok(Some(tensors.get_item(at)?)),
            _ => Ok(None),
        }
    }

    /// Takes the snapshot of the entry at `index`, for Python code.
    pub fn snapshot(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyAny>> {
        let Some(view) = self.views.get(index).and_then(Option::as_ref) else {
            return Ok(py.None().into_bound(py));
        };
        let lender = self.lenders.get(index).copied().flatten();
        let copied = self.copied.get(index).and_then(Option::as_ref);
        let snapshot = Snapshot::new(view, self.origin(index).clone(), lender, self.tensor(index)?, copied)?;
        Ok(Bound::new(py, snapshot)?.into_any())
    }
}

/// Counts a change of tensors that have been written. A failure, such as a lack of memory, is not reported, because everything
/// has been written; an exception of a signal handler is.
fn count_change(tensors: &Bound<'_, PyList>) -> PyResult<()> {
    let py = tensors.py();
    match Autograd::imported(py).map_or(Ok(()), |autograd| autograd.count_change(tensors)) {
        Err(error) if !error.is_instance_of::<PyException>(py) => Err(error),
        _ => Ok(()),
    }
}

/// Memory that was lent by exchange functions. Code that runs meanwhile may take it away: see the module's documentation.
#[derive(Default)]
pub struct Lent(Vec<LentTensor>);

/// One tensor of [`Lent`].
struct LentTensor {
    object: Py<PyAny>,
    exchange: Exchange,
    address: usize,
    size: usize,
}

impl Lent {
    /// Adds the memory of a tensor that exchange functions described.
    pub fn push(&mut self, view: &View<'_>, exchange: Exchange) -> Result<(), Error> {
        reserve(&mut self.0, 1)?;
        self.0.push(LentTensor {
            object: view.owner().clone().unbind(),
            exchange,
            address: view.pointer.addr(),
            size: view.size,
        });
        Ok(())
    }

    /// Adds what another part of the call was lent.
    pub fn append(&mut self, mut other: Self) -> PyResult<()> {
        reserve(&mut self.0, other.0.len())?;
        self.0.append(&mut other.0);
        Ok(())
    }

    /// Raises if a tensor has other memory than when it was read.
    pub fn check(&self, py: Python<'_>) -> PyResult<()> {
        for lent in &self.0 {
            check_memory_kept(lent.exchange, lent.object.bind(py), lent.address, lent.size)?;
        }
        Ok(())
    }
}

/// Raises if a tensor has other memory than when it was read.
pub(super) fn check_memory_kept(
    exchange: Exchange,
    tensor: &Bound<'_, PyAny>,
    address: usize,
    size: usize,
) -> Result<(), Error> {
    let is_kept = exchange.read(tensor).is_ok_and(|described| {
        // SAFETY: the tensor was just described, and is alive. Nothing of it is read or written.
        let view = unsafe { dlpack::view(tensor.clone(), &described, false, String::new) };
        view.is_ok_and(|view| view.pointer.addr() == address && view.size == size)
    });
    if is_kept {
        return Ok(());
    }
    Err(memory_taken_away())
}

/// The error of a tensor that has other memory than when it was read.
pub(super) fn memory_taken_away() -> Error {
    Error::Value("a tensor was given other memory during the call; nothing was written".into())
}

/// The tensors of other libraries that a call writes one by one.
#[derive(Default)]
pub struct Written<'py> {
    /// The tensors whose change is to be counted.
    tensors: Option<Bound<'py, PyList>>,
    /// The memory that was lent to the call, that of inputs too.
    pub lent: Lent,
}

impl<'py> Written<'py> {
    /// Adds a tensor whose change is to be counted.
    pub fn push(&mut self, tensor: &Bound<'py, PyAny>) -> PyResult<()> {
        append(&mut self.tensors, tensor)
    }

    /// Counts a change of the tensors.
    pub fn count_change(&self) -> PyResult<()> {
        self.tensors.as_ref().map_or(Ok(()), count_change)
    }
}

/// Appends an object to a list, which is created if there is none yet.
pub(super) fn append<'py>(list: &mut Option<Bound<'py, PyList>>, object: &Bound<'py, PyAny>) -> PyResult<()> {
    let list = match list {
        Some(list) => list,
        none => none.insert(objects::list(object.py(), 0, std::iter::empty())?),
    };
    list.append(object)
}
