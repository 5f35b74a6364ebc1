//! Walking a container.

use super::argument::{Form, Tree};
use crate::allocation::reserve;
use crate::error::Error;
use crate::py::arrays::ndarray_type::{is_array, is_exactly_array};
use crate::py::objects;
use crate::py::tensors::door::check_is_on_host;
use numpy::npyffi::{self, NpyTypes};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyComplex, PyDict, PyFloat, PyInt, PyList, PyModule, PyString, PyTuple, PyType};
use pyo3::{ffi, intern};

/// Most containers inside of each other. A container that contains itself has no end, and a thread may have a stack of
/// no more than 128 KiB.
const DEEPEST: usize = 128;

/// Entries after which a walk lets handlers of signals run: lists that are shared may have very many.
const ENTRIES_PER_CHECK: usize = 1 << 14;

/// Most dimensions of an array that nested lists of numbers stand for: NumPy's limit.
const MOST_DIMENSIONS: usize = 64;

/// A leaf or a container, in the order in which a walk comes to them.
pub enum Node {
    /// An entry that is no container.
    Leaf,
    /// A container, followed by its entries.
    Container { kind: Kind, len: usize },
}

/// The type of a container.
pub enum Kind {
    List,
    Tuple,
    /// A named tuple, by its class.
    NamedTuple(Py<PyType>),
    /// A dict, by its class and its keys.
    Dict(DictClass, Py<PyList>),
    /// A container of another type, by the Python object that rebuilds it.
    Rebuilt(Py<PyAny>),
}

/// The class of a dict that is rebuilt without Python code.
pub enum DictClass {
    Dict,
    /// `collections.OrderedDict`, whose order is not that of the dict below it.
    Ordered,
    /// `collections.defaultdict`, by its factory.
    Default(Py<PyAny>),
}

/// `collections.OrderedDict`.
pub(super) fn ordered_dict(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "collections", "OrderedDict")
}

/// `collections.defaultdict`.
pub(super) fn default_dict(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "collections", "defaultdict")
}

/// Returns the module of Python code that rebuilds containers of other types.
pub(super) fn rebuilding(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE
        .get_or_try_init(py, || Ok::<_, PyErr>(py.import("fastclip._arguments.rebuilding")?.unbind()))?;
    Ok(module.bind(py))
}

/// The entries of one container, as they were at one moment.
struct Read<'py> {
    kind: Kind,
    entries: Bound<'py, PyList>,
}

/// The state of a walk.
struct Walker<'a, 'py> {
    argument: &'a str,
    /// Whether arrays on a device are leaves, or end the walk.
    takes_devices: bool,
    entries: Bound<'py, PyList>,
    nodes: Vec<Node>,
    /// The containers that the walk is in, from the outermost, as indices of nodes, and the index of the current entry.
    path: Vec<(usize, usize)>,
    /// Types whose instances are leaves.
    leaf_types: Vec<Bound<'py, PyType>>,
    /// Classes of named tuples, and whether they are ordinary.
    named_tuples: Vec<(Bound<'py, PyType>, bool)>,
    /// Number of entries that were visited.
    visited: usize,
}

impl Tree {
    /// Walks a container. `takes_devices` says whether its tensors may be arrays on a device.
    ///
    /// # Errors
    ///
    /// `OnDevice` for an array on a device if it is not taken; a `TypeError` if the object is no container of tensors, or
    /// has one in it that cannot be read; a `ValueError` if it is nested too deeply, or contains itself.
    pub fn of(container: &Bound<'_, PyAny>, argument: &str, takes_devices: bool) -> PyResult<Self> {
        let py = container.py();
        let mut walker = Walker {
            argument,
            takes_devices,
            entries: objects::list(py, 0, std::iter::empty())?,
            nodes: Vec::new(),
            path: Vec::new(),
            leaf_types: Vec::new(),
            named_tuples: Vec::new(),
            visited: 0,
        };
        let is_sequence =
            container.is_exact_instance_of::<PyList>() || container.is_exact_instance_of::<PyTuple>();
        let root = if is_sequence {
            let kind = if container.is_exact_instance_of::<PyList>() { Kind::List } else { Kind::Tuple };
            Read { kind, entries: objects::copy_to_list(container)? }
        } else if is_dict_values(container) {
            Read { kind: Kind::List, entries: objects::sequence_to_list(container)? }
        } else {
            walker.read(container, true)?.ok_or_else(|| Error::Type(format!("{argument} is no container")))?
        };
        let mut is_flat = matches!(root.kind, Kind::List | Kind::Tuple);
        if let Kind::Rebuilt(rebuilder) = &root.kind {
            is_flat = rebuilder.bind(py).getattr(intern!(py, "is_sequence"))?.is_truthy()?;
        }
        // A list or tuple without containers gives a list, which needs no nodes.
        if is_flat && walker.all_are_leaves(&root.entries)? {
            return Ok(Self::new(argument, container, root.entries, Form::Flat));
        }
        walker.enter(root)?;
        let Walker { entries, nodes, .. } = walker;
        Ok(Self::new(argument, container, entries, Form::Nested(nodes)))
    }
}

impl<'py> Walker<'_, 'py> {
    /// Walks the entries of a container.
    fn enter(&mut self, container: Read<'py>) -> PyResult<()> {
        if self.path.len() >= DEEPEST {
            return Err(
                Error::Value(format!("{} is nested too deeply, or contains itself", self.argument)).into()
            );
        }
        let Read { kind, entries } = container;
        let (node, len) = (self.nodes.len(), entries.len());
        reserve(&mut self.nodes, 1)?;
        self.nodes.push(Node::Container { kind, len });
        for (index, entry) in entries.iter().enumerate() {
            self.visit(entry.py())?;
            reserve(&mut self.path, 1)?;
            self.path.push((node, index));
            if let Some(inner) = self.read(&entry, false)? {
                self.enter(inner)?;
            } else {
                reserve(&mut self.nodes, 1)?;
                self.nodes.push(Node::Leaf);
                self.entries.append(entry)?;
            }
            self.path.pop();
        }
        Ok(())
    }

    /// Whether no entry of a list is a container.
    fn all_are_leaves(&mut self, entries: &Bound<'py, PyList>) -> PyResult<bool> {
        for (index, entry) in entries.iter().enumerate() {
            if self.is_leaf(&entry)? {
                continue;
            }
            if !is_builtin_container(&entry) {
                // The node of the root does not exist yet: the name of the entry is that in a list.
                let name = format!("{}[{index}]", self.argument);
                if special(&entry, &name, false)?.is_none() {
                    continue;
                }
            } else if self.is_numbers(&entry, 0)? {
                continue;
            }
            return Ok(false);
        }
        Ok(true)
    }

    /// Reads a container; returns None for a leaf.
    fn read(&mut self, value: &Bound<'py, PyAny>, is_root: bool) -> PyResult<Option<Read<'py>>> {
        let py = value.py();
        if let Ok(dict) = value.cast_exact::<PyDict>() {
            // Nothing runs between the two calls that could change the dict.
            let (keys, entries) = (objects::dict_keys(dict)?, objects::dict_values(dict)?);
            return Ok(Some(Read { kind: Kind::Dict(DictClass::Dict, keys.unbind()), entries }));
        }
        if let Some(read) = read_dict_of_collections(value)? {
            return Ok(Some(read));
        }
        let kind = if value.is_exact_instance_of::<PyList>() {
            Kind::List
        } else if value.is_exact_instance_of::<PyTuple>() {
            Kind::Tuple
        } else if !is_root && self.is_leaf(value)? {
            return Ok(None);
        } else if self.is_plain_named_tuple(value)? {
            Kind::NamedTuple(value.get_type().unbind())
        } else {
            let path = if is_root { self.argument.to_owned() } else { self.path_name(py) };
            let Some(rebuilder) = special(value, &path, is_root)? else { return Ok(None) };
            let entries = rebuilder.getattr(intern!(py, "entries"))?;
            let entries = objects::copy_to_list(&entries)?;
            return Ok(Some(Read { kind: Kind::Rebuilt(rebuilder.unbind()), entries }));
        };
        if !matches!(kind, Kind::NamedTuple(_)) && self.is_numbers(value, 0)? {
            return Ok(None);
        }
        Ok(Some(Read { kind, entries: objects::copy_to_list(value)? }))
    }

    /// Whether an object is no container, by its type alone.
    fn is_leaf(&mut self, value: &Bound<'py, PyAny>) -> PyResult<bool> {
        if value.is_none() || is_exactly_array(value) {
            return Ok(true);
        }
        // SAFETY: reads the type of a live object.
        let class = unsafe { ffi::Py_TYPE(value.as_ptr()) };
        if self.leaf_types.iter().any(|known| known.as_type_ptr() == class) {
            return Ok(true);
        }
        if is_builtin_container(value) {
            return Ok(false);
        }
        if is_array(value) {
            return Ok(true);
        }
        if !is_tensor_type(value) {
            return Ok(false);
        }
        if !self.takes_devices {
            check_is_on_host(value, || self.argument.to_owned())?;
        }
        reserve(&mut self.leaf_types, 1)?;
        self.leaf_types.push(value.get_type());
        Ok(true)
    }

    /// Counts a visited entry, and lets handlers of signals run now and then.
    fn visit(&mut self, py: Python<'py>) -> PyResult<()> {
        self.visited += 1;
        if self.visited.is_multiple_of(ENTRIES_PER_CHECK) { py.check_signals() } else { Ok(()) }
    }

    /// Whether nested lists hold only numbers, so that they stand for one array.
    fn is_numbers(&mut self, value: &Bound<'py, PyAny>, depth: usize) -> PyResult<bool> {
        self.visit(value.py())?;
        if depth > MOST_DIMENSIONS || !(value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>())
        {
            return Ok(is_number(value));
        }
        let entries = objects::copy_to_list(value)?;
        for entry in &entries {
            if !self.is_numbers(&entry, depth + 1)? {
                return Ok(false);
            }
        }
        Ok(!entries.is_empty())
    }

    /// Whether an object is an instance of an ordinary class of named tuples: one that iterates as a tuple does, and
    /// whose instances have no attributes.
    fn is_plain_named_tuple(&mut self, value: &Bound<'py, PyAny>) -> PyResult<bool> {
        let py = value.py();
        let Ok(tuple) = value.cast::<PyTuple>() else { return Ok(false) };
        let class = value.get_type();
        let known = self.named_tuples.iter().find(|(known, _)| known.is(&class));
        let is_plain = if let Some((_, is_plain)) = known {
            *is_plain
        } else {
            let check = rebuilding(py)?.getattr(intern!(py, "is_plain_named_tuple"))?;
            let is_plain = check.call1((&class,))?.is_truthy()?;
            reserve(&mut self.named_tuples, 1)?;
            self.named_tuples.push((class.clone(), is_plain));
            is_plain
        };
        // An instance may have another number of entries than its class has fields.
        Ok(is_plain && class.getattr(intern!(py, "_fields"))?.len()? == tuple.len())
    }

    /// Returns the name of the current entry.
    fn path_name(&self, py: Python<'_>) -> String {
        let mut name = self.argument.to_owned();
        for (node, index) in &self.path {
            if let Node::Container { kind, .. } = &self.nodes[*node] {
                name += &kind.label(py, *index);
            }
        }
        name
    }
}

/// Reads an instance of `OrderedDict` or `defaultdict`; returns None for other objects, and for instances with
/// attributes, which Python code copies.
fn read_dict_of_collections<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Read<'py>>> {
    let py = value.py();
    let Ok(dict) = value.cast::<PyDict>() else { return Ok(None) };
    let class = value.get_type();
    if class.is(default_dict(py)?) {
        let factory = value.getattr(intern!(py, "default_factory"))?;
        // Nothing runs between the two calls that could change the dict.
        let (keys, entries) = (objects::dict_keys(dict)?, objects::dict_values(dict)?);
        let kind = Kind::Dict(DictClass::Default(factory.unbind()), keys.unbind());
        return Ok(Some(Read { kind, entries }));
    }
    if !class.is(ordered_dict(py)?) || !value.getattr(intern!(py, "__dict__"))?.cast::<PyDict>()?.is_empty() {
        return Ok(None);
    }
    // Reading items compares keys, which may run code that changes the dict: keys and entries are taken together.
    let items = objects::sequence_to_list(&value.call_method0(intern!(py, "items"))?)?;
    let keys = objects::list(py, 0, std::iter::empty())?;
    let entries = objects::list(py, 0, std::iter::empty())?;
    for item in items.iter() {
        let pair = item.cast::<PyTuple>()?;
        keys.append(pair.get_item(0)?)?;
        entries.append(pair.get_item(1)?)?;
    }
    Ok(Some(Read { kind: Kind::Dict(DictClass::Ordered, keys.unbind()), entries }))
}

/// Whether an object is exactly a list, a tuple, or a dict of Python's own classes.
fn is_builtin_container(value: &Bound<'_, PyAny>) -> bool {
    let is_dict_of_collections = || {
        let (py, class) = (value.py(), value.get_type());
        let is = |known: PyResult<&Bound<'_, PyType>>| known.is_ok_and(|known| class.is(known));
        is(ordered_dict(py)) || is(default_dict(py))
    };
    value.is_exact_instance_of::<PyList>()
        || value.is_exact_instance_of::<PyTuple>()
        || value.is_exact_instance_of::<PyDict>()
        || (value.is_instance_of::<PyDict>() && is_dict_of_collections())
}

/// Whether an object is the view of the values of a dict.
fn is_dict_values(value: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a live object, and a static type of Python. The views of an OrderedDict are of a subclass.
    unsafe { ffi::PyObject_TypeCheck(value.as_ptr(), &raw mut ffi::PyDictValues_Type) != 0 }
}

/// Whether instances of an object's type are tensors, numbers or text: they implement a protocol of arrays.
#[cold]
fn is_tensor_type(value: &Bound<'_, PyAny>) -> bool {
    let py = value.py();
    if is_number(value)
        || value.is_instance_of::<PyString>()
        || value.is_instance_of::<PyBytes>()
        || value.is_exact_instance_of::<super::super::tensors::snapshot::Snapshot>()
    {
        return true;
    }
    let class = value.get_type();
    let protocols = [intern!(py, "__dlpack__"), intern!(py, "__array__"), intern!(py, "__array_interface__")];
    protocols.iter().any(|protocol| class.hasattr(*protocol).unwrap_or(false))
}

/// Whether an object is a number of Python or NumPy.
fn is_number(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyFloat>()
        || value.is_instance_of::<PyInt>()
        || value.is_instance_of::<PyComplex>()
        || {
            // SAFETY: a static type of NumPy's API, and a live object.
            unsafe {
                let generic = npyffi::get_type_object(value.py(), NpyTypes::PyGenericArrType_Type);
                ffi::PyObject_TypeCheck(value.as_ptr(), generic) != 0
            }
        }
}

/// Returns the Python object that rebuilds a container of another type; None for an object that is no container.
fn special<'py>(value: &Bound<'py, PyAny>, path: &str, is_root: bool) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = value.py();
    let rebuilder = rebuilding(py)?.getattr(intern!(py, "rebuilder"))?.call1((value, path, is_root))?;
    Ok(if rebuilder.is_none() { None } else { Some(rebuilder) })
}
