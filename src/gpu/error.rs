//! Errors of devices.

use crate::allocation::OutOfMemory;
use thiserror::Error;

/// Why a device cannot be used, or a call to it failed.
#[derive(Debug, Error)]
pub enum GpuError {
    /// There is no device, it is lost, or it belongs to the parent of a forked process.
    #[error("{0}")]
    Unavailable(String),
    /// The memory of the device is full.
    #[error("{0}")]
    OutOfMemory(String),
    /// A shader does not compile, or does not fit its arrays.
    #[error("{0}")]
    Shader(String),
    /// The driver refused a command.
    #[error("the driver of the device reports: {0}")]
    Driver(String),
}

impl From<OutOfMemory> for GpuError {
    fn from(error: OutOfMemory) -> Self {
        Self::OutOfMemory(error.to_string())
    }
}
