//! The tables that kernels read, and the dispatches of one call.
//!
//! A plan is made for a list of arrays, and kept: a call in place that is repeated uploads its scalars alone.

use super::array::{Array, Element};
use super::device::Device;
use super::error::GpuError;
use super::kernels::{Kernel, Kind, Variant};
use super::norms::RESULT_BYTES;
use std::collections::HashMap;
use std::sync::Arc;
use wgpu::BufferUsages as Usage;

/// Most elements of a chunk.
const CHUNK: u64 = 4096;

/// Most workgroups of a dispatch. A workgroup takes several chunks if there are more.
const MOST_WORKGROUPS: u32 = 65535;

/// Most plans that are kept.
const MOST_PLANS: usize = 32;

/// Which tensors share a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grouping {
    /// All of them.
    Global,
    /// Every tensor has its own.
    Each,
}

/// The order of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Order 2: the root of the sum of squares.
    Euclidean,
    /// Order infinity: the largest magnitude.
    Maximum,
}

/// What the elements of arrays are changed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// Nothing: norms are computed alone.
    Nothing,
    /// A factor of each group.
    Scale,
    /// An interval.
    Clamp,
}

/// What a plan depends on.
#[derive(PartialEq, Eq, Hash)]
pub struct Key {
    /// Numbers of the inputs, followed by those of the outputs unless they are the inputs. Numbers are never reused.
    pub arrays: Vec<u64>,
    /// Which tensors share a norm.
    pub grouping: Grouping,
    /// The order of the norm.
    pub order: Order,
    /// What is done with the elements.
    pub change: Change,
}

/// One dispatch.
struct Dispatch {
    kernel: Arc<Kernel>,
    buffers: Option<wgpu::BindGroup>,
    tables: wgpu::BindGroup,
    workgroups: u32,
}

/// The tables and dispatches of a call.
pub struct Plan {
    measure: Vec<Dispatch>,
    fold: Vec<Dispatch>,
    change: Vec<Dispatch>,
    /// Bounds, which every call writes.
    pub(super) bounds: wgpu::Buffer,
    /// Norms and factors.
    pub(super) results: wgpu::Buffer,
    /// Number of groups of tensors.
    pub groups: usize,
}

/// The plans of a device that were made last.
#[derive(Default)]
pub struct Plans {
    plans: HashMap<Key, (u64, Arc<Plan>)>,
    clock: u64,
}

impl Plans {
    /// Forgets all plans.
    pub fn clear(&mut self) {
        self.plans.clear();
    }

    fn get(&mut self, key: &Key) -> Option<Arc<Plan>> {
        self.clock += 1;
        let (used, plan) = self.plans.get_mut(key)?;
        *used = self.clock;
        Some(Arc::clone(plan))
    }

    fn insert(&mut self, key: Key, plan: &Arc<Plan>) {
        if self.plans.len() >= MOST_PLANS {
            let oldest = self.plans.values().map(|(used, _)| *used).min();
            self.plans.retain(|_, (used, _)| Some(*used) != oldest);
        }
        self.plans.insert(key, (self.clock, Arc::clone(plan)));
    }
}

/// A part of an array that one workgroup works on.
struct Chunk {
    words: [u32; 4],
    element: Element,
    blocks: (u64, u64),
}

/// Returns the plan of an earlier call with the same key.
#[must_use]
pub fn known(device: &Device, key: &Key) -> Option<Arc<Plan>> {
    super::device::lock(&device.plans).get(key)
}

/// Makes the plan for arrays. `outputs` are the inputs themselves if the call works in place; they are ignored if
/// nothing is changed.
///
/// # Errors
///
/// If the device has too little memory for the tables, or refuses a kernel.
pub fn make(
    device: &Arc<Device>,
    key: Key,
    inputs: &[Arc<Array>],
    outputs: &[Arc<Array>],
) -> Result<Arc<Plan>, GpuError> {
    device.check()?;
    let plan = Arc::new(build(device, inputs, outputs, &key)?);
    // Results that are new have new numbers: such a plan would never be found again.
    if inputs.iter().zip(outputs).all(|(input, output)| Arc::ptr_eq(input, output)) {
        super::device::lock(&device.plans).insert(key, &plan);
    }
    Ok(plan)
}

fn chunks_of(input: &Array, output: &Array, group: u32, chunks: &mut Vec<Chunk>) {
    let size = input.element.size();
    let mut left = input.len;
    // Arrays of one length are divided into ranges of the same sizes.
    for (from, to) in input.ranges.iter().zip(&output.ranges) {
        let count = left.min(from.bytes / size);
        left -= count;
        let mut start = 0;
        while start < count {
            let len = (count - start).min(CHUNK);
            let word = |offset: u64| ((offset + start * size) / 4) as u32;
            chunks.push(Chunk {
                words: [word(from.offset), word(to.offset), len as u32, group],
                element: input.element,
                blocks: (from.block.id, to.block.id),
            });
            start += len;
        }
    }
}

fn build(
    device: &Arc<Device>,
    inputs: &[Arc<Array>],
    outputs: &[Arc<Array>],
    key: &Key,
) -> Result<Plan, GpuError> {
    let Key { grouping, order, change, .. } = *key;
    // Tensors of the same buffers follow each other, so that one dispatch takes them all.
    let mut sequence: Vec<usize> = (0..inputs.len()).collect();
    let place = |array: &Array| array.ranges.first().map(|range| range.block.id);
    sequence.sort_by_key(|&index| (inputs[index].element, place(&inputs[index]), place(&outputs[index])));
    let mut chunks = Vec::new();
    let group_count = if grouping == Grouping::Global { 1 } else { inputs.len() };
    let mut groups = vec![[0_u32; 4]; group_count];
    for &index in &sequence {
        let group = if grouping == Grouping::Global { 0 } else { index };
        let first = chunks.len();
        chunks_of(&inputs[index], &outputs[index], group as u32, &mut chunks);
        if grouping == Grouping::Each {
            groups[group] = [first as u32, (chunks.len() - first) as u32, index as u32, 0];
        }
    }
    if grouping == Grouping::Global {
        groups[0] = [0, chunks.len() as u32, 0, 0];
    }
    let words: Vec<[u32; 4]> = chunks.iter().map(|chunk| chunk.words).collect();
    let storage = Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC;
    let chunk_table = table(device, bytemuck::cast_slice(&words), storage)?;
    let group_table = table(device, bytemuck::cast_slice(&groups), storage)?;
    let partials = device.buffer(words.len() as u64 * 16, storage)?;
    let bounds = device.buffer(group_count as u64 * 16, storage)?;
    let results = device.buffer(group_count as u64 * RESULT_BYTES, storage)?;
    let mut blocks = HashMap::new();
    for range in inputs.iter().chain(outputs).flat_map(|array| &array.ranges) {
        blocks.insert(range.block.id, Arc::clone(&range.block));
    }
    let in_place = inputs.iter().zip(outputs).all(|(input, output)| Arc::ptr_eq(input, output));

    let mut plan = Plan {
        measure: Vec::new(),
        fold: Vec::new(),
        change: Vec::new(),
        bounds,
        results,
        groups: group_count,
    };
    let dispatch = |variant: Variant, job: [u32; 4], buffers: &[&wgpu::Buffer], plan: &Plan| {
        let kernel = device.kernels.get(device, variant)?;
        let job_table = table(device, bytemuck::cast_slice(&job), Usage::UNIFORM | Usage::COPY_DST)?;
        let all_tables = [&chunk_table, &job_table, &partials, &group_table, &plan.bounds, &plan.results];
        let entries: Vec<_> = kernel
            .tables
            .iter()
            .map(|&binding| wgpu::BindGroupEntry {
                binding,
                resource: all_tables[binding as usize].as_entire_binding(),
            })
            .collect();
        let group = |layout, entries: &[wgpu::BindGroupEntry<'_>]| {
            device.handle.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries })
        };
        let array_entries: Vec<_> = (0_u32..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let (tables, arrays) = device
            .scoped(|| (group(&kernel.layouts[1], &entries), group(&kernel.layouts[0], &array_entries)))?;
        let items = if matches!(variant.kind, Kind::Fold | Kind::FoldMaximum) { job[3] } else { job[1] };
        Ok::<_, GpuError>(Dispatch {
            kernel,
            buffers: Some(arrays),
            tables,
            workgroups: items.min(MOST_WORKGROUPS),
        })
    };
    let mut start = 0;
    for run in chunks.chunk_by(|a, b| (a.element, a.blocks) == (b.element, b.blocks)) {
        let job = [start, run.len() as u32, 0, 0];
        start += run.len() as u32;
        let (element, (from, to)) = (run[0].element, run[0].blocks);
        let variant = |kind| Variant { kind, element, is_shared: from == to, in_place };
        let (input, output) = (&blocks[&from].buffer, &blocks[&to].buffer);
        if change != Change::Clamp {
            let variant = Variant { is_shared: true, in_place: true, ..variant(Kind::Measure) };
            let measure = dispatch(variant, job, &[input], &plan)?;
            plan.measure.push(measure);
        }
        let kind = match change {
            Change::Nothing => continue,
            Change::Scale => Kind::Scale,
            Change::Clamp => Kind::Clamp,
        };
        let buffers = if from == to { vec![input] } else { vec![input, output] };
        let step = dispatch(variant(kind), job, &buffers, &plan)?;
        plan.change.push(step);
    }
    if change != Change::Clamp && group_count > 0 {
        let kind = if order == Order::Maximum { Kind::FoldMaximum } else { Kind::Fold };
        let variant = Variant { kind, element: Element::F32, is_shared: true, in_place: true };
        let fold = dispatch(variant, [0, 0, 0, group_count as u32], &[], &plan)?;
        plan.fold.push(fold);
    }
    Ok(plan)
}

/// Creates a table.
fn table(device: &Device, data: &[u8], usage: Usage) -> Result<wgpu::Buffer, GpuError> {
    let buffer = device.buffer(data.len() as u64, usage)?;
    if !data.is_empty() {
        device.write(&buffer, data);
    }
    Ok(buffer)
}

/// The parts of a call.
#[derive(Clone, Copy)]
pub enum Part {
    /// Norms and factors.
    Norms,
    /// The elements.
    Elements,
}

impl Plan {
    /// Records one part of the call.
    pub(super) fn record(&self, encoder: &mut wgpu::CommandEncoder, part: Part) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let dispatches: [&[Dispatch]; 2] = match part {
            Part::Norms => [&self.measure, &self.fold],
            Part::Elements => [&self.change, &[]],
        };
        for dispatch in dispatches.into_iter().flatten() {
            pass.set_pipeline(&dispatch.kernel.pipeline);
            pass.set_bind_group(0, &dispatch.buffers, &[]);
            pass.set_bind_group(1, &dispatch.tables, &[]);
            pass.dispatch_workgroups(dispatch.workgroups, 1, 1);
        }
    }
}
