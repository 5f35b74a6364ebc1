//! float16 and bfloat16 to float32 and back, to the nearest and ties to even, a slice at a time.
//!
//! x86-64 with F16C has instructions for float16. Elsewhere, and for bfloat16, the conversions are
//! branch-free integer arithmetic, which the compiler turns into vectors of whatever width there is.
//! The way float16 is rebuilt by a multiplication, and rounded by an addition, is Fabian Giesen's
//! (<https://gist.github.com/rygorous/2156668>).

use fearless_simd::prelude::*;
use half::{bf16, f16};

/// How many elements are converted at a time: 2 KiB of float32, which stays in the first-level cache.
pub const BLOCK: usize = 512;

/// A 16-bit float.
pub trait Half: Copy + Sized + 'static {
    /// The low bits of a float32 that rounding to this type drops, for a normal result.
    const DROPPED: u32;
    /// What those bits are half-way between two values of this type.
    const TIE: u32;
    /// The bits of the smallest normal value of this type, as a float32.
    const MIN_NORMAL: u32;

    /// `dst[i] = src[i]`, exactly. The slices have the same length.
    fn widen<S: Simd>(simd: S, src: &[Self], dst: &mut [f32]);
    /// `dst[i] = src[i]`, rounded to the nearest, ties to even. The slices have the same length.
    fn narrow<S: Simd>(simd: S, src: &[f32], dst: &mut [Self]);
}

/// One float16 as a float32.
#[inline(always)]
#[must_use]
pub fn f16_to_f32(bits: u16) -> f32 {
    const TWO_POW_112: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = (u32::from(bits) & 0x7fff) << 13;
    let rebased = (f32::from_bits(magnitude) * TWO_POW_112).to_bits();
    // An all-ones exponent has to stay one: infinities and NaNs.
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(rebased | special | (u32::from(bits) & 0x8000) << 16)
}

/// One float32 as the nearest float16.
#[inline(always)]
#[must_use]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Adding a half lines the bits of a subnormal result up with the end of the mantissa: the
    // addition rounds.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_add(0xc800_0fff).wrapping_add(odd) >> 13;
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let bounded = if magnitude >= 0x477f_f000 { 0x7c00 } else { finite };
    let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { bounded };
    (special | (bits >> 16) & 0x8000) as u16
}

/// One bfloat16 as a float32.
#[inline(always)]
#[must_use]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// One float32 as the nearest bfloat16.
#[inline(always)]
#[must_use]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let odd = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7fff).wrapping_add(odd) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

/// A float64 as a float32, towards the neighbour with an odd last bit if it lies between two.
///
/// Rounding that on to 16 bits gives what rounding the float64 would have given: the odd bit keeps
/// the memory of which side of a tie it was on (Boldo and Melquiond, "Emulation of FMA and
/// correctly rounded sums: proved algorithms using rounding to odd", 2008).
#[inline(always)]
#[must_use]
pub fn f64_to_f32_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    let bits = nearest.to_bits();
    let step = if back.abs() < x.abs() { 1 } else { u32::MAX };
    let inexact_even = back != x && bits & 1 == 0 && x.abs() < f64::INFINITY;
    f32::from_bits(if inexact_even { bits.wrapping_add(step) } else { bits })
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod f16c {
    use super::{f16, f16_to_f32, f32_to_f16};
    use fearless_simd::prelude::*;
    use fearless_simd::{f32x8, f32x16, u16x8, u16x16};
    use std::arch::x86_64::{
        _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm512_cvtph_ps,
        _mm512_cvtps_ph,
    };

    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
    const NEAREST_512: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

    fearless_simd::kernel!(
        #[inline]
        pub fn widen_avx2(simd: Avx2, src: &[f16], dst: &mut [f32]) {
            let (bits, rest) = half::slice::HalfFloatSliceExt::reinterpret_cast(src).as_chunks::<8>();
            let (wide, wide_rest) = dst.as_chunks_mut::<8>();
            for (from, to) in bits.iter().zip(wide) {
                let packed: u16x8<_> = (*from).simd_into(simd);
                let converted: f32x8<_> = _mm256_cvtph_ps(packed.into()).simd_into(simd);
                converted.store_slice(to);
            }
            for (from, to) in rest.iter().zip(wide_rest) {
                *to = f16_to_f32(*from);
            }
        }
    );

    fearless_simd::kernel!(
        #[inline]
        pub fn narrow_avx2(simd: Avx2, src: &[f32], dst: &mut [f16]) {
            let (wide, wide_rest) = src.as_chunks::<8>();
            let (bits, rest) = half::slice::HalfFloatSliceExt::reinterpret_cast_mut(dst).as_chunks_mut::<8>();
            for (from, to) in wide.iter().zip(bits) {
                let full: f32x8<_> = (*from).simd_into(simd);
                let packed: u16x8<_> = _mm256_cvtps_ph::<NEAREST>(full.into()).simd_into(simd);
                packed.store_slice(to);
            }
            for (from, to) in wide_rest.iter().zip(rest) {
                *to = f32_to_f16(*from);
            }
        }
    );

    fearless_simd::kernel!(
        #[inline]
        pub fn widen_avx512(simd: Avx512, src: &[f16], dst: &mut [f32]) {
            let (bits, rest) = half::slice::HalfFloatSliceExt::reinterpret_cast(src).as_chunks::<16>();
            let (wide, wide_rest) = dst.as_chunks_mut::<16>();
            for (from, to) in bits.iter().zip(wide) {
                let packed: u16x16<_> = (*from).simd_into(simd);
                let converted: f32x16<_> = _mm512_cvtph_ps(packed.into()).simd_into(simd);
                converted.store_slice(to);
            }
            for (from, to) in rest.iter().zip(wide_rest) {
                *to = f16_to_f32(*from);
            }
        }
    );

    fearless_simd::kernel!(
        #[inline]
        pub fn narrow_avx512(simd: Avx512, src: &[f32], dst: &mut [f16]) {
            let (wide, wide_rest) = src.as_chunks::<16>();
            let (bits, rest) =
                half::slice::HalfFloatSliceExt::reinterpret_cast_mut(dst).as_chunks_mut::<16>();
            for (from, to) in wide.iter().zip(bits) {
                let full: f32x16<_> = (*from).simd_into(simd);
                let packed: u16x16<_> = _mm512_cvtps_ph::<NEAREST_512>(full.into()).simd_into(simd);
                packed.store_slice(to);
            }
            for (from, to) in wide_rest.iter().zip(rest) {
                *to = f32_to_f16(*from);
            }
        }
    );
}

impl Half for f16 {
    const DROPPED: u32 = 0x1fff;
    const TIE: u32 = 0x1000;
    const MIN_NORMAL: u32 = 0x3880_0000;

    #[inline(always)]
    fn widen<S: Simd>(simd: S, src: &[Self], dst: &mut [f32]) {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        {
            if let Some(avx512) = simd.level().as_avx512() {
                return f16c::widen_avx512(avx512, src, dst);
            }
            if let Some(avx2) = simd.level().as_avx2() {
                return f16c::widen_avx2(avx2, src, dst);
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
                return f16c::narrow_avx512(avx512, src, dst);
            }
            if let Some(avx2) = simd.level().as_avx2() {
                return f16c::narrow_avx2(avx2, src, dst);
            }
        }
        let _ = simd;
        for (from, to) in src.iter().zip(dst) {
            *to = f16::from_bits(f32_to_f16(*from));
        }
    }
}

impl Half for bf16 {
    const DROPPED: u32 = 0xffff;
    const TIE: u32 = 0x8000;
    const MIN_NORMAL: u32 = 0x0080_0000;

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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;
    use fearless_simd::dispatch;

    /// Every float16 and bfloat16 there is.
    fn every_bit_pattern() -> Vec<u16> {
        (0..=u16::MAX).collect()
    }

    fn widen<H: Half>(level: isa::Level, src: &[H]) -> Vec<f32> {
        let mut dst = vec![0.0; src.len()];
        dispatch!(level, simd => H::widen(simd, src, &mut dst));
        dst
    }

    fn narrow<H: Half>(level: isa::Level, src: &[f32], zero: H) -> Vec<H> {
        let mut dst = vec![zero; src.len()];
        dispatch!(level, simd => H::narrow(simd, src, &mut dst));
        dst
    }

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    #[test]
    fn every_value_widens_as_the_half_crate_does_and_comes_back() {
        for level in isa::all() {
            let halves: Vec<f16> = every_bit_pattern().into_iter().map(f16::from_bits).collect();
            let wide = widen(level, &halves);
            let back = narrow(level, &wide, f16::ZERO);
            for i in 0..halves.len() {
                assert!(same(wide[i], halves[i].to_f32()), "{level:?} {:?}", halves[i]);
                assert!(
                    back[i] == halves[i] && back[i].to_bits() == halves[i].to_bits() || halves[i].is_nan()
                );
            }
            let brains: Vec<bf16> = every_bit_pattern().into_iter().map(bf16::from_bits).collect();
            let wide = widen(level, &brains);
            let back = narrow(level, &wide, bf16::ZERO);
            for i in 0..brains.len() {
                assert!(same(wide[i], brains[i].to_f32()), "{level:?} {:?}", brains[i]);
                assert!(back[i].to_bits() == brains[i].to_bits() || brains[i].is_nan());
            }
        }
    }

    #[test]
    fn values_between_two_halves_round_to_the_nearest_and_ties_to_even() {
        // Every half, its neighbour, and points just below, at and just above the middle of the two.
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
        let mut brain_points = points.clone();
        for bits in (0..0x7f7f_u16).step_by(7) {
            let base = u32::from(bits) << 16;
            for low in [0x7fff, 0x8000, 0x8001] {
                brain_points.push(f32::from_bits(base | low));
            }
        }
        for level in isa::all() {
            for (x, got) in points.iter().zip(narrow(level, &points, f16::ZERO)) {
                let want = f16::from_f32(*x);
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{level:?} {x}");
            }
            for (x, got) in brain_points.iter().zip(narrow(level, &brain_points, bf16::ZERO)) {
                let want = bf16::from_f32(*x);
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{level:?} {x}");
            }
        }
    }

    #[test]
    fn rounding_to_odd_first_gives_the_single_rounding() {
        // A tie in float16 that rounding to float32 first would create: just above 1 + 2^-11.
        let above = 1.0 + f64::powi(2.0, -11) + f64::powi(2.0, -40);
        assert_eq!(f32_to_f16(above as f32), 0x3c00, "the double rounding that is to be avoided");
        assert_eq!(f32_to_f16(f64_to_f32_odd(above)), 0x3c01);
        let below = 1.0 + 3.0 * f64::powi(2.0, -11) - f64::powi(2.0, -40);
        assert_eq!(f32_to_f16(f64_to_f32_odd(below)), 0x3c01);
        assert_eq!(f64_to_f32_odd(1.5), 1.5);
        assert_eq!(f64_to_f32_odd(-0.0).to_bits(), (-0.0_f32).to_bits());
        assert!(f64_to_f32_odd(f64::NAN).is_nan());
        assert_eq!(f64_to_f32_odd(f64::INFINITY), f32::INFINITY);
    }
}
