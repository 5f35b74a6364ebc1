//! Mantissa and exponent of a float64, exactly.

/// Returns the mantissa in [1, 2) and the exponent of two of a positive finite number: `x = mantissa · 2^exponent`.
#[must_use]
pub fn mantissa_exponent(x: f64) -> (f64, i32) {
    let subnormal = x < f64::MIN_POSITIVE;
    let lifted = if subnormal { x * f64::powi(2.0, 64) } else { x };
    let biased = (lifted.to_bits() >> 52) as i32;
    let mantissa = f64::from_bits(lifted.to_bits() & ((1 << 52) - 1) | 1023 << 52);
    (mantissa, biased - 1023 - if subnormal { 64 } else { 0 })
}
