//! The memory that arrays cover, and first tests whether it overlaps.

use super::view::View;
use crate::allocation::{OutOfMemory, with_capacity};

impl View<'_> {
    /// Whether both views have the same elements at the same addresses.
    pub fn is_same_memory(&self, other: &View) -> bool {
        // The stride of an axis with one element is never used.
        let has_same_strides = || {
            let strides = self.strides().iter().zip(other.strides());
            strides.zip(self.shape()).all(|((a, b), len)| a == b || *len <= 1)
        };
        self.pointer == other.pointer
            && self.dtype == other.dtype
            && self.shape() == other.shape()
            && (self.is_c_order() && other.is_c_order() || has_same_strides())
    }

    /// Returns the addresses of the first byte and after the last byte; `None` for an array without elements.
    #[inline]
    pub fn extent(&self) -> Option<(usize, usize)> {
        if self.size == 0 {
            return None;
        }
        if self.is_c_order() || self.is_fortran_order() {
            let start = self.pointer.addr();
            return Some((start, start + self.size * self.dtype.size()));
        }
        Some(self.strided_extent())
    }

    /// As [`View::extent`], of an array that has elements and is not contiguous.
    fn strided_extent(&self) -> (usize, usize) {
        let (mut low, mut high) = (self.pointer.addr(), self.pointer.addr());
        for (len, stride) in self.shape().iter().zip(self.strides()) {
            let reach = (*len as isize - 1) * stride;
            if reach < 0 {
                low = low.wrapping_add_signed(reach);
            } else {
                high = high.wrapping_add_signed(reach);
            }
        }
        (low, high + self.dtype.size())
    }

    /// Whether the address ranges of two arrays overlap. Their elements may still be disjoint.
    pub fn range_overlaps(&self, other: &View) -> bool {
        match (self.extent(), other.extent()) {
            (Some((low, high)), Some((other_low, other_high))) => low < other_high && other_low < high,
            _ => false,
        }
    }

    /// Whether two elements of the array may share memory.
    #[inline]
    pub fn may_overlap_itself(&self) -> Result<bool, OutOfMemory> {
        if self.is_c_order() || self.is_fortran_order() || self.size < 2 {
            return Ok(false);
        }
        self.strides_may_overlap()
    }

    /// As [`View::may_overlap_itself`], of an array that is not contiguous: whether, by ascending stride, some stride is
    /// less than the bytes that the axes before it cover.
    fn strides_may_overlap(&self) -> Result<bool, OutOfMemory> {
        let mut axes = with_capacity(self.shape().len())?;
        let steps = self.shape().iter().zip(self.strides()).filter(|(len, _)| **len > 1);
        axes.extend(steps.map(|(len, stride)| (stride.unsigned_abs(), *len)));
        axes.sort_unstable();
        let mut covered = self.dtype.size();
        Ok(axes.into_iter().any(|(stride, len)| {
            let overlaps = stride < covered;
            covered += stride * (len - 1);
            overlaps
        }))
    }
}
