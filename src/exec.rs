//! Passes over all chunks of a plan, on as many threads as are worth waking.

use crate::plan::{Chunk, Plan};
use crate::pool;
use crate::segment::{Scratch, Segment, with_scratch};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

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
    pub level: crate::isa::Level,
    /// How many threads may be used.
    pub threads: usize,
}

impl Context {
    /// What the settings of this process and thread say.
    #[must_use]
    pub fn current() -> Self {
        Self { level: crate::isa::current(), threads: usize::MAX }
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

/// One number per chunk, in the order of the chunks, whichever thread found it.
pub fn reduce<const N: usize>(
    context: Context,
    segments: &[Segment<N>],
    plan: &Plan,
    partial: impl Fn(&Segment<N>, Range<usize>, &mut Scratch) -> f64 + Sync,
) -> Vec<f64> {
    let threads = context.threads_for(plan.bytes);
    if threads == 1 {
        return with_scratch(|scratch| {
            let chunks = plan.chunks.iter();
            chunks.map(|c| partial(&segments[c.segment], c.range.clone(), scratch)).collect()
        });
    }
    let partials: Vec<AtomicU64> = plan.chunks.iter().map(|_| AtomicU64::new(0)).collect();
    pool::run(threads, plan.batches.len(), &|batch| {
        with_scratch(|scratch| {
            for index in plan.batches[batch].clone() {
                let Chunk { segment, range } = &plan.chunks[index];
                let value = partial(&segments[*segment], range.clone(), scratch);
                partials[index].store(value.to_bits(), Ordering::Relaxed);
            }
        });
    });
    partials.into_iter().map(|bits| f64::from_bits(bits.into_inner())).collect()
}

/// In which order a pass takes the chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As memory lies, which is what prefetchers like.
    Forwards,
    /// The last first, for a second pass: what the first read last is what the cache still holds.
    Backwards,
}

/// Calls `work` for every chunk, with the index of its segment.
pub fn for_each(
    context: Context,
    plan: &Plan,
    direction: Direction,
    work: impl Fn(usize, Range<usize>, &mut Scratch) + Sync,
) {
    let backwards = direction == Direction::Backwards;
    let last = plan.batches.len().wrapping_sub(1);
    pool::run(context.threads_for(plan.bytes), plan.batches.len(), &|batch| {
        let chunks = plan.batches[if backwards { last - batch } else { batch }].clone();
        with_scratch(|scratch| {
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
