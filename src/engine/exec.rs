//! Passes over all chunks of a plan, on as many threads as are worth waking.

use crate::allocation::{OutOfMemory, collect, with_capacity};
use crate::engine::plan::{CHUNK, Chunk, Plan};
use crate::engine::pool;
use crate::engine::segment::{Scratch, Segment};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Below this many bytes a pass runs on the calling thread: waking another costs more than it
/// saves. See ARCHITECTURE.md for the measurement.
pub const PARALLEL_BYTES: usize = 1 << 20;

/// From this many bytes of output on, results are written past the cache: they would not be in it
/// when they are next read. See ARCHITECTURE.md for the measurement.
pub const STREAM_BYTES: usize = 16 << 20;

/// How the caller wants a pass to run.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// SIMD level of the kernels.
    pub level: crate::engine::isa::Level,
    /// How many threads may be used.
    pub threads: usize,
}

impl Context {
    /// What the settings of this process and thread say.
    #[must_use]
    pub fn current() -> Self {
        Self { level: crate::engine::isa::current(), threads: usize::MAX }
    }

    /// The number of threads worth using on that many bytes.
    #[must_use]
    pub fn threads_for(self, bytes: usize) -> usize {
        if bytes < PARALLEL_BYTES {
            1
        } else if self.threads == usize::MAX {
            // Asked only now: it takes a system call, which a small array does not pay for.
            pool::threads()
        } else {
            self.threads
        }
    }
}

/// What the passes of a call run on: threads, and memory for each of them. It is made before the first pass, because
/// the passes that write must not fail.
#[derive(Debug)]
pub struct Workspace {
    /// SIMD level of the kernels.
    pub level: crate::engine::isa::Level,
    threads: usize,
    /// One for each thread, none if nothing has to be gathered.
    scratch: Vec<Mutex<Scratch>>,
}

impl Workspace {
    /// For passes over these segments, which the plan has cut up.
    pub fn new<const N: usize>(
        context: Context,
        segments: &[Segment<N>],
        plan: &Plan,
    ) -> Result<Self, OutOfMemory> {
        let needed = segments.iter().map(|segment| segment.scratch_bytes(CHUNK)).max().unwrap_or(0);
        Self::with_scratch(context, plan.bytes, needed)
    }

    /// For passes over so many bytes, of which each thread gathers at most `scratch_bytes` at a time.
    pub fn with_scratch(context: Context, bytes: usize, scratch_bytes: usize) -> Result<Self, OutOfMemory> {
        let threads = context.threads_for(bytes);
        let mut scratch = Vec::new();
        if scratch_bytes > 0 {
            scratch = with_capacity(threads)?;
            for _ in 0..threads {
                scratch.push(Mutex::new(Scratch::new(scratch_bytes)?));
            }
        }
        Ok(Self { level: context.level, threads, scratch })
    }

    /// The number of threads that a pass over so many bytes is worth.
    pub fn threads_for(&self, bytes: usize) -> usize {
        if bytes < PARALLEL_BYTES { 1 } else { self.threads }
    }

    /// Lends `f` the memory of a thread of the pass.
    pub fn scratch<R>(&self, worker: usize, f: impl FnOnce(&mut Scratch) -> R) -> R {
        match self.scratch.get(worker) {
            Some(scratch) => f(&mut scratch.lock().unwrap_or_else(PoisonError::into_inner)),
            None => f(&mut Scratch::default()),
        }
    }
}

/// One number per chunk, in the order of the chunks, whichever thread found it.
pub fn reduce<const N: usize>(
    workspace: &Workspace,
    segments: &[Segment<N>],
    plan: &Plan,
    partial: impl Fn(&Segment<N>, Range<usize>, &mut Scratch) -> f64 + Sync,
) -> Result<Vec<f64>, OutOfMemory> {
    let threads = workspace.threads_for(plan.bytes);
    if threads == 1 {
        return workspace.scratch(0, |scratch| {
            collect(plan.chunks.iter().map(|c| partial(&segments[c.segment], c.range.clone(), scratch)))
        });
    }
    let partials: Vec<AtomicU64> = collect(plan.chunks.iter().map(|_| AtomicU64::new(0)))?;
    pool::run(threads, plan.batches.len(), &|batch, worker| {
        workspace.scratch(worker, |scratch| {
            for index in plan.batches[batch].clone() {
                let Chunk { segment, range } = &plan.chunks[index];
                let value = partial(&segments[*segment], range.clone(), scratch);
                partials[index].store(value.to_bits(), Ordering::Relaxed);
            }
        });
    });
    collect(partials.into_iter().map(|bits| f64::from_bits(bits.into_inner())))
}

/// In which order a pass takes the chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As memory lies, which is what prefetchers like.
    Forwards,
    /// The last first, for a second pass: what the first read last is what the cache still holds.
    Backwards,
}

/// Calls `work` for every chunk, with the index of its segment. Cannot fail.
pub fn for_each(
    workspace: &Workspace,
    plan: &Plan,
    direction: Direction,
    work: impl Fn(usize, Range<usize>, &mut Scratch) + Sync,
) {
    let backwards = direction == Direction::Backwards;
    let last = plan.batches.len().wrapping_sub(1);
    pool::run(workspace.threads_for(plan.bytes), plan.batches.len(), &|batch, worker| {
        let chunks = plan.batches[if backwards { last - batch } else { batch }].clone();
        workspace.scratch(worker, |scratch| {
            for step in 0..chunks.len() {
                let index = if backwards { chunks.end - 1 - step } else { chunks.start + step };
                let Chunk { segment, range } = &plan.chunks[index];
                work(*segment, range.clone(), scratch);
            }
        });
        // Results may have been streamed past the cache; whoever waits for this batch sees them.
        crate::kernels::stream::fence();
    });
}
