//! Copies with streaming stores, which bypass the cache: for outputs so large that they would be evicted before they
//! are read.
//!
//! An ordinary store first reads the cache line that it overwrites. A streaming store does not, which saves a third
//! of the memory traffic of a large copy.

use crate::scalar::Element;

/// Copies `src` to `dst`, of the same length, with streaming stores where the processor has them. Call
/// [`fence`] before another thread reads `dst`.
///
/// # Panics
///
/// If the lengths differ.
#[inline(always)]
pub fn copy<T: Element>(src: &[T], dst: &mut [T]) {
    assert_eq!(src.len(), dst.len());
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        let bytes = size_of_val(src);
        let from = src.as_ptr().cast::<u8>();
        let to = dst.as_mut_ptr().cast::<u8>();
        let head = to.align_offset(16).min(bytes);
        let lines = (bytes - head) / 16;
        // SAFETY: head + 16·lines ≤ bytes, so every access stays within `src` and `dst`, which are as
        // long and do not overlap; `to + head` is 16-byte aligned, as the stream instruction demands.
        unsafe {
            std::ptr::copy_nonoverlapping(from, to, head);
            for i in 0..lines {
                let at = head + 16 * i;
                let v = _mm_loadu_si128(from.add(at).cast::<__m128i>());
                _mm_stream_si128(to.add(at).cast::<__m128i>(), v);
            }
            let done = head + 16 * lines;
            std::ptr::copy_nonoverlapping(from.add(done), to.add(done), bytes - done);
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    dst.copy_from_slice(src);
}

/// Makes the streaming stores of this thread visible to other threads before its later stores.
#[inline]
pub fn fence() {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: every x86-64 processor has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_every_length_and_alignment_write_only_the_output() {
        let src: Vec<u16> = (0..300).collect();
        for length in 0..200 {
            for offset in 0..20 {
                let mut dst = vec![u16::MAX; 300];
                copy(&src[1..=length], &mut dst[offset..offset + length]);
                fence();
                assert_eq!(dst[offset..offset + length], src[1..=length]);
                assert!(dst[..offset].iter().all(|v| *v == u16::MAX));
                assert!(dst[offset + length..].iter().all(|v| *v == u16::MAX));
            }
        }
    }
}
