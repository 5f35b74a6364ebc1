//! The thread pool on which passes run, and the division of a pass among its threads.
//!
//! `helper_threads.rs` has the threads; `job.rs` the tasks of one pass, which the calling thread and its helpers share.

mod helper_threads;
mod job;

use job::share;
use std::ops::Range;

/// The order in which a pass takes its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The first task first: the order of addresses, which hardware prefetchers expect.
    Forwards,
    /// The last task first: for a second pass, because what the first pass read last is still in the cache.
    Backwards,
}

impl Direction {
    /// Returns the index in a range that is taken after `position` others.
    fn index(self, range: &Range<usize>, position: usize) -> usize {
        match self {
            Self::Forwards => range.start + position,
            Self::Backwards => range.end - 1 - position,
        }
    }
}

/// Calls `task(index, worker)` once for each index below `tasks`, on up to `threads` threads: the calling one and
/// helpers of the pool. `worker` is below `threads`, and differs between threads that run at the same time.
///
/// Each thread has a part of the tasks, a range of indices, which it takes in the given direction. The parts are the
/// same in every call with as many tasks and threads, so that a thread finds in its cache what it read or wrote in the
/// call before. A thread that is done with its part takes tasks from other parts.
///
/// The caller waits for helpers that have begun, and not for others: a helper that comes when all tasks are taken finds
/// the job closed, and costs the caller nothing.
///
/// # Panics
///
/// If a task panics, in whatever thread, after the others have ended.
pub fn run(threads: usize, tasks: usize, direction: Direction, task: &(impl Fn(usize, usize) + Sync)) {
    share(threads, threads, tasks, direction, task);
}

/// As [`run`], without parts of their own: threads take the tasks one by one, in ascending order.
pub fn run_in_turns(threads: usize, tasks: usize, task: &(impl Fn(usize, usize) + Sync)) {
    share(1, threads, tasks, Direction::Forwards, task);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

    #[test]
    fn each_task_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            for direction in [Direction::Forwards, Direction::Backwards] {
                for tasks in [1, 2, 7, 1000] {
                    let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                    let count = |i: usize, worker: usize| {
                        assert!(worker < threads);
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    };
                    run(threads, tasks, direction, &count);
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                    run_in_turns(threads, tasks, &count);
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2));
                }
            }
        }
        run(4, 0, Direction::Forwards, &|_, _| unreachable!());
    }

    #[test]
    fn threads_that_run_at_the_same_time_have_different_workers() {
        let is_busy: [AtomicBool; 4] = Default::default();
        for _ in 0..100 {
            run(4, 64, Direction::Forwards, &|_, worker| {
                assert!(!is_busy[worker].swap(true, Ordering::Acquire));
                std::thread::yield_now();
                is_busy[worker].store(false, Ordering::Release);
            });
        }
    }

    #[test]
    fn a_helper_that_has_not_begun_is_not_waited_for() {
        // Helpers of other calls that run meanwhile are busy, or late.
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                run(8, 8, Direction::Forwards, &|_, _| {
                    while !is_over.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                });
            });
            let count = AtomicUsize::new(0);
            run(8, 100, Direction::Forwards, &|_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 100);
            is_over.store(true, Ordering::Release);
        });
    }

    #[test]
    fn the_last_task_of_a_part_is_left_to_its_thread() {
        // The helper may come too late for its part; then the caller takes all of it.
        let pause = std::time::Duration::from_millis(2);
        for _ in 0..100 {
            let of_caller = AtomicUsize::new(0);
            let workers: [AtomicUsize; 4] = Default::default();
            run(2, 4, Direction::Forwards, &|i, worker| {
                workers[i].store(worker, Ordering::Relaxed);
                if worker == 0 {
                    std::thread::sleep(pause);
                    of_caller.fetch_add(1, Ordering::Release);
                } else if i == 2 {
                    while of_caller.load(Ordering::Acquire) < 2 {
                        std::thread::yield_now();
                    }
                    std::thread::sleep(pause);
                }
            });
            if workers[2].load(Ordering::Relaxed) == 1 {
                assert_eq!(workers[3].load(Ordering::Relaxed), 1);
                return;
            }
        }
        panic!("the helper never came");
    }

    #[test]
    fn a_panic_of_any_task_reaches_the_caller() {
        for bad in [0, 50, 99] {
            let done = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                run(2, 100, Direction::Forwards, &|i, _| {
                    assert_ne!(i, bad);
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }));
            assert!(result.is_err());
        }
        run(2, 100, Direction::Forwards, &|_, _| {});
    }

    #[test]
    fn callers_on_several_threads_do_not_disturb_each_other() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let sum = AtomicUsize::new(0);
                        run(3, 100, Direction::Backwards, &|i, _| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 4950);
                    }
                });
            }
        });
    }
}
