//! Norms that a call has computed, on the device until they are looked at.

use super::arena::Range;
use super::device::Device;
use super::error::GpuError;
use std::sync::{Arc, OnceLock};

/// Size of the results of one group of tensors, in bytes: two vectors of four words.
pub const RESULT_BYTES: u64 = 32;

/// Returns `mantissa / 2^64 · 2^exponent`, rounded once.
fn float(mantissa: u64, exponent: i32) -> f64 {
    // The conversion rounds the 64 bits to 53. The powers of two are exact unless the result is subnormal.
    let scaled = mantissa as f64 * f64::powi(2.0, -64);
    if exponent > -1021 {
        scaled * f64::powi(2.0, exponent.min(1000)) * f64::powi(2.0, (exponent - 1000).max(0))
    } else {
        scaled * f64::powi(2.0, -1000) * f64::powi(2.0, exponent + 1000)
    }
}

/// Returns the norm that `fold.wgsl` has written.
fn norm(words: &[u32]) -> f64 {
    let mantissa = u64::from(words[0]) << 32 | u64::from(words[1]);
    match words[3] {
        0 => float(mantissa, words[2].cast_signed()),
        1 => f64::INFINITY,
        2 => f64::NAN,
        _ => 0.0,
    }
}

/// The norms of one call.
pub struct Norms {
    device: Arc<Device>,
    ranges: Vec<Range>,
    count: usize,
    values: OnceLock<Vec<f64>>,
}

impl Norms {
    /// Allocates memory for `count` norms.
    ///
    /// # Errors
    ///
    /// If the device has too little memory.
    pub fn new(device: &Arc<Device>, count: usize) -> Result<Self, GpuError> {
        let ranges = device.allocate((count as u64).max(1) * RESULT_BYTES)?;
        Ok(Self { device: Arc::clone(device), ranges, count, values: OnceLock::new() })
    }

    /// The memory on the device.
    pub(super) fn range(&self) -> &Range {
        &self.ranges[0]
    }

    /// Returns the norms. The first call copies them from the device, and waits for the call that computes them.
    ///
    /// # Errors
    ///
    /// If the device is lost.
    pub fn values(&self) -> Result<&[f64], GpuError> {
        if let Some(values) = self.values.get() {
            return Ok(values);
        }
        let mut data = vec![0_u32; self.count * RESULT_BYTES as usize / 4];
        self.device.download(&self.ranges, bytemuck::cast_slice_mut(&mut data))?;
        let values = data.chunks_exact(RESULT_BYTES as usize / 4).map(norm).collect();
        Ok(self.values.get_or_init(|| values))
    }
}

impl Drop for Norms {
    fn drop(&mut self) {
        self.device.free(&self.ranges);
    }
}
