//! What an object was before it became a view, and so what its result becomes.

use super::door::foreign;
use super::exchange::Exchange;
use super::exported::{ExportedTensor, versioned};
use super::frameworks::Framework;
use crate::error::Error;
use crate::py::arrays::dtypes::{NO_TYPE_NUMBER, bfloat16_type_number};
use crate::py::arrays::output::Buffer;
use crate::py::arrays::view::View;
use pyo3::prelude::*;
use std::sync::Arc;

/// The kind of object that a view was taken of.
#[derive(Clone)]
pub enum Origin {
    /// An array, or an object that NumPy makes an array of. The result is an `ndarray`.
    Array,
    /// A tensor whose type has exchange functions, and whose results are made by them.
    Exchange(Exchange),
    /// A tensor of a library that imports capsules.
    Framework(Framework),
    /// An object that holds a tensor, such as sparse rows. The function makes a new one from the result of the tensor.
    Holder(Arc<(Origin, Py<PyAny>)>),
}

impl Origin {
    /// Whether results are plain arrays.
    pub fn is_array(&self) -> bool {
        matches!(self, Self::Array)
    }

    /// Creates the result of this kind over the memory of a view that fastclip has allocated, see
    /// [`OutputAllocator`](crate::py::arrays::output::OutputAllocator).
    pub fn result<'py>(&self, py: Python<'py>, view: &View<'py>) -> PyResult<Bound<'py, PyAny>> {
        if let Self::Holder(holder) = self {
            let (origin, make) = &**holder;
            return make.bind(py).call1((origin.result(py, view)?,));
        }
        // A new array owns its result; other results are memory of a buffer.
        let Ok(buffer) = view.owner().cast::<Buffer>() else { return Ok(view.owner().clone()) };
        let block = buffer.get().block();
        match self {
            Self::Exchange(exchange) => {
                let managed = versioned(view, block)?;
                // SAFETY: the managed tensor is new, and is handed over.
                unsafe { exchange.object(py, managed) }
            }
            Self::Framework(framework) => {
                let exported = ExportedTensor::new(py, view, block)?;
                foreign(py)?.getattr(framework.importer())?.call1((exported,))
            }
            Self::Array | Self::Holder(_) => array(py, view),
        }
    }
}

/// Creates an `ndarray` over the memory of a view.
fn array<'py>(py: Python<'py>, view: &View<'py>) -> PyResult<Bound<'py, PyAny>> {
    let (_, mut number) = view.numpy_dtype();
    if number == NO_TYPE_NUMBER {
        number = bfloat16_type_number(py)?.ok_or_else(|| {
            Error::Type("an array of bfloat16 needs ml_dtypes: pip install 'fastclip-grad[bf16]'".into())
        })?;
    }
    view.array_of_type(view.owner().clone(), number)
}
