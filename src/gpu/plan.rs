//! The tables that kernels read, and the dispatches of one call.
//!
//! A plan is made for a list of arrays, and kept: a call in place that is repeated uploads its scalars alone.

use super::arena::Block;
use super::array::{Array, Element};
use super::device::{Device, lock};
use super::error::GpuError;
use super::kernels::{Bindings, Kernel, Kind, MOST_ROLES, Variant, flushes};
use super::norms::RESULT_BYTES;
use crate::allocation::{collect, filled, reserve};
use crate::operations::rules::RuleKind;
use std::collections::HashMap;
use std::sync::Arc;
use wgpu::BufferUsages as Usage;

/// Most elements of a chunk.
const CHUNK: u64 = 4096;

/// Most workgroups of a dispatch. A workgroup takes several chunks if there are more.
pub(super) const MOST_WORKGROUPS: u32 = 65535;

/// The same in a test of workgroups that take several chunks.
const FEW_WORKGROUPS: u32 = 3;

/// Size of a bound in bytes: two vectors of four words.
const BOUND_BYTES: u64 = 32;

/// Size of the parameters of an update in bytes.
const PARAMETER_BYTES: u64 = 64;

/// Most plans that are kept.
const MOST_PLANS: usize = 32;

/// Which tensors share a norm.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Grouping {
    /// All of them.
    Global,
    /// Every tensor has its own.
    Each,
    /// The slices of one tensor along axes have norms of their own, and a common bound.
    Slices(Axes),
}

/// Axes of an array.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Axes {
    /// The shape of the array.
    pub shape: Vec<usize>,
    /// Which axes a slice has.
    pub is_reduced: Vec<bool>,
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
    /// The rule of an optimizer. The arrays are gradients, variables and slots.
    Update {
        /// The rule.
        rule: RuleKind,
        /// Whether gradients are measured.
        is_measured: bool,
    },
}

impl Change {
    /// Whether norms are computed.
    fn is_measured(self) -> bool {
        !matches!(self, Self::Clamp | Self::Update { is_measured: false, .. })
    }
}

/// What a plan depends on.
#[derive(PartialEq, Eq, Hash)]
pub struct Key {
    /// Numbers of the inputs, followed by those of the outputs unless they are the inputs; for an update those of the
    /// gradients, variables and slots. Numbers are never reused.
    pub arrays: Vec<u64>,
    /// How many of the arrays are inputs, or gradients.
    pub inputs: usize,
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
    buffers: wgpu::BindGroup,
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
    /// What an update is given: see `update.wgsl`.
    pub(super) parameters: wgpu::Buffer,
    /// Number of groups of tensors.
    pub groups: usize,
    /// Number of bounds.
    pub bound_count: usize,
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

/// A part of arrays that one workgroup works on.
struct Chunk {
    /// Where the parts begin in the blocks of their arrays, in words.
    words: [u32; MOST_ROLES],
    len: u32,
    group: u32,
    element: Element,
    blocks: [u64; MOST_ROLES],
}

impl Chunk {
    /// Returns the first row of the table of chunks.
    fn row(&self) -> [u32; 4] {
        [self.words[0], self.words[1], self.len, self.group]
    }
}

/// Returns the plan of an earlier call with the same key.
///
/// # Errors
///
/// If the device is lost or belongs to the parent of a forked process, whose locks must not be touched.
pub fn known(device: &Device, key: &Key) -> Result<Option<Arc<Plan>>, GpuError> {
    device.check()?;
    Ok(lock(&device.plans).get(key))
}

/// Makes the plan for arrays: the inputs, and the outputs, which are the inputs themselves if the call works in place and
/// may be left out if nothing is changed; or gradients, variables and slots. The plan is kept if `is_kept`.
///
/// # Errors
///
/// If the device has too little memory for the tables, or refuses a kernel.
pub fn make(
    device: &Arc<Device>,
    key: Key,
    operands: &[&[Arc<Array>]],
    is_kept: bool,
) -> Result<Arc<Plan>, GpuError> {
    device.check()?;
    let plan = Arc::new(build(device, operands, &key)?);
    if is_kept {
        lock(&device.plans).insert(key, &plan);
    }
    Ok(plan)
}

/// Divides arrays of the same number of elements. Chunks end where a range of one of them ends.
fn chunks_of(arrays: &[&Array], group: u32, chunks: &mut Vec<Chunk>) -> Result<(), GpuError> {
    // The current range of each array, and the elements before the next chunk in it.
    let mut places = [(0_usize, 0_u64); MOST_ROLES];
    let mut left = arrays[0].len;
    while left > 0 {
        let mut chunk = Chunk {
            words: [0; MOST_ROLES],
            len: left.min(CHUNK) as u32,
            group,
            element: arrays[0].element,
            blocks: [0; MOST_ROLES],
        };
        for (role, (array, (range, start))) in arrays.iter().zip(&mut places).enumerate() {
            let size = array.element.size();
            if *start * size == array.ranges[*range].bytes {
                (*range, *start) = (*range + 1, 0);
            }
            let current = &array.ranges[*range];
            chunk.words[role] = ((current.offset + *start * size) / 4) as u32;
            chunk.blocks[role] = current.block.id;
            chunk.len = chunk.len.min((current.bytes / size - *start) as u32);
        }
        for (_, start) in &mut places {
            *start += u64::from(chunk.len);
        }
        left -= u64::from(chunk.len);
        reserve(chunks, 1)?;
        chunks.push(chunk);
    }
    Ok(())
}

/// The tables of a plan, and what its dispatches take of them.
#[derive(Default)]
struct Layout {
    chunks: Vec<[u32; 4]>,
    /// Number of partial results: the first chunks are those that are measured.
    partials: usize,
    groups: Vec<[u32; 4]>,
    /// Number of bounds.
    bounds: usize,
    /// The axes of slices.
    axes: Vec<u32>,
    steps: Vec<Step>,
}

/// A dispatch over chunks: the kernel, the first chunk, the number of chunks, and the blocks by their bindings.
struct Step {
    variant: Variant,
    first: u32,
    count: u32,
    blocks: Vec<u64>,
}

fn build(device: &Arc<Device>, operands: &[&[Arc<Array>]], key: &Key) -> Result<Plan, GpuError> {
    let layout = match (&key.grouping, key.change) {
        (Grouping::Slices(axes), change) => slices(&operands[0][0], &operands[1][0], axes, change)?,
        (grouping, Change::Update { rule, is_measured }) => updates(operands, grouping, rule, is_measured)?,
        (grouping, change) => {
            tensors(operands[0], operands.last().unwrap_or(&operands[0]), grouping, change)?
        }
    };
    let largest = device.limits.max_storage_buffer_binding_size;
    if layout.groups.len() as u64 * RESULT_BYTES > largest || layout.chunks.len() as u64 * 16 > largest {
        return Err(GpuError::Shader(format!(
            "the call has {} norms of {} parts; this device takes up to {} norms of {} parts in one call",
            layout.groups.len(),
            layout.chunks.len(),
            largest / RESULT_BYTES,
            largest / 16
        )));
    }
    let mut blocks = HashMap::new();
    for range in operands.iter().copied().flatten().flat_map(|array| &array.ranges) {
        blocks.insert(range.block.id, Arc::clone(&range.block));
    }
    assemble(device, &layout, &blocks, key)
}

/// Returns the block that the first elements of an array lie in.
fn place(array: &Array) -> Option<u64> {
    array.ranges.first().map(|range| range.block.id)
}

/// Lays out the chunks of tensors.
fn tensors(
    inputs: &[Arc<Array>],
    outputs: &[Arc<Array>],
    grouping: &Grouping,
    change: Change,
) -> Result<Layout, GpuError> {
    // Tensors of the same buffers follow each other, so that one dispatch takes them all.
    let mut sequence: Vec<usize> = collect(0..inputs.len())?;
    sequence.sort_by_key(|&index| (inputs[index].element, place(&inputs[index]), place(&outputs[index])));
    let mut chunks = Vec::new();
    let is_global = *grouping == Grouping::Global;
    let mut groups = filled([0_u32; 4], if is_global { 1 } else { inputs.len() })?;
    for &index in &sequence {
        let group = if is_global { 0 } else { index };
        let first = chunks.len();
        chunks_of(&[&inputs[index], &outputs[index]], group as u32, &mut chunks)?;
        if !is_global {
            groups[group] = [first as u32, (chunks.len() - first) as u32, index as u32, 0];
        }
    }
    if is_global {
        groups[0] = [0, chunks.len() as u32, 0, 0];
    }
    let in_place = inputs.iter().zip(outputs).all(|(input, output)| Arc::ptr_eq(input, output));
    let mut layout = Layout { bounds: groups.len(), groups, partials: chunks.len(), ..Layout::default() };
    for run in chunks.chunk_by(|a, b| (a.element, a.blocks) == (b.element, b.blocks)) {
        let (first, count) = (layout.chunks.len() as u32, run.len() as u32);
        reserve(&mut layout.chunks, run.len())?;
        layout.chunks.extend(run.iter().map(Chunk::row));
        let (element, blocks) = (run[0].element, run[0].blocks);
        let mut push = |kind, blocks: &[u64], in_place| {
            let (bindings, blocks) = Bindings::of(blocks);
            let variant = Variant { kind, element, bindings, in_place, is_sliced: false };
            layout.steps.push(Step { variant, first, count, blocks });
        };
        if change.is_measured() {
            push(Kind::Measure, &blocks[..1], true);
        }
        match change {
            Change::Nothing | Change::Update { .. } => {}
            Change::Scale => push(Kind::Scale, &blocks[..2], in_place),
            Change::Clamp => push(Kind::Clamp, &blocks[..2], in_place),
        }
    }
    Ok(layout)
}

/// Lays out the chunks of gradients, variables and slots. Gradients are measured by chunks of their own, as they are
/// by every other call: their norm has the same bits.
fn updates(
    operands: &[&[Arc<Array>]],
    grouping: &Grouping,
    rule: RuleKind,
    is_measured: bool,
) -> Result<Layout, GpuError> {
    let gradients = operands[0];
    let mut layout = if is_measured {
        tensors(gradients, gradients, grouping, Change::Nothing)?
    } else {
        Layout { groups: vec![[0; 4]], bounds: 1, ..Layout::default() }
    };
    let of_pair = |index: usize| operands.iter().map(move |arrays| &*arrays[index]);
    let mut sequence: Vec<usize> = collect(0..gradients.len())?;
    sequence.sort_by_key(|&index| (gradients[index].element, of_pair(index).map(place).collect::<Vec<_>>()));
    let mut chunks = Vec::new();
    for index in sequence {
        let group = if is_measured && *grouping != Grouping::Global { index } else { 0 };
        chunks_of(&of_pair(index).collect::<Vec<_>>(), group as u32, &mut chunks)?;
    }
    for run in chunks.chunk_by(|a, b| (a.element, a.blocks) == (b.element, b.blocks)) {
        let first = layout.chunks.len() as u32;
        reserve(&mut layout.chunks, 2 * run.len())?;
        layout.chunks.extend(run.iter().flat_map(|chunk| {
            let [_, _, slot0, slot1] = chunk.words;
            [chunk.row(), [slot0, slot1, 0, 0]]
        }));
        let (bindings, blocks) = Bindings::of(&run[0].blocks[..operands.len()]);
        let element = run[0].element;
        let variant =
            Variant { kind: Kind::Update(rule), element, bindings, in_place: true, is_sliced: false };
        layout.steps.push(Step { variant, first, count: run.len() as u32, blocks });
    }
    Ok(layout)
}

/// Returns how many chunks an array has at most, if its ranges are full.
fn whole_chunks(array: &Array) -> usize {
    array.len.div_ceil(CHUNK) as usize + array.ranges.len()
}

/// Lays out the slices of an array along axes.
fn slices(input: &Arc<Array>, output: &Arc<Array>, axes: &Axes, change: Change) -> Result<Layout, GpuError> {
    let ([from], [to]) = (&*input.ranges, &*output.ranges) else {
        if input.len == 0 {
            return Ok(Layout { bounds: 1, ..Layout::default() });
        }
        return Err(GpuError::OutOfMemory(format!(
            "slices of an array of {} elements, which is more than one binding of the device holds",
            input.len
        )));
    };
    let (mut inside, mut numbers, mut all) = (Vec::new(), Vec::new(), Vec::new());
    let (mut stride, mut slice_stride, mut slice_len) = (1, 1, 1);
    for (&len, &is_reduced) in axes.shape.iter().zip(&axes.is_reduced).rev() {
        let len = len as u32;
        if is_reduced {
            inside.extend([len, stride]);
            all.extend([len, 0]);
            slice_len *= len;
        } else {
            numbers.extend([len, stride]);
            all.extend([len, slice_stride]);
            slice_stride *= len;
        }
        stride *= len;
    }
    let count = slice_stride;
    let lengths = [inside.len() / 2, numbers.len() / 2, all.len() / 2, 0].map(|len| len as u32);
    let parts = slice_len.div_ceil(CHUNK as u32);
    let mut layout = Layout {
        partials: (count * parts) as usize,
        groups: collect((0..count).map(|slice| [slice * parts, parts, 0, 0]))?,
        bounds: 1,
        axes: [&lengths[..], &inside, &numbers, &all].concat(),
        ..Layout::default()
    };
    let first_words = ((from.offset / 4) as u32, (to.offset / 4) as u32);
    reserve(&mut layout.chunks, layout.partials + whole_chunks(input))?;
    for slice in 0..count {
        for part in 0..parts {
            let start = part * CHUNK as u32;
            layout.chunks.push([first_words.0, start, (slice_len - start).min(CHUNK as u32), slice]);
        }
    }
    let mut whole = Vec::new();
    chunks_of(&[input, output], 0, &mut whole)?;
    let first = layout.chunks.len() as u32;
    for (number, chunk) in (0..).zip(&whole) {
        layout.chunks.push([chunk.words[0], chunk.words[1], chunk.len, number * CHUNK as u32]);
    }
    let mut push = |kind, (first, count), blocks: &[u64], in_place| {
        let (bindings, blocks) = Bindings::of(blocks);
        let variant = Variant { kind, element: input.element, bindings, in_place, is_sliced: true };
        layout.steps.push(Step { variant, first, count, blocks });
    };
    push(Kind::Measure, (0, first), &[from.block.id], true);
    if change == Change::Scale {
        let in_place = Arc::ptr_eq(input, output);
        push(Kind::Scale, (first, whole.len() as u32), &[from.block.id, to.block.id], in_place);
    }
    Ok(layout)
}

/// Creates the tables and the dispatches of a layout.
fn assemble(
    device: &Arc<Device>,
    layout: &Layout,
    blocks: &HashMap<u64, Arc<Block>>,
    key: &Key,
) -> Result<Plan, GpuError> {
    let storage = Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC;
    let chunk_table = table(device, bytemuck::cast_slice(&layout.chunks), storage)?;
    let group_table = table(device, bytemuck::cast_slice(&layout.groups), storage)?;
    let axes_table = table(device, bytemuck::cast_slice(&layout.axes), storage)?;
    let partials = device.buffer(layout.partials as u64 * 16, storage)?;
    let mut plan = Plan {
        measure: Vec::new(),
        fold: Vec::new(),
        change: Vec::new(),
        bounds: device.buffer(layout.bounds as u64 * BOUND_BYTES, storage)?,
        results: device.buffer(layout.groups.len() as u64 * RESULT_BYTES, storage)?,
        parameters: device.buffer(PARAMETER_BYTES, storage)?,
        groups: layout.groups.len(),
        bound_count: layout.bounds,
    };
    let dispatch = |variant: Variant, job: [u32; 4], buffers: &[&wgpu::Buffer], plan: &Plan| {
        let kernel = device.kernels.get(device, variant)?;
        let job_table = table(device, bytemuck::cast_slice(&job), Usage::UNIFORM | Usage::COPY_DST)?;
        let all_tables = [
            &chunk_table,
            &job_table,
            &partials,
            &group_table,
            &plan.bounds,
            &plan.results,
            &axes_table,
            &plan.parameters,
        ];
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
            buffers: arrays,
            tables,
            workgroups: items.min(if flushes() { FEW_WORKGROUPS } else { MOST_WORKGROUPS }),
        })
    };
    for step in &layout.steps {
        let buffers: Vec<_> = step.blocks.iter().map(|block| &blocks[block].buffer).collect();
        let dispatched = dispatch(step.variant, [step.first, step.count, 0, 0], &buffers, &plan)?;
        let list = if step.variant.kind == Kind::Measure { &mut plan.measure } else { &mut plan.change };
        list.push(dispatched);
    }
    if key.change.is_measured() && plan.groups > 0 {
        let kind = if key.order == Order::Maximum { Kind::FoldMaximum } else { Kind::Fold };
        let bindings = Bindings::default();
        let variant = Variant { kind, element: Element::F32, bindings, in_place: true, is_sliced: false };
        let fold = dispatch(variant, [0, 0, 0, plan.groups as u32], &[], &plan)?;
        plan.fold.push(fold);
    }
    Ok(plan)
}

/// Creates a table.
fn table(device: &Device, data: &[u8], usage: Usage) -> Result<wgpu::Buffer, GpuError> {
    let buffer = device.buffer(data.len() as u64, usage)?;
    if !data.is_empty() {
        device.scoped(|| device.write(&buffer, data))?;
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
