//! The tasks of one pass, which the calling thread and its helpers share.

use super::Direction;
use super::helper_threads::{self, Helper};
use crate::allocation::{OutOfMemory, collect, with_capacity};
use crate::engine::process::{avoid_processor, current_processor};
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

/// Calls `task(index, worker)` once for each index below `tasks`, which are divided into `parts`, on up to `threads`
/// threads. [`run`](super::run) describes the order.
pub fn share(
    parts: usize,
    threads: usize,
    tasks: usize,
    direction: Direction,
    task: &(impl Fn(usize, usize) + Sync),
) {
    let helpers = threads.min(tasks).saturating_sub(1);
    if helpers > 0
        && let Ok(job) = Job::new(parts.min(tasks), helpers, tasks, direction, task)
    {
        let job = Arc::new(job);
        // Closes the job before `task` ceases to exist, also if a task of this thread panics.
        let closing = Closing(&job);
        helper_threads::call(helpers, &job);
        job.work(0);
        drop(closing);
        if let Some(panic) = lock(&job.panic).take() {
            resume_unwind(panic);
        }
    } else {
        for position in 0..tasks {
            task(direction.index(&(0..tasks), position), 0);
        }
    }
}

/// The tasks of one pass.
pub struct Job {
    /// Number of helpers at work, and [`CLOSED`].
    state: AtomicUsize,
    parts: Vec<Part>,
    direction: Direction,
    /// The caller's closure, and the function that calls it.
    task: *const (),
    call: unsafe fn(*const (), usize, usize),
    caller: Thread,
    /// The processor that the caller runs on.
    processor: Option<usize>,
    /// Helpers that sleep and have to be woken.
    sleepers: Mutex<Vec<Arc<Helper>>>,
    /// What a task of a helper panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Bit of [`Job::state`]: the caller has found no task left, and helpers must not begin.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// Number of tasks that are left to the thread whose part they are in. Their data is in that thread's cache: another
/// thread loads it from there more slowly than the owner comes to it, and the owner, which finds it gone in the next
/// pass, is late again. Of 8 tasks of 256 KiB one was stolen in every pass, for hundreds of calls: 2 MiB read and
/// written took 91 µs, and 49 without.
const LEFT_TO_OWNER: usize = 1;

/// Number of times that the caller looks for the end of its helpers before it sleeps: for about 50 µs.
const SPINS: usize = 1000;

// SAFETY: `task` points to a closure that is `Sync`, and is used between `begin` and `end` only.
unsafe impl Send for Job {}
// SAFETY: as for `Send`.
unsafe impl Sync for Job {}

/// A range of tasks. It has a cache line of its own, and the one next to it, which is fetched with it.
#[repr(align(128))]
struct Part {
    range: Range<usize>,
    /// Number of tasks that have been taken; it may exceed their number.
    taken: AtomicUsize,
    /// Whether the thread that the part belongs to has begun: it will take what others leave.
    has_owner: AtomicBool,
}

impl Part {
    /// Whether a thread that is done with its own part should take the next task of this one.
    fn may_be_stolen_from(&self) -> bool {
        let left = self.range.len().saturating_sub(self.taken.load(Ordering::Relaxed));
        left > LEFT_TO_OWNER || !self.has_owner.load(Ordering::Relaxed)
    }
}

impl Job {
    fn new<F: Fn(usize, usize) + Sync>(
        parts: usize,
        helpers: usize,
        tasks: usize,
        direction: Direction,
        task: &F,
    ) -> Result<Self, OutOfMemory> {
        /// Calls the closure.
        ///
        /// # Safety
        ///
        /// `task` must point to an `F`.
        unsafe fn call<F: Fn(usize, usize)>(task: *const (), index: usize, worker: usize) {
            // SAFETY: by the contract of this function.
            unsafe { (*task.cast::<F>())(index, worker) }
        }
        let part = |i: usize| Part {
            range: first_of_part(tasks, parts, i)..first_of_part(tasks, parts, i + 1),
            taken: AtomicUsize::new(0),
            has_owner: AtomicBool::new(false),
        };
        Ok(Self {
            state: AtomicUsize::new(0),
            parts: collect((0..parts).map(part))?,
            direction,
            task: std::ptr::from_ref(task).cast(),
            call: call::<F>,
            caller: std::thread::current(),
            processor: current_processor(),
            sleepers: Mutex::new(with_capacity(helpers)?),
            panic: Mutex::new(None),
        })
    }

    /// Takes tasks until none is left: those of the worker's part, then those of the parts after it.
    ///
    /// The caller of `share` calls this before it closes the job, and helpers between `begin` and `end`.
    fn work(&self, worker: usize) {
        self.parts[worker % self.parts.len()].has_owner.store(true, Ordering::Relaxed);
        for step in 0..self.parts.len() {
            let part = &self.parts[(worker + step) % self.parts.len()];
            while step == 0 || part.may_be_stolen_from() {
                let position = part.taken.fetch_add(1, Ordering::Relaxed);
                if position >= part.range.len() {
                    break;
                }
                // SAFETY: the closure is alive: `share` returns when every helper that has begun has ended.
                unsafe { (self.call)(self.task, self.direction.index(&part.range, position), worker) };
            }
        }
    }

    /// Takes part in the work as a helper, unless all tasks are taken. Calls `release` before the caller learns of the
    /// end, because the caller may need the helper again at once.
    pub fn help(&self, worker: usize, release: impl FnOnce()) {
        // Linux may wake a helper on the caller's processor, where it takes turns with the caller for milliseconds
        // while another processor is idle. This happens after pauses of some milliseconds, again and again, so the
        // helper stays off that processor until it meets a caller on another one.
        if let Some(processor) = self.processor
            && current_processor() == Some(processor)
        {
            avoid_processor(processor);
        }
        if !self.begin() {
            release();
            return;
        }
        self.wake_two();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(worker))) {
            *lock(&self.panic) = Some(panic);
        }
        release();
        self.end();
    }

    /// Adds a helper that has to be woken.
    pub fn add_sleeper(&self, helper: Arc<Helper>) {
        lock(&self.sleepers).push(helper);
    }

    /// Wakes two helpers, which wake two each. Waking takes some microseconds, so that the caller does not wake all.
    pub fn wake_two(&self) {
        for _ in 0..2 {
            // The lock is released before the helper is woken.
            let helper = lock(&self.sleepers).pop();
            if let Some(helper) = helper {
                helper.wake();
            }
        }
    }

    /// Whether no helper can begin any more.
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Relaxed) & CLOSED != 0
    }

    /// Counts a helper; returns false if the job is closed.
    fn begin(&self) -> bool {
        let add = |state: usize| (state & CLOSED == 0).then_some(state + 1);
        self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, add).is_ok()
    }

    /// Reports that a helper has ended. It must not use the task any more.
    fn end(&self) {
        if self.state.fetch_sub(1, Ordering::Release) == CLOSED + 1 {
            self.caller.unpark();
        }
    }

    /// Closes the job, and waits for the helpers that have begun.
    fn close(&self) {
        let mut state = self.state.fetch_or(CLOSED, Ordering::Acquire) | CLOSED;
        // Helpers hold this job, and it holds them.
        lock(&self.sleepers).clear();
        // A helper that has begun is in its last task, which rarely takes longer than it takes to sleep and wake up.
        for _ in 0..SPINS {
            if state == CLOSED {
                return;
            }
            std::hint::spin_loop();
            state = self.state.load(Ordering::Acquire);
        }
        while self.state.load(Ordering::Acquire) != CLOSED {
            std::thread::park();
        }
    }
}

/// Closes a job when it is dropped.
struct Closing<'a>(&'a Job);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the first task of part `index`, if `tasks` are divided into as many as `parts`.
fn first_of_part(tasks: usize, parts: usize, index: usize) -> usize {
    // The product of `tasks` and `index` may overflow; that of the remainder and `index` does not.
    tasks / parts * index + tasks % parts * index / parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_tasks() {
        for (tasks, parts) in [(1, 1), (7, 3), (100, 16), (16, 16), (usize::MAX, 3)] {
            assert_eq!((first_of_part(tasks, parts, 0), first_of_part(tasks, parts, parts)), (0, tasks));
            let sizes =
                (0..parts).map(|i| first_of_part(tasks, parts, i + 1) - first_of_part(tasks, parts, i));
            let (least, most) = sizes.fold((usize::MAX, 0), |(a, b), size| (a.min(size), b.max(size)));
            assert!(most - least <= 1);
        }
    }
}
