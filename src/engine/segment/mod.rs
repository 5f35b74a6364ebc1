//! Segments: the memory of a tensor and its output as a sequence of reals.
//!
//! A segment describes up to `N` arrays of one shape, its operands, either as contiguous runs or as nested loops over
//! strides. Passes access the caller's memory only through this module, which reads it, and through
//! [`exec`](crate::engine::exec), which writes it.

mod layout;
mod scratch;

pub use layout::{Dim, Layout, element_count, make_forward, merge_dims, sort_by_stride};
pub use scratch::Scratch;

use crate::allocation::{OutOfMemory, with_capacity};
use crate::scalar::{DType, Element, Scalar};
use std::ops::Range;

/// Number of operands of a clip. (An optimizer's update has more, see `operations::update`.)
pub const OPERANDS: usize = 4;
/// Index of the operand that is read.
pub const INPUT: usize = 0;
/// Index of the operand that is written.
pub const OUTPUT: usize = 1;
/// Index of the lower bound of a clamp.
pub const LOWER: usize = 2;
/// Index of the upper bound of a clamp.
pub const UPPER: usize = 3;

/// The memory of one operand.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Address of the element at index 0 of every axis.
    pub pointer: *mut u8,
    /// Byte strides, one per axis.
    pub strides: &'a [isize],
    /// Type of the reals.
    pub scalar: Scalar,
    /// Whether passes may write it.
    pub is_written: bool,
}

impl Operand<'_> {
    /// Returns the same memory as an operand that passes write.
    #[must_use]
    pub fn written(self) -> Self {
        Self { is_written: true, ..self }
    }
}

/// A tensor and its output, or several arrays of one shape, as sequences of reals.
///
/// The constructors are `unsafe` and the fields private, because safe code that has a segment may read the memory that
/// it describes, and [`exec::for_each`](crate::engine::exec::for_each) writes the operands that it declares as
/// written.
#[derive(Debug)]
pub struct Segment<const N: usize = OPERANDS> {
    /// Type of the reals of each operand; for an operand that is absent, that of the first operand that is present.
    scalars: [Scalar; N],
    /// Whether elements are complex: two reals each.
    is_complex: bool,
    /// Whether passes may write each operand.
    is_written: [bool; N],
    /// Number of reals.
    len: usize,
    /// Address of each operand's first real; null for operands that are absent.
    base: [*mut u8; N],
    layout: Layout<N>,
}

// SAFETY: a segment is a description of memory that its creator keeps valid. Threads that share it read; writing takes
// an `exec::ChunkMut`, of which no two cover the same reals.
unsafe impl<const N: usize> Send for Segment<N> {}
// SAFETY: as for `Send`.
unsafe impl<const N: usize> Sync for Segment<N> {}

impl<const N: usize> AsRef<Self> for Segment<N> {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl<const N: usize> Segment<N> {
    /// Describes operands of one shape. Axes are reordered, reversed and merged, so that contiguous memory is
    /// recognised in any order and direction of its axes. Operand 0 determines the order of the reals: that of its
    /// addresses.
    ///
    /// # Safety
    ///
    /// For as long as the segment exists, the memory of every operand must be valid for reads, and that of an operand
    /// with `is_written` for writes too. During that time, memory that is written must not be accessed in any other
    /// way, neither through another operand nor through another segment, with one exception: if operand 1 is written
    /// and operand 0 is not, they may be exactly the same memory.
    pub unsafe fn new(
        is_complex: bool,
        shape: &[usize],
        operands: [Option<Operand>; N],
    ) -> Result<Self, OutOfMemory> {
        let lead = operands.iter().flatten().next().map_or(Scalar::F32, |operand| operand.scalar);
        let scalars = operands.map(|operand| operand.map_or(lead, |o| o.scalar));
        let is_written = operands.map(|operand| operand.is_some_and(|o| o.is_written));
        let mut base = operands.map(|operand| operand.map_or(std::ptr::null_mut(), |o| o.pointer));
        let len = element_count(shape) * if is_complex { 2 } else { 1 };
        if len == 0 {
            return Ok(Self { scalars, is_complex, is_written, len, base, layout: Layout::Dense });
        }
        // One dimension more than axes, for the real and imaginary parts of complex numbers.
        let mut dims: Vec<Dim<N>> = with_capacity(shape.len() + 1)?;
        dims.extend(shape.iter().enumerate().filter(|(_, len)| **len != 1).map(|(axis, len)| Dim {
            len: *len,
            strides: operands.map(|operand| operand.map_or(0, |o| o.strides[axis])),
        }));
        for dim in &mut dims {
            make_forward(dim, &mut base);
        }
        let is_present = base.map(|pointer| !pointer.is_null());
        sort_by_stride(&mut dims, is_present);
        if is_complex {
            // This dimension is the innermost one even if an axis has stride 0, so that the real and imaginary part of
            // an element are adjacent reals.
            dims.push(Dim { len: 2, strides: scalars.map(|scalar| scalar.size() as isize) });
        }
        merge_dims(&mut dims, is_present);
        let layout = if is_dense(&dims, &base, scalars) {
            Layout::Dense
        } else {
            if dims.is_empty() {
                dims.push(Dim { len: 1, strides: [0; N] });
            }
            Layout::Strided(dims)
        };
        Ok(Self { scalars, is_complex, is_written, len, base, layout })
    }

    /// Describes operands that are known to be contiguous, aligned runs of `len` reals.
    ///
    /// # Safety
    ///
    /// As [`Segment::new`]; and every operand must be aligned for its type and hold `len` reals of it.
    #[must_use]
    #[inline]
    pub unsafe fn dense(is_complex: bool, len: usize, operands: [Option<Run>; N]) -> Self {
        let lead = operands.iter().flatten().next().map_or(Scalar::F32, |run| run.scalar);
        Self {
            scalars: operands.map(|run| run.map_or(lead, |run| run.scalar)),
            is_complex,
            is_written: operands.map(|run| run.is_some_and(|run| run.is_written)),
            len,
            base: operands.map(|run| run.map_or(std::ptr::null_mut(), |run| run.pointer)),
            layout: Layout::Dense,
        }
    }

    /// Describes operands of one type and layout. `base` has the address of each operand's first real, or null if it is
    /// absent, and `is_written` tells whether passes may write it.
    ///
    /// # Safety
    ///
    /// As [`Segment::new`]; and the layout must stay inside the memory of every operand.
    #[must_use]
    #[inline(always)]
    pub unsafe fn with_layout(
        dtype: DType,
        len: usize,
        base: [*mut u8; N],
        is_written: [bool; N],
        layout: Layout<N>,
    ) -> Self {
        Self { scalars: [dtype.scalar; N], is_complex: dtype.complex, is_written, len, base, layout }
    }

    /// Moves the segment to other memory of the same layout.
    ///
    /// # Safety
    ///
    /// As [`Segment::with_layout`].
    pub unsafe fn move_to(&mut self, base: [*mut u8; N]) {
        self.base = base;
    }

    /// Number of reals.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no reals.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Type of the reals of operand 0.
    #[must_use]
    pub fn scalar(&self) -> Scalar {
        self.scalars[0]
    }

    /// Type of the reals of an operand; None if it is absent.
    #[must_use]
    pub fn scalar_of(&self, operand: usize) -> Option<Scalar> {
        (!self.base[operand].is_null()).then_some(self.scalars[operand])
    }

    /// Type of the elements of operand 0.
    #[must_use]
    pub fn dtype(&self) -> DType {
        DType { scalar: self.scalar(), complex: self.is_complex }
    }

    /// Whether elements are complex: two reals each.
    #[must_use]
    pub fn is_complex(&self) -> bool {
        self.is_complex
    }

    /// Whether every operand is one contiguous, aligned run.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.layout == Layout::Dense
    }

    /// Whether the input and the output start at the same address.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.base[INPUT] == self.base[OUTPUT]
    }

    /// Whether each real of the output is stored at the address of the same real of the input.
    pub(super) fn is_same_memory(&self) -> bool {
        match &self.layout {
            Layout::Dense => self.is_in_place(),
            Layout::Strided(dims) => {
                self.is_in_place() && dims.iter().all(|dim| dim.strides[INPUT] == dim.strides[OUTPUT])
            }
        }
    }

    /// Size in bytes of the scratch buffer that is needed to read or update `chunk` reals.
    #[must_use]
    pub fn scratch_bytes(&self, chunk: usize) -> usize {
        match self.layout {
            Layout::Dense => 0,
            Layout::Strided(_) => self.len.min(chunk) * self.scalar().size(),
        }
    }

    /// Whether passes may write an operand.
    pub(super) fn is_written(&self, operand: usize) -> bool {
        self.is_written[operand]
    }

    /// Returns the address of the first real of `range` in a dense operand.
    ///
    /// # Panics
    ///
    /// If the segment is not dense, the range reaches beyond it, or the operand is absent or of a type of another size
    /// than `T`.
    pub(super) fn dense_pointer<T: Element>(&self, operand: usize, range: &Range<usize>) -> *mut T {
        assert!(
            self.is_dense()
                && range.start <= range.end
                && range.end <= self.len
                && size_of::<T>() == self.scalars[operand].size()
                && (range.is_empty() || !self.base[operand].is_null())
        );
        self.base[operand].cast::<T>().wrapping_add(range.start)
    }

    /// Returns reals of a dense operand.
    ///
    /// # Panics
    ///
    /// If the segment is not dense, the operand is written or absent, or of a type of another size than `T`.
    #[must_use]
    pub fn run<T: Element>(&self, operand: usize, range: Range<usize>) -> &[T] {
        let pointer = self.dense_pointer::<T>(operand, &range);
        if range.is_empty() {
            return &[];
        }
        assert!(!self.is_written[operand]);
        // SAFETY: an aligned run of `len` reals of this size, valid for reads and not written by the contract of the
        // constructors; the range lies within it.
        unsafe { std::slice::from_raw_parts(pointer.cast_const(), range.len()) }
    }

    /// Calls `f` with the reals of the input in `range` as one slice, gathered into `scratch` if they are not
    /// contiguous.
    pub fn read<T: Element, R>(
        &self,
        range: Range<usize>,
        scratch: &mut Scratch,
        f: impl FnOnce(&[T]) -> R,
    ) -> R {
        assert!(size_of::<T>() == self.scalar().size());
        if self.is_dense() {
            let pointer = self.dense_pointer::<T>(INPUT, &range);
            if range.is_empty() {
                return f(&[]);
            }
            // SAFETY: as for `run`. If the input is written too, in place, no pass writes it now, because passes that
            // write borrow the segment mutably.
            return f(unsafe { std::slice::from_raw_parts(pointer.cast_const(), range.len()) });
        }
        let buffer = scratch.reals::<T>(range.len());
        self.gather_operand(INPUT, range, buffer);
        f(buffer)
    }

    /// Copies reals of an operand that is not written to `buffer`, which is as long as `range`.
    ///
    /// # Panics
    ///
    /// If the range reaches beyond the segment, or the operand is written, absent, or of a type of another size than
    /// `T`.
    pub fn gather<T: Element>(&self, operand: usize, range: Range<usize>, buffer: &mut [T]) {
        assert!(!self.is_written[operand]);
        self.gather_operand(operand, range, buffer);
    }

    /// Copies reals of any operand to `buffer`, like [`Segment::gather`]. No other thread may write this range of the
    /// operand at the same time, which `exec` ensures.
    pub(super) fn gather_operand<T: Element>(&self, operand: usize, range: Range<usize>, buffer: &mut [T]) {
        let mut done = 0;
        self.for_each_run::<T>(operand, range, |pointer, stride, count| {
            let target = &mut buffer[done..done + count];
            // SAFETY: `for_each_run` yields positions inside the operand, valid for reads by the contract of the
            // constructors.
            unsafe { gather_run(pointer, stride, target) };
            done += count;
        });
    }

    /// Calls `visit(pointer, stride, count)` for the runs along the innermost dimension that make up `range`, in order:
    /// `count` reals from `pointer` on, `stride` bytes apart.
    ///
    /// # Panics
    ///
    /// If the range reaches beyond the segment, or the operand is absent or of a type of another size than `T`.
    pub(super) fn for_each_run<T: Element>(
        &self,
        operand: usize,
        range: Range<usize>,
        mut visit: impl FnMut(*mut u8, isize, usize),
    ) {
        assert!(range.end <= self.len && size_of::<T>() == self.scalars[operand].size());
        if range.is_empty() {
            return;
        }
        assert!(!self.base[operand].is_null());
        let dense = [Dim { len: self.len, strides: [size_of::<T>() as isize; N] }];
        let dims = match &self.layout {
            Layout::Dense => &dense[..],
            Layout::Strided(dims) => dims,
        };
        let (inner, outer) = dims.split_last().unwrap_or((&dense[0], &[]));
        let mut column = range.start % inner.len;
        let mut row = range.start / inner.len;
        let mut left = range.len();
        while left > 0 {
            let mut offset = column as isize * inner.strides[operand];
            let mut index = row;
            for dim in outer.iter().rev() {
                offset += (index % dim.len) as isize * dim.strides[operand];
                index /= dim.len;
            }
            let count = left.min(inner.len - column);
            visit(self.base[operand].wrapping_offset(offset), inner.strides[operand], count);
            left -= count;
            column = 0;
            row += 1;
        }
    }
}

/// The memory of an operand that is known to be a contiguous, aligned run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Address of the first real.
    pub pointer: *mut u8,
    /// Type of the reals.
    pub scalar: Scalar,
    /// Whether passes may write it.
    pub is_written: bool,
}

impl Run {
    /// Returns the same memory as an operand that passes write.
    #[must_use]
    pub fn written(self) -> Self {
        Self { is_written: true, ..self }
    }
}

/// Whether every operand that is present is one aligned run along these merged dimensions.
fn is_dense<const N: usize>(dims: &[Dim<N>], base: &[*mut u8; N], scalars: [Scalar; N]) -> bool {
    let present = || (0..N).filter(|k| !base[*k].is_null());
    present().all(|k| base[k].addr().is_multiple_of(scalars[k].size()))
        && match dims {
            [] => true,
            [dim] => present().all(|k| dim.strides[k] == scalars[k].size() as isize),
            _ => false,
        }
}

/// Copies reals that are `stride` bytes apart to `to`.
///
/// # Safety
///
/// The reals must be valid for reads, from the one at `from` on. They may have any alignment.
#[inline]
pub unsafe fn gather_run<T: Element>(from: *const u8, stride: isize, to: &mut [T]) {
    // SAFETY: by the contract of this function.
    unsafe {
        if stride == size_of::<T>() as isize {
            std::ptr::copy_nonoverlapping(from, to.as_mut_ptr().cast(), size_of_val(to));
        } else if stride == 0 && !to.is_empty() {
            to.fill(from.cast::<T>().read_unaligned());
        } else {
            for (i, to) in to.iter_mut().enumerate() {
                *to = from.wrapping_offset(i as isize * stride).cast::<T>().read_unaligned();
            }
        }
    }
}

/// Copies `from` to reals that are `stride` bytes apart.
///
/// # Safety
///
/// The reals must be valid for writes, from the one at `to` on, and not be accessed in another way meanwhile. They may
/// have any alignment.
#[inline]
pub unsafe fn scatter_run<T: Element>(from: &[T], to: *mut u8, stride: isize) {
    // SAFETY: by the contract of this function.
    unsafe {
        if stride == size_of::<T>() as isize {
            std::ptr::copy_nonoverlapping(from.as_ptr().cast(), to, size_of_val(from));
        } else {
            for (i, from) in from.iter().enumerate() {
                to.wrapping_offset(i as isize * stride).cast::<T>().write_unaligned(*from);
            }
        }
    }
}

#[cfg(test)]
impl<const N: usize> Segment<N> {
    /// [`Segment::new`] for tests, which keep the memory of the operands alive and unshared.
    pub fn in_test(is_complex: bool, shape: &[usize], operands: [Option<Operand>; N]) -> Self {
        // SAFETY: the test's contract.
        unsafe { Self::new(is_complex, shape, operands) }.unwrap()
    }

    /// [`Segment::dense`] for tests, which keep the memory of the operands alive and unshared.
    pub fn dense_in_test(is_complex: bool, len: usize, operands: [Option<Run>; N]) -> Self {
        // SAFETY: the test's contract.
        unsafe { Self::dense(is_complex, len, operands) }
    }
}

#[cfg(test)]
mod tests;
