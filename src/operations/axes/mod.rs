//! Norms of slices along axes, and clipping of each slice by its own norm.
//!
//! A slice is the part of a tensor that the reduced axes span at one index of the kept axes. The memory layout and the
//! length of slices decide among four strategies:
//!
//! - Slices of more than a chunk are measured and clipped as separate tensors.
//! - Short slices are gathered, so that many are summed side by side (`panels.rs`).
//! - If the axis of the smallest stride is kept, adjacent slices are summed side by side (`columns.rs`). These two serve
//!   the orders that `norms::is_accumulated` names.
//! - Otherwise a thread measures a slice, and scales it while it is in the cache.
//!
//! `elements.rs` clips with bounds that differ between the elements of a slice.

mod columns;
pub mod elements;
mod panels;

use crate::allocation::{OutOfMemory, collect, try_collect, with_capacity};
use crate::engine::exec::{ChunkMut, STREAM_BYTES};
use crate::engine::plan::{BATCH_BYTES, CHUNK, Plan};
use crate::engine::pool::{self, Direction};
use crate::engine::segment::{
    Dim, INPUT, LOWER, Layout, OPERANDS, OUTPUT, Operand, Segment, UPPER, make_forward, merge_dims,
    sort_by_stride,
};
use crate::engine::workspace::{Context, Workspace};
use crate::kernels::Float;
use crate::kernels::factor::Factor;
use crate::kernels::operation::Run;
use crate::operations::clip::{Action, Actions, act, apply};
use crate::operations::magnitude::{Magnitude, Order};
use crate::operations::norms;
use crate::scalar::DType;
use crate::with_float;
use columns::Columns;
use panels::Panels;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Index of the operand that receives each slice's norm: float64, one element for each index of the kept axes.
pub const NORMS: usize = LOWER;
/// Index of the operand that holds each slice's bound: float64.
pub const BOUNDS: usize = UPPER;
/// Index of the operand that receives the exponent of each slice's norm, if [`NORMS`] receives its mantissa: float64.
pub const EXPONENTS: usize = UPPER;

/// A tensor divided into slices.
pub struct Slices {
    dtype: DType,
    /// Dimensions of the kept axes.
    kept: Vec<Dim>,
    /// Dimensions of the reduced axes, which a slice spans.
    reduced: Vec<Dim>,
    base: [*mut u8; OPERANDS],
    order: Order,
    /// Whether norms are written as mantissa and exponent, to [`NORMS`] and [`EXPONENTS`]. There are no bounds then.
    is_split: bool,
}

// SAFETY: as for `Segment`: the creator keeps the memory valid, and threads write different slices.
unsafe impl Send for Slices {}
// SAFETY: as for `Send`.
unsafe impl Sync for Slices {}

impl Slices {
    /// Describes a tensor of this shape, whose axes with `is_reduced[axis]` are spanned by a slice. Without an output,
    /// only norms are computed; without bounds there must be no output.
    ///
    /// # Safety
    ///
    /// As [`Segment::new`], for as long as the slices, or the [`PreparedSlices`] that they become, exist; norms and
    /// outputs are written. The strides of norms and bounds along reduced axes are not used.
    pub unsafe fn new(
        dtype: DType,
        shape: &[usize],
        is_reduced: &[bool],
        operands: [Option<Operand>; OPERANDS],
        order: Order,
    ) -> Result<Self, OutOfMemory> {
        let mut base = operands.map(|operand| operand.map_or(std::ptr::null_mut(), |o| o.pointer));
        // One more for the real and imaginary parts of complex numbers.
        let (mut kept, mut reduced) = (with_capacity(shape.len())?, with_capacity(shape.len() + 1)?);
        for (axis, len) in shape.iter().enumerate() {
            if *len == 1 {
                continue;
            }
            let mut dim = Dim { len: *len, strides: operands.map(|o| o.map_or(0, |o| o.strides[axis])) };
            if is_reduced[axis] {
                dim.strides[NORMS] = 0;
                dim.strides[BOUNDS] = 0;
            }
            if *len > 0 {
                make_forward(&mut dim, &mut base);
            }
            if is_reduced[axis] { &mut reduced } else { &mut kept }.push(dim);
        }
        let is_present = base.map(|pointer| !pointer.is_null());
        sort_by_stride(&mut kept, is_present);
        sort_by_stride(&mut reduced, is_present);
        if dtype.complex {
            let size = dtype.scalar.size() as isize;
            reduced.push(Dim { len: 2, strides: [size, size, 0, 0] });
        }
        merge_dims(&mut kept, is_present);
        merge_dims(&mut reduced, [is_present[INPUT], is_present[OUTPUT], false, false]);
        Ok(Self { dtype, kept, reduced, base, order, is_split: false })
    }

    /// Describes a tensor as [`Slices::new`] does, without an output, whose norms are written as mantissa and exponent
    /// of two: to the operands [`NORMS`] and [`EXPONENTS`].
    ///
    /// # Safety
    ///
    /// As [`Slices::new`]; both operands must be present, and are written.
    pub unsafe fn split(
        dtype: DType,
        shape: &[usize],
        is_reduced: &[bool],
        operands: [Option<Operand>; OPERANDS],
        order: Order,
    ) -> Result<Self, OutOfMemory> {
        // SAFETY: by the contract of this function.
        let slices = unsafe { Self::new(dtype, shape, is_reduced, operands, order)? };
        Ok(Self { is_split: true, ..slices })
    }

    /// Number of slices.
    #[must_use]
    pub fn count(&self) -> usize {
        product(&self.kept)
    }

    /// Number of reals in a slice.
    #[must_use]
    pub fn len(&self) -> usize {
        product(&self.reduced)
    }

    /// Whether a slice has no reals.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the input.
    pub fn bytes(&self) -> usize {
        self.count() * self.len() * self.dtype.scalar.size()
    }

    fn has_output(&self) -> bool {
        !self.base[OUTPUT].is_null()
    }

    fn is_in_place(&self) -> bool {
        self.base[INPUT] == self.base[OUTPUT]
    }

    /// Whether outputs are written past the cache.
    fn is_streaming(&self) -> bool {
        self.has_output() && !self.is_in_place() && self.bytes() >= STREAM_BYTES
    }

    /// Returns each operand's address at an index of the kept axes.
    fn address_of(&self, index: usize) -> [*mut u8; OPERANDS] {
        advance(self.base, &self.kept, index)
    }

    /// Returns one slice as a segment of input and output.
    ///
    /// # Safety
    ///
    /// While the segment exists, the slice's output must not be accessed in another way.
    unsafe fn segment(&self, index: usize, layout: &Layout) -> Result<Segment, OutOfMemory> {
        let is_written = [false, self.has_output(), false, false];
        // SAFETY: the slice lies inside of memory that is valid by the contract of `new`; its output is not accessed in
        // another way by the contract of this function.
        Ok(unsafe {
            Segment::with_layout(
                self.dtype,
                self.len(),
                self.slice_address(index),
                is_written,
                layout.try_clone()?,
            )
        })
    }

    /// Returns the addresses of a slice's input and output.
    fn slice_address(&self, index: usize) -> [*mut u8; OPERANDS] {
        data_of(self.address_of(index))
    }

    /// Returns the innermost kept dimension, that of the smallest stride, and the outer ones.
    fn innermost(&self) -> (Dim, &[Dim]) {
        let one = Dim { len: 1, strides: [0; OPERANDS] };
        self.kept.split_last().map_or((one, &[]), |(inner, outer)| (*inner, outer))
    }

    /// Returns the layout that all slices have: dense if they are contiguous and aligned.
    fn layout(&self) -> Result<Layout, OutOfMemory> {
        let size = self.dtype.scalar.size();
        let used = [INPUT, OUTPUT].into_iter().filter(|k| !self.base[*k].is_null());
        let is_multiple = |dim: &Dim, k: usize| dim.strides[k] % size as isize == 0;
        let is_aligned = used.clone().all(|k| {
            self.base[k].addr().is_multiple_of(size) && self.kept.iter().all(|dim| is_multiple(dim, k))
        });
        let is_contiguous = match self.reduced.as_slice() {
            [] => true,
            [dim] => used.clone().all(|k| dim.strides[k] == size as isize),
            _ => false,
        };
        if is_aligned && is_contiguous {
            return Ok(Layout::Dense);
        }
        let mut dims = with_capacity(self.reduced.len().max(1))?;
        dims.extend_from_slice(&self.reduced);
        if dims.is_empty() {
            dims.push(Dim { len: 1, strides: [0; OPERANDS] });
        }
        Ok(Layout::Strided(dims))
    }

    /// Writes a slice's norm, and returns the action that brings the slice to its bound.
    ///
    /// # Safety
    ///
    /// `at` must be the addresses of a slice, whose norm no other thread accesses meanwhile.
    unsafe fn store_norm(&self, at: [*mut u8; OPERANDS], magnitude: Magnitude) -> Action {
        // SAFETY: one float64 per slice, by the contracts of `new` and `split`, of any alignment.
        unsafe {
            if self.is_split {
                let (root, exponent) = magnitude.root(self.order);
                at[NORMS].cast::<f64>().write_unaligned(root);
                at[EXPONENTS].cast::<f64>().write_unaligned(exponent.into());
                return Action::Keep;
            }
            if !at[NORMS].is_null() {
                at[NORMS].cast::<f64>().write_unaligned(magnitude.norm(self.order));
            }
            if at[BOUNDS].is_null() {
                return Action::Keep;
            }
            Action::bounding(magnitude, self.order, at[BOUNDS].cast::<f64>().read_unaligned())
        }
    }

    /// Allocates all memory that [`PreparedSlices::finish`] needs, and measures the slices if that is a separate pass.
    /// May write norms, and writes no output.
    pub fn prepare(self, context: Context) -> Result<PreparedSlices, OutOfMemory> {
        let has_no_work = self.is_empty() && self.base[NORMS].is_null();
        let strategy = if self.count() == 0 || has_no_work {
            Strategy::Nothing
        } else if self.len() > CHUNK {
            self.prepare_tensors(context)?
        } else if norms::is_accumulated(self.dtype, self.order) && self.is_short() {
            self.prepare_panels(context)?
        } else if norms::is_accumulated(self.dtype, self.order) && self.is_columns() {
            Strategy::Columns(with_float!(
                self.dtype.scalar,
                T => self.prepare_columns::<T>(context)?,
                else unreachable!("the bindings reject integers")
            ))
        } else {
            self.prepare_rows(context)?
        };
        Ok(PreparedSlices { slices: self, strategy })
    }

    /// Measures slices of more than a chunk, as separate tensors.
    fn prepare_tensors(&self, context: Context) -> Result<Strategy, OutOfMemory> {
        let layout = self.layout()?;
        let count = self.count();
        // SAFETY: every slice is one segment, and nothing else accesses the outputs.
        let segments = try_collect(count, (0..count).map(|i| unsafe { self.segment(i, &layout) }))?;
        let plan = Plan::new(&segments)?;
        let workspace = Workspace::new(context, &segments, &plan)?;
        let magnitudes = norms::measure(&workspace, &segments, &plan, self.order)?;
        let slices = magnitudes.into_iter().enumerate();
        // SAFETY: addresses of slices, on one thread.
        let actions = collect(slices.map(|(i, m)| unsafe { self.store_norm(self.address_of(i), m) }))?;
        Ok(Strategy::Tensors { workspace, segments, plan, actions })
    }

    /// Bytes that determine the number of threads for rows: at least 16 for each slice, because a slice costs time
    /// besides that of its elements.
    fn bytes_of_rows(&self) -> usize {
        self.bytes().max(16 * self.count())
    }

    /// Allocates a segment for each thread, which it moves from slice to slice.
    fn prepare_rows(&self, context: Context) -> Result<Strategy, OutOfMemory> {
        let layout = self.layout()?;
        let bytes = self.bytes_of_rows();
        // SAFETY: the segment is not used to access memory.
        let scratch_bytes = unsafe { self.segment(0, &layout)? }.scratch_bytes(CHUNK);
        let workspace = Workspace::with_scratch(context, bytes, scratch_bytes)?;
        let threads = workspace.threads_for(bytes);
        // SAFETY: a thread moves its segment to slices that no other thread works on, before it accesses memory.
        let segment = || Ok::<_, OutOfMemory>(Mutex::new(unsafe { self.segment(0, &layout)? }));
        let segments = try_collect(threads, (0..threads).map(|_| segment()))?;
        Ok(Strategy::Rows { workspace, segments })
    }

    /// Measures and clips slice after slice. Returns whether an output was written.
    fn finish_rows<T: Float>(&self, workspace: &Workspace, segments: &[Mutex<Segment>]) -> bool {
        let is_written = AtomicBool::new(false);
        let size = self.len() * self.dtype.scalar.size();
        let per_task = (BATCH_BYTES / size.max(1)).clamp(1, 1 << 14);
        let count = self.count();
        let level = workspace.level;
        let streaming = self.is_streaming();
        let threads = workspace.threads_for(self.bytes_of_rows());
        pool::run(threads, count.div_ceil(per_task), Direction::Forwards, &|task, worker| {
            let mut segment = segments[worker].lock().unwrap_or_else(PoisonError::into_inner);
            let mut has_written = false;
            workspace.scratch(worker, |scratch| {
                for index in task * per_task..count.min((task + 1) * per_task) {
                    let at = self.address_of(index);
                    // SAFETY: every slice belongs to one task, which one thread runs.
                    unsafe { segment.move_to(data_of(at)) };
                    let magnitude = norms::measure_chunk(level, &segment, self.order, scratch);
                    // SAFETY: as above.
                    let action = unsafe { self.store_norm(at, magnitude) };
                    if self.has_output() && !(action == Action::Keep && self.is_in_place()) {
                        has_written = true;
                        ChunkMut::from_segment(&mut segment).update(streaming, scratch, |run: Run<T>, _| {
                            act(level, action, run);
                            true
                        });
                    }
                }
            });
            // Once for each task: threads that write to the same cache line wait for each other.
            if has_written {
                is_written.store(true, Ordering::Relaxed);
            }
            crate::kernels::cache::fence();
        });
        is_written.into_inner()
    }
}

/// Slices together with all memory that is needed to clip them.
pub struct PreparedSlices {
    slices: Slices,
    strategy: Strategy,
}

/// The way in which slices are measured and clipped.
enum Strategy {
    /// There are no slices.
    Nothing,
    /// Slices of more than a chunk, which have been measured, and the action on each.
    Tensors { workspace: Workspace, segments: Vec<Segment>, plan: Plan, actions: Vec<Action> },
    /// Slices side by side, which have been measured.
    Columns(Columns),
    /// Short slices, which a thread measures and clips many at a time.
    Panels(Panels),
    /// Slices that a thread measures and clips one after the other, with a segment for each thread.
    Rows { workspace: Workspace, segments: Vec<Mutex<Segment>> },
}

impl PreparedSlices {
    /// Bytes of the input.
    pub fn bytes(&self) -> usize {
        self.slices.bytes()
    }

    /// Measures the slices that have not been measured, and clips all of them if there is an output. Cannot fail. Returns
    /// whether an output was written: in place, slices within their bounds are not.
    pub fn finish(&mut self) -> bool {
        let Self { slices, strategy } = self;
        match strategy {
            Strategy::Nothing => false,
            Strategy::Tensors { workspace, segments, plan, actions } => {
                if slices.has_output() {
                    apply(workspace, segments, plan, Actions::Each(actions));
                }
                slices.has_output()
                    && !(slices.is_in_place() && actions.iter().all(|action| *action == Action::Keep))
            }
            Strategy::Columns(columns) => {
                if slices.has_output() {
                    with_float!(slices.dtype.scalar, T => slices.finish_columns::<T>(columns), else {});
                }
                slices.has_output() && !(slices.is_in_place() && columns.are_kept())
            }
            Strategy::Panels(panels) => {
                with_float!(slices.dtype.scalar, T => slices.finish_panels::<T>(panels), else false)
            }
            Strategy::Rows { workspace, segments } => {
                with_float!(slices.dtype.scalar, T => slices.finish_rows::<T>(workspace, segments), else false)
            }
        }
    }
}

/// Returns the factor of an action on a slice.
fn factor_of(action: Action) -> Factor {
    match action {
        Action::Keep => Factor::ONE,
        Action::Scale(factor) => factor,
        Action::FillNan | Action::FillZero => Factor::NAN,
    }
}

/// Returns the number of steps of nested loops.
fn product(dims: &[Dim]) -> usize {
    // A loop of length 0 may stand beside loops whose product overflows.
    dims.iter().fold(1, |product, dim| product.wrapping_mul(dim.len))
}

/// Returns the addresses of input and output alone.
fn data_of([input, output, ..]: [*mut u8; OPERANDS]) -> [*mut u8; OPERANDS] {
    [input, output, std::ptr::null_mut(), std::ptr::null_mut()]
}

/// Returns addresses after `count` steps along a dimension of these strides. Absent operands have none.
fn step(mut at: [*mut u8; OPERANDS], strides: [isize; OPERANDS], count: usize) -> [*mut u8; OPERANDS] {
    for (pointer, stride) in at.iter_mut().zip(strides) {
        if !pointer.is_null() {
            *pointer = pointer.wrapping_offset(count as isize * stride);
        }
    }
    at
}

/// Returns addresses after `index` steps through the dimensions, of which the last varies fastest.
fn advance(mut at: [*mut u8; OPERANDS], dims: &[Dim], mut index: usize) -> [*mut u8; OPERANDS] {
    for dim in dims.iter().rev() {
        at = step(at, dim.strides, index % dim.len);
        index /= dim.len;
    }
    at
}

#[cfg(test)]
impl Slices {
    /// [`Slices::new`] for tests, which keep the memory of the operands alive and unshared.
    fn in_test(
        dtype: DType,
        shape: &[usize],
        is_reduced: &[bool],
        operands: [Option<Operand>; OPERANDS],
        order: Order,
    ) -> Self {
        // SAFETY: the test's contract.
        unsafe { Self::new(dtype, shape, is_reduced, operands, order) }.unwrap()
    }
}

#[cfg(test)]
mod tests;
