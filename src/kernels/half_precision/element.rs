//! Conversion of one 16-bit float to float32 and back, in branch-free integer arithmetic.
//!
//! A float16 is rebuilt as a float32 by a multiplication, and a subnormal result is rounded by an addition, as in
//! Fabian Giesen's code (<https://gist.github.com/rygorous/2156668>).

/// Converts the bits of a float16 to float32, exactly.
#[inline(always)]
#[must_use]
pub fn f16_to_f32(bits: u16) -> f32 {
    const TWO_POW_112: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = (u32::from(bits) & 0x7fff) << 13;
    let rebased = (f32::from_bits(magnitude) * TWO_POW_112).to_bits();
    // Infinities and NaNs keep an exponent of all ones. NaNs become quiet.
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    let quiet = if magnitude > 0x0f80_0000 { 0x0040_0000 } else { 0 };
    f32::from_bits(rebased | special | quiet | (u32::from(bits) & 0x8000) << 16)
}

/// Converts a float32 to the bits of the nearest float16, ties to even.
#[inline(always)]
#[must_use]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Adding 0.5 aligns the bits of a subnormal result with the end of the mantissa: the addition rounds.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_add(0xc800_0fff).wrapping_add(odd) >> 13;
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let bounded = if magnitude >= 0x477f_f000 { 0x7c00 } else { finite };
    let nan = 0x7e00 | (magnitude >> 13) & 0x1ff;
    let special = if magnitude > 0x7f80_0000 { nan } else { bounded };
    (special | (bits >> 16) & 0x8000) as u16
}

/// Converts the bits of a bfloat16 to float32, exactly.
#[inline(always)]
#[must_use]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Converts a float32 to the bits of the nearest bfloat16, ties to even.
#[inline(always)]
#[must_use]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let odd = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7fff).wrapping_add(odd) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}
