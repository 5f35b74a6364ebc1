// Applies the decision of a group to one element: its product with a factor, rounded once.

// The element type: digits of the mantissa (hidden one included), exponent of
// the smallest subnormal, and the bits of infinity, of the quiet NaN, of the bit
// that makes a NaN quiet, and of the sign.
const DIGITS: i32 = select(24, select(8, 11, ELEMENT == 1u), HALF_WORDS);
const SMALLEST: i32 = select(-149, select(-133, -24, ELEMENT == 1u), HALF_WORDS);
const INFINITY: u32 = select(0x7f800000u, select(0x7f80u, 0x7c00u, ELEMENT == 1u), HALF_WORDS);
const QUIET: u32 = select(0x00400000u, select(0x40u, 0x200u, ELEMENT == 1u), HALF_WORDS);
const SIGN: u32 = select(0x80000000u, 0x8000u, HALF_WORDS);

// The product of a finite nonzero magnitude (as float32 bits) and the factor
// mantissa / 2^24 * 2^exponent, rounded once to nearest even in the element
// type; returns the bits of the magnitude. Integers only.
fn rounded_product(magnitude: u32, mantissa: u32, exponent: i32) -> u32 {
    // The magnitude is a * 2^scale with a in [2^23, 2^24).
    var a = magnitude & 0x7fffffu;
    var scale = i32(magnitude >> 23u) - 150;
    if (magnitude < 0x800000u) {
        let up = countLeadingZeros(magnitude) - 8u;
        a = magnitude << up;
        scale = -149 - i32(up);
    } else {
        a |= 0x800000u;
    }
    // The exact product, 47 or 48 bits: high * 2^24 + low; its unit is 2^scale.
    scale += exponent - 24;
    let a1 = a >> 12u;
    let a0 = a & 0xfffu;
    let b1 = mantissa >> 12u;
    let b0 = mantissa & 0xfffu;
    let middle = a1 * b0 + a0 * b1;
    let lower = a0 * b0 + ((middle & 0xfffu) << 12u);
    let low = lower & 0xffffffu;
    let high = a1 * b1 + (middle >> 12u) + (lower >> 24u);
    // The exponent of the result's last digit, and how many digits go away.
    let top = select(46, 47, high >= 0x800000u);
    let last = max(scale + top - DIGITS + 1, SMALLEST);
    let away = last - scale; // at least 23
    if (away > 48) {
        return 0u; // less than half of the smallest subnormal
    }
    if (last - SMALLEST > 253) {
        return INFINITY;
    }
    var kept: u32;
    var rest: u32;
    var half: u32;
    var sticky = false;
    if (away <= 24) {
        let count = u32(away);
        kept = (high << (24u - count)) | (low >> count);
        rest = low & ((1u << count) - 1u);
        half = 1u << (count - 1u);
    } else {
        let count = u32(away - 24);
        kept = high >> count;
        rest = high & ((1u << count) - 1u);
        half = 1u << (count - 1u);
        sticky = low != 0u;
    }
    if (rest > half || (rest == half && (sticky || (kept & 1u) != 0u))) {
        kept += 1u;
    }
    // The hidden one, or a carry, goes into the exponent by the addition.
    return min((u32(last - SMALLEST) << u32(DIGITS - 1)) + kept, INFINITY);
}

// One element (bits in its own type) times the factor, rounded once.
fn scaled(bits: u32, mantissa: u32, exponent: i32) -> u32 {
    let sign = bits & SIGN;
    let own = bits ^ sign;
    if (own == 0u || own == INFINITY) {
        return bits;
    }
    if (own > INFINITY) {
        return bits | QUIET;
    }
    if (!HALF_WORDS && own >= (3u << 23u)) {
        // With a factor in [1/2, 1) the product is a normal number. If it stays
        // normal when the exponent is added, it is rounded at the same digit.
        let factor = bitcast<f32>((126u << 23u) | (mantissa & 0x7fffffu));
        let product = bitcast<u32>(flush(bitcast<f32>(own) * factor));
        let moved = i32(product >> 23u) + exponent;
        if (moved >= 2 && moved <= 253) {
            return sign | ((u32(moved) << 23u) | (product & 0x7fffffu));
        }
    }
    return sign | rounded_product(f32_bits_of_element(own), mantissa, exponent);
}

// One element after the decision.
fn applied(bits: u32, decision: vec4<u32>) -> u32 {
    if (decision.x == 1u) {
        return scaled(bits, decision.y, bitcast<i32>(decision.z));
    }
    if (decision.x == 2u) {
        return INFINITY | QUIET;
    }
    if (decision.x == 3u) {
        // The product with 0, which for infinity and NaN is NaN.
        return select(bits & SIGN, INFINITY | QUIET, (bits & ~SIGN) >= INFINITY);
    }
    if (decision.x == 4u) {
        return 0u;
    }
    return bits;
}
