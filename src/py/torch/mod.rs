//! The calls of `fastclip.torch`: clipping of gradients and steps of optimizers, by PyTorch's rules.
//!
//! They take plain tensors only (`plain.rs`), and report others to Python code, which passes them to PyTorch.

pub mod clip;
pub mod plain;
pub mod step;
