//! The functions that clip arrays and measure their norms, called by `fastclip`. One call serves any number of arrays.

#![allow(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    reason = "arguments come from Python: extracted by value, and positional from one caller each"
)]

pub mod accumulate;
pub mod by_norm;
pub mod by_value;
pub mod elements;
pub mod global_norm;
pub mod norms;
mod on_nonfinite;
pub mod overlap;
pub mod rows;
pub mod slices;
