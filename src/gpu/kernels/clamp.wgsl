// max(min(x, upper), lower) for every element, by integer comparisons.

// A key that orders float32 values given by their bits; both zeros have key 0.
// For int32 the key is the value.
fn key_of(bits: u32) -> i32 {
    if (ELEMENT == 3u) {
        return bitcast<i32>(bits);
    }
    let magnitude = bitcast<i32>(bits & F32_MAGNITUDE);
    return select(magnitude, -magnitude, (bits & F32_SIGN) != 0u);
}

// The bits of a bound (given as float32, or int32) in the element type.
fn bound_bits(bits: u32) -> u32 {
    if (ELEMENT == 1u) {
        return f16_bits_of_f32(bits);
    }
    if (ELEMENT == 2u) {
        return bits >> 16u;
    }
    return bits;
}

// One element between the bounds (lower, upper as given; then both in the
// element type). NaN and elements equal to a bound stay as they are; if lower is
// above upper the result is lower.
fn clamped(bits: u32, bound: vec2<u32>, own: vec2<u32>) -> u32 {
    let value = f32_bits_of_element(bits);
    if (ELEMENT != 3u && (value & F32_MAGNITUDE) > F32_INFINITY) {
        return bits;
    }
    var output = bits;
    var key = key_of(value);
    let lower = key_of(bound.x);
    let upper = key_of(bound.y);
    if (key > upper) {
        key = upper;
        output = own.y;
    }
    if (key < lower) {
        output = own.x;
    }
    return output;
}

// Clamps chunks w, w+n, w+2n, ... of the job. When the last word holds one
// 16-bit element only, its other half is kept in place, and zero elsewhere.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let bound = bounds[0].xy;
    let own = vec2<u32>(bound_bits(bound.x), bound_bits(bound.y));
    for (var item = workgroup.x; item < job.y; item += workgroups.x) {
        let chunk = chunks[job.x + item];
        let words = words_of(chunk.z);
        for (var i = lane; i < words; i += 256u) {
            let word = load_input(chunk.x + i);
            var output: u32;
            if (HALF_WORDS) {
                output = clamped(word & 0xffffu, bound, own);
                if (2u * i + 1u < chunk.z) {
                    output |= clamped(word >> 16u, bound, own) << 16u;
                } else if (IN_PLACE) {
                    output |= word & 0xffff0000u;
                }
            } else {
                output = clamped(word, bound, own);
            }
            if (!IN_PLACE || output != word) {
                store_output(chunk.y + i, output);
            }
        }
    }
}
