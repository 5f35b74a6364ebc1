// Copies one array to another, 16 bytes a thread: what a kernel can move at best.

@group(0) @binding(0) var<storage, read_write> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> copied: array<vec4<u32>>;

@compute @workgroup_size(256)
fn main(
    @builtin(global_invocation_id) thread: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let stride = workgroups.x * 256u;
    for (var i = thread.x; i < arrayLength(&source); i += stride) {
        copied[i] = source[i];
    }
}
