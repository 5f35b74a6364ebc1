//! Plain tensors of PyTorch: strided ones in host memory, of the classes `Tensor` and `Parameter` themselves.

use crate::allocation::with_capacity;
use crate::error::Error;
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::view::View;
use crate::py::call::{SIGNAL_BYTES, entry_that_reads};
use crate::py::objects;
use crate::py::tensors::dlpack;
use crate::py::tensors::door::is_passed_on;
use crate::py::tensors::exchange::Exchange;
use crate::py::tensors::opened::Lent;
use pyo3::exceptions::PyException;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyType};
use pyo3::{Borrowed, ffi};

/// The parts of PyTorch that the calls on plain tensors need.
#[pyclass(frozen, module = "fastclip._core")]
pub struct TorchBinding {
    tensor: (Py<PyType>, Exchange),
    parameter: (Py<PyType>, Exchange),
    /// The function that counts a change of each tensor in a list.
    increment_version: Py<PyAny>,
    /// The function that returns whether a tensor of a list has other values than its memory.
    any_is_negative: Py<PyAny>,
}

#[pymethods]
impl TorchBinding {
    /// Takes the classes of tensors and of parameters; a function that increments the version counter of each tensor in
    /// a list; and one that returns whether a tensor in a list has its negative bit set, so that its memory has the
    /// negated values.
    #[new]
    #[pyo3(signature = (tensor, parameter, increment_version, any_is_negative, /))]
    fn new(
        tensor: &Bound<'_, PyType>,
        parameter: &Bound<'_, PyType>,
        increment_version: Py<PyAny>,
        any_is_negative: Py<PyAny>,
    ) -> PyResult<Self> {
        entry_that_reads(tensor.py(), || {
            let with_exchange = |class: &Bound<'_, PyType>| match Exchange::of(class) {
                Some(exchange) => Ok((class.clone().unbind(), exchange)),
                None => Err(Error::Type("the class of tensors has no exchange functions of DLPack".into())),
            };
            Ok(Self {
                tensor: with_exchange(tensor)?,
                parameter: with_exchange(parameter)?,
                increment_version,
                any_is_negative,
            })
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.tensor.0)?;
        visit.call(&self.parameter.0)?;
        visit.call(&self.increment_version)?;
        visit.call(&self.any_is_negative)
    }
}

/// Plain tensors.
pub struct PlainTensors<'py> {
    /// A view of each tensor; None for an entry that is None.
    pub views: Vec<Option<View<'py>>>,
    /// The tensors. No other code has a reference to this list, except for functions of PyTorch during their calls.
    list: Bound<'py, PyList>,
    /// Whether an entry is None.
    has_none: bool,
}

impl TorchBinding {
    /// Whether the memory of a tensor has the negated values. Runs foreign code: a call asks this before it reads tensors.
    pub fn any_is_negative(&self, tensors: &Bound<'_, PyList>) -> PyResult<bool> {
        Ok(!tensors.is_empty() && self.any_is_negative.bind(tensors.py()).call1((tensors,))?.is_truthy()?)
    }

    /// Reads tensors. An entry may be None. Returns None if one of them is not plain, or has another dtype than those
    /// accepted. No other code may have a reference to the list.
    pub fn read<'py>(
        &self,
        list: Bound<'py, PyList>,
        accepted: AcceptedDTypes,
    ) -> PyResult<Option<PlainTensors<'py>>> {
        let py = list.py();
        let (mut views, mut has_none) = (with_capacity(list.len())?, false);
        let classes = [&self.tensor, &self.parameter].map(|(class, exchange)| (class.as_ptr(), *exchange));
        for index in 0..list.len() {
            // SAFETY: the list belongs to this call and has more than `index` entries.
            let object =
                unsafe { Borrowed::from_ptr(py, ffi::PyList_GetItem(list.as_ptr(), index.cast_signed())) };
            if object.is_none() {
                views.push(None);
                has_none = true;
                continue;
            }
            // SAFETY: reads the type of a live object.
            let class = unsafe { ffi::Py_TYPE(object.as_ptr()) }.cast::<ffi::PyObject>();
            let Some((_, exchange)) = classes.iter().find(|(known, _)| *known == class) else {
                return Ok(None);
            };
            let described = match exchange.read(&object) {
                Ok(described) => described,
                Err(error) if is_passed_on(&error, py) => return Err(error),
                // Tensors that are sparse, quantized or without memory.
                Err(_) => return Ok(None),
            };
            // SAFETY: the functions describe the live object, which keeps its memory. `Lent` says where not.
            match unsafe { dlpack::view(object.to_owned(), &described, true, String::new) } {
                Ok(view) if accepted.contains(view.dtype) => views.push(Some(view)),
                Err(Error::Memory(error)) => return Err(error.into()),
                // Tensors in the memory of a device, and dtypes that are not accepted.
                Ok(_) | Err(_) => return Ok(None),
            }
        }
        Ok(Some(PlainTensors { views, list, has_none }))
    }

    /// Counts a change of tensors that have been written. A failure, such as a lack of memory, is not reported, because
    /// everything has been written; an exception of a signal handler is.
    pub fn count_change(&self, tensors: &PlainTensors<'_>) -> PyResult<()> {
        let py = tensors.list.py();
        let changed = || {
            let mut present = with_capacity(tensors.list.len())?;
            present.extend(tensors.list.iter().filter(|tensor| !tensor.is_none()));
            objects::list(py, present.len(), present.into_iter().map(Ok))
        };
        // Entries that are None are left out.
        let list = if tensors.has_none { changed() } else { Ok(tensors.list.clone()) };
        match list.and_then(|list| self.increment_version.bind(py).call1((list,))) {
            Err(error) if !error.is_instance_of::<PyException>(py) => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns what exchange functions have lent to a call whose pass is of so many bytes, to be checked after handlers
    /// of signals have run. Handlers run in long passes only.
    pub fn lent<'a, 'py: 'a>(
        &self,
        tensors: impl Iterator<Item = &'a PlainTensors<'py>>,
        bytes: usize,
    ) -> PyResult<Lent> {
        let mut lent = Lent::default();
        if bytes < SIGNAL_BYTES {
            return Ok(lent);
        }
        for tensors in tensors {
            for view in tensors.views.iter().flatten() {
                lent.push(view, self.exchange_of(view))?;
            }
        }
        Ok(lent)
    }

    /// Returns the exchange functions of the tensor that a view was taken of.
    fn exchange_of(&self, view: &View<'_>) -> Exchange {
        let is_parameter = view.owner().get_type().is(self.parameter.0.bind(view.owner().py()));
        if is_parameter { self.parameter.1 } else { self.tensor.1 }
    }
}
