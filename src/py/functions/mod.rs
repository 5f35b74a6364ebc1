//! The functions that `fastclip` calls: one crossing each, however many arrays.

#![allow(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    reason = "arguments come from Python: extracted by value, and positional from one caller each"
)]

pub mod by_norm;
pub mod by_value;
pub mod elements;
pub mod global_norm;
mod nonfinite;
pub mod norms;
pub mod overlap;
pub mod slices;
