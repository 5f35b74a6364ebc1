//! Names of a tree's leaves, for messages. They are formatted only where a message needs them.

use super::argument::{Form, Tree};
use super::walk::{Kind, Node};
use pyo3::intern;
use pyo3::prelude::*;

impl Kind {
    /// Returns the part of a name that selects the entry at `index`: `[0]`, `['w']` or `.weight`.
    pub fn label(&self, py: Python<'_>, index: usize) -> String {
        let label = match self {
            Self::List | Self::Tuple => Ok(format!("[{index}]")),
            Self::Dict(_, keys) => {
                let key = keys.bind(py).get_item(index).and_then(|key| key.repr());
                key.map(|key| format!("[{key}]"))
            }
            Self::NamedTuple(class) => {
                let fields = class.bind(py).getattr(intern!(py, "_fields"));
                fields.and_then(|fields| fields.get_item(index)).map(|field| format!(".{field}"))
            }
            Self::Rebuilt(rebuilder) => {
                let label = rebuilder.bind(py).call_method1(intern!(py, "label"), (index,));
                label.and_then(|label| label.extract::<String>())
            }
        };
        // The label is that of the caller's key or class, whose code may fail.
        label.unwrap_or_else(|_| format!("[{index}]"))
    }
}

impl Tree {
    /// Returns the name of the leaf at `index`.
    pub fn name(&self, index: usize) -> String {
        format!("{}{}", self.argument, self.label(index))
    }

    /// Returns the part of the name of the leaf at `index` that follows the argument's name.
    pub fn label(&self, index: usize) -> String {
        Python::attach(|py| {
            let mut label = match &*self.form {
                Form::Leaf => String::new(),
                Form::Flat => format!("[{index}]"),
                Form::Nested(nodes) => find(py, nodes, &mut 0, &mut 0, index).unwrap_or_default(),
            };
            if self.holds_slices(py, index) {
                label += ".values";
            }
            label
        })
    }

    /// Returns the labels of all leaves, see [`Tree::label`].
    pub fn labels(&self, py: Python<'_>) -> Vec<String> {
        let count = self.entries.bind(py).len();
        match &*self.form {
            Form::Leaf | Form::Flat => (0..count).map(|index| self.label(index)).collect(),
            Form::Nested(nodes) => {
                let mut labels = Vec::new();
                collect(py, nodes, &mut 0, "", &mut labels);
                for (index, label) in labels.iter_mut().enumerate() {
                    if self.holds_slices(py, index) {
                        *label += ".values";
                    }
                }
                labels
            }
        }
    }

    /// Whether the leaf at `index` is an `IndexedSlices`, whose values are the tensor.
    fn holds_slices(&self, py: Python<'_>, index: usize) -> bool {
        self.entries.bind(py).get_item(index).is_ok_and(|entry| {
            let class = entry.get_type();
            class.name().is_ok_and(|name| name == "IndexedSlices")
                && class.module().is_ok_and(|module| module.to_string().starts_with("fastclip"))
        })
    }
}

/// Returns the labels that lead from the node at `position` to a leaf; None if it is not below that node. `leaf` counts
/// the leaves that were passed.
fn find(
    py: Python<'_>,
    nodes: &[Node],
    position: &mut usize,
    leaf: &mut usize,
    wanted: usize,
) -> Option<String> {
    let node = nodes.get(*position)?;
    *position += 1;
    match node {
        Node::Leaf => {
            *leaf += 1;
            (*leaf == wanted + 1).then(String::new)
        }
        Node::Container { kind, len } => (0..*len).find_map(|index| {
            let inner = find(py, nodes, position, leaf, wanted)?;
            Some(kind.label(py, index) + &inner)
        }),
    }
}

/// Appends the labels of the leaves below the node at `position`, which begin with `prefix`.
fn collect(py: Python<'_>, nodes: &[Node], position: &mut usize, prefix: &str, labels: &mut Vec<String>) {
    let Some(node) = nodes.get(*position) else { return };
    *position += 1;
    match node {
        Node::Leaf => labels.push(prefix.to_owned()),
        Node::Container { kind, len } => {
            for index in 0..*len {
                let label = format!("{prefix}{}", kind.label(py, index));
                collect(py, nodes, position, &label, labels);
            }
        }
    }
}
