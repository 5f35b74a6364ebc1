//! The errors of a call.

use crate::allocation::OutOfMemory;

/// The reason why a call fails. Nothing has been written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// An argument has a type or dtype that is not accepted.
    #[error("{0}")]
    Type(String),
    /// An argument has an accepted type, and a value that is not accepted.
    #[error("{0}")]
    Value(String),
    /// A row index is out of range.
    #[error("{0}")]
    Index(String),
    /// An allocation failed.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}
