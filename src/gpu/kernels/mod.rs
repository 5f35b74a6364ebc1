//! The kernels, as pipelines.
//!
//! A shader is put together of three parts: declarations that are written here, `arithmetic.wgsl`, and the file of the
//! kernel. Roles of a kernel (input and output) whose arrays lie in the same buffer share its binding, because a
//! dispatch must not bind a buffer twice if it writes it.

use crate::gpu::array::Element;
use crate::gpu::device::{Device, lock};
use crate::gpu::error::GpuError;
use crate::operations::rules::RuleKind;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, OnceLock};

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Sums of squares and the largest magnitude of every chunk.
    Measure,
    /// Norm of order 2 and factor of every group, from the results for its chunks.
    Fold,
    /// The same for the norm of order infinity.
    FoldMaximum,
    /// Multiplies chunks by factors.
    Scale,
    /// Limits elements to an interval.
    Clamp,
    /// Updates variables by the rule of an optimizer.
    Update(RuleKind),
}

/// Most arrays that an element is computed from and written to.
pub const MOST_ROLES: usize = 4;

/// The bindings of the roles that arrays have in a kernel. Roles whose arrays lie in the same buffer share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bindings {
    of_role: [u8; MOST_ROLES],
    /// Number of buffers.
    buffers: u8,
}

impl Bindings {
    /// Returns the bindings of roles whose arrays lie in these blocks, and the blocks in the order of their bindings.
    #[must_use]
    pub fn of(blocks: &[u64]) -> (Self, Vec<u64>) {
        let mut bindings = Self::default();
        let mut bound = Vec::new();
        for (binding, block) in bindings.of_role.iter_mut().zip(blocks) {
            let place = bound.iter().position(|other| other == block).unwrap_or_else(|| {
                bound.push(*block);
                bound.len() - 1
            });
            *binding = place as u8;
        }
        bindings.buffers = bound.len() as u8;
        (bindings, bound)
    }
}

/// What a shader depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The kernel.
    pub kind: Kind,
    /// The type of the elements.
    pub element: Element,
    /// The bindings of the arrays.
    pub bindings: Bindings,
    /// Whether outputs are the inputs.
    pub in_place: bool,
    /// Whether norms are those of slices along axes.
    pub is_sliced: bool,
}

/// How a kernel uses a table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Uniform,
}

/// The tables: their bindings in group 1, names, and uses.
const CHUNKS: (u32, &str, Access) = (0, "chunks: array<vec4<u32>>", Access::Read);
const JOB: (u32, &str, Access) = (1, "job: vec4<u32>", Access::Uniform);
const PARTIALS: (u32, &str, Access) = (2, "partials: array<vec4<u32>>", Access::Write);
const GROUPS: (u32, &str, Access) = (3, "groups: array<vec4<u32>>", Access::Read);
const BOUNDS: (u32, &str, Access) = (4, "bounds: array<vec4<u32>>", Access::Read);
const AXES: (u32, &str, Access) = (6, "axes: array<u32>", Access::Read);
const PARAMETERS: (u32, &str, Access) = (7, "parameters: array<u32>", Access::Read);
const RESULTS: (u32, &str, Access) = (5, "results: array<vec4<u32>>", Access::Write);

impl Kind {
    fn tables(self) -> &'static [(u32, &'static str, Access)] {
        match self {
            Self::Measure => &[CHUNKS, JOB, PARTIALS],
            Self::Fold | Self::FoldMaximum => &[JOB, PARTIALS, GROUPS, BOUNDS, RESULTS],
            Self::Scale => &[CHUNKS, JOB, RESULTS],
            Self::Clamp => &[CHUNKS, JOB, BOUNDS],
            Self::Update(_) => &[CHUNKS, JOB, RESULTS, PARAMETERS],
        }
    }

    /// The roles of arrays: a kernel has functions `load_` and `store_` for each.
    fn roles(self) -> &'static [&'static str] {
        match self {
            Self::Fold | Self::FoldMaximum => &[],
            Self::Measure => &["input"],
            Self::Scale | Self::Clamp => &["input", "output"],
            Self::Update(rule) => &["gradient", "variable", "slot0", "slot1"][..2 + rule.slots()],
        }
    }

    fn source(self) -> &'static str {
        match self {
            Self::Measure => include_str!("measure.wgsl"),
            Self::Fold | Self::FoldMaximum => include_str!("fold.wgsl"),
            Self::Scale => concat!(include_str!("product.wgsl"), "\n", include_str!("scale.wgsl")),
            Self::Clamp => include_str!("clamp.wgsl"),
            Self::Update(_) => concat!(include_str!("product.wgsl"), "\n", include_str!("update.wgsl")),
        }
    }
}

impl Variant {
    /// Returns the source of the shader.
    fn source(self) -> String {
        let mut source = String::new();
        let element = match self.element {
            Element::F32 => 0,
            Element::F16 => 1,
            Element::BF16 => 2,
            Element::I32 => 3,
        };
        let flush = if flushes() { "select(x, 0.0, (bitcast<u32>(x) & 0x7f800000u) == 0u)" } else { "x" };
        // Updates compute in float32, whatever the type of gradients.
        let (element, gradient) =
            if matches!(self.kind, Kind::Update(_)) { (0, element) } else { (element, element) };
        // Writing to a string does not fail.
        let _ =
            writeln!(source, "const ELEMENT: u32 = {element}u;\nconst IN_PLACE: bool = {};", self.in_place);
        let _ = writeln!(source, "const MAXIMUM: bool = {};", self.kind == Kind::FoldMaximum);
        let _ = writeln!(source, "fn flush(x: f32) -> f32 {{ return {flush}; }}");
        for binding in 0..self.bindings.buffers {
            let _ = writeln!(
                source,
                "@group(0) @binding({binding}) var<storage, read_write> buffer{binding}: array<u32>;"
            );
        }
        for (role, binding) in self.kind.roles().iter().zip(self.bindings.of_role) {
            let _ = writeln!(source, "fn load_{role}(i: u32) -> u32 {{ return buffer{binding}[i]; }}");
            let _ = writeln!(source, "fn store_{role}(i: u32, word: u32) {{ buffer{binding}[i] = word; }}");
        }
        for (binding, declaration, access) in self.tables() {
            let access = match access {
                Access::Read => "storage, read",
                Access::Write => "storage, read_write",
                Access::Uniform => "uniform",
            };
            let _ = writeln!(source, "@group(1) @binding({binding}) var<{access}> {declaration};");
        }
        if let Kind::Update(rule) = self.kind {
            let _ = writeln!(source, "const GRADIENT: u32 = {gradient}u;");
            source += &rule_source(rule);
        }
        let _ = writeln!(source, "const SLICED: bool = {};", self.is_sliced);
        let slices = if self.is_sliced {
            include_str!("slices.wgsl")
        } else {
            "fn place_of(chunk: vec4<u32>, index: u32) -> u32 { return index; }\n\
             fn slice_of(element: u32) -> u32 { return element; }\n"
        };
        source + include_str!("arithmetic.wgsl") + slices + self.kind.source()
    }

    /// The tables that the kernel reads and writes.
    fn tables(self) -> impl Iterator<Item = (u32, &'static str, Access)> {
        self.kind.tables().iter().copied().chain(self.is_sliced.then_some(AXES))
    }
}

/// Returns the declarations of a rule: its function under the name `update`, and what it uses.
fn rule_source(rule: RuleKind) -> String {
    let mut source = String::from(
        "struct State { variable: f32, slot0: f32, slot1: f32 }\n\
         fn coefficient(i: u32) -> f32 { return bitcast<f32>(parameters[FIRST_COEFFICIENT + i]); }\n",
    );
    for slot in rule.slots()..2 {
        let _ = writeln!(source, "fn load_slot{slot}(i: u32) -> u32 {{ return 0u; }}");
        let _ = writeln!(source, "fn store_slot{slot}(i: u32, word: u32) {{}}");
    }
    if let Some(rule) = rule.on_devices() {
        source += rule.source;
        let _ = writeln!(
            source,
            "fn update(g: f32, state: State) -> State {{ return {}(g, state); }}",
            rule.function
        );
    }
    source
}

/// Whether results of float arithmetic that are subnormal are replaced by zero, as some devices do, and dispatches have few
/// workgroups. For tests.
#[must_use]
pub fn flushes() -> bool {
    static FLUSHES: OnceLock<bool> = OnceLock::new();
    *FLUSHES.get_or_init(|| std::env::var_os("FASTCLIP_GPU_TEST_FLUSH").is_some())
}

/// A compiled kernel.
pub struct Kernel {
    pub(in crate::gpu) pipeline: wgpu::ComputePipeline,
    /// Layouts of the buffers of arrays, and of the tables.
    pub(in crate::gpu) layouts: [wgpu::BindGroupLayout; 2],
    /// The bindings of the tables.
    pub(in crate::gpu) tables: Vec<u32>,
}

/// The kernels of a device that were compiled so far.
#[derive(Default)]
pub struct Kernels {
    compiled: Mutex<HashMap<Variant, Arc<Kernel>>>,
}

impl Kernels {
    /// Returns a kernel. The first call compiles it.
    ///
    /// # Errors
    ///
    /// If the driver refuses it.
    pub fn get(&self, device: &Device, variant: Variant) -> Result<Arc<Kernel>, GpuError> {
        let mut compiled = lock(&self.compiled);
        if let Some(kernel) = compiled.get(&variant) {
            return Ok(Arc::clone(kernel));
        }
        let kernel = Arc::new(device.scoped(|| compile(device, variant))?);
        compiled.insert(variant, Arc::clone(&kernel));
        Ok(kernel)
    }
}

fn compile(device: &Device, variant: Variant) -> Kernel {
    let entry = |binding, access: Access| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: match access {
                Access::Uniform => wgpu::BufferBindingType::Uniform,
                Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                Access::Write => wgpu::BufferBindingType::Storage { read_only: false },
            },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let layout = |entries: &[wgpu::BindGroupLayoutEntry]| {
        device.handle.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries })
    };
    let buffers: Vec<_> =
        (0..variant.bindings.buffers).map(|binding| entry(u32::from(binding), Access::Write)).collect();
    let tables: Vec<_> = variant.tables().map(|table| entry(table.0, table.2)).collect();
    let layouts = [layout(&buffers), layout(&tables)];
    let label = format!("fastclip {variant:?}");
    let module = device.handle.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(&label),
        source: wgpu::ShaderSource::Wgsl(variant.source().into()),
    });
    let pipeline_layout = device.handle.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&layouts[0]), Some(&layouts[1])],
        immediate_size: 0,
    });
    let pipeline = device.handle.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(&label),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    Kernel { pipeline, layouts, tables: variant.tables().map(|table| table.0).collect() }
}
