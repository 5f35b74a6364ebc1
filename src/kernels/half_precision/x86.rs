//! Conversions and products of 16-bit floats with the intrinsics of x86-64: F16C (in the AVX2 level) and AVX-512.
//!
//! Tails shorter than a register go through `element.rs`, with the same bits.

use super::element::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use super::round_to_odd::{MIN_FUSED_BF16, product_to_odd};
use fearless_simd::prelude::*;
use fearless_simd::{f32x8, f32x16, u16x8, u16x16};
use half::{bf16, f16};
use std::arch::x86_64::{
    __m512, __m512i, _CMP_NEQ_OQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_FROUND_TO_ZERO,
    _mm256_add_epi32, _mm256_and_si256, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps,
    _mm256_cmpeq_epi32, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_fmsub_ps, _mm256_mul_ps, _mm256_or_si256,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_srai_epi32,
    _mm256_xor_si256, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cmp_ps_mask, _mm512_cvtepi32_epi16, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_cvtps_ph,
    _mm512_fmsub_ps, _mm512_mask_or_epi32, _mm512_max_epu32, _mm512_min_epu32, _mm512_mul_round_ps,
    _mm512_reduce_max_epu32, _mm512_reduce_min_epu32, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_slli_epi32, _mm512_srli_epi32, _mm512_sub_epi32,
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
    pub fn scale_f16_avx2(simd: Avx2, x: &[f16], out: &mut [f16], factor: f32) {
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
            // As `product_to_odd`, on eight products.
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
            *to = f32_to_f16(product_to_odd(f16_to_f32(*from), factor, true));
        }
    }
);

/// As `product_to_odd`, on sixteen products: rounded towards zero, with the last bit set if the product is inexact.
#[inline]
#[target_feature(enable = "avx512f")]
fn products_to_odd(x: __m512, by: __m512) -> __m512i {
    let product = _mm512_mul_round_ps::<TOWARDS_ZERO>(x, by);
    let inexact = _mm512_cmp_ps_mask::<_CMP_NEQ_OQ>(_mm512_fmsub_ps(x, by, product), _mm512_setzero_ps());
    let bits = _mm512_castps_si512(product);
    _mm512_mask_or_epi32(bits, inexact, bits, _mm512_set1_epi32(1))
}

fearless_simd::kernel!(
    #[inline]
    pub fn scale_bf16_avx512(simd: Avx512, x: &[bf16], out: &mut [bf16], factor: f32) -> bool {
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
            let odd = products_to_odd(_mm512_castsi512_ps(wide), by);
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
            let product = product_to_odd(bf16_to_f32(*from), factor, true);
            smallest = smallest.min((product.to_bits() & 0x7fff_ffff).wrapping_sub(1));
            *to = f32_to_bf16(product);
        }
        // The rounding above is wrong for infinities and NaNs.
        smallest >= MIN_FUSED_BF16 && _mm512_reduce_max_epu32(largest) < 0x7f80_0000
    }
);

fearless_simd::kernel!(
    #[inline]
    pub fn scale_f16_avx512(simd: Avx512, x: &[f16], out: &mut [f16], factor: f32) {
        let (bits, rest) = half::slice::HalfFloatSliceExt::reinterpret_cast(x).as_chunks::<16>();
        let (packed, packed_rest) =
            half::slice::HalfFloatSliceExt::reinterpret_cast_mut(out).as_chunks_mut::<16>();
        let by = _mm512_set1_ps(factor);
        for (from, to) in bits.iter().zip(packed) {
            let half: u16x16<_> = (*from).simd_into(simd);
            let wide = _mm512_cvtph_ps(half.into());
            let odd = _mm512_castsi512_ps(products_to_odd(wide, by));
            let rounded: u16x16<_> = _mm512_cvtps_ph::<NEAREST_512>(odd).simd_into(simd);
            rounded.store_slice(to);
        }
        for (from, to) in rest.iter().zip(packed_rest) {
            *to = f32_to_f16(product_to_odd(f16_to_f32(*from), factor, true));
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
        let (bits, rest) = half::slice::HalfFloatSliceExt::reinterpret_cast_mut(dst).as_chunks_mut::<16>();
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
