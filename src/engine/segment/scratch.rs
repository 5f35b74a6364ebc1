//! Scratch buffers: memory into which a thread gathers reals that are not contiguous.

use crate::allocation::{OutOfMemory, filled};
use crate::scalar::Element;

/// A buffer for reals of any type. It is allocated before a pass, so that the pass cannot fail.
#[derive(Debug, Default)]
pub struct Scratch {
    words: Vec<u64>,
}

impl Scratch {
    /// Allocates a buffer of at least `bytes` bytes.
    pub fn new(bytes: usize) -> Result<Self, OutOfMemory> {
        Ok(Self { words: filled(0, bytes.div_ceil(8))? })
    }

    /// Returns a slice of `count` reals. Their values are arbitrary: left over from earlier uses.
    ///
    /// # Panics
    ///
    /// If the buffer is too small. It must have been allocated for the largest slice of a pass.
    pub fn reals<T: Element>(&mut self, count: usize) -> &mut [T] {
        let words = &mut self.words[..(count * size_of::<T>()).div_ceil(8)];
        &mut bytemuck::cast_slice_mut(words)[..count]
    }
}
