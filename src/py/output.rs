//! Arrays for results, over memory of our own.

use super::view::View;
use crate::memory::{ALIGNMENT, Block, MAPPED_BYTES};
use numpy::npyffi::{self, NpyTypes, PY_ARRAY_API, PyArrayObject};
use pyo3::exceptions::PyMemoryError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Small results of one call share blocks of this size.
const SLAB_BYTES: usize = 256 << 10;

/// Memory that arrays stand on: it lives until the last of them is gone.
#[pyclass(frozen, module = "fastclip._core")]
struct Buffer {
    block: Block,
}

/// Makes the results of one call.
pub struct Outputs<'py> {
    py: Python<'py>,
    slab: Option<Bound<'py, Buffer>>,
    used: usize,
    /// Bytes of small results still to come: the last slab is no larger than they need.
    small: usize,
}

fn padded(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(ALIGNMENT)
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
        Self { py, slab: None, used: 0, small: sizes.filter(|n| is_small(*n)).map(padded).sum() }
    }

    fn buffer(&self, bytes: usize) -> PyResult<Bound<'py, Buffer>> {
        let block = Block::new(bytes).ok_or_else(|| {
            PyMemoryError::new_err(format!("fastclip cannot allocate {bytes} bytes for a result"))
        })?;
        Bound::new(self.py, Buffer { block })
    }

    /// Memory for one result, and what owns it.
    fn memory(&mut self, bytes: usize) -> PyResult<(*mut u8, Bound<'py, Buffer>)> {
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
    pub fn like(&mut self, view: &View<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (pointer, owner) = self.memory(view.size * view.dtype.size())?;
        let mut flags = npyffi::NPY_ARRAY_WRITEABLE;
        let mut strides = None;
        if !view.is_c_order() {
            if view.is_fortran_order() {
                flags |= npyffi::NPY_ARRAY_F_CONTIGUOUS;
            } else {
                strides = Some(dense_strides(view));
            }
        }
        let shape = view.shape();
        // SAFETY: the descriptor, shape and strides are those of a live array; the call takes over one
        // reference to the descriptor. The memory is as large as these strides reach, and the base
        // object, of which the array takes over one reference, keeps it alive.
        unsafe {
            let descr = view.descr();
            ffi::Py_INCREF(descr.cast());
            let array = PY_ARRAY_API.PyArray_NewFromDescr(
                self.py,
                npyffi::get_type_object(self.py, NpyTypes::PyArray_Type),
                descr,
                shape.len() as i32,
                shape.as_ptr().cast_mut().cast(),
                strides.as_mut().map_or(std::ptr::null_mut(), |s: &mut Vec<isize>| s.as_mut_ptr()),
                pointer.cast(),
                flags,
                std::ptr::null_mut(),
            );
            let array = Bound::from_owned_ptr_or_err(self.py, array)?;
            let base = owner.into_ptr();
            if PY_ARRAY_API.PyArray_SetBaseObject(self.py, array.as_ptr().cast::<PyArrayObject>(), base) < 0 {
                return Err(PyErr::fetch(self.py));
            }
            Ok(array)
        }
    }
}

/// Strides without holes, in the order of the array's own: what `np.empty_like` gives.
fn dense_strides(view: &View) -> Vec<isize> {
    let (shape, strides) = (view.shape(), view.strides());
    let mut axes: Vec<usize> = (0..shape.len()).collect();
    axes.sort_by_key(|axis| std::cmp::Reverse(strides[*axis].unsigned_abs()));
    let mut dense = vec![0; shape.len()];
    let mut step = view.dtype.size();
    for axis in axes.into_iter().rev() {
        dense[axis] = step as isize;
        step *= shape[axis].max(1);
    }
    dense
}
