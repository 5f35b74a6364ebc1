//! The exchange functions of a tensor type: `DLPack`'s way in and out without capsules and without Python code.
//!
//! A type that has them carries a capsule `__dlpack_c_exchange_api__` with a table of C functions (`DLPack` 1.2 and newer).

use super::dlpack::{MAJOR_VERSION, Tensor, Version, VersionedTensor};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyType;
use std::ffi::{CStr, c_char, c_int, c_void};

/// The name of the capsule.
const CAPSULE: &CStr = c"dlpack_exchange_api";

/// The first part of the table, which all major versions share.
#[repr(C)]
struct Header {
    version: Version,
    /// The table of an older version; null if there is none.
    previous: *const Header,
}

/// Sets the error that an allocator failed with.
type SetError = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char);

/// The table of major version 1.
#[repr(C)]
struct Table {
    header: Header,
    allocate: Option<
        unsafe extern "C" fn(*mut Tensor, *mut *mut VersionedTensor, *mut c_void, Option<SetError>) -> c_int,
    >,
    managed_from_object: Option<unsafe extern "C" fn(*mut c_void, *mut *mut VersionedTensor) -> c_int>,
    object_from_managed: Option<unsafe extern "C" fn(*mut VersionedTensor, *mut *mut c_void) -> c_int>,
    tensor_from_object: Option<unsafe extern "C" fn(*mut c_void, *mut Tensor) -> c_int>,
    current_stream: Option<unsafe extern "C" fn(c_int, i32, *mut *mut c_void) -> c_int>,
}

/// The exchange functions of a type.
#[derive(Clone, Copy)]
pub struct Exchange {
    tensor_from_object: unsafe extern "C" fn(*mut c_void, *mut Tensor) -> c_int,
    object_from_managed: unsafe extern "C" fn(*mut VersionedTensor, *mut *mut c_void) -> c_int,
}

impl Exchange {
    /// Returns the exchange functions of a type; None if it has none.
    pub fn of(class: &Bound<'_, PyType>) -> Option<Self> {
        let capsule = class.getattr_opt(intern!(class.py(), "__dlpack_c_exchange_api__")).ok()??;
        // SAFETY: the object is alive. The pointer is read only if the object is a capsule of this name.
        let mut header = unsafe {
            if ffi::PyCapsule_IsValid(capsule.as_ptr(), CAPSULE.as_ptr()) == 0 {
                return None;
            }
            ffi::PyCapsule_GetPointer(capsule.as_ptr(), CAPSULE.as_ptr()).cast_const().cast::<Header>()
        };
        // SAFETY: a capsule of this name has a table that lives as long as the process, and so do the older ones.
        unsafe {
            while !header.is_null() && (*header).version.major != MAJOR_VERSION {
                header = (*header).previous;
            }
            if header.is_null() || (*header).version.minor < 2 {
                return None;
            }
            let table = header.cast::<Table>();
            Some(Self {
                tensor_from_object: (*table).tensor_from_object?,
                object_from_managed: (*table).object_from_managed?,
            })
        }
    }

    /// Describes a tensor, which must be an instance of the type. Shape and strides of the result are memory of the
    /// tensor.
    ///
    /// # Errors
    ///
    /// The exception of the function.
    #[inline(always)]
    pub fn read(self, object: &Bound<'_, PyAny>) -> PyResult<Tensor> {
        let mut tensor = std::mem::MaybeUninit::<Tensor>::uninit();
        // SAFETY: the function belongs to the type of this live object. It fills the structure, or fails.
        unsafe {
            if (self.tensor_from_object)(object.as_ptr().cast(), tensor.as_mut_ptr()) != 0 {
                return Err(PyErr::fetch(object.py()));
            }
            Ok(tensor.assume_init())
        }
    }

    /// Creates an object that owns a managed tensor.
    ///
    /// # Errors
    ///
    /// The exception of the function. The deleter of the tensor has then been called by it, or is not called.
    ///
    /// # Safety
    ///
    /// The managed tensor must be valid, and owned by the caller.
    pub unsafe fn object(self, py: Python<'_>, managed: *mut VersionedTensor) -> PyResult<Bound<'_, PyAny>> {
        let mut object = std::ptr::null_mut();
        // SAFETY: the caller's contract. The function returns a new reference, or fails.
        unsafe {
            if (self.object_from_managed)(managed, &raw mut object) != 0 {
                return Err(PyErr::fetch(py));
            }
            Bound::from_owned_ptr_or_err(py, object.cast())
        }
    }
}
