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
        let mut axes = Self { shape: [0; INLINE], strides: [0; INLINE], many: None };
        // Copies of constant length are inlined; a copy of variable length would be a call, for one or two numbers.
        match shape.len() {
            0 => {}
            1 => axes.copy::<1>(shape, strides),
            2 => axes.copy::<2>(shape, strides),
            3 => axes.copy::<3>(shape, strides),
            4 => axes.copy::<4>(shape, strides),
            _ => axes.many = Some(Self::copy_many(shape, strides)?),
        }
        Ok(axes)
    }

    #[cold]
    fn copy_many(shape: &[usize], strides: &[isize]) -> Result<Box<ManyAxes>, OutOfMemory> {
        Ok(Box::new((copied(shape)?, copied(strides)?)))
    }

    #[inline(always)]
    fn copy<const N: usize>(&mut self, shape: &[usize], strides: &[isize]) {
        self.shape[..N].copy_from_slice(&shape[..N]);
        self.strides[..N].copy_from_slice(&strides[..N]);
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
