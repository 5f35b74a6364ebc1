//! Plans: segments divided into chunks, and chunks grouped into batches.
//!
//! Chunk boundaries depend on lengths alone, never on the number of threads: the partial results, and the order in
//! which they are added, are the same for any number of threads.

use crate::allocation::{OutOfMemory, reserve, with_capacity};
use crate::engine::segment::Segment;
use std::ops::Range;

/// Reals in a chunk: 256 KiB of float32. Each chunk has one partial sum.
pub const CHUNK: usize = 1 << 16;

/// Bytes from which a batch is complete. With smaller batches threads contend for the counter of the next batch; with larger ones
/// the last thread works alone at the end.
pub const BATCH_BYTES: usize = 1 << 18;

/// A range of reals of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Index of the segment.
    pub segment: usize,
    /// Range of reals in the segment.
    pub range: Range<usize>,
}

/// The chunks of one pass, grouped into batches.
#[derive(Debug, Default)]
pub struct Plan {
    chunks: Vec<Chunk>,
    /// Ranges of indices of chunks.
    batches: Vec<Range<usize>>,
    bytes: usize,
}

impl Plan {
    /// Divides segments into chunks.
    pub fn new<const N: usize>(segments: &[Segment<N>]) -> Result<Self, OutOfMemory> {
        Self::cut(segments.iter().map(|segment| (segment.len(), segment.scalar().size())), CHUNK)
    }

    /// All chunks, in the order of the segments. They are disjoint.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Ranges of indices of chunks, each of which a thread takes at a time.
    #[must_use]
    pub fn batches(&self) -> &[Range<usize>] {
        &self.batches
    }

    /// Bytes that the pass reads or writes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Divides segments into chunks of at most `chunk` reals. Each segment is described by its number of reals and the
    /// number of bytes that the pass reads or writes for each.
    pub fn cut(
        segments: impl ExactSizeIterator<Item = (usize, usize)>,
        chunk: usize,
    ) -> Result<Self, OutOfMemory> {
        let mut chunks = with_capacity(segments.len())?;
        let mut batches = Vec::new();
        let (mut first, mut batch_bytes, mut bytes) = (0, 0, 0_usize);
        for (index, (len, size)) in segments.enumerate() {
            // An array that repeats one element (stride 0) may be longer than memory, and so may the list of its
            // chunks.
            reserve(&mut chunks, len.div_ceil(chunk))?;
            let mut start = 0;
            while start < len {
                let end = len.min(start + chunk);
                chunks.push(Chunk { segment: index, range: start..end });
                batch_bytes += (end - start) * size;
                if batch_bytes >= BATCH_BYTES {
                    reserve(&mut batches, 1)?;
                    batches.push(first..chunks.len());
                    first = chunks.len();
                    bytes = bytes.saturating_add(batch_bytes);
                    batch_bytes = 0;
                }
                start = end;
            }
        }
        if first < chunks.len() {
            reserve(&mut batches, 1)?;
            batches.push(first..chunks.len());
        }
        Ok(Self { chunks, batches, bytes: bytes.saturating_add(batch_bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::segment::Run;
    use crate::scalar::Scalar;

    /// Returns a float32 segment whose memory is not accessed.
    fn segment(len: usize) -> Segment {
        let run = Run { pointer: std::ptr::null_mut(), scalar: Scalar::F32, is_written: false };
        Segment::dense_in_test(false, len, [Some(run), None, None, None])
    }

    #[test]
    fn every_real_is_in_exactly_one_chunk_of_one_batch() {
        let segments: Vec<_> = [3, 0, CHUNK, CHUNK + 1, 5 * CHUNK, 10].map(segment).into();
        let plan = Plan::new(&segments).unwrap();
        let mut ends = vec![0; segments.len()];
        let mut next = 0;
        for batch in &plan.batches {
            assert_eq!(batch.start, next);
            next = batch.end;
            for chunk in &plan.chunks[batch.clone()] {
                assert_eq!(chunk.range.start, ends[chunk.segment]);
                ends[chunk.segment] = chunk.range.end;
            }
        }
        assert_eq!(next, plan.chunks.len());
        assert_eq!(ends, segments.iter().map(Segment::len).collect::<Vec<_>>());
        assert_eq!(plan.bytes, 4 * ends.iter().sum::<usize>());
    }

    #[test]
    fn a_plan_with_too_many_chunks_for_memory_is_an_error() {
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
