//! Clipping and optimizer steps on graphics processors, over arrays that stay in the memory of the device.
//!
//! - [`device`]: finding and opening devices, their state, and the errors that they report.
//! - [`arena`]: memory. Arrays are ranges of a few large buffers.
//! - [`mod@array`]: arrays on a device, and transfers.
//! - [`plan`]: the tables that kernels read, and the dispatches of one call.
//! - [`clip`]: norms and clipping. One call is one submission.
//! - [`step`]: steps of optimizers.
//! - [`shader`]: shaders of the caller.
//! - [`timing`], [`bandwidth`]: how long submissions take, and how fast a device copies, for benchmarks.
//! - [`kernels`]: the arithmetic, one WGSL file a kernel.
//!
//! Nothing is opened before the first use. Devices are never closed: drivers may crash when they are closed at the end
//! of a process, and a forked child must not touch the devices of its parent.

pub mod arena;
pub mod array;
pub mod bandwidth;
pub mod clip;
pub mod device;
pub mod error;
pub mod kernels;
pub mod norms;
pub mod plan;
pub mod shader;
pub mod step;
pub mod timing;
