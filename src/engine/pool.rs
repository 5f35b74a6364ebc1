//! How many threads, and the threads.
//!
//! Everything here belongs to a process: after a fork the child finds that its generation is another, leaks what it
//! inherited (the parent's threads are not in the child, its locks may be held) and starts anew. The generation is
//! compared before any lock is touched. It is counted by a handler of `pthread_atfork`, because process ids do not
//! tell: a child in a namespace of its own may have that of its parent, and ids are used again.

use crate::allocation;
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};
use std::cell::Cell;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// How many forks lie between the first process that loaded this code and the current one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Has forks counted from now on. Returns whether the system agreed to; it is short of memory if it did not.
pub fn count_forks() -> bool {
    #[cfg(unix)]
    {
        extern "C" fn in_child() {
            GENERATION.fetch_add(1, Ordering::Relaxed);
        }
        static COUNTED: OnceLock<bool> = OnceLock::new();
        // SAFETY: the handler only adds to an atomic number, which any thread may do at any time.
        *COUNTED.get_or_init(|| unsafe { libc::pthread_atfork(None, None, Some(in_child)) } == 0)
    }
    #[cfg(not(unix))]
    true
}

/// A number that is another in a forked child than in its parent.
#[must_use]
pub fn generation() -> u64 {
    count_forks();
    GENERATION.load(Ordering::Relaxed)
}

/// A value of which each process has its own.
pub struct PerProcess<T> {
    current: AtomicPtr<(u64, T)>,
}

impl<T: Sync> PerProcess<T> {
    /// A value not made yet.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "made in statics alone, where `default` cannot be called")]
    pub const fn new() -> Self {
        Self { current: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// This process's value, made by `make` when first asked for.
    pub fn get(&'static self, make: impl Fn() -> T) -> &'static T {
        let generation = generation();
        let mut found = self.current.load(Ordering::Acquire);
        loop {
            // SAFETY: a pointer in `current` came from `Box::into_raw` below and is never freed.
            if let Some((owner, value)) = unsafe { found.as_ref() }
                && *owner == generation
            {
                return value;
            }
            let fresh = Box::into_raw(Box::new((generation, make())));
            match self.current.compare_exchange(found, fresh, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => found = fresh,
                Err(other) => {
                    // SAFETY: `fresh` came from `Box::into_raw` and nobody else has seen it.
                    drop(unsafe { Box::from_raw(fresh) });
                    found = other;
                }
            }
        }
    }
}

static POOL: PerProcess<Mutex<Option<Arc<ThreadPool>>>> = PerProcess::new();
static DEFAULT: PerProcess<Default> = PerProcess::new();
static CONFIGURED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static OVERRIDE: Cell<usize> = const { Cell::new(0) };
}

/// How many threads there are when nobody has set a number.
#[derive(Clone, Copy)]
enum Default {
    /// The environment says so.
    Asked(usize),
    /// The cores there are, by the quota of the control group: no more than may be run on.
    Cores(usize),
}

/// The environment variables that set the number of threads, in the order they are asked.
pub const VARIABLES: [&str; 3] = ["FASTCLIP_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"];

/// The number in an environment variable. `OMP_NUM_THREADS` may be a list, one per nesting level.
fn parse(value: &str) -> Option<usize> {
    value.split(',').next()?.trim().parse().ok().filter(|n| *n > 0)
}

/// The number of threads that the environment asks for. It is read once, when the module is made: later, another thread
/// may be changing the environment.
pub fn from_environment() -> Option<usize> {
    static ASKED: OnceLock<Option<usize>> = OnceLock::new();
    *ASKED.get_or_init(|| VARIABLES.iter().find_map(|name| parse(&std::env::var(name).ok()?)))
}

/// What is wrong with the variables, if something is.
#[must_use]
pub fn complaint() -> Option<String> {
    VARIABLES.iter().find_map(|name| {
        let value = std::env::var(name).ok()?;
        // RAYON_NUM_THREADS=0 is rayon's own way to ask for the default.
        if value.trim().is_empty() || parse(&value).is_some() || *name != VARIABLES[0] {
            return None;
        }
        Some(format!("{name} is {value:?}; it takes a whole number of threads, at least 1. Ignored."))
    })
}

/// The cores this process may run on now.
fn allowed_cores() -> usize {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a zeroed set is a valid one, and the call writes no more than its size.
        let allowed = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) == 0 {
                usize::try_from(libc::CPU_COUNT(&set)).unwrap_or(0)
            } else {
                0
            }
        };
        if allowed > 0 {
            return allowed;
        }
    }
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How many threads a call made from this thread may use.
#[must_use]
pub fn threads() -> usize {
    let here = OVERRIDE.get();
    if here > 0 {
        return here;
    }
    let configured = CONFIGURED.load(Ordering::Relaxed);
    if configured > 0 {
        return configured;
    }
    // Affinity may change at any time and costs a system call; the quota of a control group takes
    // reading files, and is asked for once.
    let default = DEFAULT.get(|| {
        let cores = || Default::Cores(std::thread::available_parallelism().map_or(1, usize::from));
        from_environment().map_or_else(cores, Default::Asked)
    });
    match *default {
        Default::Asked(n) => n,
        Default::Cores(n) => n.min(allowed_cores()),
    }
}

/// Sets how many threads calls may use from now on, in every thread; 0 goes back to the default.
pub fn set_threads(n: usize) {
    CONFIGURED.store(n, Ordering::Relaxed);
}

/// Sets how many threads calls made from this thread may use; 0 takes that back. Returns what it was.
#[must_use = "what it was is needed to go back"]
pub fn override_threads(n: usize) -> usize {
    OVERRIDE.replace(n)
}

/// Starts a thread of the pool. The standard library's own way aborts the process where memory runs out.
#[cfg(unix)]
fn start(thread: ThreadBuilder) -> std::io::Result<()> {
    extern "C" fn run(thread: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the box that was given to this thread alone.
        let thread = unsafe { Box::from_raw(thread.cast::<ThreadBuilder>()) };
        #[cfg(target_os = "linux")]
        // SAFETY: the name of the calling thread, for debuggers, of less than 16 bytes.
        unsafe {
            libc::pthread_setname_np(libc::pthread_self(), c"fastclip".as_ptr());
        }
        // Nothing may unwind into the system's code. rayon itself catches what tasks panic with.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| thread.run()));
        std::ptr::null_mut()
    }
    let thread = Box::into_raw(Box::new(thread));
    // SAFETY: all zeros are a value of the handle; the attributes are initialised before they are used, and destroyed once.
    // The thread takes over the box if it starts.
    let status = unsafe {
        let mut attributes = std::mem::zeroed();
        let mut handle = std::mem::zeroed();
        let mut status = libc::pthread_attr_init(&raw mut attributes);
        if status == 0 {
            libc::pthread_attr_setdetachstate(&raw mut attributes, libc::PTHREAD_CREATE_DETACHED);
            libc::pthread_attr_setstacksize(&raw mut attributes, STACK_BYTES);
            status = libc::pthread_create(&raw mut handle, &raw const attributes, run, thread.cast());
            libc::pthread_attr_destroy(&raw mut attributes);
        }
        status
    };
    if status == 0 {
        return Ok(());
    }
    // SAFETY: no thread has it.
    drop(unsafe { Box::from_raw(thread) });
    Err(std::io::Error::from_raw_os_error(status))
}

#[cfg(not(unix))]
fn start(thread: ThreadBuilder) -> std::io::Result<()> {
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(|| thread.run()).map(drop)
}

/// The stack of a thread of the pool: as large as the standard library's.
const STACK_BYTES: usize = 2 << 20;

/// More than the pool takes for each thread, besides its stack.
const BYTES_PER_HELPER: usize = 16 << 10;

/// A pool of at least that many threads, or none if the system gives no more threads or memory for them.
fn pool(helpers: usize) -> Option<Arc<ThreadPool>> {
    let slot = POOL.get(|| Mutex::new(None));
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = slot.as_ref()
        && pool.current_num_threads() >= helpers
    {
        return Some(Arc::clone(pool));
    }
    // rayon aborts where memory runs out. Where there is too little for it, the caller works alone.
    drop(allocation::with_capacity::<u8>(helpers.checked_mul(BYTES_PER_HELPER)?).ok()?);
    let built = ThreadPoolBuilder::new().num_threads(helpers).spawn_handler(start).build();
    let pool = Arc::new(built.ok()?);
    *slot = Some(Arc::clone(&pool));
    Some(pool)
}

/// Calls `task(index, worker)` for each index below `tasks` once, on up to `threads` threads, of which the caller is
/// one. The caller takes part from the start: a helper that wakes late finds less left, or nothing. `worker` is below
/// `threads`, and no two threads have the same at a time.
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

    #[test]
    fn an_override_holds_for_its_own_thread() {
        let before = override_threads(3);
        assert_eq!(threads(), 3);
        std::thread::scope(|s| {
            s.spawn(|| assert_eq!(OVERRIDE.get(), 0));
        });
        assert_eq!(override_threads(before), 3);
    }

    #[test]
    fn numbers_of_threads_are_parsed_as_the_runtimes_do() {
        assert_eq!(parse("4"), Some(4));
        assert_eq!(parse(" 4,2 "), Some(4));
        assert_eq!(parse("0"), None);
        assert_eq!(parse("many"), None);
    }
}
