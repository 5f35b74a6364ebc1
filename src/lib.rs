//! fastclip: gradient clipping and optimizer steps on CPUs, at the speed of memory.
//!
//! # Folders
//!
//! - `py`: the bindings for Python, and the only code that uses an interpreter. Feature `python`.
//! - `operations`: norms, clipping and optimizer steps. Each is one or more passes of the engine. [`rules`] has the
//!   update formulas of the optimizers.
//! - `engine`: descriptions of memory (`segment`), their division into chunks (`plan`), passes over all chunks
//!   (`exec`) on the threads of a pool (`pool`), and memory for results (`memory`). [`isa`] selects the SIMD level.
//! - [`kernels`]: the arithmetic on slices, one operation a file.
//! - [`scalar`], `allocation` and `error`: element types, allocations that report failure, and the error type.
//!
//! # How data travels
//!
//! 1. `py` takes a snapshot of each array that Python passes (pointer, dtype, shape, strides, flags), checks all of
//!    them, and allocates the outputs. It then describes each array and its output as a `Segment`: a sequence of
//!    reals.
//! 2. A `Plan` divides the segments into chunks. Chunk boundaries depend on lengths alone, so that results do not
//!    depend on the number of threads. A `Workspace` holds the memory that passes need, so that a pass that writes does
//!    not allocate, and cannot fail.
//! 3. `py` releases the interpreter, and an operation makes its passes. Clipping by a global norm makes two: the first
//!    computes the magnitude of each segment from the partial results of its chunks, the second multiplies all elements
//!    by one factor.
//! 4. In a pass, threads take chunks from the plan and call kernels with the chunk's memory. Memory that is not
//!    contiguous is copied to a scratch buffer before, and back after.
//! 5. `py` returns the output arrays.
//!
//! # Public items
//!
//! The kernels, the update rules and the SIMD levels are public, for the benchmarks: they are safe functions over
//! slices. Types that describe memory by pointers are private, because a wrong description would make safe code read
//! or write memory that it must not access:
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
    reason = "numeric code: each narrowing is intended; pointers to bytes are cast after their alignment was checked"
)]
#![allow(
    clippy::module_name_repetitions,
    clippy::inline_always,
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::similar_names,
    reason = "formulas use the letters of their sources; kernels must be inlined into their SIMD context"
)]
#![cfg_attr(
    not(feature = "python"),
    allow(dead_code, unused_imports, reason = "used by the bindings; without them by tests only")
)]

mod allocation;
mod engine;
mod error;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod kernels;
mod operations;
pub mod scalar;

pub use engine::isa;
pub use operations::rules;

#[cfg(feature = "python")]
mod py;
