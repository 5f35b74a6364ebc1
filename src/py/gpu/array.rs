//! Arrays on a device.

use crate::gpu::array::{Array, Element};
use crate::gpu::device::Device;
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::view::{View, format_shape};
use crate::py::call::{detached, entry_that_reads};
use crate::scalar::{DType, Scalar};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::sync::Arc;

/// An array on a device: elements of float32, float16, bfloat16 or int32, in C order.
///
/// Create it by :func:`fastclip.gpu.asarray`. The functions of fastclip take and return such arrays; their elements are
/// copied to the host by :meth:`numpy` alone.
#[pyclass(frozen, weakref, module = "fastclip.gpu")]
pub struct DeviceArray {
    pub(super) array: Arc<Array>,
    /// The number of the array, here too because calls in place need nothing else of it.
    pub(super) id: u64,
    pub(super) shape: Vec<usize>,
    /// The index of the device among the adapters.
    pub(super) index: usize,
}

/// Returns the element type of a dtype.
fn element(dtype: DType) -> Option<Element> {
    match dtype.scalar {
        _ if dtype.complex => None,
        Scalar::F32 => Some(Element::F32),
        Scalar::F16 => Some(Element::F16),
        Scalar::BF16 => Some(Element::BF16),
        Scalar::I32 => Some(Element::I32),
        _ => None,
    }
}

/// Takes the snapshot of a host array in C order.
fn host_view<'py>(array: &Bound<'py, PyAny>, name: &str) -> PyResult<View<'py>> {
    let mut cache = DTypeCache::default();
    let view = View::new(array.clone(), AcceptedDTypes::Any, &mut cache, || name.to_owned())?;
    if !view.is_c_order() {
        return Err(PyValueError::new_err(format!("{name} is not contiguous; it takes an array in C order")));
    }
    Ok(view)
}

/// Returns the elements of a view in C order.
///
/// # Safety
///
/// Nobody may write them while the result is used.
unsafe fn bytes<'a>(view: &'a View<'_>) -> &'a [u8] {
    match view.size * view.dtype.size() {
        0 => &[],
        // SAFETY: the view keeps the memory alive. The rest is the caller's contract.
        len => unsafe { std::slice::from_raw_parts(view.pointer, len) },
    }
}

/// As [`bytes`], to be written.
///
/// # Safety
///
/// The elements must be writable, and nobody else may use them while the result is used.
unsafe fn bytes_mut<'a>(view: &'a mut View<'_>) -> &'a mut [u8] {
    match view.size * view.dtype.size() {
        0 => &mut [],
        // SAFETY: the view keeps the memory alive. The rest is the caller's contract.
        len => unsafe { std::slice::from_raw_parts_mut(view.pointer, len) },
    }
}

#[pymethods]
impl DeviceArray {
    /// Copies a host array in C order to the device at `index`.
    #[staticmethod]
    fn _from_host(py: Python<'_>, array: &Bound<'_, PyAny>, index: usize) -> PyResult<Self> {
        entry_that_reads(py, || {
            let view = host_view(array, "x")?;
            let Some(element) = element(view.dtype) else {
                return Err(PyTypeError::new_err(format!(
                    "x is {}; devices take float32, float16, bfloat16 and int32",
                    view.describe()
                )));
            };
            // SAFETY: the array is the caller's, who must not write it during the call.
            let (data, len) = (unsafe { bytes(&view) }, view.size as u64);
            let array = detached(py, || {
                let array = Array::new(&Device::open(index)?, element, len)?;
                array.upload(data)?;
                Ok(array)
            })?;
            Ok(Self { id: array.id, array, shape: view.shape().to_vec(), index })
        })
    }

    /// Copies the elements of a host array of the same dtype and number of elements to this array.
    fn _upload(&self, py: Python<'_>, array: &Bound<'_, PyAny>) -> PyResult<()> {
        entry_that_reads(py, || {
            let view = host_view(array, "source")?;
            self.check(&view, "source")?;
            // SAFETY: the array is the caller's, who must not write it during the call.
            let data = unsafe { bytes(&view) };
            detached(py, || Ok(self.array.upload(data)?))
        })
    }

    /// Copies the elements to a new host array.
    fn _download(&self, py: Python<'_>, array: &Bound<'_, PyAny>) -> PyResult<()> {
        entry_that_reads(py, || {
            let mut view = host_view(array, "out")?;
            self.check(&view, "out")?;
            if !view.is_writable() {
                return Err(PyValueError::new_err("out is read-only; it takes an array that can be written"));
            }
            // SAFETY: the array is writable, and is the caller's, who must not use it during the call.
            let data = unsafe { bytes_mut(&mut view) };
            detached(py, || Ok(self.array.download(data)?))
        })
    }

    /// The lengths of the axes.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    /// The name of the dtype.
    #[getter]
    fn _dtype_name(&self) -> &'static str {
        self.array.element.name()
    }

    /// The index of the device.
    #[getter]
    fn _device_index(&self) -> usize {
        self.index
    }

    /// Number of axes.
    #[getter]
    fn ndim(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    #[getter]
    fn size(&self) -> u64 {
        self.array.len
    }

    /// Size of the elements in bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.array.bytes()
    }

    /// The dtype, as NumPy's.
    #[getter]
    fn dtype<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        arrays_module(py)?.getattr("dtype_of")?.call1((self.array.element.name(),))
    }

    /// The device that holds the array.
    #[getter]
    fn device<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        arrays_module(py)?.getattr("device_at")?.call1((self.index,))
    }

    /// Returns a copy of the array in host memory, an ndarray.
    fn numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        arrays_module(slf.py())?.getattr("to_host")?.call1((slf,))
    }

    /// Copies elements from `source`, an array of the same shape and dtype in host memory. If the device is lost meanwhile,
    /// some of them may have been copied.
    fn copy_from(slf: &Bound<'_, Self>, source: &Bound<'_, PyAny>) -> PyResult<()> {
        arrays_module(slf.py())?.getattr("copy_from")?.call1((slf, source)).map(drop)
    }

    fn __len__(&self) -> PyResult<usize> {
        self.shape.first().copied().ok_or_else(|| PyTypeError::new_err("len() of an array without axes"))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let this = slf.get();
        let shape = this.shape(slf.py())?.repr()?;
        Ok(format!(
            "DeviceArray(shape={shape}, dtype={}, device={:?})",
            this.array.element.name(),
            this.array.device.adapter.name
        ))
    }

    #[allow(clippy::unused_self, reason = "a method of Python")]
    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "an array on a device cannot be copied or pickled; .numpy() returns a copy of it in host memory, which can",
        ))
    }

    #[pyo3(signature = (*args, **options))]
    #[allow(clippy::unused_self, reason = "a method of Python")]
    fn __array__(&self, args: &Bound<'_, PyTuple>, options: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        let _ = (args, options);
        Err(PyTypeError::new_err(
            "the array is in the memory of a device, which NumPy cannot read; .numpy() returns a copy of it",
        ))
    }
}

/// Returns the module of Python code that makes host arrays.
fn arrays_module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("fastclip.gpu._arrays")
}

impl DeviceArray {
    /// Describes the array for messages.
    pub(super) fn describe(&self) -> String {
        format!(
            "an array on a device of dtype {} and shape {}",
            self.array.element.name(),
            format_shape(&self.shape)
        )
    }

    /// Refuses an array without a norm, whose name `name` returns.
    pub(super) fn check_is_float(&self, name: impl FnOnce() -> PyResult<String>) -> PyResult<()> {
        if self.array.element != Element::I32 {
            return Ok(());
        }
        Err(PyTypeError::new_err(format!(
            "{} is an array of dtype int32; it takes float32, float16 and bfloat16",
            name()?
        )))
    }

    fn check(&self, view: &View<'_>, name: &str) -> PyResult<()> {
        if element(view.dtype) == Some(self.array.element) && view.size as u64 == self.array.len {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "{name} is {}; it takes {} elements of {}",
            view.describe(),
            self.array.len,
            self.array.element.name()
        )))
    }
}

/// Whether every entry of a list or tuple is an array on a device.
#[pyfunction]
pub fn gpu_are_arrays(entries: &Bound<'_, PyAny>) -> bool {
    let is_array = |entry: Bound<'_, PyAny>| entry.is_exact_instance_of::<DeviceArray>();
    if let Ok(list) = entries.cast_exact::<PyList>() {
        list.iter().all(is_array)
    } else if let Ok(tuple) = entries.cast_exact::<PyTuple>() {
        tuple.iter().all(is_array)
    } else {
        false
    }
}
