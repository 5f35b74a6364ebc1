//! Steps of optimizers: gradients are measured, scaled, clipped and used in one submission, unless the step waits for
//! their norm to find out whether it is taken.

use super::array::Array;
use super::clip::{OnNonFinite, UNBOUNDED, UNCHANGED, encoded, keep, product_with};
use super::device::{Device, lock};
use super::error::GpuError;
use super::norms::Norms;
use super::plan::{Part, Plan};
use crate::allocation::{collect, filled};
use crate::kernels::factor::Factor;
use crate::operations::gradient_clipping::{Clip, Decision, GradientOptions, Verdict};
use crate::operations::magnitude::{Magnitude, Order};
use std::sync::Arc;

/// What a step does, besides its arrays.
pub struct Parameters {
    /// How gradients are clipped, and whether the step is taken.
    pub options: GradientOptions,
    /// The number that gradients are divided by.
    pub loss_scale: f64,
    /// The coefficients of the rule.
    pub coefficients: Vec<f32>,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The update was submitted.
    Taken,
    /// Nothing is updated, and the step counts as skipped.
    Skipped,
    /// Nothing is updated, because of NaN or infinity.
    Refused,
}

/// Takes a step. `new_slots` are set to 0 before they are used. Returns the norms, if gradients are measured.
///
/// # Errors
///
/// If the device is lost or has too little memory. Nothing is written then.
pub fn take(
    device: &Arc<Device>,
    plan: &Plan,
    parameters: &Parameters,
    new_slots: &[Arc<Array>],
) -> Result<(Outcome, Option<Norms>), GpuError> {
    let options = &parameters.options;
    let waits = options.may_refuse();
    let norms = options.needs_norms().then(|| Norms::new(device, plan.groups)).transpose()?;
    let update = |encoder: &mut wgpu::CommandEncoder| {
        for range in new_slots.iter().flat_map(|slot| &slot.ranges) {
            encoder.clear_buffer(&range.block.buffer, range.offset, Some(range.bytes));
        }
        plan.record(encoder, Part::Elements);
    };
    let _in_order = lock(&device.order);
    let bounds = filled(bound(parameters), plan.bound_count)?;
    device.submit(|encoder| {
        device.write(&plan.bounds, bytemuck::cast_slice(&bounds));
        device.write(&plan.parameters, bytemuck::cast_slice(&words(parameters)));
        if let Some(norms) = &norms {
            plan.record(encoder, Part::Norms);
            keep(encoder, plan, norms);
        }
        if !waits {
            update(encoder);
        }
    })?;
    let outcome = match &norms {
        Some(norms) if waits => match decide(norms, options, parameters.loss_scale)?.verdict {
            Verdict::Take { .. } => {
                device.submit(update)?;
                Outcome::Taken
            }
            Verdict::Skip => Outcome::Skipped,
            Verdict::Raise => Outcome::Refused,
        },
        _ => Outcome::Taken,
    };
    Ok((outcome, norms))
}

/// Reads the norms of a step, and returns what it does with them.
///
/// # Errors
///
/// If the device is lost.
pub fn decide(norms: &Norms, options: &GradientOptions, loss_scale: f64) -> Result<Decision, GpuError> {
    let magnitudes: Vec<_> = collect(norms.values()?.iter().map(|norm| magnitude(*norm)))?;
    Ok(options.decide(loss_scale, &magnitudes, 0)?)
}

/// Returns a norm divided by the loss scale.
#[must_use]
pub fn divided(norm: f64, loss_scale: f64) -> f64 {
    magnitude(norm).norm_divided(Order::Two, loss_scale)
}

/// Returns the magnitude of a norm. Squares of norms of float32 are in the range of float64, and their roots exact.
fn magnitude(norm: f64) -> Magnitude {
    Magnitude { value: norm * norm, exponent: 0 }
}

/// Returns the bound of the norm, as `fold.wgsl` reads it.
fn bound(parameters: &Parameters) -> [[u32; 4]; 2] {
    match parameters.options.clip {
        Clip::Norm(bound) | Clip::GlobalNorm(bound) => {
            encoded(bound, parameters.loss_scale, OnNonFinite::Propagate)
        }
        Clip::None | Clip::Value(_) => UNBOUNDED,
    }
}

/// Returns the parameters as `update.wgsl` reads them.
fn words(parameters: &Parameters) -> Vec<u32> {
    let unclipped = match parameters.loss_scale {
        1.0 => [UNCHANGED, 0, 0, 0],
        loss_scale => product_with(Factor::new(1.0, loss_scale, 0)),
    };
    let magnitude_bound = match parameters.options.clip {
        Clip::Value(bound) => bound as f32,
        _ => f32::INFINITY,
    };
    let mut words = unclipped.to_vec();
    words.extend([magnitude_bound.to_bits(), 0, 0, 0]);
    words.extend(parameters.coefficients.iter().map(|coefficient| coefficient.to_bits()));
    words
}
