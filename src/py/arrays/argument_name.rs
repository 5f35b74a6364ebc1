//! Names of arguments and of their entries, for messages.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// The name of an argument and the names of its entries. Names are formatted only where a message needs them.
#[derive(Clone, Copy)]
pub enum ArgumentName<'a, 'py> {
    /// An argument that is one array.
    Single(&'static str),
    /// An argument that is a list of arrays, with the names in a tuple of the call. The name of the argument is at
    /// index `first` of the tuple. The list of the entries' names is at `first + 1`; None stands for `argument[0]`,
    /// `argument[1]`, ….
    Listed {
        /// The tuple of names.
        names: &'a Bound<'py, PyTuple>,
        /// Index of the argument's name in the tuple.
        first: usize,
    },
    /// One part of each pair in a list.
    Paired {
        /// The name of the list.
        argument: &'static str,
        /// Index of the part in its pair: 0 or 1.
        part: usize,
    },
}

impl ArgumentName<'_, '_> {
    /// Returns the name of the argument.
    pub fn argument(&self) -> String {
        match self {
            Self::Single(name) | Self::Paired { argument: name, .. } => (*name).to_owned(),
            Self::Listed { names, first } => {
                names.get_item(*first).map_or_else(|_| "tensors".into(), |name| name.to_string())
            }
        }
    }

    /// Returns the name of the entry at `index`.
    pub fn entry(&self, index: usize) -> String {
        if let Self::Paired { argument, part } = self {
            return format!("{argument}[{index}][{part}]");
        }
        let Self::Listed { names, first } = self else { return self.argument() };
        let entries = names.get_item(first + 1);
        match entries.and_then(|entries| entries.get_item(index)) {
            Ok(name) => name.to_string(),
            Err(_) => format!("{}[{index}]", self.argument()),
        }
    }
}

/// The names of a call's inputs and outputs: a tuple of the inputs' argument, the list of their entries' names or None,
/// and the same two for the outputs.
///
/// The tuple is read only where a message needs a name.
#[derive(FromPyObject)]
#[pyo3(transparent)]
pub struct ArgumentNames<'py>(Bound<'py, PyTuple>);

impl<'py> ArgumentNames<'py> {
    /// Returns the name of the inputs' argument.
    pub fn input(&self) -> ArgumentName<'_, 'py> {
        ArgumentName::Listed { names: &self.0, first: 0 }
    }

    /// Returns the name of the outputs' argument.
    pub fn output(&self) -> ArgumentName<'_, 'py> {
        ArgumentName::Listed { names: &self.0, first: 2 }
    }
}
