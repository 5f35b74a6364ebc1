//! Arrays of a call: snapshots of inputs and outputs, checks of them, and new arrays for results.

pub mod argument_name;
mod axes;
pub mod call_arrays;
pub mod dtypes;
mod extent;
pub mod list;
pub mod ndarray_type;
pub mod new_array;
pub mod output;
pub mod output_check;
pub mod overlap;
pub mod plain;
pub mod segment;
pub mod view;
