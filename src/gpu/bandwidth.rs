//! How fast a device copies its memory, by a command of the driver and by a kernel. For benchmarks.

use super::arena::ALIGNMENT;
use super::device::{Device, lock};
use super::error::GpuError;
use super::plan::MOST_WORKGROUPS;
use super::shader::pipeline;
use std::sync::Arc;
use wgpu::BufferUsages as Usage;

/// Buffers to copy from and to.
pub struct Copies {
    device: Arc<Device>,
    pipeline: wgpu::ComputePipeline,
    /// Source, target, size in bytes, and the bindings of the kernel.
    pairs: Vec<(wgpu::Buffer, wgpu::Buffer, u64, wgpu::BindGroup)>,
}

impl Copies {
    /// Allocates buffers of `bytes` in all, rounded up, and as many to copy them to.
    ///
    /// # Errors
    ///
    /// If the device is lost or has too little memory.
    pub fn new(device: &Arc<Device>, bytes: u64) -> Result<Self, GpuError> {
        let pipeline = pipeline(device, include_str!("kernels/copy.wgsl"), "main")?;
        let largest = device.limits.max_storage_buffer_binding_size.min(device.limits.max_buffer_size);
        let mut copies = Self { device: Arc::clone(device), pipeline, pairs: Vec::new() };
        let mut left = bytes.max(1).next_multiple_of(ALIGNMENT);
        while left > 0 {
            let size = left.min(largest / ALIGNMENT * ALIGNMENT);
            let buffer = || device.buffer(size, Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST);
            let (source, target) = (buffer()?, buffer()?);
            let entries = [&source, &target].map(wgpu::Buffer::as_entire_binding);
            let entries: Vec<_> = (0_u32..)
                .zip(entries)
                .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
                .collect();
            let group = device.scoped(|| {
                device.handle.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: None,
                    layout: &copies.pipeline.get_bind_group_layout(0),
                    entries: &entries,
                })
            })?;
            drop(entries);
            copies.pairs.push((source, target, size, group));
            left -= size;
        }
        Ok(copies)
    }

    /// Submits the copy of all buffers.
    ///
    /// # Errors
    ///
    /// If the device is lost.
    pub fn copy(&self, by_kernel: bool) -> Result<(), GpuError> {
        let _in_order = lock(&self.device.order);
        self.device.submit(|encoder| {
            if !by_kernel {
                for (source, target, size, _) in &self.pairs {
                    encoder.copy_buffer_to_buffer(source, 0, target, 0, Some(*size));
                }
                return;
            }
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&self.pipeline);
            for (_, _, size, group) in &self.pairs {
                pass.set_bind_group(0, group, &[]);
                pass.dispatch_workgroups(
                    size.div_ceil(16 * 256).min(u64::from(MOST_WORKGROUPS)) as u32,
                    1,
                    1,
                );
            }
        })
    }
}
