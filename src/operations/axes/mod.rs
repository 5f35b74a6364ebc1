//! Norms of slices along axes, and clipping each slice by its own norm.
//!
//! A slice is what the reduced axes span at one index of the kept ones. Three ways to go about it,
//! chosen by the layout: slices of more than a chunk are tensors of their own; where the innermost
//! memory is reduced, a thread measures a slice and scales it while it is in the cache; where it is
//! kept, neighbouring slices are summed side by side (`kernels::columns`).

pub mod elements;

use crate::allocation::{OutOfMemory, collect, filled, try_collect, with_capacity};
use crate::engine::exec::{Context, STREAM_BYTES, Workspace};
use crate::engine::plan::{BATCH_BYTES, CHUNK, Plan};
use crate::engine::pool;
use crate::engine::segment::{
    Dim, INPUT, LOWER, Layout, OPERANDS, OUTPUT, Scratch, Segment, Strided, UPPER, forwards, merge, sort,
};
use crate::kernels::Float;
use crate::kernels::columns::{Factors, TILE, accumulate, scale_each};
use crate::kernels::operation::Run;
use crate::kernels::scale::Factor;
use crate::operations::clip::{Action, Actions, act, apply};
use crate::operations::magnitude::{Magnitude, Order, SMALL, pairwise};
use crate::operations::norms;
use crate::scalar::{DType, Scalar};
use crate::with_float;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The operand that takes each slice's norm: float64, one per index of the kept axes.
pub const NORMS: usize = LOWER;
/// The operand that holds each slice's bound: float64.
pub const BOUNDS: usize = UPPER;
/// The operand that takes the exponent of each slice's norm, where [`NORMS`] takes the mantissa: float64.
pub const EXPONENTS: usize = UPPER;

/// A tensor seen as slices.
pub struct Slices {
    dtype: DType,
    kept: Vec<Dim>,
    reduced: Vec<Dim>,
    base: [*mut u8; OPERANDS],
    order: Order,
    /// Norms are written as mantissa and exponent, and there are no bounds.
    is_split: bool,
}

// SAFETY: as for `Segment`.
unsafe impl Send for Slices {}
// SAFETY: as for `Segment`.
unsafe impl Sync for Slices {}

impl Slices {
    /// Describes a tensor of this shape whose axes with `reduced[axis]` make up a slice. Without an
    /// output the norms are all that is wanted; without bounds there must be no output.
    ///
    /// # Safety
    ///
    /// As [`Segment::new`]. The strides of norms and bounds along reduced axes are not looked at.
    pub unsafe fn new(
        dtype: DType,
        shape: &[usize],
        is_reduced: &[bool],
        operands: [Option<Strided>; OPERANDS],
        order: Order,
    ) -> Result<Self, OutOfMemory> {
        let mut base = operands.map(|operand| operand.map_or(std::ptr::null_mut(), |o| o.pointer));
        // One more for the parts of complex numbers.
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
                forwards(&mut dim, &mut base);
            }
            if is_reduced[axis] { &mut reduced } else { &mut kept }.push(dim);
        }
        let present = base.map(|pointer| !pointer.is_null());
        sort(&mut kept, present);
        sort(&mut reduced, present);
        if dtype.complex {
            let size = dtype.scalar.size() as isize;
            reduced.push(Dim { len: 2, strides: [size, size, 0, 0] });
        }
        merge(&mut kept, present);
        merge(&mut reduced, [present[INPUT], present[OUTPUT], false, false]);
        Ok(Self { dtype, kept, reduced, base, order, is_split: false })
    }

    /// As [`Slices::new`], without an output, for norms that are wanted as mantissa and exponent of two: the operands
    /// [`NORMS`] and [`EXPONENTS`].
    ///
    /// # Safety
    ///
    /// As [`Segment::new`]; both operands must be there, and are written.
    pub unsafe fn split(
        dtype: DType,
        shape: &[usize],
        is_reduced: &[bool],
        operands: [Option<Strided>; OPERANDS],
        order: Order,
    ) -> Result<Self, OutOfMemory> {
        // SAFETY: the caller's contract.
        let slices = unsafe { Self::new(dtype, shape, is_reduced, operands, order)? };
        Ok(Self { is_split: true, ..slices })
    }

    /// How many slices there are.
    #[must_use]
    pub fn count(&self) -> usize {
        product(&self.kept)
    }

    /// How many reals a slice has.
    #[must_use]
    pub fn len(&self) -> usize {
        product(&self.reduced)
    }

    /// Whether a slice has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes are read.
    pub fn bytes(&self) -> usize {
        self.count() * self.len() * self.dtype.scalar.size()
    }

    fn has_output(&self) -> bool {
        !self.base[OUTPUT].is_null()
    }

    fn in_place(&self) -> bool {
        self.base[INPUT] == self.base[OUTPUT]
    }

    fn streams(&self) -> bool {
        self.has_output() && !self.in_place() && self.bytes() >= STREAM_BYTES
    }

    /// Each operand's position at one index of the kept axes.
    fn at(&self, index: usize) -> [*mut u8; OPERANDS] {
        offset(self.base, &self.kept, index)
    }

    /// One slice as a segment.
    fn segment(&self, index: usize, layout: &Layout) -> Result<Segment, OutOfMemory> {
        Ok(Segment {
            scalar: self.dtype.scalar,
            complex: self.dtype.complex,
            len: self.len(),
            base: self.at(index),
            layout: layout.try_clone()?,
        })
    }

    /// How a slice lies, if every one lies alike: aligned ones as a run.
    fn layout(&self) -> Result<Layout, OutOfMemory> {
        let size = self.dtype.scalar.size();
        let used = [INPUT, OUTPUT].into_iter().filter(|k| !self.base[*k].is_null());
        let whole = |dim: &Dim, k: usize| dim.strides[k] % size as isize == 0;
        let aligned = used
            .clone()
            .all(|k| self.base[k].addr().is_multiple_of(size) && self.kept.iter().all(|dim| whole(dim, k)));
        let dense = match self.reduced.as_slice() {
            [] => true,
            [dim] => used.clone().all(|k| dim.strides[k] == size as isize),
            _ => false,
        };
        if aligned && dense {
            return Ok(Layout::Dense);
        }
        let mut dims = with_capacity(self.reduced.len().max(1))?;
        dims.extend_from_slice(&self.reduced);
        if dims.is_empty() {
            dims.push(Dim { len: 1, strides: [0; OPERANDS] });
        }
        Ok(Layout::Walk(dims))
    }

    /// Writes a slice's norm, and says what is to be done with it.
    ///
    /// # Safety
    ///
    /// No other thread may write this slice's norm meanwhile.
    unsafe fn settle(&self, at: [*mut u8; OPERANDS], magnitude: Magnitude) -> Action {
        // SAFETY: one float64 per slice, by the contracts of `new` and `split`; unaligned perhaps.
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

    /// Allocates all that [`Slices::finish`] needs, and measures the slices where that is a pass of its own. It may
    /// write norms, and no output.
    ///
    /// # Safety
    ///
    /// The norms must not overlap any other memory.
    pub unsafe fn prepare(&self, context: Context) -> Result<Prepared, OutOfMemory> {
        let nothing_to_do = self.is_empty() && self.base[NORMS].is_null();
        if self.count() == 0 || nothing_to_do {
            return Ok(Prepared::Nothing);
        }
        // SAFETY: the caller's contract.
        unsafe {
            if self.len() > CHUNK {
                self.prepare_tensors(context)
            } else if self.order == Order::Two && self.is_columns() {
                with_float!(
                    self.dtype.scalar,
                    T => self.prepare_columns::<T>(context),
                    else Ok(Prepared::Nothing)
                )
            } else {
                self.prepare_rows(context)
            }
        }
    }

    /// Measures every slice that was not, and clips all if there is an output. Cannot fail.
    ///
    /// # Safety
    ///
    /// The output must not overlap any other memory, but may be the input. `prepared` must come from
    /// [`Slices::prepare`] of these slices.
    pub unsafe fn finish(&self, prepared: &Prepared) {
        // SAFETY: the caller's contract.
        unsafe {
            match prepared {
                Prepared::Nothing => {}
                Prepared::Tensors { workspace, segments, plan, actions } => {
                    if self.has_output() {
                        apply(workspace, segments, plan, Actions::Each(actions));
                    }
                }
                Prepared::Columns { workspace, grid, factors } => {
                    if self.has_output() {
                        with_float!(
                            self.dtype.scalar,
                            T => self.finish_columns::<T>(workspace, grid, factors),
                            else {}
                        );
                    }
                }
                Prepared::Rows { workspace, slices } => {
                    with_float!(self.dtype.scalar, T => self.finish_rows::<T>(workspace, slices), else {});
                }
            }
        }
    }

    /// # Safety
    ///
    /// As [`Slices::prepare`].
    unsafe fn prepare_tensors(&self, context: Context) -> Result<Prepared, OutOfMemory> {
        let layout = self.layout()?;
        let count = self.count();
        let segments = try_collect(count, (0..count).map(|i| self.segment(i, &layout)))?;
        let plan = Plan::new(&segments)?;
        let workspace = Workspace::new(context, &segments, &plan)?;
        let found = norms::measure(&workspace, &segments, &plan, self.order)?;
        let settled = segments.iter().zip(found);
        // SAFETY: one thread; and the caller's contract.
        let actions = collect(settled.map(|(s, m)| unsafe { self.settle(s.base, m) }))?;
        Ok(Prepared::Tensors { workspace, segments, plan, actions })
    }

    /// The bytes that decide on how many threads rows are done: with each slice goes some work besides its elements.
    fn bytes_of_rows(&self) -> usize {
        self.bytes().max(16 * self.count())
    }

    /// # Safety
    ///
    /// As [`Slices::prepare`].
    unsafe fn prepare_rows(&self, context: Context) -> Result<Prepared, OutOfMemory> {
        let layout = self.layout()?;
        let first = self.segment(0, &layout)?;
        let bytes = self.bytes_of_rows();
        let workspace = Workspace::with_scratch(context, bytes, first.scratch_bytes(CHUNK))?;
        let threads = workspace.threads_for(bytes);
        // Each thread moves a segment of its own from slice to slice.
        let slices = (0..threads).map(|_| Ok::<_, OutOfMemory>(Mutex::new(self.segment(0, &layout)?)));
        let slices = try_collect(threads, slices)?;
        Ok(Prepared::Rows { workspace, slices })
    }

    /// # Safety
    ///
    /// As [`Slices::finish`].
    unsafe fn finish_rows<T: Float>(&self, workspace: &Workspace, slices: &[Mutex<Segment>]) {
        let size = self.len() * self.dtype.scalar.size();
        let per_task = (BATCH_BYTES / size.max(1)).clamp(1, 1 << 14);
        let count = self.count();
        let level = workspace.level;
        let streaming = self.streams();
        let threads = workspace.threads_for(self.bytes_of_rows());
        pool::run(threads, count.div_ceil(per_task), &|task, worker| {
            let mut segment = slices[worker].lock().unwrap_or_else(PoisonError::into_inner);
            workspace.scratch(worker, |scratch| {
                for index in task * per_task..count.min((task + 1) * per_task) {
                    segment.base = self.at(index);
                    let magnitude = norms::measure_chunk(level, &segment, self.order, scratch);
                    // SAFETY: each slice is one task's.
                    let action = unsafe { self.settle(segment.base, magnitude) };
                    if !self.has_output() || action == Action::Keep && self.in_place() {
                        continue;
                    }
                    // SAFETY: as above, and the caller's contract.
                    unsafe {
                        segment.update(0..segment.len, streaming, scratch, |run: Run<T>, _| {
                            act(level, action, run);
                            true
                        });
                    }
                }
            });
            crate::kernels::stream::fence();
        });
    }

    /// Whether neighbours in memory belong to different slices.
    fn is_columns(&self) -> bool {
        let size = self.dtype.scalar.size() as isize;
        // Looks at the input alone: the order of the additions must not depend on where results go.
        let every = || self.kept.iter().chain(&self.reduced);
        let aligned = self.base[INPUT].addr().is_multiple_of(size as usize)
            && every().all(|dim| dim.strides[INPUT] % size == 0);
        let Some(inner) = self.kept.last() else { return false };
        aligned
            && self.count() >= 8
            && inner.strides[INPUT] == size
            && !self.reduced.iter().any(|dim| dim.strides[INPUT] == size)
    }

    /// Each operand's position at a column of the innermost kept axis.
    fn at_column(at: [*mut u8; OPERANDS], strides: [isize; OPERANDS], column: usize) -> [*mut u8; OPERANDS] {
        let mut position = at;
        for (pointer, stride) in position.iter_mut().zip(strides) {
            if !pointer.is_null() {
                *pointer = pointer.wrapping_offset(column as isize * stride);
            }
        }
        position
    }

    /// Where a piece's columns begin, in its first row.
    fn start(&self, inner: &Dim, outer: &[Dim], piece: &Piece) -> [*mut u8; OPERANDS] {
        Self::at_column(offset(self.base, outer, piece.outer), inner.strides, piece.column)
    }

    /// Where one operand's row is, of those that begin at `at`.
    fn row<T>(&self, at: [*mut u8; OPERANDS], index: usize, operand: usize) -> *mut T {
        offset(at, &self.reduced, index)[operand].cast::<T>()
    }

    /// # Safety
    ///
    /// As [`Slices::prepare`], for a layout that [`Slices::is_columns`] has found.
    unsafe fn prepare_columns<T: Float>(&self, context: Context) -> Result<Prepared, OutOfMemory> {
        let Some((inner, outer)) = self.kept.split_last() else {
            return Ok(Prepared::Nothing);
        };
        let grid = Grid::new(inner.len, product(outer), self.len());
        let workspace =
            Workspace::with_scratch(context, self.bytes(), TILE.min(inner.len) * self.dtype.scalar.size())?;
        let level = workspace.level;
        let pieces = grid.tiles() * grid.bands;
        let partials: Vec<Partial> =
            try_collect(pieces, grid.pieces().map(|piece| Partial::new(piece.width)))?;
        pool::run(workspace.threads_for(self.bytes()), pieces, &|index, _| {
            let piece = grid.piece(index);
            let at = self.start(inner, outer, &piece);
            let mut sums = partials[index].lock();
            let (sum, error) = sums.split_at_mut(piece.width);
            for r in piece.rows.clone() {
                // SAFETY: `is_columns`: an aligned run of `width` reals inside the input.
                let x = unsafe {
                    std::slice::from_raw_parts(self.row::<T>(at, r, INPUT).cast_const(), piece.width)
                };
                accumulate(level, sum, error, x);
            }
        });

        let mut factors = with_capacity(grid.tiles())?;
        let mut columns: Vec<Factor> = with_capacity(TILE)?;
        for tile in 0..grid.tiles() {
            let bands = tile * grid.bands..(tile + 1) * grid.bands;
            let parts = collect(partials[bands.clone()].iter().map(Partial::lock))?;
            let first = grid.piece(bands.start);
            let at = self.start(inner, outer, &first);
            columns.clear();
            for j in 0..first.width {
                let sum = pairwise(&parts, &|p| p[j]) + pairwise(&parts, &|p| p[first.width + j]);
                let position = Self::at_column(at, inner.strides, j);
                let magnitude = self.checked(level, sum, position)?;
                // SAFETY: one thread.
                columns.push(match unsafe { self.settle(position, magnitude) } {
                    Action::Keep => Factor::ONE,
                    Action::Scale(factor) => factor,
                    Action::FillNan | Action::FillZero => Factor::NAN,
                });
            }
            factors.push(Factors::new(&columns)?);
        }
        Ok(Prepared::Columns { workspace, grid, factors })
    }

    /// # Safety
    ///
    /// As [`Slices::finish`], for a layout that [`Slices::is_columns`] has found.
    unsafe fn finish_columns<T: Float>(&self, workspace: &Workspace, grid: &Grid, factors: &[Factors]) {
        let Some((inner, outer)) = self.kept.split_last() else {
            return;
        };
        let level = workspace.level;
        let size = self.dtype.scalar.size() as isize;
        let writes_runs = inner.strides[OUTPUT] == size
            && self.base[OUTPUT].addr().is_multiple_of(size as usize)
            && self.kept.iter().chain(&self.reduced).all(|dim| dim.strides[OUTPUT] % size == 0);
        let pieces = grid.tiles() * grid.bands;
        pool::run(workspace.threads_for(self.bytes()), pieces, &|index, worker| {
            let index = pieces - 1 - index;
            let piece = grid.piece(index);
            let at = self.start(inner, outer, &piece);
            let factors = &factors[index / grid.bands];
            if self.in_place() && factors.is_one() {
                return;
            }
            workspace.scratch(worker, |scratch| {
                for r in piece.rows.clone() {
                    let (from, to) = (self.row::<T>(at, r, INPUT), self.row::<T>(at, r, OUTPUT));
                    // SAFETY: `is_columns`: an aligned run of `width` reals of the input; the output's are
                    // this task's alone, one run of them where that was checked, else written one by one.
                    unsafe {
                        if writes_runs {
                            if from != to {
                                std::ptr::copy_nonoverlapping(from, to, piece.width);
                            }
                            let x = std::slice::from_raw_parts_mut(to, piece.width);
                            if !factors.is_one() {
                                scale_each(level, x, factors);
                            }
                        } else {
                            let x = scratch.reals::<T>(piece.width);
                            x.copy_from_slice(std::slice::from_raw_parts(from, piece.width));
                            if !factors.is_one() {
                                scale_each(level, x, factors);
                            }
                            for (j, v) in x.iter().enumerate() {
                                to.wrapping_byte_offset(j as isize * inner.strides[OUTPUT])
                                    .write_unaligned(*v);
                            }
                        }
                    }
                }
            });
        });
    }

    /// A column's sum of squares, measured again with scaling if it left the range of float64.
    fn checked(
        &self,
        level: crate::engine::isa::Level,
        sum: f64,
        at: [*mut u8; OPERANDS],
    ) -> Result<Magnitude, OutOfMemory> {
        let plain = Magnitude { value: sum, exponent: 0 };
        if self.dtype.scalar != Scalar::F64 || sum.is_finite() && sum >= SMALL || self.is_empty() {
            return Ok(plain);
        }
        let mut segment = self.segment(0, &self.layout()?)?;
        segment.base = at;
        let mut scratch = Scratch::new(segment.scratch_bytes(CHUNK))?;
        Ok(norms::measure_chunk(level, &segment, self.order, &mut scratch))
    }
}

/// What [`Slices::prepare`] leaves to be done.
pub enum Prepared {
    /// There are no slices.
    Nothing,
    /// Slices of more than a chunk, measured.
    Tensors {
        /// Threads and their memory.
        workspace: Workspace,
        /// The slices.
        segments: Vec<Segment>,
        /// The slices in chunks.
        plan: Plan,
        /// What happens to each.
        actions: Vec<Action>,
    },
    /// Slices side by side, measured.
    Columns {
        /// Threads and their memory.
        workspace: Workspace,
        /// How the columns are cut up.
        grid: Grid,
        /// What each tile of columns is multiplied by.
        factors: Vec<Factors>,
    },
    /// Slices that a thread measures and scales one after the other.
    Rows {
        /// Threads and their memory.
        workspace: Workspace,
        /// A segment for each thread.
        slices: Vec<Mutex<Segment>>,
    },
}

/// The number of steps of nested loops.
fn product(dims: &[Dim]) -> usize {
    // A loop without steps may stand beside loops whose product is beyond the machine's numbers.
    dims.iter().fold(1, |product, dim| product.wrapping_mul(dim.len))
}

/// Positions after `index` steps through the dimensions, the last the fastest.
fn offset(mut at: [*mut u8; OPERANDS], dims: &[Dim], mut index: usize) -> [*mut u8; OPERANDS] {
    for dim in dims.iter().rev() {
        let step = (index % dim.len) as isize;
        index /= dim.len;
        for (pointer, stride) in at.iter_mut().zip(dim.strides) {
            if !pointer.is_null() {
                *pointer = pointer.wrapping_offset(step * stride);
            }
        }
    }
    at
}

/// Rows whose squares are added up before they are added to those of other rows.
const ROWS: usize = 256;

/// Columns cut into tiles, and their rows into bands: a piece is one tile of one band.
pub struct Grid {
    columns: usize,
    rows: usize,
    per_row: usize,
    outer: usize,
    bands: usize,
    rows_per_band: usize,
}

struct Piece {
    outer: usize,
    column: usize,
    width: usize,
    rows: std::ops::Range<usize>,
}

impl Grid {
    fn new(columns: usize, outer: usize, rows: usize) -> Self {
        // The same for any width: how rows are put together must not depend on how columns are.
        let rows_per_band = ROWS;
        let bands = rows.div_ceil(rows_per_band).max(1);
        Self { columns, rows, per_row: columns.div_ceil(TILE), outer, bands, rows_per_band }
    }

    fn tiles(&self) -> usize {
        self.outer * self.per_row
    }

    fn piece(&self, index: usize) -> Piece {
        let (tile, band) = (index / self.bands, index % self.bands);
        let column = tile % self.per_row * TILE;
        let first = band * self.rows_per_band;
        Piece {
            outer: tile / self.per_row,
            column,
            width: TILE.min(self.columns - column),
            rows: first..self.rows.min(first + self.rows_per_band),
        }
    }

    fn pieces(&self) -> impl Iterator<Item = Piece> {
        (0..self.tiles() * self.bands).map(|index| self.piece(index))
    }
}

/// The sums of one piece's columns, and their errors.
struct Partial(Mutex<Vec<f64>>);

impl Partial {
    fn new(width: usize) -> Result<Self, OutOfMemory> {
        Ok(Self(Mutex::new(filled(0.0, 2 * width)?)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<f64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;

    /// Clips `data` of this shape and memory order along `axes`; returns what it became and the norms.
    fn clip(
        data: &[f32],
        shape: &[usize],
        strides: &[isize],
        axes: &[usize],
        bound: f64,
        threads: usize,
    ) -> (Vec<f32>, Vec<f64>) {
        let dtype = DType { scalar: Scalar::F32, complex: false };
        let mut input = data.to_vec();
        let mut output = vec![f32::NAN; data.len()];
        let reduced: Vec<bool> = (0..shape.len()).map(|axis| axes.contains(&axis)).collect();
        let slices: usize = (0..shape.len()).filter(|a| !reduced[*a]).map(|a| shape[a]).product();
        let mut norms = vec![0.0; slices];
        let mut bound = bound;
        let bytes: Vec<isize> = strides.iter().map(|s| s * 4).collect();
        let mut step = 8;
        let mut norm_strides = vec![0; shape.len()];
        for axis in (0..shape.len()).rev().filter(|a| !reduced[*a]) {
            norm_strides[axis] = step;
            step *= shape[axis] as isize;
        }
        let none = vec![0; shape.len()];
        // SAFETY: everything outlives the call, and the strides stay inside.
        unsafe {
            let operands = [
                Some(Strided { pointer: input.as_mut_ptr().cast(), strides: &bytes }),
                Some(Strided { pointer: output.as_mut_ptr().cast(), strides: &bytes }),
                Some(Strided { pointer: norms.as_mut_ptr().cast(), strides: &norm_strides }),
                Some(Strided { pointer: (&raw mut bound).cast(), strides: &none }),
            ];
            let context = Context { level: isa::detected(), threads };
            let slices = Slices::new(dtype, shape, &reduced, operands, Order::Two).unwrap();
            slices.finish(&slices.prepare(context).unwrap());
        }
        (output, norms)
    }

    fn element(strides: &[isize], index: &[usize]) -> usize {
        index.iter().zip(strides).map(|(i, s)| *i as isize * s).sum::<isize>() as usize
    }

    #[test]
    fn every_axis_of_every_memory_order_agrees_with_a_plain_loop() {
        let shape = [5, 33, 700];
        let n = shape.iter().product();
        let data: Vec<f32> = crate::kernels::oracle::samples(n).into_iter().map(|v| v as f32).collect();
        for strides in [[33 * 700, 700, 1], [1, 5, 5 * 33], [33, 1, 33 * 5]] {
            for axes in [vec![], vec![0], vec![1], vec![2], vec![0, 1], vec![1, 2], vec![0, 2], vec![0, 1, 2]]
            {
                let mut sums = std::collections::BTreeMap::new();
                let mut visit = |f: &mut dyn FnMut(&mut f64, usize)| {
                    for i in 0..shape[0] {
                        for j in 0..shape[1] {
                            for k in 0..shape[2] {
                                let index = [i, j, k];
                                let key: Vec<usize> =
                                    (0..3).filter(|a| !axes.contains(a)).map(|a| index[a]).collect();
                                f(sums.entry(key).or_insert(0.0), element(&strides, &index));
                            }
                        }
                    }
                };
                visit(&mut |sum, at| *sum += f64::from(data[at]).powi(2));
                let bound = 3.0;
                for threads in [1, 3] {
                    let (got, norms) = clip(&data, &shape, &strides, &axes, bound, threads);
                    visit(&mut |sum, at| {
                        let norm = sum.sqrt();
                        let want = f64::from(data[at]) * (bound / norm.max(bound));
                        assert!(
                            (f64::from(got[at]) - want).abs() <= 2e-7 * want.abs(),
                            "{axes:?} {strides:?}"
                        );
                    });
                    let want: Vec<f64> = sums_of(&data, &shape, &strides, &axes);
                    assert_eq!(norms.len(), want.len());
                    for (a, b) in norms.iter().zip(want) {
                        assert!((a - b).abs() <= 1e-13 * b);
                    }
                }
            }
        }
    }

    fn sums_of(data: &[f32], shape: &[usize; 3], strides: &[isize; 3], axes: &[usize]) -> Vec<f64> {
        let mut sums = std::collections::BTreeMap::new();
        for i in 0..shape[0] {
            for j in 0..shape[1] {
                for k in 0..shape[2] {
                    let index = [i, j, k];
                    let key: Vec<usize> = (0..3).filter(|a| !axes.contains(a)).map(|a| index[a]).collect();
                    *sums.entry(key).or_insert(0.0) += f64::from(data[element(strides, &index)]).powi(2);
                }
            }
        }
        sums.into_values().map(f64::sqrt).collect()
    }

    #[test]
    fn long_slices_are_tensors_and_empty_ones_have_norm_zero() {
        let n = 2 * (CHUNK + 5);
        let data: Vec<f32> = vec![1.0; n];
        let (got, norms) = clip(&data, &[2, CHUNK + 5], &[(CHUNK + 5) as isize, 1], &[1], 1.0, 2);
        let want = ((CHUNK + 5) as f64).sqrt();
        assert_eq!(norms, [want, want]);
        assert!(got.iter().all(|v| *v == (1.0 / want) as f32));
        let (_, norms) = clip(&[], &[3, 0], &[0, 1], &[1], 1.0, 1);
        assert_eq!(norms, [0.0; 3]);
        let (_, norms) = clip(&[], &[0, 9], &[0, 1], &[0], 1.0, 1);
        assert_eq!(norms, [0.0; 9]);
    }
}
