//! Results that go out as tensors of another library, over memory owned by fastclip.

use super::dlpack::{
    CAPSULE_NAME, Device, ElementType, MAJOR_VERSION, ManagedTensor, Tensor, Version, VersionedTensor,
    axes_of,
};
use crate::allocation::OutOfMemory;
use crate::engine::memory::Block;
use crate::py::arrays::view::View;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::ffi::c_void;
use std::sync::Arc;

/// What a managed tensor needs until it is deleted.
struct Context {
    /// Keeps the memory of the elements alive.
    _block: Arc<Block>,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl Context {
    fn new(view: &View, block: Arc<Block>) -> Result<Box<Self>, OutOfMemory> {
        let (shape, strides) = axes_of(view)?;
        Ok(Box::new(Self { _block: block, shape, strides }))
    }

    /// Describes the tensor of a view. Shape and strides are memory of the context.
    fn tensor(&mut self, view: &View) -> Tensor {
        Tensor {
            data: view.pointer.cast(),
            device: Device::CPU,
            axes: self.shape.len() as i32,
            element_type: ElementType::of(view.dtype),
            shape: self.shape.as_mut_ptr(),
            strides: self.strides.as_mut_ptr(),
            byte_offset: 0,
        }
    }
}

/// Creates a managed tensor over a view's memory, which is part of `block`. Its deleter, which may be called from any
/// thread and without the interpreter, releases the block.
pub fn versioned(view: &View, block: Arc<Block>) -> Result<*mut VersionedTensor, OutOfMemory> {
    unsafe extern "C" fn delete(managed: *mut VersionedTensor) {
        // SAFETY: `versioned` made both boxes, and the deleter is called once.
        unsafe {
            let managed = Box::from_raw(managed);
            drop(Box::from_raw(managed.context.cast::<Context>()));
        }
    }
    let mut context = Context::new(view, block)?;
    let tensor = context.tensor(view);
    let version = Version { major: MAJOR_VERSION, minor: 0 };
    let context = Box::into_raw(context).cast();
    Ok(Box::into_raw(Box::new(VersionedTensor { version, context, deleter: Some(delete), flags: 0, tensor })))
}

/// As [`versioned`], in the layout before version 1.
fn unversioned(view: &View, block: Arc<Block>) -> Result<*mut ManagedTensor, OutOfMemory> {
    unsafe extern "C" fn delete(managed: *mut ManagedTensor) {
        // SAFETY: `unversioned` made both boxes, and the deleter is called once.
        unsafe {
            let managed = Box::from_raw(managed);
            drop(Box::from_raw(managed.context.cast::<Context>()));
        }
    }
    let mut context = Context::new(view, block)?;
    let tensor = context.tensor(view);
    let context = Box::into_raw(context).cast();
    Ok(Box::into_raw(Box::new(ManagedTensor { tensor, context, deleter: Some(delete) })))
}

/// A result that another library imports by `__dlpack__`, in the layout before version 1, which all of them take.
#[pyclass(frozen, module = "fastclip._core")]
pub struct ExportedTensor {
    capsule: Py<PyAny>,
}

impl ExportedTensor {
    /// Exports a view's memory, which is part of `block`.
    pub fn new<'py>(py: Python<'py>, view: &View, block: Arc<Block>) -> PyResult<Bound<'py, Self>> {
        unsafe extern "C" fn destroy(capsule: *mut ffi::PyObject) {
            // SAFETY: a capsule that nobody has taken the tensor from still has its name, and owns the tensor.
            unsafe {
                if ffi::PyCapsule_IsValid(capsule, CAPSULE_NAME.as_ptr()) != 0 {
                    let managed =
                        ffi::PyCapsule_GetPointer(capsule, CAPSULE_NAME.as_ptr()).cast::<ManagedTensor>();
                    if let Some(deleter) = managed.as_ref().and_then(|managed| managed.deleter) {
                        deleter(managed);
                    }
                }
            }
        }
        let managed = unversioned(view, block)?;
        // SAFETY: the capsule takes the tensor. If it cannot be created, the tensor is deleted.
        let capsule = unsafe {
            let capsule = ffi::PyCapsule_New(managed.cast::<c_void>(), CAPSULE_NAME.as_ptr(), Some(destroy));
            if capsule.is_null()
                && let Some(deleter) = (*managed).deleter
            {
                deleter(managed);
            }
            Bound::from_owned_ptr_or_err(py, capsule)?
        };
        Bound::new(py, Self { capsule: capsule.unbind() })
    }

    /// The capsule.
    pub fn capsule<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.capsule.bind(py)
    }
}

#[pymethods]
impl ExportedTensor {
    /// Returns the capsule. The options of the protocol are not needed: the memory is that of the CPU, and is new.
    #[pyo3(signature = (*args, **options))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _ = (args, options);
        let capsule = self.capsule.bind(py);
        // SAFETY: the object is a live capsule.
        if unsafe { ffi::PyCapsule_IsValid(capsule.as_ptr(), CAPSULE_NAME.as_ptr()) } == 0 {
            return Err(PyBufferError::new_err("this result has been imported already"));
        }
        Ok(capsule.clone())
    }

    /// Returns the type of the device, the CPU, and its number.
    #[allow(clippy::unused_self, reason = "a method of the protocol")]
    fn __dlpack_device__(&self) -> (i32, i32) {
        (Device::CPU.kind, Device::CPU.id)
    }
}
