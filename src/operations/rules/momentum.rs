//! a ← μa + g; w ← w − lr·a, or with Nesterov's rule w − (lr·g + lr·μ·a).
//!
//! Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", 2013, in
//! TensorFlow's form, which looks ahead by the new accumulator.

use super::{Rule, expect};
use crate::kernels::lanes::{Lanes, Real};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Momentum<R> {
    learning_rate: R,
    decay: R,
    ahead: R,
    use_nesterov: bool,
}

impl<R: Real> Rule<R, 1> for Momentum<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, momentum, use_nesterov] = expect(hyper);
        Self {
            learning_rate: R::from_f64(learning_rate),
            decay: R::from_f64(momentum),
            ahead: R::from_f64(learning_rate * momentum),
            use_nesterov: use_nesterov != 0.0,
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [a]: [V; 1]) -> (V, [V; 1]) {
        let a = a * self.decay + g;
        let step = if self.use_nesterov {
            g * self.learning_rate + a * self.ahead
        } else {
            a * self.learning_rate
        };
        (w - step, [a])
    }
}
