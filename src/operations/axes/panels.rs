//! Clipping of short slices, many at a time.
//!
//! A panel is a group of slices whose reals are gathered side by side: row j of its buffer has real j of each. The rows
//! are summed and scaled as the rows of a matrix whose columns are the slices, by the kernels of `columns.rs`, while the
//! panel is in the cache, and scattered. So a slice of four reals does not cost a call of each kernel.

use super::{BOUNDS, NORMS, Slices, Strategy, data_of, factor_of, step};
use crate::allocation::{OutOfMemory, collect, try_collect, with_capacity};
use crate::engine::isa::Level;
use crate::engine::plan::{BATCH_BYTES, CHUNK};
use crate::engine::pool::{self, Direction};
use crate::engine::segment::{Dim, INPUT, OPERANDS, OUTPUT, Scratch, Segment, gather_run, scatter_run};
use crate::engine::workspace::{Context, Workspace};
use crate::kernels::Float;
use crate::kernels::columns::{FactorArrays, FactorVecs, Factors, scale_each, square_roots};
use crate::operations::magnitude::{Order, SMALL};
use crate::operations::norms::{self, needs_scaling, unscaled_magnitude};
use crate::scalar::Scalar;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Slices of a panel.
const WIDTH: usize = 256;
/// Largest number of reals in a slice of a panel: a panel of float32 has 64 KiB.
const MAX_LEN: usize = 64;
/// As [`MAX_LEN`], for contiguous slices, which the other strategy measures without gathering them.
const MAX_CONTIGUOUS_LEN: usize = 32;

/// Memory of one thread for the panels that it works on, and the offsets of the reals of a slice.
pub struct Panels {
    workspace: Workspace,
    /// Offsets of each real of a slice in the input and the output, in bytes.
    offsets: Vec<[isize; 2]>,
    /// The reals that a thread has gathered, and its other memory.
    memory: Vec<Mutex<(Scratch, Panel)>>,
}

/// Memory of one thread.
struct Panel {
    sums: Vec<f64>,
    errors: Vec<f64>,
    norms: Vec<f64>,
    bounds: Vec<f64>,
    /// Factors of any kind, and of the kind that most slices have.
    factors: FactorVecs,
    plain_factors: FactorArrays<WIDTH>,
    runs: Vec<Run>,
    /// A slice that has to be measured by itself, and its gathered reals.
    slice: Segment,
    scratch: Scratch,
}

/// Slices of a panel along the innermost kept dimension.
struct Run {
    /// The addresses of the first slice.
    at: [*mut u8; OPERANDS],
    count: usize,
}

// SAFETY: as for `Slices`: the addresses are inside of memory that the creator of the slices keeps valid.
unsafe impl Send for Panel {}

impl Slices {
    /// Whether the slices are so short and so many that they are gathered in panels. The shape and the layout of the
    /// input alone decide: the order of the additions must not depend on the output.
    pub(super) fn is_short(&self) -> bool {
        let size = self.dtype.scalar.size() as isize;
        let is_contiguous = self.reduced.last().is_some_and(|dim| dim.strides[INPUT] == size);
        self.count() >= 8 && self.len() <= if is_contiguous { MAX_CONTIGUOUS_LEN } else { MAX_LEN }
    }

    /// Allocates the memory of each thread.
    pub(super) fn prepare_panels(&self, context: Context) -> Result<Strategy, OutOfMemory> {
        let workspace = Workspace::with_scratch(context, self.bytes_of_rows(), 0)?;
        let threads = workspace.threads_for(self.bytes_of_rows());
        let layout = self.layout()?;
        let bytes = self.len() * WIDTH * self.dtype.scalar.size();
        let panel = || -> Result<Mutex<(Scratch, Panel)>, OutOfMemory> {
            // SAFETY: a thread moves its segment to slices that no other thread works on, before it accesses memory.
            let slice = unsafe { self.segment(0, &layout)? };
            let panel = Panel {
                sums: with_capacity(WIDTH)?,
                errors: with_capacity(WIDTH)?,
                bounds: with_capacity(WIDTH)?,
                norms: with_capacity(WIDTH)?,
                factors: FactorVecs::with_capacity(WIDTH)?,
                plain_factors: FactorArrays::default(),
                runs: with_capacity(WIDTH)?,
                scratch: Scratch::new(slice.scratch_bytes(CHUNK))?,
                slice,
            };
            Ok(Mutex::new((Scratch::new(bytes)?, panel)))
        };
        let offsets = (0..self.len()).map(|index| {
            let mut index = index;
            self.reduced.iter().rev().fold([0, 0], |[input, output], dim| {
                let step = (index % dim.len) as isize;
                index /= dim.len;
                [input + step * dim.strides[INPUT], output + step * dim.strides[OUTPUT]]
            })
        });
        Ok(Strategy::Panels(Panels {
            offsets: collect(offsets)?,
            memory: try_collect(threads, (0..threads).map(|_| panel()))?,
            workspace,
        }))
    }

    /// Measures and clips panel after panel. Returns whether an output was written.
    pub(super) fn finish_panels<T: Float>(&self, panels: &Panels) -> bool {
        let is_written = AtomicBool::new(false);
        let bytes = WIDTH * self.len() * size_of::<T>();
        let count = self.count().div_ceil(WIDTH);
        let per_task = (BATCH_BYTES / bytes.max(1)).clamp(1, 64);
        let level = panels.workspace.level;
        let threads = panels.workspace.threads_for(self.bytes_of_rows());
        pool::run(threads, count.div_ceil(per_task), Direction::Forwards, &|task, worker| {
            let mut memory = panels.memory[worker].lock().unwrap_or_else(PoisonError::into_inner);
            let (rows, panel) = &mut *memory;
            let mut has_written = false;
            for index in task * per_task..count.min((task + 1) * per_task) {
                has_written |= self.clip_panel::<T>(level, rows, panel, index, &panels.offsets);
            }
            // Once for each task: threads that write to the same cache line wait for each other.
            if has_written {
                is_written.store(true, Ordering::Relaxed);
            }
        });
        is_written.into_inner()
    }

    /// Measures and clips the slices of one panel. Returns whether an output was written.
    fn clip_panel<T: Float>(
        &self,
        level: Level,
        rows: &mut Scratch,
        panel: &mut Panel,
        index: usize,
        offsets: &[[isize; 2]],
    ) -> bool {
        let first = index * WIDTH;
        let count = WIDTH.min(self.count() - first);
        let (Dim { strides, .. }, _) = self.innermost();
        panel.find_runs(self, first, count);
        let rows = rows.reals::<T>(count * offsets.len());
        for (row, [offset, _]) in rows.chunks_exact_mut(count).zip(offsets) {
            let mut row = row;
            for run in &panel.runs {
                let (target, rest) = row.split_at_mut(run.count);
                // SAFETY: reals of the input, of any alignment, by the contract of `new`.
                unsafe { gather_run(run.at[INPUT].wrapping_offset(*offset), strides[INPUT], target) };
                row = rest;
            }
        }
        for sums in [&mut panel.sums, &mut panel.errors] {
            sums.clear();
            sums.resize(count, 0.0);
        }
        for row in rows.chunks_exact(count) {
            norms::accumulate(level, self.order, &mut panel.sums, &mut panel.errors, row);
        }
        for (sum, error) in panel.sums.iter_mut().zip(&panel.errors) {
            *sum = if sum.is_finite() { *sum + error } else { *sum };
        }
        let (factors, runs) = self.find_factors::<T>(level, panel);
        if !self.has_output() || self.is_in_place() && factors.is_one() {
            return false;
        }
        for (row, [_, offset]) in rows.chunks_exact_mut(count).zip(offsets) {
            if !factors.is_one() {
                scale_each(level, row, &factors);
            }
            let mut row = &*row;
            for run in runs {
                let (source, rest) = row.split_at(run.count);
                // SAFETY: reals of the output, valid for writes by the contract of `new`, of any alignment. The slices
                // of a panel belong to one task, which one thread runs.
                unsafe { scatter_run(source, run.at[OUTPUT].wrapping_offset(*offset), strides[OUTPUT]) };
                row = rest;
            }
        }
        true
    }

    /// Stores the norms of a panel's slices, and computes their factors. Returns them and the runs of the panel.
    fn find_factors<'a, T: Float>(&self, level: Level, panel: &'a mut Panel) -> (Factors<'a>, &'a [Run]) {
        let Panel { sums, norms, bounds, factors, plain_factors, runs, slice, scratch, .. } = panel;
        let (Dim { strides, .. }, _) = self.innermost();
        let has_norms = self.is_split || !self.base[NORMS].is_null();
        let may_underflow = self.dtype.scalar == Scalar::F64;
        let is_clipping_only = !has_norms && !self.base[BOUNDS].is_null();
        let is_plain = !may_underflow || sums.iter().all(|sum| *sum >= SMALL);
        if self.order == Order::Two && is_clipping_only && is_plain {
            norms.resize(sums.len(), 0.0);
            square_roots(level, sums, norms);
            bounds.clear();
            for run in &*runs {
                let bound = |i: usize| run.at[BOUNDS].wrapping_offset(i as isize * strides[BOUNDS]);
                // SAFETY: one float64 for each slice, by the contract of `new`, of any alignment.
                bounds.extend((0..run.count).map(|i| unsafe { bound(i).cast::<f64>().read_unaligned() }));
            }
            if let Some(factors) = plain_factors.set_plain::<T>(level, norms, bounds) {
                return (factors, runs);
            }
        }
        let mut sums = sums.iter();
        let positions = runs.iter().flat_map(|run| (0..run.count).map(|i| step(run.at, strides, i)));
        factors.set(positions.map(|position| {
            let sum = sums.next().copied().unwrap_or(0.0);
            let magnitude = if needs_scaling(self.dtype, sum, self.order) {
                // SAFETY: the slice belongs to this task, which one thread runs.
                unsafe { slice.move_to(data_of(position)) };
                norms::measure_chunk(level, slice, self.order, scratch)
            } else {
                unscaled_magnitude(sum, self.order)
            };
            // SAFETY: the addresses of a slice, on one thread.
            factor_of(unsafe { self.store_norm(position, magnitude) })
        }));
        (factors.get(), runs)
    }
}

impl Panel {
    /// Finds the addresses of the slices from `first` on.
    fn find_runs(&mut self, slices: &Slices, first: usize, count: usize) {
        let (inner, outer) = slices.innermost();
        self.runs.clear();
        let (mut index, end) = (first, first + count);
        while index < end {
            let mut at = slices.address_of(index);
            let mut start = index % inner.len;
            // Runs along the dimension next to the innermost one are a stride apart. Elsewhere divisions find the
            // address, which take longer than copying a short run.
            let next = outer.last();
            let steps = next.map_or(1, |dim| dim.len - index / inner.len % dim.len);
            for _ in 0..steps {
                let run = (inner.len - start).min(end - index);
                if run == 0 {
                    break;
                }
                self.runs.push(Run { at, count: run });
                if let Some(dim) = next {
                    let to_next = |k: usize| dim.strides[k] - start as isize * inner.strides[k];
                    at = step(at, std::array::from_fn(to_next), 1);
                }
                start = 0;
                index += run;
            }
        }
    }
}
