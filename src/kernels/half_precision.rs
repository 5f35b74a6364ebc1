//! float16 and bfloat16 to float32 and back, to the nearest and ties to even, a slice at a time.
//!
//! x86-64 with F16C has instructions for float16. Elsewhere, and for bfloat16, the conversions are
//! branch-free integer arithmetic, which the compiler turns into vectors of whatever width there is.
//! The way float16 is rebuilt by a multiplication, and rounded by an addition, is Fabian Giesen's
//! (<https://gist.github.com/rygorous/2156668>).
//!
//! A float16 NaN becomes quiet and keeps its sign and as much of its payload as fits, both ways, as the instructions
//! have it. A bfloat16 NaN keeps all its bits when it is widened, and becomes quiet when it is narrowed.

use fearless_simd::prelude::*;
use half::{bf16, f16};

/// How many elements are converted at a time: 2 KiB of float32, which stays in the first-level cache.
pub const BLOCK: usize = 512;

/// A 16-bit float.
pub trait Half: Copy + Default + 'static {
    /// `dst[i] = src[i]`, exactly. The slices have the same length.
    fn widen<S: Simd>(simd: S, src: &[Self], dst: &mut [f32]);
    /// `dst[i] = src[i]`, rounded to the nearest, ties to even. The slices have the same length.
    fn narrow<S: Simd>(simd: S, src: &[f32], dst: &mut [Self]);
    /// `out[i] = x[i]·factor`, the exact product rounded once, or false if `out` is not to be used because a
    /// product is so small that this way does not give it. The slices have the same length.
    #[must_use]
    fn scale_once<S: Simd>(simd: S, x: &[Self], out: &mut [Self], factor: f32) -> bool;
}

/// One float16 as a float32.
#[inline(always)]
#[must_use]
pub fn f16_to_f32(bits: u16) -> f32 {
    const TWO_POW_112: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = (u32::from(bits) & 0x7fff) << 13;
    let rebased = (f32::from_bits(magnitude) * TWO_POW_112).to_bits();
    // An all-ones exponent has to stay one: infinities and NaNs. NaNs become quiet.
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    let quiet = if magnitude > 0x0f80_0000 { 0x0040_0000 } else { 0 };
    f32::from_bits(rebased | special | quiet | (u32::from(bits) & 0x8000) << 16)
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
    let nan = 0x7e00 | (magnitude >> 13) & 0x1ff;
    let special = if magnitude > 0x7f80_0000 { nan } else { bounded };
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

/// The bits of 2^-100: below it the fused multiply-add loses what is missing itself.
const SMALL_BF16: u32 = (127 - 100) << 23;

/// Whether this level has a fused multiply-add; without one the compiler would call a function for it.
#[inline(always)]
fn has_fma<S: Simd>(simd: S) -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return simd.level().as_avx2().is_some();
    #[cfg(target_arch = "aarch64")]
    return simd.level().as_neon().is_some();
    #[allow(unreachable_code, reason = "on other architectures")]
    {
        let _ = simd;
        false
    }
}

/// The product in float32, towards the neighbour with an odd last bit if it lies between two.
///
/// A fused multiply-add gives what rounding has taken off, exactly for products above 2^-100.
#[inline(always)]
fn odd_product(x: f32, factor: f32, fused: bool) -> f32 {
    if !fused {
        return f64_to_f32_odd(f64::from(x) * f64::from(factor));
    }
    let product = x * factor;
    let rest = x.mul_add(factor, -product);
    let bits = product.to_bits();
    // Away from zero if what is missing has the sign of the product, else towards it.
    let step = ((rest.to_bits() ^ bits).cast_signed() >> 31) | 1;
    // Not `rest != 0.0`: of an infinite product nothing but NaN is missing, and it has to stay.
    #[allow(clippy::double_comparisons, reason = "false for NaN")]
    let inexact_even = (rest < 0.0 || rest > 0.0) && bits & 1 == 0;
    f32::from_bits(bits.wrapping_add_signed(if inexact_even { step } else { 0 }))
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod x86 {
    use super::{SMALL_BF16, bf16, bf16_to_f32, f16, f16_to_f32, f32_to_bf16, f32_to_f16, odd_product};
    use fearless_simd::prelude::*;
    use fearless_simd::{f32x8, f32x16, u16x8, u16x16};
    use std::arch::x86_64::{
        __m512, __m512i, _CMP_NEQ_OQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_FROUND_TO_ZERO,
        _mm256_add_epi32, _mm256_and_si256, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps,
        _mm256_cmpeq_epi32, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_fmsub_ps, _mm256_mul_ps,
        _mm256_or_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
        _mm256_srai_epi32, _mm256_xor_si256, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512,
        _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi16, _mm512_cvtepu16_epi32,
        _mm512_cvtph_ps, _mm512_cvtps_ph, _mm512_fmsub_ps, _mm512_mask_or_epi32, _mm512_max_epu32,
        _mm512_min_epu32, _mm512_mul_round_ps, _mm512_reduce_max_epu32, _mm512_reduce_min_epu32,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi32,
        _mm512_srli_epi32, _mm512_sub_epi32,
    };

    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
    const NEAREST_512: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const TOWARDS_ZERO: i32 = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;

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
        pub fn scale_once_avx2(simd: Avx2, x: &[f16], out: &mut [f16], factor: f32) {
            let (bits, rest) = half::slice::HalfFloatSliceExt::reinterpret_cast(x).as_chunks::<8>();
            let (packed, packed_rest) =
                half::slice::HalfFloatSliceExt::reinterpret_cast_mut(out).as_chunks_mut::<8>();
            let by = _mm256_set1_ps(factor);
            let one = _mm256_set1_epi32(1);
            for (from, to) in bits.iter().zip(packed) {
                let half: u16x8<_> = (*from).simd_into(simd);
                let wide = _mm256_cvtph_ps(half.into());
                let product = _mm256_mul_ps(wide, by);
                let rest = _mm256_fmsub_ps(wide, by, product);
                // As `odd_product`, on eight.
                let inexact = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_NEQ_OQ>(rest, _mm256_setzero_ps()));
                let (product, rest) = (_mm256_castps_si256(product), _mm256_castps_si256(rest));
                let step = _mm256_or_si256(_mm256_srai_epi32::<31>(_mm256_xor_si256(rest, product)), one);
                let even = _mm256_cmpeq_epi32(_mm256_and_si256(product, one), _mm256_setzero_si256());
                let step = _mm256_and_si256(step, _mm256_and_si256(inexact, even));
                let odd = _mm256_castsi256_ps(_mm256_add_epi32(product, step));
                let rounded: u16x8<_> = _mm256_cvtps_ph::<NEAREST>(odd).simd_into(simd);
                rounded.store_slice(to);
            }
            for (from, to) in rest.iter().zip(packed_rest) {
                *to = f32_to_f16(odd_product(f16_to_f32(*from), factor, true));
            }
        }
    );

    /// As `odd_product`, on sixteen: cut off towards zero, with the last bit set if something was missing.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn odd_products(x: __m512, by: __m512) -> __m512i {
        let product = _mm512_mul_round_ps::<TOWARDS_ZERO>(x, by);
        let inexact = _mm512_cmp_ps_mask::<_CMP_NEQ_OQ>(_mm512_fmsub_ps(x, by, product), _mm512_setzero_ps());
        let bits = _mm512_castps_si512(product);
        _mm512_mask_or_epi32(bits, inexact, bits, _mm512_set1_epi32(1))
    }

    fearless_simd::kernel!(
        #[inline]
        pub fn scale_once_bf16_avx512(simd: Avx512, x: &[bf16], out: &mut [bf16], factor: f32) -> bool {
            let (bits, rest) = half::slice::HalfFloatSliceExt::reinterpret_cast(x).as_chunks::<16>();
            let (packed, packed_rest) =
                half::slice::HalfFloatSliceExt::reinterpret_cast_mut(out).as_chunks_mut::<16>();
            let by = _mm512_set1_ps(factor);
            let one = _mm512_set1_epi32(1);
            let mut smallest = _mm512_set1_epi32(-1);
            let mut largest = _mm512_setzero_si512();
            for (from, to) in bits.iter().zip(packed) {
                let half: u16x16<_> = (*from).simd_into(simd);
                let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half.into()));
                let odd = odd_products(_mm512_castsi512_ps(wide), by);
                let size = _mm512_and_si512(odd, _mm512_set1_epi32(i32::MAX));
                smallest = _mm512_min_epu32(smallest, _mm512_sub_epi32(size, one));
                largest = _mm512_max_epu32(largest, size);
                let last = _mm512_and_si512(_mm512_srli_epi32::<16>(odd), one);
                let up = _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff));
                let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(odd, up));
                let rounded: u16x16<_> = _mm512_cvtepi32_epi16(rounded).simd_into(simd);
                rounded.store_slice(to);
            }
            let mut smallest = _mm512_reduce_min_epu32(smallest);
            for (from, to) in rest.iter().zip(packed_rest) {
                let product = odd_product(bf16_to_f32(*from), factor, true);
                smallest = smallest.min((product.to_bits() & 0x7fff_ffff).wrapping_sub(1));
                *to = f32_to_bf16(product);
            }
            // What is not finite has lost its meaning in the rounding above.
            smallest >= SMALL_BF16 && _mm512_reduce_max_epu32(largest) < 0x7f80_0000
        }
    );

    fearless_simd::kernel!(
        #[inline]
        pub fn scale_once_avx512(simd: Avx512, x: &[f16], out: &mut [f16], factor: f32) {
            let (bits, rest) = half::slice::HalfFloatSliceExt::reinterpret_cast(x).as_chunks::<16>();
            let (packed, packed_rest) =
                half::slice::HalfFloatSliceExt::reinterpret_cast_mut(out).as_chunks_mut::<16>();
            let by = _mm512_set1_ps(factor);
            for (from, to) in bits.iter().zip(packed) {
                let half: u16x16<_> = (*from).simd_into(simd);
                let wide = _mm512_cvtph_ps(half.into());
                let odd = _mm512_castsi512_ps(odd_products(wide, by));
                let rounded: u16x16<_> = _mm512_cvtps_ph::<NEAREST_512>(odd).simd_into(simd);
                rounded.store_slice(to);
            }
            for (from, to) in rest.iter().zip(packed_rest) {
                *to = f32_to_f16(odd_product(f16_to_f32(*from), factor, true));
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
    fn scale_once<S: Simd>(simd: S, x: &[Self], out: &mut [Self], factor: f32) -> bool {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        {
            if let Some(avx512) = simd.level().as_avx512() {
                x86::scale_once_avx512(avx512, x, out, factor);
                return true;
            }
            if let Some(avx2) = simd.level().as_avx2() {
                x86::scale_once_avx2(avx2, x, out, factor);
                return true;
            }
        }
        let fused = has_fma(simd);
        for (from, to) in x.iter().zip(out) {
            let product = odd_product(f16_to_f32(from.to_bits()), factor, fused);
            *to = f16::from_bits(f32_to_f16(product));
        }
        // A product below 2^-100 is 0 in float16, whichever way it is rounded before.
        true
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
    fn scale_once<S: Simd>(simd: S, x: &[Self], out: &mut [Self], factor: f32) -> bool {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        if let Some(avx512) = simd.level().as_avx512() {
            return x86::scale_once_bf16_avx512(avx512, x, out, factor);
        }
        let fused = has_fma(simd);
        let mut smallest = u32::MAX;
        for (from, to) in x.iter().zip(out) {
            let product = odd_product(bf16_to_f32(from.to_bits()), factor, fused);
            // 0 wraps round: it is exact, or vanished below float32 and vanishes in 16 bits as well.
            smallest = smallest.min((product.to_bits() & 0x7fff_ffff).wrapping_sub(1));
            *to = bf16::from_bits(f32_to_bf16(product));
        }
        !fused || smallest >= SMALL_BF16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
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
