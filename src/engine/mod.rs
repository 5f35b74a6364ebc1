//! Descriptions of memory, and passes over it on several threads.
//!
//! The engine does not depend on norms, clipping or optimizers: an operation passes it a function to call for each
//! chunk.

pub mod bandwidth;
pub mod exec;
pub mod isa;
pub mod memory;
pub mod plan;
pub mod pool;
pub mod process;
pub mod segment;
pub mod threads;
pub mod workspace;
