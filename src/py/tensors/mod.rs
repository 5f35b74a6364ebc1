//! The door: the one place where objects become views. What is behind it never knows whose memory it reads or writes.
//!
//! An object comes in by one of these ways, which are tried in this order:
//!
//! - an `ndarray`, by its own fields;
//! - an instance of a type with `DLPack`'s exchange functions, by one C call (`exchange.rs`);
//! - an object with `__dlpack__`, by a capsule (`imported.rs`);
//! - any other object, after `fastclip._arguments.foreign` has converted it to one of these.
//!
//! Results go out as what came in (`origin.rs`). The libraries that are treated in a way of their own are named in
//! `frameworks.rs`, and on the side of Python in `fastclip/_arguments/foreign.py`.
//!
//! # Memory that other libraries own
//!
//! A tensor that came in as a capsule keeps its memory until fastclip drops the capsule. The exchange functions give no
//! such promise: the tensor object is kept alive, but code may give it other memory (by `set_`, `.data = …`,
//! `untyped_storage().resize_`). Handlers of signals, which run between the passes of a call, may do so: then the call
//! raises, and has written nothing ([`opened::Lent`]). Another thread that does so during a pass is a race, as it is with
//! the library's own functions.

pub mod dlpack;
pub mod door;
pub mod exchange;
pub mod exported;
pub mod frameworks;
pub mod imported;
pub mod opened;
pub mod origin;
pub mod snapshot;
