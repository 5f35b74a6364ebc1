//! Workspaces: the threads and scratch buffers of a pass.

use super::plan::{CHUNK, Plan};
use super::segment::{Scratch, Segment};
use super::threads;
use crate::allocation::{OutOfMemory, with_capacity};
use std::sync::{Mutex, PoisonError};

/// Below this many bytes a pass runs on the calling thread: waking another costs more than it saves. ARCHITECTURE.md
/// has the measurement.
pub const PARALLEL_BYTES: usize = 1 << 20;

/// SIMD level and number of threads of a call.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// SIMD level of the kernels.
    pub level: super::isa::Level,
    /// Largest number of threads; `usize::MAX` for the number that [`threads::count`] returns.
    pub threads: usize,
}

impl Context {
    /// Returns the settings of this process and thread.
    #[must_use]
    pub fn current() -> Self {
        Self { level: super::isa::current(), threads: usize::MAX }
    }

    /// Returns the number of threads for a pass over `bytes` bytes.
    #[must_use]
    pub fn threads_for(self, bytes: usize) -> usize {
        if bytes < PARALLEL_BYTES {
            1
        } else if self.threads == usize::MAX {
            // Called only here, because it makes a system call, which small arrays do not need.
            threads::count()
        } else {
            self.threads
        }
    }
}

/// The number of threads of a pass, and a scratch buffer for each of them. It is allocated before the first pass of a
/// call, because passes that write must not fail.
#[derive(Debug)]
pub struct Workspace {
    /// SIMD level of the kernels.
    pub level: super::isa::Level,
    threads: usize,
    /// One buffer for each thread; empty if every operand is contiguous.
    scratch: Vec<Mutex<Scratch>>,
}

impl Workspace {
    /// Allocates the workspace of passes over these segments.
    pub fn new<const N: usize>(
        context: Context,
        segments: &[Segment<N>],
        plan: &Plan,
    ) -> Result<Self, OutOfMemory> {
        let needed = segments.iter().map(|segment| segment.scratch_bytes(CHUNK)).max().unwrap_or(0);
        Self::with_scratch(context, plan.bytes(), needed)
    }

    /// Allocates the workspace of passes over `bytes` bytes, with a scratch buffer of `scratch_bytes` for each thread.
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

    /// Returns the number of threads for a pass over `bytes` bytes.
    pub fn threads_for(&self, bytes: usize) -> usize {
        if bytes < PARALLEL_BYTES { 1 } else { self.threads }
    }

    /// Calls `f` with the scratch buffer of the thread number `worker` of the pass.
    pub fn scratch<R>(&self, worker: usize, f: impl FnOnce(&mut Scratch) -> R) -> R {
        match self.scratch.get(worker) {
            Some(scratch) => f(&mut scratch.lock().unwrap_or_else(PoisonError::into_inner)),
            None => f(&mut Scratch::default()),
        }
    }
}
