//! Gradient descent: w ← w − lr·g. No slots.

use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of gradient descent.
#[derive(Clone, Copy, Debug)]
pub struct GradientDescent<R> {
    learning_rate: R,
}

impl<R: Real> Rule<R, 0> for GradientDescent<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate] = hyper_parameters(hyper);
        Self { learning_rate: R::from_f64(learning_rate) }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, []: [V; 0]) -> (V, [V; 0]) {
        (w - g * self.learning_rate, [])
    }
}

#[cfg(feature = "gpu")]
impl GradientDescent<f32> {
    /// The coefficients in the order of the WGSL file.
    pub fn coefficients(self) -> Vec<f32> {
        vec![self.learning_rate]
    }
}
