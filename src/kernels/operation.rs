//! Operations on every element, and the three ways to carry one out: in place, from one run of memory to
//! another, and past the cache.

use super::stream;
use crate::scalar::Element;
use fearless_simd::{Level, Simd, dispatch};

/// What is done to every element of a slice.
pub trait Operation<T>: Copy {
    /// Changes the elements where they are.
    fn in_place<S: Simd>(self, simd: S, x: &mut [T]);
    /// Writes the changed elements to `out`. The slices have the same length.
    fn out_of_place<S: Simd>(self, simd: S, x: &[T], out: &mut [T]);
}

/// Elements and where their results go.
pub enum Run<'a, T> {
    /// To the same memory.
    InPlace(&'a mut [T]),
    /// To other memory.
    OutOfPlace(&'a [T], &'a mut [T]),
    /// To other memory, past the cache.
    Streamed(&'a [T], &'a mut [T]),
}

/// Bytes that are worked on before they are streamed. The smaller, the better reading what comes next
/// overlaps with writing what is done: 512 MiB take 21 ms at 1 KiB and 26 ms at 4 KiB, where a loop without
/// a buffer takes 21 ms.
const STREAM_BLOCK_BYTES: usize = 1024;

/// Carries an operation out.
pub fn perform<T: Element, O: Operation<T>>(level: Level, operation: O, run: Run<T>) {
    match run {
        Run::InPlace(x) => dispatch!(level, simd => operation.in_place(simd, x)),
        Run::OutOfPlace(x, out) => dispatch!(level, simd => operation.out_of_place(simd, x, out)),
        Run::Streamed(x, out) => dispatch!(level, simd => streamed(simd, operation, x, out)),
    }
}

#[inline(always)]
fn streamed<S: Simd, T: Element, O: Operation<T>>(simd: S, operation: O, x: &[T], out: &mut [T]) {
    let mut buffer = [T::default(); STREAM_BLOCK_BYTES];
    let per_block = STREAM_BLOCK_BYTES / size_of::<T>();
    for (from, to) in x.chunks(per_block).zip(out.chunks_mut(per_block)) {
        let block = &mut buffer[..from.len()];
        operation.out_of_place(simd, from, block);
        stream::copy(block, to);
    }
}

/// Copies elements as they are.
#[derive(Clone, Copy, Debug)]
pub struct Copying;

impl<T: Copy> Operation<T> for Copying {
    #[inline(always)]
    fn in_place<S: Simd>(self, _simd: S, _x: &mut [T]) {}

    #[inline(always)]
    fn out_of_place<S: Simd>(self, _simd: S, x: &[T], out: &mut [T]) {
        out.copy_from_slice(x);
    }
}

/// Replaces every element by one value.
#[derive(Clone, Copy, Debug)]
pub struct Filling<T>(pub T);

impl<T: Copy> Operation<T> for Filling<T> {
    #[inline(always)]
    fn in_place<S: Simd>(self, _simd: S, x: &mut [T]) {
        x.fill(self.0);
    }

    #[inline(always)]
    fn out_of_place<S: Simd>(self, _simd: S, _x: &[T], out: &mut [T]) {
        out.fill(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::scale::{Factor, Scaling};

    #[test]
    fn the_three_ways_agree_at_every_length() {
        let values: Vec<f32> = crate::kernels::oracle::samples(1500).into_iter().map(|v| v as f32).collect();
        let operation = Scaling(Factor::new(0.3, 1.0, 0));
        for level in isa::all() {
            for length in (0..70).chain([255, 256, 257, 1000, 1023]) {
                for offset in [0, 1, 3] {
                    let x = &values[offset..offset + length];
                    let mut want = x.to_vec();
                    perform(level, operation, Run::InPlace(&mut want));
                    let mut out = vec![7.0; length + offset];
                    perform(level, operation, Run::OutOfPlace(x, &mut out[offset..]));
                    assert_eq!(out[offset..], want);
                    let mut out = vec![7.0; length + offset];
                    perform(level, operation, Run::Streamed(x, &mut out[offset..]));
                    stream::fence();
                    assert_eq!(out[offset..], want);
                    perform(level, Copying, Run::Streamed(x, &mut out[offset..]));
                    assert_eq!(&out[offset..], x);
                    perform(level, Filling(2.0), Run::OutOfPlace(x, &mut out[offset..]));
                    assert!(out[offset..].iter().all(|v| *v == 2.0));
                }
            }
        }
    }
}
