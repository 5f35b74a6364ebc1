//! Simple loops that read, scale and copy memory. They measure the machine's bandwidth, with which `fastclip bench`
//! compares.
//!
//! They have no plan and no checks: threads take pieces of 1 MiB, one by one.

use crate::allocation::{OutOfMemory, collect};
use crate::engine::pool;
use crate::kernels::cache;
use fearless_simd::{Simd, dispatch};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Elements in a piece, which a thread takes at a time.
const PIECE: usize = 1 << 18;
/// Elements that are scaled before they are streamed: 1 KiB, see `kernels::operation`.
const BLOCK: usize = 256;

/// Divides a slice into pieces.
fn pieces(x: &mut [f32]) -> Result<Vec<Mutex<&mut [f32]>>, OutOfMemory> {
    collect(x.chunks_mut(PIECE).map(Mutex::new))
}

/// Locks a piece, which only one thread uses.
fn lock<'a, 'b>(piece: &'a Mutex<&'b mut [f32]>) -> MutexGuard<'a, &'b mut [f32]> {
    piece.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a slice: returns Σx in float32. Without the sum the compiler would remove the reads.
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
    pool::run_in_turns(threads, pieces.len(), &|i, _| {
        let sum = dispatch!(level, simd => sum(simd, pieces[i]));
        sums[i].store(sum.to_bits(), Ordering::Relaxed);
    });
    Ok(sums.into_iter().map(|bits| f32::from_bits(bits.into_inner())).sum())
}

/// Computes x ← x·factor.
pub fn scale(x: &mut [f32], factor: f32, threads: usize) -> Result<(), OutOfMemory> {
    let level = crate::engine::isa::current();
    let pieces = pieces(x)?;
    pool::run_in_turns(threads, pieces.len(), &|i, _| {
        let piece = &mut **lock(&pieces[i]);
        dispatch!(level, simd => {
            let _ = simd;
            for v in piece {
                *v *= factor;
            }
        });
    });
    Ok(())
}

/// Computes out ← x·factor with streaming stores.
///
/// # Panics
///
/// If the lengths differ.
pub fn copy(x: &[f32], out: &mut [f32], factor: f32, threads: usize) -> Result<(), OutOfMemory> {
    assert_eq!(x.len(), out.len());
    let level = crate::engine::isa::current();
    let pieces = pieces(out)?;
    pool::run_in_turns(threads, pieces.len(), &|i, _| {
        let to = &mut **lock(&pieces[i]);
        let from = &x[i * PIECE..i * PIECE + to.len()];
        dispatch!(level, simd => {
            let _ = simd;
            let mut buffer = [0.0; BLOCK];
            for (from, to) in from.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
                let scaled = &mut buffer[..from.len()];
                for (to, v) in scaled.iter_mut().zip(from) {
                    *to = v * factor;
                }
                cache::copy(scaled, to);
            }
        });
        cache::fence();
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn loops_read_scale_and_copy() {
        let n = 3 * super::PIECE + 5;
        let mut x = vec![2.0; n];
        let mut out = vec![0.0; n];
        super::copy(&x, &mut out, 0.5, 2).unwrap();
        assert!(out.iter().all(|v| *v == 1.0));
        super::scale(&mut x, 2.0, 2).unwrap();
        assert!(x.iter().all(|v| *v == 4.0));
        assert!(super::read(&x, 1).unwrap() > 0.0);
    }
}
