//! The CPU's engine: descriptions of memory, and passes over it on several threads.
//!
//! It knows nothing of norms, clipping or optimizers: an operation hands it a function that is called for every chunk.

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
