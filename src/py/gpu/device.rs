//! Devices: which there are, what they have done, and shaders of the caller.

use super::arguments::Arrays;
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
