//! The entries of a list become views.

use super::dlpack;
use super::exchange::Exchange;
use super::frameworks::{Autograd, Framework};
use super::imported::ImportedTensor;
use super::opened::{Opened, Written, append, check_memory_kept, memory_taken_away};
use super::origin::Origin;
use super::snapshot::Snapshot;
use crate::allocation::{collect, filled, reserve, with_capacity};
use crate::error::Error;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::ndarray_type::{is_array, is_exactly_array};
use crate::py::arrays::plain::{is_native, is_plain_array};
use crate::py::arrays::view::{View, not_an_array};
use crate::py::objects;
use pyo3::exceptions::{PyException, PyMemoryError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyModule, PyType};
use pyo3::{Borrowed, PyTypeInfo, ffi, intern};
use std::cell::OnceCell;
use std::sync::Arc;

/// What a call does with the tensors of an argument.
#[derive(Clone, Copy, Default)]
pub struct Access {
    /// Writes them.
    pub writes: bool,
    /// Reads or writes the values themselves. A call that only takes norms, or scales in place, gets the same results
    /// from memory whose values a library negates when they are read.
    pub needs_signs: bool,
    /// Returns tensors that depend on them, which autograd would have to record.
    pub is_recorded: bool,
}

/// The way in for the instances of a type.
#[derive(Clone, Copy)]
enum Way {
    /// They are arrays.
    Array,
    /// They are snapshots.
    Snapshot,
    /// Their type has exchange functions.
    Exchange { exchange: Exchange, has_autograd: bool },
    /// They are tensors of the library with autograd, whose type has no exchange functions.
    WithoutExchange,
    /// They have `__dlpack__`.
    Capsule(Option<Framework>),
    /// They are converted by Python code.
    Converted,
}

/// Returns the module of Python code that treats tensors of other libraries.
pub fn foreign(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module =
        MODULE.get_or_try_init(py, || Ok::<_, PyErr>(py.import("fastclip._arguments.foreign")?.unbind()))?;
    Ok(module.bind(py))
}

/// Opens the entries of a list that no other code has a reference to.
///
/// # Errors
///
/// A `TypeError` if an entry is no tensor on the CPU, or has a dtype that is not accepted; and [`Recorded`] if the
/// access is recorded and autograd records what is done with an entry.
pub fn open<'py>(
    entries: &Bound<'py, PyList>,
    accepted: AcceptedDTypes,
    access: Access,
    name: ArgumentName<'_>,
) -> PyResult<Opened<'py>> {
    Prepared::new(entries, accepted, access, name)?.open()
}

/// As [`open`], for one object, which the call writes.
pub fn open_written<'py>(
    object: &Bound<'py, PyAny>,
    accepted: AcceptedDTypes,
    name: ArgumentName<'_>,
    written: &mut Written<'py>,
) -> PyResult<View<'py>> {
    let list = objects::list(object.py(), 1, std::iter::once(Ok(object.clone())))?;
    let access = Access { writes: true, needs_signs: true, is_recorded: false };
    let mut opened = open(&list, accepted, access, name)?;
    written.lent.append(opened.lent()?)?;
    if let Some(tensors) = &opened.versioned {
        tensors.iter().try_for_each(|tensor| written.push(&tensor))?;
    }
    match opened.views.pop().flatten() {
        Some(view) => Ok(view),
        None => Err(Error::Type(format!("{} is None; it takes an array", name.entry(0))).into()),
    }
}

/// As [`open`], for the inputs and the outputs of a call: all foreign code comes before the snapshots of both.
pub fn open_both<'py>(
    mut inputs: Prepared<'_, 'py>,
    mut outputs: Prepared<'_, 'py>,
) -> PyResult<(Opened<'py>, Opened<'py>)> {
    while !(inputs.read()? && outputs.read()?) {}
    Ok((inputs.opened, outputs.opened))
}

/// The entries of a list after everything that may run foreign code, ready to be read.
pub struct Prepared<'a, 'py> {
    entries: &'a Bound<'py, PyList>,
    /// The objects to read, if they differ from the entries.
    ready: Option<Bound<'py, PyList>>,
    accepted: AcceptedDTypes,
    access: Access,
    name: ArgumentName<'a>,
    /// The types that were seen, with their ways in.
    types: Vec<(Bound<'py, PyType>, Way)>,
    /// The library with autograd, if it is imported, once it has been looked for.
    autograd: OnceCell<Option<Autograd<'py>>>,
    dtypes: DTypeCache<'py>,
    /// How often each entry was converted; empty if none was.
    conversions: Vec<u8>,
    opened: Opened<'py>,
}

/// Most conversions of one entry: what an object holds may itself hold a tensor.
const MOST_CONVERSIONS: u8 = 3;

pyo3::create_exception!(
    fastclip._core,
    OnDevice,
    pyo3::exceptions::PyTypeError,
    "An argument is an array on a device, which functions for arrays in host memory do not take."
);

pyo3::create_exception!(
    fastclip._core,
    Recorded,
    pyo3::exceptions::PyException,
    "Autograd records an argument of a call; the rules of differentiation compute the result."
);

/// Whether an object is an array on a device.
pub fn is_on_device(object: &Bound<'_, PyAny>) -> bool {
    #[cfg(feature = "gpu")]
    if object.is_exact_instance_of::<crate::py::gpu::array::DeviceArray>() {
        return true;
    }
    let _ = object;
    false
}

/// Refuses an array on a device.
///
/// # Errors
///
/// [`OnDevice`], which the public functions that take such arrays handle.
pub fn check_is_on_host(object: &Bound<'_, PyAny>, argument: impl Fn() -> String) -> PyResult<()> {
    if is_on_device(object) {
        return Err(OnDevice::new_err(format!(
            "{} holds an array on a device; this function takes tensors in host memory, such as a copy by .numpy()",
            argument()
        )));
    }
    Ok(())
}

/// Returns the entry of a list at `index`.
///
/// # Safety
///
/// The list must have that many entries, and no other code a reference to it.
#[inline(always)]
unsafe fn entry<'a, 'py>(list: &'a Bound<'py, PyList>, index: usize) -> Borrowed<'a, 'py, PyAny> {
    // SAFETY: the caller's contract.
    unsafe { Borrowed::from_ptr(list.py(), ffi::PyList_GetItem(list.as_ptr(), index.cast_signed())) }
}

impl<'a, 'py> Prepared<'a, 'py> {
    /// Finds the way in of every entry, and does everything that may run foreign code.
    pub fn new(
        entries: &'a Bound<'py, PyList>,
        accepted: AcceptedDTypes,
        access: Access,
        name: ArgumentName<'a>,
    ) -> PyResult<Self> {
        let count = entries.len();
        let mut prepared = Self {
            entries,
            ready: None,
            accepted,
            access,
            name,
            types: Vec::new(),
            autograd: OnceCell::new(),
            dtypes: DTypeCache::default(),
            conversions: Vec::new(),
            opened: Opened { views: with_capacity(count)?, ..Opened::default() },
        };
        // The tensors of the library with autograd, with their indices.
        let mut tensors: Option<Bound<'py, PyList>> = None;
        let mut indices = Vec::new();
        let mut start = 0;
        if let Some(exchange) = prepared.common_exchange()? {
            prepared.opened.origins = filled(Origin::Exchange(exchange), count)?;
            prepared.opened.lenders = filled(Some(exchange), count)?;
            tensors = Some(objects::copy_to_list(entries.as_any())?);
            reserve(&mut indices, count)?;
            indices.extend(0..count);
            start = count;
        }
        for index in start..count {
            // SAFETY: the list has `count` entries and belongs to this call.
            let object = unsafe { entry(entries, index) };
            if object.is_none() || is_plain_array(&object) {
                continue;
            }
            if let Way::Exchange { exchange, has_autograd: true } = prepared.way(&object)? {
                // Most objects that are no arrays: nothing is converted.
                prepared.set(index, Origin::Exchange(exchange), Some(exchange))?;
                append(&mut tensors, &object)?;
                reserve(&mut indices, 1)?;
                indices.push(index);
                continue;
            }
            let object = object.to_owned();
            let (ready, way) = prepared.enter(object.clone(), index, true)?;
            if let Some(Way::Exchange { has_autograd: true, .. } | Way::WithoutExchange) = way {
                append(&mut tensors, &ready)?;
                reserve(&mut indices, 1)?;
                indices.push(index);
            }
            if !ready.is(&object) {
                prepared.replace(index, ready)?;
            }
        }
        if let Some(tensors) = &tensors {
            prepared.ask_autograd(tensors, &indices)?;
        }
        if let Some(tensors) = tensors
            && let Some(more) = prepared.opened.versioned.replace(tensors)
        {
            more.iter().try_for_each(|tensor| append(&mut prepared.opened.versioned, &tensor))?;
        }
        prepared.opened.versioned_indices = indices;
        Ok(prepared)
    }

    /// Takes the snapshots.
    pub fn open(mut self) -> PyResult<Opened<'py>> {
        while !self.read()? {}
        Ok(self.opened)
    }

    /// Replaces an entry of the list of objects to read.
    fn replace(&mut self, index: usize, object: Bound<'py, PyAny>) -> PyResult<()> {
        let list = match &mut self.ready {
            Some(list) => list,
            ready => ready.insert(objects::copy_to_list(self.entries.as_any())?),
        };
        list.set_item(index, object)
    }

    /// Makes an object ready to be read. Returns the object to read, and its way in.
    fn enter(
        &mut self,
        object: Bound<'py, PyAny>,
        index: usize,
        may_convert: bool,
    ) -> PyResult<(Bound<'py, PyAny>, Option<Way>)> {
        let way = self.way(&object)?;
        match way {
            Way::Array if is_native(&object) => {}
            Way::Snapshot => {
                let snapshot = object.cast_exact::<Snapshot>()?.get();
                self.set(index, snapshot.origin().clone(), snapshot.lender())?;
                if let Some(memory) = snapshot.copied(object.py())? {
                    self.set_copied(index, memory)?;
                }
                if let Some(tensor) = snapshot.tensor() {
                    append(&mut self.opened.versioned, tensor.bind(object.py()))?;
                }
            }
            Way::Exchange { exchange, has_autograd: true } => {
                self.set(index, Origin::Exchange(exchange), Some(exchange))?;
            }
            // The exchange functions do not tell whether the memory may be written; a capsule does.
            Way::Exchange { exchange, .. } if !self.access.writes => {
                self.set(index, Origin::Array, Some(exchange))?;
            }
            Way::WithoutExchange => self.set(index, Origin::Framework(Framework::WITH_AUTOGRAD), None)?,
            Way::Capsule(framework) => {
                return self.import(&object, framework, index).map(|object| (object, None));
            }
            Way::Exchange { .. } => return self.import(&object, None, index).map(|object| (object, None)),
            Way::Array | Way::Converted if may_convert => {
                return self.convert(object, index, None);
            }
            Way::Array | Way::Converted => {
                return Err(not_an_array(&object, &self.name.entry(index)).into());
            }
        }
        Ok((object, Some(way)))
    }

    /// Notes the kind of results of an entry, and who lent its memory.
    #[inline]
    fn set(&mut self, index: usize, origin: Origin, lender: Option<Exchange>) -> PyResult<()> {
        let opened = &mut self.opened;
        if opened.origins.is_empty() {
            opened.origins = filled(Origin::Array, self.entries.len())?;
            opened.lenders = filled(None, self.entries.len())?;
        }
        opened.origins[index] = origin;
        opened.lenders[index] = lender;
        Ok(())
    }

    /// Notes the memory that an entry was copied from.
    fn set_copied(&mut self, index: usize, memory: View<'py>) -> PyResult<()> {
        if self.opened.copied.is_empty() {
            self.opened.copied = collect((0..self.entries.len()).map(|_| None))?;
        }
        self.opened.copied[index] = Some(memory);
        Ok(())
    }

    /// Imports an object with `__dlpack__`.
    fn import(
        &mut self,
        object: &Bound<'py, PyAny>,
        framework: Option<Framework>,
        index: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        if self.access.writes && framework.is_some_and(|framework| !framework.is_mutable()) {
            // Python code raises, and says what can be written.
            return Ok(self.convert(object.clone(), index, None)?.0);
        }
        let origin = framework.map_or(Origin::Array, Origin::Framework);
        let imported = match framework.map_or(Ok(true), |framework| framework.has_capsule(object)) {
            Ok(true) => ImportedTensor::import(object, framework == Some(Framework::WITH_AUTOGRAD), || {
                self.name.entry(index)
            }),
            Ok(false) => Err(Error::Type("its elements are no numbers".into()).into()),
            Err(error) => Err(error),
        };
        match imported {
            Ok(imported) if imported.get().device().is_host() => {
                self.set(index, origin, None)?;
                Ok(imported.into_any())
            }
            Ok(imported) => {
                let device = imported.get().device().name();
                let error = Error::Type(format!("it is in the memory of {device}, not of the CPU")).into();
                Ok(self.convert(object.clone(), index, Some(error))?.0)
            }
            Err(error) if is_passed_on(&error, object.py()) => Err(error),
            Err(error) => Ok(self.convert(object.clone(), index, Some(error))?.0),
        }
    }

    /// Lets Python code convert an object, and makes the result ready to be read. `error` is the exception that an
    /// attempt without a conversion ended with.
    fn convert(
        &mut self,
        object: Bound<'py, PyAny>,
        index: usize,
        error: Option<PyErr>,
    ) -> PyResult<(Bound<'py, PyAny>, Option<Way>)> {
        let py = object.py();
        if self.conversions.is_empty() {
            self.conversions = filled(0, self.entries.len())?;
        }
        self.conversions[index] += 1;
        if self.conversions[index] > MOST_CONVERSIONS {
            return Err(not_an_array(&object, &self.name.entry(index)).into());
        }
        let conversions = py.import(intern!(py, "fastclip._arguments.arrays"))?;
        if is_array(&object) && !self.access.writes {
            // Arrays that are not supported are rejected below, with a message.
            let memory = conversions.getattr(intern!(py, "native_view"))?.call1((object.clone(),));
            let view = |memory| View::new(memory, AcceptedDTypes::Any, &mut self.dtypes, String::new).ok();
            if let Some(memory) = memory.ok().and_then(view) {
                self.set_copied(index, memory)?;
            }
        }
        let arguments = (object, self.name.entry(index), self.access.writes, error);
        let answer = conversions.getattr(intern!(py, "converted"))?.call1(arguments)?;
        let (object, make) = answer.extract::<(Bound<'py, PyAny>, Bound<'py, PyAny>)>()?;
        let (object, way) = self.enter(object, index, false)?;
        if !make.is_none() {
            let origin = self.opened.origin(index).clone();
            let lender = self.opened.lenders.get(index).copied().flatten();
            self.set(index, Origin::Holder(Arc::new((origin, make.unbind()))), lender)?;
        }
        Ok((object, way))
    }

    /// Asks the library with autograd about its tensors: whether it records what is done with them, and whether their memory has
    /// other values.
    fn ask_autograd(&mut self, tensors: &Bound<'py, PyList>, indices: &[usize]) -> PyResult<()> {
        let py = tensors.py();
        let autograd = self.autograd.get_or_init(|| Autograd::imported(py));
        let Some(autograd) = autograd else { return Ok(()) };
        if self.access.is_recorded {
            if autograd.any_is_recorded(tensors)? {
                return Err(Recorded::new_err(()));
            }
            let found = foreign(py)?.getattr(intern!(py, "find_tangent"))?.call1((tensors,))?;
            if let Some(at) = found.extract::<Option<usize>>()? {
                let name =
                    indices.get(at).map_or_else(|| self.name.argument(), |index| self.name.entry(*index));
                return Err(Error::Type(format!(
                    "{name} is a tensor with a tangent of forward-mode differentiation; it takes tensors without \
                     one, such as the primal of forward_ad.unpack_dual"
                ))
                .into());
            }
        }
        let is_capsule =
            |index: &usize| matches!(innermost(self.opened.origin(*index)), Origin::Framework(_));
        // There are no capsules of tensors whose memory has other values.
        if (self.access.needs_signs || indices.iter().any(is_capsule)) && autograd.any_is_lazy(tensors)? {
            let resolved = foreign(py)?.getattr(intern!(py, "resolved"))?;
            for (at, index) in indices.iter().enumerate() {
                let tensor = tensors.get_item(at)?;
                let object = resolved.call1((&tensor, self.name.entry(*index), self.access.writes))?;
                if !object.is(&tensor) {
                    tensors.set_item(at, &object)?;
                    self.replace(*index, object)?;
                }
            }
        }
        // Tensors without exchange functions are imported by capsules, which exist of detached tensors.
        for (at, index) in indices.iter().enumerate() {
            if !matches!(innermost(self.opened.origin(*index)), Origin::Framework(_)) {
                continue;
            }
            let tensor = tensors.get_item(at)?;
            let detached = tensor.call_method0(intern!(py, "detach"))?;
            let object = match ImportedTensor::import(&detached, true, || self.name.entry(*index)) {
                Ok(imported) => imported.into_any(),
                Err(error) if is_passed_on(&error, py) => return Err(error),
                // Python code says why it cannot be read.
                Err(error) => self.convert(tensor, *index, Some(error))?.0,
            };
            self.replace(*index, object)?;
        }
        Ok(())
    }

    /// Returns the exchange functions of the entries if all of them are tensors with autograd of one type. Such lists are
    /// common, and are prepared as a whole, which takes less time than entry by entry.
    fn common_exchange(&mut self) -> PyResult<Option<Exchange>> {
        let count = self.entries.len();
        if count == 0 {
            return Ok(None);
        }
        // SAFETY: the list has `count` entries and belongs to this call.
        let first = unsafe { entry(self.entries, 0) };
        if first.is_none() || is_plain_array(&first) {
            return Ok(None);
        }
        let Way::Exchange { exchange, has_autograd: true } = self.way(&first)? else { return Ok(None) };
        // SAFETY: as above. Reads the types of live objects.
        let class_at = |index| unsafe { ffi::Py_TYPE(entry(self.entries, index).as_ptr()) };
        let class = class_at(0);
        Ok((1..count).all(|index| class_at(index) == class).then_some(exchange))
    }

    /// Returns the way in of an object.
    #[inline]
    fn way(&mut self, object: &Bound<'py, PyAny>) -> PyResult<Way> {
        // SAFETY: reads the type of a live object.
        let class = unsafe { ffi::Py_TYPE(object.as_ptr()) };
        if let Some((_, way)) = self.types.iter().rev().find(|(known, _)| known.as_type_ptr() == class) {
            return Ok(*way);
        }
        self.new_way(object)
    }

    #[cold]
    fn new_way(&mut self, object: &Bound<'py, PyAny>) -> PyResult<Way> {
        let class = object.get_type();
        check_is_on_host(object, || self.name.argument())?;
        let way = self.way_of_type(object, &class);
        reserve(&mut self.types, 1)?;
        self.types.push((class, way));
        Ok(way)
    }

    fn way_of_type(&mut self, object: &Bound<'py, PyAny>, class: &Bound<'py, PyType>) -> Way {
        let py = object.py();
        if is_array(object) {
            // A masked array has elements without a value.
            let is_masked = !is_exactly_array(object) && class.hasattr(intern!(py, "filled")).unwrap_or(true);
            return if is_masked { Way::Converted } else { Way::Array };
        }
        if class.is(Snapshot::type_object(py)) {
            return Way::Snapshot;
        }
        let autograd = self.autograd.get_or_init(|| Autograd::imported(py)).as_ref();
        let has_autograd = autograd.is_some_and(|autograd| autograd.defines(class));
        if has_autograd && autograd.is_some_and(|autograd| autograd.is_dispatched(class)) {
            // To describe such a tensor runs Python code of its class, and its memory may be that of no tensor.
            return Way::Converted;
        }
        if let Some(exchange) = Exchange::of(class) {
            return Way::Exchange { exchange, has_autograd };
        }
        if has_autograd {
            return Way::WithoutExchange;
        }
        if class.hasattr(intern!(py, "__dlpack__")).unwrap_or(false) {
            return Way::Capsule(Framework::of(class));
        }
        Way::Converted
    }
}

/// Whether an exception says nothing of the object that raised it: an interrupt, an exit, or a lack of memory.
pub fn is_passed_on(error: &PyErr, py: Python<'_>) -> bool {
    !error.is_instance_of::<PyException>(py) || error.is_instance_of::<PyMemoryError>(py)
}

/// Returns the kind of the tensor that an object holds, or is.
fn innermost(mut origin: &Origin) -> &Origin {
    while let Origin::Holder(holder) = origin {
        origin = &holder.0;
    }
    origin
}

impl Prepared<'_, '_> {
    /// Takes the snapshots. Runs no foreign code, except to recognise a dtype that is seen for the first time. Returns
    /// false if the exchange functions refused an entry, which has then been converted: the snapshots are to be taken
    /// anew.
    fn read(&mut self) -> PyResult<bool> {
        self.opened.views.clear();
        let Some((index, error)) = self.take_snapshots()? else { return Ok(true) };
        if is_passed_on(&error, self.entries.py()) {
            return Err(error);
        }
        // Python code converts the entry, or says why it cannot be read.
        let list = self.ready.as_ref().unwrap_or(self.entries);
        let object = list.get_item(index)?;
        let (object, _) = self.convert(object, index, Some(error))?;
        self.replace(index, object)?;
        Ok(false)
    }

    /// Takes the snapshots. Returns the index of an entry that the exchange functions refused, and their exception.
    fn take_snapshots(&mut self) -> PyResult<Option<(usize, PyErr)>> {
        let Self { entries, ready, accepted, name, dtypes, opened, .. } = self;
        let list = ready.as_ref().unwrap_or(entries);
        for index in 0..list.len() {
            let name = || name.entry(index);
            // SAFETY: the list has more than `index` entries and belongs to this call.
            let object = unsafe { entry(list, index) };
            if object.is_none() {
                opened.views.push(None);
                continue;
            }
            if is_exactly_array(&object) {
                View::append(&mut opened.views, object.to_owned(), *accepted, dtypes, name)?;
                continue;
            }
            let lender = opened.lenders.get(index).copied().flatten();
            let view = if let Ok(snapshot) = object.cast_exact::<Snapshot>() {
                let view = snapshot.get().view(list.py())?;
                // Python code has run since the snapshot was taken.
                if let Some(exchange) = lender {
                    check_memory_kept(exchange, view.owner(), view.pointer.addr(), view.size)?;
                } else if !view.is_kept() {
                    return Err(memory_taken_away().into());
                }
                view
            } else if let Some(exchange) = lender {
                let view = exchange.read(&object).and_then(|tensor| {
                    // SAFETY: the functions describe the live object, which keeps its memory. `Lent` says where not.
                    Ok(unsafe { dlpack::view(object.to_owned(), &tensor, true, name)? })
                });
                match view {
                    Ok(view) => view,
                    Err(error) => return Ok(Some((index, error))),
                }
            } else if let Ok(imported) = object.cast_exact::<ImportedTensor>() {
                ImportedTensor::view(&imported, name)?
            } else {
                View::new(object.to_owned(), *accepted, dtypes, name)?
            };
            if !accepted.contains(view.dtype) {
                return Err(not_accepted(&view, *accepted, &name()).into());
            }
            opened.views.push(Some(view));
        }
        Ok(None)
    }
}

/// The error of a tensor whose dtype is not accepted.
#[cold]
fn not_accepted(view: &View, accepted: AcceptedDTypes, name: &str) -> Error {
    Error::Type(format!("{name} is {}; it takes {}", view.describe(), accepted.names()))
}
