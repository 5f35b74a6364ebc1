//! The gradient options of an optimizer, as an object that Python creates.

use crate::error::Error;
use crate::operations::gradient_clipping::{Clip, GradientOptions, NonFinitePolicy};
use crate::py::call::entry_that_reads;
use pyo3::prelude::*;

/// The gradient options of an optimizer: how gradients are clipped, and which steps are not taken.
#[pyclass(frozen, module = "fastclip._core")]
pub struct GradientClipping {
    options: GradientOptions,
}

#[pymethods]
impl GradientClipping {
    /// `clip` is "none", "value", "norm" or `"global_norm"`, and `bound` the bound on the elements or the norm. A step
    /// whose gradients have a finite norm above `skip_above` is skipped.
    #[new]
    #[pyo3(signature = (clip, bound, on_nonfinite, skip_above = None))]
    fn new(
        py: Python<'_>,
        clip: &str,
        bound: f64,
        on_nonfinite: &str,
        skip_above: Option<f64>,
    ) -> PyResult<Self> {
        entry_that_reads(py, || {
            let (clip, policy) = (clip_of(clip, bound)?, policy_of(on_nonfinite)?);
            Ok(Self { options: GradientOptions { clip, policy, skip_above } })
        })
    }
}

impl GradientClipping {
    /// The options.
    pub fn options(&self) -> GradientOptions {
        self.options
    }
}

/// Returns the clipping method of this name.
fn clip_of(name: &str, bound: f64) -> Result<Clip, Error> {
    match name {
        "none" => Ok(Clip::None),
        "value" => Ok(Clip::Value(bound)),
        "norm" => Ok(Clip::Norm(bound)),
        "global_norm" => Ok(Clip::GlobalNorm(bound)),
        _ => Err(Error::Value(format!(
            "clip is {name:?}; it takes \"none\", \"value\", \"norm\" or \"global_norm\""
        ))),
    }
}

/// Returns the policy of this name.
pub fn policy_of(name: &str) -> Result<NonFinitePolicy, Error> {
    match name {
        "propagate" => Ok(NonFinitePolicy::Propagate),
        "raise" => Ok(NonFinitePolicy::Raise),
        "skip" => Ok(NonFinitePolicy::Skip),
        _ => Err(Error::Value(format!(
            "on_nonfinite is {name:?}; it takes \"propagate\", \"raise\" or \"skip\""
        ))),
    }
}
