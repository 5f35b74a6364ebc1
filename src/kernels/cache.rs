//! What goes into the cache, and what bypasses it.
//!
//! - Streaming stores bypass the cache: for outputs so large that they would be evicted before they are read. An
//!   ordinary store first reads the cache line that it overwrites. A streaming store does not, which saves a third of
//!   the memory traffic of a large copy.
//! - Prefetches load the lines that a kernel reads next. The prefetchers of processors stop at the end of each page of
//!   4 KiB, so that a kernel which computes for most of the time waits there for memory.

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

/// Bytes between what a kernel reads and what it prefetches.
const DISTANCE: usize = 2048;
/// Bytes to prefetch at a time. Each load of a line waits for a free buffer, of which processors have ten to sixteen.
pub const PREFETCHED_BYTES: usize = 1024;

/// A slice that a kernel reads from its start to its end, and prefetches.
#[derive(Clone, Copy)]
pub struct Prefetch {
    /// Address of its end. Lines beyond belong to something else.
    end: usize,
}

impl Prefetch {
    /// Returns the prefetches of a slice.
    #[inline(always)]
    pub fn of<T>(x: &[T]) -> Self {
        Self { end: x.as_ptr_range().end.addr() }
    }

    /// Whether the lines that are prefetched for this part of the slice are in the slice as well.
    #[inline(always)]
    pub fn covers<T>(self, part: &[T]) -> bool {
        self.end - part.as_ptr_range().end.addr() >= DISTANCE
    }
}

/// Prefetches as many lines as a part of a slice has, 2 KiB further on. The part should have [`PREFETCHED_BYTES`] or
/// less.
#[inline(always)]
pub fn prefetch_after<T>(part: &[T]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let from = part.as_ptr().cast::<i8>().wrapping_add(DISTANCE);
        for line in 0..size_of_val(part) / 64 {
            // SAFETY: a prefetch has no effect but on the cache, and may be given any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(64 * line)) };
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = part;
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
