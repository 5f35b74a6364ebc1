//! Clamping of 16-bit floats by comparing their bits as integers.

/// Maps the bits of a 16-bit float to an integer that orders as the float: −0 before +0, and NaNs beyond the
/// infinities.
#[inline(always)]
fn order_key(bits: i16) -> i16 {
    bits ^ ((bits >> 15) & i16::MAX)
}

/// Clamps one 16-bit float, given by its bits. `infinity` holds the bits of +∞ of its type.
#[inline(always)]
pub(super) fn clamp_bits(x: u16, lo: u16, hi: u16, infinity: u16) -> u16 {
    let [x, lo, hi, infinity] = [x, lo, hi, infinity].map(u16::cast_signed);
    let is_nan = |v: i16| v & i16::MAX > infinity;
    // A bound of ±0 admits zeros of both signs. A NaN bound admits no number.
    let highest = if hi & i16::MAX == 0 { 0 } else { order_key(hi) };
    let highest = if is_nan(hi) { i16::MIN } else { highest };
    let lowest = if lo & i16::MAX == 0 { -1 } else { order_key(lo) };
    let lowest = if is_nan(lo) { i16::MAX } else { lowest };
    let below = if order_key(x) <= highest || is_nan(x) { x } else { hi };
    let within = if order_key(below) >= lowest || is_nan(below) { below } else { lo };
    within.cast_unsigned()
}
