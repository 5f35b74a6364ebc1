//! The names of arguments and their entries, for messages.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// How an argument and its entries are called in messages.
#[derive(Clone, Copy)]
pub enum ArgumentName<'a, 'py> {
    /// One array.
    Single(&'static str),
    /// A list: its name stands in a tuple at `first`, and after it the names of its entries, or None if
    /// they are `argument[0]`, `argument[1]`, ….
    Listed {
        /// The names of a call.
        names: &'a Bound<'py, PyTuple>,
        /// Where those of this argument begin.
        first: usize,
    },
    /// The first or second part of the pairs in a list; after as many entries, the low-precision copies of those parts,
    /// and then their slots.
    Paired {
        /// The name of the list.
        argument: &'static str,
        /// Which part.
        part: usize,
        /// How many pairs there are.
        count: usize,
    },
}

impl ArgumentName<'_, '_> {
    /// The name of the argument.
    pub fn argument(&self) -> String {
        match self {
            Self::Single(name) | Self::Paired { argument: name, .. } => (*name).to_owned(),
            Self::Listed { names, first } => {
                names.get_item(*first).map_or_else(|_| "tensors".into(), |name| name.to_string())
            }
        }
    }

    /// The name of an entry.
    pub fn of(&self, index: usize) -> String {
        if let Self::Paired { argument, part, count } = self {
            let pair = format!("{argument}[{}][{part}]", index % count);
            return match index / count {
                0 => pair,
                1 => format!("the low-precision copy of {pair}"),
                _ => format!("a slot of {pair}"),
            };
        }
        let Self::Listed { names, first } = self else { return self.argument() };
        let entries = names.get_item(first + 1);
        match entries.and_then(|entries| entries.get_item(index)) {
            Ok(name) => name.to_string(),
            Err(_) => format!("{}[{index}]", self.argument()),
        }
    }
}

/// The names of a call's arguments, for messages: the inputs' argument and entries, and the outputs'.
///
/// They are looked into only when there is something to say.
#[derive(FromPyObject)]
#[pyo3(transparent)]
pub struct ArgumentNames<'py>(Bound<'py, PyTuple>);

impl<'py> ArgumentNames<'py> {
    pub fn input(&self) -> ArgumentName<'_, 'py> {
        ArgumentName::Listed { names: &self.0, first: 0 }
    }

    pub fn output(&self) -> ArgumentName<'_, 'py> {
        ArgumentName::Listed { names: &self.0, first: 2 }
    }
}
