//! Arrays for results, over memory of our own.

use super::dtypes::{AcceptedDTypes, DTypeCache};
use super::view::View;
use crate::allocation::{OutOfMemory, filled, with_capacity};
use crate::engine::memory::{ALIGNMENT, Block, MAPPED_BYTES};
use numpy::npyffi::{self, NpyTypes, PY_ARRAY_API, PyArrayObject};
use pyo3::prelude::*;
use std::os::raw::c_int;

/// Small results of one call share blocks of this size.
const SLAB_BYTES: usize = 256 << 10;

/// Memory that arrays stand on: it lives until the last of them is gone.
#[pyclass(frozen, module = "fastclip._core")]
pub struct Buffer {
    block: Block,
}

/// Makes the results of one call.
pub struct Outputs<'py> {
    py: Python<'py>,
    slab: Option<Bound<'py, Buffer>>,
    used: usize,
    /// Bytes of small results still to come: the last slab is no larger than they need.
    small: usize,
    known: DTypeCache<'py>,
}

fn padded(bytes: usize) -> usize {
    bytes.max(1).saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

fn is_small(bytes: usize) -> bool {
    bytes < MAPPED_BYTES
}

impl<'py> Outputs<'py> {
    /// For the results that have the sizes of these arrays.
    pub fn new<'a>(py: Python<'py>, inputs: impl Iterator<Item = &'a View<'py>>) -> Self
    where
        'py: 'a,
    {
        let sizes = inputs.map(|view| view.size * view.dtype.size());
        let small = sizes.filter(|n| is_small(*n)).map(padded).sum();
        Self { py, slab: None, used: 0, small, known: DTypeCache::default() }
    }

    fn buffer(&self, bytes: usize) -> PyResult<Bound<'py, Buffer>> {
        let block = Block::new(bytes).ok_or(OutOfMemory { bytes })?;
        Bound::new(self.py, Buffer { block })
    }

    /// Memory for one result, and what owns it.
    pub fn memory(&mut self, bytes: usize) -> PyResult<(*mut u8, Bound<'py, Buffer>)> {
        if !is_small(bytes) {
            let buffer = self.buffer(bytes)?;
            return Ok((buffer.get().block.pointer(), buffer));
        }
        let needed = padded(bytes);
        let slab = match self.slab.take() {
            Some(slab) if self.used + needed <= slab.get().block.size() => slab,
            _ => {
                self.used = 0;
                self.buffer(self.small.clamp(needed, SLAB_BYTES))?
            }
        };
        let pointer = slab.get().block.pointer().wrapping_add(self.used);
        self.used += needed;
        self.small = self.small.saturating_sub(needed);
        self.slab = Some(slab.clone());
        Ok((pointer, slab))
    }

    /// An uninitialised array of the type, shape and memory order of another.
    pub fn like(&mut self, view: &View<'py>) -> PyResult<View<'py>> {
        let (pointer, owner) = self.memory(view.size * view.dtype.size())?;
        let mut flags = npyffi::NPY_ARRAY_WRITEABLE;
        let mut strides = None;
        if !view.is_c_order() {
            if view.is_fortran_order() {
                flags |= npyffi::NPY_ARRAY_F_CONTIGUOUS;
            } else {
                strides = Some(dense_strides(view)?);
            }
        }
        let (_, number) = view.number();
        // SAFETY: the memory is as large as these strides reach, and the owner keeps it alive.
        let array = unsafe {
            array_over(owner.into_any(), pointer, number, view.shape(), strides.as_deref(), flags)?
        };
        Ok(View::new(array, AcceptedDTypes::Any, &mut self.known, String::new)?)
    }
}

/// An array over memory, of NumPy's type of that number. Without `strides` it is one run, in C order or that of the
/// flags.
///
/// # Safety
///
/// The memory must hold elements of that type and shape at these strides for as long as `owner` lives, which the array
/// keeps alive.
pub unsafe fn array_over<'py>(
    owner: Bound<'py, PyAny>,
    pointer: *mut u8,
    number: c_int,
    shape: &[usize],
    strides: Option<&[isize]>,
    flags: c_int,
) -> PyResult<Bound<'py, PyAny>> {
    let py = owner.py();
    // SAFETY: the descriptor is a new reference, which the second call takes over, also if it fails. Shape and strides
    // are read, not kept. The array takes over the reference to its owner, also if that fails.
    unsafe {
        let descr = PY_ARRAY_API.PyArray_DescrFromType(py, number);
        if descr.is_null() {
            return Err(PyErr::fetch(py));
        }
        let array = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            npyffi::get_type_object(py, NpyTypes::PyArray_Type),
            descr,
            shape.len() as c_int,
            shape.as_ptr().cast_mut().cast(),
            strides.map_or(std::ptr::null_mut(), |strides| strides.as_ptr().cast_mut()),
            pointer.cast(),
            flags,
            std::ptr::null_mut(),
        );
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        let base = owner.into_ptr();
        if PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast::<PyArrayObject>(), base) < 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(array)
    }
}

/// Strides without holes, in the order of the array's own: what `np.empty_like` gives.
pub fn dense_strides(view: &View) -> Result<Vec<isize>, OutOfMemory> {
    let (shape, strides) = (view.shape(), view.strides());
    let mut axes = with_capacity(shape.len())?;
    axes.extend(0..shape.len());
    // Axes of the same stride stay in their order.
    axes.sort_unstable_by_key(|axis| (std::cmp::Reverse(strides[*axis].unsigned_abs()), *axis));
    let mut dense = filled(0, shape.len())?;
    let mut step = view.dtype.size();
    for axis in axes.into_iter().rev() {
        dense[axis] = step as isize;
        step *= shape[axis].max(1);
    }
    Ok(dense)
}

/// Strides in C order.
pub fn c_strides(shape: &[usize], size: usize) -> Result<Vec<isize>, OutOfMemory> {
    let mut strides = filled(0, shape.len())?;
    let mut step = size;
    for (stride, len) in strides.iter_mut().zip(shape).rev() {
        *stride = step as isize;
        step *= (*len).max(1);
    }
    Ok(strides)
}
