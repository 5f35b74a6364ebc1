//! The arrays of an argument, and the plan of a call over them.

use super::array::DeviceArray;
use crate::allocation::{collect, reserve, try_collect, with_capacity};
use crate::gpu::array::Array;
use crate::gpu::device::Device;
use crate::gpu::error::GpuError;
use crate::gpu::plan::{Change, Grouping, Key, Order, Plan, known, make};
use crate::py::call::detached;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::type_object::PyTypeInfo;
use pyo3::types::{PyList, PyTuple};
use std::collections::HashMap;
use std::sync::Arc;

/// The results that a call has allocated; None if the caller has passed them.
pub type NewResults = Option<Vec<Arc<Array>>>;

/// The name of an argument's entry at an index: a function of Python.
pub type Names<'a, 'py> = &'a Bound<'py, PyAny>;

/// The arrays of one argument, in one device.
pub struct Arrays<'a, 'py> {
    tuple: &'a Bound<'py, PyTuple>,
    pub entries: Vec<Borrowed<'a, 'py, DeviceArray>>,
    names: Names<'a, 'py>,
}

impl<'a, 'py> Arrays<'a, 'py> {
    /// Reads a tuple of arrays.
    pub fn new(tuple: &'a Bound<'py, PyTuple>, names: Names<'a, 'py>) -> PyResult<Self> {
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

    pub fn device(&self) -> &Arc<Device> {
        &self.entries[0].get().array.device
    }

    pub fn list(&self) -> PyResult<Vec<Arc<Array>>> {
        Ok(collect(self.entries.iter().map(|entry| Arc::clone(&entry.get().array)))?)
    }

    /// Refuses arrays without norms.
    pub fn check_floats(&self) -> PyResult<()> {
        for (at, entry) in self.entries.iter().enumerate() {
            entry.get().check_is_float(|| Ok(self.names.call1((at,))?.to_string()))?;
        }
        Ok(())
    }

    /// Checks the outputs that the caller has passed.
    fn check_outputs(&self, outputs: &Self, out_names: Names<'_, 'py>) -> PyResult<()> {
        let ids: HashMap<_, _> = self.entries.iter().map(|entry| entry.get().id).zip(0..).collect();
        let mut written = HashMap::new();
        for (at, (input, output)) in self.entries.iter().zip(&outputs.entries).enumerate() {
            let (input, output) = (input.get(), output.get());
            if input.array.element != output.array.element || input.shape != output.shape {
                return Err(PyValueError::new_err(format!(
                    "{} is {}; it takes {}, as {} is",
                    out_names.call1((at,))?,
                    output.describe(),
                    input.describe(),
                    self.names.call1((at,))?
                )));
            }
            if output.array.len == 0 {
                continue;
            }
            // Arrays never overlap in part.
            if let Some(other) = written.insert(output.id, at) {
                return Err(PyValueError::new_err(format!(
                    "{} shares memory with {}; every output takes an array of its own",
                    out_names.call1((at,))?,
                    out_names.call1((other,))?
                )));
            }
        }
        for (at, output) in outputs.entries.iter().enumerate() {
            let output = output.get();
            if output.array.len > 0
                && let Some(other) = ids.get(&output.id).filter(|place| **place != at)
            {
                return Err(PyValueError::new_err(format!(
                    "{} shares memory with {}, which is another entry's input",
                    out_names.call1((at,))?,
                    self.names.call1((*other,))?
                )));
            }
        }
        Ok(())
    }

    /// Returns the plan of a call, and the new results; None if there are none. `out` is None for new results.
    pub fn plan(
        &self,
        out: Option<&Bound<'py, PyTuple>>,
        out_names: Names<'_, 'py>,
        (grouping, order, change): (Grouping, Order, Change),
    ) -> PyResult<(Arc<Plan>, NewResults)> {
        let is_input = out.is_some_and(|out| out.is(self.tuple));
        let outputs = out.filter(|_| !is_input).map(|out| Arrays::new(out, out_names)).transpose()?;
        let py = self.names.py();
        let mut key = Key { arrays: Vec::new(), inputs: self.entries.len(), grouping, order, change };
        reserve(&mut key.arrays, 2 * self.entries.len())?;
        key.arrays.extend(self.entries.iter().map(|entry| entry.get().id));
        let is_same = |outputs: &Arrays<'_, '_>| {
            outputs.entries.iter().map(|entry| entry.get().id).eq(key.arrays.iter().copied())
        };
        let is_in_place = change == Change::Nothing || is_input || outputs.as_ref().is_some_and(is_same);
        if !is_in_place && let Some(outputs) = &outputs {
            key.arrays.extend(outputs.entries.iter().map(|entry| entry.get().id));
        }
        let is_new = !is_in_place && outputs.is_none();
        if !is_new && let Some(plan) = known(self.device(), &key)? {
            return Ok((plan, None));
        }
        match &outputs {
            Some(outputs) => self.check_outputs(outputs, out_names)?,
            None if is_input => self.check_outputs(self, out_names)?,
            None => {}
        }
        let inputs = self.list()?;
        let given = if is_in_place {
            Some(self.list()?)
        } else {
            outputs.map(|outputs| outputs.list()).transpose()?
        };
        detached(py, || {
            let create = |array: &Arc<Array>| Array::new(&array.device, array.element, array.len);
            let targets = match given {
                Some(given) => given,
                None => try_collect(inputs.len(), inputs.iter().map(create))?,
            };
            // Results that are new have new numbers: such a plan would never be found again.
            let plan = make(&inputs[0].device, key, &[&inputs, &targets], !is_new)?;
            Ok((plan, is_new.then_some(targets)))
        })
    }

    /// Makes a call that writes the arrays or `out`. `submit` submits it. Returns the list of new results, or None, and
    /// what `submit` returns.
    pub fn write<T: Send>(
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
