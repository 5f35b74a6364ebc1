//! The thread pool on which passes run.

use super::process::{PerProcess, start_thread};
use crate::allocation;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Upper bound of the bytes that rayon allocates for each thread, besides its stack.
const BYTES_PER_HELPER: usize = 16 << 10;

/// Returns a pool of at least `helpers` threads, or None if the system has too few threads or too little memory for it.
fn pool(helpers: usize) -> Option<Arc<ThreadPool>> {
    static POOL: PerProcess<Mutex<Option<Arc<ThreadPool>>>> = PerProcess::new();
    let slot = POOL.get(|| Mutex::new(None));
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = slot.as_ref()
        && pool.current_num_threads() >= helpers
    {
        return Some(Arc::clone(pool));
    }
    // rayon aborts the process if memory runs out. If this trial allocation fails, the caller works alone.
    drop(allocation::with_capacity::<u8>(helpers.checked_mul(BYTES_PER_HELPER)?).ok()?);
    let builder = ThreadPoolBuilder::new().num_threads(helpers);
    let built = builder.spawn_handler(|thread| start_thread(|| thread.run())).build();
    let pool = Arc::new(built.ok()?);
    *slot = Some(Arc::clone(&pool));
    Some(pool)
}

/// Calls `task(index, worker)` once for each index below `tasks`, on up to `threads` threads: the calling one and
/// helpers of the pool. The caller starts at once, and the indices are handed out one by one: a helper that wakes late
/// gets fewer of them, or none. `worker` is below `threads`, and differs between threads that run at the same time.
pub fn run(threads: usize, tasks: usize, task: &(impl Fn(usize, usize) + Sync)) {
    let helpers = threads.min(tasks).saturating_sub(1);
    let next = AtomicUsize::new(0);
    let work = |worker: usize| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                break;
            }
            task(index, worker);
        }
    };
    if helpers > 0
        && let Some(pool) = pool(helpers)
    {
        let work = &work;
        pool.in_place_scope(|scope| {
            for helper in 1..=helpers {
                scope.spawn(move |_| work(helper));
            }
            work(0);
        });
    } else {
        work(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn each_task_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let counts: Vec<AtomicU32> = (0..1000).map(|_| AtomicU32::new(0)).collect();
            run(threads, counts.len(), &|i, worker| {
                assert!(worker < threads);
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
        run(4, 0, &|_, _| unreachable!());
    }

    #[test]
    fn callers_on_several_threads_do_not_disturb_each_other() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let sum = AtomicUsize::new(0);
                        run(3, 100, &|i, _| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 4950);
                    }
                });
            }
        });
    }
}
