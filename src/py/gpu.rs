//! Arrays on graphics processors.

use crate::gpu::array::{Array, Element};
use crate::gpu::clip::{self, OnNonFinite};
use crate::gpu::device::{Adapter, Device, adapters};
use crate::gpu::error::GpuError;
use crate::gpu::norms::Norms;
use crate::gpu::plan::{Grouping, Order};
use crate::gpu::shader;
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::view::View;
use crate::py::call::{detached, entry_that_reads};
use crate::py::raise::exception;
use crate::scalar::{DType, Scalar};
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pyo3::create_exception!(
    fastclip.gpu,
    GpuUnavailableError,
    PyRuntimeError,
    "No device can be used: there is none, it is lost, or the process was forked from one that uses it."
);

impl From<GpuError> for PyErr {
    fn from(error: GpuError) -> Self {
        Python::attach(|py| {
            let message = error.to_string();
            match error {
                GpuError::Unavailable(_) => exception::<GpuUnavailableError>(py, &message),
                GpuError::OutOfMemory(_) => exception::<PyMemoryError>(py, &message),
                GpuError::Shader(_) => exception::<PyValueError>(py, &message),
                GpuError::Driver(_) => exception::<PyRuntimeError>(py, &message),
            }
        })
    }
}

/// Name, interface, driver, and whether it is software, of every adapter.
#[pyfunction]
pub fn gpu_adapters(py: Python<'_>) -> PyResult<Vec<(String, String, String, bool)>> {
    entry_that_reads(py, || {
        let found = detached(py, || Ok(adapters()?))?;
        let describe = |a: &Adapter| (a.name.clone(), a.backend.clone(), a.driver.clone(), a.is_software);
        Ok(found.iter().map(describe).collect())
    })
}

/// Submissions, and bytes uploaded, downloaded and allocated, of the device at `index`; zeros if it is not open.
#[pyfunction]
pub fn gpu_statistics(py: Python<'_>, index: usize) -> PyResult<(u64, u64, u64, u64)> {
    entry_that_reads(py, || {
        let device = detached(py, || Ok(Device::open(index)?))?;
        let statistics = &device.statistics;
        Ok((
            statistics.submissions.load(Ordering::Relaxed),
            statistics.uploaded.load(Ordering::Relaxed),
            statistics.downloaded.load(Ordering::Relaxed),
            device.allocated_bytes(),
        ))
    })
}

/// Releases the memory of the device at `index` that no array uses.
#[pyfunction]
pub fn gpu_free_cached_memory(py: Python<'_>, index: usize) -> PyResult<()> {
    entry_that_reads(py, || {
        detached(py, || {
            Device::open(index)?.free_cached_memory();
            Ok(())
        })
    })
}

/// An array on a device: elements of float32, float16, bfloat16 or int32, in C order.
///
/// Create it by :func:`fastclip.gpu.asarray`. The functions of fastclip take and return such arrays; their elements are
/// copied to the host by :meth:`numpy` alone.
#[pyclass(frozen, weakref, module = "fastclip.gpu")]
pub struct DeviceArray {
    array: Arc<Array>,
    shape: Vec<usize>,
    /// The index of the device among the adapters.
    index: usize,
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

/// An address that may be sent to another thread.
struct Address(*mut u8, usize);
// SAFETY: the caller keeps the memory alive while the other thread uses it.
unsafe impl Send for Address {}

impl Address {
    fn of(view: &View<'_>) -> Self {
        Self(view.pointer, view.size * view.dtype.size())
    }

    /// # Safety
    ///
    /// The memory must be alive and initialised.
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.1 == 0 {
            return &[];
        }
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts(self.0, self.1) }
    }

    /// # Safety
    ///
    /// The memory must be alive, initialised and writable.
    unsafe fn bytes_mut<'a>(self) -> &'a mut [u8] {
        if self.1 == 0 {
            return &mut [];
        }
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
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
            let (address, len) = (Address::of(&view), view.size as u64);
            let array = detached(py, move || {
                let device = Device::open(index)?;
                let array = Array::new(&device, element, len)?;
                // SAFETY: the view keeps the memory alive.
                array.upload(unsafe { address.bytes() })?;
                Ok(array)
            })?;
            Ok(Self { array, shape: view.shape().to_vec(), index })
        })
    }

    /// Copies the elements of a host array of the same dtype and number of elements to this array.
    fn _upload(&self, py: Python<'_>, array: &Bound<'_, PyAny>) -> PyResult<()> {
        entry_that_reads(py, || {
            let view = host_view(array, "source")?;
            self.check(&view, "source")?;
            let (address, target) = (Address::of(&view), Arc::clone(&self.array));
            // SAFETY: the view keeps the memory alive.
            detached(py, move || Ok(target.upload(unsafe { address.bytes() })?))
        })
    }

    /// Copies the elements to a new host array.
    fn _download(&self, py: Python<'_>, array: &Bound<'_, PyAny>) -> PyResult<()> {
        entry_that_reads(py, || {
            let view = host_view(array, "out")?;
            self.check(&view, "out")?;
            let (address, source) = (Address::of(&view), Arc::clone(&self.array));
            // SAFETY: the view keeps the memory alive, which belongs to the caller alone.
            detached(py, move || Ok(source.download(unsafe { address.bytes_mut() })?))
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

    /// Copies elements from `source`, an array of the same shape and dtype in host memory.
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
            "DeviceArray(shape={shape}, dtype={}, device={})",
            this.array.element.name(),
            this.device(slf.py())?.repr()?
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

/// The arrays of one argument, with the device that holds them.
struct Arrays {
    list: Vec<Arc<Array>>,
    shapes: Vec<Vec<usize>>,
    index: usize,
}

fn arrays(list: &Bound<'_, PyList>, names: &Bound<'_, PyAny>) -> PyResult<Arrays> {
    let count = list.len();
    let (mut arrays, mut shapes) = (Vec::new(), Vec::new());
    arrays.try_reserve_exact(count).map_err(|_| PyMemoryError::new_err("no memory"))?;
    shapes.try_reserve_exact(count).map_err(|_| PyMemoryError::new_err("no memory"))?;
    let mut index = None;
    let name = |at: usize| names.call1((at,)).and_then(|name| name.extract::<String>());
    for (at, entry) in list.iter().enumerate() {
        let Ok(array) = entry.cast_exact::<DeviceArray>() else {
            return Err(PyTypeError::new_err(format!(
                "{} is a {} in host memory beside arrays on a device; fastclip.gpu.asarray copies it there",
                name(at)?,
                entry.get_type().name()?
            )));
        };
        let array = array.get();
        if *index.get_or_insert(array.index) != array.index {
            return Err(PyTypeError::new_err(format!(
                "{} is on another device than the entries before it",
                name(at)?
            )));
        }
        arrays.push(Arc::clone(&array.array));
        shapes.push(array.shape.clone());
    }
    let index = index.ok_or_else(|| PyValueError::new_err("there is no array"))?;
    Ok(Arrays { list: arrays, shapes, index })
}

impl Arrays {
    fn device(&self) -> &Arc<Device> {
        &self.list[0].device
    }

    /// Refuses arrays without norms.
    fn check_floats(&self, names: &Bound<'_, PyAny>) -> PyResult<()> {
        match self.list.iter().position(|array| array.element == Element::I32) {
            None => Ok(()),
            Some(at) => Err(PyTypeError::new_err(format!(
                "{} is an array of dtype int32; it takes float32, float16 and bfloat16",
                names.call1((at,))?
            ))),
        }
    }

    /// Returns the outputs: the inputs themselves, those of the caller, or new arrays.
    fn outputs(&self, out: &Output<'_, '_>) -> PyResult<Vec<Arc<Array>>> {
        let Some(list) = out.list else {
            let create = |array: &Arc<Array>| Ok(Array::new(&array.device, array.element, array.len)?);
            return self.list.iter().map(create).collect();
        };
        let (outputs, is_in_place) =
            if list.is(out.inputs) { (None, true) } else { (Some(arrays(list, out.names)?), false) };
        // Arrays never overlap in part.
        let mut places = HashMap::new();
        if !is_in_place {
            places.extend(self.list.iter().enumerate().map(|(at, array)| (array.id, at)));
        }
        let outputs = outputs.as_ref().unwrap_or(self);
        let mut written = HashSet::new();
        for (at, (input, output)) in self.list.iter().zip(&outputs.list).enumerate() {
            if input.element != output.element || self.shapes[at] != outputs.shapes[at] {
                return Err(PyValueError::new_err(format!(
                    "{} has another shape or dtype than its input",
                    out.names.call1((at,))?
                )));
            }
            let is_other_input = places.get(&output.id).is_some_and(|place| *place != at);
            if !written.insert(output.id) || is_other_input {
                return Err(PyValueError::new_err(format!(
                    "{} shares memory with another output or input",
                    out.names.call1((at,))?
                )));
            }
        }
        Ok(outputs.list.clone())
    }

    /// Returns the list of new results; None if the caller has passed the outputs.
    fn wrap<'py>(
        &self,
        out: &Output<'_, 'py>,
        outputs: Vec<Arc<Array>>,
    ) -> PyResult<Option<Bound<'py, PyList>>> {
        if out.list.is_some() {
            return Ok(None);
        }
        let list = PyList::empty(out.inputs.py());
        for (array, shape) in outputs.into_iter().zip(&self.shapes) {
            list.append(DeviceArray { array, shape: shape.clone(), index: self.index })?;
        }
        Ok(Some(list))
    }
}

/// The outputs that the caller has passed, if any.
struct Output<'a, 'py> {
    list: Option<&'a Bound<'py, PyList>>,
    /// The list of the inputs, which is also that of the outputs of a call in place.
    inputs: &'a Bound<'py, PyList>,
    names: &'a Bound<'py, PyAny>,
}

/// The norms of one call, on the device until they are looked at.
#[pyclass(frozen, module = "fastclip._core")]
pub struct DeviceNorms(Norms);

#[pymethods]
impl DeviceNorms {
    /// Returns a norm and the factor that its tensors were multiplied by.
    fn at(&self, py: Python<'_>, index: usize) -> PyResult<(f64, f64)> {
        entry_that_reads(py, || {
            detached(py, || {
                let result = self.0.values()?[index];
                Ok((result.norm, result.factor))
            })
        })
    }
}

/// Returns the norm of all arrays together, or of each.
#[pyfunction]
pub fn gpu_norms(
    py: Python<'_>,
    list: &Bound<'_, PyList>,
    each: bool,
    maximum: bool,
    names: &Bound<'_, PyAny>,
) -> PyResult<DeviceNorms> {
    entry_that_reads(py, || {
        let arrays = arrays(list, names)?;
        arrays.check_floats(names)?;
        let grouping = if each { Grouping::Each } else { Grouping::Global };
        let norms =
            detached(py, || Ok(clip::norms(arrays.device(), &arrays.list, grouping, order(maximum))?))?;
        Ok(DeviceNorms(norms))
    })
}

/// Clips arrays by their norm together, or each by its own. `bounds` has one bound for each norm. Returns the list of
/// new results, or None, and the norms.
#[pyfunction]
#[pyo3(signature = (list, out, each_and_maximum, bounds, on_nonfinite, names))]
pub fn gpu_clip<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyList>,
    out: Option<&Bound<'py, PyList>>,
    each_and_maximum: (bool, bool),
    bounds: &Bound<'py, PyAny>,
    on_nonfinite: &str,
    names: [Bound<'py, PyAny>; 2],
) -> PyResult<(Option<Bound<'py, PyList>>, DeviceNorms)> {
    entry_that_reads(py, || {
        let [names, out_names] = names;
        let arrays = arrays(list, &names)?;
        arrays.check_floats(&names)?;
        let out = Output { list: out, inputs: list, names: &out_names };
        let outputs = arrays.outputs(&out)?;
        let (each, maximum) = each_and_maximum;
        let grouping = if each { Grouping::Each } else { Grouping::Global };
        let bounds: Vec<f64> = bounds.extract()?;
        let mode = on_nonfinite_mode(on_nonfinite)?;
        let norms = detached(py, || {
            Ok(clip::clip(arrays.device(), &arrays.list, &outputs, grouping, order(maximum), &bounds, mode)?)
        })?;
        Ok((arrays.wrap(&out, outputs)?, DeviceNorms(norms)))
    })
}

/// Clips arrays by a norm that is known. Returns the list of new results, or None.
#[pyfunction]
#[pyo3(signature = (list, out, bound_and_norm, on_nonfinite, names))]
pub fn gpu_clip_by_known_norm<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyList>,
    out: Option<&Bound<'py, PyList>>,
    bound_and_norm: (f64, f64),
    on_nonfinite: &str,
    names: [Bound<'py, PyAny>; 2],
) -> PyResult<Option<Bound<'py, PyList>>> {
    entry_that_reads(py, || {
        let [names, out_names] = names;
        let arrays = arrays(list, &names)?;
        arrays.check_floats(&names)?;
        let out = Output { list: out, inputs: list, names: &out_names };
        let outputs = arrays.outputs(&out)?;
        let (bound, norm) = bound_and_norm;
        let mode = on_nonfinite_mode(on_nonfinite)?;
        detached(py, || {
            Ok(clip::clip_by_known_norm(arrays.device(), &arrays.list, &outputs, bound, norm, mode)?)
        })?;
        arrays.wrap(&out, outputs)
    })
}

/// Limits elements to an interval, given as float32 or, for integers, as int32. Returns the list of new results, or None.
#[pyfunction]
#[pyo3(signature = (list, out, low, high, names))]
pub fn gpu_clamp<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyList>,
    out: Option<&Bound<'py, PyList>>,
    low: f64,
    high: f64,
    names: [Bound<'py, PyAny>; 2],
) -> PyResult<Option<Bound<'py, PyList>>> {
    entry_that_reads(py, || {
        let [names, out_names] = names;
        let arrays = arrays(list, &names)?;
        let out = Output { list: out, inputs: list, names: &out_names };
        let outputs = arrays.outputs(&out)?;
        let bits = |bound: f64| match arrays.list[0].element {
            Element::I32 => (bound as i32).cast_unsigned(),
            _ => (bound as f32).to_bits(),
        };
        detached(py, || Ok(clip::clamp(arrays.device(), &arrays.list, &outputs, bits(low), bits(high))?))?;
        arrays.wrap(&out, outputs)
    })
}

/// Runs a shader of the caller.
#[pyfunction]
pub fn gpu_run(
    py: Python<'_>,
    source: &str,
    list: &Bound<'_, PyList>,
    workgroups: [u32; 3],
    entry_point: &str,
    names: &Bound<'_, PyAny>,
) -> PyResult<()> {
    entry_that_reads(py, || {
        let arrays = arrays(list, names)?;
        detached(py, || Ok(shader::run(arrays.device(), source, &arrays.list, workgroups, entry_point)?))
    })
}

fn order(maximum: bool) -> Order {
    if maximum { Order::Maximum } else { Order::Euclidean }
}

fn on_nonfinite_mode(name: &str) -> PyResult<OnNonFinite> {
    match name {
        "propagate" => Ok(OnNonFinite::Propagate),
        "raise" => Ok(OnNonFinite::Raise),
        "zero" => Ok(OnNonFinite::Zero),
        other => Err(PyValueError::new_err(format!(
            "on_nonfinite is {other:?}; it takes 'propagate', 'raise' or 'zero'"
        ))),
    }
}
