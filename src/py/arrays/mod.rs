//! Arrays on their way in and out: looked at, checked against each other, and made for results.

pub mod batch;
pub mod output;
pub mod overlap;
pub mod view;
