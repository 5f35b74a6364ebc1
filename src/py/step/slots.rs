//! `Slots`, the Python object that owns the variables, slots and low-precision copies of an optimizer; and `CallerSlots`,
//! for optimizers whose caller owns the slots.

use super::checks::check_variable;
use super::registry::{Entry, Registry, copy_view};
use super::stepping::{StepGuard, Stepping};
use crate::allocation::with_capacity;
use crate::engine::segment::Segment;
use crate::engine::workspace::Context;
use crate::error::Error;
use crate::operations::rules::RuleKind;
use crate::operations::update::refresh;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::{AcceptedDTypes, bfloat16_type_number, type_number};
use crate::py::arrays::view::View;
use crate::py::call::{detached, entry, entry_that_reads};
use crate::py::objects;
use crate::py::raise::check_memory;
use crate::py::tensors::door::open_written;
use crate::py::tensors::opened::Written;
use crate::scalar::{DType, Scalar};
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The variables of an optimizer, with their slots and low-precision copies.
#[pyclass(frozen, module = "fastclip._core")]
pub struct Slots {
    kind: RuleKind,
    /// The initial value of each slot.
    initial: Vec<f64>,
    /// The current registry. A step replaces it by another one, and locks it only for that moment: a process that is
    /// forked while another thread is in a step finds it complete and unlocked.
    registry: Mutex<Arc<Registry>>,
    /// Whether a step is being taken.
    stepping: Stepping,
    /// The number of steps that were taken.
    steps: AtomicU64,
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, Arc<Registry>> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rule that updates the variables.
    pub fn kind(&self) -> RuleKind {
        self.kind
    }

    /// The initial value of each slot.
    pub fn initial(&self) -> &[f64] {
        &self.initial
    }

    /// Returns the current registry.
    pub fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.lock())
    }

    /// Changes the registry: in place if there is no other reference to it, else in a copy. `change` must return the
    /// arrays that it removes, so that they are dropped after the lock is released: dropping an array may run foreign
    /// code.
    fn change<R>(
        &self,
        py: Python<'_>,
        change: impl FnOnce(&mut Registry) -> Result<R, Error>,
    ) -> PyResult<R> {
        let mut current = self.lock();
        if let Some(registry) = Arc::get_mut(&mut current) {
            return Ok(change(registry)?);
        }
        let mut copy = current.copy(py, 0)?;
        let result = change(&mut copy)?;
        let previous = std::mem::replace(&mut *current, Arc::new(copy));
        drop(current);
        drop(previous);
        Ok(result)
    }

    /// Replaces the registry. Cannot fail.
    pub fn replace(&self, registry: Arc<Registry>) {
        // The previous registry is dropped after the lock is released.
        let _previous = std::mem::replace(&mut *self.lock(), registry);
    }

    /// Drops the variables whose memory is gone from a registry of this object, and from the current one.
    pub fn drop_lost(&self, py: Python<'_>, registry: &mut Arc<Registry>) -> PyResult<()> {
        if let Some(rest) = registry.without_lost(py)? {
            let rest = Arc::new(rest);
            check_memory(py)?;
            let mut current = self.lock();
            let is_current = Arc::ptr_eq(&current, registry);
            let previous = is_current.then(|| std::mem::replace(&mut *current, Arc::clone(&rest)));
            drop(current);
            // The lost slots are freed here, and not under the lock: that may run foreign code.
            drop(previous);
            *registry = rest;
        }
        Ok(())
    }

    /// Returns the current registry, without the variables whose memory is gone.
    fn living(&self, py: Python<'_>) -> PyResult<Arc<Registry>> {
        let mut registry = self.registry();
        self.drop_lost(py, &mut registry)?;
        Ok(registry)
    }

    /// Counts a step that was taken.
    pub fn count_step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins a step. Raises if another step is in progress, which a signal handler may have interrupted.
    pub fn begin_step(&self, py: Python<'_>) -> PyResult<StepGuard<'_>> {
        self.stepping.begin(py)
    }
}

/// Reads a variable, and checks that it can be updated.
fn read_variable<'py>(array: &Bound<'py, PyAny>, written: &mut Written<'py>) -> PyResult<View<'py>> {
    let name = ArgumentName::Single("variable");
    let view = open_written(array, AcceptedDTypes::Variables, name, written)?;
    check_variable(&view, || "variable".into())?;
    Ok(view)
}

#[pymethods]
impl Slots {
    /// Takes the name of the rule; the initial value of each of its slots; a function that finds the owners of memory, see
    /// [`Owner::of`](super::owner::Owner::of); and whether the slots are bfloat16, in place of the dtype of their variable.
    ///
    /// Arrays over slots of bfloat16 have the dtype of `ml_dtypes` or, if that is not installed, uint16.
    #[new]
    #[pyo3(signature = (rule, initial, memory_owner = None, are_bfloat16 = false))]
    fn new(
        py: Python<'_>,
        rule: &str,
        initial: &Bound<'_, PyAny>,
        memory_owner: Option<Py<PyAny>>,
        are_bfloat16: bool,
    ) -> PyResult<Self> {
        entry_that_reads(py, || {
            let (kind, initial) = (rule_kind(rule)?, objects::extract(initial, objects::to_f64)?);
            if initial.len() != kind.slots() {
                return Err(Error::Value(format!("this rule takes {} slots", kind.slots())).into());
            }
            let (stepping, steps) = (Stepping::default(), AtomicU64::new(0));
            let slot_dtype = if are_bfloat16 {
                let dtype = DType { scalar: Scalar::BF16, complex: false };
                let bits = type_number(DType { scalar: Scalar::U16, complex: false });
                Some((dtype, bfloat16_type_number(py)?.unwrap_or(bits)))
            } else {
                None
            };
            let registry = Mutex::new(Arc::new(Registry::new(memory_owner, slot_dtype)));
            Ok(Self { kind, initial, registry, stepping, steps })
        })
    }

    /// Returns the list of pairs of a variable and the list of its slots, which is empty before its first update. The
    /// variables are those whose memory exists.
    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        entry_that_reads(py, || {
            let registry = self.living(py)?;
            let mut living = with_capacity(registry.entries.len())?;
            for entry in &registry.entries {
                // Creating an array may run the garbage collector, which may delete variables.
                living.extend(entry.variable().array(py)?.map(|variable| (variable, entry)));
            }
            let pair = |(variable, entry): &(Bound<'py, PyAny>, &Entry)| {
                let items = [variable.clone(), entry.slots_as_list(py)?.into_any()];
                Ok(objects::tuple(py, items)?.into_any())
            };
            objects::list(py, living.len(), living.iter().map(pair))
        })
    }

    /// Returns the number of variables whose slots were dropped because their memory was gone.
    fn lost(&self) -> u64 {
        self.registry().lost
    }

    /// Drops the slots and the low-precision copy of a variable. Returns false if there are none.
    fn forget(&self, py: Python<'_>, array: &Bound<'_, PyAny>) -> PyResult<bool> {
        entry(py, || {
            let view = read_variable(array, &mut Written::default())?;
            let Some(rest) = self.registry().without(py, &view)? else { return Ok(false) };
            let rest = Arc::new(rest);
            check_memory(py)?;
            self.replace(rest);
            Ok(true)
        })
    }

    /// Returns the number of steps that were taken. Code that copies slots compares it before and after, because a
    /// signal handler may have taken a step meanwhile.
    fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Whether any variable has slots.
    fn has_slots(&self, py: Python<'_>) -> PyResult<bool> {
        entry_that_reads(py, || Ok(self.living(py)?.entries.iter().any(|entry| !entry.slots.is_empty())))
    }

    /// Raises if a step is in progress, which a signal handler may have interrupted. `what` is the name of the method
    /// that is refused.
    fn refuse_while_stepping(&self, py: Python<'_>, what: &str) -> PyResult<()> {
        self.stepping.refuse(py, what)
    }

    /// Returns arrays over the memory of a variable's slots; None if it has none yet.
    fn get<'py>(&self, py: Python<'py>, array: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyList>>> {
        entry_that_reads(py, || {
            let (view, registry) = (read_variable(array, &mut Written::default())?, self.registry());
            match registry.entry(py, &view)? {
                Some(entry) if entry.slots.len() == self.kind.slots() => entry.slots_as_list(py).map(Some),
                _ => Ok(None),
            }
        })
    }

    /// Registers the variables of a saved state, in its order, with uninitialised slots for those whose flag in
    /// `with_slots` is true. Returns, for each variable, a list of arrays over its slots, which the caller must fill.
    /// The registry must be empty.
    fn load<'py>(
        &self,
        py: Python<'py>,
        arrays: &Bound<'py, PyAny>,
        with_slots: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyList>> {
        entry(py, || {
            let arrays = objects::extract(arrays, |array| read_variable(array, &mut Written::default()))?;
            let with_slots = objects::extract(with_slots, |flag| flag.extract::<bool>())?;
            let previous = self.registry();
            if arrays.len() != with_slots.len() || !previous.entries.is_empty() {
                return Err(Error::Value("fastclip._core: a state is loaded once, and whole".into()).into());
            }
            let mut registry = previous.copy(py, arrays.len())?;
            for (view, has_slots) in arrays.iter().zip(with_slots) {
                let slots = if has_slots {
                    previous.allocate_slots(py, self.kind, &[view])?.pop().unwrap_or_default()
                } else {
                    Vec::new()
                };
                registry.add_variable(previous.variable(view)?, slots);
                check_memory(py)?;
            }
            let lists = registry.entries.iter().map(|entry| Ok(entry.slots_as_list(py)?.into_any()));
            let lists = objects::list(py, registry.entries.len(), lists)?;
            let registry = Arc::new(registry);
            check_memory(py)?;
            self.replace(registry);
            Ok(lists)
        })
    }

    /// Returns the list of pairs of a variable and its low-precision copy.
    fn copies<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        entry_that_reads(py, || {
            let registry = self.living(py)?;
            let mut living = with_capacity(registry.copies().len())?;
            for (variable, copy) in registry.copies() {
                living.extend(variable.array(py)?.map(|variable| (variable, copy.bind(py))));
            }
            let pair = |(variable, copy): &(Bound<'py, PyAny>, &Bound<'py, PyAny>)| {
                Ok(objects::tuple(py, [variable.clone(), (*copy).clone()])?.into_any())
            };
            objects::list(py, living.len(), living.iter().map(pair))
        })
    }

    /// Writes the variable to its low-precision copy, if it has one.
    fn refresh_copy(&self, py: Python<'_>, array: &Bound<'_, PyAny>) -> PyResult<()> {
        entry(py, || {
            let (mut read, mut written) = (Written::default(), Written::default());
            let view = read_variable(array, &mut read)?;
            let Some(copy) = self.registry().low_precision_copy(py, &view)? else { return Ok(()) };
            let copy = copy_view(&copy, &view, &mut written)?;
            read.lent.check(py)?;
            write_copy(py, &view, &copy)?;
            written.count_change()
        })
    }

    /// Sets the low-precision copy of a variable and, with `write`, writes it; None removes it.
    #[pyo3(signature = (array, copy, write = true))]
    fn set_copy<'py>(
        &self,
        py: Python<'py>,
        array: &Bound<'py, PyAny>,
        copy: Option<Bound<'py, PyAny>>,
        write: bool,
    ) -> PyResult<()> {
        entry(py, || {
            let (mut read, mut written) = (Written::default(), Written::default());
            let view = read_variable(array, &mut read)?;
            // Reading the copy may run foreign code, which may change the registry. Therefore it is read first.
            let copy = copy.map(|copy| copy_view(&copy, &view, &mut written)).transpose()?;
            let pair = match &copy {
                Some(copy) => Some((self.registry().variable(&view)?, copy.owner().clone().unbind())),
                None => None,
            };
            self.change(py, |registry| registry.reserve_copies(1))?;
            check_memory(py)?;
            read.lent.check(py)?;
            written.lent.check(py)?;
            if let Some(copy) = copy.as_ref().filter(|_| write) {
                write_copy(py, &view, copy)?;
            }
            let previous = self.change(py, |registry| {
                registry.reserve_copies(1)?;
                match pair {
                    Some((variable, copy)) => Ok(registry.set_copy(variable, copy)),
                    None => registry.remove_copy(&view),
                }
            })?;
            drop(previous);
            if write { written.count_change() } else { Ok(()) }
        })
    }

    /// Adds the low-precision copies that are registered in another object, without writing them.
    fn take_copies(&self, py: Python<'_>, other: &Bound<'_, Slots>) -> PyResult<()> {
        entry(py, || {
            let other = other.get().registry();
            self.change(py, |registry| {
                registry.reserve_copies(other.copies().len())?;
                registry.take_copies(py, &other);
                Ok(())
            })
        })
    }
}

/// Writes a variable to its low-precision copy.
fn write_copy(py: Python<'_>, view: &View, copy: &View) -> PyResult<()> {
    let operands = [Some(view.operand()), Some(copy.operand().written())];
    // SAFETY: arrays of one shape, kept alive by the views; the copy is writable and does not overlap the variable.
    let mut segment = unsafe { Segment::new(false, view.shape(), operands)? };
    check_memory(py)?;
    detached(py, || Ok(refresh(Context::current(), &mut segment)?))
}

/// The rule of an optimizer whose caller owns the slots, and passes them to every step.
#[pyclass(frozen, module = "fastclip._core")]
pub struct CallerSlots {
    kind: RuleKind,
}

#[pymethods]
impl CallerSlots {
    /// Takes the name of the rule.
    #[new]
    fn new(py: Python<'_>, rule: &str) -> PyResult<Self> {
        entry_that_reads(py, || Ok(Self { kind: rule_kind(rule)? }))
    }
}

impl CallerSlots {
    /// The rule that updates the variables.
    pub fn kind(&self) -> RuleKind {
        self.kind
    }
}

/// Returns the rule of this name.
pub fn rule_kind(name: &str) -> Result<RuleKind, Error> {
    RuleKind::from_name(name).ok_or_else(|| Error::Value(format!("there is no rule {name:?}")))
}
