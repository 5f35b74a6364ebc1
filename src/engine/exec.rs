//! Passes over all chunks of a plan, on one or more threads.
//!
//! A pass that writes borrows its segments mutably and creates one [`ChunkMut`] for each chunk. No two of them cover
//! the same reals, so that operations can write without `unsafe` code.

use super::plan::{Chunk, Plan};
use super::pool;
pub use super::pool::Direction;
use super::segment::{Scratch, Segment, scatter_run};
use super::workspace::Workspace;
use crate::allocation::{OutOfMemory, collect};
use crate::kernels::cache;
use crate::kernels::operation::Run;
use crate::scalar::{Element, Scalar};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Size of the output in bytes from which on results are written past the cache: in the cache, they would be evicted
/// before they are read again. ARCHITECTURE.md has the measurement.
pub const STREAM_BYTES: usize = 16 << 20;

/// Whether a pass over these segments writes its results past the cache: if it is large and writes out of place.
#[must_use]
pub fn is_streaming(segments: &[Segment], plan: &Plan) -> bool {
    plan.bytes() >= STREAM_BYTES && segments.iter().any(|segment| !segment.is_in_place())
}

/// Calls `partial` for every chunk, and returns its results in the order of the chunks.
pub fn reduce<const N: usize>(
    workspace: &Workspace,
    segments: &[Segment<N>],
    plan: &Plan,
    partial: impl Fn(&Segment<N>, Range<usize>, &mut Scratch) -> f64 + Sync,
) -> Result<Vec<f64>, OutOfMemory> {
    let threads = workspace.threads_for(plan.bytes());
    if threads == 1 {
        return workspace.scratch(0, |scratch| {
            collect(plan.chunks().iter().map(|c| partial(&segments[c.segment], c.range.clone(), scratch)))
        });
    }
    let partials: Vec<AtomicU64> = collect(plan.chunks().iter().map(|_| AtomicU64::new(0)))?;
    pool::run(threads, plan.batches().len(), Direction::Forwards, &|batch, worker| {
        workspace.scratch(worker, |scratch| {
            for index in plan.batches()[batch].clone() {
                let Chunk { segment, range } = &plan.chunks()[index];
                let value = partial(&segments[*segment], range.clone(), scratch);
                partials[index].store(value.to_bits(), Ordering::Relaxed);
            }
        });
    });
    collect(partials.into_iter().map(|bits| f64::from_bits(bits.into_inner())))
}

/// A segment together with the parameters of the operation on it.
#[derive(Debug)]
pub struct Task<P, const N: usize> {
    /// The memory that the operation reads and writes.
    pub segment: Segment<N>,
    /// Parameters of the operation.
    pub parameters: P,
}

mod sealed {
    use super::Segment;

    /// What [`for_each`](super::for_each) accepts: a segment, alone or in a [`Task`](super::Task). The trait is sealed,
    /// because `for_each` relies on `segment` returning the same segment at every call, and another one for each value.
    pub trait HasSegment<const N: usize>: Sync {
        /// Parameters of the operation.
        type Parameters: Sync;
        /// Returns the segment.
        fn segment(&self) -> &Segment<N>;
        /// Returns the parameters.
        fn parameters(&self) -> &Self::Parameters;
    }
}

use sealed::HasSegment;

impl<const N: usize> HasSegment<N> for Segment<N> {
    type Parameters = ();

    fn segment(&self) -> &Self {
        self
    }

    fn parameters(&self) -> &() {
        &()
    }
}

impl<P: Sync, const N: usize> HasSegment<N> for Task<P, N> {
    type Parameters = P;

    fn segment(&self) -> &Segment<N> {
        &self.segment
    }

    fn parameters(&self) -> &P {
        &self.parameters
    }
}

/// Calls `work` for every chunk, with the index of its task, the task's parameters, and exclusive access to the chunk.
/// Cannot fail.
pub fn for_each<S: HasSegment<N>, const N: usize>(
    workspace: &Workspace,
    tasks: &mut [S],
    plan: &Plan,
    direction: Direction,
    work: impl Fn(usize, &S::Parameters, ChunkMut<'_, N>, &mut Scratch) + Sync,
) {
    let tasks = &*tasks;
    let backwards = direction == Direction::Backwards;
    let threads = workspace.threads_for(plan.bytes());
    pool::run(threads, plan.batches().len(), direction, &|batch, worker| {
        let chunks = plan.batches()[batch].clone();
        workspace.scratch(worker, |scratch| {
            for step in 0..chunks.len() {
                let index = if backwards { chunks.end - 1 - step } else { chunks.start + step };
                let Chunk { segment, range } = &plan.chunks()[index];
                let task = &tasks[*segment];
                // SAFETY: this function borrows the tasks mutably, so that no other pass uses them. The chunks of a
                // plan are disjoint, and each is visited once.
                let chunk = unsafe { ChunkMut::new(task.segment(), range.clone()) };
                work(*segment, task.parameters(), chunk, scratch);
            }
        });
        // Makes results that were written past the cache visible to the thread that waits for this batch.
        cache::fence();
    });
}

/// Shared access to the operands of a segment that passes do not write.
#[derive(Clone, Copy)]
pub struct ReadOnly<'a, const N: usize> {
    segment: &'a Segment<N>,
}

impl<'a, const N: usize> ReadOnly<'a, N> {
    /// Copies reals of one operand to `buffer`, as [`Segment::gather`].
    ///
    /// # Panics
    ///
    /// As [`Segment::gather`], and if the operand is an input in place: passes write it as the output.
    pub fn gather<T: Element>(self, operand: usize, range: Range<usize>, buffer: &mut [T]) {
        self.check(operand);
        self.segment.gather(operand, range, buffer);
    }

    /// Returns reals of a dense operand, as [`Segment::run`].
    ///
    /// # Panics
    ///
    /// As [`Segment::run`], and if the operand is an input in place: passes write it as the output.
    #[must_use]
    pub fn run<T: Element>(self, operand: usize, range: Range<usize>) -> &'a [T] {
        self.check(operand);
        self.segment.run(operand, range)
    }

    /// Panics if the operand is the input of a segment that is updated in place.
    fn check(self, operand: usize) {
        use super::segment::{INPUT, OUTPUT};
        let is_in_place = N > OUTPUT && self.segment.is_written(OUTPUT) && self.segment.is_in_place();
        assert!(operand != INPUT || !is_in_place, "the input is the output");
    }
}

/// Bytes of strided memory that are gathered at a time: so few that the buffer stays in the first-level cache.
const BLOCK_BYTES: usize = 4096;

/// Exclusive access to a range of a segment: to the reals of that range in every operand that is written.
pub struct ChunkMut<'a, const N: usize> {
    segment: &'a Segment<N>,
    range: Range<usize>,
}

impl<'a, const N: usize> ChunkMut<'a, N> {
    /// Returns access to a range of a segment.
    ///
    /// # Safety
    ///
    /// While the `ChunkMut` exists, no other thread may write this range of the segment's operands, nor read this range
    /// of operands that are written.
    unsafe fn new(segment: &'a Segment<N>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= segment.len());
        Self { segment, range }
    }

    /// Returns exclusive access to all reals of a segment.
    pub fn from_segment(segment: &'a mut Segment<N>) -> Self {
        let range = 0..segment.len();
        // SAFETY: the segment is borrowed mutably, so that nothing else accesses its memory.
        unsafe { Self::new(segment, range) }
    }

    /// The range of reals that the chunk covers.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Type of the reals of operand 0.
    #[must_use]
    pub fn scalar(&self) -> Scalar {
        self.segment.scalar()
    }

    /// Type of the reals of an operand; None if it is absent.
    #[must_use]
    pub fn scalar_of(&self, operand: usize) -> Option<Scalar> {
        self.segment.scalar_of(operand)
    }

    /// Whether every operand is one contiguous, aligned run.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.segment.is_dense()
    }

    /// Returns access to the operands that are not written. It remains valid while the other operands are written.
    #[must_use]
    pub fn read_only(&self) -> ReadOnly<'a, N> {
        ReadOnly { segment: self.segment }
    }

    /// Whether the input and the output start at the same address.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.segment.is_in_place()
    }

    /// Calls `f` with reals of the input, the memory for the results, and the position of the first real in the
    /// segment. `f` returns whether it changed any real.
    ///
    /// For contiguous memory `f` is called once, with a run that is streamed if `streaming`. Strided memory is divided
    /// into blocks, which are gathered before each call. They are scattered after it, unless input and output are the
    /// same memory and `f` changed nothing.
    pub fn update<T: Element>(
        self,
        streaming: bool,
        scratch: &mut Scratch,
        mut f: impl FnMut(Run<T>, usize) -> bool,
    ) {
        use super::segment::{INPUT, OUTPUT};
        let Self { segment, range } = self;
        assert!(segment.is_written(OUTPUT));
        if range.is_empty() {
            return;
        }
        if segment.is_dense() {
            let (start, count) = (range.start, range.len());
            let to = segment.dense_pointer::<T>(OUTPUT, &range);
            // SAFETY: the output is one aligned run, valid for writes, and this part of it is exclusive; the input is
            // the same memory, or does not overlap it, by the contract of the segment's constructor.
            unsafe {
                let to = std::slice::from_raw_parts_mut(to, count);
                if segment.is_in_place() {
                    f(Run::InPlace(to), start);
                } else {
                    let from = segment.dense_pointer::<T>(INPUT, &range);
                    let from = std::slice::from_raw_parts(from.cast_const(), count);
                    f(if streaming { Run::Streamed(from, to) } else { Run::OutOfPlace(from, to) }, start);
                }
            }
            return;
        }
        let is_same_memory = segment.is_same_memory();
        let per_block = BLOCK_BYTES / size_of::<T>();
        let mut chunk = Self { segment, range: range.clone() };
        for start in range.clone().step_by(per_block) {
            let block = start..range.end.min(start + per_block);
            let buffer = scratch.reals::<T>(block.len());
            segment.gather_operand(INPUT, block.clone(), buffer);
            let changed = f(Run::InPlace(buffer), start);
            if changed || !is_same_memory {
                chunk.scatter(OUTPUT, block, buffer);
            }
        }
    }

    /// Calls `f` with blocks of at most `max_len` reals of the output, which hold the input's values, and with the
    /// position of the block's first real in the segment. `f` returns whether it changed any real. This serves
    /// operations that read other operands too.
    pub fn update_blocks<T: Element>(
        self,
        max_len: usize,
        scratch: &mut Scratch,
        mut f: impl FnMut(&mut [T], usize) -> bool,
    ) {
        self.update(false, scratch, |run: Run<T>, start| {
            let x = match run {
                Run::InPlace(x) => x,
                Run::OutOfPlace(from, to) | Run::Streamed(from, to) => {
                    to.copy_from_slice(from);
                    to
                }
            };
            // A contiguous run is as long as the chunk, and has to be divided into blocks.
            let blocks = x.chunks_mut(max_len).enumerate();
            blocks.fold(false, |changed, (index, block)| f(block, start + index * max_len) | changed)
        });
    }

    /// Copies reals of one operand to `buffer`, which is as long as `range`.
    ///
    /// # Panics
    ///
    /// If the range is outside of the chunk.
    pub fn gather<T: Element>(&self, operand: usize, range: Range<usize>, buffer: &mut [T]) {
        self.check(&range);
        self.segment.gather_operand(operand, range, buffer);
    }

    /// Copies `buffer` to reals of one operand.
    ///
    /// # Panics
    ///
    /// If the range is outside of the chunk, or the operand is not written.
    pub fn scatter<T: Element>(&mut self, operand: usize, range: Range<usize>, buffer: &[T]) {
        self.check(&range);
        assert!(self.segment.is_written(operand));
        let mut done = 0;
        self.segment.for_each_run::<T>(operand, range, |pointer, stride, count| {
            let source = &buffer[done..done + count];
            // SAFETY: `for_each_run` yields positions inside the operand, valid for writes by the contract of the
            // segment's constructor, and exclusive because they are inside of this chunk.
            unsafe { scatter_run(source, pointer, stride) };
            done += count;
        });
    }

    /// Returns reals of a dense operand, for writing.
    ///
    /// # Panics
    ///
    /// If the range is outside of the chunk, the segment is not dense, or the operand is not written or of a type of
    /// another size than `T`.
    #[must_use]
    pub fn run_mut<T: Element>(&mut self, operand: usize, range: Range<usize>) -> &mut [T] {
        // SAFETY: one slice, borrowed from the chunk.
        unsafe { self.exclusive_run(operand, &range) }
    }

    /// Returns the reals of `range` in several dense operands at once, for writing: in operand `first`, of type `T`, and
    /// in those in `others`, of type `U`.
    ///
    /// # Panics
    ///
    /// As [`ChunkMut::run_mut`], and if `others` contains `first` or has another length than `K`.
    #[must_use]
    pub fn runs_mut<T: Element, U: Element, const K: usize>(
        &mut self,
        first: usize,
        others: Range<usize>,
        range: &Range<usize>,
    ) -> (&mut [T], [&mut [U]; K]) {
        assert!(others.len() == K && !others.contains(&first));
        // SAFETY: slices of different operands, which do not overlap by the contract of the segment's constructor.
        unsafe {
            (
                self.exclusive_run(first, range),
                std::array::from_fn(|k| self.exclusive_run(others.start + k, range)),
            )
        }
    }

    /// Returns the reals of `range` in the dense operands `operands`, for writing.
    ///
    /// # Panics
    ///
    /// As [`ChunkMut::run_mut`], and if `operands` has another length than `K`.
    #[must_use]
    pub fn array_of_runs_mut<T: Element, const K: usize>(
        &mut self,
        operands: Range<usize>,
        range: &Range<usize>,
    ) -> [&mut [T]; K] {
        assert!(operands.len() == K);
        // SAFETY: slices of different operands, which do not overlap by the contract of the segment's constructor.
        unsafe { std::array::from_fn(|k| self.exclusive_run(operands.start + k, range)) }
    }

    /// Returns reals of a dense operand, for writing, with a lifetime that the caller chooses.
    ///
    /// # Safety
    ///
    /// The slice must not exist at the same time as another slice of the same operand, nor outlive the mutable borrow
    /// of the chunk.
    unsafe fn exclusive_run<'b, T: Element>(&self, operand: usize, range: &Range<usize>) -> &'b mut [T] {
        self.check(range);
        assert!(self.segment.is_written(operand));
        if range.is_empty() {
            return &mut [];
        }
        let pointer = self.segment.dense_pointer::<T>(operand, range);
        // SAFETY: an aligned run of `len` reals of this size, valid for writes by the contract of the constructor; the
        // range lies inside of this chunk, which is exclusive.
        unsafe { std::slice::from_raw_parts_mut(pointer, range.len()) }
    }

    /// Panics unless `range` is inside of the chunk.
    fn check(&self, range: &Range<usize>) {
        assert!(
            self.range.start <= range.start && range.start <= range.end && range.end <= self.range.end,
            "{range:?} is outside of the chunk {:?}",
            self.range
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::segment::{self, INPUT, OUTPUT};

    /// Returns a segment of float32 with these addresses of input and output, of which the output is written.
    fn segment(input: *mut f32, output: *mut f32, len: usize) -> Segment {
        let run = |pointer: *mut f32, is_written| {
            Some(segment::Run { pointer: pointer.cast(), scalar: Scalar::F32, is_written })
        };
        Segment::dense_in_test(false, len, [run(input, false), run(output, true), None, None])
    }

    #[test]
    fn an_input_that_is_not_the_output_can_be_read_while_the_output_is_written() {
        let (mut input, mut output) = ([1.0_f32, 2.0, 3.0], [0.0_f32; 3]);
        let mut segment = segment(input.as_mut_ptr(), output.as_mut_ptr(), 3);
        let mut chunk = ChunkMut::from_segment(&mut segment);
        let from = chunk.read_only().run::<f32>(INPUT, 1..3);
        chunk.run_mut::<f32>(OUTPUT, 1..3).copy_from_slice(from);
        assert_eq!(output, [0.0, 2.0, 3.0]);
    }

    #[test]
    #[should_panic(expected = "the input is the output")]
    fn an_input_that_is_the_output_is_not_shared() {
        let mut data = [1.0_f32; 3];
        let pointer = data.as_mut_ptr();
        let mut segment = segment(pointer, pointer, 3);
        let chunk = ChunkMut::from_segment(&mut segment);
        let _ = chunk.read_only().run::<f32>(INPUT, 0..3);
    }

    #[test]
    #[should_panic(expected = "the input is the output")]
    fn an_input_that_is_the_output_is_not_gathered_without_exclusive_access() {
        let mut data = [1.0_f32; 3];
        let pointer = data.as_mut_ptr();
        let mut segment = segment(pointer, pointer, 3);
        let chunk = ChunkMut::from_segment(&mut segment);
        chunk.read_only().gather::<f32>(INPUT, 0..3, &mut [0.0; 3]);
    }
}
