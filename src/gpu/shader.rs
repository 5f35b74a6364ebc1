//! Shaders of the caller.

use super::array::Array;
use super::device::{Device, lock};
use super::error::GpuError;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Most shaders that are kept.
const MOST_SHADERS: usize = 256;

/// Compiled shaders by their source and entry point.
pub type Shaders = HashMap<(String, String), wgpu::ComputePipeline>;

/// Returns a shader that is ready to run. The first call with it compiles it.
pub(super) fn pipeline(
    device: &Device,
    source: &str,
    entry_point: &str,
) -> Result<wgpu::ComputePipeline, GpuError> {
    let key = (source.to_owned(), entry_point.to_owned());
    if let Some(pipeline) = lock(&device.shaders).get(&key) {
        return Ok(pipeline.clone());
    }
    let pipeline = device.scoped(|| {
        let module = device.handle.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("shader"),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        device.handle.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("shader"),
            layout: None,
            module: &module,
            entry_point: Some(entry_point),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        })
    })?;
    let mut shaders = lock(&device.shaders);
    if shaders.len() >= MOST_SHADERS {
        shaders.clear();
    }
    shaders.insert(key, pipeline.clone());
    Ok(pipeline)
}

/// Runs a shader. Array `i` is bound as `@group(0) @binding(i) var<storage, read_write>`, without what follows it in its
/// buffer.
///
/// # Errors
///
/// If the shader does not compile or does not fit its bindings, an array has several ranges or is given twice, or the
/// device is lost.
pub fn run(
    device: &Arc<Device>,
    source: &str,
    arrays: &[Arc<Array>],
    workgroups: [u32; 3],
    entry_point: &str,
) -> Result<(), GpuError> {
    let mut blocks = HashSet::new();
    for (index, array) in arrays.iter().enumerate() {
        if array.ranges.len() != 1 {
            return Err(GpuError::Shader(format!(
                "arrays[{index}] has {} elements; a shader takes arrays with elements that fit one binding",
                array.len
            )));
        }
        if !blocks.insert(array.id) {
            return Err(GpuError::Shader(format!("arrays[{index}] is given twice")));
        }
    }
    if let Some(most) =
        workgroups.iter().find(|count| **count > device.limits.max_compute_workgroups_per_dimension)
    {
        return Err(GpuError::Shader(format!(
            "workgroups has {most}; this device takes up to {}",
            device.limits.max_compute_workgroups_per_dimension
        )));
    }
    let _in_order = lock(&device.order);
    let invalid = |error| match error {
        GpuError::Driver(message) => GpuError::Shader(message),
        other => other,
    };
    let pipeline = pipeline(device, source, entry_point).map_err(invalid)?;
    device
        .submit(|encoder| {
            let entries: Vec<_> = (0_u32..)
                .zip(arrays)
                .map(|(binding, array)| {
                    let range = &array.ranges[0];
                    // Sizes of bindings are multiples of 4 bytes.
                    let size = wgpu::BufferSize::new((array.bytes() as u64).next_multiple_of(4));
                    wgpu::BindGroupEntry {
                        binding,
                        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                            buffer: &range.block.buffer,
                            offset: range.offset,
                            size,
                        }),
                    }
                })
                .collect();
            let group = device.handle.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.get_bind_group_layout(0),
                entries: &entries,
            });
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(workgroups[0], workgroups[1], workgroups[2]);
        })
        .map_err(invalid)
}
