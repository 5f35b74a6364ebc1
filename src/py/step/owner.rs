//! The owners of variables' memory: how long the memory of a variable exists, which is how long an optimizer keeps its
//! slots.
//!
//! An optimizer does not keep its variables alive: a program that binds a name to a new array in each step would fill
//! the memory with arrays and their slots. It holds a weak reference to the object that owns the memory, and drops the
//! slots when that object is gone. Views do not count: `w[:]` that is created anew for each step has the same owner, `w`.
//!
//! A weak reference is taken of objects that are known to own their memory as long as they live. The memory of any other
//! object, such as a `bytearray` or a memory-mapped file, may be freed or moved while the object lives, unless an array
//! is over it. Therefore such an array is kept alive instead, and with it the memory.
//!
//! As long as the owner lives, no other array gets its memory. A registry finds a variable by address and layout, and
//! that is safe only while the owner of the entry lives: see [`Owner::is_alive`].

use crate::py::arrays::ndarray_type::is_array;
use crate::py::arrays::output::Buffer;
use crate::py::arrays::view::View;
use crate::py::objects;
use numpy::npyffi::{self, PyArrayObject, PyDataType_ELSIZE};
use pyo3::exceptions::PyMemoryError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyWeakrefMethods, PyWeakrefReference};
use std::ops::Range;

/// What the registry holds of the object that owns the memory of a variable.
pub enum Owner {
    /// A weak reference to an object that owns the memory as long as it lives.
    Weak(Py<PyWeakrefReference>, Memory),
    /// An array over the memory, which keeps it alive. The owner is unknown, or frees its memory earlier.
    Kept(Py<PyAny>),
}

/// Where an owner has its memory, by the kind of the owner.
#[derive(Clone, Copy)]
pub enum Memory {
    /// The owner is an array. It has its memory at this address; `ndarray.resize(refcheck=False)` moves it.
    Array(usize),
    /// The owner is a buffer of fastclip, whose memory never moves.
    Buffer,
    /// The owner is a storage, an object whose method `data_ptr` returns the address of its memory. It was here.
    Storage(usize),
}

impl Owner {
    /// Finds the owner of a variable's memory. `memory_owner` is a function of Python for objects that are neither arrays
    /// nor buffers: it takes the object and the address range of the variable, and returns the storage that contains the
    /// range, or None. It may run foreign code.
    pub fn of(view: &View, memory_owner: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let kept = || Ok(Self::Kept(kept_array(view)?.unbind()));
        let address = view.pointer.addr();
        let (first, end) = view.extent().unwrap_or((address, address));
        // The base of an array is read after the snapshot, and may have changed since. Therefore an object counts as
        // the owner only if the memory of the snapshot lies inside of that object's.
        let contains = |memory: &Range<usize>| memory.start <= first && end <= memory.end;
        let mut object = view.owner().clone();
        loop {
            if is_array(&object) {
                match array_memory(&object) {
                    ArrayMemory::Own(memory) if contains(&memory) => {
                        return Self::weak(&object, Memory::Array(memory.start));
                    }
                    ArrayMemory::Base(base) => object = base,
                    ArrayMemory::Own(_) | ArrayMemory::Unknown => return kept(),
                }
            } else if object.is_exact_instance_of::<PyMemoryView>() {
                object = match object.getattr(intern!(object.py(), "obj")) {
                    Ok(exporter) => exporter,
                    Err(error) if error.is_instance_of::<PyMemoryError>(object.py()) => return Err(error),
                    Err(_) => return kept(),
                };
            } else if let Ok(buffer) = object.cast_exact::<Buffer>() {
                return if contains(&buffer.get().addresses()) {
                    Self::weak(&object, Memory::Buffer)
                } else {
                    kept()
                };
            } else {
                let Some(memory_owner) = memory_owner else { return kept() };
                let Some(owner) = Self::storage(&object, memory_owner, first..end)? else { return kept() };
                return Ok(owner);
            }
        }
    }

    /// Asks `memory_owner` for the storage of an object.
    fn storage(
        exporter: &Bound<'_, PyAny>,
        memory_owner: &Bound<'_, PyAny>,
        range: Range<usize>,
    ) -> PyResult<Option<Self>> {
        let py = exporter.py();
        let (first, end) = (objects::index(py, range.start)?, objects::index(py, range.end)?);
        let storage =
            memory_owner.call1(objects::tuple(py, [exporter.clone(), first.into_any(), end.into_any()])?)?;
        if storage.is_none() {
            return Ok(None);
        }
        let owner = Self::weak(&storage, Memory::Storage(data_ptr(&storage)?))?;
        // If the storage is an object that its framework creates for each call, it is gone now, although the memory is
        // not.
        drop(storage);
        Ok(owner.is_alive(py)?.then_some(owner))
    }

    fn weak(object: &Bound<'_, PyAny>, memory: Memory) -> PyResult<Self> {
        Ok(Self::Weak(PyWeakrefReference::new(object)?.unbind(), memory))
    }

    /// Returns the object that keeps the memory alive; None if the memory is gone.
    pub fn get<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (reference, memory) = match self {
            Self::Weak(reference, memory) => (reference, *memory),
            Self::Kept(array) => return Ok(Some(array.bind(py).clone())),
        };
        let Some(object) = reference.bind(py).upgrade() else { return Ok(None) };
        let is_in_place = match memory {
            // SAFETY: the owner was an array when the reference was created, and no object changes its layout.
            Memory::Array(address) => unsafe {
                (*object.as_ptr().cast::<PyArrayObject>()).fields.data.addr() == address
            },
            Memory::Buffer => true,
            Memory::Storage(address) => data_ptr(&object)? == address,
        };
        Ok(is_in_place.then_some(object))
    }

    /// Whether the memory still exists. A snapshot of an array at the same address, taken before this call, then shows
    /// the same memory, because at this moment both objects own the address.
    pub fn is_alive(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(match self {
            Self::Weak(..) => self.get(py)?.is_some(),
            Self::Kept(_) => true,
        })
    }
}

/// Returns an array over a variable's memory that keeps the memory alive. A tensor may be given other memory; a detached
/// one, which no other code refers to, keeps this.
fn kept_array<'py>(view: &View<'py>) -> PyResult<Bound<'py, PyAny>> {
    let owner = view.owner();
    if is_array(owner) || !owner.get_type().hasattr(intern!(owner.py(), "detach"))? {
        return view.array();
    }
    view.array_owned_by(owner.call_method0(intern!(owner.py(), "detach"))?)
}

/// Returns the address of a storage's memory.
fn data_ptr(storage: &Bound<'_, PyAny>) -> PyResult<usize> {
    storage.call_method0(intern!(storage.py(), "data_ptr"))?.extract()
}

/// Whose memory an array shows.
enum ArrayMemory<'py> {
    /// Its own, at these addresses.
    Own(Range<usize>),
    /// That of its base.
    Base(Bound<'py, PyAny>),
    /// It is not known.
    Unknown,
}

/// Returns whose memory an array shows.
fn array_memory<'py>(array: &Bound<'py, PyAny>) -> ArrayMemory<'py> {
    let py = array.py();
    // SAFETY: the object is a live array, with `nd` lengths and a descriptor, and its base is null or a live object. No
    // foreign code runs in between.
    unsafe {
        let fields = &(*array.as_ptr().cast::<PyArrayObject>()).fields;
        if fields.flags & npyffi::NPY_ARRAY_OWNDATA != 0 {
            let mut bytes = usize::try_from(PyDataType_ELSIZE(py, fields.descr)).unwrap_or(0);
            for axis in 0..usize::try_from(fields.nd).unwrap_or(0) {
                bytes = bytes.saturating_mul(fields.dimensions.add(axis).read().unsigned_abs());
            }
            let start = fields.data.addr();
            ArrayMemory::Own(start..start.saturating_add(bytes))
        } else if fields.base.is_null() {
            ArrayMemory::Unknown
        } else {
            ArrayMemory::Base(Bound::from_borrowed_ptr(py, fields.base))
        }
    }
}
