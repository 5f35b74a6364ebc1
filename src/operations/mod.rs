//! Norms, clipping, and an optimizer's step. Each operation is one or more passes of the engine.

pub mod axes;
pub mod clamp;
pub mod clip;
pub mod gradient_clipping;
pub mod magnitude;
pub mod norm_groups;
pub mod norms;
pub mod rows;
pub mod rules;
pub mod torch_factor;
pub mod update;
