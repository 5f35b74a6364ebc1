//! Tensors that come in through `__dlpack__`, as capsules.

use super::dlpack::{self, CAPSULE_NAME, Device, MAJOR_VERSION, ManagedTensor, VersionedTensor};
use crate::error::Error;
use crate::py::arrays::view::View;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

/// Names of capsules, before and after their tensor has been taken.
const VERSIONED: (&CStr, &CStr) = (c"dltensor_versioned", c"used_dltensor_versioned");
const UNVERSIONED: (&CStr, &CStr) = (CAPSULE_NAME, c"used_dltensor");

/// A managed tensor that fastclip owns. It keeps the memory alive, and calls the deleter when it is dropped.
#[pyclass(frozen, module = "fastclip._core")]
pub struct ImportedTensor {
    managed: Managed,
    /// Whether memory may be written whose exporter does not tell.
    is_mutable: bool,
}

/// A managed tensor of either layout.
enum Managed {
    Versioned(NonNull<VersionedTensor>),
    Unversioned(NonNull<ManagedTensor>),
}

// SAFETY: DLPack lets a managed tensor be used and deleted from any thread. It is only read, and deleted once.
unsafe impl Send for Managed {}
// SAFETY: as above.
unsafe impl Sync for Managed {}

impl Drop for Managed {
    fn drop(&mut self) {
        // SAFETY: the tensor is owned, and its deleter is called once. A null deleter needs no call.
        unsafe {
            match self {
                Self::Versioned(tensor) => {
                    if let Some(deleter) = tensor.as_ref().deleter {
                        deleter(tensor.as_ptr());
                    }
                }
                Self::Unversioned(tensor) => {
                    if let Some(deleter) = tensor.as_ref().deleter {
                        deleter(tensor.as_ptr());
                    }
                }
            }
        }
    }
}

impl ImportedTensor {
    /// Imports an object with `__dlpack__`. `is_mutable` says whether memory may be written whose exporter does not
    /// tell, because it uses the layout before version 1.
    ///
    /// # Errors
    ///
    /// The exception of `__dlpack__`; a `TypeError` if it returns no capsule of a version that fastclip supports.
    pub fn import<'py>(
        object: &Bound<'py, PyAny>,
        is_mutable: bool,
        name: impl Fn() -> String,
    ) -> PyResult<Bound<'py, Self>> {
        let py = object.py();
        let method = object.getattr(intern!(py, "__dlpack__"))?;
        let options = PyDict::new(py);
        options.set_item(intern!(py, "max_version"), (MAJOR_VERSION, 0_u32))?;
        let capsule = match method.call((), Some(&options)) {
            // Exporters older than version 1 take no such argument.
            Err(error) if error.is_instance_of::<PyTypeError>(py) => method.call0()?,
            result => result?,
        };
        let Some(managed) = Managed::take(&capsule) else {
            return Err(Error::Type(format!(
                "{} is a {}, whose __dlpack__ returned {}; it takes a DLPack capsule that is not used yet",
                name(),
                object.get_type().name()?,
                capsule.repr().map_or_else(|_| "an object".into(), |text| text.to_string()),
            ))
            .into());
        };
        if let Managed::Versioned(tensor) = &managed {
            // SAFETY: the tensor is owned. Every version begins with the version and ends the life of the tensor by the
            // deleter.
            let version = unsafe { tensor.as_ref().version };
            if version.major != MAJOR_VERSION {
                return Err(Error::Type(format!(
                    "{} is a {}, whose __dlpack__ returned version {}.{} of DLPack; it takes version 1",
                    name(),
                    object.get_type().name()?,
                    version.major,
                    version.minor
                ))
                .into());
            }
        }
        Bound::new(py, Self { managed, is_mutable })
    }

    /// Returns the device that holds the memory.
    pub fn device(&self) -> Device {
        // SAFETY: the managed tensor is owned and so valid.
        unsafe {
            match &self.managed {
                Managed::Versioned(tensor) => tensor.as_ref().tensor.device,
                Managed::Unversioned(tensor) => tensor.as_ref().tensor.device,
            }
        }
    }

    /// Returns a view of the tensor.
    pub fn view<'py>(slf: &Bound<'py, Self>, name: impl Fn() -> String) -> Result<View<'py>, Error> {
        let (owner, this) = (slf.clone().into_any(), slf.get());
        // SAFETY: the managed tensor is owned and so valid, and its memory lives as long as the owner.
        unsafe {
            match &this.managed {
                Managed::Versioned(tensor) => {
                    let managed = tensor.as_ref();
                    dlpack::view(owner, &managed.tensor, managed.is_writable(), name)
                }
                Managed::Unversioned(tensor) => {
                    dlpack::view(owner, &tensor.as_ref().tensor, this.is_mutable, name)
                }
            }
        }
    }
}

impl Managed {
    /// Takes the managed tensor out of a capsule; None if the object is no capsule, or has no tensor any more.
    fn take(capsule: &Bound<'_, PyAny>) -> Option<Self> {
        if let Some(tensor) = take(capsule, VERSIONED) {
            return Some(Self::Versioned(tensor.cast()));
        }
        Some(Self::Unversioned(take(capsule, UNVERSIONED)?.cast()))
    }
}

/// Takes the pointer out of a capsule of a name, and gives the capsule the other name, which says that it is used.
fn take(capsule: &Bound<'_, PyAny>, (name, used): (&CStr, &'static CStr)) -> Option<NonNull<c_void>> {
    let capsule = capsule.as_ptr();
    // SAFETY: the object is alive, and is checked to be a capsule of this name. The new name lives as long as the
    // process. A capsule of the new name does not delete its tensor.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, name.as_ptr()) == 0 {
            return None;
        }
        let pointer = NonNull::new(ffi::PyCapsule_GetPointer(capsule, name.as_ptr()))?;
        if ffi::PyCapsule_SetName(capsule, used.as_ptr()) != 0 {
            ffi::PyErr_Clear();
            return None;
        }
        Some(pointer)
    }
}
