// Applies the rule of an optimizer to variables and their slots: a gradient is
// scaled, then clamped, then used. The products are those of `scale`; the rule is
// float arithmetic of the device, which may flush subnormals and fuse operations.

const NAN: u32 = 0x7fc00000u;

// `parameters`: the decision for gradients that are not clipped by norm (they may
// be divided by a loss scale), the bound of magnitudes, and the coefficients.
const MAGNITUDE_BOUND: u32 = 4u;
const FIRST_COEFFICIENT: u32 = 8u;

fn unclipped() -> vec4<u32> {
    return vec4<u32>(parameters[0], parameters[1], parameters[2], 0u);
}

fn is_nan(bits: u32) -> bool {
    return (bits & F32_MAGNITUDE) > F32_INFINITY;
}

// The bits of an element of a gradient as float32.
fn gradient_of(chunk: vec4<u32>, index: u32) -> u32 {
    if (GRADIENT == 0u) {
        return load_gradient(chunk.x + index);
    }
    let bits = half_of(load_gradient(chunk.x + (index >> 1u)), index & 1u);
    if (GRADIENT == 1u) {
        return f32_bits_of_f16(bits);
    }
    return bits << 16u;
}

// A gradient with its magnitude limited; NaN stays.
fn limited(bits: u32) -> u32 {
    let bound = parameters[MAGNITUDE_BOUND];
    return select(bits, (bits & F32_SIGN) | bound, (bits & F32_MAGNITUDE) > bound && !is_nan(bits));
}

// The bits of a result, which is NaN if one of its operands is: devices may not
// keep NaN in arithmetic.
fn result_of(value: f32, from_nan: bool) -> u32 {
    let bits = bitcast<u32>(value);
    return select(bits, NAN, from_nan || is_nan(bits));
}

// The value of an operand.
fn value_of(bits: u32) -> f32 {
    return flush(bitcast<f32>(bits));
}

// Updates chunks w, w+n, w+2n, ... of the job. A chunk has two rows: offsets of
// gradient and variable, length, group; and the offsets of slots.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    for (var item = workgroup.x; item < job.y; item += workgroups.x) {
        let chunk = chunks[job.x + 2u * item];
        let slots = chunks[job.x + 2u * item + 1u];
        var decision = results[2u * chunk.w + 1u];
        if (decision.x == 0u) {
            decision = unclipped();
        }
        for (var i = lane; i < chunk.z; i += 256u) {
            let g = limited(applied(gradient_of(chunk, i), decision));
            let w = load_variable(chunk.y + i);
            let a = load_slot0(slots.x + i);
            let b = load_slot1(slots.y + i);
            let next = update(value_of(g), State(value_of(w), value_of(a), value_of(b)));
            store_variable(chunk.y + i, result_of(next.variable, is_nan(g) || is_nan(w) || is_nan(a) || is_nan(b)));
            store_slot0(slots.x + i, result_of(next.slot0, is_nan(g) || is_nan(a)));
            store_slot1(slots.y + i, result_of(next.slot1, is_nan(g) || is_nan(b)));
        }
    }
}
