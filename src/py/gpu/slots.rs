//! `DeviceSlots`, the Python object that owns the slots of an optimizer whose variables are arrays on a device.
//!
//! It has the methods of `Slots`. A variable is known for as long as its array exists.

use super::array::DeviceArray;
use crate::allocation::{OutOfMemory, reserve};
use crate::gpu::array::{Array, Element};
use crate::gpu::norms::Norms;
use crate::gpu::step::decide;
use crate::operations::gradient_clipping::{Clip, Decision, GradientOptions, Verdict};
use crate::operations::magnitude::Order;
use crate::operations::rules::RuleKind;
use crate::operations::rules::on_devices::DeviceRule;
use crate::py::call::{detached, entry_that_reads};
use crate::py::step::slots::rule_kind;
use crate::py::step::stepping::{StepGuard, Stepping};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A variable and its slots.
#[derive(Clone)]
pub struct Entry {
    variable: Weak<Array>,
    shape: Vec<usize>,
    /// The index of the device.
    index: usize,
    /// Empty before the first update.
    pub slots: Vec<Arc<Array>>,
}

impl Entry {
    /// Returns an entry without slots.
    pub fn new(variable: &DeviceArray) -> Self {
        Self {
            variable: Arc::downgrade(&variable.array),
            shape: variable.shape.clone(),
            index: variable.index,
            slots: Vec::new(),
        }
    }

    /// Returns new slots, whose elements are not set.
    pub fn create_slots(variable: &Array, count: usize) -> PyResult<Vec<Arc<Array>>> {
        let create = || Array::new(&variable.device, Element::F32, variable.len);
        Ok((0..count).map(|_| create()).collect::<Result<_, _>>()?)
    }

    /// Returns an object for an array of the shape of the variable.
    fn wrap(&self, array: &Arc<Array>) -> DeviceArray {
        DeviceArray { id: array.id, array: Arc::clone(array), shape: self.shape.clone(), index: self.index }
    }

    fn wrap_slots<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.slots.iter().map(|slot| self.wrap(slot)))
    }
}

/// The variables, in the order in which the optimizer first met them.
#[derive(Default)]
pub struct Registry {
    pub entries: Vec<Entry>,
    /// The place of each variable by the number of its array.
    pub places: HashMap<u64, usize>,
    /// Number of entries that were dropped because their array was gone.
    lost: u64,
}

impl Registry {
    /// Returns the entry of a variable.
    pub fn entry(&self, id: u64) -> Option<&Entry> {
        self.places.get(&id).map(|place| &self.entries[*place])
    }

    /// Returns the numbers of all slots.
    pub fn slot_ids(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().flat_map(|entry| &entry.slots).map(|slot| slot.id)
    }

    /// Keeps entries for which `keep` is true.
    fn retain(&mut self, mut keep: impl FnMut(u64, &Entry) -> bool) {
        let mut ids = vec![0; self.entries.len()];
        for (id, place) in self.places.drain() {
            ids[place] = id;
        }
        let mut ids = ids.into_iter();
        let places = &mut self.places;
        self.entries.retain(|entry| {
            let id = ids.next().unwrap_or_default();
            let is_kept = keep(id, entry);
            if is_kept {
                places.insert(id, places.len());
            }
            is_kept
        });
    }

    fn drop_lost(&mut self) {
        if self.entries.iter().all(|entry| entry.variable.strong_count() > 0) {
            return;
        }
        let before = self.entries.len();
        self.retain(|_, entry| entry.variable.strong_count() > 0);
        self.lost += (before - self.entries.len()) as u64;
    }

    /// Makes room for a number of new entries.
    pub fn reserve(&mut self, count: usize) -> PyResult<()> {
        reserve(&mut self.entries, count)?;
        let bytes = count.saturating_mul(size_of::<(u64, usize)>());
        self.places.try_reserve(count).map_err(|_| OutOfMemory { bytes })?;
        Ok(())
    }

    /// Adds variables, for which room was made, or replaces their entries.
    pub fn set(&mut self, entries: Vec<(u64, Entry)>) {
        for (id, entry) in entries {
            if let Some(place) = self.places.get(&id) {
                self.entries[*place] = entry;
            } else {
                self.places.insert(id, self.entries.len());
                self.entries.push(entry);
            }
        }
    }
}

/// What the last step was.
pub struct LastStep {
    pub norms: Option<Norms>,
    pub options: GradientOptions,
    pub loss_scale: f64,
    pub is_skipped: bool,
}

/// The variables of an optimizer that are arrays on a device, with their slots.
#[pyclass(frozen, module = "fastclip._core")]
pub struct DeviceSlots {
    kind: RuleKind,
    /// The rule in WGSL.
    pub rule: DeviceRule,
    registry: Mutex<Registry>,
    stepping: Stepping,
    steps: AtomicU64,
    last: Mutex<Option<Arc<LastStep>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns an argument as an array on a device.
fn cast<'a, 'py>(variable: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, DeviceArray>> {
    variable.cast_exact::<DeviceArray>().map_err(|_| {
        PyTypeError::new_err(
            "the variable is in host memory; this optimizer has updated variables on a device, and takes only such",
        )
    })
}

impl DeviceSlots {
    /// The rule that updates the variables.
    pub fn kind(&self) -> RuleKind {
        self.kind
    }

    /// Begins a step. Raises if another step is in progress, which a signal handler may have interrupted.
    pub fn begin_step(&self, py: Python<'_>) -> PyResult<StepGuard<'_>> {
        self.stepping.begin(py)
    }

    /// Returns the variables whose arrays exist.
    pub fn living(&self) -> MutexGuard<'_, Registry> {
        let mut registry = lock(&self.registry);
        registry.drop_lost();
        registry
    }

    /// Keeps what a step has measured, to be read when it is looked at.
    pub fn report_step(&self, last: LastStep) {
        if !last.is_skipped {
            self.steps.fetch_add(1, Ordering::Relaxed);
        }
        *lock(&self.last) = Some(Arc::new(last));
    }
}

#[pymethods]
impl DeviceSlots {
    /// Takes the name of the rule, and that of the optimizer's class for messages.
    #[new]
    fn new(rule: &str, optimizer: &str) -> PyResult<Self> {
        let kind = rule_kind(rule)?;
        let Some(rule) = kind.on_devices() else {
            return Err(PyTypeError::new_err(format!(
                "{optimizer} does not update arrays on a device; GradientDescentOptimizer, MomentumOptimizer, \
                 AdamOptimizer and AdamWOptimizer do"
            )));
        };
        Ok(Self {
            kind,
            rule,
            registry: Mutex::default(),
            stepping: Stepping::default(),
            steps: AtomicU64::new(0),
            last: Mutex::default(),
        })
    }

    /// Returns the list of pairs of a variable and the list of its slots, which is empty before its first update.
    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let entries = self.living().entries.clone();
        let list = PyList::empty(py);
        for entry in &entries {
            if let Some(variable) = entry.variable.upgrade() {
                list.append((entry.wrap(&variable), entry.wrap_slots(py)?))?;
            }
        }
        Ok(list)
    }

    /// Returns the number of variables whose slots were dropped because their array was gone.
    fn lost(&self) -> u64 {
        lock(&self.registry).lost
    }

    /// Drops the slots of a variable. Returns false if there are none.
    fn forget(&self, variable: &Bound<'_, PyAny>) -> PyResult<bool> {
        let forgotten = cast(variable)?.get().id;
        let mut registry = self.living();
        let is_known = registry.places.contains_key(&forgotten);
        registry.retain(|id, _| id != forgotten);
        Ok(is_known)
    }

    /// Returns the number of steps that were taken.
    fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Whether any variable has slots.
    fn has_slots(&self) -> bool {
        self.living().entries.iter().any(|entry| !entry.slots.is_empty())
    }

    /// Raises if a step is in progress. `what` is the name of the method that is refused.
    fn refuse_while_stepping(&self, py: Python<'_>, what: &str) -> PyResult<()> {
        self.stepping.refuse(py, what)
    }

    /// Returns the slots of a variable; None if it has none yet.
    fn get<'py>(
        &self,
        py: Python<'py>,
        variable: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyList>>> {
        let entry = self.living().entry(cast(variable)?.get().id).cloned();
        match entry {
            Some(entry) if entry.slots.len() == self.kind.slots() => entry.wrap_slots(py).map(Some),
            _ => Ok(None),
        }
    }

    /// Registers the variables of a saved state, in its order, with uninitialised slots for those whose flag in
    /// `with_slots` is true. Returns, for each variable, a list of its slots, which the caller must fill.
    #[allow(clippy::needless_pass_by_value, reason = "arguments of Python")]
    fn load<'py>(
        &self,
        py: Python<'py>,
        variables: Vec<Bound<'py, PyAny>>,
        with_slots: Vec<bool>,
    ) -> PyResult<Bound<'py, PyList>> {
        entry_that_reads(py, || {
            let mut entries = Vec::new();
            let mut seen = HashSet::new();
            for (at, (variable, has_slots)) in variables.iter().zip(with_slots).enumerate() {
                let variable = cast(variable)?.get();
                if variable.array.element != Element::F32 || !seen.insert(variable.id) {
                    return Err(PyValueError::new_err(format!(
                        "var_list[{at}] is not float32, or is given twice"
                    )));
                }
                let mut entry = Entry::new(variable);
                if has_slots {
                    entry.slots = Entry::create_slots(&variable.array, self.kind.slots())?;
                }
                entries.push((variable.id, entry));
            }
            let slots = PyList::empty(py);
            for (_, entry) in &entries {
                slots.append(entry.wrap_slots(py)?)?;
            }
            let mut registry = lock(&self.registry);
            registry.reserve(entries.len())?;
            registry.set(entries);
            drop(registry);
            Ok(slots)
        })
    }

    /// Returns the low-precision copies, of which there are none.
    fn copies<'py>(&self, py: Python<'py>) -> Bound<'py, PyList> {
        let _ = self;
        PyList::empty(py)
    }

    /// Refuses a low-precision copy.
    #[pyo3(signature = (variable, copy, write = true))]
    fn set_copy(&self, variable: &Bound<'_, PyAny>, copy: &Bound<'_, PyAny>, write: bool) -> PyResult<()> {
        let _ = (self, variable, copy, write);
        Err(PyTypeError::new_err("variables on a device have no low-precision copies"))
    }

    /// Takes over the report on the last step.
    fn take_copies(&self, other: &Bound<'_, Self>) {
        let last = lock(&other.get().last).clone();
        *lock(&self.last) = last;
    }

    /// Returns the five numbers of a report, see `Report`. They are read from the device.
    fn report(&self, py: Python<'_>) -> PyResult<[f64; 5]> {
        entry_that_reads(py, || {
            let Some(last) = lock(&self.last).clone() else { return Ok([0.0; 5]) };
            let by_value = matches!(last.options.clip, Clip::Value(_));
            let unmeasured = if last.is_skipped || by_value { None } else { Some(1.0) };
            let (norm, scale) = detached(py, || {
                let Some(norms) = &last.norms else { return Ok((None, unmeasured)) };
                let Decision { verdict, total } = decide(norms, &last.options, last.loss_scale)?;
                let scale = match verdict {
                    Verdict::Take { scale, .. } => scale,
                    Verdict::Skip | Verdict::Raise => None,
                };
                Ok((total.map(|total| total.norm_divided(Order::Two, last.loss_scale)), scale))
            })?;
            let flag = |number: Option<f64>| f64::from(u8::from(number.is_some()));
            Ok([flag(norm), norm.unwrap_or(0.0), 0.0, flag(scale), scale.unwrap_or(0.0)])
        })
    }
}
