//! The registry of an optimizer: the variables that it has updated, with their slots and low-precision copies.
//!
//! A variable is in the registry for as long as its memory exists. There is no code that runs when the memory is freed,
//! because that may happen at any moment, also in the middle of a step. Instead, steps and the functions that list
//! variables first drop those whose memory is gone, see [`Registry::without_lost`].
//!
//! A slot is memory owned by fastclip, laid out like its variable, of its dtype or of bfloat16. Python code gets a new
//! array over that memory each time it asks for a slot. The array does not own the memory, so that no change to it moves
//! or frees the slot.

use super::checks::check_copy;
use super::owner::Owner;
use crate::allocation::{OutOfMemory, filled, reserve, try_collect, with_capacity};
use crate::engine::segment::{Run, Segment};
use crate::engine::workspace::Context;
use crate::error::Error;
use crate::operations::rules::RuleKind;
use crate::operations::update::fill;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::arrays::new_array::array_over;
use crate::py::arrays::output::{Buffer, OutputAllocator, dense_strides_of};
use crate::py::arrays::overlap;
use crate::py::arrays::view::View;
use crate::py::objects;
use crate::py::tensors::door::open_written;
use crate::py::tensors::opened::Written;
use crate::scalar::{DType, Scalar};
use numpy::npyffi;
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::os::raw::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The variables of an optimizer, and their low-precision copies.
pub struct Registry {
    /// One entry for each variable, in the order in which the optimizer first updated them.
    pub entries: Vec<Entry>,
    /// Index of each variable's entry.
    indices: HashMap<ByKey, usize>,
    /// The low-precision copies, which may be set before the first update of their variables.
    copies: HashMap<ByKey, Py<PyAny>>,
    /// Number of entries that were dropped because their variable's memory was gone.
    pub lost: u64,
    /// The function of Python that finds the owners of memory, see [`Owner::of`].
    memory_owner: Option<Py<PyAny>>,
    /// The dtype of the slots; None for that of their variable.
    slot_dtype: Option<SlotDType>,
}

/// The dtype of slots, and the type number that NumPy shows them by.
pub type SlotDType = (DType, c_int);

/// A variable: its memory, and how an array shows it. Steps read thousands of these, so that a variable is one block of
/// memory, which registries share.
pub struct Variable {
    key: Key,
    /// NumPy's type number of its dtype.
    type_number: c_int,
    /// The owner of the memory.
    owner: Owner,
}

/// A variable and its low-precision copy.
type LowPrecisionCopy = (Arc<Variable>, Py<PyAny>);

/// A variable that maps find by its key.
struct ByKey(Arc<Variable>);

impl Borrow<Key> for ByKey {
    fn borrow(&self) -> &Key {
        &self.0.key
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

impl Hash for ByKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

/// A variable and its slots.
#[derive(Clone)]
pub struct Entry {
    variable: Arc<Variable>,
    /// The slots; empty before the first update.
    pub slots: Arc<[Slot]>,
}

/// The memory of one slot.
pub struct Slot {
    /// The dtype, and the type number that NumPy shows it by.
    dtype: SlotDType,
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

    /// The type of the elements.
    pub fn scalar(&self) -> Scalar {
        self.dtype.0.scalar
    }
}

/// Most axes whose lengths and strides a key stores without an allocation.
const INLINE: usize = 2;

/// The identity of a variable: the address and layout of its memory. Arrays that have both in common are the same
/// variable.
#[derive(PartialEq, Eq, Hash)]
pub struct Key {
    address: usize,
    dtype: DType,
    /// Number of axes.
    rank: u8,
    /// The length of each axis, followed by its byte strides, see [`effective_strides`]. Zeros if there are more than
    /// [`INLINE`] axes.
    few: [usize; 2 * INLINE],
    /// The same of more axes.
    many: Option<Box<[usize]>>,
}

impl Key {
    /// Returns the key of a variable.
    fn from_view(view: &View) -> Result<Self, Error> {
        let (shape, rank) = (view.shape(), view.shape().len());
        let (mut few, mut many) = ([0; 2 * INLINE], Vec::new());
        let axes = if rank <= INLINE {
            &mut few[..2 * rank]
        } else {
            many = filled(0, 2 * rank)?;
            &mut many
        };
        axes[..rank].copy_from_slice(shape);
        for (to, stride) in axes[rank..].iter_mut().zip(effective_strides(view)) {
            *to = stride.cast_unsigned();
        }
        let many = (rank > INLINE).then(|| many.into_boxed_slice());
        Ok(Self { address: view.pointer.expose_provenance(), dtype: view.dtype, rank: rank as u8, few, many })
    }

    /// Returns the length of each axis, followed by its byte strides.
    fn axes(&self) -> &[usize] {
        match &self.many {
            Some(many) => many,
            None => &self.few[..2 * usize::from(self.rank)],
        }
    }

    fn shape(&self) -> &[usize] {
        &self.axes()[..usize::from(self.rank)]
    }

    fn strides(&self) -> &[isize] {
        bytemuck::cast_slice(&self.axes()[usize::from(self.rank)..])
    }

    /// Whether this is the key of a variable.
    fn matches(&self, view: &View) -> bool {
        self.address == view.pointer.addr()
            && self.dtype == view.dtype
            && *self.shape() == *view.shape()
            && self.strides().iter().copied().eq(effective_strides(view))
    }
}

/// Returns the byte strides of an array, with 0 for axes of length 1, whose strides have no effect.
fn effective_strides(view: &View) -> impl ExactSizeIterator<Item = isize> {
    let lens = view.shape().iter();
    lens.zip(view.strides()).map(|(len, stride)| if *len > 1 { *stride } else { 0 })
}

impl Variable {
    /// Whether the memory still exists.
    pub fn is_alive(&self, py: Python<'_>) -> PyResult<bool> {
        self.owner.is_alive(py)
    }

    /// Creates an array over the memory; returns None if it is gone.
    pub fn array<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(owner) = self.owner.get(py)? else { return Ok(None) };
        let pointer = std::ptr::with_exposed_provenance_mut(self.key.address);
        // SAFETY: memory of this dtype and layout, which the owner keeps alive.
        unsafe { self.array_over(owner, pointer, self.type_number, self.key.strides()).map(Some) }
    }

    /// Creates an array of the variable's shape over memory, of the dtype that has this type number.
    ///
    /// # Safety
    ///
    /// `owner` must keep memory alive that holds elements of this dtype and shape at these strides.
    unsafe fn array_over<'py>(
        &self,
        owner: Bound<'py, PyAny>,
        pointer: *mut u8,
        type_number: c_int,
        strides: &[isize],
    ) -> PyResult<Bound<'py, PyAny>> {
        let (shape, flags) = (self.key.shape(), npyffi::NPY_ARRAY_WRITEABLE);
        // SAFETY: the caller's contract.
        unsafe { array_over(owner, pointer, type_number, shape, Some(strides), flags) }
    }
}

impl Entry {
    /// The variable.
    pub fn variable(&self) -> &Variable {
        &self.variable
    }

    /// Creates an array over a slot's memory.
    fn slot<'py>(&self, py: Python<'py>, slot: &Slot) -> PyResult<Bound<'py, PyAny>> {
        let owner = slot.buffer.bind(py).clone().into_any();
        // SAFETY: memory of the slot's dtype and the variable's shape at these strides, which the buffer keeps alive.
        unsafe { self.variable.array_over(owner, slot.pointer(), slot.dtype.1, &slot.strides) }
    }

    /// Creates a list of arrays over the slots.
    pub fn slots_as_list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        objects::list(py, self.slots.len(), self.slots.iter().map(|slot| self.slot(py, slot)))
    }

    /// Returns a view of a slot.
    pub fn view_of_slot<'py>(&self, py: Python<'py>, slot: &Slot) -> Result<View<'py>, Error> {
        let owner = slot.buffer.bind(py).clone().into_any();
        let shape = self.variable.key.shape();
        // SAFETY: memory of the slot's dtype and the variable's shape at these strides, which the buffer keeps alive.
        Ok(unsafe { View::over(owner, slot.pointer(), slot.dtype, shape, &slot.strides)? })
    }
}

impl Registry {
    /// Creates an empty registry.
    pub fn new(memory_owner: Option<Py<PyAny>>, slot_dtype: Option<SlotDType>) -> Self {
        let (entries, indices, copies) = (Vec::new(), HashMap::new(), HashMap::new());
        Self { entries, indices, copies, lost: 0, memory_owner, slot_dtype }
    }

    /// Returns the index of a variable's entry; None if it has none. `hint` is the index to try first: that of the
    /// variable's pair in the step, because most steps pass the variables in the same order.
    ///
    /// The memory of the entry's variable must still exist, see [`Registry::without_lost`] and [`Variable::is_alive`]:
    /// otherwise the view may be that of another array, which has got the same address.
    pub fn position(&self, view: &View, hint: usize) -> Result<Option<usize>, Error> {
        if self.entries.get(hint).is_some_and(|entry| entry.variable.key.matches(view)) {
            return Ok(Some(hint));
        }
        Ok(if self.indices.is_empty() { None } else { self.indices.get(&Key::from_view(view)?).copied() })
    }

    /// Returns the entry of a variable; None if it has none.
    pub fn entry(&self, py: Python<'_>, view: &View) -> PyResult<Option<&Entry>> {
        let entry = self.position(view, 0)?.map(|index| &self.entries[index]);
        entry.map_or(Ok(None), |entry| Ok(entry.variable.is_alive(py)?.then_some(entry)))
    }

    /// Describes a variable. May run foreign code.
    pub fn variable(&self, view: &View) -> PyResult<Arc<Variable>> {
        let py = view.owner().py();
        let (_, type_number) = view.numpy_dtype();
        let owner = Owner::of(view, self.memory_owner.as_ref().map(|function| function.bind(py)))?;
        Ok(Arc::new(Variable { key: Key::from_view(view)?, type_number, owner }))
    }

    /// Returns a copy that has room for `additional` more entries.
    pub fn copy(&self, py: Python<'_>, additional: usize) -> Result<Self, Error> {
        let mut copy = self.empty(py, additional)?;
        copy.entries.extend(self.entries.iter().cloned());
        copy.indices.extend(self.indices.iter().map(|(key, at)| (ByKey(Arc::clone(&key.0)), *at)));
        copy.take_copies(py, self);
        Ok(copy)
    }

    /// Returns an empty registry that has room for the contents of this one and `additional` more entries.
    fn empty(&self, py: Python<'_>, additional: usize) -> Result<Self, Error> {
        let memory_owner = self.memory_owner.as_ref().map(|function| function.clone_ref(py));
        let mut empty = Self::new(memory_owner, self.slot_dtype);
        empty.lost = self.lost;
        let count = self.entries.len().saturating_add(additional);
        empty.entries = with_capacity(count)?;
        let bytes = count.saturating_mul(size_of::<(ByKey, usize)>());
        empty.indices.try_reserve(count).map_err(|_| OutOfMemory { bytes })?;
        empty.reserve_copies(self.copies.len())?;
        Ok(empty)
    }

    /// Returns a copy without the variables whose memory is gone; None if there are none.
    ///
    /// A view that was read before this call, and has the address and layout of a variable in the result, is of the same
    /// memory.
    pub fn without_lost(&self, py: Python<'_>) -> PyResult<Option<Self>> {
        let mut is_complete = true;
        for entry in &self.entries {
            is_complete &= entry.variable.is_alive(py)?;
        }
        for variable in self.copies.keys() {
            is_complete &= variable.0.is_alive(py)?;
        }
        if is_complete {
            return Ok(None);
        }
        let mut rest = self.filtered(py, |variable| variable.is_alive(py))?;
        rest.lost += (self.entries.len() - rest.entries.len()) as u64;
        Ok(Some(rest))
    }

    /// Returns a copy without one variable; None if it is not in the registry.
    pub fn without(&self, py: Python<'_>, view: &View) -> PyResult<Option<Self>> {
        let key = Key::from_view(view)?;
        if self.low_precision_copy(py, view)?.is_none() && self.entry(py, view)?.is_none() {
            return Ok(None);
        }
        self.filtered(py, |variable| Ok(variable.key != key)).map(Some)
    }

    /// Returns a copy with the variables that `keep` returns true for.
    fn filtered(&self, py: Python<'_>, keep: impl Fn(&Variable) -> PyResult<bool>) -> PyResult<Self> {
        let mut rest = self.empty(py, 0)?;
        for entry in &self.entries {
            if keep(&entry.variable)? {
                rest.add(entry.clone());
            }
        }
        for (variable, copy) in &self.copies {
            if keep(&variable.0)? {
                rest.copies.insert(ByKey(Arc::clone(&variable.0)), copy.clone_ref(py));
            }
        }
        Ok(rest)
    }

    /// Allocates room for `additional` more low-precision copies.
    pub fn reserve_copies(&mut self, additional: usize) -> Result<(), Error> {
        let bytes = additional.saturating_mul(size_of::<(ByKey, Py<PyAny>)>());
        Ok(self.copies.try_reserve(additional).map_err(|_| OutOfMemory { bytes })?)
    }

    /// Adds the entry of a variable. There must be room for it, see [`Registry::copy`], so that this cannot fail.
    pub fn add_variable(&mut self, variable: Arc<Variable>, slots: Vec<Slot>) {
        self.add(Entry { variable, slots: slots.into() });
    }

    fn add(&mut self, entry: Entry) {
        self.indices.insert(ByKey(Arc::clone(&entry.variable)), self.entries.len());
        self.entries.push(entry);
    }

    /// Returns the pairs of a variable and its low-precision copy.
    pub fn copies(&self) -> impl ExactSizeIterator<Item = (&Variable, &Py<PyAny>)> {
        self.copies.iter().map(|(variable, copy)| (&*variable.0, copy))
    }

    /// Sets the low-precision copy of a variable. There must be room for it, see [`Registry::reserve_copies`], so that
    /// this cannot fail. Returns the previous pair: dropping its arrays may run foreign code.
    pub fn set_copy(&mut self, variable: Arc<Variable>, copy: Py<PyAny>) -> Option<LowPrecisionCopy> {
        // An insertion would keep the previous variable, whose memory may be gone.
        let previous = self.copies.remove_entry(&variable.key);
        self.copies.insert(ByKey(variable), copy);
        previous.map(|(variable, copy)| (variable.0, copy))
    }

    /// Removes the low-precision copy of a variable. Returns the pair: dropping its arrays may run foreign code.
    pub fn remove_copy(&mut self, view: &View) -> Result<Option<LowPrecisionCopy>, Error> {
        let previous = self.copies.remove_entry(&Key::from_view(view)?);
        Ok(previous.map(|(variable, copy)| (variable.0, copy)))
    }

    /// Adds the low-precision copies of another registry. There must be room for them, see
    /// [`Registry::reserve_copies`], so that this cannot fail.
    pub fn take_copies(&mut self, py: Python<'_>, other: &Self) {
        for (variable, copy) in &other.copies {
            self.set_copy(Arc::clone(&variable.0), copy.clone_ref(py));
        }
    }

    /// Returns the low-precision copy of a variable, if it has one.
    pub fn low_precision_copy<'py>(
        &self,
        py: Python<'py>,
        view: &View,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.copies.is_empty() {
            return Ok(None);
        }
        let Some((variable, copy)) = self.copies.get_key_value(&Key::from_view(view)?) else {
            return Ok(None);
        };
        Ok(variable.0.is_alive(py)?.then(|| copy.bind(py).clone()))
    }
}

impl Registry {
    /// Allocates the slots of the rule for each variable, uninitialised.
    pub fn allocate_slots<'py>(
        &self,
        py: Python<'py>,
        kind: RuleKind,
        variables: &[&View<'py>],
    ) -> PyResult<Vec<Vec<Slot>>> {
        let count = kind.slots();
        let each = variables.iter().flat_map(|view| std::iter::repeat_n(*view, count));
        let mut outputs = OutputAllocator::new(py, each);
        let mut slot = |view: &View<'py>| {
            let dtype = self.slot_dtype.unwrap_or_else(|| view.numpy_dtype());
            let size = dtype.0.size();
            let (pointer, buffer) = outputs.allocate(view.size * size)?;
            let (pointer, buffer) = (AtomicPtr::new(pointer), buffer.unbind());
            Ok::<_, PyErr>(Slot { dtype, buffer, pointer, strides: dense_strides_of(view, size)?.into() })
        };
        let each = variables.iter().map(|view| try_collect(count, (0..count).map(|_| slot(view))));
        try_collect(variables.len(), each)
    }
}

/// The slots of one variable that a step has allocated, and initialises.
pub struct NewSlots {
    /// Number of elements of the variable.
    pub len: usize,
    /// The slots. Until the step is taken, the new registry is their only other owner.
    pub slots: Arc<[Slot]>,
}

/// Fills new slots with their initial values, of which `initial` has one for each slot of the rule.
pub fn initialise_slots(context: Context, new: &[NewSlots], initial: &[f64]) -> Result<(), Error> {
    let (mut segments, mut values) = (Vec::new(), Vec::new());
    for NewSlots { len, slots } in new {
        reserve(&mut segments, slots.len())?;
        reserve(&mut values, slots.len())?;
        for (slot, value) in slots.iter().zip(initial) {
            let run = Run { pointer: slot.pointer(), scalar: slot.scalar(), is_written: true };
            // SAFETY: contiguous, aligned memory as long as the variable, which nothing else accesses yet.
            segments.push(unsafe { Segment::dense(false, *len, [Some(run)]) });
            values.push(*value);
        }
    }
    fill(context, &mut segments, &values)?;
    Ok(())
}

/// Reads the low-precision copy of a variable, outside of a step, and checks it.
pub fn copy_view<'py>(
    copy: &Bound<'py, PyAny>,
    variable: &View<'py>,
    written: &mut Written<'py>,
) -> PyResult<View<'py>> {
    let py = copy.py();
    let name = ArgumentName::Single("copy");
    let copy = open_written(copy, AcceptedDTypes::Reals, name, written)?;
    check_copy(&copy, variable, || "copy".into())?;
    let (inputs, mut outputs) = ([Some(variable.try_clone()?)], [Some(copy)]);
    let names = (ArgumentName::Single("variable"), ArgumentName::Single("copy"));
    overlap::check(py, &inputs, &outputs, false, names.0, names.1)?;
    outputs[0].take().ok_or_else(|| Error::Type("copy is None; it takes an array".into()).into())
}
