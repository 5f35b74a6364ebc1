//! An argument that holds tensors, as the functions of the module take it.

use super::walk::{Kind, Node};
use crate::error::Error;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::AcceptedDTypes;
use crate::py::call::{entry, entry_that_reads};
use crate::py::objects;
use crate::py::tensors::door::{Access, open};
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::ops::Deref;
use std::sync::Arc;

/// The tensors of an argument: the entries of a container, or one tensor.
///
/// Python code holds a tree to pass the same tensors to several calls. The entries were read once.
#[pyclass(frozen, module = "fastclip._core")]
pub struct Tree {
    pub(super) argument: String,
    /// The argument itself.
    container: Py<PyAny>,
    /// The leaves. No other code has a reference to this list until the call returns it.
    pub(super) entries: Py<PyList>,
    pub(super) form: Arc<Form>,
    /// A snapshot of each leaf, if the tensors were read already.
    snapshots: Option<Py<PyList>>,
}

/// The form of an argument.
pub enum Form {
    /// One tensor.
    Leaf,
    /// A list or tuple of tensors, for which a list is returned.
    Flat,
    /// Any other container, for which one of its structure is returned.
    Nested(Vec<Node>),
}

impl Tree {
    pub(super) fn new(
        argument: &str,
        container: &Bound<'_, PyAny>,
        entries: Bound<'_, PyList>,
        form: Form,
    ) -> Self {
        Self {
            argument: argument.to_owned(),
            container: container.clone().unbind(),
            entries: entries.unbind(),
            form: Arc::new(form),
            snapshots: None,
        }
    }

    /// Returns the tree of an argument that is one tensor.
    pub fn of_tensor(tensor: &Bound<'_, PyAny>, argument: &str) -> PyResult<Self> {
        if tensor.is_none() {
            return Err(Error::Type(format!("{argument} is None; it takes an array")).into());
        }
        let entries = objects::list(tensor.py(), 1, std::iter::once(Ok(tensor.clone())))?;
        Ok(Self::new(argument, tensor, entries, Form::Leaf))
    }

    /// The name of the argument.
    pub fn argument(&self) -> &str {
        &self.argument
    }

    /// The objects to open: the leaves, or their snapshots.
    pub fn to_open<'py>(&self, py: Python<'py>) -> &Bound<'py, PyList> {
        self.snapshots.as_ref().unwrap_or(&self.entries).bind(py)
    }

    /// What a call returns that has written to the tensors: the container, or a list of the tensors if it is flat.
    pub fn written<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        match &*self.form {
            Form::Flat => self.entries.bind(py).clone().into_any(),
            Form::Leaf | Form::Nested(_) => self.container.bind(py).clone(),
        }
    }

    /// Whether both trees are flat, so that their structures differ in their lengths at most.
    fn are_flat(&self, other: &Self) -> bool {
        !matches!(*self.form, Form::Nested(_)) && !matches!(*other.form, Form::Nested(_))
    }

    /// Raises a `ValueError` if the structure differs from that of another tree: in keys, fields or lengths.
    pub fn check_same_structure(&self, py: Python<'_>, model: &Self) -> PyResult<()> {
        let (len, model_len) = (self.entries.bind(py).len(), model.entries.bind(py).len());
        if self.are_flat(model) && len == model_len {
            return Ok(());
        }
        if let (Form::Nested(nodes), Form::Nested(model_nodes)) = (&*self.form, &*model.form)
            && are_same(py, nodes, model_nodes)
        {
            return Ok(());
        }
        let (names, model_names) = (self.labels(py), model.labels(py));
        // An entry may be an IndexedSlices in one tree and an array in the other.
        let same = |(a, b): (&String, &String)| {
            a.strip_suffix(".values").unwrap_or(a) == b.strip_suffix(".values").unwrap_or(b)
        };
        let differing = names.iter().zip(&model_names).position(|pair| !same(pair));
        let (argument, model_argument) = (&self.argument, &model.argument);
        let detail = match differing {
            Some(at) => {
                format!("{argument}{} stands where {model_argument}{} does", names[at], model_names[at])
            }
            None if len == model_len => return Ok(()),
            None => format!("it has {len} entries, {model_argument} has {model_len}"),
        };
        Err(Error::Value(format!("{argument} must have the structure of {model_argument}: {detail}")).into())
    }
}

#[pymethods]
impl Tree {
    /// The leaves, as they were when the container was read.
    #[getter]
    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        entry_that_reads(py, || objects::copy_to_list(self.entries.bind(py).as_any()))
    }

    /// A snapshot of each leaf, None for an entry that is None. Empty if the tensors were not read yet.
    #[getter]
    fn snapshots<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        entry_that_reads(py, || match &self.snapshots {
            Some(snapshots) => objects::copy_to_list(snapshots.bind(py).as_any()),
            None => objects::list(py, 0, std::iter::empty()),
        })
    }

    /// Returns the name of the leaf at `index`, for messages.
    #[pyo3(name = "name")]
    fn name_in_python<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyAny>> {
        entry_that_reads(py, || objects::string(py, &self.name(index)))
    }

    /// Returns the list of the names of all leaves. It takes the time of a few single names.
    fn names<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        entry_that_reads(py, || {
            let labels = self.labels(py);
            let names = labels.iter().map(|label| objects::string(py, &format!("{}{label}", self.argument)));
            objects::list(py, labels.len(), names)
        })
    }

    /// Builds the container with other leaves.
    fn unflatten<'py>(&self, py: Python<'py>, leaves: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        entry(py, || {
            let leaves = objects::copy_to_list(leaves)?;
            if leaves.len() != self.entries.bind(py).len() {
                return Err(Error::Value("fastclip._core: leaves do not fit the tree".into()).into());
            }
            self.build(leaves)
        })
    }

    /// Returns a tree of the same names in which only some of the leaves are tensors, and the others None. The tensors
    /// must have been read. `kept` has a bool for each leaf.
    fn keeping(&self, py: Python<'_>, kept: &Bound<'_, PyAny>) -> PyResult<Self> {
        entry_that_reads(py, || {
            let kept = objects::extract(kept, |flag| flag.extract::<bool>())?;
            let snapshots = self.to_open(py);
            let items = snapshots.iter().zip(&kept);
            let items =
                items.map(|(snapshot, kept)| Ok(if *kept { snapshot } else { py.None().into_bound(py) }));
            let snapshots = objects::list(py, kept.len(), items)?;
            Ok(Self {
                argument: self.argument.clone(),
                container: self.container.clone_ref(py),
                entries: self.entries.clone_ref(py),
                form: Arc::clone(&self.form),
                snapshots: Some(snapshots.unbind()),
            })
        })
    }

    /// Raises `ValueError` if the structure differs from that of another tree.
    #[pyo3(name = "check_same_structure")]
    fn check_same_structure_in_python(&self, py: Python<'_>, model: &Bound<'_, Self>) -> PyResult<()> {
        entry_that_reads(py, || self.check_same_structure(py, model.get()))
    }
}

/// A tree that Python code holds, or that a call has made of a container.
pub enum TreeArgument<'py> {
    Held(Bound<'py, Tree>),
    Walked(Tree),
}

impl<'py> TreeArgument<'py> {
    /// Takes a tree, or walks a container.
    pub fn container(object: &Bound<'py, PyAny>, argument: &str) -> PyResult<Self> {
        match object.cast_exact::<Tree>() {
            Ok(tree) => Ok(Self::Held(tree.clone())),
            Err(_) => Ok(Self::Walked(Tree::of(object, argument, false)?)),
        }
    }

    /// As [`TreeArgument::container`], for a call that returns the container or another one of its type. Refuses one that
    /// cannot be rebuilt; Python code that holds a tree has tried that.
    pub fn returned_container(object: &Bound<'py, PyAny>, argument: &str) -> PyResult<Self> {
        let tree = Self::container(object, argument)?;
        if let Self::Walked(tree) = &tree {
            tree.try_rebuilding(object.py())?;
        }
        Ok(tree)
    }

    /// Takes a tree, or makes one of a tensor.
    pub fn tensor(object: &Bound<'py, PyAny>, argument: &str) -> PyResult<Self> {
        match object.cast_exact::<Tree>() {
            Ok(tree) => Ok(Self::Held(tree.clone())),
            Err(_) => Ok(Self::Walked(Tree::of_tensor(object, argument)?)),
        }
    }
}

impl Deref for TreeArgument<'_> {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        match self {
            Self::Held(tree) => tree.get(),
            Self::Walked(tree) => tree,
        }
    }
}

/// Walks a container of tensors, without reading them, and finds out whether it can be rebuilt.
#[pyfunction]
#[pyo3(signature = (container, argument, /))]
pub fn walk(py: Python<'_>, container: &Bound<'_, PyAny>, argument: &str) -> PyResult<Tree> {
    entry_that_reads(py, || {
        let tree = Tree::of(container, argument, true)?;
        tree.try_rebuilding(py)?;
        Ok(tree)
    })
}

/// Walks a container of tensors, and takes a snapshot of each. `writes` says whether the caller writes them, `recorded`
/// whether it returns tensors that depend on them, which autograd may have to record; in both cases a container that
/// cannot be rebuilt is refused.
#[pyfunction]
#[pyo3(signature = (container, argument, /, *, writes = false, recorded = false))]
pub fn open_tensors(
    py: Python<'_>,
    container: &Bound<'_, PyAny>,
    argument: &str,
    writes: bool,
    recorded: bool,
) -> PyResult<Tree> {
    entry_that_reads(py, || {
        let tree = Tree::of(container, argument, false)?;
        if writes || recorded {
            tree.try_rebuilding(py)?;
        }
        tree.with_snapshots(py, writes, recorded)
    })
}

/// Takes a snapshot of one tensor, see [`open_tensors`].
#[pyfunction]
#[pyo3(signature = (tensor, argument, /, *, writes = false, recorded = false))]
pub fn open_tensor(
    py: Python<'_>,
    tensor: &Bound<'_, PyAny>,
    argument: &str,
    writes: bool,
    recorded: bool,
) -> PyResult<Tree> {
    entry_that_reads(py, || Tree::of_tensor(tensor, argument)?.with_snapshots(py, writes, recorded))
}

impl Tree {
    /// Reads the tensors.
    fn with_snapshots(mut self, py: Python<'_>, writes: bool, is_recorded: bool) -> PyResult<Self> {
        let access = Access { writes, needs_signs: true, is_recorded };
        let opened = open(self.entries.bind(py), AcceptedDTypes::Any, access, ArgumentName::Tree(&self))?;
        let count = opened.views.len();
        let snapshots = objects::list(py, count, (0..count).map(|index| opened.snapshot(py, index)))?;
        self.snapshots = Some(snapshots.unbind());
        Ok(self)
    }
}

/// Whether two trees have the same containers with the very same keys. (Others may still be equal.)
fn are_same(py: Python<'_>, nodes: &[Node], others: &[Node]) -> bool {
    let same_keys = |keys: &Py<PyList>, other: &Py<PyList>| {
        keys.bind(py).iter().zip(other.bind(py)).all(|(key, other)| key.is(&other))
    };
    nodes.len() == others.len()
        && nodes.iter().zip(others).all(|pair| match pair {
            (Node::Leaf, Node::Leaf) => true,
            (Node::Container { kind, len }, Node::Container { kind: other, len: other_len }) => {
                len == other_len
                    && match (kind, other) {
                        (Kind::List | Kind::Tuple, Kind::List | Kind::Tuple) => true,
                        (Kind::NamedTuple(class), Kind::NamedTuple(other)) => class.is(other),
                        (Kind::Dict(_, keys), Kind::Dict(_, other)) => same_keys(keys, other),
                        _ => false,
                    }
            }
            _ => false,
        })
}
