//! 16-bit floats: slices of float16 and bfloat16 to float32 and back, and their products with a float32 factor.
//!
//! - Formula: `dst[i] = src[i]`, and `out[i] = x[i]·factor`. No additions.
//! - Error: none to float32. To 16 bits ½ ulp: to the nearest, ties to even, one rounding, also of products
//!   (`products.rs`).
//! - Bits: x86-64 with F16C has instructions for float16 (`x86.rs`). Elsewhere, and for bfloat16, the conversions are
//!   branch-free integer arithmetic (`element.rs`), which the compiler vectorises. Both return the same bits. A
//!   float16 NaN becomes quiet and keeps its sign and as much of its payload as fits, in both directions, as the
//!   instructions do. A bfloat16 NaN keeps all its bits when it is converted to float32, and becomes quiet when a
//!   float32 is converted to it.

mod element;
mod products;
mod round_to_odd;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod x86;

pub use element::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub use products::GROUP;
pub use round_to_odd::f64_to_f32_odd;

use fearless_simd::prelude::*;
use half::{bf16, f16};
use products::{bf16_via_f32, f16_via_f32};

/// Number of elements that callers convert at a time: 2 KiB of float32, which stay in the first-level cache.
pub const BLOCK: usize = 512;

/// The bits of some 16-bit floats.
type Pattern = [u16; GROUP];

/// A 16-bit float.
pub trait Half: Copy + Default + 'static {
    /// Computes `dst[i] = src[i]`, exactly. The slices have the same length.
    fn widen<S: Simd>(simd: S, src: &[Self], dst: &mut [f32]);
    /// Computes `dst[i] = src[i]`, rounded to the nearest, ties to even. The slices have the same length.
    fn narrow<S: Simd>(simd: S, src: &[f32], dst: &mut [Self]);
    /// Returns the products with a factor, rounded in float32 and to 16 bits, and whether this is surely the same as
    /// one rounding. The factor is finite, and gives no NaN with a float that is none.
    fn products_via_f32<S: Simd>(simd: S, x: &[Self; GROUP], factor: f32) -> ([Self; GROUP], bool);
}

impl Half for f16 {
    #[inline(always)]
    fn widen<S: Simd>(simd: S, src: &[Self], dst: &mut [f32]) {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        {
            if let Some(avx512) = simd.level().as_avx512() {
                return x86::widen_avx512(avx512, src, dst);
            }
            if let Some(avx2) = simd.level().as_avx2() {
                return x86::widen_avx2(avx2, src, dst);
            }
        }
        let _ = simd;
        for (from, to) in src.iter().zip(dst) {
            *to = f16_to_f32(from.to_bits());
        }
    }

    #[inline(always)]
    fn narrow<S: Simd>(simd: S, src: &[f32], dst: &mut [Self]) {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        {
            if let Some(avx512) = simd.level().as_avx512() {
                return x86::narrow_avx512(avx512, src, dst);
            }
            if let Some(avx2) = simd.level().as_avx2() {
                return x86::narrow_avx2(avx2, src, dst);
            }
        }
        let _ = simd;
        for (from, to) in src.iter().zip(dst) {
            *to = f16::from_bits(f32_to_f16(*from));
        }
    }

    #[inline(always)]
    fn products_via_f32<S: Simd>(simd: S, x: &[Self; GROUP], factor: f32) -> ([Self; GROUP], bool) {
        let (products, are_rounded_once) = f16_via_f32(simd, bytemuck::cast_ref(x), factor);
        (bytemuck::cast(products), are_rounded_once)
    }
}

impl Half for bf16 {
    #[inline(always)]
    fn widen<S: Simd>(_simd: S, src: &[Self], dst: &mut [f32]) {
        for (from, to) in src.iter().zip(dst) {
            *to = bf16_to_f32(from.to_bits());
        }
    }

    #[inline(always)]
    fn narrow<S: Simd>(_simd: S, src: &[f32], dst: &mut [Self]) {
        for (from, to) in src.iter().zip(dst) {
            *to = bf16::from_bits(f32_to_bf16(*from));
        }
    }

    #[inline(always)]
    fn products_via_f32<S: Simd>(simd: S, x: &[Self; GROUP], factor: f32) -> ([Self; GROUP], bool) {
        let (products, are_rounded_once) = bf16_via_f32(simd, bytemuck::cast_ref(x), factor);
        (bytemuck::cast(products), are_rounded_once)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use fearless_simd::{Level, dispatch};

    /// Returns the bits of every 16-bit float.
    fn every_bit_pattern() -> Vec<u16> {
        (0..=u16::MAX).collect()
    }

    fn widen<H: Half>(level: Level, src: &[H]) -> Vec<f32> {
        let mut dst = vec![0.0; src.len()];
        dispatch!(level, simd => H::widen(simd, src, &mut dst));
        dst
    }

    fn narrow<H: Half>(level: Level, src: &[f32], zero: H) -> Vec<H> {
        let mut dst = vec![zero; src.len()];
        dispatch!(level, simd => H::narrow(simd, src, &mut dst));
        dst
    }

    fn same_or_both_nan(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    #[test]
    fn every_16_bit_float_widens_as_in_the_half_crate_and_narrows_to_itself() {
        for level in isa::all() {
            let halves: Vec<f16> = every_bit_pattern().into_iter().map(f16::from_bits).collect();
            let wide = widen(level, &halves);
            let back = narrow(level, &wide, f16::ZERO);
            for i in 0..halves.len() {
                assert!(same_or_both_nan(wide[i], halves[i].to_f32()), "{level:?} {:?}", halves[i]);
                assert!(
                    back[i] == halves[i] && back[i].to_bits() == halves[i].to_bits() || halves[i].is_nan()
                );
            }
            let bfloats: Vec<bf16> = every_bit_pattern().into_iter().map(bf16::from_bits).collect();
            let wide = widen(level, &bfloats);
            let back = narrow(level, &wide, bf16::ZERO);
            for i in 0..bfloats.len() {
                assert!(same_or_both_nan(wide[i], bfloats[i].to_f32()), "{level:?} {:?}", bfloats[i]);
                assert!(back[i].to_bits() == bfloats[i].to_bits() || bfloats[i].is_nan());
            }
        }
    }

    #[test]
    fn narrowing_rounds_to_the_nearest_and_ties_to_even() {
        // For all neighbouring float16: points just below, at and just above the middle of the two.
        let mut points =
            vec![f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 65519.9, 65520.0, 1e-30];
        for bits in 0..0x7bff_u16 {
            let low = f16::from_bits(bits).to_f32();
            let high = f16::from_bits(bits + 1).to_f32();
            let middle = f32::midpoint(low, high);
            for point in [middle, f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1)]
            {
                points.extend([point, -point]);
            }
        }
        let mut bfloat_points = points.clone();
        for bits in (0..0x7f7f_u16).step_by(7) {
            let base = u32::from(bits) << 16;
            for low in [0x7fff, 0x8000, 0x8001] {
                bfloat_points.push(f32::from_bits(base | low));
            }
        }
        for level in isa::all() {
            for (x, got) in points.iter().zip(narrow(level, &points, f16::ZERO)) {
                let want = f16::from_f32(*x);
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{level:?} {x}");
            }
            for (x, got) in bfloat_points.iter().zip(narrow(level, &bfloat_points, bf16::ZERO)) {
                let want = bf16::from_f32(*x);
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{level:?} {x}");
            }
        }
    }
}
