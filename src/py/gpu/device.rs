//! Devices: which there are, what they have done, and shaders of the caller.

use super::arguments::Arrays;
use crate::gpu::bandwidth::Copies;
use crate::gpu::device::{Adapter, Device, adapters};
use crate::gpu::shader;
use crate::py::call::{detached, entry_that_reads};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::sync::atomic::Ordering;

/// Name, interface, driver, and whether it is software, of every adapter.
#[pyfunction]
pub fn gpu_adapters(py: Python<'_>) -> PyResult<Vec<(String, String, String, bool)>> {
    entry_that_reads(py, || {
        let found = detached(py, || Ok(adapters()?))?;
        let describe = |a: &Adapter| (a.name.clone(), a.backend.clone(), a.driver.clone(), a.is_software);
        Ok(found.iter().map(describe).collect())
    })
}

/// Submissions, and bytes uploaded, downloaded and allocated, of the device at `index`, which is opened if it is not.
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
        let (device, list) = (arrays.device(), arrays.list()?);
        detached(py, || Ok(shader::run(device, source, &list, workgroups, entry_point)?))
    })
}

/// Waits until all that was submitted to the device at `index` is done.
#[pyfunction]
pub fn gpu_synchronize(py: Python<'_>, index: usize) -> PyResult<()> {
    entry_that_reads(py, || detached(py, || Ok(Device::open(index)?.wait()?)))
}

/// Begins or ends to record how long submissions to the device at `index` take. Returns false if it cannot.
#[pyfunction]
pub fn gpu_enable_timing(py: Python<'_>, index: usize, is_enabled: bool) -> PyResult<bool> {
    entry_that_reads(py, || {
        detached(py, || {
            let device = Device::open(index)?;
            Ok(device.timing.enable(&device, is_enabled)?)
        })
    })
}

/// Returns the seconds that the last submission took, by the clock of the device at `index`.
#[pyfunction]
pub fn gpu_seconds(py: Python<'_>, index: usize) -> PyResult<f64> {
    entry_that_reads(py, || {
        detached(py, || {
            let device = Device::open(index)?;
            Ok(device.timing.seconds(&device)?)
        })
    })
}

/// Buffers to copy from and to, for benchmarks.
#[pyclass(frozen, module = "fastclip._core")]
pub struct DeviceCopies(Copies);

#[pymethods]
impl DeviceCopies {
    /// Takes the index of the device, and the size of what is copied.
    #[new]
    fn new(py: Python<'_>, index: usize, nbytes: u64) -> PyResult<Self> {
        entry_that_reads(py, || Ok(Self(detached(py, || Ok(Copies::new(&Device::open(index)?, nbytes)?))?)))
    }

    /// Submits the copy.
    fn copy(&self, py: Python<'_>, by_kernel: bool) -> PyResult<()> {
        entry_that_reads(py, || detached(py, || Ok(self.0.copy(by_kernel)?)))
    }
}
