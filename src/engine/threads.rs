//! Number of threads of a pass: the settings of the caller, of the environment, and the default.

use super::process::{PerProcess, allowed_cores, machine_cores};
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Number of threads for all calls of the process; 0 if it is not set.
static PROCESS_COUNT: AtomicUsize = AtomicUsize::new(0);
/// The cores of the machine, for the number of threads if neither is set.
static DEFAULT: PerProcess<Cores> = PerProcess::new();

thread_local! {
    /// Number of threads for calls made from this thread; 0 if it is not set.
    static OVERRIDE: Cell<usize> = const { Cell::new(0) };
}

/// The cores that the process finds when it first needs their number.
#[derive(Clone, Copy)]
struct Cores {
    /// Those that the quota of the control group allows. Affinity may allow fewer.
    allowed: usize,
    /// Those of the machine or container: an affinity of fewer was set for this process.
    all: usize,
}

/// Environment variables that set the number of threads. The first that holds a number is used.
pub const VARIABLES: [&str; 3] = ["FASTCLIP_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"];

/// Environment variables in which launchers say how many of their processes run on this machine: `torchrun`, Open MPI,
/// Intel MPI and MPICH, and Slurm. The first that holds a number is used.
const RANK_VARIABLES: [&str; 4] =
    ["LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"];

/// A number, and the environment variable that it comes from.
type Named = (&'static str, usize);

/// What the environment says about threads.
#[derive(Clone, Copy, Default)]
struct Environment {
    /// The number of threads.
    threads: Option<Named>,
    /// How many processes of a launcher share the machine.
    ranks: Option<Named>,
}

impl Environment {
    /// Reads variables, whose values `value` returns.
    fn new(value: impl Fn(&str) -> Option<String>) -> Self {
        let first =
            |names: &[&'static str]| names.iter().find_map(|name| Some((*name, parse(&value(name)?)?)));
        let ranks = first(&RANK_VARIABLES);
        // torchrun sets OMP_NUM_THREADS to 1 unless its user sets it: every process would use one core.
        let is_of_torchrun = |threads: Named| {
            threads == (VARIABLES[2], 1) && ranks.is_some_and(|(name, _)| name == RANK_VARIABLES[0])
        };
        Self { threads: first(&VARIABLES).filter(|threads| !is_of_torchrun(*threads)), ranks }
    }
}

/// Parses the value of an environment variable. `OMP_NUM_THREADS` may be a list with one number per nesting level, of
/// which the first is used.
fn parse(value: &str) -> Option<usize> {
    value.split(',').next()?.trim().parse().ok().filter(|n| *n > 0)
}

/// Reads the environment, once: when the module is imported. Later, another thread may be changing it.
pub fn read_environment() {
    environment();
}

fn environment() -> Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    *ENVIRONMENT.get_or_init(|| Environment::new(|name| std::env::var(name).ok()))
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

/// Why a call uses as many threads as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The number that was set for this thread, or for the process.
    Set,
    /// That of an environment variable.
    Variable(&'static str),
    /// The cores that the process may use.
    Cores,
    /// These divided by the number of processes that a launcher has started on the machine, by its variable.
    Ranks(&'static str, usize),
}

/// Returns the number of threads that a call made from this thread may use.
#[must_use]
pub fn count() -> usize {
    decide().0
}

/// Returns the number of threads that a call made from this thread may use, and why.
#[must_use]
pub fn decide() -> (usize, Rule) {
    let set = match OVERRIDE.get() {
        0 => PROCESS_COUNT.load(Ordering::Relaxed),
        thread_count => thread_count,
    };
    if set > 0 {
        return (set, Rule::Set);
    }
    let Environment { threads, ranks } = environment();
    if let Some((name, threads)) = threads {
        return (threads, Rule::Variable(name));
    }
    // Affinity may change at any time, and is requested by each call: one system call. The rest is read from files, and
    // only once.
    let cores = DEFAULT.get(|| Cores {
        allowed: std::thread::available_parallelism().map_or(1, usize::from),
        all: machine_cores(),
    });
    share(cores.allowed, allowed_cores(), cores.all, ranks)
}

/// Returns the number of threads of a process that may use `allowed` cores by its quota and `affine` ones by its affinity,
/// of the `all` cores of the machine, which it shares with other ranks.
fn share(allowed: usize, affine: usize, all: usize, ranks: Option<Named>) -> (usize, Rule) {
    let cores = allowed.min(affine);
    match ranks {
        // A launcher that binds its processes has divided the cores already.
        Some((name, ranks)) if affine >= all => ((cores / ranks).max(1), Rule::Ranks(name, ranks)),
        _ => (cores, Rule::Cores),
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

    fn read(variables: &[(&str, &str)]) -> (Option<Named>, Option<Named>) {
        let value = |name: &str| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        };
        let Environment { threads, ranks } = Environment::new(value);
        (threads, ranks)
    }

    #[test]
    fn one_openmp_thread_beside_torchruns_variable_is_not_a_wish_of_the_user() {
        let ranks = ("LOCAL_WORLD_SIZE", "4");
        let known = Some(("LOCAL_WORLD_SIZE", 4));
        assert_eq!(read(&[ranks, ("OMP_NUM_THREADS", "1")]), (None, known));
        assert_eq!(read(&[ranks, ("OMP_NUM_THREADS", "2")]), (Some(("OMP_NUM_THREADS", 2)), known));
        assert_eq!(
            read(&[ranks, ("OMP_NUM_THREADS", "1"), ("FASTCLIP_NUM_THREADS", "1")]),
            (Some(("FASTCLIP_NUM_THREADS", 1)), known)
        );
        let other = [("MPI_LOCALNRANKS", "4"), ("OMP_NUM_THREADS", "1")];
        assert_eq!(read(&other), (Some(("OMP_NUM_THREADS", 1)), Some(("MPI_LOCALNRANKS", 4))));
    }

    #[test]
    fn ranks_share_the_cores_unless_each_is_bound_to_its_own() {
        let ranks = Some(("LOCAL_WORLD_SIZE", 4));
        let shared = Rule::Ranks("LOCAL_WORLD_SIZE", 4);
        assert_eq!(share(16, 16, 16, ranks), (4, shared));
        assert_eq!(share(6, 16, 16, ranks), (1, shared));
        assert_eq!(share(2, 16, 16, ranks), (1, shared));
        assert_eq!(share(16, 4, 16, ranks), (4, Rule::Cores));
        assert_eq!(share(16, 16, 16, None), (16, Rule::Cores));
        assert_eq!(share(6, 8, 16, None), (6, Rule::Cores));
    }

    #[test]
    fn environment_values_are_parsed_as_openmp_and_rayon_parse_them() {
        assert_eq!(parse("4"), Some(4));
        assert_eq!(parse(" 4,2 "), Some(4));
        assert_eq!(parse("0"), None);
        assert_eq!(parse("many"), None);
    }
}
