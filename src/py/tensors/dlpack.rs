//! The C interface of `DLPack`, and snapshots of the tensors that it describes.
//!
//! The structures are those of `dlpack.h` [1]. A tensor is described by a `DLTensor`; shape and strides are memory of its
//! exporter, and are copied at once.
//!
//! [1]: https://dmlc.github.io/dlpack/latest/c_api.html

use crate::allocation::{OutOfMemory, with_capacity};
use crate::error::Error;
use crate::py::arrays::dtypes::type_number;
use crate::py::arrays::view::View;
use crate::scalar::{DType, Scalar};
use pyo3::prelude::*;
use std::ffi::{CStr, c_int, c_void};

/// The major version of the interface. Structures of another major version have another layout.
pub const MAJOR_VERSION: u32 = 1;

/// Name of a capsule that holds a managed tensor without a version.
pub const CAPSULE_NAME: &CStr = c"dltensor";

/// Flag of a managed tensor: its memory must not be written.
const READ_ONLY: u64 = 1;
/// Flag of a managed tensor: its memory is a copy that the exporter made.
const IS_COPIED: u64 = 2;

/// Most axes of a tensor that is read without clearing room for [`MOST_AXES`], which takes longer than reading it.
const FEW_AXES: usize = 4;

/// Most axes that an array may have: NumPy's limit.
const MOST_AXES: usize = 64;

/// Version of the interface.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

/// The device that holds the memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Device {
    pub kind: i32,
    pub id: i32,
}

impl Device {
    /// The CPU.
    pub const CPU: Self = Self { kind: 1, id: 0 };

    /// Whether the CPU can access the memory: it is that of the CPU, or pinned for CUDA or `ROCm`.
    pub fn is_host(self) -> bool {
        matches!(self.kind, 1 | 3 | 11)
    }

    /// Returns the name of the device, for messages.
    pub fn name(self) -> String {
        let kind = match self.kind {
            2 => "CUDA",
            4 => "OpenCL",
            7 => "Vulkan",
            8 => "Metal",
            10 => "ROCm",
            13 => "CUDA (managed)",
            14 => "oneAPI",
            15 => "WebGPU",
            _ => return format!("a device of DLPack's type {}", self.kind),
        };
        format!("the device {kind}:{}", self.id)
    }
}

/// The type of the elements.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ElementType {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// Codes of element types, without those that fastclip does not support.
const INT: u8 = 0;
const UINT: u8 = 1;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;
const COMPLEX: u8 = 5;

impl ElementType {
    /// Returns the dtype; None for a type that fastclip does not support.
    fn dtype(self) -> Option<DType> {
        if self.lanes != 1 {
            return None;
        }
        let scalar = match (self.code, self.bits) {
            (INT, 8) => Scalar::I8,
            (INT, 16) => Scalar::I16,
            (INT, 32) => Scalar::I32,
            (INT, 64) => Scalar::I64,
            (UINT, 8) => Scalar::U8,
            (UINT, 16) => Scalar::U16,
            (UINT, 32) => Scalar::U32,
            (UINT, 64) => Scalar::U64,
            (FLOAT, 16) => Scalar::F16,
            (FLOAT, 32) | (COMPLEX, 64) => Scalar::F32,
            (FLOAT, 64) | (COMPLEX, 128) => Scalar::F64,
            (BFLOAT, 16) => Scalar::BF16,
            _ => return None,
        };
        Some(DType { scalar, complex: self.code == COMPLEX })
    }

    /// Returns the type of a dtype's elements.
    pub fn of(dtype: DType) -> Self {
        let code = match dtype.scalar {
            _ if dtype.complex => COMPLEX,
            Scalar::BF16 => BFLOAT,
            Scalar::F16 | Scalar::F32 | Scalar::F64 => FLOAT,
            Scalar::I8 | Scalar::I16 | Scalar::I32 | Scalar::I64 => INT,
            Scalar::U8 | Scalar::U16 | Scalar::U32 | Scalar::U64 => UINT,
        };
        Self { code, bits: (dtype.size() * 8) as u8, lanes: 1 }
    }

    /// Returns the name of the type, for messages.
    fn name(self) -> String {
        let code = match self.code {
            INT => "int",
            UINT => "uint",
            FLOAT => "float",
            BFLOAT => "bfloat",
            COMPLEX => "complex",
            6 => "bool",
            7..=14 => "float8 of",
            code => return format!("of DLPack's code {code} and {} bits", self.bits),
        };
        let lanes = if self.lanes == 1 { String::new() } else { format!(" of {} lanes", self.lanes) };
        format!("{code}{}{lanes}", self.bits)
    }
}

/// A tensor.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tensor {
    pub data: *mut c_void,
    pub device: Device,
    pub axes: i32,
    pub element_type: ElementType,
    /// Lengths, one for each axis.
    pub shape: *mut i64,
    /// Strides in elements, one for each axis; null for a tensor in C order.
    pub strides: *mut i64,
    pub byte_offset: u64,
}

/// A tensor that the importer owns, in the layout before version 1.
#[repr(C)]
pub struct ManagedTensor {
    pub tensor: Tensor,
    pub context: *mut c_void,
    pub deleter: Option<unsafe extern "C" fn(*mut Self)>,
}

/// A tensor that the importer owns, in the layout of version 1.
#[repr(C)]
pub struct VersionedTensor {
    pub version: Version,
    pub context: *mut c_void,
    pub deleter: Option<unsafe extern "C" fn(*mut Self)>,
    pub flags: u64,
    pub tensor: Tensor,
}

impl VersionedTensor {
    /// Whether the memory is that of the exporter, and may be written.
    pub fn is_writable(&self) -> bool {
        self.flags & (READ_ONLY | IS_COPIED) == 0
    }
}

/// Returns a view of a tensor. `owner` is the object that keeps the memory alive. `name` returns the tensor's name, for
/// messages.
///
/// # Errors
///
/// A `TypeError` for memory of another device, elements of a type that fastclip does not support, and a tensor without
/// memory; a `ValueError` for a shape or strides that no memory can have.
///
/// # Safety
///
/// Pointers of `tensor` must be valid: `shape`, and `strides` unless it is null, have an entry for each axis. The memory
/// that it describes must live as long as `owner`.
#[inline(always)]
pub unsafe fn view<'py>(
    owner: Bound<'py, PyAny>,
    tensor: &Tensor,
    is_writable: bool,
    name: impl Fn() -> String,
) -> Result<View<'py>, Error> {
    if !tensor.device.is_host() {
        return Err(Error::Type(format!(
            "{} is in the memory of {}; it takes a tensor on the CPU",
            name(),
            tensor.device.name()
        )));
    }
    let Some(dtype) = tensor.element_type.dtype() else {
        return Err(Error::Type(format!(
            "{} has elements of the type {}; it takes floats, complex numbers and integers",
            name(),
            tensor.element_type.name()
        )));
    };
    let rank = usize::try_from(tensor.axes).unwrap_or(usize::MAX);
    if rank > MOST_AXES || (rank > 0 && tensor.shape.is_null()) {
        return Err(Error::Value(format!("{} has {} axes; it takes up to {MOST_AXES}", name(), tensor.axes)));
    }
    let dtype = (dtype, type_number(dtype));
    // SAFETY: the caller's contract.
    unsafe {
        if rank == 1 {
            view_of_rank::<1>(owner, tensor, 1, dtype, is_writable, name)
        } else if rank <= FEW_AXES {
            view_of_rank::<FEW_AXES>(owner, tensor, rank, dtype, is_writable, name)
        } else {
            view_of_rank::<MOST_AXES>(owner, tensor, rank, dtype, is_writable, name)
        }
    }
}

/// [`view`] of a tensor with at most `N` axes.
///
/// # Safety
///
/// As [`view`].
#[inline(always)]
unsafe fn view_of_rank<'py, const N: usize>(
    owner: Bound<'py, PyAny>,
    tensor: &Tensor,
    rank: usize,
    dtype: (DType, c_int),
    is_writable: bool,
    name: impl Fn() -> String,
) -> Result<View<'py>, Error> {
    let (mut shape, mut strides) = ([0_usize; N], [0_isize; N]);
    let (shape, strides) = (&mut shape[..rank], &mut strides[..rank]);
    let impossible = || Error::Value(format!("{} has a shape or strides that no memory can have", name()));
    // SAFETY: the caller's contract.
    let (before, after) =
        unsafe { read_axes(tensor, dtype.0.size(), shape, strides) }.ok_or_else(impossible)?;
    if tensor.data.is_null() && !shape.contains(&0) {
        return Err(Error::Type(format!("{} has no memory; it takes a tensor with elements", name())));
    }
    let pointer = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize);
    if pointer.addr() < tensor.data.addr()
        || pointer.addr() < before
        || pointer.addr().checked_add(after).is_none()
    {
        return Err(impossible());
    }
    // SAFETY: the tensor describes this memory, and the owner keeps it alive.
    Ok(unsafe { View::foreign(owner, pointer, dtype, shape, strides, is_writable)? })
}

/// Reads shape and byte strides. Returns how many bytes of elements lie before the address of the first element, and how
/// many from that address on; None if a length is negative, or an offset in bytes is out of range.
///
/// # Safety
///
/// As [`view`].
#[inline(always)]
unsafe fn read_axes(
    tensor: &Tensor,
    size: usize,
    shape: &mut [usize],
    strides: &mut [isize],
) -> Option<(usize, usize)> {
    let mut extent = size;
    for (axis, length) in shape.iter_mut().enumerate() {
        // SAFETY: the caller's contract.
        *length = usize::try_from(unsafe { *tensor.shape.add(axis) }).ok()?;
    }
    let is_empty = shape.contains(&0);
    if tensor.strides.is_null() {
        for (length, stride) in shape.iter().zip(strides).rev() {
            *stride = extent as isize;
            extent = extent.checked_mul((*length).max(1)).filter(|n| isize::try_from(*n).is_ok())?;
        }
        return Some((0, if is_empty { 0 } else { extent }));
    }
    // The distances of the lowest and the highest element from the first, and the number of elements, must be in range.
    let (mut below, mut above, mut count) = (0_isize, 0_isize, 1_usize);
    for (axis, (length, stride)) in shape.iter().zip(strides).enumerate() {
        // SAFETY: the caller's contract.
        let elements = unsafe { *tensor.strides.add(axis) };
        let bytes = isize::try_from(elements).ok().and_then(|n| n.checked_mul(size as isize));
        // The stride of an axis with one element is never used, and need not be in range.
        *stride = match bytes {
            Some(bytes) => bytes,
            None if *length <= 1 || is_empty => 0,
            None => return None,
        };
        if is_empty || *length <= 1 {
            continue;
        }
        let distance = isize::try_from(*length - 1).ok()?.checked_mul(stride.checked_abs()?)?;
        let side = if *stride < 0 { &mut below } else { &mut above };
        *side = side.checked_add(distance)?;
        count = count.checked_mul(*length)?;
        isize::try_from(count.checked_mul(size)?).ok()?;
    }
    if is_empty {
        return Some((0, 0));
    }
    let after = above.checked_add(size as isize)?;
    below.checked_add(after)?;
    Some((below as usize, after as usize))
}

/// Returns lengths and strides as `DLPack` has them: 64-bit integers, strides in elements.
pub fn axes_of(view: &View) -> Result<(Vec<i64>, Vec<i64>), OutOfMemory> {
    let (mut shape, mut strides) = (with_capacity(view.shape().len())?, with_capacity(view.shape().len())?);
    shape.extend(view.shape().iter().map(|length| *length as i64));
    let size = view.dtype.size() as isize;
    strides.extend(view.strides().iter().map(|stride| (*stride / size) as i64));
    Ok((shape, strides))
}
