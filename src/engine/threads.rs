//! Number of threads of a pass: the settings of the caller, of the environment, and the default.

use super::process::{PerProcess, allowed_cores};
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Number of threads for all calls of the process; 0 if it is not set.
static PROCESS_COUNT: AtomicUsize = AtomicUsize::new(0);
/// Number of threads if neither is set.
static DEFAULT: PerProcess<DefaultCount> = PerProcess::new();

thread_local! {
    /// Number of threads for calls made from this thread; 0 if it is not set.
    static OVERRIDE: Cell<usize> = const { Cell::new(0) };
}

/// Where the number of threads comes from if it is not set by a call.
#[derive(Clone, Copy)]
enum DefaultCount {
    /// An environment variable, with this number.
    Environment(usize),
    /// The cores that the quota of the control group allows. Affinity may allow fewer.
    Cores(usize),
}

/// Environment variables that set the number of threads. The first that holds a number is used.
pub const VARIABLES: [&str; 3] = ["FASTCLIP_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"];

/// Parses the value of an environment variable. `OMP_NUM_THREADS` may be a list with one number per nesting level, of
/// which the first is used.
fn parse(value: &str) -> Option<usize> {
    value.split(',').next()?.trim().parse().ok().filter(|n| *n > 0)
}

/// Returns the number of threads that the environment sets, if any. The environment is read once, when the module is
/// imported: later, another thread may be changing it.
pub fn from_environment() -> Option<usize> {
    static COUNT: OnceLock<Option<usize>> = OnceLock::new();
    *COUNT.get_or_init(|| VARIABLES.iter().find_map(|name| parse(&std::env::var(name).ok()?)))
}

/// Returns a message about an environment variable with an invalid value, if there is one.
#[must_use]
pub fn complaint() -> Option<String> {
    VARIABLES.iter().find_map(|name| {
        let value = std::env::var(name).ok()?;
        // Only fastclip's variable is checked: RAYON_NUM_THREADS=0, for one, asks rayon for its default.
        if value.trim().is_empty() || parse(&value).is_some() || *name != VARIABLES[0] {
            return None;
        }
        Some(format!("{name} is {value:?}; it takes a whole number of threads, at least 1. Ignored."))
    })
}

/// Returns the number of threads that a call made from this thread may use.
#[must_use]
pub fn count() -> usize {
    let thread_count = OVERRIDE.get();
    if thread_count > 0 {
        return thread_count;
    }
    let process_count = PROCESS_COUNT.load(Ordering::Relaxed);
    if process_count > 0 {
        return process_count;
    }
    // Affinity may change at any time, and is requested by each call: one system call. The quota of the control group is
    // read from files, and only once.
    let default = DEFAULT.get(|| {
        let cores = || DefaultCount::Cores(std::thread::available_parallelism().map_or(1, usize::from));
        from_environment().map_or_else(cores, DefaultCount::Environment)
    });
    match *default {
        DefaultCount::Environment(n) => n,
        DefaultCount::Cores(n) => n.min(allowed_cores()),
    }
}

/// Sets the number of threads for calls from any thread; 0 restores the default.
pub fn set_count(n: usize) {
    PROCESS_COUNT.store(n, Ordering::Relaxed);
}

/// Sets the number of threads for calls made from this thread, which overrides all other settings; 0 removes it.
/// Returns the previous value.
#[must_use = "the previous value is needed to restore it"]
pub fn override_count(n: usize) -> usize {
    OVERRIDE.replace(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_applies_to_its_thread_only() {
        let before = override_count(3);
        assert_eq!(count(), 3);
        std::thread::scope(|s| {
            s.spawn(|| assert_eq!(OVERRIDE.get(), 0));
        });
        assert_eq!(override_count(before), 3);
    }

    #[test]
    fn environment_values_are_parsed_as_openmp_and_rayon_parse_them() {
        assert_eq!(parse("4"), Some(4));
        assert_eq!(parse(" 4,2 "), Some(4));
        assert_eq!(parse("0"), None);
        assert_eq!(parse("many"), None);
    }
}
