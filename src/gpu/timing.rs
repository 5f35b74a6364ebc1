//! How long submissions take on a device, by its own clock. For benchmarks.

use super::device::{Device, lock};
use super::error::GpuError;
use std::sync::Mutex;
use wgpu::BufferUsages as Usage;

/// The features that timing needs.
pub(super) const FEATURES: wgpu::Features =
    wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);

/// Two timestamps, which every submission overwrites.
struct Timestamps {
    queries: wgpu::QuerySet,
    /// Where the device writes them, and where the host reads them.
    buffers: [wgpu::Buffer; 2],
}

/// The timestamps of the last submission, while they are recorded.
#[derive(Default)]
pub struct Timing(Mutex<Option<Timestamps>>);

impl Timing {
    /// Begins or ends to record timestamps. Returns false if the device has none.
    ///
    /// # Errors
    ///
    /// If the device is lost.
    pub fn enable(&self, device: &Device, is_enabled: bool) -> Result<bool, GpuError> {
        if !device.handle.features().contains(FEATURES) {
            return Ok(false);
        }
        let created = if is_enabled {
            let queries = device.scoped(|| {
                device.handle.create_query_set(&wgpu::QuerySetDescriptor {
                    label: None,
                    ty: wgpu::QueryType::Timestamp,
                    count: 2,
                })
            })?;
            let written = device.buffer(16, Usage::QUERY_RESOLVE | Usage::COPY_SRC)?;
            let read = device.buffer(16, Usage::MAP_READ | Usage::COPY_DST)?;
            Some(Timestamps { queries, buffers: [written, read] })
        } else {
            None
        };
        *lock(&self.0) = created;
        Ok(true)
    }

    /// Records commands between two timestamps, if they are enabled.
    pub(super) fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        record: impl FnOnce(&mut wgpu::CommandEncoder),
    ) {
        let timestamps = lock(&self.0);
        if let Some(timestamps) = &*timestamps {
            encoder.write_timestamp(&timestamps.queries, 0);
        }
        record(encoder);
        if let Some(Timestamps { queries, buffers: [written, read] }) = &*timestamps {
            encoder.write_timestamp(queries, 1);
            encoder.resolve_query_set(queries, 0..2, written, 0);
            encoder.copy_buffer_to_buffer(written, 0, read, 0, Some(16));
        }
    }

    /// Returns the seconds that the last submission took. Waits for it.
    ///
    /// # Errors
    ///
    /// If the device is lost, or no timestamps are recorded.
    pub fn seconds(&self, device: &Device) -> Result<f64, GpuError> {
        let timestamps = lock(&self.0);
        let Some(Timestamps { buffers: [_, read], .. }) = &*timestamps else {
            return Err(GpuError::Driver("no timestamps are recorded".into()));
        };
        device.map(read, 16, wgpu::MapMode::Read)?;
        let mut ticks = [0_u64; 2];
        let view =
            read.slice(..16).get_mapped_range().map_err(|error| GpuError::Driver(error.to_string()))?;
        bytemuck::cast_slice_mut(&mut ticks).copy_from_slice(&view);
        drop(view);
        read.unmap();
        let nanoseconds =
            ticks[1].saturating_sub(ticks[0]) as f64 * f64::from(device.queue.get_timestamp_period());
        Ok(nanoseconds * 1e-9)
    }
}
