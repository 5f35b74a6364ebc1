//! Products of 16-bit floats and a float32 factor, by way of float32, and where they are the exact product rounded once.
//!
//! The product is computed in float32 and rounded to 16 bits from there. Both roundings together are the rounding of
//! the exact product, unless the first one ends half-way between two 16-bit floats, at a tie: every tie is a float32,
//! so that rounding to float32 moves no product across one, but it may move a product onto one. Such products, one in
//! some thousands, have to be computed in float64 and rounded to odd (`round_to_odd.rs`), as `scale.rs` does.

use super::Pattern;
use super::element::{f16_to_f32, f32_to_f16};
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
use super::x86;
use fearless_simd::prelude::*;
use fearless_simd::{f32x16, u16x32, u32x16};

/// Number of products that are computed at a time.
pub const GROUP: usize = 32;

/// Number of zeros at the end of a float32 mantissa that has 13 bits or fewer: its product with the 11 bits of a
/// float16 is exact in float32.
pub(super) const ZEROS_OF_13_BITS: u32 = 11;

/// Bits that are 0 in a float32 which is a tie between two float16: a tie has at most 12 bits.
pub(super) const ZEROS_OF_F16_TIE: u32 = 0xfff;

/// Returns the products of bfloat16, and whether no product in float32 is a tie.
#[inline(always)]
pub(super) fn bf16_via_f32<S: Simd>(simd: S, x: &Pattern, factor: f32) -> (Pattern, bool) {
    const HIGH: u32 = 0xffff_0000;
    // Two elements in each 32 bits; either half, with zeros below it, is the element as a float32.
    let pairs: u32x16<S> = u16x32::from_slice(simd, x).bitcast();
    let low = (pairs << 16).bitcast::<f32x16<S>>() * factor;
    let high = (pairs & HIGH).bitcast::<f32x16<S>>() * factor;
    // Half of the last bit that is kept.
    let low = low.bitcast::<u32x16<S>>() + 0x8000;
    let high = high.bitcast::<u32x16<S>>() + 0x8000;
    let mut products = [0; GROUP];
    ((low >> 16) | (high & HIGH)).bitcast::<u16x32<S>>().store_slice(&mut products);
    // What is rounded off is 0 for a tie, because of the half that was added. It is not 0 for a NaN, whose payload
    // is that of a bfloat16.
    let rounded_off: u16x32<S> = ((low & !HIGH) | (high << 16)).bitcast();
    (products, !rounded_off.simd_eq(0).any_true())
}

/// Returns the products of float16, and whether no product in float32 is a tie.
#[inline(always)]
pub(super) fn f16_via_f32<S: Simd>(simd: S, x: &Pattern, factor: f32) -> (Pattern, bool) {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        if let Some(avx512) = simd.level().as_avx512() {
            return x86::f16_via_f32_avx512(avx512, x, factor);
        }
        if let Some(avx2) = simd.level().as_avx2() {
            return x86::f16_via_f32_avx2(avx2, x, factor);
        }
    }
    let _ = simd;
    let mut products = [0; GROUP];
    let mut may_be_tie = false;
    for (from, to) in x.iter().zip(&mut products) {
        let product = f16_to_f32(*from) * factor;
        // Zero is no tie: its float32 product is exact, or so small that it is zero in float16 as well.
        may_be_tie |= product.to_bits() & ZEROS_OF_F16_TIE == 0 && product != 0.0;
        *to = f32_to_f16(product);
    }
    (products, !may_be_tie || factor.to_bits().trailing_zeros() >= ZEROS_OF_13_BITS)
}
