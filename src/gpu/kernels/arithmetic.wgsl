// Functions that the kernels share. Elements are handled as bits; the only
// operations on f32 are a product of normal numbers in `product` and the rules of
// optimizers, whose results go through `flush`.

const F32_INFINITY: u32 = 0x7f800000u;
const F32_MAGNITUDE: u32 = 0x7fffffffu;
const F32_SIGN: u32 = 0x80000000u;

// True if an element takes half a word (float16 and bfloat16).
const HALF_WORDS: bool = ELEMENT == 1u || ELEMENT == 2u;

// The number of words that hold `count` elements.
fn words_of(count: u32) -> u32 {
    if (HALF_WORDS) {
        return (count + 1u) >> 1u;
    }
    return count;
}

// The 16-bit half of a word: 0 is the low half, 1 the high half.
fn half_of(word: u32, half: u32) -> u32 {
    return (word >> (16u * half)) & 0xffffu;
}

// Converts float16 bits to the bits of the same value as float32. A subnormal
// float16 becomes a normal float32. The payload of a NaN is kept.
fn f32_bits_of_f16(bits: u32) -> u32 {
    let sign = (bits & 0x8000u) << 16u;
    let magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) {
        return sign | F32_INFINITY | ((magnitude & 0x3ffu) << 13u);
    }
    if (magnitude >= 0x400u) {
        return sign | ((magnitude << 13u) + (112u << 23u));
    }
    if (magnitude == 0u) {
        return sign;
    }
    // The value is magnitude * 2^-24; its leading one becomes the hidden bit.
    let top = firstLeadingBit(magnitude);
    return sign | (((top + 103u) << 23u) + ((magnitude << (23u - top)) & 0x7fffffu));
}

// Converts float32 bits to float16 bits. The value must be one that float16
// represents exactly (also zero, subnormal, infinite).
fn f16_bits_of_f32(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & F32_MAGNITUDE;
    if (magnitude >= F32_INFINITY) {
        return sign | 0x7c00u | ((magnitude >> 13u) & 0x3ffu);
    }
    if (magnitude >= (113u << 23u)) {
        return sign | ((magnitude - (112u << 23u)) >> 13u);
    }
    let exponent = magnitude >> 23u;
    if (exponent < 103u) {
        return sign; // below the smallest subnormal: only zero is representable here
    }
    return sign | (((magnitude & 0x7fffffu) | 0x800000u) >> (126u - exponent));
}

// Converts the bits of one element (16 bits for the half-word types) to the
// bits of its value as float32. Not for int32.
fn f32_bits_of_element(bits: u32) -> u32 {
    if (ELEMENT == 1u) {
        return f32_bits_of_f16(bits);
    }
    if (ELEMENT == 2u) {
        return bits << 16u;
    }
    return bits;
}

// Adds two 96-bit integers, lowest word first.
fn add_96(a: vec3<u32>, b: vec3<u32>) -> vec3<u32> {
    let low = a.x + b.x;
    let carry_low = select(0u, 1u, low < a.x);
    let part = a.y + b.y;
    let carry_part = select(0u, 1u, part < a.y);
    let middle = part + carry_low;
    let carry_middle = select(0u, 1u, middle < part);
    return vec3<u32>(low, middle, a.z + b.z + carry_part + carry_middle);
}

// Shifts a 96-bit integer (lowest word first) left by 0 to 31 bits.
fn shift_left_96(a: vec3<u32>, count: u32) -> vec3<u32> {
    if (count == 0u) {
        return a;
    }
    let back = 32u - count;
    return vec3<u32>(
        a.x << count,
        (a.y << count) | (a.x >> back),
        (a.z << count) | (a.y >> back),
    );
}

// True if the 64-bit integer a is at least b. In 64-bit pairs, x is the high word.
fn at_least_64(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y >= b.y);
}

// a - b for 64-bit integers (modulo 2^64).
fn subtract_64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x - select(0u, 1u, a.y < b.y), a.y - b.y);
}

// a + b for 64-bit integers (modulo 2^64).
fn add_64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.y + b.y;
    return vec2<u32>(a.x + b.x + select(0u, 1u, low < a.y), low);
}

// Shifts a 64-bit integer left by 0 to 63 bits.
fn shift_left_64(a: vec2<u32>, count: u32) -> vec2<u32> {
    var high = a.x;
    var low = a.y;
    if (count >= 32u) {
        high = low;
        low = 0u;
    }
    let part = count & 31u;
    // Two steps, because a shift by 32 is not defined when part is 0.
    return vec2<u32>((high << part) | ((low >> (31u - part)) >> 1u), low << part);
}

// The number of zeros above the leading one of a 64-bit integer; 64 for zero.
fn leading_zeros_64(a: vec2<u32>) -> u32 {
    if (a.x == 0u) {
        return 32u + countLeadingZeros(a.y);
    }
    return countLeadingZeros(a.x);
}

// Shifts a 96-bit integer (lowest word first) right by 0 to 95 bits.
fn shift_right_96(a: vec3<u32>, count: u32) -> vec3<u32> {
    var b = a;
    if (count >= 64u) {
        b = vec3<u32>(a.z, 0u, 0u);
    } else if (count >= 32u) {
        b = vec3<u32>(a.y, a.z, 0u);
    }
    let part = count & 31u;
    if (part == 0u) {
        return b;
    }
    let back = 32u - part;
    return vec3<u32>(
        (b.x >> part) | (b.y << back),
        (b.y >> part) | (b.z << back),
        b.z >> part,
    );
}
