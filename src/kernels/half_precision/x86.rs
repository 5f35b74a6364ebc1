//! Conversions and products of 16-bit floats with the intrinsics of x86-64: F16C (in the AVX2 level) and AVX-512.
//!
//! Tails shorter than a register go through `element.rs`, with the same bits.

use super::element::{f16_to_f32, f32_to_f16};
use super::products::{GROUP, ZEROS_OF_13_BITS, ZEROS_OF_F16_TIE};
use fearless_simd::prelude::*;
use fearless_simd::{f32x8, f32x16, u16x8, u16x16};
use half::f16;
use std::arch::x86_64::{
    _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm256_and_si256, _mm256_castps_si256, _mm256_cmpeq_epi32,
    _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_si256, _mm256_testz_si256, _mm512_castps_si512, _mm512_cvtph_ps, _mm512_cvtps_ph,
    _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_testn_epi32_mask,
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
    /// As `products::f16_via_f32`.
    #[inline]
    pub fn f16_via_f32_avx2(simd: Avx2, x: &[u16; GROUP], factor: f32) -> ([u16; GROUP], bool) {
        let by = _mm256_set1_ps(factor);
        let zeros = _mm256_set1_epi32(ZEROS_OF_F16_TIE.cast_signed());
        let mut products = [0; GROUP];
        let mut ties = _mm256_setzero_si256();
        for (from, to) in x.as_chunks::<8>().0.iter().zip(products.as_chunks_mut::<8>().0) {
            let half: u16x8<_> = (*from).simd_into(simd);
            let product = _mm256_mul_ps(_mm256_cvtph_ps(half.into()), by);
            let bits = _mm256_castps_si256(product);
            let may_be_tie = _mm256_cmpeq_epi32(_mm256_and_si256(bits, zeros), _mm256_setzero_si256());
            // The product itself where it may be a tie: a zero is none.
            ties = _mm256_or_si256(ties, _mm256_and_si256(may_be_tie, bits));
            let rounded: u16x8<_> = _mm256_cvtps_ph::<NEAREST>(product).simd_into(simd);
            rounded.store_slice(to);
        }
        let magnitudes = _mm256_set1_epi32(i32::MAX);
        let is_once = _mm256_testz_si256(ties, magnitudes) != 0;
        (products, is_once || factor.to_bits().trailing_zeros() >= ZEROS_OF_13_BITS)
    }
);

fearless_simd::kernel!(
    /// As `products::f16_via_f32`.
    #[inline]
    pub fn f16_via_f32_avx512(simd: Avx512, x: &[u16; GROUP], factor: f32) -> ([u16; GROUP], bool) {
        let by = _mm512_set1_ps(factor);
        let zeros = _mm512_set1_epi32(ZEROS_OF_F16_TIE.cast_signed());
        let magnitudes = _mm512_set1_epi32(i32::MAX);
        let mut products = [0; GROUP];
        let mut ties = 0;
        for (from, to) in x.as_chunks::<16>().0.iter().zip(products.as_chunks_mut::<16>().0) {
            let half: u16x16<_> = (*from).simd_into(simd);
            let product = _mm512_mul_ps(_mm512_cvtph_ps(half.into()), by);
            let bits = _mm512_castps_si512(product);
            // A zero is no tie.
            let is_zero = _mm512_testn_epi32_mask(bits, magnitudes);
            ties |= _mm512_testn_epi32_mask(bits, zeros) & !is_zero;
            let rounded: u16x16<_> = _mm512_cvtps_ph::<NEAREST_512>(product).simd_into(simd);
            rounded.store_slice(to);
        }
        (products, ties == 0 || factor.to_bits().trailing_zeros() >= ZEROS_OF_13_BITS)
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
