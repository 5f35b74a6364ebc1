//! Graphics processors: devices, arrays on them, and the functions over such arrays.

mod arguments;
pub mod array;
pub mod clip;
pub mod device;
pub mod slots;
pub mod step;

use crate::gpu::error::GpuError;
use crate::py::raise::exception;
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

pyo3::create_exception!(
    fastclip.gpu,
    GpuUnavailableError,
    PyRuntimeError,
    "No device can be used: there is none, it is lost, or the process was forked from one that uses it."
);

impl From<GpuError> for PyErr {
    fn from(error: GpuError) -> Self {
        Python::attach(|py| {
            let message = error.to_string();
            match error {
                GpuError::Unavailable(_) => exception::<GpuUnavailableError>(py, &message),
                GpuError::OutOfMemory(_) => exception::<PyMemoryError>(py, &message),
                GpuError::Shader(_) => exception::<PyValueError>(py, &message),
                GpuError::Driver(_) => exception::<PyRuntimeError>(py, &message),
            }
        })
    }
}
