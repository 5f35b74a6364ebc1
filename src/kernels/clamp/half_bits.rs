//! 16-bit floats compared by their bits.

/// The place of a 16-bit float in the order of its type, -0 before 0, and NaNs beyond the infinities.
#[inline(always)]
fn place(bits: i16) -> i16 {
    bits ^ ((bits >> 15) & i16::MAX)
}

/// One 16-bit float, by its bits; `infinity` is its type's.
#[inline(always)]
pub(super) fn clamp_bits(x: u16, lo: u16, hi: u16, infinity: u16) -> u16 {
    let [x, lo, hi, infinity] = [x, lo, hi, infinity].map(u16::cast_signed);
    let is_nan = |v: i16| v & i16::MAX > infinity;
    // A bound of 0 has zeros of both signs on its inner side; no number is on the inner side of a NaN.
    let top = if hi & i16::MAX == 0 { 0 } else { place(hi) };
    let top = if is_nan(hi) { i16::MIN } else { top };
    let bottom = if lo & i16::MAX == 0 { -1 } else { place(lo) };
    let bottom = if is_nan(lo) { i16::MAX } else { bottom };
    let below = if place(x) <= top || is_nan(x) { x } else { hi };
    let within = if place(below) >= bottom || is_nan(below) { below } else { lo };
    within.cast_unsigned()
}
