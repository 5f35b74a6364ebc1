//! Norms and clipping. One call is one submission.

use super::device::{Device, lock};
use super::error::GpuError;
use super::norms::{Norms, RESULT_BYTES};
use super::plan::{Part, Plan};
use crate::allocation::filled;
use crate::kernels::exponent::mantissa_exponent;
use crate::kernels::factor::Factor;
use std::sync::Arc;

/// What is done with tensors whose norm is infinite or NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnNonFinite {
    /// Every element becomes NaN.
    Propagate,
    /// Nothing is written. The call waits for the norm.
    Raise,
    /// Every element becomes 0.
    Zero,
}

/// Kinds of bounds, as `fold.wgsl` reads them.
const FINITE: u32 = 0;
const INFINITE: u32 = 1;
const ZERO: u32 = 2;
const NO_BOUND: u32 = 3;
/// No bound, as `fold.wgsl` reads it.
pub(super) const UNBOUNDED: [[u32; 4]; 2] = [[0, 0, 0, NO_BOUND]; 2];

/// Added to the kind of a bound: tensors with a norm that is not finite become 0.
const ZERO_NON_FINITE: u32 = 256;

/// What is done with the elements of a group, as `product.wgsl` reads it.
pub(super) const UNCHANGED: u32 = 0;
const MULTIPLIED: u32 = 1;
const ALL_NAN: u32 = 2;
const SIGNED_ZEROS: u32 = 3;
const ZEROS: u32 = 4;

/// Returns mantissa, with its highest bit set, and exponent of a positive finite number: `mantissa / 2^64 · 2^exponent`.
fn parts(value: f64) -> (u64, i32) {
    let (mantissa, exponent) = mantissa_exponent(value);
    ((mantissa * f64::powi(2.0, 63)) as u64, exponent + 1)
}

/// Returns a bound, and the norm that clipped elements get, as `fold.wgsl` reads them. The norm is compared with the
/// bound times `loss_scale`.
pub(super) fn encoded(bound: f64, loss_scale: f64, on_nonfinite: OnNonFinite) -> [[u32; 4]; 2] {
    [limit(bound * loss_scale, on_nonfinite), limit(bound, on_nonfinite)]
}

fn limit(bound: f64, on_nonfinite: OnNonFinite) -> [u32; 4] {
    let flag = if on_nonfinite == OnNonFinite::Zero { ZERO_NON_FINITE } else { 0 };
    if bound == f64::INFINITY {
        return [0, 0, 0, INFINITE | flag];
    }
    if bound <= 0.0 {
        return [0, 0, 0, ZERO | flag];
    }
    let (mantissa, exponent) = parts(bound);
    [(mantissa >> 32) as u32, mantissa as u32, exponent.cast_unsigned(), FINITE | flag]
}

/// Returns the decision to multiply by a positive factor, rounded to float32's 24 bits, as `product.wgsl` reads it.
pub(super) fn product_with(factor: Factor) -> [u32; 4] {
    let (mantissa, exponent) = parts(factor.narrow_as_f64());
    let rounded = ((mantissa >> 39) + 1) >> 1;
    // Rounding up may carry into another bit.
    let (mantissa, exponent) =
        if rounded == 1 << 24 { (1 << 23, exponent + 1) } else { (rounded as u32, exponent) };
    // The other factor is a power of two.
    let exponent = exponent + mantissa_exponent(factor.lift).1;
    [MULTIPLIED, mantissa, exponent.cast_unsigned(), 0]
}

/// Copies the results of a plan, which the next call overwrites.
pub(super) fn keep(encoder: &mut wgpu::CommandEncoder, plan: &Plan, norms: &Norms) {
    let range = norms.range();
    let bytes = plan.groups as u64 * RESULT_BYTES;
    if bytes > 0 {
        encoder.copy_buffer_to_buffer(&plan.results, 0, &range.block.buffer, range.offset, Some(bytes));
    }
}

/// Writes the bounds of a call, and submits parts of it. Returns the norms that it computes.
fn start(
    device: &Arc<Device>,
    plan: &Plan,
    bounds: &[[[u32; 4]; 2]],
    parts: &[Part],
) -> Result<Norms, GpuError> {
    let norms = Norms::new(device, plan.groups)?;
    device.submit(|encoder| {
        device.write(&plan.bounds, bytemuck::cast_slice(bounds));
        for part in parts {
            plan.record(encoder, *part);
        }
        keep(encoder, plan, &norms);
    })?;
    Ok(norms)
}

/// Submits the measurement of the arrays of a plan, and returns the norms.
///
/// # Errors
///
/// If the device is lost or has too little memory.
pub fn norms(device: &Arc<Device>, plan: &Plan) -> Result<Norms, GpuError> {
    let _in_order = lock(&device.order);
    start(device, plan, &filled(UNBOUNDED, plan.bound_count)?, &[Part::Norms])
}

/// Clips the arrays of a plan by their norm, with one bound for each group. Returns the norms. With
/// [`OnNonFinite::Raise`], arrays are only written if all norms are finite.
///
/// # Errors
///
/// If the device is lost or has too little memory. Nothing is written then.
pub fn clip(
    device: &Arc<Device>,
    plan: &Plan,
    bounds: &[f64],
    on_nonfinite: OnNonFinite,
) -> Result<Norms, GpuError> {
    let _in_order = lock(&device.order);
    let bounds: Vec<_> = bounds.iter().map(|bound| encoded(*bound, 1.0, on_nonfinite)).collect();
    if on_nonfinite != OnNonFinite::Raise {
        return start(device, plan, &bounds, &[Part::Norms, Part::Elements]);
    }
    let norms = start(device, plan, &bounds, &[Part::Norms])?;
    if norms.values()?.iter().all(|norm| norm.is_finite()) {
        device.submit(|encoder| plan.record(encoder, Part::Elements))?;
    }
    Ok(norms)
}

/// Clips the arrays of a plan by a norm that is known.
///
/// # Errors
///
/// As [`clip`].
pub fn clip_by_known_norm(
    device: &Arc<Device>,
    plan: &Plan,
    bound: f64,
    norm: f64,
    on_nonfinite: OnNonFinite,
) -> Result<(), GpuError> {
    let _in_order = lock(&device.order);
    let decision = if !norm.is_finite() {
        [if on_nonfinite == OnNonFinite::Zero { ZEROS } else { ALL_NAN }, 0, 0, 0]
    } else if bound == 0.0 {
        [SIGNED_ZEROS, 0, 0, 0]
    } else if norm <= bound {
        [UNCHANGED, 0, 0, 0]
    } else {
        product_with(Factor::new(bound, norm, 0))
    };
    device.submit(|encoder| {
        device.write(&plan.results, bytemuck::cast_slice(&[[0; 4], decision]));
        plan.record(encoder, Part::Elements);
    })
}

/// Limits the elements of a plan to the interval from `low` to `high`, which are bits of float32, or of int32 for
/// integers.
///
/// # Errors
///
/// As [`clip`].
pub fn clamp(device: &Arc<Device>, plan: &Plan, low: u32, high: u32) -> Result<(), GpuError> {
    let _in_order = lock(&device.order);
    device.submit(|encoder| {
        device.write(&plan.bounds, bytemuck::cast_slice(&[low, high, 0, 0]));
        plan.record(encoder, Part::Elements);
    })
}
