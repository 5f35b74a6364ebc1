//! Arrays on graphics processors.

use crate::allocation::with_capacity;
use crate::gpu::array::{Array, Element};
use crate::gpu::clip::{self, OnNonFinite};
use crate::gpu::device::{Adapter, Device, adapters};
use crate::gpu::error::GpuError;
use crate::gpu::norms::Norms;
use crate::gpu::plan::{Axes, Change, Grouping, Key, Order, Plan, known, make};
use crate::gpu::shader;
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::view::View;
use crate::py::call::{detached, entry_that_reads};
use crate::py::raise::exception;
use crate::scalar::{DType, Scalar};
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::type_object::PyTypeInfo;
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
    /// The number of the array, here too because calls in place need nothing else of it.
    id: u64,
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

/// The results that a call has allocated; None if the caller has passed them.
type NewResults = Option<Vec<Arc<Array>>>;

/// The name of an argument's entry at an index: a function of Python.
type Names<'a, 'py> = &'a Bound<'py, PyAny>;

/// The arrays of one argument, in one device.
struct Arrays<'a, 'py> {
    tuple: &'a Bound<'py, PyTuple>,
    entries: Vec<Borrowed<'a, 'py, DeviceArray>>,
    names: Names<'a, 'py>,
}

impl<'a, 'py> Arrays<'a, 'py> {
    /// Reads a tuple of arrays.
    fn new(tuple: &'a Bound<'py, PyTuple>, names: Names<'a, 'py>) -> PyResult<Self> {
        let mut entries: Vec<Borrowed<'a, 'py, DeviceArray>> = with_capacity(tuple.len())?;
        let class = DeviceArray::type_object_raw(tuple.py());
        for entry in tuple.iter_borrowed() {
            // SAFETY: reads the type of a live object.
            if unsafe { ffi::Py_TYPE(entry.as_ptr()) } != class {
                return Err(PyTypeError::new_err(format!(
                    "{} is a {} in host memory beside arrays on a device; fastclip.gpu.asarray copies it there",
                    names.call1((entries.len(),))?,
                    entry.get_type().name()?
                )));
            }
            // SAFETY: the object has exactly this type.
            let array = unsafe { entry.cast_unchecked::<DeviceArray>() };
            if entries.first().is_some_and(|first| first.get().index != array.get().index) {
                return Err(PyTypeError::new_err(format!(
                    "{} is on another device than the entries before it",
                    names.call1((entries.len(),))?
                )));
            }
            entries.push(array);
        }
        if entries.is_empty() {
            return Err(PyValueError::new_err("there is no array"));
        }
        Ok(Self { tuple, entries, names })
    }

    fn device(&self) -> &Arc<Device> {
        &self.entries[0].get().array.device
    }

    fn list(&self) -> Vec<Arc<Array>> {
        self.entries.iter().map(|entry| Arc::clone(&entry.get().array)).collect()
    }

    /// Refuses arrays without norms.
    fn check_floats(&self) -> PyResult<()> {
        match self.entries.iter().position(|entry| entry.get().array.element == Element::I32) {
            None => Ok(()),
            Some(at) => Err(PyTypeError::new_err(format!(
                "{} is an array of dtype int32; it takes float32, float16 and bfloat16",
                self.names.call1((at,))?
            ))),
        }
    }

    /// Checks the outputs that the caller has passed.
    fn check_outputs(&self, outputs: &Self) -> PyResult<()> {
        let ids: HashMap<_, _> = self.entries.iter().map(|entry| entry.get().id).zip(0..).collect();
        let mut written = HashSet::new();
        for (at, (input, output)) in self.entries.iter().zip(&outputs.entries).enumerate() {
            let (input, output) = (input.get(), output.get());
            if input.array.element != output.array.element || input.shape != output.shape {
                return Err(PyValueError::new_err(format!(
                    "{} has another shape or dtype than its input",
                    outputs.names.call1((at,))?
                )));
            }
            // Arrays never overlap in part.
            let is_other_input = ids.get(&output.id).is_some_and(|place| *place != at);
            if !written.insert(output.id) || is_other_input {
                return Err(PyValueError::new_err(format!(
                    "{} shares memory with another output or input",
                    outputs.names.call1((at,))?
                )));
            }
        }
        Ok(())
    }

    /// Returns the plan of a call, and the new results; None if there are none. `out` is None for new results.
    fn plan(
        &self,
        out: Option<&Bound<'py, PyTuple>>,
        out_names: Names<'_, 'py>,
        (grouping, order, change): (Grouping, Order, Change),
    ) -> PyResult<(Arc<Plan>, NewResults)> {
        let is_input = out.is_some_and(|out| out.is(self.tuple));
        let outputs = out.filter(|_| !is_input).map(|out| Arrays::new(out, out_names)).transpose()?;
        let py = self.names.py();
        let mut key = Key { arrays: Vec::new(), grouping, order, change };
        key.arrays.extend(self.entries.iter().map(|entry| entry.get().id));
        let is_same = |outputs: &Arrays<'_, '_>| {
            outputs.entries.iter().map(|entry| entry.get().id).eq(key.arrays.iter().copied())
        };
        let is_in_place = change == Change::Nothing || is_input || outputs.as_ref().is_some_and(is_same);
        if is_in_place && let Some(plan) = known(self.device(), &key)? {
            return Ok((plan, None));
        }
        match &outputs {
            Some(outputs) => self.check_outputs(outputs)?,
            None if is_input => self.check_outputs(self)?,
            None => {}
        }
        let inputs = self.list();
        let given = if is_in_place { Some(inputs.clone()) } else { outputs.map(|outputs| outputs.list()) };
        detached(py, || {
            let create = |array: &Arc<Array>| Array::new(&array.device, array.element, array.len);
            let is_new = given.is_none();
            let targets = match given {
                Some(given) => given,
                None => inputs.iter().map(create).collect::<Result<_, _>>()?,
            };
            let plan = make(&inputs[0].device, key, &inputs, &targets)?;
            Ok((plan, is_new.then_some(targets)))
        })
    }

    /// Makes a call that writes the arrays or `out`. `submit` submits it. Returns the list of new results, or None, and
    /// what `submit` returns.
    fn write<T: Send>(
        &self,
        out: Option<&Bound<'py, PyTuple>>,
        out_names: Names<'_, 'py>,
        call: (Grouping, Order, Change),
        submit: impl FnOnce(&Arc<Device>, &Plan) -> Result<T, GpuError> + Send,
    ) -> PyResult<(Option<Bound<'py, PyList>>, T)> {
        let (plan, results) = self.plan(out, out_names, call)?;
        let device = self.device();
        let returned = detached(self.names.py(), || Ok(submit(device, &plan)?))?;
        Ok((self.wrap(results)?, returned))
    }

    /// Returns the list of new results.
    fn wrap(&self, results: NewResults) -> PyResult<Option<Bound<'py, PyList>>> {
        let Some(results) = results else { return Ok(None) };
        let list = PyList::empty(self.names.py());
        for (array, entry) in results.into_iter().zip(&self.entries) {
            let entry = entry.get();
            list.append(DeviceArray { id: array.id, array, shape: entry.shape.clone(), index: entry.index })?;
        }
        Ok(Some(list))
    }
}

/// The norms of one call, on the device until they are looked at.
#[pyclass(frozen, module = "fastclip._core")]
pub struct DeviceNorms(Norms);

#[pymethods]
impl DeviceNorms {
    /// Returns the norm at an index.
    fn at(&self, py: Python<'_>, index: usize) -> PyResult<f64> {
        entry_that_reads(py, || detached(py, || Ok(self.0.values()?[index])))
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

/// Returns the norm of all arrays together, or of each.
#[pyfunction]
pub fn gpu_norms<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyTuple>,
    each: bool,
    maximum: bool,
    names: &Bound<'py, PyAny>,
) -> PyResult<DeviceNorms> {
    entry_that_reads(py, || {
        let arrays = Arrays::new(list, names)?;
        arrays.check_floats()?;
        let call = (grouping_of(each), order(maximum), Change::Nothing);
        let (plan, _) = arrays.plan(None, names, call)?;
        let device = arrays.device();
        Ok(DeviceNorms(detached(py, || Ok(clip::norms(device, &plan)?))?))
    })
}

/// Clips arrays by their norm together (grouping False), each by its own (True), or the slices of one array along axes
/// (a list that says which axes a slice has). `bounds` has one bound for each norm. Returns the list of
/// new results, or None, and the norms.
#[pyfunction]
#[pyo3(signature = (list, out, grouping_and_maximum, bounds, on_nonfinite, names))]
pub fn gpu_clip<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyTuple>,
    out: Option<&Bound<'py, PyTuple>>,
    grouping_and_maximum: (Bound<'py, PyAny>, bool),
    bounds: &Bound<'py, PyAny>,
    on_nonfinite: &str,
    names: [Bound<'py, PyAny>; 2],
) -> PyResult<(Option<Bound<'py, PyList>>, DeviceNorms)> {
    entry_that_reads(py, || {
        let [names, out_names] = names;
        let (grouping, maximum) = grouping_and_maximum;
        let mode = on_nonfinite_mode(on_nonfinite)?;
        let bounds: Vec<f64> = bounds.extract()?;
        let arrays = Arrays::new(list, &names)?;
        arrays.check_floats()?;
        let grouping = if let Ok(each) = grouping.extract::<bool>() {
            grouping_of(each)
        } else {
            let shape = arrays.entries[0].get().shape.clone();
            Grouping::Slices(Axes { shape, is_reduced: grouping.extract()? })
        };
        let call = (grouping, order(maximum), Change::Scale);
        let (results, norms) =
            arrays.write(out, &out_names, call, |device, plan| clip::clip(device, plan, &bounds, mode))?;
        Ok((results, DeviceNorms(norms)))
    })
}

/// Clips arrays by a norm that is known. Returns the list of new results, or None.
#[pyfunction]
#[pyo3(signature = (list, out, bound_and_norm, on_nonfinite, names))]
pub fn gpu_clip_by_known_norm<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyTuple>,
    out: Option<&Bound<'py, PyTuple>>,
    bound_and_norm: (f64, f64),
    on_nonfinite: &str,
    names: [Bound<'py, PyAny>; 2],
) -> PyResult<Option<Bound<'py, PyList>>> {
    entry_that_reads(py, || {
        let [names, out_names] = names;
        let (bound, norm) = bound_and_norm;
        let mode = on_nonfinite_mode(on_nonfinite)?;
        let arrays = Arrays::new(list, &names)?;
        arrays.check_floats()?;
        let call = (Grouping::Global, Order::Euclidean, Change::Scale);
        let submit = |device: &_, plan: &_| clip::clip_by_known_norm(device, plan, bound, norm, mode);
        Ok(arrays.write(out, &out_names, call, submit)?.0)
    })
}

/// Limits elements to an interval. Returns the list of new results, or None.
#[pyfunction]
#[pyo3(signature = (list, out, low, high, names))]
pub fn gpu_clamp<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyTuple>,
    out: Option<&Bound<'py, PyTuple>>,
    low: f64,
    high: f64,
    names: [Bound<'py, PyAny>; 2],
) -> PyResult<Option<Bound<'py, PyList>>> {
    entry_that_reads(py, || {
        let [names, out_names] = names;
        let arrays = Arrays::new(list, &names)?;
        let is_integer = arrays.entries[0].get().array.element == Element::I32;
        let bits =
            |bound: f64| if is_integer { (bound as i32).cast_unsigned() } else { (bound as f32).to_bits() };
        let call = (Grouping::Global, Order::Euclidean, Change::Clamp);
        let (low, high) = (bits(low), bits(high));
        Ok(arrays.write(out, &out_names, call, |device, plan| clip::clamp(device, plan, low, high))?.0)
    })
}

/// Runs a shader of the caller.
#[pyfunction]
pub fn gpu_run(
    py: Python<'_>,
    source: &str,
    list: &Bound<'_, PyTuple>,
    workgroups: [u32; 3],
    entry_point: &str,
    names: &Bound<'_, PyAny>,
) -> PyResult<()> {
    entry_that_reads(py, || {
        let arrays = Arrays::new(list, names)?;
        let (device, list) = (arrays.device(), arrays.list());
        detached(py, || Ok(shader::run(device, source, &list, workgroups, entry_point)?))
    })
}

fn grouping_of(each: bool) -> Grouping {
    if each { Grouping::Each } else { Grouping::Global }
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
