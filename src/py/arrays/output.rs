//! New arrays for results, over memory owned by fastclip.

use super::dtypes::{AcceptedDTypes, DTypeCache, NO_TYPE_NUMBER};
use super::new_array::array_over;
use super::view::View;
use crate::allocation::{OutOfMemory, filled, try_collect, with_capacity};
use crate::engine::memory::{ALIGNMENT, Block, MAPPED_BYTES};
use crate::py::tensors::opened::Opened;
use numpy::npyffi;
use pyo3::prelude::*;
use std::sync::Arc;

/// Most bytes of one buffer that several small results of a call share.
const SHARED_BYTES: usize = 256 << 10;

/// A block of memory that new arrays refer to. It is freed when the last of them is gone.
#[pyclass(frozen, weakref, module = "fastclip._core")]
pub struct Buffer {
    block: Arc<Block>,
}

impl Buffer {
    /// Returns the block, which may outlive the buffer: other libraries own results too.
    pub fn block(&self) -> Arc<Block> {
        Arc::clone(&self.block)
    }

    /// The addresses of the memory.
    pub fn addresses(&self) -> std::ops::Range<usize> {
        let start = self.block.pointer().addr();
        start..start + self.block.size()
    }
}

/// Allocates the results of one call. Small results share buffers.
pub struct OutputAllocator<'py> {
    py: Python<'py>,
    /// The buffer for the next small results.
    shared: Option<Bound<'py, Buffer>>,
    /// Bytes of `shared` that are in use.
    used: usize,
    /// Bytes of the small results that are still to be allocated: the last shared buffer is no larger than they need.
    small_bytes: usize,
    cache: DTypeCache<'py>,
}

/// Rounds a size up to a multiple of the alignment, at least to one.
fn padded(bytes: usize) -> usize {
    bytes.max(1).saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

fn is_small(bytes: usize) -> bool {
    bytes < MAPPED_BYTES
}

impl<'py> OutputAllocator<'py> {
    /// Creates the allocator of results that have the sizes of `inputs`.
    pub fn new<'a>(py: Python<'py>, inputs: impl Iterator<Item = &'a View<'py>>) -> Self
    where
        'py: 'a,
    {
        let sizes = inputs.map(|view| view.size * view.dtype.size());
        let small_bytes = sizes.filter(|bytes| is_small(*bytes)).map(padded).sum();
        Self { py, shared: None, used: 0, small_bytes, cache: DTypeCache::default() }
    }

    fn buffer(&self, bytes: usize) -> PyResult<Bound<'py, Buffer>> {
        let block = Block::new(bytes).ok_or(OutOfMemory { bytes })?;
        Bound::new(self.py, Buffer { block: Arc::new(block) })
    }

    /// Returns uninitialised memory of `bytes` bytes for one result, and the buffer that owns it.
    pub fn allocate(&mut self, bytes: usize) -> PyResult<(*mut u8, Bound<'py, Buffer>)> {
        if !is_small(bytes) {
            let buffer = self.buffer(bytes)?;
            return Ok((buffer.get().block.pointer(), buffer));
        }
        let needed = padded(bytes);
        let shared = match self.shared.take() {
            Some(shared) if self.used + needed <= shared.get().block.size() => shared,
            _ => {
                self.used = 0;
                self.buffer(self.small_bytes.clamp(needed, SHARED_BYTES))?
            }
        };
        let pointer = shared.get().block.pointer().wrapping_add(self.used);
        self.used += needed;
        self.small_bytes = self.small_bytes.saturating_sub(needed);
        self.shared = Some(shared.clone());
        Ok((pointer, shared))
    }

    /// Creates an uninitialised array with the dtype, shape and memory order of another.
    pub fn empty_like(&mut self, view: &View<'py>) -> PyResult<View<'py>> {
        let (pointer, owner) = self.allocate(view.size * view.dtype.size())?;
        let mut flags = npyffi::NPY_ARRAY_WRITEABLE;
        let mut strides = None;
        if !view.is_c_order() {
            if view.is_fortran_order() {
                flags |= npyffi::NPY_ARRAY_F_CONTIGUOUS;
            } else {
                strides = Some(dense_strides(view)?);
            }
        }
        let (_, type_number) = view.numpy_dtype();
        // SAFETY: the memory is as large as shape and strides need, and the owner keeps it alive.
        let array = unsafe {
            array_over(owner.into_any(), pointer, type_number, view.shape(), strides.as_deref(), flags)?
        };
        Ok(View::new(array, AcceptedDTypes::Any, &mut self.cache, String::new)?)
    }

    /// Allocates uninitialised memory with the dtype, shape and memory order of a view, without an array object.
    pub fn memory_like(&mut self, view: &View<'py>) -> PyResult<View<'py>> {
        let (pointer, owner) = self.allocate(view.size * view.dtype.size())?;
        let strides = dense_strides(view)?;
        // SAFETY: the memory is as large as shape and strides need, and the owner keeps it alive.
        Ok(unsafe { View::over(owner.into_any(), pointer, view.numpy_dtype(), view.shape(), &strides)? })
    }

    /// Allocates a result like an input: an array if the result is an array of a dtype that NumPy has, else memory.
    pub fn result_like(&mut self, view: &View<'py>, is_array: bool) -> PyResult<View<'py>> {
        if is_array && view.numpy_dtype().1 != NO_TYPE_NUMBER {
            self.empty_like(view)
        } else {
            self.memory_like(view)
        }
    }
}

/// Allocates a result for each input that is not None, see [`OutputAllocator::result_like`].
pub fn results_like<'py>(py: Python<'py>, inputs: &Opened<'py>) -> PyResult<Vec<Option<View<'py>>>> {
    let mut allocator = OutputAllocator::new(py, inputs.views.iter().flatten());
    let mut output = |(index, input): (usize, &Option<View<'py>>)| {
        let result =
            input.as_ref().map(|input| allocator.result_like(input, inputs.origin(index).is_array()));
        result.transpose()
    };
    try_collect(inputs.views.len(), inputs.views.iter().enumerate().map(&mut output))
}

/// Returns the byte strides of a dense array whose axes have the memory order of `view`: those of `np.empty_like`.
pub fn dense_strides(view: &View) -> Result<Vec<isize>, OutOfMemory> {
    dense_strides_of(view, view.dtype.size())
}

/// As [`dense_strides`], for an array with elements of `size` bytes.
pub fn dense_strides_of(view: &View, size: usize) -> Result<Vec<isize>, OutOfMemory> {
    let (shape, strides) = (view.shape(), view.strides());
    let mut axes = with_capacity(shape.len())?;
    axes.extend(0..shape.len());
    // Axes of the same stride keep their order.
    axes.sort_unstable_by_key(|axis| (std::cmp::Reverse(strides[*axis].unsigned_abs()), *axis));
    let mut dense = filled(0, shape.len())?;
    let mut step = size;
    for axis in axes.into_iter().rev() {
        dense[axis] = step as isize;
        step *= shape[axis].max(1);
    }
    Ok(dense)
}

/// Returns the byte strides of an array in C order, with elements of `size` bytes.
pub fn c_strides(shape: &[usize], size: usize) -> Result<Vec<isize>, OutOfMemory> {
    let mut strides = filled(0, shape.len())?;
    let mut step = size;
    for (stride, len) in strides.iter_mut().zip(shape).rev() {
        *stride = step as isize;
        step *= (*len).max(1);
    }
    Ok(strides)
}
