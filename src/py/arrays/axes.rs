//! Shape and strides, copied from an array.

use crate::allocation::{OutOfMemory, copied};

/// Most axes whose lengths and strides are stored without an allocation.
const INLINE: usize = 4;

/// Shape and strides of an array with more than [`INLINE`] axes.
type ManyAxes = (Box<[usize]>, Box<[isize]>);

/// Shape and byte strides of an array, without the number of axes: the [`View`](super::view::View) has that, beside other
/// small fields, where it takes no padding.
pub(super) struct Axes {
    shape: [usize; INLINE],
    strides: [isize; INLINE],
    /// Shape and strides of an array with more than [`INLINE`] axes; else None.
    many: Option<Box<ManyAxes>>,
}

impl Axes {
    /// Copies shape and strides, which must be of the same length.
    #[inline(always)]
    pub(super) fn new(shape: &[usize], strides: &[isize]) -> Result<Self, OutOfMemory> {
        // Number by number, not by copies into arrays of zeros, which would be stored and loaded again.
        let count = if shape.len() <= INLINE { shape.len() } else { 0 };
        let one = |axis: usize| if axis < count { (shape[axis], strides[axis]) } else { (0, 0) };
        let [a, b, c, d] = [one(0), one(1), one(2), one(3)];
        let many = if shape.len() > INLINE { Some(Self::copy_many(shape, strides)?) } else { None };
        Ok(Self { shape: [a.0, b.0, c.0, d.0], strides: [a.1, b.1, c.1, d.1], many })
    }

    #[cold]
    fn copy_many(shape: &[usize], strides: &[isize]) -> Result<Box<ManyAxes>, OutOfMemory> {
        Ok(Box::new((copied(shape)?, copied(strides)?)))
    }

    /// Returns the shape of an array with `count` axes.
    #[inline]
    pub(super) fn shape(&self, count: u8) -> &[usize] {
        match &self.many {
            Some(many) => &many.0,
            None => &self.shape[..usize::from(count)],
        }
    }

    /// Returns the strides of an array with `count` axes, in bytes.
    #[inline]
    pub(super) fn strides(&self, count: u8) -> &[isize] {
        match &self.many {
            Some(many) => &many.1,
            None => &self.strides[..usize::from(count)],
        }
    }
}
