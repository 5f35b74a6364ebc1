//! Adam: m ← m + (g − m)(1 − β₁); v ← v + (g² − v)(1 − β₂); w ← w − α·m/(√v + ε), α = lr·√(1 − β₂ᵗ)/(1 − β₁ᵗ).
//!
//! Kingma and Ba, "Adam: a method for stochastic optimization", 2015, in the form before section 2.1, whose ε is
//! "epsilon hat", as in TensorFlow. Slots: m, v.

use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of Adam.
#[derive(Clone, Copy, Debug)]
pub struct Adam<R> {
    step_size: R,
    one_minus_beta1: R,
    one_minus_beta2: R,
    epsilon: R,
}

impl<R: Real> Rule<R, 2> for Adam<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, beta1, beta2, epsilon, beta1_power, beta2_power] = hyper_parameters(hyper);
        Self {
            step_size: R::from_f64(learning_rate * (1.0 - beta2_power).sqrt() / (1.0 - beta1_power)),
            one_minus_beta1: R::from_f64(1.0 - beta1),
            one_minus_beta2: R::from_f64(1.0 - beta2),
            epsilon: R::from_f64(epsilon),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [m, v]: [V; 2]) -> (V, [V; 2]) {
        let m = m + (g - m) * self.one_minus_beta1;
        let v = v + (g * g - v) * self.one_minus_beta2;
        (w - m * self.step_size / (v.sqrt() + self.epsilon), [m, v])
    }
}

#[cfg(feature = "gpu")]
impl Adam<f32> {
    /// The coefficients in the order of the WGSL file.
    pub fn coefficients(self) -> Vec<f32> {
        vec![self.step_size, self.one_minus_beta1, self.one_minus_beta2, self.epsilon]
    }
}
