//! The variables that an optimizer has met, and what it keeps for each: its slots and its low-precision copy.
//!
//! Slots are arrays of our own, laid out as their variable. They cross once: from then on their addresses are known.

use super::output::Outputs;
use super::overlap;
use super::raise::detached;
use super::view::{Known, Label, Takes, View};
use crate::error::Error;
use crate::exec::Context;
use crate::rules::Kind;
use crate::scalar::DType;
use crate::segment::Segment;
use crate::update::{fill, refresh};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// What an optimizer keeps.
#[pyclass(module = "fastclip._core")]
pub struct Slots {
    pub(super) kind: Kind,
    pub(super) entries: Vec<Entry>,
    known: HashMap<Key, usize>,
    /// The low-precision copies of variables, which may be set before the variables are met.
    copies: HashMap<Key, Copy>,
    /// Whether a step is being taken: a signal's handler may want another.
    pub(super) stepping: Arc<AtomicBool>,
}

/// A variable, and what is kept for it.
pub(super) struct Entry {
    key: Key,
    /// An array over this memory: it keeps it alive, and the address from being given away.
    array: Py<PyAny>,
    /// Its slots, none before its first gradient.
    pub(super) slots: Vec<Slot>,
}

/// A variable's array and that of its low-precision copy.
struct Copy {
    variable: Py<PyAny>,
    copy: Py<PyAny>,
}

/// A variable's array, and arrays over the memory of its slots.
type Kept<'py> = (Bound<'py, PyAny>, Vec<Bound<'py, PyAny>>);

/// An array of our own.
pub(super) struct Slot {
    /// It keeps the memory alive. Where that is and how it lies is not asked of it again: a caller can reach it as
    /// the base of what `get_slot` gives, and change its shape.
    pub(super) array: Py<PyAny>,
    /// Atomic for the sake of `Send` and `Sync` alone: it never changes.
    pointer: AtomicPtr<u8>,
    /// Bytes per step of each axis of the variable.
    pub(super) strides: Box<[isize]>,
}

impl Slot {
    /// Its first element.
    pub(super) fn pointer(&self) -> *mut u8 {
        self.pointer.load(Ordering::Relaxed)
    }
}

/// What makes a variable the one that was seen before: its memory, and how it lies.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    address: usize,
    dtype: DType,
    shape: Box<[usize]>,
    strides: Box<[isize]>,
}

impl Key {
    pub(super) fn of(view: &View) -> Self {
        Self {
            address: view.pointer.addr(),
            dtype: view.dtype,
            shape: view.shape().into(),
            strides: strides(view).collect(),
        }
    }

    fn fits(&self, view: &View) -> bool {
        self.address == view.pointer.addr()
            && self.dtype == view.dtype
            && *self.shape == *view.shape()
            && self.strides.iter().copied().eq(strides(view))
    }
}

/// Strides, but for axes that make no step.
fn strides(view: &View) -> impl Iterator<Item = isize> {
    let lens = view.shape().iter();
    lens.zip(view.strides()).map(|(len, stride)| if *len > 1 { *stride } else { 0 })
}

impl Slots {
    /// The entry of a variable, if it was seen before. It is mostly where it was the last time.
    pub(super) fn position(&self, view: &View, hint: usize) -> Option<usize> {
        if self.entries.get(hint).is_some_and(|entry| entry.key.fits(view)) {
            return Some(hint);
        }
        self.known.get(&Key::of(view)).copied()
    }

    /// Remembers a variable that was seen for the first time. `array` is of our own, over its memory.
    pub(super) fn add(&mut self, key: Key, array: Py<PyAny>, slots: Vec<Slot>) {
        self.known.insert(key.clone(), self.entries.len());
        self.entries.push(Entry { key, array, slots });
    }

    /// The low-precision copy of a variable, if it has one.
    pub(super) fn copy<'py>(&self, py: Python<'py>, view: &View) -> Option<Bound<'py, PyAny>> {
        if self.copies.is_empty() {
            return None;
        }
        self.copies.get(&Key::of(view)).map(|found| found.copy.bind(py).clone())
    }

    /// Slots for variables, uninitialised: as many for each as the rule has.
    pub(super) fn allocate<'py>(
        py: Python<'py>,
        kind: Kind,
        variables: &[&View<'py>],
    ) -> PyResult<Vec<Vec<Slot>>> {
        let count = kind.slots();
        let each = variables.iter().flat_map(|view| std::iter::repeat_n(*view, count));
        let mut outputs = Outputs::new(py, each);
        let mut known = Known::default();
        let mut slot = |view: &View<'py>| {
            let array = outputs.like(view)?;
            let made = View::new(array, Takes::Any, &mut known, String::new)?;
            let strides = made.strides().into();
            Ok(Slot { pointer: AtomicPtr::new(made.pointer), strides, array: made.object.unbind() })
        };
        variables.iter().map(|view| (0..count).map(|_| slot(view)).collect()).collect()
    }

    /// Gives new slots their first values: those of the rule's slots, in their order.
    pub(super) fn initialise<'a>(
        context: Context,
        fresh: impl Iterator<Item = (DType, usize, &'a [Slot])>,
        initial: &[f64],
    ) {
        let (mut segments, mut values) = (Vec::new(), Vec::new());
        for (dtype, len, slots) in fresh {
            for (slot, value) in slots.iter().zip(initial) {
                // SAFETY: memory of our own, as long as the variable, without holes and aligned.
                segments.push(unsafe { Segment::dense(dtype, len, [slot.pointer()]) });
                values.push(*value);
            }
        }
        // SAFETY: the slots are new: nobody else has them.
        unsafe { fill(context, &segments, &values) };
    }
}

/// The variable of a method that takes one, looked at.
fn variable<'py>(array: &Bound<'py, PyAny>) -> PyResult<View<'py>> {
    let view = View::new(array.clone(), Takes::Variables, &mut Known::default(), || "variable".into())?;
    check_variable(&view, || "variable".into())?;
    Ok(view)
}

/// Refuses what cannot be updated.
pub(super) fn check_variable(view: &View, name: impl Fn() -> String) -> Result<(), Error> {
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
pub(super) fn check_copy(copy: &View, variable: &View, name: impl Fn() -> String) -> Result<(), Error> {
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
            "{} is {}{}; it takes a writable array of the variable's shape {:?}",
            name(),
            copy.describe(),
            if copy.is_writable() { "" } else { ", read-only" },
            variable.shape()
        )));
    }
    Ok(())
}

#[pymethods]
impl Slots {
    /// What an optimizer with this rule keeps: nothing yet.
    #[new]
    fn new(rule: &str) -> PyResult<Self> {
        let kind = Kind::from_name(rule).ok_or_else(|| Error::Value(format!("there is no rule {rule:?}")))?;
        Ok(Self {
            kind,
            entries: Vec::new(),
            known: HashMap::new(),
            copies: HashMap::new(),
            stepping: Arc::default(),
        })
    }

    /// Every variable met, with its slots: none if it never had a gradient.
    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Vec<Kept<'py>>> {
        let entry = |entry: &Entry| Ok((entry.array.bind(py).clone(), views(py, &entry.slots)?));
        self.entries.iter().map(entry).collect()
    }

    /// Refuses what the handler of a signal may not do in the middle of a step.
    fn refuse_while_stepping(&self, what: &str) -> PyResult<()> {
        if self.stepping.load(Ordering::Relaxed) {
            return Err(in_the_middle(what));
        }
        Ok(())
    }

    /// The slots of a variable, as arrays over their memory; None if it has none yet.
    fn of<'py>(
        &self,
        py: Python<'py>,
        array: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Vec<Bound<'py, PyAny>>>> {
        let view = variable(array)?;
        match self.position(&view, 0).map(|index| &self.entries[index].slots) {
            Some(slots) if slots.len() == self.kind.slots() => views(py, slots).map(Some),
            _ => Ok(None),
        }
    }

    /// Meets a variable. With `initial`, it gets slots, which are returned.
    fn meet<'py>(
        &mut self,
        py: Python<'py>,
        array: &Bound<'py, PyAny>,
        initial: Option<Vec<f64>>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let view = variable(array)?;
        let slots = match initial {
            None => Vec::new(),
            Some(initial) => {
                let slots = Self::allocate(py, self.kind, &[&view])?.pop().unwrap_or_default();
                Self::initialise(
                    Context::current(),
                    [(view.dtype, view.size, &slots[..])].into_iter(),
                    &initial,
                );
                slots
            }
        };
        let arrays = views(py, &slots)?;
        match self.position(&view, self.entries.len()) {
            Some(index) => self.entries[index].slots = slots,
            None => self.add(Key::of(&view), view.object.call_method0("view")?.unbind(), slots),
        }
        Ok(arrays)
    }

    /// The variables that have a low-precision copy, with it.
    fn copies<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let pair = |found: &Copy| (found.variable.bind(py).clone(), found.copy.bind(py).clone());
        self.copies.values().map(pair).collect()
    }

    /// Writes the low-precision copy of a variable anew, if it has one.
    fn refresh_copy(&self, py: Python<'_>, array: &Bound<'_, PyAny>) -> PyResult<()> {
        let view = variable(array)?;
        let Some(copy) = self.copy(py, &view) else { return Ok(()) };
        let copy = copy_view(copy, &view)?;
        // SAFETY: arrays of one shape, alive; `copy_view` found the copy writable and apart from the variable.
        unsafe {
            let operands = [Some(view.strided()), Some(copy.strided())];
            let sizes = [view.dtype.size(), copy.dtype.size()];
            let (segment, to) =
                (Segment::mixed(view.dtype, view.shape(), operands, sizes), copy.dtype.scalar);
            detached(py, || {
                refresh(Context::current(), &segment, to);
                Ok(())
            })
        }
    }

    /// Sets the low-precision copy of a variable, or takes it away.
    fn set_copy<'py>(&mut self, array: &Bound<'py, PyAny>, copy: Option<Bound<'py, PyAny>>) -> PyResult<()> {
        let view = variable(array)?;
        match copy {
            Some(copy) => {
                let copy = copy_view(copy, &view)?.object.unbind();
                let variable = view.object.call_method0("view")?.unbind();
                self.copies.insert(Key::of(&view), Copy { variable, copy });
            }
            None => drop(self.copies.remove(&Key::of(&view))),
        }
        Ok(())
    }
}

/// The error of a call that a step does not allow while it goes on.
pub(super) fn in_the_middle(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("{what} was called in the middle of a step of the same optimizer"))
}

/// A low-precision copy, looked at and checked by itself.
fn copy_view<'py>(copy: Bound<'py, PyAny>, variable: &View<'py>) -> PyResult<View<'py>> {
    let copy = View::new(copy, Takes::Reals, &mut Known::default(), || "copy".into())?;
    check_copy(&copy, variable, || "copy".into())?;
    let variable =
        View::new(variable.object.clone(), Takes::Any, &mut Known::default(), || "variable".into())?;
    let (inputs, mut outputs) = ([Some(variable)], [Some(copy)]);
    overlap::check(&inputs, &outputs, false, Label::Single("variable"), Label::Single("copy"))?;
    outputs[0].take().ok_or_else(|| Error::Type("copy is None; it takes an array".into()).into())
}

/// Arrays over the memory of slots: the caller may do with them what it likes.
fn views<'py>(py: Python<'py>, slots: &[Slot]) -> PyResult<Vec<Bound<'py, PyAny>>> {
    slots.iter().map(|slot| slot.array.bind(py).call_method0("view")).collect()
}
