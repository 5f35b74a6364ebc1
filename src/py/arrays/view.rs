//! Snapshots of NumPy arrays: pointer, dtype, shape, strides and flags. The only module that reads array objects.
//!
//! # A view is a snapshot
//!
//! Other threads and signal handlers may change an array's shape, strides, dtype and flags whenever Python code runs:
//! in functions of the caller, in methods of subclasses, in NumPy's functions where these are written in Python or
//! release the interpreter, and while fastclip computes without it. Therefore:
//!
//! - A [`View`] copies everything that fastclip uses of an array at one moment: pointer, dtype, shape, strides, flags.
//!   Checks, plans and passes use that copy. Nothing reads the array object again.
//! - Whatever may run foreign code comes before the snapshot that is used, or works on arrays owned by fastclip over the
//!   memory of a snapshot ([`View::array`]), which no other code can reach.
//! - Arrays of subclasses are read in the same way. No method of an array is called, because a subclass may override
//!   it; only the message about an unsupported dtype reads the attributes `dtype` and `shape`.
//!
//! A view keeps its array, and so the array's memory, alive. It cannot keep the memory in place where `NumPy` itself
//! allows code to replace it under all users (`ndarray.resize(refcheck=False)`, `ndarray.__setstate__`).
//!
//! Without the interpreter's lock (free-threaded builds) taking the snapshot races with a thread that sets a shape at
//! that moment, as any use of that array in `NumPy` does: there, an array that changes its shape must not be shared.
//!
//! If another thread writes the elements of an array during a call, results mix old and new elements, and a norm may be
//! one that the tensor never had. Nothing outside of the arrays is read or written.

use super::axes::Axes;
use super::dtypes::{AcceptedDTypes, DTypeCache, NO_TYPE_NUMBER, UINT16};
use super::ndarray_type::is_array;
use super::new_array::array_over;
use crate::allocation::{OutOfMemory, reserve};
use crate::engine::segment::{Operand, Run, element_count};
use crate::error::Error;
use crate::scalar::DType;
use numpy::npyffi::{self, PyArrayObject};
use pyo3::prelude::*;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A snapshot of one array. It keeps the array alive.
pub struct View<'py> {
    /// The object that keeps the memory alive: the array, which is not read again, or a buffer.
    owner: Bound<'py, PyAny>,
    /// Address of the element at index 0 of every axis.
    pub pointer: *mut u8,
    /// Number of elements.
    pub size: usize,
    axes: Axes,
    /// Number of axes.
    rank: u8,
    /// NumPy's type number of the dtype.
    type_number: c_int,
    /// NumPy's array flags.
    flags: c_int,
    /// The dtype of the elements.
    pub dtype: DType,
    has_base: bool,
}

// Calls take thousands of snapshots. Compilers move a value of less than 128 bytes without calling a function.
const _: () = assert!(size_of::<View>() <= 112);

impl<'py> View<'py> {
    /// Takes the snapshot of an array. `name` returns the array's name for messages.
    ///
    /// # Errors
    ///
    /// A `TypeError` if the object is not an array, or has a dtype that is not accepted.
    #[inline(always)]
    pub fn new(
        object: Bound<'py, PyAny>,
        accepted: AcceptedDTypes,
        cache: &mut DTypeCache<'py>,
        name: impl Fn() -> String,
    ) -> Result<Self, Error> {
        Self::read(object, accepted, cache, name, |view| view)
    }

    /// As [`View::new`], at the end of a list. There the fields are stored one by one; if a view was copied there, which
    /// `push` does, the processor would wait for these stores, for 10 ns.
    #[inline(always)]
    pub fn append(
        views: &mut Vec<Option<Self>>,
        object: Bound<'py, PyAny>,
        accepted: AcceptedDTypes,
        cache: &mut DTypeCache<'py>,
        name: impl Fn() -> String,
    ) -> Result<(), Error> {
        reserve(views, 1)?;
        Self::read(object, accepted, cache, name, |view| {
            let end = views.len();
            views.spare_capacity_mut()[0].write(Some(view));
            // SAFETY: the list has room for one more, which is initialised.
            unsafe { views.set_len(end + 1) };
        })
    }

    /// As [`View::new`]. Hands the snapshot to `store`.
    #[inline(always)]
    fn read<R>(
        object: Bound<'py, PyAny>,
        accepted: AcceptedDTypes,
        cache: &mut DTypeCache<'py>,
        name: impl Fn() -> String,
        store: impl FnOnce(Self) -> R,
    ) -> Result<R, Error> {
        let py = object.py();
        if !is_array(&object) {
            return Err(not_an_array(&object, &name()));
        }
        let array = object.as_ptr().cast::<PyArrayObject>();
        // The dtype is recognised first, because that may run foreign code.
        // SAFETY: the object is an array, checked above.
        let descr = unsafe { (*array).fields.descr };
        let Some((dtype, type_number)) = cache.dtype(py, descr) else {
            return Err(dtype_not_accepted(&object, accepted, &name()));
        };
        if !accepted.contains(dtype) {
            return Err(dtype_not_accepted(&object, accepted, &name()));
        }
        // The snapshot. No foreign code runs from here on.
        // SAFETY: the object is a live array. It has `nd` lengths, none of them negative, and `nd` strides.
        unsafe {
            let fields = &(*array).fields;
            if fields.descr != descr {
                return Err(Error::Value(format!("{} changed its dtype while it was read", name())));
            }
            let shape = slice(fields.dimensions.cast::<usize>(), fields.nd);
            let axes = Axes::new(shape, slice(fields.strides, fields.nd))?;
            Ok(store(Self {
                pointer: fields.data.cast::<u8>(),
                dtype,
                rank: shape.len() as u8,
                size: element_count(shape),
                type_number,
                flags: fields.flags,
                has_base: !fields.base.is_null(),
                axes,
                owner: object,
            }))
        }
    }

    /// Copies the snapshot. The array is not read again.
    pub fn try_clone(&self) -> Result<Self, OutOfMemory> {
        self.stored()?.view(self.owner.py())
    }

    /// Creates a view of memory owned by fastclip, without an array object.
    ///
    /// # Safety
    ///
    /// `owner` must keep memory alive that holds elements of this dtype and shape at these strides.
    #[inline(always)]
    pub unsafe fn over(
        owner: Bound<'py, PyAny>,
        pointer: *mut u8,
        (dtype, type_number): (DType, c_int),
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self, OutOfMemory> {
        let axes = || shape.iter().copied().zip(strides.iter().copied());
        let mut flags = npyffi::NPY_ARRAY_WRITEABLE;
        let is_empty = shape.contains(&0);
        if is_empty || is_contiguous(dtype.size(), axes().rev()) {
            flags |= npyffi::NPY_ARRAY_C_CONTIGUOUS;
        }
        if is_empty || is_contiguous(dtype.size(), axes()) {
            flags |= npyffi::NPY_ARRAY_F_CONTIGUOUS;
        }
        let axes = Axes::new(shape, strides)?;
        Ok(Self {
            owner,
            pointer,
            dtype,
            size: element_count(shape),
            rank: shape.len() as u8,
            type_number,
            flags,
            has_base: false,
            axes,
        })
    }

    /// Creates a view of memory that another library owns.
    ///
    /// # Safety
    ///
    /// As [`View::over`].
    #[inline(always)]
    pub unsafe fn foreign(
        owner: Bound<'py, PyAny>,
        pointer: *mut u8,
        dtype: (DType, c_int),
        shape: &[usize],
        strides: &[isize],
        is_writable: bool,
    ) -> Result<Self, OutOfMemory> {
        // SAFETY: the caller's contract.
        let mut view = unsafe { Self::over(owner, pointer, dtype, shape, strides)? };
        view.has_base = true;
        if !is_writable {
            view.flags &= !npyffi::NPY_ARRAY_WRITEABLE;
        }
        Ok(view)
    }

    /// Whether an array still has the memory of the snapshot: its address and number of elements. (`ndarray.resize` with
    /// `refcheck=False` and `ndarray.__setstate__` replace it.) True for an owner that is no array.
    pub fn is_kept(&self) -> bool {
        if !is_array(&self.owner) {
            return true;
        }
        // SAFETY: the owner is a live array, with `nd` lengths. They are compared only.
        unsafe {
            let fields = &(*self.owner.as_ptr().cast::<PyArrayObject>()).fields;
            let shape = slice(fields.dimensions.cast::<usize>(), fields.nd);
            fields.data.cast::<u8>() == self.pointer && element_count(shape) == self.size
        }
    }

    /// Copies the snapshot to an object that Python code may hold.
    pub fn stored(&self) -> Result<StoredView, OutOfMemory> {
        Ok(StoredView {
            owner: self.owner.clone().unbind(),
            pointer: AtomicPtr::new(self.pointer),
            axes: Axes::new(self.shape(), self.strides())?,
            size: self.size,
            rank: self.rank,
            type_number: self.type_number,
            flags: self.flags,
            dtype: self.dtype,
            has_base: self.has_base,
        })
    }

    /// Creates an array over the memory of the snapshot, with the snapshot's shape and strides. It is exactly an
    /// `ndarray`, and no other code has a reference to it. bfloat16 stands as uint16 where NumPy has no such dtype.
    pub fn array(&self) -> PyResult<Bound<'py, PyAny>> {
        self.array_owned_by(self.owner.clone())
    }

    /// As [`View::array`], with another owner, which must keep the memory alive too.
    pub fn array_owned_by(&self, owner: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let words = if self.type_number == NO_TYPE_NUMBER { UINT16 } else { self.type_number };
        self.array_of_type(owner, words)
    }

    /// As [`View::array_owned_by`], with the type that NumPy has under a number, whose elements have the same size.
    pub fn array_of_type(&self, owner: Bound<'py, PyAny>, type_number: c_int) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: the snapshot describes this memory, and the owner keeps it alive.
        unsafe {
            array_over(
                owner,
                self.pointer,
                type_number,
                self.shape(),
                Some(self.strides()),
                npyffi::NPY_ARRAY_WRITEABLE,
            )
        }
    }

    /// Returns the object that keeps the memory alive: mostly the array, which may have changed since the snapshot.
    pub fn owner(&self) -> &Bound<'py, PyAny> {
        &self.owner
    }

    /// Returns the dtype and NumPy's type number of it.
    pub fn numpy_dtype(&self) -> (DType, c_int) {
        (self.dtype, self.type_number)
    }

    /// Returns the shape.
    #[inline]
    pub fn shape(&self) -> &[usize] {
        self.axes.shape(self.rank)
    }

    /// Returns the strides in bytes, one per axis.
    #[inline]
    pub fn strides(&self) -> &[isize] {
        self.axes.strides(self.rank)
    }

    /// Returns the memory as an operand of a segment, to be read.
    pub fn operand(&self) -> Operand<'_> {
        let (pointer, strides) = (self.pointer, self.strides());
        Operand { pointer, strides, scalar: self.dtype.scalar, is_written: false }
    }

    /// Returns the memory as an operand of a dense segment, to be read. The array must be contiguous and aligned.
    pub fn run(&self) -> Run {
        Run { pointer: self.pointer, scalar: self.dtype.scalar, is_written: false }
    }

    /// Whether the elements are contiguous in C order.
    pub fn is_c_order(&self) -> bool {
        self.flags & npyffi::NPY_ARRAY_C_CONTIGUOUS != 0
    }

    /// Whether the elements are contiguous in Fortran order.
    pub fn is_fortran_order(&self) -> bool {
        self.flags & npyffi::NPY_ARRAY_F_CONTIGUOUS != 0
    }

    /// Whether the pointer is aligned for the dtype.
    pub fn is_aligned(&self) -> bool {
        self.pointer.addr().is_multiple_of(self.dtype.scalar.size())
    }

    /// Whether the elements are one run of memory, contiguous in C order and aligned, or there are none.
    pub fn is_run(&self) -> bool {
        self.size == 0 || self.is_c_order() && self.is_aligned()
    }

    /// Whether the memory may belong to another object: NumPy's `base` of the array was not None.
    pub fn has_base(&self) -> bool {
        self.has_base
    }

    /// Whether the array may be written.
    pub fn is_writable(&self) -> bool {
        self.flags & npyffi::NPY_ARRAY_WRITEABLE != 0
    }

    /// Describes dtype and shape, for messages: "an array of dtype int64 and shape (3,)".
    pub fn describe(&self) -> String {
        format!("an array of dtype {} and shape {}", self.dtype.name(), format_shape(self.shape()))
    }
}

/// A [`View`] that a Python object holds.
pub struct StoredView {
    owner: Py<PyAny>,
    /// It is atomic because a raw pointer is neither `Send` nor `Sync`. It never changes.
    pointer: AtomicPtr<u8>,
    axes: Axes,
    size: usize,
    rank: u8,
    type_number: c_int,
    flags: c_int,
    dtype: DType,
    has_base: bool,
}

impl StoredView {
    /// Copies the snapshot to a view.
    pub fn view<'py>(&self, py: Python<'py>) -> Result<View<'py>, OutOfMemory> {
        Ok(View {
            owner: self.owner.bind(py).clone(),
            pointer: self.pointer.load(Ordering::Relaxed),
            axes: Axes::new(self.axes.shape(self.rank), self.axes.strides(self.rank))?,
            size: self.size,
            rank: self.rank,
            type_number: self.type_number,
            flags: self.flags,
            dtype: self.dtype,
            has_base: self.has_base,
        })
    }

    /// The dtype of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

/// Whether axes, given as length and byte stride from the innermost on, are those of contiguous elements of `size`
/// bytes.
fn is_contiguous(size: usize, mut axes: impl Iterator<Item = (usize, isize)>) -> bool {
    let mut step = size;
    axes.all(|(len, stride)| {
        let fits = len <= 1 || stride == step as isize;
        step *= len.max(1);
        fits
    })
}

/// Formats a shape as a Python tuple.
pub fn format_shape(shape: &[usize]) -> String {
    match shape {
        [len] => format!("({len},)"),
        shape => {
            let lens: Vec<String> = shape.iter().map(ToString::to_string).collect();
            format!("({})", lens.join(", "))
        }
    }
}

/// Returns the lengths or strides of an array as a slice.
///
/// # Safety
///
/// `first` must point to `n` values that outlive the slice, or `n` be 0.
unsafe fn slice<'a, T>(first: *mut T, n: c_int) -> &'a [T] {
    match usize::try_from(n) {
        Ok(n) if n > 0 => {
            // SAFETY: the caller's contract.
            unsafe { std::slice::from_raw_parts(first, n) }
        }
        _ => &[],
    }
}

/// Returns the error about an object that is not an array.
#[cold]
pub fn not_an_array(object: &Bound<'_, PyAny>, name: &str) -> Error {
    let kind = object.get_type().name().map_or_else(|_| "?".into(), |n| n.to_string());
    Error::Type(format!("{name} is a {kind}; it takes an array"))
}

/// Returns the error about an array of a dtype that is not accepted.
#[cold]
fn dtype_not_accepted(object: &Bound<'_, PyAny>, accepted: AcceptedDTypes, name: &str) -> Error {
    // The attributes are read because the dtype may be one that `DType` cannot express.
    let text = |name: &str| object.getattr(name).map_or_else(|_| "?".into(), |v| v.to_string());
    Error::Type(format!(
        "{name} is an array of dtype {} and shape {}; it takes {}",
        text("dtype"),
        text("shape"),
        accepted.names()
    ))
}
