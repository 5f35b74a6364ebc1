//! fastclip: gradient clipping at memory speed.
//!
//! The crate is laid out in the order that data takes: a `segment` describes one tensor's memory,
//! a `plan` cuts segments into chunks whose boundaries depend on lengths alone, `exec` runs the
//! chunks on the threads of `pool`, and the [`kernels`] do the arithmetic at the SIMD level that
//! [`isa`] found. `norms` and `clip` put these together into the operations; `py` (feature
//! `python`) is the only part that knows of an interpreter.
//!
//! Public are the kernels, the update rules and the SIMD levels, which are safe functions over slices: the benchmarks
//! call them. Whatever describes memory by pointers is this crate's alone, because a description that is wrong would
//! read or write memory of others:
//!
//! ```compile_fail,E0603
//! use fastclip::engine::segment::Segment;
//! ```
//! ```compile_fail,E0603
//! use fastclip::engine::segment::Scratch;
//! ```
//! ```compile_fail,E0603
//! use fastclip::engine::plan::Plan;
//! ```
//! ```compile_fail,E0603
//! use fastclip::operations::clip::apply;
//! ```
#![deny(clippy::all)]
#![warn(clippy::pedantic)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_ptr_alignment,
    clippy::cast_sign_loss,
    reason = "numeric code: each narrowing is the operation that is meant; pointers to bytes are cast where alignment was checked"
)]
#![allow(
    clippy::module_name_repetitions,
    clippy::inline_always,
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::similar_names,
    reason = "formulas keep their letters; kernels have to be inlined into their SIMD context"
)]
#![cfg_attr(
    not(feature = "python"),
    allow(dead_code, unused_imports, reason = "the bindings call it; without them only tests do")
)]

mod allocation;
mod engine;
mod error;
pub mod kernels;
mod operations;
pub mod scalar;

pub use engine::isa;
pub use operations::rules;

#[cfg(feature = "python")]
mod py;
