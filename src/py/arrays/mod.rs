//! Arrays on their way in and out: looked at, checked against each other, and made for results.

pub mod argument_name;
pub mod batch;
pub mod dtypes;
pub mod list;
pub mod ndarray_type;
pub mod output;
pub mod output_check;
pub mod overlap;
pub mod plain;
pub mod view;
