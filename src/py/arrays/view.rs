//! A NumPy array as pointer, shape, strides and element type. The one place that looks inside arrays.
//!
//! # A view is a snapshot
//!
//! Other threads and handlers of signals may change an array's shape, strides, type and flags whenever Python code runs:
//! in a caller's functions, in methods of subclasses, in NumPy's own functions where these are written in Python or
//! release the interpreter, and while fastclip computes without it. Therefore:
//!
//! - A [`View`] copies all that is known of an array at one moment: pointer, element type, shape, strides, flags.
//!   Checks, plans and passes use that copy. Nothing reads the array object again.
//! - Whatever may run foreign code comes before the snapshot that is used, or works on arrays of our own over the memory
//!   of one ([`View::array`]), which nobody else can reach.
//! - Arrays of subclasses are looked at in the same way. No method of an array is called, because a subclass may have
//!   replaced it; but the message that refuses an array's type asks it for its dtype and shape.
//!
//! A view keeps its array, and so its memory, alive. What it cannot do is keep the memory where `NumPy` itself lets it be
//! taken away from under everybody (`ndarray.resize(refcheck=False)`, `ndarray.__setstate__`).
//!
//! Without the interpreter's lock (free-threaded builds) the copy itself races with a thread that sets a shape at that
//! moment, as any use of that array in `NumPy` does: there, an array that changes its shape must not be shared.
//!
//! If another thread writes the elements of an array during a call, results are made of old and new elements, and a
//! norm may be that of a tensor that never was. Nothing outside of the arrays is read or written.

use super::dtypes::{AcceptedDTypes, DTypeCache};
use super::ndarray_type::is_array;
use super::output::array_over;
use crate::allocation::{OutOfMemory, copied, with_capacity};
use crate::engine::segment::{Operand, Run, element_count};
use crate::error::Error;
use crate::scalar::DType;
use numpy::npyffi::{self, PyArrayObject};
use pyo3::prelude::*;
use std::os::raw::c_int;

/// What was seen of an array, which is alive for as long as this is.
///
/// Calls look at thousands of arrays: it has less than 128 bytes, which compilers move without calling a function.
pub struct View<'py> {
    /// What keeps the memory alive. It is not looked at again.
    owner: Bound<'py, PyAny>,
    /// The element at index 0 of every axis.
    pub pointer: *mut u8,
    /// The number of elements.
    pub size: usize,
    axes: Axes,
    /// NumPy's number of the element type.
    number: c_int,
    flags: c_int,
    /// The element type.
    pub dtype: DType,
    has_base: bool,
}

/// The most axes that are kept without an allocation.
const INLINE: usize = 4;

/// Shape and strides of an array with many axes.
type Long = (Box<[usize]>, Box<[isize]>);

/// Shape and strides.
struct Axes {
    shape: [usize; INLINE],
    strides: [isize; INLINE],
    /// Those of an array with more axes.
    more: Option<Box<Long>>,
    count: u8,
}

impl Axes {
    #[inline(always)]
    fn new(shape: &[usize], strides: &[isize]) -> Result<Self, OutOfMemory> {
        let mut axes =
            Self { shape: [0; INLINE], strides: [0; INLINE], more: None, count: shape.len() as u8 };
        // With lengths that the compiler knows, in place of a call for two numbers.
        match shape.len() {
            0 => {}
            1 => axes.set::<1>(shape, strides),
            2 => axes.set::<2>(shape, strides),
            3 => axes.set::<3>(shape, strides),
            4 => axes.set::<4>(shape, strides),
            _ => axes.more = Some(Self::long(shape, strides)?),
        }
        Ok(axes)
    }

    #[cold]
    fn long(shape: &[usize], strides: &[isize]) -> Result<Box<Long>, OutOfMemory> {
        Ok(Box::new((copied(shape)?, copied(strides)?)))
    }

    #[inline(always)]
    fn set<const N: usize>(&mut self, shape: &[usize], strides: &[isize]) {
        self.shape[..N].copy_from_slice(&shape[..N]);
        self.strides[..N].copy_from_slice(&strides[..N]);
    }

    fn shape(&self) -> &[usize] {
        match &self.more {
            Some(more) => &more.0,
            None => &self.shape[..usize::from(self.count)],
        }
    }

    fn strides(&self) -> &[isize] {
        match &self.more {
            Some(more) => &more.1,
            None => &self.strides[..usize::from(self.count)],
        }
    }
}

impl<'py> View<'py> {
    /// Looks at an array.
    #[inline(always)]
    pub fn new(
        object: Bound<'py, PyAny>,
        takes: AcceptedDTypes,
        known: &mut DTypeCache<'py>,
        name: impl Fn() -> String,
    ) -> Result<Self, Error> {
        let py = object.py();
        if !is_array(&object) {
            return Err(refuse_object(&object, &name()));
        }
        let array = object.as_ptr().cast::<PyArrayObject>();
        // The type first, because finding out what it is may run foreign code.
        // SAFETY: the object is an array, checked above.
        let descr = unsafe { (*array).fields.descr };
        let Some((dtype, number)) = known.find(py, descr) else {
            return Err(refuse_dtype(&object, takes, &name()));
        };
        if !takes.accepts(dtype) {
            return Err(refuse_dtype(&object, takes, &name()));
        }
        // The snapshot: no foreign code runs from here to its end.
        // SAFETY: the object is an array, alive, and has `nd` dimensions, none negative, and as many strides.
        unsafe {
            let fields = &(*array).fields;
            if fields.descr != descr {
                return Err(Error::Value(format!("{} changed its dtype while it was looked at", name())));
            }
            let shape = axes(fields.dimensions.cast::<usize>(), fields.nd);
            Ok(Self {
                pointer: fields.data.cast::<u8>(),
                dtype,
                size: element_count(shape),
                number,
                flags: fields.flags,
                has_base: !fields.base.is_null(),
                axes: Axes::new(shape, axes(fields.strides, fields.nd))?,
                owner: object,
            })
        }
    }

    /// The same snapshot once more: the array is not looked at again.
    pub fn try_clone(&self) -> Result<Self, OutOfMemory> {
        Ok(Self {
            owner: self.owner.clone(),
            axes: Axes::new(self.shape(), self.strides())?,
            pointer: self.pointer,
            size: self.size,
            number: self.number,
            flags: self.flags,
            dtype: self.dtype,
            has_base: self.has_base,
        })
    }

    /// A view of memory of our own.
    ///
    /// # Safety
    ///
    /// `owner` must keep memory alive that holds elements of this type and shape at these strides.
    pub unsafe fn over(
        owner: Bound<'py, PyAny>,
        pointer: *mut u8,
        (dtype, number): (DType, c_int),
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self, OutOfMemory> {
        let pairs = || shape.iter().copied().zip(strides.iter().copied());
        let mut flags = npyffi::NPY_ARRAY_WRITEABLE;
        let empty = shape.contains(&0);
        if empty || is_run(dtype.size(), pairs().rev()) {
            flags |= npyffi::NPY_ARRAY_C_CONTIGUOUS;
        }
        if empty || is_run(dtype.size(), pairs()) {
            flags |= npyffi::NPY_ARRAY_F_CONTIGUOUS;
        }
        let axes = Axes::new(shape, strides)?;
        Ok(Self { owner, pointer, dtype, size: element_count(shape), number, flags, has_base: false, axes })
    }

    /// An array of our own over this memory, as it was seen: exactly an `ndarray`, that nobody else has.
    pub fn array(&self) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: the memory that was seen, which the owner keeps alive.
        unsafe {
            array_over(
                self.owner.clone(),
                self.pointer,
                self.number,
                self.shape(),
                Some(self.strides()),
                npyffi::NPY_ARRAY_WRITEABLE,
            )
        }
    }

    /// What keeps the memory alive: the array that was looked at. It may have changed since.
    pub fn owner(&self) -> &Bound<'py, PyAny> {
        &self.owner
    }

    /// Its element type, and NumPy's number of it.
    pub fn number(&self) -> (DType, c_int) {
        (self.dtype, self.number)
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        self.axes.shape()
    }

    /// Bytes per step along each axis.
    pub fn strides(&self) -> &[isize] {
        self.axes.strides()
    }

    /// Returns its memory as an operand of a segment, to be read.
    pub fn operand(&self) -> Operand<'_> {
        let (pointer, strides) = (self.pointer, self.strides());
        Operand { pointer, strides, scalar: self.dtype.scalar, is_written: false }
    }

    /// Returns its memory as an operand of a dense segment, to be read. It has to be contiguous and aligned.
    pub fn run(&self) -> Run {
        Run { pointer: self.pointer, scalar: self.dtype.scalar, is_written: false }
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
        self.has_base
    }

    /// Whether it may be written.
    pub fn is_writable(&self) -> bool {
        self.flags & npyffi::NPY_ARRAY_WRITEABLE != 0
    }

    /// Whether the other is the same elements in the same places.
    pub fn is_same_memory(&self, other: &View) -> bool {
        // Along an axis of one element no step is made, whatever its stride.
        let same_steps = || {
            let strides = self.strides().iter().zip(other.strides());
            strides.zip(self.shape()).all(|((own, its), len)| own == its || *len <= 1)
        };
        self.pointer == other.pointer
            && self.dtype == other.dtype
            && self.shape() == other.shape()
            && (self.is_c_order() && other.is_c_order() || same_steps())
    }

    /// Returns the addresses of the first byte and after the last byte; `None` for an array without elements.
    #[inline]
    pub fn extent(&self) -> Option<(usize, usize)> {
        if self.size == 0 {
            return None;
        }
        if self.is_c_order() || self.is_fortran_order() {
            let start = self.pointer.addr();
            return Some((start, start + self.size * self.dtype.size()));
        }
        Some(self.strided_extent())
    }

    fn strided_extent(&self) -> (usize, usize) {
        let (mut low, mut high) = (self.pointer.addr(), self.pointer.addr());
        for (len, stride) in self.shape().iter().zip(self.strides()) {
            let reach = (*len as isize - 1) * stride;
            if reach < 0 {
                low = low.wrapping_add_signed(reach);
            } else {
                high = high.wrapping_add_signed(reach);
            }
        }
        (low, high + self.dtype.size())
    }

    /// Whether the address ranges of two arrays meet.
    pub fn meets(&self, other: &View) -> bool {
        match (self.extent(), other.extent()) {
            (Some((low, high)), Some((first, last))) => low < last && first < high,
            _ => false,
        }
    }

    /// Whether two elements of the array may share memory.
    #[inline]
    pub fn may_overlap_itself(&self) -> Result<bool, OutOfMemory> {
        if self.is_c_order() || self.is_fortran_order() || self.size < 2 {
            return Ok(false);
        }
        self.strides_may_overlap()
    }

    fn strides_may_overlap(&self) -> Result<bool, OutOfMemory> {
        let mut axes = with_capacity(self.shape().len())?;
        let steps = self.shape().iter().zip(self.strides()).filter(|(len, _)| **len > 1);
        axes.extend(steps.map(|(len, s)| (s.unsigned_abs(), *len)));
        axes.sort_unstable();
        let mut reach = self.dtype.size();
        Ok(axes.into_iter().any(|(stride, len)| {
            let inside = stride < reach;
            reach += stride * (len - 1);
            inside
        }))
    }

    /// `dtype` and shape, for messages: "an array of dtype int64 and shape (3,)".
    pub fn describe(&self) -> String {
        format!("an array of dtype {} and shape {}", self.dtype.name(), tuple(self.shape()))
    }
}

/// Whether axes, the innermost first, make one run of elements of this size.
fn is_run(size: usize, mut axes: impl Iterator<Item = (usize, isize)>) -> bool {
    let mut step = size;
    axes.all(|(len, stride)| {
        let fits = len <= 1 || stride == step as isize;
        step *= len.max(1);
        fits
    })
}

/// A shape as Python writes it.
pub fn tuple(shape: &[usize]) -> String {
    match shape {
        [one] => format!("({one},)"),
        all => {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            format!("({})", all.join(", "))
        }
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

/// The error of an object that is no array.
#[cold]
fn refuse_object(object: &Bound<'_, PyAny>, name: &str) -> Error {
    let kind = object.get_type().name().map_or_else(|_| "?".into(), |n| n.to_string());
    Error::Type(format!("{name} is a {kind}; it takes an array"))
}

/// The error of an array of another type than is taken.
#[cold]
fn refuse_dtype(object: &Bound<'_, PyAny>, takes: AcceptedDTypes, name: &str) -> Error {
    Error::Type(format!("{name} is {}; it takes {}", describe(object), takes.list()))
}

/// As [`View::describe`], of an array whose type is not taken: by its own attributes.
fn describe(object: &Bound<'_, PyAny>) -> String {
    let text = |name: &str| object.getattr(name).map_or_else(|_| "?".into(), |v| v.to_string());
    format!("an array of dtype {} and shape {}", text("dtype"), text("shape"))
}
