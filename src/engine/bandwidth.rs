//! Plain loops over memory: the limit that `fastclip bench` measures everything against.
//!
//! No norm, no plan, no checks: each thread takes the next 1 MiB and reads, scales or copies it.

use crate::allocation::{OutOfMemory, collect};
use crate::engine::pool;
use crate::kernels::stream;
use fearless_simd::{Simd, dispatch};
use std::sync::atomic::{AtomicU32, Ordering};

const PIECE: usize = 1 << 18;
/// Elements that are scaled before they are streamed: 1 KiB, see `kernels::operation`.
const BLOCK: usize = 256;

/// A pointer that threads may share because each uses its own part.
struct Shared(*mut f32);
// SAFETY: see the type.
unsafe impl Sync for Shared {}

impl Shared {
    fn pointer(&self) -> *mut f32 {
        self.0
    }
}

/// Σx, in float32 lanes, merely so that the reads have to happen.
pub fn read(x: &[f32], threads: usize) -> Result<f32, OutOfMemory> {
    #[inline(always)]
    fn sum<S: Simd>(_simd: S, x: &[f32]) -> f32 {
        let mut lanes = [0.0; 64];
        for group in x.as_chunks::<64>().0 {
            for (lane, v) in lanes.iter_mut().zip(group) {
                *lane += v;
            }
        }
        lanes.iter().sum()
    }
    let level = crate::engine::isa::current();
    let pieces: Vec<&[f32]> = collect(x.chunks(PIECE))?;
    let sums: Vec<AtomicU32> = collect(pieces.iter().map(|_| AtomicU32::new(0)))?;
    pool::run(threads, pieces.len(), &|i, _| {
        let sum = dispatch!(level, simd => sum(simd, pieces[i]));
        sums[i].store(sum.to_bits(), Ordering::Relaxed);
    });
    Ok(sums.into_iter().map(|bits| f32::from_bits(bits.into_inner())).sum())
}

/// x ← x·factor.
pub fn scale(x: &mut [f32], factor: f32, threads: usize) {
    let level = crate::engine::isa::current();
    let (len, base) = (x.len(), Shared(x.as_mut_ptr()));
    pool::run(threads, len.div_ceil(PIECE), &|i, _| {
        let start = i * PIECE;
        // SAFETY: pieces do not overlap and end within `x`.
        let piece =
            unsafe { std::slice::from_raw_parts_mut(base.pointer().add(start), PIECE.min(len - start)) };
        dispatch!(level, simd => {
            let _ = simd;
            for v in piece {
                *v *= factor;
            }
        });
    });
}

/// out ← x·factor with streaming stores.
///
/// # Panics
///
/// If the lengths differ.
pub fn copy(x: &[f32], out: &mut [f32], factor: f32, threads: usize) {
    assert_eq!(x.len(), out.len());
    let level = crate::engine::isa::current();
    let base = Shared(out.as_mut_ptr());
    pool::run(threads, x.len().div_ceil(PIECE), &|i, _| {
        let start = i * PIECE;
        let piece = &x[start..x.len().min(start + PIECE)];
        // SAFETY: the same part of `out` as `piece` is of `x`; pieces do not overlap.
        let to = unsafe { std::slice::from_raw_parts_mut(base.pointer().add(start), piece.len()) };
        dispatch!(level, simd => {
            let _ = simd;
            let mut buffer = [0.0; BLOCK];
            for (from, to) in piece.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
                let scaled = &mut buffer[..from.len()];
                for (to, v) in scaled.iter_mut().zip(from) {
                    *to = v * factor;
                }
                stream::copy(scaled, to);
            }
        });
        stream::fence();
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_loops_do_what_they_say() {
        let n = 3 * super::PIECE + 5;
        let mut x = vec![2.0; n];
        let mut out = vec![0.0; n];
        super::copy(&x, &mut out, 0.5, 2);
        assert!(out.iter().all(|v| *v == 1.0));
        super::scale(&mut x, 2.0, 2);
        assert!(x.iter().all(|v| *v == 4.0));
        assert!(super::read(&x, 1).unwrap() > 0.0);
    }
}
