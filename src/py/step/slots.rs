//! The variables that an optimizer has met, and what it keeps for each: its slots and its low-precision copy.
//!
//! Slots stand on memory of our own, laid out as their variable. A caller sees them through arrays that are made anew
//! each time, so that nothing done to such an array changes where a slot is, or frees it.

use crate::allocation::{OutOfMemory, copied, reserve, try_collect, with_capacity};
use crate::engine::exec::Context;
use crate::engine::pool;
use crate::engine::segment::Segment;
use crate::error::Error;
use crate::operations::rules::RuleKind;
use crate::operations::update::{fill, refresh};
use crate::py::arrays::output::{Buffer, Outputs, array_over, dense_strides};
use crate::py::arrays::overlap;
use crate::py::arrays::view::{AcceptedDTypes, ArgumentName, DTypeCache, View, tuple};
use crate::py::objects;
use crate::py::raise::{check_memory, detached, entry, entry_that_reads, exception};
use crate::scalar::DType;
use numpy::npyffi;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::collections::HashMap;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an optimizer keeps.
#[pyclass(frozen, module = "fastclip._core")]
pub struct Slots {
    pub(in crate::py) kind: RuleKind,
    /// Replaced as a whole, and locked only while it is: a process that is forked while another thread is in a step
    /// finds it whole and free.
    state: Mutex<Arc<State>>,
    /// One more than the generation of the process that is taking a step, or 0: a signal's handler may want another,
    /// and a process that is forked in the middle of one is in none.
    stepping: AtomicU64,
    /// How many steps were taken.
    steps: AtomicU64,
}

/// The variables met, and their low-precision copies.
#[derive(Default)]
pub(in crate::py) struct State {
    pub(in crate::py) entries: Vec<Entry>,
    known: HashMap<Arc<Key>, usize>,
    /// The low-precision copies of variables, which may be set before the variables are met.
    copies: HashMap<Arc<Key>, Copy>,
}

/// A variable, and what is kept for it.
pub(in crate::py) struct Entry {
    key: Arc<Key>,
    /// NumPy's number of the variable's type.
    number: c_int,
    /// An array over the variable's memory: it keeps it alive, and the address from being given away.
    array: Py<PyAny>,
    /// Its slots, none before its first gradient.
    pub(in crate::py) slots: Arc<[Slot]>,
}

/// A variable's array and that of its low-precision copy.
struct Copy {
    variable: Py<PyAny>,
    copy: Py<PyAny>,
}

impl Copy {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        Self { variable: self.variable.clone_ref(py), copy: self.copy.clone_ref(py) }
    }
}

/// Memory of our own.
pub(in crate::py) struct Slot {
    /// It keeps the memory alive.
    buffer: Py<Buffer>,
    /// Atomic for the sake of `Send` and `Sync` alone: it never changes.
    pointer: AtomicPtr<u8>,
    /// Bytes per step of each axis of the variable.
    pub(in crate::py) strides: Box<[isize]>,
}

impl Slot {
    /// Its first element.
    pub(in crate::py) fn pointer(&self) -> *mut u8 {
        self.pointer.load(Ordering::Relaxed)
    }
}

/// What makes a variable the one that was seen before: its memory, and how it lies.
#[derive(PartialEq, Eq, Hash)]
pub(in crate::py) struct Key {
    address: usize,
    dtype: DType,
    shape: Box<[usize]>,
    strides: Box<[isize]>,
}

impl Key {
    pub(in crate::py) fn of(view: &View) -> Result<Self, Error> {
        let mut kept = with_capacity(view.shape().len())?;
        kept.extend(strides(view));
        let strides = kept.into_boxed_slice();
        Ok(Self {
            address: view.pointer.expose_provenance(),
            dtype: view.dtype,
            shape: copied(view.shape())?,
            strides,
        })
    }

    fn fits(&self, view: &View) -> bool {
        self.address == view.pointer.addr()
            && self.dtype == view.dtype
            && *self.shape == *view.shape()
            && self.strides.iter().copied().eq(strides(view))
    }
}

/// Strides, but for axes that make no step.
fn strides(view: &View) -> impl ExactSizeIterator<Item = isize> {
    let lens = view.shape().iter();
    lens.zip(view.strides()).map(|(len, stride)| if *len > 1 { *stride } else { 0 })
}

impl Entry {
    /// A variable that was not met before, with these slots.
    pub(in crate::py) fn new(variable: &View, slots: Vec<Slot>) -> PyResult<Self> {
        let (_, number) = variable.number();
        let array = variable.array()?.unbind();
        Ok(Self { key: Arc::new(Key::of(variable)?), number, array, slots: slots.into() })
    }

    fn clone_ref(&self, py: Python<'_>) -> Self {
        let (key, slots) = (Arc::clone(&self.key), Arc::clone(&self.slots));
        Self { key, number: self.number, array: self.array.clone_ref(py), slots }
    }

    /// The variable's memory, as it was when it was met.
    fn variable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let pointer = std::ptr::with_exposed_provenance_mut(self.key.address);
        let strides = &self.key.strides;
        self.over(self.array.bind(py).clone(), pointer, strides)
    }

    /// An array over a slot: the caller may do with it what it likes.
    fn slot<'py>(&self, py: Python<'py>, slot: &Slot) -> PyResult<Bound<'py, PyAny>> {
        self.over(slot.buffer.bind(py).clone().into_any(), slot.pointer(), &slot.strides)
    }

    fn over<'py>(
        &self,
        owner: Bound<'py, PyAny>,
        pointer: *mut u8,
        strides: &[isize],
    ) -> PyResult<Bound<'py, PyAny>> {
        let (shape, flags) = (&self.key.shape, npyffi::NPY_ARRAY_WRITEABLE);
        // SAFETY: memory of this type and shape at these strides, which the owner keeps alive.
        unsafe { array_over(owner, pointer, self.number, shape, Some(strides), flags) }
    }

    fn slots_as_list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        objects::list(py, self.slots.len(), self.slots.iter().map(|slot| self.slot(py, slot)))
    }

    /// A slot, for the check whether arrays overlap.
    pub(in crate::py) fn view_of_slot<'py>(&self, py: Python<'py>, slot: &Slot) -> Result<View<'py>, Error> {
        let owner = slot.buffer.bind(py).clone().into_any();
        let number = (self.key.dtype, self.number);
        // SAFETY: memory of the variable's type and shape at these strides, which the buffer keeps alive.
        Ok(unsafe { View::over(owner, slot.pointer(), number, &self.key.shape, &slot.strides)? })
    }
}

impl State {
    /// The entry of a variable, if it was seen before. It is mostly where it was the last time.
    pub(in crate::py) fn position(&self, view: &View, hint: usize) -> Result<Option<usize>, Error> {
        if self.entries.get(hint).is_some_and(|entry| entry.key.fits(view)) {
            return Ok(Some(hint));
        }
        Ok(if self.known.is_empty() { None } else { self.known.get(&Key::of(view)?).copied() })
    }

    /// The same variables once more, with room for so many others.
    pub(in crate::py) fn copy(&self, py: Python<'_>, additional: usize) -> Result<Self, Error> {
        let mut copy = Self::default();
        let count = self.entries.len().saturating_add(additional);
        copy.entries = with_capacity(count)?;
        let bytes = count.saturating_mul(size_of::<(Arc<Key>, usize)>());
        let out_of_memory = |_| OutOfMemory { bytes };
        copy.known.try_reserve(count).map_err(out_of_memory)?;
        copy.reserve_copies(self.copies.len())?;
        copy.entries.extend(self.entries.iter().map(|entry| entry.clone_ref(py)));
        copy.known.extend(self.known.iter().map(|(key, at)| (Arc::clone(key), *at)));
        for (key, found) in &self.copies {
            copy.copies.insert(Arc::clone(key), found.clone_ref(py));
        }
        Ok(copy)
    }

    /// Makes room for so many more low-precision copies.
    fn reserve_copies(&mut self, additional: usize) -> Result<(), Error> {
        let bytes = additional.saturating_mul(size_of::<(Arc<Key>, Copy)>());
        Ok(self.copies.try_reserve(additional).map_err(|_| OutOfMemory { bytes })?)
    }

    /// Remembers a variable. There must be room for it, see [`State::copy`].
    pub(in crate::py) fn add(&mut self, entry: Entry) {
        self.known.insert(Arc::clone(&entry.key), self.entries.len());
        self.entries.push(entry);
    }

    /// The low-precision copy of a variable, if it has one.
    pub(in crate::py) fn low_precision_copy<'py>(
        &self,
        py: Python<'py>,
        view: &View,
    ) -> Result<Option<Bound<'py, PyAny>>, Error> {
        if self.copies.is_empty() {
            return Ok(None);
        }
        Ok(self.copies.get(&Key::of(view)?).map(|found| found.copy.bind(py).clone()))
    }
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, Arc<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept now.
    pub(in crate::py) fn state(&self) -> Arc<State> {
        Arc::clone(&self.lock())
    }

    /// Changes what is kept: in place if nobody is looking at it, else in a copy. What `change` takes out is returned, so
    /// that it is dropped when the lock is free: dropping an array may run foreign code.
    fn change<R>(&self, py: Python<'_>, change: impl FnOnce(&mut State) -> Result<R, Error>) -> PyResult<R> {
        let mut kept = self.lock();
        if let Some(state) = Arc::get_mut(&mut kept) {
            return Ok(change(state)?);
        }
        let mut copy = kept.copy(py, 0)?;
        let result = change(&mut copy)?;
        let before = std::mem::replace(&mut *kept, Arc::new(copy));
        drop(kept);
        drop(before);
        Ok(result)
    }

    /// Keeps something else from now on. Cannot fail.
    pub(in crate::py) fn replace(&self, state: Arc<State>) {
        // What was kept is dropped when the lock is free again.
        let _before = std::mem::replace(&mut *self.lock(), state);
    }

    /// Slots for variables, uninitialised: as many for each as the rule has.
    pub(in crate::py) fn allocate<'py>(
        py: Python<'py>,
        kind: RuleKind,
        variables: &[&View<'py>],
    ) -> PyResult<Vec<Vec<Slot>>> {
        let count = kind.slots();
        let each = variables.iter().flat_map(|view| std::iter::repeat_n(*view, count));
        let mut outputs = Outputs::new(py, each);
        let mut slot = |view: &View<'py>| {
            let (pointer, buffer) = outputs.memory(view.size * view.dtype.size())?;
            let strides = dense_strides(view)?.into_boxed_slice();
            Ok::<_, PyErr>(Slot { buffer: buffer.unbind(), pointer: AtomicPtr::new(pointer), strides })
        };
        let each = variables.iter().map(|view| try_collect(count, (0..count).map(|_| slot(view))));
        try_collect(variables.len(), each)
    }

    /// Gives new slots their first values: those of the rule's slots, in their order.
    pub(in crate::py) fn initialise<'a>(
        context: Context,
        fresh: impl Iterator<Item = (DType, usize, &'a [Slot])>,
        initial: &[f64],
    ) -> Result<(), Error> {
        let (mut segments, mut values) = (Vec::new(), Vec::new());
        for (dtype, len, slots) in fresh {
            reserve(&mut segments, slots.len())?;
            reserve(&mut values, slots.len())?;
            for (slot, value) in slots.iter().zip(initial) {
                // SAFETY: memory of our own, as long as the variable, without holes and aligned.
                segments.push(unsafe { Segment::dense(dtype, len, [slot.pointer()]) });
                values.push(*value);
            }
        }
        // SAFETY: the slots are new: nobody else has them.
        unsafe { fill(context, &segments, &values)? };
        Ok(())
    }

    /// Counts a step that was taken.
    pub(in crate::py) fn count_step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a step is being taken in this process.
    fn is_stepping(&self) -> bool {
        self.stepping.load(Ordering::Relaxed) == pool::generation() + 1
    }
}

/// That a step is being taken, for as long as this is there.
pub(in crate::py) struct Stepping<'a>(&'a Slots);

impl<'a> Stepping<'a> {
    /// Refuses a step in the middle of another, which the handler of a signal may ask for.
    pub(in crate::py) fn begin(py: Python<'_>, slots: &'a Slots) -> PyResult<Self> {
        let now = pool::generation() + 1;
        if slots.stepping.swap(now, Ordering::Relaxed) == now {
            return Err(in_the_middle(py, "apply_gradients"));
        }
        Ok(Self(slots))
    }
}

impl Drop for Stepping<'_> {
    fn drop(&mut self) {
        self.0.stepping.store(0, Ordering::Relaxed);
    }
}

/// The variable of a method that takes one, looked at.
fn variable<'py>(array: &Bound<'py, PyAny>) -> PyResult<View<'py>> {
    let view = View::new(array.clone(), AcceptedDTypes::Variables, &mut DTypeCache::default(), || {
        "variable".into()
    })?;
    check_variable(&view, || "variable".into())?;
    Ok(view)
}

/// Refuses what cannot be updated.
pub(in crate::py) fn check_variable(view: &View, name: impl Fn() -> String) -> Result<(), Error> {
    if !view.is_writable() {
        return Err(Error::Value(format!(
            "{} ({}) is read-only: a variable is updated in place",
            name(),
            view.describe()
        )));
    }
    Ok(())
}

/// Refuses what cannot be a variable's low-precision copy.
pub(in crate::py) fn check_copy(
    copy: &View,
    variable: &View,
    name: impl Fn() -> String,
) -> Result<(), Error> {
    if copy.dtype.size() >= variable.dtype.size() {
        return Err(Error::Type(format!(
            "{} is {}; it takes a float type narrower than the variable's {}",
            name(),
            copy.describe(),
            variable.dtype.name()
        )));
    }
    if copy.shape() != variable.shape() || !copy.is_writable() {
        return Err(Error::Value(format!(
            "{} is {}{}; it takes a writable array of the variable's shape {}",
            name(),
            copy.describe(),
            if copy.is_writable() { "" } else { ", read-only" },
            tuple(variable.shape())
        )));
    }
    Ok(())
}

#[pymethods]
impl Slots {
    /// What an optimizer with this rule keeps: nothing yet.
    #[new]
    fn new(rule: &str) -> PyResult<Self> {
        let kind =
            RuleKind::from_name(rule).ok_or_else(|| Error::Value(format!("there is no rule {rule:?}")))?;
        Ok(Self { kind, state: Mutex::default(), stepping: AtomicU64::new(0), steps: AtomicU64::new(0) })
    }

    /// Every variable met, with its slots: none if it never had a gradient.
    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        entry_that_reads(py, || {
            let state = self.state();
            let pair = |entry: &Entry| {
                let parts = [entry.variable(py)?, entry.slots_as_list(py)?.into_any()];
                Ok(objects::tuple(py, parts)?.into_any())
            };
            objects::list(py, state.entries.len(), state.entries.iter().map(pair))
        })
    }

    /// How many steps were taken: whoever copies slots looks whether one came in between.
    fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Whether a variable has slots.
    fn has_slots(&self) -> bool {
        self.state().entries.iter().any(|entry| !entry.slots.is_empty())
    }

    /// Refuses what the handler of a signal may not do in the middle of a step.
    fn refuse_while_stepping(&self, py: Python<'_>, what: &str) -> PyResult<()> {
        if self.is_stepping() { Err(in_the_middle(py, what)) } else { Ok(()) }
    }

    /// The slots of a variable, as arrays over their memory; None if it has none yet.
    fn of<'py>(&self, py: Python<'py>, array: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyList>>> {
        entry_that_reads(py, || {
            let (view, state) = (variable(array)?, self.state());
            match state.position(&view, 0)?.map(|index| &state.entries[index]) {
                Some(entry) if entry.slots.len() == self.kind.slots() => entry.slots_as_list(py).map(Some),
                _ => Ok(None),
            }
        })
    }

    /// Meets variables in the order given, as those of a state that is loaded: each is an entry of its own, with slots
    /// where its flag says so. Returns the slots of each, to be filled. Nothing must have been met before.
    fn load<'py>(
        &self,
        py: Python<'py>,
        arrays: &Bound<'py, PyAny>,
        with_slots: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyList>> {
        entry(py, || {
            let arrays = objects::extract(arrays, variable)?;
            let with_slots = objects::extract(with_slots, |flag| flag.extract::<bool>())?;
            let before = self.state();
            if arrays.len() != with_slots.len() || !before.entries.is_empty() {
                return Err(Error::Value("fastclip._core: a state is loaded once, and whole".into()).into());
            }
            let mut state = before.copy(py, arrays.len())?;
            for (view, has_slots) in arrays.iter().zip(with_slots) {
                let slots = if has_slots {
                    Self::allocate(py, self.kind, &[view])?.pop().unwrap_or_default()
                } else {
                    Vec::new()
                };
                state.add(Entry::new(view, slots)?);
                check_memory(py)?;
            }
            let lists = state.entries.iter().map(|entry| Ok(entry.slots_as_list(py)?.into_any()));
            let lists = objects::list(py, state.entries.len(), lists)?;
            let state = Arc::new(state);
            check_memory(py)?;
            self.replace(state);
            Ok(lists)
        })
    }

    /// The variables that have a low-precision copy, with it.
    fn copies<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        entry_that_reads(py, || {
            let state = self.state();
            let pair = |found: &Copy| {
                let parts = [found.variable.bind(py).clone(), found.copy.bind(py).clone()];
                Ok(objects::tuple(py, parts)?.into_any())
            };
            objects::list(py, state.copies.len(), state.copies.values().map(pair))
        })
    }

    /// Writes the low-precision copy of a variable anew, if it has one.
    fn refresh_copy(&self, py: Python<'_>, array: &Bound<'_, PyAny>) -> PyResult<()> {
        entry(py, || {
            let view = variable(array)?;
            match self.state().low_precision_copy(py, &view)? {
                Some(copy) => write_copy(py, &view, &copy_view(copy, &view)?),
                None => Ok(()),
            }
        })
    }

    /// Sets the low-precision copy of a variable and writes it, or takes it away.
    fn set_copy<'py>(
        &self,
        py: Python<'py>,
        array: &Bound<'py, PyAny>,
        copy: Option<Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        entry(py, || {
            let view = variable(array)?;
            let key = Arc::new(Key::of(&view)?);
            // All that may run foreign code, which may change what is kept, comes before what is kept is looked at.
            let copy = copy.map(|copy| copy_view(copy, &view)).transpose()?;
            let kept = match &copy {
                Some(copy) => {
                    let variable = view.array()?.unbind();
                    Some(Copy { variable, copy: copy.owner().clone().unbind() })
                }
                None => None,
            };
            self.change(py, |state| state.reserve_copies(1))?;
            check_memory(py)?;
            if let Some(copy) = &copy {
                write_copy(py, &view, copy)?;
            }
            let before = self.change(py, |state| {
                state.reserve_copies(1)?;
                Ok(match kept {
                    Some(kept) => state.copies.insert(key, kept),
                    None => state.copies.remove(&key),
                })
            })?;
            drop(before);
            Ok(())
        })
    }

    /// AcceptedDTypes over the low-precision copies that another optimizer keeps. They are not written.
    fn take_copies(&self, py: Python<'_>, other: &Bound<'_, Slots>) -> PyResult<()> {
        entry(py, || {
            let from = other.get().state();
            self.change(py, |state| {
                state.reserve_copies(from.copies.len())?;
                for (key, found) in &from.copies {
                    state.copies.insert(Arc::clone(key), found.clone_ref(py));
                }
                Ok(())
            })
        })
    }
}

/// Writes a low-precision copy anew.
fn write_copy(py: Python<'_>, view: &View, copy: &View) -> PyResult<()> {
    let operands = [Some(view.strided()), Some(copy.strided())];
    let sizes = [view.dtype.size(), copy.dtype.size()];
    // SAFETY: arrays of one shape, alive; the copy is writable and apart from the variable.
    let segment = unsafe { Segment::mixed(view.dtype, view.shape(), operands, sizes)? };
    let to = copy.dtype.scalar;
    check_memory(py)?;
    detached(py, || {
        // SAFETY: as above.
        unsafe { refresh(Context::current(), &segment, to)? };
        Ok(())
    })
}

/// The error of a call that a step does not allow while it goes on.
pub(in crate::py) fn in_the_middle(py: Python<'_>, what: &str) -> PyErr {
    exception::<PyRuntimeError>(
        py,
        &format!("{what} was called in the middle of a step of the same optimizer"),
    )
}

/// A low-precision copy, looked at and checked by itself.
fn copy_view<'py>(copy: Bound<'py, PyAny>, variable: &View<'py>) -> PyResult<View<'py>> {
    let py = copy.py();
    let copy = View::new(copy, AcceptedDTypes::Reals, &mut DTypeCache::default(), || "copy".into())?;
    check_copy(&copy, variable, || "copy".into())?;
    let (inputs, mut outputs) = ([Some(variable.try_clone()?)], [Some(copy)]);
    overlap::check(
        py,
        &inputs,
        &outputs,
        false,
        ArgumentName::Single("variable"),
        ArgumentName::Single("copy"),
    )?;
    outputs[0].take().ok_or_else(|| Error::Type("copy is None; it takes an array".into()).into())
}
