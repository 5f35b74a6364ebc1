//! The operations, each put together from passes of the engine: norms, clipping, and an optimizer's step.

pub mod axes;
pub mod clamp;
pub mod clip;
pub mod magnitude;
pub mod norms;
pub mod rules;
pub mod update;
