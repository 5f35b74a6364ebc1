// For each group: adds the partials, takes the square root, compares the norm
// with the bound and decides what `scale` does.

// One entry a thread: first (largest magnitude, highest position), then the
// words of a 96-bit sum.
var<workgroup> tree: array<vec4<u32>, 256>;

// The position of a partial: 2e, less the zeros above the leading one of its sum,
// plus 64 so that it is positive. The sum shifted to the top of its 64 bits has
// the unit 2^(position - 368). A sum of zero gives 0.
fn position_of(partial: vec4<u32>) -> u32 {
    let zeros = leading_zeros_64(partial.xy);
    return select(2u * partial.z + 64u - zeros, 0u, zeros == 64u);
}

// A partial as a 96-bit integer whose unit is 2^(highest - 378): at the highest
// position the 64 bits of a sum fill bits 10 to 73, so that 2^22 partials fit.
// Bits below the unit are dropped: fewer than 2^22 units, while the total is at
// least 2^73, so the loss is below 2^-51 of the sum and 2^-52 of the norm. A
// float32 ulp is at least 2^-24 of the norm.
fn fixed_of(partial: vec4<u32>, highest: u32) -> vec3<u32> {
    let position = position_of(partial);
    let below = highest - position;
    if (position == 0u || below > 73u) {
        return vec3<u32>(0u, 0u, 0u);
    }
    let sum = shift_left_64(partial.xy, leading_zeros_64(partial.xy));
    let aligned = vec3<u32>(sum.y << 10u, (sum.x << 10u) | (sum.y >> 22u), sum.x >> 22u);
    return shift_right_96(aligned, below);
}

// The integer square root of a 96-bit integer (lowest word first) whose top or
// second bit is set, by digits: 48 bits, returned as a 64-bit pair (high, low)
// shifted left by 16, so that the top bit is set. If the root is not exact, the
// next bit below it is set, so that comparing and rounding see that there is more.
fn root_96(square: vec3<u32>, lost: bool) -> vec2<u32> {
    var rest = vec2<u32>(0u, 0u); // high, low; below 2^50
    var root = vec2<u32>(0u, 0u);
    var source = square;
    for (var i = 0u; i < 48u; i += 1u) {
        rest = vec2<u32>((rest.x << 2u) | (rest.y >> 30u), (rest.y << 2u) | (source.z >> 30u));
        source = shift_left_96(source, 2u);
        let trial = vec2<u32>((root.x << 2u) | (root.y >> 30u), (root.y << 2u) | 1u);
        root = vec2<u32>((root.x << 1u) | (root.y >> 31u), root.y << 1u);
        if (at_least_64(rest, trial)) {
            rest = subtract_64(rest, trial);
            root.y |= 1u;
        }
    }
    let more = select(0u, 0x8000u, lost || rest.x != 0u || rest.y != 0u);
    return vec2<u32>((root.x << 16u) | (root.y >> 16u), (root.y << 16u) | more);
}

// The norm as (high, low, exponent, class 0): the square root of total * 2^(highest - 378).
fn norm_of(total: vec3<u32>, highest: u32) -> vec4<u32> {
    var square = total;
    var shifted = 0u;
    for (var i = 0u; i < 2u; i += 1u) {
        if (square.z == 0u) {
            square = vec3<u32>(0u, square.x, square.y);
            shifted += 32u;
        }
    }
    let left = countLeadingZeros(square.z);
    square = shift_left_96(square, left & 31u);
    shifted += left;
    // The sum of squares is square / 2^96 * 2^exponent; the exponent must be even.
    var exponent = i32(highest) - 282 - i32(shifted);
    var lost = false;
    if ((exponent & 1) != 0) {
        lost = (square.x & 1u) != 0u;
        square = vec3<u32>(
            (square.x >> 1u) | (square.y << 31u),
            (square.y >> 1u) | (square.z << 31u),
            square.z >> 1u,
        );
        exponent += 1;
    }
    let root = root_96(square, lost);
    return vec4<u32>(root, bitcast<u32>(exponent >> 1u), 0u);
}

// True if the finite norm is at most the finite bound.
fn within(norm: vec4<u32>, bound: vec4<u32>) -> bool {
    let norm_exponent = bitcast<i32>(norm.z);
    let bound_exponent = bitcast<i32>(bound.z);
    if (norm_exponent != bound_exponent) {
        return norm_exponent < bound_exponent;
    }
    return at_least_64(bound.xy, norm.xy);
}

// bound / norm rounded to nearest even to 24 bits, as a result with mode 1. Both
// mantissas have their top bit set, so the quotient is between 1/2 and 2.
fn factor_of(bound: vec4<u32>, norm: vec4<u32>) -> vec4<u32> {
    var exponent = bitcast<i32>(bound.z) - bitcast<i32>(norm.z);
    var rest = bound.xy;
    var mantissa = 0u;
    var digits = 24u;
    if (at_least_64(rest, norm.xy)) {
        rest = subtract_64(rest, norm.xy);
        mantissa = 1u;
        digits = 23u;
        exponent += 1;
    }
    for (var i = 0u; i <= digits; i += 1u) {
        // `rest` is below the norm; doubled it may need a 65th bit.
        let over = (rest.x >> 31u) != 0u;
        rest = vec2<u32>((rest.x << 1u) | (rest.y >> 31u), rest.y << 1u);
        let digit = over || at_least_64(rest, norm.xy);
        if (digit) {
            rest = subtract_64(rest, norm.xy);
        }
        if (i < digits) {
            mantissa = (mantissa << 1u) | select(0u, 1u, digit);
        } else if (digit && (rest.x != 0u || rest.y != 0u || (mantissa & 1u) != 0u)) {
            // The last digit is the rounding bit.
            mantissa += 1u;
        }
    }
    if (mantissa == 0x1000000u) {
        mantissa = 0x800000u;
        exponent += 1;
    }
    return vec4<u32>(1u, mantissa, bitcast<u32>(exponent), 0u);
}

// What to do with the elements, for a norm and a bound. `numerator` is the norm that
// clipped elements get. The bound is larger by the loss scale, if there is one: it
// is compared with the norm before the division.
fn decide(norm: vec4<u32>, bound: vec4<u32>, numerator: vec4<u32>) -> vec4<u32> {
    if (bound.w == 3u) {
        return vec4<u32>(0u, 0u, 0u, 0u);
    }
    let kind = bound.w & 0xffu;
    if (norm.w == 1u || norm.w == 2u) {
        // The flag 256 asks for zeros in place of NaN.
        return vec4<u32>(select(2u, 4u, bound.w >= 256u), 0u, 0u, 0u);
    }
    if (kind == 2u) {
        return vec4<u32>(3u, 0u, 0u, 0u);
    }
    if (kind == 1u || norm.w == 3u || within(norm, bound)) {
        return vec4<u32>(0u, 0u, 0u, 0u);
    }
    return factor_of(numerator, norm);
}

// The norm of order infinity: a magnitude, given as the bits of a positive float32.
fn norm_of_magnitude(bits: u32) -> vec4<u32> {
    let fraction = bits & 0x7fffffu;
    let field = bits >> 23u;
    let mantissa = select(fraction | 0x800000u, fraction, field == 0u);
    let shift = countLeadingZeros(mantissa);
    // The mantissa counts units of 2^(max(field, 1) - 150).
    let exponent = i32(max(field, 1u)) - 150 + 32 - i32(shift);
    return vec4<u32>(mantissa << shift, 0u, bitcast<u32>(exponent), 0u);
}

// Folds groups w, w+n, w+2n, ... of the job. The result does not depend on the
// order, because maxima and integer additions are exact.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    for (var item = workgroup.x; item < job.w; item += workgroups.x) {
        let group = groups[job.z + item];

        // The largest magnitude and the highest position.
        var largest = 0u;
        var highest = 0u;
        for (var i = lane; i < group.y; i += 256u) {
            let partial = partials[group.x + i];
            largest = max(largest, partial.w);
            highest = max(highest, position_of(partial));
        }
        tree[lane] = vec4<u32>(largest, highest, 0u, 0u);
        workgroupBarrier();
        for (var width = 128u; width > 0u; width >>= 1u) {
            if (lane < width) {
                tree[lane] = max(tree[lane], tree[lane + width]);
            }
            workgroupBarrier();
        }
        largest = tree[0].x;
        highest = tree[0].y;
        workgroupBarrier();

        // The sum.
        var total = vec3<u32>(0u, 0u, 0u);
        for (var i = lane; i < group.y; i += 256u) {
            let partial = partials[group.x + i];
            total = add_96(total, fixed_of(partial, highest));
        }
        tree[lane] = vec4<u32>(total, 0u);
        workgroupBarrier();
        for (var width = 128u; width > 0u; width >>= 1u) {
            if (lane < width) {
                tree[lane] = vec4<u32>(add_96(tree[lane].xyz, tree[lane + width].xyz), 0u);
            }
            workgroupBarrier();
        }

        if (lane == 0u) {
            var norm = vec4<u32>(0u, 0u, 0u, 3u);
            if (largest > F32_INFINITY) {
                norm.w = 2u;
            } else if (largest == F32_INFINITY) {
                norm.w = 1u;
            } else if (largest != 0u) {
                norm = norm_of(tree[0].xyz, highest);
                if (MAXIMUM) {
                    norm = norm_of_magnitude(largest);
                }
            }
            results[2u * (job.z + item)] = norm;
            results[2u * (job.z + item) + 1u] = decide(norm, bounds[2u * group.z], bounds[2u * group.z + 1u]);
        }
        workgroupBarrier();
    }
}
