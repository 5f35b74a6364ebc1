//! How the gradients of a step are scaled and clipped before the rule is applied.

use crate::allocation::{OutOfMemory, collect, filled};
use crate::error::Error;
use crate::kernels::scale::Factor;
use crate::operations::magnitude::{Magnitude, Order, combine};
use crate::operations::update::GradientTransform;
use crate::py::call::entry_that_reads;
use pyo3::prelude::*;

/// The clipping method, with its bound.
#[derive(Clone, Copy, PartialEq)]
enum Clip {
    None,
    Value(f64),
    Norm(f64),
    GlobalNorm(f64),
}

impl Clip {
    fn new(name: &str, bound: f64) -> Result<Self, Error> {
        match name {
            "none" => Ok(Self::None),
            "value" => Ok(Self::Value(bound)),
            "norm" => Ok(Self::Norm(bound)),
            "global_norm" => Ok(Self::GlobalNorm(bound)),
            _ => Err(Error::Value(format!(
                "clip is {name:?}; it takes \"none\", \"value\", \"norm\" or \"global_norm\""
            ))),
        }
    }
}

/// What a step does if a gradient holds NaN or infinity.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NonFinitePolicy {
    /// The step is taken.
    Propagate,
    /// The step raises.
    Raise,
    /// The step is skipped and counted.
    Skip,
}

impl NonFinitePolicy {
    fn new(name: &str) -> Result<Self, Error> {
        match name {
            "propagate" => Ok(Self::Propagate),
            "raise" => Ok(Self::Raise),
            "skip" => Ok(Self::Skip),
            _ => Err(Error::Value(format!(
                "on_nonfinite is {name:?}; it takes \"propagate\", \"raise\" or \"skip\""
            ))),
        }
    }
}

/// The gradient options of an optimizer: how gradients are clipped, and the policy for NaN and infinity.
#[pyclass(frozen, module = "fastclip._core")]
pub struct GradientClipping {
    clip: Clip,
    policy: NonFinitePolicy,
}

#[pymethods]
impl GradientClipping {
    /// `clip` is "none", "value", "norm" or `"global_norm"`, and `bound` the bound on the elements or the norm.
    #[new]
    fn new(py: Python<'_>, clip: &str, bound: f64, on_nonfinite: &str) -> PyResult<Self> {
        entry_that_reads(py, || {
            Ok(Self { clip: Clip::new(clip, bound)?, policy: NonFinitePolicy::new(on_nonfinite)? })
        })
    }
}

/// The decision whether a step is taken, and how it transforms the gradients.
pub struct Decision {
    /// The transform of each gradient; None if the step must not be taken.
    pub transforms: Option<Vec<GradientTransform>>,
    /// The magnitude of all gradients together; None if they were not measured.
    pub total: Option<Magnitude>,
}

impl GradientClipping {
    /// The policy for NaN and infinity.
    pub fn policy(&self) -> NonFinitePolicy {
        self.policy
    }

    /// Whether the decision depends on the norms of the gradients.
    pub fn needs_norms(&self) -> bool {
        self.policy != NonFinitePolicy::Propagate || matches!(self.clip, Clip::Norm(_) | Clip::GlobalNorm(_))
    }

    /// Decides whether the step is taken, and computes the transforms of `count` gradients, which include the division
    /// by `loss_scale`. `magnitudes` are those of the undivided gradients; they are not used unless norms are needed.
    pub fn decide(
        &self,
        loss_scale: f64,
        magnitudes: &[Magnitude],
        count: usize,
    ) -> Result<Decision, OutOfMemory> {
        let factor = if loss_scale == 1.0 { Factor::ONE } else { Factor::new(1.0, loss_scale, 0) };
        let unclipped = GradientTransform { factor, clamp: None };
        let clamped = |bound| GradientTransform { clamp: Some(bound), ..unclipped };
        if !self.needs_norms() {
            let transform = if let Clip::Value(bound) = self.clip { clamped(bound) } else { unclipped };
            return Ok(Decision { transforms: Some(filled(transform, count)?), total: None });
        }
        let total = combine(magnitudes, Order::Two);
        if !total.is_finite() && self.policy != NonFinitePolicy::Propagate {
            return Ok(Decision { transforms: None, total: Some(total) });
        }
        // The undivided norm is compared with the bound times the loss scale, because the factor multiplies undivided
        // gradients.
        let bounded = |magnitude: &Magnitude, bound: f64| {
            let (root, exponent) = magnitude.root(Order::Two);
            let factor = if !magnitude.is_finite() {
                Factor::NAN
            } else if magnitude.factor(Order::Two, 1.0, bound * loss_scale).is_some() {
                Factor::new(bound, root, exponent)
            } else {
                unclipped.factor
            };
            GradientTransform { factor, clamp: None }
        };
        let transforms = match self.clip {
            Clip::None => filled(unclipped, count)?,
            Clip::Value(bound) => filled(clamped(bound), count)?,
            Clip::Norm(bound) => collect(magnitudes.iter().map(|magnitude| bounded(magnitude, bound)))?,
            Clip::GlobalNorm(bound) => filled(bounded(&total, bound), count)?,
        };
        Ok(Decision { transforms: Some(transforms), total: Some(total) })
    }
}
