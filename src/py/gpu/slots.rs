//! `DeviceSlots`, the Python object that owns the slots of an optimizer whose variables are arrays on a device.
//!
//! It has the methods of `Slots`. A variable is known for as long as its array exists.

use super::array::DeviceArray;
use crate::allocation::{OutOfMemory, reserve, with_capacity};
use crate::gpu::array::{Array, Element};
use crate::gpu::device::lock;
use crate::gpu::error::GpuError;
use crate::gpu::norms::Norms;
use crate::gpu::step::decide;
use crate::operations::gradient_clipping::{Clip, Decision, GradientOptions, Verdict};
use crate::operations::magnitude::Order;
use crate::operations::rules::on_devices::DeviceRule;
use crate::operations::rules::{MAX_SLOTS, RuleKind};
use crate::py::call::{detached, entry_that_reads};
use crate::py::step::slots::rule_kind;
use crate::py::step::stepping::{StepGuard, Stepping};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// A variable and its slots.
#[derive(Clone)]
pub struct Entry {
    /// The number of the variable's array.
    pub id: u64,
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
            id: variable.id,
            variable: Arc::downgrade(&variable.array),
            shape: variable.shape.clone(),
            index: variable.index,
            slots: Vec::new(),
        }
    }

    /// Returns new slots, whose elements are not set.
    pub fn create_slots(variable: &Array, count: usize) -> Result<Vec<Arc<Array>>, GpuError> {
        (0..count).map(|_| Array::new(&variable.device, Element::F32, variable.len)).collect()
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
    places: HashMap<u64, usize>,
    /// The numbers of all slots, with the places of their variables.
    slots: HashMap<u64, usize>,
    /// Number of entries that were dropped because their array was gone.
    lost: u64,
}

impl Registry {
    /// Returns the entry of a variable.
    pub fn entry(&self, id: u64) -> Option<&Entry> {
        self.places.get(&id).map(|place| &self.entries[*place])
    }

    /// Returns the entry of the variable that an array is a slot of.
    pub fn entry_of_slot(&self, id: u64) -> Option<&Entry> {
        self.slots.get(&id).map(|place| &self.entries[*place])
    }

    /// Keeps entries for which `keep` is true.
    fn retain(&mut self, keep: impl FnMut(&Entry) -> bool) {
        self.entries.retain(keep);
        self.places.clear();
        self.slots.clear();
        for (place, entry) in self.entries.iter().enumerate() {
            self.places.insert(entry.id, place);
            self.slots.extend(entry.slots.iter().map(|slot| (slot.id, place)));
        }
    }

    fn drop_lost(&mut self) {
        let is_living = |entry: &Entry| entry.variable.strong_count() > 0;
        if !self.entries.iter().all(is_living) {
            let before = self.entries.len();
            self.retain(is_living);
            self.lost += (before - self.entries.len()) as u64;
        }
    }

    /// Makes room for a number of new entries.
    pub fn reserve(&mut self, count: usize) -> Result<(), OutOfMemory> {
        let slots = count.saturating_mul(MAX_SLOTS);
        let failed = |_| OutOfMemory { bytes: slots.saturating_mul(size_of::<(u64, usize)>()) };
        reserve(&mut self.entries, count)?;
        self.places.try_reserve(count).map_err(failed)?;
        self.slots.try_reserve(slots).map_err(failed)
    }

    /// Adds variables, for which room was made, or replaces their entries.
    pub fn set(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            let place = *self.places.entry(entry.id).or_insert(self.entries.len());
            self.slots.extend(entry.slots.iter().map(|slot| (slot.id, place)));
            if place < self.entries.len() {
                self.entries[place] = entry;
            } else {
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

/// Returns an argument as an array on a device.
fn cast<'a, 'py>(variable: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, DeviceArray>> {
    variable
        .cast_exact::<DeviceArray>()
        .map_err(|_| PyTypeError::new_err("the variable is in host memory, where the slots are on a device"))
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
        let is_known = registry.entry(forgotten).is_some();
        registry.retain(|entry| entry.id != forgotten);
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

    /// Registers the variables of a saved state, which are float32 and different, in its order, with uninitialised slots
    /// for those whose flag in `with_slots` is true. Returns, for each variable, a list of its slots, which the caller must fill.
    #[allow(clippy::needless_pass_by_value, reason = "arguments of Python")]
    fn load<'py>(
        &self,
        py: Python<'py>,
        variables: Vec<Bound<'py, PyAny>>,
        with_slots: Vec<bool>,
    ) -> PyResult<Bound<'py, PyList>> {
        entry_that_reads(py, || {
            let mut entries = with_capacity(variables.len())?;
            for (variable, has_slots) in variables.iter().zip(with_slots) {
                let variable = cast(variable)?.get();
                let mut entry = Entry::new(variable);
                if has_slots {
                    entry.slots = Entry::create_slots(&variable.array, self.kind.slots())?;
                }
                entries.push(entry);
            }
            let slots = PyList::empty(py);
            for entry in &entries {
                slots.append(entry.wrap_slots(py)?)?;
            }
            let reserved = lock(&self.registry).reserve(entries.len());
            reserved?;
            lock(&self.registry).set(entries);
            Ok(slots)
        })
    }

    /// Returns the low-precision copies, of which there are none.
    fn copies<'py>(&self, py: Python<'py>) -> Bound<'py, PyList> {
        let _ = self;
        PyList::empty(py)
    }

    /// Takes over the report on the last step of another object.
    fn take_report(&self, other: &Bound<'_, Self>) {
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
