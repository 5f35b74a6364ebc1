//! Helper threads: each waits for a job, takes part in it, and waits for the next.

use super::job::Job;
use crate::allocation::{reserve, with_capacity};
use crate::engine::process::{PerProcess, start_thread};
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a helper looks for the next job before it sleeps. The passes of a call follow one another within
/// microseconds, and waking a helper takes 20 to 100 µs on a virtual machine.
const PATIENCE: Duration = Duration::from_micros(50);

/// Upper bound of the bytes that the system allocates for a thread besides its stack.
const BYTES_PER_HELPER: usize = 16 << 10;

/// A helper thread.
pub struct Helper {
    inbox: Mutex<Inbox>,
    condition: Condvar,
    /// Whether there is a job in the inbox; read without the lock while the helper looks for the next job.
    has_job: AtomicBool,
}

#[derive(Default)]
struct Inbox {
    /// The next job, and the helper's number among its workers.
    job: Option<(Arc<Job>, usize)>,
    /// Whether the helper is at work.
    is_busy: bool,
    /// Whether the helper waits for the condition.
    is_asleep: bool,
}

impl Helper {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes part in jobs, one after the other, for ever.
    fn serve(&self) {
        loop {
            let (job, worker) = self.next();
            job.help(worker, || self.inbox().is_busy = false);
        }
    }

    /// Waits for the next job.
    fn next(&self) -> (Arc<Job>, usize) {
        let start = Instant::now();
        while !self.has_job.load(Ordering::Relaxed) && start.elapsed() < PATIENCE {
            for _ in 0..16 {
                spin_loop();
            }
        }
        let mut inbox = self.inbox();
        loop {
            if let Some(message) = inbox.job.take() {
                inbox.is_busy = true;
                self.has_job.store(false, Ordering::Relaxed);
                return message;
            }
            inbox.is_asleep = true;
            inbox = self.condition.wait(inbox).unwrap_or_else(PoisonError::into_inner);
            inbox.is_asleep = false;
        }
    }

    /// Gives the helper a job, unless it is at work or has one that is not closed. Returns whether it has to be woken.
    fn offer(&self, job: &Arc<Job>, worker: usize) -> Option<bool> {
        let mut inbox = self.inbox();
        let is_free = inbox.job.as_ref().map_or(!inbox.is_busy, |(waiting, _)| waiting.is_closed());
        if !is_free {
            return None;
        }
        inbox.job = Some((Arc::clone(job), worker));
        self.has_job.store(true, Ordering::Relaxed);
        Some(inbox.is_asleep)
    }

    /// Wakes the helper if it sleeps.
    pub fn wake(&self) {
        self.condition.notify_one();
    }
}

/// Gives a job to `count` helpers, or to as many as are free. Starts helpers if there are fewer, unless the system has
/// too few threads or too little memory.
pub fn call(count: usize, job: &Arc<Job>) {
    static HELPERS: PerProcess<Mutex<Vec<Arc<Helper>>>> = PerProcess::new();
    let helpers = HELPERS.get(|| Mutex::new(Vec::new()));
    let mut helpers = helpers.lock().unwrap_or_else(PoisonError::into_inner);
    while helpers.len() < count && start(&mut helpers) {}
    let mut worker = 1;
    for helper in &*helpers {
        if worker > count {
            break;
        }
        if let Some(is_asleep) = helper.offer(job, worker) {
            worker += 1;
            if is_asleep {
                job.add_sleeper(Arc::clone(helper));
            }
        }
    }
    drop(helpers);
    job.wake_two();
}

/// Starts a helper. Returns false if the system has too few threads or too little memory.
fn start(helpers: &mut Vec<Arc<Helper>>) -> bool {
    // Allocations of the standard library abort the process if memory runs out, therefore the trial.
    if reserve(helpers, 1).is_err() || with_capacity::<u8>(BYTES_PER_HELPER).is_err() {
        return false;
    }
    let helper = Arc::new(Helper {
        inbox: Mutex::default(),
        condition: Condvar::new(),
        has_job: AtomicBool::new(false),
    });
    let served = Arc::clone(&helper);
    let is_started = start_thread(move || served.serve()).is_ok();
    if is_started {
        helpers.push(helper);
    }
    is_started
}
