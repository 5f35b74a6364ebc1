//! A NumPy array as pointer, shape, strides and element type. The one place that looks inside arrays.

use crate::error::Error;
use crate::scalar::{DType, Scalar};
use crate::segment::Strided;
use numpy::npyffi::{self, NpyTypes, PyArrayObject};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use std::os::raw::c_int;
use std::sync::atomic::{AtomicPtr, Ordering};

/// An array that is alive for as long as this is.
pub struct View<'py> {
    /// The array.
    pub object: Bound<'py, PyAny>,
    /// Its element at index 0 of every axis.
    pub pointer: *mut u8,
    /// Its element type.
    pub dtype: DType,
    /// The number of its elements.
    pub size: usize,
    flags: c_int,
}

/// What is being asked of an array.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Takes {
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

impl Takes {
    fn accepts(self, dtype: DType) -> bool {
        match self {
            Self::Floats => dtype.scalar.is_float(),
            Self::Ordered => !dtype.complex,
            Self::Reals => dtype.scalar.is_float() && !dtype.complex,
            Self::Variables => matches!(dtype.scalar, Scalar::F32 | Scalar::F64) && !dtype.complex,
            Self::Any => true,
        }
    }

    fn list(self) -> &'static str {
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

/// How an argument and its entries are called in messages.
#[derive(Clone, Copy)]
pub enum Label<'a, 'py> {
    /// One array.
    Single(&'static str),
    /// A list: its name stands in a tuple at `first`, and after it the names of its entries, or None if
    /// they are `argument[0]`, `argument[1]`, ….
    Listed {
        /// The names of a call.
        names: &'a Bound<'py, PyTuple>,
        /// Where those of this argument begin.
        first: usize,
    },
    /// The first or second part of the pairs in a list; after as many entries, the low-precision copies of those parts,
    /// and then their slots.
    Paired {
        /// The name of the list.
        argument: &'static str,
        /// Which part.
        part: usize,
        /// How many pairs there are.
        count: usize,
    },
}

impl Label<'_, '_> {
    /// The name of the argument.
    pub fn argument(&self) -> String {
        match self {
            Self::Single(name) | Self::Paired { argument: name, .. } => (*name).to_owned(),
            Self::Listed { names, first } => {
                names.get_item(*first).map_or_else(|_| "tensors".into(), |name| name.to_string())
            }
        }
    }

    /// The name of an entry.
    pub fn of(&self, index: usize) -> String {
        if let Self::Paired { argument, part, count } = self {
            let pair = format!("{argument}[{}][{part}]", index % count);
            return match index / count {
                0 => pair,
                1 => format!("the low-precision copy of {pair}"),
                _ => format!("a slot of {pair}"),
            };
        }
        let Self::Listed { names, first } = self else { return self.argument() };
        let entries = names.get_item(first + 1);
        match entries.and_then(|entries| entries.get_item(index)) {
            Ok(name) => name.to_string(),
            Err(_) => format!("{}[{index}]", self.argument()),
        }
    }
}

/// The last element type seen: the arrays of one call mostly share it.
#[derive(Default)]
pub struct Known {
    descr: Option<(*mut npyffi::PyArray_Descr, DType)>,
}

impl<'py> View<'py> {
    /// Looks at an array. The type object of arrays is passed in because a call looks at thousands.
    pub fn new(
        object: Bound<'py, PyAny>,
        takes: Takes,
        known: &mut Known,
        name: impl Fn() -> String,
    ) -> Result<Self, Error> {
        let py = object.py();
        // SAFETY: both calls look at the type of a live object.
        if unsafe { npyffi::PyArray_Check(py, object.as_ptr()) } == 0 {
            return Err(Error::Type(format!(
                "{} is a {}; it takes an array",
                name(),
                object.get_type().name().map_or_else(|_| "?".into(), |n| n.to_string())
            )));
        }
        let array = object.as_ptr().cast::<PyArrayObject>();
        // SAFETY: the object is an array, checked above; its fields do not change while we look.
        let (pointer, descr, flags, shape) = unsafe {
            let fields = &(*array).fields;
            (fields.data.cast::<u8>(), fields.descr, fields.flags, axes(fields.dimensions, fields.nd))
        };
        let size = shape.iter().map(|n| *n as usize).product();
        let dtype = match known.descr {
            Some((seen, dtype)) if seen == descr => Some(dtype),
            _ => {
                let found = classify(py, descr);
                known.descr = found.map(|dtype| (descr, dtype));
                found
            }
        };
        match dtype {
            Some(dtype) if takes.accepts(dtype) => Ok(Self { object, pointer, dtype, size, flags }),
            _ => Err(Error::Type(format!("{} is {}; it takes {}", name(), describe(&object), takes.list()))),
        }
    }

    fn fields(&self) -> &npyffi::PyArrayObject_fields {
        // SAFETY: the object is an array (`new` checked it) and alive.
        unsafe { &(*self.object.as_ptr().cast::<PyArrayObject>()).fields }
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        let fields = self.fields();
        // SAFETY: an array has `nd` dimensions, none negative: they are the same bits as usize.
        unsafe { axes(fields.dimensions.cast::<usize>(), fields.nd) }
    }

    /// Bytes per step along each axis.
    pub fn strides(&self) -> &[isize] {
        let fields = self.fields();
        // SAFETY: an array has `nd` strides.
        unsafe { axes(fields.strides, fields.nd) }
    }

    /// Its memory as an operand of a segment.
    pub fn strided(&self) -> Strided<'_> {
        Strided { pointer: self.pointer, strides: self.strides() }
    }

    /// Its NumPy type descriptor, borrowed.
    pub fn descr(&self) -> *mut npyffi::PyArray_Descr {
        self.fields().descr
    }

    /// Whether it is one run of memory in C order.
    pub fn is_c_order(&self) -> bool {
        self.flags & npyffi::NPY_ARRAY_C_CONTIGUOUS != 0
    }

    /// Whether it is one run of memory in Fortran order.
    pub fn is_fortran_order(&self) -> bool {
        self.flags & npyffi::NPY_ARRAY_F_CONTIGUOUS != 0
    }

    /// Whether its address fits its type.
    pub fn is_aligned(&self) -> bool {
        self.pointer.addr().is_multiple_of(self.dtype.scalar.size())
    }

    /// Whether its memory may be another's: that of the object it was made of.
    pub fn has_base(&self) -> bool {
        !self.fields().base.is_null()
    }

    /// Whether it may be written.
    pub fn is_writable(&self) -> bool {
        self.flags & npyffi::NPY_ARRAY_WRITEABLE != 0
    }

    /// Whether the other is the same elements in the same places.
    pub fn is_same_memory(&self, other: &View) -> bool {
        self.pointer == other.pointer
            && self.dtype == other.dtype
            && self.shape() == other.shape()
            && (self.object.as_ptr() == other.object.as_ptr()
                || self.is_c_order() && other.is_c_order()
                || self.strides() == other.strides())
    }

    /// The addresses from its first byte to the one after its last; `None` if it has no elements.
    pub fn extent(&self) -> Option<(usize, usize)> {
        if self.size == 0 {
            return None;
        }
        if self.is_c_order() || self.is_fortran_order() {
            let start = self.pointer.addr();
            return Some((start, start + self.size * self.dtype.size()));
        }
        let (mut low, mut high) = (self.pointer.addr(), self.pointer.addr());
        for (len, stride) in self.shape().iter().zip(self.strides()) {
            let reach = (*len as isize - 1) * stride;
            if reach < 0 {
                low = low.wrapping_add_signed(reach);
            } else {
                high = high.wrapping_add_signed(reach);
            }
        }
        Some((low, high + self.dtype.size()))
    }

    /// Whether two of its elements may share memory.
    pub fn may_overlap_itself(&self) -> bool {
        if self.is_c_order() || self.is_fortran_order() || self.size < 2 {
            return false;
        }
        let axes = self.shape().iter().zip(self.strides()).filter(|(len, _)| **len > 1);
        let mut axes: Vec<(usize, usize)> = axes.map(|(len, s)| (s.unsigned_abs(), *len)).collect();
        axes.sort_unstable();
        let mut reach = self.dtype.size();
        axes.into_iter().any(|(stride, len)| {
            let inside = stride < reach;
            reach += stride * (len - 1);
            inside
        })
    }

    /// `dtype` and shape, for messages.
    pub fn describe(&self) -> String {
        describe(&self.object)
    }
}

/// # Safety
///
/// `first` must point to `n` values that outlive the slice, or `n` be 0.
unsafe fn axes<'a, T>(first: *mut T, n: c_int) -> &'a [T] {
    match usize::try_from(n) {
        Ok(n) if n > 0 => {
            // SAFETY: the caller's contract.
            unsafe { std::slice::from_raw_parts(first, n) }
        }
        _ => &[],
    }
}

/// "an array of dtype int64 and shape (3,)"
fn describe(object: &Bound<'_, PyAny>) -> String {
    let text = |name: &str| object.getattr(name).map_or_else(|_| "?".into(), |v| v.to_string());
    format!("an array of dtype {} and shape {}", text("dtype"), text("shape"))
}

/// The element type of a descriptor in native byte order; `None` for what fastclip does not take.
fn classify(py: Python<'_>, descr: *mut npyffi::PyArray_Descr) -> Option<DType> {
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
    let real = |scalar| Some(DType { scalar, complex: false });
    let complex = |scalar| Some(DType { scalar, complex: true });
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

/// Looks NumPy's C interface up.
pub fn load_numpy(py: Python<'_>) {
    // SAFETY: looks up a static of NumPy's.
    unsafe { npyffi::get_type_object(py, NpyTypes::PyArray_Type) };
}

/// Whether an object is just an array, in native byte order.
pub fn is_plain_array(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: looks up a static of NumPy's, reads the type of a live object, and the descriptor if it is an array.
    unsafe {
        ffi::Py_TYPE(object.as_ptr()) == npyffi::get_type_object(object.py(), NpyTypes::PyArray_Type) && {
            let descr = (*object.as_ptr().cast::<PyArrayObject>()).fields.descr;
            !matches!((*descr).fields.byteorder as u8, b'>' | b'<')
        }
    }
}

/// Whether `tensors` is a list or tuple of plain arrays in native byte order, and None, and so needs
/// no looking into from Python.
#[pyfunction]
#[pyo3(signature = (tensors, /))]
pub fn is_plain(tensors: &Bound<'_, PyAny>) -> bool {
    let plain = |entry: &Bound<'_, PyAny>| is_plain_array(entry) || entry.is_none();
    if let Ok(list) = tensors.cast_exact::<PyList>() {
        list.iter().all(|entry| plain(&entry))
    } else if let Ok(tuple) = tensors.cast_exact::<PyTuple>() {
        tuple.iter_borrowed().all(|entry| plain(&entry))
    } else {
        false
    }
}
