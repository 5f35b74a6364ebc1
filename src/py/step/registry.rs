//! The registry of an optimizer: the variables that it has updated, with their slots and low-precision copies.
//!
//! A slot is memory owned by fastclip, laid out like its variable. Python code gets a new array over that memory each
//! time it asks for a slot. The array does not own the memory, so that no change to it moves or frees the slot.

use super::checks::check_copy;
use crate::allocation::{OutOfMemory, copied, reserve, try_collect, with_capacity};
use crate::engine::segment::{Run, Segment};
use crate::engine::workspace::Context;
use crate::error::Error;
use crate::operations::rules::RuleKind;
use crate::operations::update::fill;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::new_array::array_over;
use crate::py::arrays::output::{Buffer, OutputAllocator, dense_strides};
use crate::py::arrays::overlap;
use crate::py::arrays::view::View;
use crate::py::objects;
use crate::py::tensors::door::open_written;
use crate::py::tensors::opened::Written;
use crate::scalar::DType;
use numpy::npyffi;
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::collections::HashMap;
use std::os::raw::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The variables of an optimizer, and their low-precision copies.
#[derive(Default)]
pub struct Registry {
    /// One entry for each variable, in the order in which the optimizer first updated them.
    pub entries: Vec<Entry>,
    /// Index of each variable's entry.
    indices: HashMap<Arc<Key>, usize>,
    /// The low-precision copies, which may be set before the first update of their variables.
    pub copies: HashMap<Arc<Key>, LowPrecisionCopy>,
}

/// A variable and its slots.
pub struct Entry {
    key: Arc<Key>,
    /// NumPy's type number of the variable's dtype.
    type_number: c_int,
    /// An array over the variable's memory. It keeps the memory alive, so that no other array gets its address.
    array: Py<PyAny>,
    /// The slots; empty before the first update.
    pub slots: Arc<[Slot]>,
}

/// A low-precision copy, with its variable.
pub struct LowPrecisionCopy {
    /// The variable.
    pub variable: Py<PyAny>,
    /// The copy.
    pub copy: Py<PyAny>,
}

impl LowPrecisionCopy {
    /// Returns another reference to the same arrays.
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        Self { variable: self.variable.clone_ref(py), copy: self.copy.clone_ref(py) }
    }
}

/// The memory of one slot.
pub struct Slot {
    /// The owner of the memory.
    buffer: Py<Buffer>,
    /// Address of the first element. It never changes; it is atomic because a raw pointer is neither `Send` nor `Sync`.
    pointer: AtomicPtr<u8>,
    /// Byte strides, one for each axis of the variable.
    pub strides: Box<[isize]>,
}

impl Slot {
    /// Address of the first element.
    pub fn pointer(&self) -> *mut u8 {
        self.pointer.load(Ordering::Relaxed)
    }
}

/// The identity of a variable: the address and layout of its memory. Arrays that have both in common are the same
/// variable.
#[derive(PartialEq, Eq, Hash)]
pub struct Key {
    address: usize,
    dtype: DType,
    shape: Box<[usize]>,
    strides: Box<[isize]>,
}

impl Key {
    /// Returns the key of a variable.
    pub fn from_view(view: &View) -> Result<Self, Error> {
        let mut strides = with_capacity(view.shape().len())?;
        strides.extend(effective_strides(view));
        Ok(Self {
            address: view.pointer.expose_provenance(),
            dtype: view.dtype,
            shape: copied(view.shape())?,
            strides: strides.into_boxed_slice(),
        })
    }

    /// Whether this is the key of a variable.
    fn matches(&self, view: &View) -> bool {
        self.address == view.pointer.addr()
            && self.dtype == view.dtype
            && *self.shape == *view.shape()
            && self.strides.iter().copied().eq(effective_strides(view))
    }
}

/// Returns the byte strides of an array, with 0 for axes of length 1, whose strides have no effect.
fn effective_strides(view: &View) -> impl ExactSizeIterator<Item = isize> {
    let lens = view.shape().iter();
    lens.zip(view.strides()).map(|(len, stride)| if *len > 1 { *stride } else { 0 })
}

impl Entry {
    /// Creates the entry of a variable with these slots.
    pub fn new(variable: &View, slots: Vec<Slot>) -> PyResult<Self> {
        let (_, type_number) = variable.numpy_dtype();
        let array = variable.array()?.unbind();
        Ok(Self { key: Arc::new(Key::from_view(variable)?), type_number, array, slots: slots.into() })
    }

    fn clone_ref(&self, py: Python<'_>) -> Self {
        let (key, slots) = (Arc::clone(&self.key), Arc::clone(&self.slots));
        Self { key, type_number: self.type_number, array: self.array.clone_ref(py), slots }
    }

    /// Creates an array over the variable's memory.
    pub fn variable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let pointer = std::ptr::with_exposed_provenance_mut(self.key.address);
        self.array_over(self.array.bind(py).clone(), pointer, &self.key.strides)
    }

    /// Creates an array over a slot's memory.
    fn slot<'py>(&self, py: Python<'py>, slot: &Slot) -> PyResult<Bound<'py, PyAny>> {
        self.array_over(slot.buffer.bind(py).clone().into_any(), slot.pointer(), &slot.strides)
    }

    fn array_over<'py>(
        &self,
        owner: Bound<'py, PyAny>,
        pointer: *mut u8,
        strides: &[isize],
    ) -> PyResult<Bound<'py, PyAny>> {
        let (shape, flags) = (&self.key.shape, npyffi::NPY_ARRAY_WRITEABLE);
        // SAFETY: memory of this dtype and shape at these strides, which the owner keeps alive.
        unsafe { array_over(owner, pointer, self.type_number, shape, Some(strides), flags) }
    }

    /// Creates a list of arrays over the slots.
    pub fn slots_as_list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        objects::list(py, self.slots.len(), self.slots.iter().map(|slot| self.slot(py, slot)))
    }

    /// Returns a view of a slot.
    pub fn view_of_slot<'py>(&self, py: Python<'py>, slot: &Slot) -> Result<View<'py>, Error> {
        let owner = slot.buffer.bind(py).clone().into_any();
        let dtype = (self.key.dtype, self.type_number);
        // SAFETY: memory of the variable's dtype and shape at these strides, which the buffer keeps alive.
        Ok(unsafe { View::over(owner, slot.pointer(), dtype, &self.key.shape, &slot.strides)? })
    }
}

impl Registry {
    /// Returns the index of a variable's entry; None if it has none. `hint` is the index to try first: that of the
    /// variable's pair in the step, because most steps pass the variables in the same order.
    pub fn position(&self, view: &View, hint: usize) -> Result<Option<usize>, Error> {
        if self.entries.get(hint).is_some_and(|entry| entry.key.matches(view)) {
            return Ok(Some(hint));
        }
        Ok(if self.indices.is_empty() { None } else { self.indices.get(&Key::from_view(view)?).copied() })
    }

    /// Returns a copy that has room for `additional` more entries.
    pub fn copy(&self, py: Python<'_>, additional: usize) -> Result<Self, Error> {
        let mut copy = Self::default();
        let count = self.entries.len().saturating_add(additional);
        copy.entries = with_capacity(count)?;
        let bytes = count.saturating_mul(size_of::<(Arc<Key>, usize)>());
        copy.indices.try_reserve(count).map_err(|_| OutOfMemory { bytes })?;
        copy.reserve_copies(self.copies.len())?;
        copy.entries.extend(self.entries.iter().map(|entry| entry.clone_ref(py)));
        copy.indices.extend(self.indices.iter().map(|(key, at)| (Arc::clone(key), *at)));
        for (key, pair) in &self.copies {
            copy.copies.insert(Arc::clone(key), pair.clone_ref(py));
        }
        Ok(copy)
    }

    /// Allocates room for `additional` more low-precision copies.
    pub fn reserve_copies(&mut self, additional: usize) -> Result<(), Error> {
        let bytes = additional.saturating_mul(size_of::<(Arc<Key>, LowPrecisionCopy)>());
        Ok(self.copies.try_reserve(additional).map_err(|_| OutOfMemory { bytes })?)
    }

    /// Adds an entry. There must be room for it, see [`Registry::copy`], so that this cannot fail.
    pub fn add(&mut self, entry: Entry) {
        self.indices.insert(Arc::clone(&entry.key), self.entries.len());
        self.entries.push(entry);
    }

    /// Returns the low-precision copy of a variable, if it has one.
    pub fn low_precision_copy<'py>(
        &self,
        py: Python<'py>,
        view: &View,
    ) -> Result<Option<Bound<'py, PyAny>>, Error> {
        if self.copies.is_empty() {
            return Ok(None);
        }
        Ok(self.copies.get(&Key::from_view(view)?).map(|pair| pair.copy.bind(py).clone()))
    }
}

/// Allocates the slots of the rule for each variable, uninitialised.
pub fn allocate_slots<'py>(
    py: Python<'py>,
    kind: RuleKind,
    variables: &[&View<'py>],
) -> PyResult<Vec<Vec<Slot>>> {
    let count = kind.slots();
    let each = variables.iter().flat_map(|view| std::iter::repeat_n(*view, count));
    let mut outputs = OutputAllocator::new(py, each);
    let mut slot = |view: &View<'py>| {
        let (pointer, buffer) = outputs.allocate(view.size * view.dtype.size())?;
        let strides = dense_strides(view)?.into_boxed_slice();
        Ok::<_, PyErr>(Slot { buffer: buffer.unbind(), pointer: AtomicPtr::new(pointer), strides })
    };
    let each = variables.iter().map(|view| try_collect(count, (0..count).map(|_| slot(view))));
    try_collect(variables.len(), each)
}

/// The slots of one variable that a step has allocated, and initialises.
pub struct NewSlots {
    /// Dtype of the variable.
    pub dtype: DType,
    /// Number of elements of the variable.
    pub len: usize,
    /// The slots. Until the step is taken, the new registry is their only other owner.
    pub slots: Arc<[Slot]>,
}

/// Fills new slots with their initial values, of which `initial` has one for each slot of the rule.
pub fn initialise_slots(context: Context, new: &[NewSlots], initial: &[f64]) -> Result<(), Error> {
    let (mut segments, mut values) = (Vec::new(), Vec::new());
    for NewSlots { dtype, len, slots } in new {
        reserve(&mut segments, slots.len())?;
        reserve(&mut values, slots.len())?;
        for (slot, value) in slots.iter().zip(initial) {
            let run = Run { pointer: slot.pointer(), scalar: dtype.scalar, is_written: true };
            // SAFETY: contiguous, aligned memory as long as the variable, which nothing else accesses yet.
            segments.push(unsafe { Segment::dense(false, *len, [Some(run)]) });
            values.push(*value);
        }
    }
    fill(context, &mut segments, &values)?;
    Ok(())
}

/// Reads the low-precision copy of a variable, outside of a step, and checks it.
pub fn copy_view<'py>(copy: Bound<'py, PyAny>, variable: &View<'py>) -> PyResult<View<'py>> {
    let py = copy.py();
    let name = ArgumentName::Single("copy");
    let copy = open_written(&copy, AcceptedDTypes::Reals, name, &mut Written::default())?;
    check_copy(&copy, variable, || "copy".into())?;
    let (inputs, mut outputs) = ([Some(variable.try_clone()?)], [Some(copy)]);
    let names = (ArgumentName::Single("variable"), ArgumentName::Single("copy"));
    overlap::check(py, &inputs, &outputs, false, names.0, names.1)?;
    outputs[0].take().ok_or_else(|| Error::Type("copy is None; it takes an array".into()).into())
}
