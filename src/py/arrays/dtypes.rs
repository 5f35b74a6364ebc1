//! Dtypes: recognising them from NumPy's descriptors, and the sets of dtypes that functions accept.

use crate::scalar::{DType, Scalar};
use numpy::npyffi;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The character of the byte order that is not native. NumPy uses `=` for the native one, and some exporters of buffers the
/// character of that order itself.
pub(super) const SWAPPED: u8 = if cfg!(target_endian = "little") { b'>' } else { b'<' };

/// Stands for the type number of bfloat16 where NumPy has none: `ml_dtypes` is not imported, or was not looked for.
pub const NO_TYPE_NUMBER: c_int = -1;

/// NumPy's type number of unsigned 16-bit integers.
pub const UINT16: c_int = 4;

/// The dtypes that a function accepts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AcceptedDTypes {
    /// Dtypes that have a norm: floats and complex numbers.
    Floats,
    /// Dtypes that have an order: floats and integers.
    Ordered,
    /// Dtypes of gradients: floats, without complex numbers.
    Reals,
    /// Dtypes of variables: float32 and float64.
    Variables,
    /// Every dtype that fastclip supports; for outputs, which are compared with their input later.
    Any,
}

impl AcceptedDTypes {
    /// Whether the dtype is accepted.
    pub fn contains(self, dtype: DType) -> bool {
        match self {
            Self::Floats => dtype.scalar.is_float(),
            Self::Ordered => !dtype.complex,
            Self::Reals => dtype.scalar.is_float() && !dtype.complex,
            Self::Variables => matches!(dtype.scalar, Scalar::F32 | Scalar::F64) && !dtype.complex,
            Self::Any => true,
        }
    }

    /// Returns the names of the accepted dtypes, for messages.
    pub fn names(self) -> &'static str {
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

/// The descriptor that was recognised last, with its dtype. Most arrays of one call have the same descriptor.
#[derive(Default)]
pub struct DTypeCache<'py> {
    /// The descriptor, its dtype and NumPy's type number. The reference keeps the descriptor alive, so that no other
    /// descriptor gets its address.
    last: Option<(Bound<'py, PyAny>, DType, c_int)>,
}

impl<'py> DTypeCache<'py> {
    /// Returns dtype and NumPy's type number of a descriptor; `None` for a dtype that fastclip does not support.
    ///
    /// May run Python code: where a user-defined dtype is seen for the first time.
    #[inline]
    pub(super) fn dtype(
        &mut self,
        py: Python<'py>,
        descr: *mut npyffi::PyArray_Descr,
    ) -> Option<(DType, c_int)> {
        match &self.last {
            Some((cached, dtype, type_number)) if cached.as_ptr() == descr.cast() => {
                Some((*dtype, *type_number))
            }
            _ => self.recognise(py, descr),
        }
    }

    /// Recognises a descriptor and caches it.
    #[cold]
    fn recognise(&mut self, py: Python<'py>, descr: *mut npyffi::PyArray_Descr) -> Option<(DType, c_int)> {
        // SAFETY: the descriptor belongs to a live array. The new reference keeps it alive.
        let owned = unsafe { Bound::from_borrowed_ptr(py, descr.cast()) };
        let (dtype, type_number) = recognise(py, descr)?;
        self.last = Some((owned, dtype, type_number));
        Some((dtype, type_number))
    }
}

/// Returns NumPy's type number of a dtype; [`NO_TYPE_NUMBER`] for bfloat16, whose number `ml_dtypes` gets at run time.
pub fn type_number(dtype: DType) -> c_int {
    let long = if size_of::<std::ffi::c_long>() == 8 { 7 } else { 9 };
    match (dtype.scalar, dtype.complex) {
        (Scalar::I8, _) => 1,
        (Scalar::U8, _) => 2,
        (Scalar::I16, _) => 3,
        (Scalar::U16, _) => UINT16,
        (Scalar::I32, _) => 5,
        (Scalar::U32, _) => 6,
        (Scalar::I64, _) => long,
        (Scalar::U64, _) => long + 1,
        (Scalar::F16, _) => 23,
        (Scalar::BF16, _) => NO_TYPE_NUMBER,
        (Scalar::F32, false) => 11,
        (Scalar::F64, false) => 12,
        (Scalar::F32, true) => 14,
        (Scalar::F64, true) => 15,
    }
}

/// Returns dtype and NumPy's type number of a descriptor in native byte order; `None` for a dtype that fastclip does not
/// support, and for swapped byte order.
fn recognise(py: Python<'_>, descr: *mut npyffi::PyArray_Descr) -> Option<(DType, c_int)> {
    const INT: [Scalar; 4] = [Scalar::I8, Scalar::I16, Scalar::I32, Scalar::I64];
    const UINT: [Scalar; 4] = [Scalar::U8, Scalar::U16, Scalar::U32, Scalar::U64];
    // SAFETY: the descriptor belongs to a live array.
    let (type_number, order, class) = unsafe {
        let fields = &(*descr).fields;
        (fields.type_num, fields.byteorder as u8, fields.typeobj)
    };
    if order == SWAPPED {
        return None;
    }
    let real = |scalar| Some((DType { scalar, complex: false }, type_number));
    let complex = |scalar| Some((DType { scalar, complex: true }, type_number));
    // The numbers are those of NumPy's `NPY_TYPES`, which has one for each integer type of C. The size of C's `long`
    // depends on the platform.
    let long = size_of::<std::os::raw::c_long>().trailing_zeros() as usize;
    match type_number {
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

/// Whether a user-defined type is the bfloat16 of `ml_dtypes`. It is recognised by its name, because `ml_dtypes`
/// registers it with NumPy under a type number that differs from process to process.
fn is_bfloat16(py: Python<'_>, class: *mut ffi::PyTypeObject) -> bool {
    static BFLOAT16: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(std::ptr::null_mut());
    if BFLOAT16.load(Ordering::Relaxed) == class {
        return true;
    }
    // SAFETY: the type object of a live descriptor is alive.
    let object = unsafe { Bound::from_borrowed_ptr(py, class.cast()) };
    let has = |attribute: &str, expected: &str| {
        object.getattr(attribute).is_ok_and(|v| v.extract::<String>().is_ok_and(|v| v == expected))
    };
    let is_bfloat16 = has("__name__", "bfloat16") && has("__module__", "ml_dtypes");
    if is_bfloat16 {
        // The type object is never freed: the types of ml_dtypes are static, and live as long as the process.
        BFLOAT16.store(class, Ordering::Relaxed);
    }
    is_bfloat16
}

/// Returns NumPy's type number of bfloat16; None if `ml_dtypes` is not installed.
pub fn bfloat16_type_number(py: Python<'_>) -> PyResult<Option<c_int>> {
    static NUMBER: PyOnceLock<c_int> = PyOnceLock::new();
    if let Some(number) = NUMBER.get(py) {
        return Ok(Some(*number));
    }
    let Ok(module) = py.import("ml_dtypes") else { return Ok(None) };
    let dtype = py.import("numpy")?.getattr("dtype")?.call1((module.getattr("bfloat16")?,))?;
    let number = dtype.getattr("num")?.extract()?;
    Ok(Some(*NUMBER.get_or_init(py, || number)))
}
