// For each chunk: the largest magnitude and the sum of squares, in integers.
//
// A partial is (high word of the sum, low word of the sum, exponent, bits of the
// largest magnitude as float32). With e the exponent the sum of squares is
// (high:low) * 2^(2e - 304). If an element is infinite or NaN the first three
// words are zero. Nothing is rounded; each square loses less than one unit of
// the sum when it is aligned to the largest element. The largest square has at
// least 2^50 units (unless it is subnormal: then nothing is lost), so a chunk of
// 2^12 elements loses less than 2^-38 of its sum, which is 2^-39 of the norm.

// The largest magnitude of the chunk.
var<workgroup> largest: atomic<u32>;

// One 64-bit sum a thread (high, low).
var<workgroup> tree: array<vec2<u32>, 256>;

// The magnitude (as float32 bits) of element `index` of a chunk that starts at
// word `first`; 0 behind its end.
fn magnitude_at(first: u32, count: u32, index: u32) -> u32 {
    if (index >= count) {
        return 0u;
    }
    if (HALF_WORDS) {
        let word = load_input(first + (index >> 1u));
        return f32_bits_of_element(half_of(word, index & 1u)) & F32_MAGNITUDE;
    }
    return load_input(first + index) & F32_MAGNITUDE;
}

// The magnitude of element `index` of a part of a slice; 0 behind its end.
fn magnitude_in_slice(chunk: vec4<u32>, index: u32) -> u32 {
    if (index >= chunk.z) {
        return 0u;
    }
    let place = place_of(chunk, index);
    if (HALF_WORDS) {
        let word = load_input(chunk.x + (place >> 1u));
        return f32_bits_of_element(half_of(word, place & 1u)) & F32_MAGNITUDE;
    }
    return load_input(chunk.x + place) & F32_MAGNITUDE;
}

// The magnitudes of four elements: for half-word types four consecutive ones
// (two words), else four that are 256 elements apart, so that threads that are
// neighbours read words that are neighbours. `run` counts from 0 to 3.
fn load_four(chunk: vec4<u32>, lane: u32, run: u32) -> vec4<u32> {
    let first = chunk.x;
    let count = chunk.z;
    if (SLICED) {
        let index = 1024u * run + lane;
        return vec4<u32>(
            magnitude_in_slice(chunk, index),
            magnitude_in_slice(chunk, index + 256u),
            magnitude_in_slice(chunk, index + 512u),
            magnitude_in_slice(chunk, index + 768u),
        );
    }
    if (HALF_WORDS) {
        let index = 1024u * run + 4u * lane;
        if (index + 4u > count) {
            return vec4<u32>(
                magnitude_at(first, count, index),
                magnitude_at(first, count, index + 1u),
                magnitude_at(first, count, index + 2u),
                magnitude_at(first, count, index + 3u),
            );
        }
        let low = load_input(first + (index >> 1u));
        let high = load_input(first + (index >> 1u) + 1u);
        return vec4<u32>(
            f32_bits_of_element(low & 0xffffu),
            f32_bits_of_element(low >> 16u),
            f32_bits_of_element(high & 0xffffu),
            f32_bits_of_element(high >> 16u),
        ) & vec4<u32>(F32_MAGNITUDE);
    }
    let index = 1024u * run + lane;
    return vec4<u32>(
        magnitude_at(first, count, index),
        magnitude_at(first, count, index + 256u),
        magnitude_at(first, count, index + 512u),
        magnitude_at(first, count, index + 768u),
    );
}

// The largest of four magnitudes.
fn largest_of(m: vec4<u32>) -> u32 {
    return max(max(m.x, m.y), max(m.z, m.w));
}

// The exponent field of a magnitude; subnormals have the exponent 1 too.
fn exponent_of(magnitude: u32) -> u32 {
    return max(magnitude >> 23u, 1u);
}

// Adds the square of an element to a sum. The element is a * 2^(e - 152), with a
// of at most 26 bits; its square, a * a, is aligned to the chunk's exponent.
fn add_square(sum: vec2<u32>, magnitude: u32, exponent: u32) -> vec2<u32> {
    let hidden = select(0u, 0x800000u, magnitude >= 0x800000u);
    let a = ((magnitude & 0x7fffffu) | hidden) << 2u;
    let a1 = a >> 16u;
    let a0 = a & 0xffffu;
    let middle = 2u * a1 * a0;
    let square = a0 * a0;
    var low = square + (middle << 16u);
    var high = a1 * a1 + (middle >> 16u) + select(0u, 1u, low < square);
    let right = 2u * (exponent - exponent_of(magnitude));
    if (right >= 64u) {
        return sum;
    }
    if (right >= 32u) {
        low = high >> (right - 32u);
        high = 0u;
    } else if (right != 0u) {
        low = (low >> right) | (high << (32u - right));
        high >>= right;
    }
    return add_64(sum, vec2<u32>(high, low));
}

// Adds the squares of four elements to a sum.
fn add_four(sum: vec2<u32>, m: vec4<u32>, exponent: u32) -> vec2<u32> {
    var total = add_square(sum, m.x, exponent);
    total = add_square(total, m.y, exponent);
    total = add_square(total, m.z, exponent);
    return add_square(total, m.w, exponent);
}

// Measures chunks w, w+n, w+2n, ... of the job, 16 elements a thread. The largest
// magnitude comes first, because the squares are aligned to it. Maxima and
// integer additions are exact, so the result does not depend on any order.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    for (var item = workgroup.x; item < job.y; item += workgroups.x) {
        let chunk = chunks[job.x + item];
        let a = load_four(chunk, lane, 0u);
        let b = load_four(chunk, lane, 1u);
        let c = load_four(chunk, lane, 2u);
        let d = load_four(chunk, lane, 3u);

        if (lane == 0u) {
            atomicStore(&largest, 0u);
        }
        workgroupBarrier();
        atomicMax(&largest, max(max(largest_of(a), largest_of(b)), max(largest_of(c), largest_of(d))));
        workgroupBarrier();
        let magnitude = atomicLoad(&largest);
        let exponent = exponent_of(magnitude);

        var sum = add_four(vec2<u32>(0u, 0u), a, exponent);
        sum = add_four(sum, b, exponent);
        sum = add_four(sum, c, exponent);
        sum = add_four(sum, d, exponent);
        tree[lane] = sum;
        workgroupBarrier();
        for (var width = 128u; width > 0u; width >>= 1u) {
            if (lane < width) {
                tree[lane] = add_64(tree[lane], tree[lane + width]);
            }
            workgroupBarrier();
        }
        if (lane == 0u) {
            if (magnitude >= F32_INFINITY) {
                partials[job.x + item] = vec4<u32>(0u, 0u, 0u, magnitude);
            } else {
                partials[job.x + item] = vec4<u32>(tree[0], exponent, magnitude);
            }
        }
        workgroupBarrier();
    }
}
