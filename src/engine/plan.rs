//! Segments cut into chunks, and chunks put together into batches.
//!
//! Chunk boundaries depend on lengths alone, never on the number of threads: the partial results,
//! and the order in which they are added, are the same for any number of them.

use crate::allocation::{OutOfMemory, reserve, with_capacity};
use crate::engine::segment::Segment;
use std::ops::Range;

/// Reals in a chunk: 256 KiB of float32. A partial sum is kept per chunk.
pub const CHUNK: usize = 1 << 16;

/// Bytes that one thread takes at a time. Smaller and the threads meet too often at the counter,
/// larger and one of them is left working alone at the end.
pub const BATCH_BYTES: usize = 1 << 18;

/// A piece of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Which segment.
    pub segment: usize,
    /// Which of its reals.
    pub range: Range<usize>,
}

/// All the work of one pass.
#[derive(Debug, Default)]
pub struct Plan {
    /// Every chunk, in the order of the segments.
    pub chunks: Vec<Chunk>,
    /// Runs of chunks that one thread takes at a time.
    pub batches: Vec<Range<usize>>,
    /// Bytes of all segments.
    pub bytes: usize,
}

impl Plan {
    /// Cuts segments up.
    pub fn new<const N: usize>(segments: &[Segment<N>]) -> Result<Self, OutOfMemory> {
        Self::cut(segments.iter().map(|segment| (segment.len, segment.scalar.size())), CHUNK)
    }

    /// Cuts up segments of these lengths and bytes to be moved for each real, into chunks of at most this many reals.
    pub fn cut(
        segments: impl ExactSizeIterator<Item = (usize, usize)>,
        chunk: usize,
    ) -> Result<Self, OutOfMemory> {
        let mut chunks = with_capacity(segments.len())?;
        let mut batches = Vec::new();
        let (mut first, mut gathered, mut bytes) = (0, 0, 0_usize);
        for (index, (len, size)) in segments.enumerate() {
            // An array that repeats one element may be longer than memory: so may the list of its chunks.
            reserve(&mut chunks, len.div_ceil(chunk))?;
            let mut start = 0;
            while start < len {
                let end = len.min(start + chunk);
                chunks.push(Chunk { segment: index, range: start..end });
                gathered += (end - start) * size;
                if gathered >= BATCH_BYTES {
                    reserve(&mut batches, 1)?;
                    batches.push(first..chunks.len());
                    first = chunks.len();
                    bytes = bytes.saturating_add(gathered);
                    gathered = 0;
                }
                start = end;
            }
        }
        if first < chunks.len() {
            reserve(&mut batches, 1)?;
            batches.push(first..chunks.len());
        }
        Ok(Self { chunks, batches, bytes: bytes.saturating_add(gathered) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scalar::{DType, Scalar};

    fn segment(len: usize) -> Segment {
        let dtype = DType { scalar: Scalar::F32, complex: false };
        // SAFETY: a plan reads nothing.
        unsafe { Segment::dense(dtype, len, [std::ptr::null_mut(); 4]) }
    }

    #[test]
    fn every_real_is_in_exactly_one_chunk_of_one_batch() {
        let segments: Vec<_> = [3, 0, CHUNK, CHUNK + 1, 5 * CHUNK, 10].map(segment).into();
        let plan = Plan::new(&segments).unwrap();
        let mut at = vec![0; segments.len()];
        let mut next = 0;
        for batch in &plan.batches {
            assert_eq!(batch.start, next);
            next = batch.end;
            for chunk in &plan.chunks[batch.clone()] {
                assert_eq!(chunk.range.start, at[chunk.segment]);
                at[chunk.segment] = chunk.range.end;
            }
        }
        assert_eq!(next, plan.chunks.len());
        assert_eq!(at, segments.iter().map(|s| s.len).collect::<Vec<_>>());
        assert_eq!(plan.bytes, 4 * at.iter().sum::<usize>());
    }

    #[test]
    fn a_list_of_chunks_beyond_memory_is_an_error() {
        let lengths = [(isize::MAX as usize / 4, 4)];
        assert!(Plan::cut(lengths.into_iter(), CHUNK).is_err());
    }

    #[test]
    fn small_segments_share_a_batch() {
        let segments: Vec<_> = (0..2000).map(|_| segment(512)).collect();
        let plan = Plan::new(&segments).unwrap();
        assert_eq!(plan.chunks.len(), 2000);
        assert_eq!(plan.batches.len(), 16);
    }
}
