//! The dtypes of arrays: recognised by NumPy's descriptors, and accepted by a function or not.

use crate::scalar::{DType, Scalar};
use numpy::npyffi;
use pyo3::ffi;
use pyo3::prelude::*;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What is being asked of an array.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AcceptedDTypes {
    /// Types with norms: floats and complex numbers.
    Floats,
    /// Types with an order: floats and integers.
    Ordered,
    /// Types of gradients: floats that are not complex.
    Reals,
    /// Types of variables.
    Variables,
    /// Any type that fastclip knows: the check against the input comes later.
    Any,
}

impl AcceptedDTypes {
    pub(super) fn accepts(self, dtype: DType) -> bool {
        match self {
            Self::Floats => dtype.scalar.is_float(),
            Self::Ordered => !dtype.complex,
            Self::Reals => dtype.scalar.is_float() && !dtype.complex,
            Self::Variables => matches!(dtype.scalar, Scalar::F32 | Scalar::F64) && !dtype.complex,
            Self::Any => true,
        }
    }

    pub(super) fn list(self) -> &'static str {
        match self {
            Self::Floats => "float16, bfloat16, float32, float64, complex64 and complex128",
            Self::Ordered => "float16, bfloat16, float32, float64 and every int and uint type",
            Self::Reals => "float16, bfloat16, float32 and float64",
            Self::Variables => {
                "float32 and float64, the types of variables (a low-precision copy may be narrower)"
            }
            Self::Any => "floats, complex numbers and integers",
        }
    }
}

/// The last element type seen: the arrays of one call mostly share it.
#[derive(Default)]
pub struct DTypeCache<'py> {
    /// The descriptor, which is kept so that no other can take its address, with what it says.
    descr: Option<(Bound<'py, PyAny>, DType, c_int)>,
}

impl<'py> DTypeCache<'py> {
    /// The type that a descriptor stands for, and NumPy's number of it. May run foreign code, at the first sight of a
    /// type that is not NumPy's own.
    #[inline]
    pub(super) fn find(
        &mut self,
        py: Python<'py>,
        descr: *mut npyffi::PyArray_Descr,
    ) -> Option<(DType, c_int)> {
        match &self.descr {
            Some((seen, dtype, number)) if seen.as_ptr() == descr.cast() => Some((*dtype, *number)),
            _ => self.learn(py, descr),
        }
    }

    #[cold]
    fn learn(&mut self, py: Python<'py>, descr: *mut npyffi::PyArray_Descr) -> Option<(DType, c_int)> {
        // SAFETY: the descriptor of a live array, kept alive from here on.
        let owned = unsafe { Bound::from_borrowed_ptr(py, descr.cast()) };
        let (dtype, number) = classify(py, descr)?;
        self.descr = Some((owned, dtype, number));
        Some((dtype, number))
    }
}

/// The element type of a descriptor in native byte order, and NumPy's number of it; `None` for what fastclip does not
/// take.
fn classify(py: Python<'_>, descr: *mut npyffi::PyArray_Descr) -> Option<(DType, c_int)> {
    const INT: [Scalar; 4] = [Scalar::I8, Scalar::I16, Scalar::I32, Scalar::I64];
    const UINT: [Scalar; 4] = [Scalar::U8, Scalar::U16, Scalar::U32, Scalar::U64];
    // SAFETY: the descriptor of a live array.
    let (number, order, class) = unsafe {
        let fields = &(*descr).fields;
        (fields.type_num, fields.byteorder as u8, fields.typeobj)
    };
    let swapped = if cfg!(target_endian = "little") { b'>' } else { b'<' };
    if order == swapped {
        return None;
    }
    let real = |scalar| Some((DType { scalar, complex: false }, number));
    let complex = |scalar| Some((DType { scalar, complex: true }, number));
    // C's integer types by their size on this platform; the numbers are NumPy's `NPY_TYPES`.
    let long = size_of::<std::os::raw::c_long>().trailing_zeros() as usize;
    match number {
        1 => real(INT[0]),
        2 => real(UINT[0]),
        3 => real(INT[1]),
        4 => real(UINT[1]),
        5 => real(INT[2]),
        6 => real(UINT[2]),
        7 => real(INT[long]),
        8 => real(UINT[long]),
        9 => real(INT[3]),
        10 => real(UINT[3]),
        11 => real(Scalar::F32),
        12 => real(Scalar::F64),
        14 => complex(Scalar::F32),
        15 => complex(Scalar::F64),
        23 => real(Scalar::F16),
        256.. if is_bfloat16(py, class) => real(Scalar::BF16),
        _ => None,
    }
}

/// Whether a user type is the bfloat16 of `ml_dtypes`, known by its name: it registers itself with NumPy
/// under a number that differs from process to process.
fn is_bfloat16(py: Python<'_>, class: *mut ffi::PyTypeObject) -> bool {
    static SEEN: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(std::ptr::null_mut());
    if SEEN.load(Ordering::Relaxed) == class {
        return true;
    }
    // SAFETY: the type object of a live descriptor.
    let object = unsafe { Bound::from_borrowed_ptr(py, class.cast()) };
    let is = |attribute: &str, wanted: &str| {
        object.getattr(attribute).is_ok_and(|v| v.extract::<String>().is_ok_and(|v| v == wanted))
    };
    let found = is("__name__", "bfloat16") && is("__module__", "ml_dtypes");
    if found {
        // Never freed: ml_dtypes' types are static, as long as this process lives.
        SEEN.store(class, Ordering::Relaxed);
    }
    found
}
