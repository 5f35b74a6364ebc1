//! The rules that graphics processors compute too, in WGSL. `adam.wgsl` is the same formula as `adam.rs`, and a test
//! compares the two; the coefficients come from here, in the order in which the WGSL file names them.

use super::adam::Adam;
use super::adamw::AdamW;
use super::gradient_descent::GradientDescent;
use super::momentum::Momentum;
use super::{Rule, RuleKind};

/// A rule in WGSL.
#[derive(Clone, Copy)]
pub struct DeviceRule {
    /// The name of its function, which takes a gradient and a `State`, and returns the `State` after the step.
    pub function: &'static str,
    /// The text of the function, and of those that it calls.
    pub source: &'static str,
    /// The coefficients of hyper-parameters, given in the order of [`RuleKind::hyper`].
    pub coefficients: fn(&[f64]) -> Vec<f32>,
}

impl RuleKind {
    /// Returns the rule in WGSL, if there is one.
    #[must_use]
    pub const fn on_devices(self) -> Option<DeviceRule> {
        let rule = match self {
            Self::GradientDescent => DeviceRule {
                function: "gradient_descent",
                source: include_str!("gradient_descent.wgsl"),
                coefficients: |hyper| GradientDescent::new(hyper).coefficients(),
            },
            Self::Momentum => DeviceRule {
                function: "momentum",
                source: include_str!("momentum.wgsl"),
                coefficients: |hyper| Momentum::new(hyper).coefficients(),
            },
            Self::Adam => DeviceRule {
                function: "adam",
                source: include_str!("adam.wgsl"),
                coefficients: |hyper| Adam::new(hyper).coefficients(),
            },
            Self::AdamW => DeviceRule {
                function: "adamw",
                source: concat!(include_str!("adam.wgsl"), "\n", include_str!("adamw.wgsl")),
                coefficients: |hyper| AdamW::new(hyper).coefficients(),
            },
            _ => return None,
        };
        Some(rule)
    }
}
