//! Rebuilding a container with other entries.

use super::argument::{Form, Tree};
use super::walk::{DictClass, Kind, Node, default_dict, ordered_dict, rebuilding};
use crate::error::Error;
use crate::py::objects;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple, PyType};

impl Tree {
    /// Builds the container with other entries, of which there must be one for each leaf.
    pub fn build<'py>(&self, results: Bound<'py, PyList>) -> PyResult<Bound<'py, PyAny>> {
        match &*self.form {
            Form::Leaf => results.get_item(0),
            Form::Flat => Ok(results.into_any()),
            Form::Nested(nodes) => {
                let mut builder = Builder { nodes, position: 0, results, leaf: 0 };
                let built = builder.next()?;
                for rebuilder in self.rebuilders(built.py()) {
                    // Checked when all are filled, to detect two containers that share their entries.
                    rebuilder.call_method0(intern!(built.py(), "check"))?;
                }
                Ok(built)
            }
        }
    }

    /// Returns the Python objects that rebuild containers of this tree.
    fn rebuilders<'a, 'py>(&'a self, py: Python<'py>) -> impl Iterator<Item = &'a Bound<'py, PyAny>>
    where
        'py: 'a,
    {
        let nodes = if let Form::Nested(nodes) = &*self.form { nodes.as_slice() } else { &[] };
        nodes.iter().filter_map(move |node| match node {
            Node::Container { kind: Kind::Rebuilt(rebuilder), .. } => Some(rebuilder.bind(py)),
            _ => None,
        })
    }

    /// Builds the container with its own entries, if it has types that Python code rebuilds, so that a failure comes
    /// before any result is computed. Calls that return no container need not do this.
    ///
    /// # Errors
    ///
    /// A `TypeError` if the container has one in it that cannot be rebuilt.
    pub(super) fn try_rebuilding(&self, py: Python<'_>) -> PyResult<()> {
        let mut all = self.rebuilders(py).peekable();
        if all.peek().is_none() {
            return Ok(());
        }
        let list = objects::list(py, 0, std::iter::empty())?;
        for rebuilder in all {
            rebuilder.call_method0(intern!(py, "prepare"))?;
            list.append(rebuilder)?;
        }
        rebuilding(py)?.getattr(intern!(py, "check_separate"))?.call1((list,))?;
        let entries = objects::copy_to_list(self.entries.bind(py).as_any())?;
        self.build(entries).map(drop)
    }
}

impl DictClass {
    /// Creates an empty dict of the class.
    fn empty<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Dict => Ok(objects::dict(py)?.into_any()),
            Self::Ordered => ordered_dict(py)?.call0(),
            Self::Default(factory) => default_dict(py)?.call1((factory,)),
        }
    }
}

/// The state of building.
struct Builder<'a, 'py> {
    nodes: &'a [Node],
    position: usize,
    results: Bound<'py, PyList>,
    leaf: usize,
}

impl<'py> Builder<'_, 'py> {
    /// Builds the next node.
    fn next(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let py = self.results.py();
        let Some(node) = self.nodes.get(self.position) else {
            return Err(Error::Value("fastclip._core: a tree ends early".into()).into());
        };
        self.position += 1;
        let Node::Container { kind, len } = node else {
            self.leaf += 1;
            return self.results.get_item(self.leaf - 1);
        };
        let entries = objects::list(py, *len, (0..*len).map(|_| self.next()))?;
        match kind {
            Kind::List => Ok(entries.into_any()),
            Kind::Tuple => Ok(objects::list_to_tuple(&entries)?.into_any()),
            Kind::NamedTuple(class) => named_tuple(class.bind(py), &entries),
            Kind::Dict(class, keys) => {
                let dict = class.empty(py)?;
                for (key, entry) in keys.bind(py).iter().zip(&entries) {
                    dict.set_item(key, entry)?;
                }
                if dict.len()? != *len {
                    return Err(
                        Error::Value("keys of a dict have become equal since it was made".into()).into()
                    );
                }
                Ok(dict)
            }
            Kind::Rebuilt(rebuilder) => rebuilder.bind(py).call_method1(intern!(py, "rebuild"), (entries,)),
        }
    }
}

/// Creates a named tuple without calling its constructor, which may have other parameters.
fn named_tuple<'py>(class: &Bound<'py, PyType>, entries: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyAny>> {
    let py = class.py();
    py.get_type::<PyTuple>().getattr(intern!(py, "__new__"))?.call1((class, entries))
}
