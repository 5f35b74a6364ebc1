//! fastclip: gradient clipping at memory speed.
//!
//! The crate is laid out in the order that data takes: a [`segment`] describes one tensor's memory,
//! a [`plan`] cuts segments into chunks whose boundaries depend on lengths alone, [`exec`] runs the
//! chunks on the threads of [`pool`], and the [`kernels`] do the arithmetic at the SIMD level that
//! [`isa`] found. [`norms`] and [`clip`] put these together into the operations; `py` (feature
//! `python`) is the only part that knows of an interpreter.
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

pub mod axes;
pub mod bandwidth;
pub mod clip;
pub mod error;
pub mod exec;
pub mod isa;
pub mod kernels;
pub mod magnitude;
pub mod memory;
pub mod norms;
pub mod plan;
pub mod pool;
pub mod rules;
pub mod scalar;
pub mod segment;
pub mod update;

#[cfg(feature = "python")]
mod py;
