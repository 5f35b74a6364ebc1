//! Clipping of slices that are interleaved in memory: adjacent reals belong to different slices, as columns of a
//! matrix in row-major order.
//!
//! The columns are divided into tiles and their rows into bands. A piece, one tile of one band, is summed by one
//! thread.

use super::{Slices, advance, data_of, factor_of, product, step};
use crate::allocation::{OutOfMemory, collect, filled, try_collect, with_capacity};
use crate::engine::isa::Level;
use crate::engine::plan::CHUNK;
use crate::engine::pool::{self, Direction};
use crate::engine::segment::{INPUT, OPERANDS, OUTPUT, Scratch, scatter_run};
use crate::engine::workspace::{Context, Workspace};
use crate::kernels::Float;
use crate::kernels::columns::{FactorVecs, TILE, scale_each};
use crate::kernels::factor::Factor;
use crate::operations::magnitude::{Magnitude, Order, pairwise};
use crate::operations::norms::{self, max_or_nan};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Rows in a band. It does not depend on the width of the tiles, because the order of additions must not depend on how
/// columns are divided.
const ROWS: usize = 256;

/// Columns that have been measured.
pub struct Columns {
    workspace: Workspace,
    grid: Grid,
    /// Factors of each tile's columns.
    factors: Vec<FactorVecs>,
}

impl Slices {
    /// Whether there are at least eight slices, adjacent reals of the input belong to different ones, and all reals are
    /// aligned.
    pub(super) fn is_columns(&self) -> bool {
        let size = self.dtype.scalar.size() as isize;
        // The input alone decides: the order of the additions must not depend on the output.
        let dims = || self.kept.iter().chain(&self.reduced);
        let is_aligned = self.base[INPUT].addr().is_multiple_of(size as usize)
            && dims().all(|dim| dim.strides[INPUT] % size == 0);
        let Some(inner) = self.kept.last() else { return false };
        is_aligned
            && self.count() >= 8
            && inner.strides[INPUT] == size
            && !self.reduced.iter().any(|dim| dim.strides[INPUT] == size)
    }

    /// Returns each operand's address at a piece's first column, in row 0.
    fn start(&self, piece: &Piece) -> [*mut u8; OPERANDS] {
        let (inner, outer) = self.innermost();
        step(advance(self.base, outer, piece.outer), inner.strides, piece.column)
    }

    /// Returns the address of one operand in row `index`, where `at` are the addresses in row 0.
    fn row<T>(&self, at: [*mut u8; OPERANDS], index: usize, operand: usize) -> *mut T {
        advance(at, &self.reduced, index)[operand].cast::<T>()
    }

    /// Measures all columns, and allocates all memory that is needed to clip them.
    ///
    /// # Panics
    ///
    /// Unless [`Slices::is_columns`].
    pub(super) fn prepare_columns<T: Float>(&self, context: Context) -> Result<Columns, OutOfMemory> {
        assert!(self.is_columns());
        let (inner, outer) = self.innermost();
        let grid = Grid::new(inner.len, product(outer), self.len());
        let workspace =
            Workspace::with_scratch(context, self.bytes(), TILE.min(inner.len) * self.dtype.scalar.size())?;
        let level = workspace.level;
        let pieces = grid.tiles() * grid.bands;
        let partials: Vec<Partial> =
            try_collect(pieces, grid.pieces().map(|piece| Partial::new(piece.width)))?;
        let threads = workspace.threads_for(self.bytes());
        pool::run(threads, pieces, Direction::Forwards, &|index, _| {
            let piece = grid.piece(index);
            let at = self.start(&piece);
            let mut sums = partials[index].lock();
            let (sum, error) = sums.split_at_mut(piece.width);
            for r in piece.rows.clone() {
                // SAFETY: an aligned run of `width` reals of the input, see `is_columns`.
                let x = unsafe {
                    std::slice::from_raw_parts(self.row::<T>(at, r, INPUT).cast_const(), piece.width)
                };
                norms::accumulate(level, self.order, sum, error, x);
            }
        });

        let mut factors = with_capacity(grid.tiles())?;
        let mut columns: Vec<Factor> = with_capacity(TILE)?;
        for tile in 0..grid.tiles() {
            let bands = tile * grid.bands..(tile + 1) * grid.bands;
            let parts = collect(partials[bands.clone()].iter().map(Partial::lock))?;
            let first = grid.piece(bands.start);
            let at = self.start(&first);
            columns.clear();
            for j in 0..first.width {
                let sum = if self.order == Order::Max {
                    parts.iter().map(|p| p[j]).fold(0.0, max_or_nan)
                } else {
                    let sum = pairwise(&parts, &|p| p[j]);
                    if sum.is_finite() { sum + pairwise(&parts, &|p| p[first.width + j]) } else { sum }
                };
                let position = step(at, inner.strides, j);
                let magnitude = self.checked_column(level, sum, position)?;
                // SAFETY: the address of a slice, on one thread.
                columns.push(factor_of(unsafe { self.store_norm(position, magnitude) }));
            }
            factors.push(FactorVecs::new(&columns)?);
        }
        Ok(Columns { workspace, grid, factors })
    }

    /// Returns a column's magnitude, measured again with scaling if its sum of squares overflowed or underflowed.
    fn checked_column(
        &self,
        level: Level,
        sum: f64,
        at: [*mut u8; OPERANDS],
    ) -> Result<Magnitude, OutOfMemory> {
        if self.is_empty() || !norms::needs_scaling(self.dtype, sum, self.order) {
            return Ok(norms::unscaled_magnitude(sum, self.order));
        }
        // SAFETY: the segment is used on this thread only, is moved to the memory of a slice, and read.
        let segment = unsafe {
            let mut segment = self.segment(0, &self.layout()?)?;
            segment.move_to(data_of(at));
            segment
        };
        let mut scratch = Scratch::new(segment.scratch_bytes(CHUNK))?;
        Ok(norms::measure_chunk(level, &segment, self.order, &mut scratch))
    }

    /// Scales all columns into the output. Cannot fail.
    pub(super) fn finish_columns<T: Float>(&self, columns: &Columns) {
        let Columns { workspace, grid, factors } = columns;
        let (inner, _) = self.innermost();
        let level = workspace.level;
        let size = self.dtype.scalar.size() as isize;
        let has_contiguous_output = inner.strides[OUTPUT] == size
            && self.base[OUTPUT].addr().is_multiple_of(size as usize)
            && self.kept.iter().chain(&self.reduced).all(|dim| dim.strides[OUTPUT] % size == 0);
        let pieces = grid.tiles() * grid.bands;
        let threads = workspace.threads_for(self.bytes());
        pool::run(threads, pieces, Direction::Backwards, &|index, worker| {
            let piece = grid.piece(index);
            let at = self.start(&piece);
            let factors = factors[index / grid.bands].get();
            if self.is_in_place() && factors.is_one() {
                return;
            }
            workspace.scratch(worker, |scratch| {
                for r in piece.rows.clone() {
                    let (from, to) = (self.row::<T>(at, r, INPUT), self.row::<T>(at, r, OUTPUT));
                    // SAFETY: an aligned run of `width` reals of the input, see `is_columns`. The output's reals are
                    // accessed by this task only; they are one aligned run if that was checked, else they are written
                    // one by one.
                    unsafe {
                        if has_contiguous_output {
                            if from != to {
                                std::ptr::copy_nonoverlapping(from, to, piece.width);
                            }
                            let x = std::slice::from_raw_parts_mut(to, piece.width);
                            if !factors.is_one() {
                                scale_each(level, x, &factors);
                            }
                        } else {
                            let x = scratch.reals::<T>(piece.width);
                            x.copy_from_slice(std::slice::from_raw_parts(from, piece.width));
                            if !factors.is_one() {
                                scale_each(level, x, &factors);
                            }
                            scatter_run(x, to.cast(), inner.strides[OUTPUT]);
                        }
                    }
                }
            });
        });
    }
}

impl Columns {
    /// Whether no slice exceeds its bound.
    pub(super) fn are_kept(&self) -> bool {
        self.factors.iter().all(|factors| factors.get().is_one())
    }
}

/// Columns divided into tiles, and their rows into bands.
struct Grid {
    /// Number of columns at one index of the outer dimensions.
    columns: usize,
    /// Number of rows: reals in a column.
    rows: usize,
    /// Number of tiles at one index of the outer dimensions.
    tiles_per_row: usize,
    /// Number of indices of the outer kept dimensions.
    outer: usize,
    /// Number of bands.
    bands: usize,
}

/// One tile of one band.
struct Piece {
    /// Index of the outer kept dimensions.
    outer: usize,
    /// First column.
    column: usize,
    /// Number of columns.
    width: usize,
    rows: Range<usize>,
}

impl Grid {
    fn new(columns: usize, outer: usize, rows: usize) -> Self {
        let bands = rows.div_ceil(ROWS).max(1);
        Self { columns, rows, tiles_per_row: columns.div_ceil(TILE), outer, bands }
    }

    fn tiles(&self) -> usize {
        self.outer * self.tiles_per_row
    }

    fn piece(&self, index: usize) -> Piece {
        let (tile, band) = (index / self.bands, index % self.bands);
        let column = tile % self.tiles_per_row * TILE;
        let first = band * ROWS;
        Piece {
            outer: tile / self.tiles_per_row,
            column,
            width: TILE.min(self.columns - column),
            rows: first..self.rows.min(first + ROWS),
        }
    }

    fn pieces(&self) -> impl Iterator<Item = Piece> {
        (0..self.tiles() * self.bands).map(|index| self.piece(index))
    }
}

/// The sums of squares of one piece's columns, followed by their rounding errors.
struct Partial(Mutex<Vec<f64>>);

impl Partial {
    fn new(width: usize) -> Result<Self, OutOfMemory> {
        Ok(Self(Mutex::new(filled(0.0, 2 * width)?)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<f64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
