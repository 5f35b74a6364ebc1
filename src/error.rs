//! Everything that can be wrong with a call.

use crate::allocation::OutOfMemory;

/// Why a call was refused. Nothing has been written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// An argument of a kind that is not taken.
    #[error("{0}")]
    Type(String),
    /// An argument of the right kind with a value that is not taken.
    #[error("{0}")]
    Value(String),
    /// A row that is not there.
    #[error("{0}")]
    Index(String),
    /// NaN or infinity among the inputs, under the policy that refuses them.
    #[error("{0}")]
    NonFinite(String),
    /// An allocation failed.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}
