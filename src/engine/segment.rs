//! One tensor's memory, as the executor sees it: either one aligned run of reals, or a walk over
//! strides. The only place where Rust touches the memory that a caller handed in.

use crate::allocation::{OutOfMemory, filled, with_capacity};
use crate::kernels::operation::Run;
use crate::scalar::{DType, Element, Scalar};
use std::ops::Range;

/// How many arrays a clip walks side by side. (An optimizer's update walks more: `update.rs`.)
pub const OPERANDS: usize = 4;
/// The operand that is read.
pub const INPUT: usize = 0;
/// The operand that is written.
pub const OUTPUT: usize = 1;
/// The lower bound of a clamp.
pub const LOWER: usize = 2;
/// The upper bound of a clamp.
pub const UPPER: usize = 3;

/// One dimension of a walk: its length and each operand's stride in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dim<const N: usize = OPERANDS> {
    /// Number of steps.
    pub len: usize,
    /// Bytes from one step to the next, per operand.
    pub strides: [isize; N],
}

/// How the reals of a segment lie in memory.
#[derive(Debug, PartialEq, Eq)]
pub enum Layout<const N: usize = OPERANDS> {
    /// One aligned run, of every operand that is there.
    Dense,
    /// Nested loops, the outermost first.
    Walk(Vec<Dim<N>>),
}

impl<const N: usize> Layout<N> {
    /// The same layout once more.
    pub fn try_clone(&self) -> Result<Self, OutOfMemory> {
        match self {
            Self::Dense => Ok(Self::Dense),
            Self::Walk(dims) => {
                let mut copy = with_capacity(dims.len())?;
                copy.extend_from_slice(dims);
                Ok(Self::Walk(copy))
            }
        }
    }
}

/// A tensor (and where its result goes) as a sequence of reals.
///
/// Its constructors are `unsafe`, and its fields are this crate's alone: whoever has a segment may read the memory that
/// it describes.
#[derive(Debug)]
pub struct Segment<const N: usize = OPERANDS> {
    /// The type of the reals: of the first operand, if their types differ.
    pub(crate) scalar: Scalar,
    /// Whether two of them make an element.
    pub(crate) complex: bool,
    /// How many reals there are.
    pub(crate) len: usize,
    /// Where each operand's first real is; null for an operand that is not there.
    pub(crate) base: [*mut u8; N],
    /// How they lie.
    pub(crate) layout: Layout<N>,
}

// SAFETY: a segment is a description; threads that use it touch disjoint ranges of what is written,
// and whoever made it keeps the memory alive and, for the operands that are written, unshared.
unsafe impl<const N: usize> Send for Segment<N> {}
// SAFETY: as for `Send`.
unsafe impl<const N: usize> Sync for Segment<N> {}

/// The memory of one operand: its first element, and bytes per step of each axis.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    /// The element at index 0 of every axis.
    pub pointer: *mut u8,
    /// One stride per axis, in bytes.
    pub strides: &'a [isize],
}

impl<const N: usize> Segment<N> {
    /// Describes operands of one shape. Axes are merged and reordered so that contiguous memory of
    /// any axis order, also transposed or reversed, is found to be dense.
    ///
    /// # Safety
    ///
    /// Every operand's memory must stay valid for as long as the segment is used, for reads, and the
    /// output's for writes that nothing else reads or makes.
    pub unsafe fn new(
        dtype: DType,
        shape: &[usize],
        operands: [Option<Strided>; N],
    ) -> Result<Self, OutOfMemory> {
        // SAFETY: the caller's contract.
        unsafe { Self::mixed(dtype, shape, operands, [dtype.scalar.size(); N]) }
    }

    /// As [`Segment::new`], of operands whose reals have these sizes in bytes. Those of the first operand are `dtype`'s.
    ///
    /// # Safety
    ///
    /// As [`Segment::new`]; every operand that is written must be unshared.
    pub unsafe fn mixed(
        dtype: DType,
        shape: &[usize],
        operands: [Option<Strided>; N],
        sizes: [usize; N],
    ) -> Result<Self, OutOfMemory> {
        let len = count(shape) * dtype.parts();
        let mut base = operands.map(|operand| operand.map_or(std::ptr::null_mut(), |o| o.pointer));
        let layout = if len == 0 {
            Layout::Dense
        } else {
            // One more for the parts of complex numbers.
            let mut dims: Vec<Dim<N>> = with_capacity(shape.len() + 1)?;
            dims.extend(shape.iter().enumerate().filter(|(_, len)| **len != 1).map(|(axis, len)| Dim {
                len: *len,
                strides: operands.map(|operand| operand.map_or(0, |o| o.strides[axis])),
            }));
            for dim in &mut dims {
                forwards(dim, &mut base);
            }
            let present = base.map(|pointer| !pointer.is_null());
            sort(&mut dims, present);
            if dtype.complex {
                // The parts of a number stay neighbours, also where an axis repeats it.
                dims.push(Dim { len: 2, strides: sizes.map(|size| size as isize) });
            }
            merge(&mut dims, present);
            let aligned = base.iter().zip(sizes).all(|(pointer, size)| pointer.addr() % size == 0);
            let dense = match dims.as_slice() {
                [] => true,
                [dim] => (0..N).all(|k| !present[k] || dim.strides[k] == sizes[k] as isize),
                _ => false,
            };
            if dense && aligned {
                Layout::Dense
            } else {
                if dims.is_empty() {
                    dims.push(Dim { len: 1, strides: [0; N] });
                }
                Layout::Walk(dims)
            }
        };
        Ok(Self { scalar: dtype.scalar, complex: dtype.complex, len, base, layout })
    }

    /// A segment over memory known to be one aligned run of each operand.
    ///
    /// # Safety
    ///
    /// As [`Segment::new`]; and every operand that is there must be aligned for `dtype`'s reals and
    /// hold `len` of them.
    #[must_use]
    pub unsafe fn dense(dtype: DType, len: usize, base: [*mut u8; N]) -> Self {
        Self { scalar: dtype.scalar, complex: dtype.complex, len, base, layout: Layout::Dense }
    }

    /// Whether the result goes to the very memory that is read.
    #[must_use]
    pub fn in_place(&self) -> bool {
        self.base[INPUT] == self.base[OUTPUT]
    }

    /// The bytes of scratch memory that reading or updating a chunk of it takes.
    pub fn scratch_bytes(&self, chunk: usize) -> usize {
        match self.layout {
            Layout::Dense => 0,
            Layout::Walk(_) => self.len.min(chunk) * self.scalar.size(),
        }
    }

    /// The reals of `range`, if they are one aligned run.
    fn dense_input<T>(&self, range: &Range<usize>) -> Option<&[T]> {
        assert!(range.end <= self.len && size_of::<T>() == self.scalar.size());
        (self.layout == Layout::Dense).then(|| {
            if range.is_empty() {
                return &[][..];
            }
            // SAFETY: dense: the input is an aligned run of `len` reals of this size, valid for
            // reads by the contract of `new`; the range lies within it.
            unsafe { std::slice::from_raw_parts(self.base[INPUT].cast::<T>().add(range.start), range.len()) }
        })
    }

    /// The reals of `range` of a dense operand.
    ///
    /// # Safety
    ///
    /// The segment must be dense, the operand there, of this type, and reach as far; nothing may write it meanwhile.
    #[must_use]
    pub unsafe fn run<T: Element>(&self, operand: usize, range: Range<usize>) -> &[T] {
        assert!(self.layout == Layout::Dense && range.end <= self.len);
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts(self.base[operand].cast::<T>().add(range.start), range.len()) }
    }

    /// The reals of `range` of a dense operand, to be written.
    ///
    /// # Safety
    ///
    /// As [`Segment::run`]; and this range of the operand must be the caller's alone.
    #[must_use]
    #[allow(
        clippy::mut_from_ref,
        reason = "a segment describes memory; who may write it is the caller's promise"
    )]
    pub unsafe fn run_mut<T: Element>(&self, operand: usize, range: Range<usize>) -> &mut [T] {
        assert!(self.layout == Layout::Dense && range.end <= self.len);
        // SAFETY: the caller's contract.
        unsafe {
            std::slice::from_raw_parts_mut(self.base[operand].cast::<T>().add(range.start), range.len())
        }
    }

    /// Gives `f` the reals of `range` as one slice, gathered into `scratch` if they do not lie as one.
    pub fn read<T: Element, R>(
        &self,
        range: Range<usize>,
        scratch: &mut Scratch,
        f: impl FnOnce(&[T]) -> R,
    ) -> R {
        if let Some(run) = self.dense_input(&range) {
            return f(run);
        }
        let buffer = scratch.reals::<T>(range.len());
        self.gather(INPUT, range, buffer);
        f(buffer)
    }

    /// Gives `f` the reals of `range` and where their results go, with their position in the segment.
    ///
    /// Dense memory comes as one run, streamed if that is asked for. Walked memory comes in blocks that are gathered
    /// before, and scattered after if `f` says that it changed them.
    ///
    /// # Safety
    ///
    /// No other thread may use this range of the output meanwhile, nor write that of the input.
    pub unsafe fn update<T: Element>(
        &self,
        range: Range<usize>,
        streaming: bool,
        scratch: &mut Scratch,
        mut f: impl FnMut(Run<T>, usize) -> bool,
    ) {
        assert!(range.end <= self.len && size_of::<T>() == self.scalar.size());
        if range.is_empty() {
            return;
        }
        if self.layout == Layout::Dense {
            let (start, count) = (range.start, range.len());
            // SAFETY: dense: the output is one aligned run, and this part of it ours alone by the caller's
            // contract; the input is the same memory, or does not overlap it (the edge checked it).
            unsafe {
                let to = std::slice::from_raw_parts_mut(self.base[OUTPUT].cast::<T>().add(start), count);
                if self.in_place() {
                    f(Run::InPlace(to), start);
                } else {
                    let from = std::slice::from_raw_parts(self.base[INPUT].cast::<T>().add(start), count);
                    f(if streaming { Run::Streamed(from, to) } else { Run::OutOfPlace(from, to) }, start);
                }
            }
            return;
        }
        let same_memory = self.is_walked_in_place();
        let per_block = BLOCK_BYTES / size_of::<T>();
        for start in range.clone().step_by(per_block) {
            let block = start..range.end.min(start + per_block);
            let buffer = scratch.reals::<T>(block.len());
            self.gather(INPUT, block.clone(), buffer);
            let changed = f(Run::InPlace(buffer), start);
            if changed || !same_memory {
                // SAFETY: this part of the output is ours alone.
                unsafe { self.scatter(OUTPUT, block, buffer) };
            }
        }
    }

    /// As [`Segment::update`], for work that wants other operands of the same reals beside it: `f` changes blocks of at
    /// most `most` reals where they are, told their position, and tells whether it did.
    ///
    /// # Safety
    ///
    /// As [`Segment::update`].
    pub unsafe fn update_blocks<T: Element>(
        &self,
        range: Range<usize>,
        most: usize,
        scratch: &mut Scratch,
        mut f: impl FnMut(&mut [T], usize) -> bool,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            self.update(range, false, scratch, |run: Run<T>, start| {
                let x = match run {
                    Run::InPlace(x) => x,
                    Run::OutOfPlace(from, to) | Run::Streamed(from, to) => {
                        to.copy_from_slice(from);
                        to
                    }
                };
                // A dense run is a whole chunk: it is handed out in parts.
                let blocks = x.chunks_mut(most).enumerate();
                blocks.fold(false, |changed, (part, block)| f(block, start + part * most) | changed)
            });
        }
    }

    /// Whether each real of the output is that of the input.
    fn is_walked_in_place(&self) -> bool {
        match &self.layout {
            Layout::Dense => self.in_place(),
            Layout::Walk(dims) => {
                self.in_place() && dims.iter().all(|dim| dim.strides[INPUT] == dim.strides[OUTPUT])
            }
        }
    }

    /// Copies the reals of `range` of one operand to `buffer`.
    pub fn gather<T: Element>(&self, operand: usize, range: Range<usize>, buffer: &mut [T]) {
        let mut at = 0;
        self.runs::<T>(operand, range, |pointer, stride, count| {
            let target = &mut buffer[at..at + count];
            // SAFETY: `runs` yields positions inside the operand, valid for reads by the contract
            // of `new`; unaligned reads because nothing is known of a walked operand's alignment.
            unsafe {
                if stride == size_of::<T>() as isize {
                    let bytes = target.as_mut_ptr().cast::<u8>();
                    std::ptr::copy_nonoverlapping(pointer, bytes, count * size_of::<T>());
                } else {
                    let mut from = pointer;
                    for to in target {
                        *to = from.cast::<T>().read_unaligned();
                        from = from.wrapping_offset(stride);
                    }
                }
            }
            at += count;
        });
    }

    /// Copies `buffer` to one operand's reals of `range`.
    ///
    /// # Safety
    ///
    /// The operand must be one that is written, and no other thread may use this range of it meanwhile.
    pub unsafe fn scatter<T: Element>(&self, operand: usize, range: Range<usize>, buffer: &[T]) {
        let mut at = 0;
        self.runs::<T>(operand, range, |pointer, stride, count| {
            let source = &buffer[at..at + count];
            // SAFETY: `runs` yields positions inside the operand, valid for writes by the contract
            // of `new`, and ours alone by that of this function.
            unsafe {
                if stride == size_of::<T>() as isize {
                    let bytes = source.as_ptr().cast::<u8>();
                    std::ptr::copy_nonoverlapping(bytes, pointer, count * size_of::<T>());
                } else {
                    let mut to = pointer;
                    for from in source {
                        to.cast::<T>().write_unaligned(*from);
                        to = to.wrapping_offset(stride);
                    }
                }
            }
            at += count;
        });
    }

    /// Calls `visit(pointer, stride, count)` for the innermost runs that make up `range`.
    fn runs<T>(&self, operand: usize, range: Range<usize>, mut visit: impl FnMut(*mut u8, isize, usize)) {
        assert!(range.end <= self.len);
        if range.is_empty() {
            return;
        }
        let whole = [Dim { len: self.len, strides: [size_of::<T>() as isize; N] }];
        let dims = match &self.layout {
            Layout::Dense => &whole[..],
            Layout::Walk(dims) => dims,
        };
        let (inner, outer) = dims.split_last().unwrap_or((&whole[0], &[]));
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

/// Turns a dimension that the leading operand walks backwards, so that every stride that can be is
/// positive.
pub(crate) fn forwards<const N: usize>(dim: &mut Dim<N>, base: &mut [*mut u8; N]) {
    let lead = if base[INPUT].is_null() { OUTPUT } else { INPUT };
    if dim.strides[lead] < 0 {
        let last = dim.len as isize - 1;
        for (pointer, stride) in base.iter_mut().zip(&mut dim.strides) {
            if !pointer.is_null() {
                *pointer = pointer.wrapping_offset(last * *stride);
            }
            *stride = -*stride;
        }
    }
}

/// Sorts dimensions by the stride of the input, the largest first: in the order that memory is read best, whatever
/// the output.
pub(crate) fn sort<const N: usize>(dims: &mut [Dim<N>], present: [bool; N]) {
    let lead = if present[INPUT] { INPUT } else { OUTPUT };
    dims.sort_by_key(|dim| std::cmp::Reverse(dim.strides[lead].unsigned_abs()));
}

/// Merges neighbouring dimensions that make one longer one for every operand that is there.
pub(crate) fn merge<const N: usize>(dims: &mut Vec<Dim<N>>, present: [bool; N]) {
    let mut kept = 0;
    for at in 0..dims.len() {
        let dim = dims[at];
        if let Some(outer) = dims[..kept].last_mut()
            && (0..N).all(|k| !present[k] || outer.strides[k] == dim.strides[k] * dim.len as isize)
        {
            outer.len *= dim.len;
            outer.strides = dim.strides;
        } else {
            dims[kept] = dim;
            kept += 1;
        }
    }
    dims.truncate(kept);
}

/// The number of elements of an array of this shape.
pub(crate) fn count(shape: &[usize]) -> usize {
    // An axis without elements may stand beside axes whose product is beyond the machine's numbers.
    shape.iter().fold(1, |count, len| count.wrapping_mul(*len))
}

/// Bytes that are gathered at a time: they stay in the first-level cache.
const BLOCK_BYTES: usize = 4096;

/// Memory that a thread gathers into what does not lie as one run. It is allocated before a pass, so that the pass
/// cannot fail.
#[derive(Debug, Default)]
pub struct Scratch {
    words: Vec<u64>,
}

impl Scratch {
    /// Room for that many bytes.
    pub fn new(bytes: usize) -> Result<Self, OutOfMemory> {
        Ok(Self { words: filled(0, bytes.div_ceil(8))? })
    }

    /// Room for `count` reals. What they are at first is left over from the last use.
    ///
    /// # Panics
    ///
    /// If there is less room: what a pass needs was allocated before it.
    pub fn reals<T: Element>(&mut self, count: usize) -> &mut [T] {
        let words = &mut self.words[..(count * size_of::<T>()).div_ceil(8)];
        // SAFETY: the words are initialised, aligned to eight bytes, and hold at least `count` values of
        // T, which is a type of which every pattern of bits is a value (`Element`).
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<T>(), count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F32: DType = DType { scalar: Scalar::F32, complex: false };

    /// The segment of `data` read with these strides (in elements), from this element on.
    fn segment(data: &mut [f32], shape: &[usize], strides: &[isize], first: usize) -> Segment {
        let bytes: Vec<isize> = strides.iter().map(|s| s * 4).collect();
        let pointer = data[first..].as_mut_ptr().cast::<u8>();
        let operand = Some(Strided { pointer, strides: &bytes });
        // SAFETY: the tests' data outlive their segments, and the strides stay inside.
        unsafe { Segment::new(F32, shape, [operand, operand, None, None]).unwrap() }
    }

    fn scratch() -> Scratch {
        Scratch::new(1 << 16).unwrap()
    }

    fn read_all(s: &Segment) -> Vec<f32> {
        s.read(0..s.len, &mut scratch(), <[f32]>::to_vec)
    }

    fn numbers(n: u16) -> Vec<f32> {
        (0..n).map(f32::from).collect()
    }

    #[test]
    fn memory_without_holes_is_dense_in_any_axis_order_and_direction() {
        let mut data = numbers(24);
        for (shape, strides, first) in [
            (vec![2, 3, 4], vec![12, 4, 1], 0),
            (vec![4, 3, 2], vec![1, 4, 12], 0),
            (vec![3, 2, 4], vec![4, 12, 1], 0),
            (vec![24], vec![-1], 23),
            (vec![2, 12], vec![-12, 1], 12),
            (vec![2, 1, 12], vec![12, 999, 1], 0),
        ] {
            let s = segment(&mut data, &shape, &strides, first);
            assert_eq!(s.layout, Layout::Dense, "{shape:?} {strides:?}");
            assert_eq!(read_all(&s), numbers(24));
        }
    }

    #[test]
    fn holes_repeats_and_ranges_are_walked() {
        let mut data = numbers(24);
        let every_other = segment(&mut data, &[12], &[2], 0);
        assert_eq!(read_all(&every_other), (0..12).map(|i| f32::from(i as u16 * 2)).collect::<Vec<_>>());
        let part = every_other.read(3..7, &mut scratch(), <[f32]>::to_vec);
        assert_eq!(part, [6.0, 8.0, 10.0, 12.0]);
        let repeated = segment(&mut data, &[2, 3], &[0, 1], 5);
        assert_eq!(read_all(&repeated).iter().sum::<f32>(), 2.0 * (5.0 + 6.0 + 7.0));
        let corner = segment(&mut data, &[3, 2], &[4, 1], 1);
        assert_eq!(read_all(&corner), [1.0, 2.0, 5.0, 6.0, 9.0, 10.0]);
        assert_eq!(corner.read(1..4, &mut scratch(), <[f32]>::to_vec), [2.0, 5.0, 6.0]);
    }

    #[test]
    fn a_strided_output_gets_what_the_block_became() {
        let mut data = numbers(5000);
        let s = segment(&mut data, &[2500], &[2], 0);
        // SAFETY: one thread.
        unsafe {
            s.update::<f32>(0..2500, false, &mut scratch(), |run, _| {
                let Run::InPlace(block) = run else { unreachable!() };
                for v in block {
                    *v = -*v;
                }
                true
            });
        }
        for (i, v) in data.iter().enumerate() {
            let want = i as f32 * if i % 2 == 0 { -1.0 } else { 1.0 };
            assert_eq!(*v, want);
        }
    }

    #[test]
    fn a_misaligned_run_is_walked_and_an_empty_one_is_dense() {
        let mut bytes = vec![0_u8; 64];
        let at = bytes.as_mut_ptr().align_offset(4) + 1;
        bytes[at..at + 8].copy_from_slice(&[0, 0, 128, 63, 0, 0, 0, 64]);
        let strides = [4];
        let operand = Some(Strided { pointer: bytes[at..].as_mut_ptr(), strides: &strides });
        // SAFETY: two floats from `at` on are inside.
        let s = unsafe { Segment::new(F32, &[2], [operand, None, None, None]) }.unwrap();
        assert!(matches!(s.layout, Layout::Walk(_)));
        assert_eq!(read_all(&s), [1.0, 2.0]);
        // SAFETY: nothing is read.
        let empty = unsafe { Segment::new(F32, &[0], [operand, None, None, None]) }.unwrap();
        assert_eq!(empty.layout, Layout::Dense);
        assert!(read_all(&empty).is_empty());
    }

    #[test]
    fn complex_numbers_are_pairs_of_reals() {
        let mut data = numbers(8);
        let pointer = data.as_mut_ptr().cast::<u8>();
        let c64 = DType { scalar: Scalar::F32, complex: true };
        let dense = Strided { pointer, strides: &[8] };
        let holes = Strided { pointer, strides: &[16] };
        // SAFETY: four and two complex numbers lie inside.
        let (dense, holes) = unsafe {
            (
                Segment::new(c64, &[4], [Some(dense), None, None, None]).unwrap(),
                Segment::new(c64, &[2], [Some(holes), None, None, None]).unwrap(),
            )
        };
        assert_eq!((&dense.layout, read_all(&dense)), (&Layout::Dense, numbers(8)));
        assert_eq!(read_all(&holes), [0.0, 1.0, 4.0, 5.0]);
        let repeated = Strided { pointer, strides: &[0, 8] };
        // SAFETY: two complex numbers, three times.
        let repeated = unsafe { Segment::new(c64, &[3, 2], [Some(repeated), None, None, None]) }.unwrap();
        for pair in read_all(&repeated).chunks(2) {
            assert_eq!(pair[1], pair[0] + 1.0);
        }
    }
}
