//! Memory of a device: ranges of a few large buffers.
//!
//! A kernel binds whole buffers, not arrays, so that one dispatch can work on thousands of arrays. No buffer is larger
//! than what one binding can hold; an array that is larger has several ranges. Commands run in the order of their
//! submission: the range of an array that is dropped may be used by the next call at once.

use super::error::GpuError;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Alignment of ranges in bytes: that of bindings with an offset, on every device.
pub const ALIGNMENT: u64 = 256;

/// Size of buffers that hold small arrays, in bytes.
const BUFFER_BYTES: u64 = 64 << 20;

/// Rounds a size up to the alignment.
#[must_use]
pub fn padded(bytes: u64) -> u64 {
    bytes.div_ceil(ALIGNMENT) * ALIGNMENT
}

/// A buffer of the arena.
pub struct Block {
    /// Number of the block, unique among those of one arena.
    pub id: u64,
    /// The buffer.
    pub buffer: wgpu::Buffer,
}

/// A part of a block. It is returned to the arena by [`Arena::free`].
#[derive(Clone)]
pub struct Range {
    /// The block.
    pub block: Arc<Block>,
    /// Offset in bytes, a multiple of [`ALIGNMENT`].
    pub offset: u64,
    /// Size in bytes, a multiple of [`ALIGNMENT`].
    pub bytes: u64,
}

/// A block and its free parts.
struct Space {
    block: Arc<Block>,
    size: u64,
    /// Sizes of the free parts by their offsets. Neighbours are merged.
    free: BTreeMap<u64, u64>,
}

impl Space {
    fn is_empty(&self) -> bool {
        self.free.get(&0) == Some(&self.size)
    }

    /// Takes the first free part that is large enough.
    fn take(&mut self, bytes: u64) -> Option<Range> {
        let (&offset, &size) = self.free.iter().find(|(_, size)| **size >= bytes)?;
        self.free.remove(&offset);
        if size > bytes {
            self.free.insert(offset + bytes, size - bytes);
        }
        Some(Range { block: Arc::clone(&self.block), offset, bytes })
    }

    /// Gives a part back, and merges it with its neighbours.
    fn give(&mut self, mut offset: u64, mut bytes: u64) {
        if let Some((&before, &size)) = self.free.range(..offset).next_back()
            && before + size == offset
        {
            self.free.remove(&before);
            offset = before;
            bytes += size;
        }
        if let Some(size) = self.free.remove(&(offset + bytes)) {
            bytes += size;
        }
        self.free.insert(offset, bytes);
    }
}

/// The memory of one device.
pub struct Arena {
    spaces: Vec<Space>,
    /// Most bytes of one buffer.
    largest: u64,
    next_id: u64,
}

impl Arena {
    /// Creates an arena whose buffers have up to `largest` bytes.
    #[must_use]
    pub fn new(largest: u64) -> Self {
        Self { spaces: Vec::new(), largest: largest / ALIGNMENT * ALIGNMENT, next_id: 0 }
    }

    /// Returns the bytes of all buffers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.spaces.iter().map(|space| space.size).sum()
    }

    /// Allocates memory, as few ranges as possible. `create` creates a buffer of a size.
    ///
    /// # Errors
    ///
    /// That of `create`. Nothing is allocated then.
    pub fn allocate(
        &mut self,
        bytes: u64,
        create: &dyn Fn(u64) -> Result<wgpu::Buffer, GpuError>,
    ) -> Result<Vec<Range>, GpuError> {
        let mut ranges = Vec::new();
        let mut left = padded(bytes);
        while left > 0 {
            let size = left.min(self.largest);
            match self.allocate_one(size, create) {
                Ok(range) => ranges.push(range),
                Err(error) => {
                    for range in &ranges {
                        self.free(range);
                    }
                    return Err(error);
                }
            }
            left -= size;
        }
        Ok(ranges)
    }

    fn allocate_one(
        &mut self,
        bytes: u64,
        create: &dyn Fn(u64) -> Result<wgpu::Buffer, GpuError>,
    ) -> Result<Range, GpuError> {
        if let Some(range) = self.spaces.iter_mut().find_map(|space| space.take(bytes)) {
            return Ok(range);
        }
        let preferred = bytes.max(BUFFER_BYTES.min(self.largest));
        let (buffer, size) = match create(preferred) {
            Err(GpuError::OutOfMemory(_)) if bytes < preferred => (create(bytes)?, bytes),
            created => (created?, preferred),
        };
        let block = Arc::new(Block { id: self.next_id, buffer });
        self.next_id += 1;
        let mut space = Space { block, size, free: BTreeMap::from([(0, size)]) };
        let range = space.take(bytes);
        self.spaces.push(space);
        range.ok_or_else(|| GpuError::OutOfMemory("a new buffer has no room".into()))
    }

    /// Gives a range back.
    pub fn free(&mut self, range: &Range) {
        if let Some(space) = self.spaces.iter_mut().find(|space| space.block.id == range.block.id) {
            space.give(range.offset, range.bytes);
        }
    }

    /// Releases buffers that no array uses.
    pub fn release_empty(&mut self) {
        self.spaces.retain(|space| !space.is_empty());
    }
}
