// Applies the decision of a group to its elements.

// The decision for an element of a chunk, whose own decision is `whole`.
fn decision_of(chunk: vec4<u32>, index: u32, whole: vec4<u32>) -> vec4<u32> {
    if (SLICED) {
        return results[2u * slice_of(chunk.w + index) + 1u];
    }
    return whole;
}

// Scales chunks w, w+n, w+2n, ... of the job. When the last word holds one
// 16-bit element only, its other half is kept in place, and zero elsewhere.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    for (var item = workgroup.x; item < job.y; item += workgroups.x) {
        let chunk = chunks[job.x + item];
        // Slices cross chunks: each element then has a decision of its own.
        let group = select(chunk.w, 0u, SLICED);
        let decision = results[2u * group + 1u];
        if (!SLICED && IN_PLACE && decision.x == 0u) {
            continue;
        }
        let words = words_of(chunk.z);
        for (var i = lane; i < words; i += 256u) {
            let word = load_input(chunk.x + i);
            var output: u32;
            if (HALF_WORDS) {
                output = applied(word & 0xffffu, decision_of(chunk, 2u * i, decision));
                if (2u * i + 1u < chunk.z) {
                    output |= applied(word >> 16u, decision_of(chunk, 2u * i + 1u, decision)) << 16u;
                } else if (IN_PLACE) {
                    output |= word & 0xffff0000u;
                }
            } else {
                output = applied(word, decision_of(chunk, i, decision));
            }
            store_output(chunk.y + i, output);
        }
    }
}
