//! Containers of tensors: walked to a flat list of entries, and rebuilt with other entries.
//!
//! Lists, tuples, dicts and ordinary named tuples are walked and rebuilt here. Containers of other types are read and
//! rebuilt by Python code, `fastclip._arguments.rebuilding`, one object for each.

pub mod argument;
mod build;
mod names;
mod walk;

pub use argument::{Tree, TreeArgument};
