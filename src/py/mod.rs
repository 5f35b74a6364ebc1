//! The Python bindings: the extension module `fastclip._core`.
//!
//! The Python code of `fastclip` flattens the caller's containers into lists of arrays, and passes those to a function
//! of this module. The function checks all arguments, and then computes with the interpreter released. After the checks
//! and the allocation of memory nothing can fail, so that no array is ever half-written.

mod arrays;
mod bandwidth;
mod call;
mod functions;
#[cfg(feature = "gpu")]
mod gpu;
mod norm_scalar;
mod objects;
mod raise;
mod reserve;
mod settings;
mod step;
mod tensors;
mod torch;
mod trees;

use pyo3::pymodule;

/// The compiled functions of fastclip. They take flat lists of arrays; the public functions are in `fastclip`.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::arrays::plain::is_plain;
    #[pymodule_export]
    use super::bandwidth::{bandwidth_copy, bandwidth_read, bandwidth_scale};
    #[pymodule_export]
    use super::functions::accumulate::accumulate;
    #[pymodule_export]
    use super::functions::by_norm::{clip_by_block_rms, clip_tensor};
    #[pymodule_export]
    use super::functions::by_value::clip_by_value;
    #[pymodule_export]
    use super::functions::elements::clip_elements;
    #[pymodule_export]
    use super::functions::global_norm::clip_by_global_norm;
    #[pymodule_export]
    use super::functions::norms::{
        combine_magnitudes, combine_sums, global_norm, magnitudes, norm_scalar, partial_sums, tensor_norms,
    };
    #[pymodule_export]
    use super::functions::overlap::{check_no_overlap, is_same_memory};
    #[pymodule_export]
    use super::functions::rows::RowOrder;
    #[pymodule_export]
    use super::functions::slices::{clip_slices, slice_norms};
    #[cfg(feature = "gpu")]
    #[pymodule_export]
    use super::gpu::GpuUnavailableError;
    #[cfg(feature = "gpu")]
    #[pymodule_export]
    use super::gpu::array::{DeviceArray, gpu_are_arrays};
    #[cfg(feature = "gpu")]
    #[pymodule_export]
    use super::gpu::clip::{DeviceNorms, gpu_clamp, gpu_clip, gpu_clip_by_known_norm, gpu_norms};
    #[cfg(feature = "gpu")]
    #[pymodule_export]
    use super::gpu::device::{
        DeviceCopies, gpu_adapters, gpu_enable_timing, gpu_free_cached_memory, gpu_run, gpu_seconds,
        gpu_statistics, gpu_synchronize,
    };
    #[cfg(feature = "gpu")]
    #[pymodule_export]
    use super::gpu::slots::DeviceSlots;
    #[pymodule_export]
    use super::raise::NonFiniteError;
    #[pymodule_export]
    use super::settings::{
        free_cached_memory, get_num_threads, isa_detected, isa_has_early_avx512, isa_in_use, isa_levels,
        num_threads_rule, override_num_threads, process_generation, set_num_threads, settings_complaints,
    };
    #[pymodule_export]
    use super::step::gradient_clipping::GradientClipping;
    #[pymodule_export]
    use super::step::overlap::check_variables;
    #[pymodule_export]
    use super::step::pairs::are_plain_pairs;
    #[pymodule_export]
    use super::step::request::{RowGradient, StepRequest};
    #[pymodule_export]
    use super::step::slots::{CallerSlots, Slots};
    #[pymodule_export]
    use super::step::take_step;
    #[pymodule_export]
    use super::tensors::door::{OnDevice, Recorded};
    #[pymodule_export]
    use super::torch::clip::{
        torch_clip_by_global_norm, torch_clip_by_known_norm, torch_clip_by_value, torch_magnitude,
    };
    #[pymodule_export]
    use super::torch::plain::TorchBinding;
    #[pymodule_export]
    use super::torch::step::torch_step;
    #[pymodule_export]
    use super::trees::argument::{Tree, open_tensor, open_tensors, walk};

    use super::arrays::{ndarray_type, output, overlap};
    use super::raise;
    use crate::engine::{isa, process, threads};
    use pyo3::exceptions::PyMemoryError;
    use pyo3::prelude::{Bound, PyAnyMethods, PyErr, PyModule, PyModuleMethods, PyResult};
    use pyo3::type_object::PyTypeInfo;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // NumPy's API tables are loaded now: later, a signal handler could run during the load. The first call imports
        // NumPy, and raises if that fails.
        overlap::load_numpy(module.py())?;
        ndarray_type::load_numpy(module.py());
        // fastclip's own types are created now: later, memory could run out.
        output::Buffer::type_object(module.py());
        let nonfinite_error = raise::NonFiniteError::type_object(module.py());
        nonfinite_error.setattr("norms", module.py().None())?;
        // For the same reason, the handle of the main thread is created now: it needs one to wait for other threads.
        drop(std::thread::current());
        // The environment is read now: later, another thread could be changing it.
        let _ = isa::current();
        threads::read_environment();
        if !process::count_forks() {
            return Err(PyErr::new::<PyMemoryError, _>("fastclip cannot register a handler of forks"));
        }
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
