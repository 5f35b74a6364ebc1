//! Proximal gradient descent: v = w − lr·g; w ← sign(v)·max(|v| − lr·l1, 0)/(1 + lr·l2).
//!
//! Duchi and Singer, "Efficient learning using forward-backward splitting", 2009. No slots.

use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of proximal gradient descent.
#[derive(Clone, Copy, Debug)]
pub struct ProximalGradientDescent<R> {
    learning_rate: R,
    threshold: R,
    divisor: R,
}

impl<R: Real> Rule<R, 0> for ProximalGradientDescent<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, l1, l2] = hyper_parameters(hyper);
        Self {
            learning_rate: R::from_f64(learning_rate),
            threshold: R::from_f64(learning_rate * l1),
            divisor: R::from_f64(1.0 + learning_rate * l2),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, []: [V; 0]) -> (V, [V; 0]) {
        ((w - g * self.learning_rate).shrink(self.threshold) / self.divisor, [])
    }
}
