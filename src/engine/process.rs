//! Interface to the operating system: forks, processor affinity and starting threads.
//!
//! After a fork the child must not use the parent's thread pool, whose threads do not exist in the child, nor its
//! locks, which another thread may have held at that moment. Such values are stored in a [`PerProcess`], which leaks
//! the parent's value and creates a new one when the generation, a counter of forks, has changed. The generation is
//! compared before any lock is touched. A handler of `pthread_atfork` increments it, because process ids cannot tell
//! parent and child apart: a child in another pid namespace may have the id of its parent, and ids are reused.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Number of forks between the first process that loaded this code and the current one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Registers the handler that counts forks, once. Returns false if the system has too little memory for it.
pub fn count_forks() -> bool {
    #[cfg(unix)]
    {
        extern "C" fn in_child() {
            GENERATION.fetch_add(1, Ordering::Relaxed);
        }
        static IS_REGISTERED: OnceLock<bool> = OnceLock::new();
        // SAFETY: the handler only adds to an atomic number, which any thread may do at any time.
        *IS_REGISTERED.get_or_init(|| unsafe { libc::pthread_atfork(None, None, Some(in_child)) } == 0)
    }
    #[cfg(not(unix))]
    true
}

/// Returns the generation of the process: a number that differs between a forked child and its parent.
#[must_use]
pub fn generation() -> u64 {
    count_forks();
    GENERATION.load(Ordering::Relaxed)
}

/// A static value that each process initialises for itself, again after a fork.
pub struct PerProcess<T> {
    /// The value and the generation of the process that it belongs to; null before the first use.
    current: AtomicPtr<(u64, T)>,
}

impl<T: Sync> PerProcess<T> {
    /// Returns a value that is not initialised.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "used in statics only, where `default` cannot be called")]
    pub const fn new() -> Self {
        Self { current: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Returns the value of this process. The first call initialises it with `init`; where several threads make the
    /// first call at once, each may call `init`, and all use the same result.
    pub fn get(&'static self, init: impl Fn() -> T) -> &'static T {
        let generation = generation();
        let mut current = self.current.load(Ordering::Acquire);
        loop {
            // SAFETY: a pointer in `current` came from `Box::into_raw` below and is never freed.
            if let Some((owner, value)) = unsafe { current.as_ref() }
                && *owner == generation
            {
                return value;
            }
            let new = Box::into_raw(Box::new((generation, init())));
            match self.current.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => current = new,
                Err(other) => {
                    // SAFETY: `new` came from `Box::into_raw`, and was not stored where another thread could read it.
                    drop(unsafe { Box::from_raw(new) });
                    current = other;
                }
            }
        }
    }
}

/// Returns the number of processors that the affinity of the calling thread allows now. Costs a system call.
#[must_use]
pub fn allowed_cores() -> usize {
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

/// Returns the index of the processor that the calling thread runs on, if the system tells. Costs no system call.
#[must_use]
pub fn current_processor() -> Option<usize> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the call has no preconditions.
        usize::try_from(unsafe { libc::sched_getcpu() }).ok()
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Keeps the calling thread off a processor from now on, if others are left to it, and moves it away at once.
pub fn avoid_processor(processor: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: a zeroed set is a valid one, the calls read or write no more than its size, and the index was checked.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        // The affinity of the process is that of its first thread, which helpers may have been kept off.
        if processor < 8 * size && libc::sched_getaffinity(libc::getpid(), size, &raw mut set) == 0 {
            libc::CPU_CLR(processor, &mut set);
            if libc::CPU_COUNT(&set) > 0 {
                libc::sched_setaffinity(0, size, &raw const set);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = processor;
}

/// Returns the number of processors of the machine; in a container, of those that all its processes may use together.
#[must_use]
pub fn machine_cores() -> usize {
    #[cfg(target_os = "linux")]
    {
        let of_container = || cores_of_list(&std::fs::read_to_string(cpuset_file()?).ok()?);
        // SAFETY: the call has no preconditions.
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        if let Some(cores) = of_container().or(usize::try_from(online).ok()).filter(|cores| *cores > 0) {
            return cores;
        }
    }
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the file that lists the processors of this process's control group, in the second version of these.
#[cfg(target_os = "linux")]
fn cpuset_file() -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(format!("/sys/fs/cgroup{}/cpuset.cpus.effective", path.trim_end_matches('/')))
}

/// Returns how many processors a list such as `0-3,8` names.
#[cfg(target_os = "linux")]
fn cores_of_list(list: &str) -> Option<usize> {
    list.trim().split(',').try_fold(0, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(count + (last + 1).checked_sub(first)?)
    })
}

/// Stack size in bytes of a started thread: that of the standard library's threads.
const STACK_BYTES: usize = 2 << 20;

/// Starts a detached thread that calls `body`. `std::thread::spawn` would abort the process if memory runs out.
///
/// # Errors
///
/// If the system cannot start a thread.
#[cfg(unix)]
pub fn start_thread<F: FnOnce() + Send + 'static>(body: F) -> std::io::Result<()> {
    extern "C" fn run<F: FnOnce()>(body: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the box that was passed to this thread alone.
        let body = unsafe { Box::from_raw(body.cast::<F>()) };
        #[cfg(target_os = "linux")]
        // SAFETY: sets the name of the calling thread, which debuggers show, to one of less than 16 bytes.
        unsafe {
            libc::pthread_setname_np(libc::pthread_self(), c"fastclip".as_ptr());
        }
        // A panic must not unwind into the system's code.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        std::ptr::null_mut()
    }
    let body = Box::into_raw(Box::new(body));
    // SAFETY: all zeros are a value of the handle; the attributes are initialised before they are used, and destroyed
    // once. The thread takes ownership of the box if it starts.
    let status = unsafe {
        let mut attributes = std::mem::zeroed();
        let mut handle = std::mem::zeroed();
        let mut status = libc::pthread_attr_init(&raw mut attributes);
        if status == 0 {
            libc::pthread_attr_setdetachstate(&raw mut attributes, libc::PTHREAD_CREATE_DETACHED);
            libc::pthread_attr_setstacksize(&raw mut attributes, STACK_BYTES);
            status = libc::pthread_create(&raw mut handle, &raw const attributes, run::<F>, body.cast());
            libc::pthread_attr_destroy(&raw mut attributes);
        }
        status
    };
    if status == 0 {
        return Ok(());
    }
    // SAFETY: no thread was started, so that the box is still owned here.
    drop(unsafe { Box::from_raw(body) });
    Err(std::io::Error::from_raw_os_error(status))
}

/// Starts a detached thread that calls `body`.
///
/// # Errors
///
/// If the system cannot start a thread.
#[cfg(not(unix))]
pub fn start_thread<F: FnOnce() + Send + 'static>(body: F) -> std::io::Result<()> {
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(body).map(drop)
}
