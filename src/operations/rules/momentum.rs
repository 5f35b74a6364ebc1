//! Momentum: a ← μa + g; w ← w − lr·a, or with Nesterov's momentum w ← w − (lr·g + lr·μ·a).
//!
//! Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", 2013, in
//! TensorFlow's form, which looks ahead with the updated accumulator. Slot: a.

use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of gradient descent with momentum.
#[derive(Clone, Copy, Debug)]
pub struct Momentum<R> {
    learning_rate: R,
    mu: R,
    nesterov_coefficient: R,
    use_nesterov: bool,
}

impl<R: Real> Rule<R, 1> for Momentum<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, momentum, use_nesterov] = hyper_parameters(hyper);
        Self {
            learning_rate: R::from_f64(learning_rate),
            mu: R::from_f64(momentum),
            nesterov_coefficient: R::from_f64(learning_rate * momentum),
            use_nesterov: use_nesterov != 0.0,
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [a]: [V; 1]) -> (V, [V; 1]) {
        let a = a * self.mu + g;
        let step = if self.use_nesterov {
            g * self.learning_rate + a * self.nesterov_coefficient
        } else {
            a * self.learning_rate
        };
        (w - step, [a])
    }
}

#[cfg(feature = "gpu")]
impl Momentum<f32> {
    /// The coefficients in the order of the WGSL file.
    pub fn coefficients(self) -> Vec<f32> {
        let use_nesterov = f32::from(u8::from(self.use_nesterov));
        vec![self.learning_rate, self.mu, self.nesterov_coefficient, use_nesterov]
    }
}
