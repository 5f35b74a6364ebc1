//! Names of arguments and of their entries, for messages.

use crate::py::trees::Tree;

/// The name of an argument and the names of its entries. Names are formatted only where a message needs them.
#[derive(Clone, Copy)]
pub enum ArgumentName<'a> {
    /// An argument that is one array.
    Single(&'a str),
    /// An argument that is a list of arrays: its entries are `argument[0]`, `argument[1]`, ….
    List(&'a str),
    /// An argument that is a container of tensors, or one tensor.
    Tree(&'a Tree),
    /// The outputs of a call in place, which are its inputs.
    InPlace(&'a Tree),
    /// One part of each pair in a list.
    Paired {
        /// The name of the list.
        argument: &'a str,
        /// Index of the part in its pair: 0 or 1.
        part: usize,
    },
}

impl ArgumentName<'_> {
    /// Returns the name of the argument.
    pub fn argument(&self) -> String {
        match self {
            Self::Single(name) | Self::Paired { argument: name, .. } | Self::List(name) => (*name).to_owned(),
            Self::Tree(tree) => tree.argument().to_owned(),
            Self::InPlace(_) => "out".into(),
        }
    }

    /// Returns the name of the entry at `index`.
    pub fn entry(&self, index: usize) -> String {
        match self {
            Self::Single(name) => (*name).to_owned(),
            Self::List(name) => format!("{name}[{index}]"),
            Self::Tree(tree) => tree.name(index),
            Self::InPlace(tree) => format!("out{}", tree.label(index)),
            Self::Paired { argument, part } => format!("{argument}[{index}][{part}]"),
        }
    }
}
