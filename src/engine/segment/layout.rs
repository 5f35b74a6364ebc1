//! The memory layout of a segment's operands: dense, or strided with as few dimensions as possible.

use super::{INPUT, OPERANDS, OUTPUT};
use crate::allocation::{OutOfMemory, with_capacity};

/// One dimension of a strided layout: its length, and each operand's stride in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dim<const N: usize = OPERANDS> {
    /// Number of elements along the dimension.
    pub len: usize,
    /// Bytes from one element to the next, one entry per operand.
    pub strides: [isize; N],
}

/// The layout of a segment's operands.
#[derive(Debug, PartialEq, Eq)]
pub enum Layout<const N: usize = OPERANDS> {
    /// Every operand is one contiguous, aligned run of reals.
    Dense,
    /// Nested loops over strided memory, the outermost dimension first.
    Strided(Vec<Dim<N>>),
}

impl<const N: usize> Layout<N> {
    /// Returns a copy of the layout.
    pub fn try_clone(&self) -> Result<Self, OutOfMemory> {
        match self {
            Self::Dense => Ok(Self::Dense),
            Self::Strided(dims) => {
                let mut copy = with_capacity(dims.len())?;
                copy.extend_from_slice(dims);
                Ok(Self::Strided(copy))
            }
        }
    }
}

/// Reverses a dimension along which the input (or the output if there is no input) has a negative stride, so that
/// passes visit it in the order of addresses.
pub fn make_forward<const N: usize>(dim: &mut Dim<N>, base: &mut [*mut u8; N]) {
    let lead = if base[INPUT].is_null() { OUTPUT } else { INPUT };
    if dim.strides[lead] < 0 {
        let last = dim.len as isize - 1;
        for (pointer, stride) in base.iter_mut().zip(&mut dim.strides) {
            if !pointer.is_null() {
                *pointer = pointer.wrapping_offset(last * *stride);
            }
            *stride = -*stride;
        }
    }
}

/// Sorts dimensions by the stride of the input (or of the output if there is no input), the largest first. Reading the
/// input in the order of its addresses matters more than writing the output in the order of its own.
pub fn sort_by_stride<const N: usize>(dims: &mut [Dim<N>], is_present: [bool; N]) {
    let lead = if is_present[INPUT] { INPUT } else { OUTPUT };
    dims.sort_by_key(|dim| std::cmp::Reverse(dim.strides[lead].unsigned_abs()));
}

/// Merges neighbouring dimensions that form one longer dimension for every operand that is present.
pub fn merge_dims<const N: usize>(dims: &mut Vec<Dim<N>>, is_present: [bool; N]) {
    let mut count = 0;
    for at in 0..dims.len() {
        let dim = dims[at];
        if let Some(outer) = dims[..count].last_mut()
            && (0..N).all(|k| !is_present[k] || outer.strides[k] == dim.strides[k] * dim.len as isize)
        {
            outer.len *= dim.len;
            outer.strides = dim.strides;
        } else {
            dims[count] = dim;
            count += 1;
        }
    }
    dims.truncate(count);
}

/// Returns the number of elements of an array of this shape.
pub fn element_count(shape: &[usize]) -> usize {
    // Wrapping, because the lengths of the other axes may overflow if one axis has length 0.
    shape.iter().fold(1, |count, len| count.wrapping_mul(*len))
}
