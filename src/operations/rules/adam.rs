//! m ← m + (g − m)(1 − β₁); v ← v + (g² − v)(1 − β₂); w ← w − α·m/(√v + ε), α = lr·√(1 − β₂ᵗ)/(1 − β₁ᵗ).
//!
//! Kingma and Ba, "Adam: a method for stochastic optimization", 2015: the form before their section 2.1, whose ε is
//! "epsilon hat", as TensorFlow has it.

use super::{Rule, expect};
use crate::kernels::lanes::{Lanes, Real};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Adam<R> {
    step: R,
    rate1: R,
    rate2: R,
    epsilon: R,
}

impl<R: Real> Rule<R, 2> for Adam<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, beta1, beta2, epsilon, beta1_power, beta2_power] = expect(hyper);
        Self {
            step: R::from_f64(learning_rate * (1.0 - beta2_power).sqrt() / (1.0 - beta1_power)),
            rate1: R::from_f64(1.0 - beta1),
            rate2: R::from_f64(1.0 - beta2),
            epsilon: R::from_f64(epsilon),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [m, v]: [V; 2]) -> (V, [V; 2]) {
        let m = m + (g - m) * self.rate1;
        let v = v + (g * g - v) * self.rate2;
        (w - m * self.step / (v.sqrt() + self.epsilon), [m, v])
    }
}
