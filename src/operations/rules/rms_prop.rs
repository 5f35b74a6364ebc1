//! `RMSProp`: s ← s + (g² − s)(1 − ρ); m ← μm + lr·g/√(s + ε); w ← w − m.
//!
//! Tieleman and Hinton, "Lecture 6.5: rmsprop", 2012, with momentum and ε under the root, as in TensorFlow.
//! Slots: s, m.

use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of `RMSProp`.
#[derive(Clone, Copy, Debug)]
pub struct RmsProp<R> {
    learning_rate: R,
    one_minus_decay: R,
    momentum: R,
    epsilon: R,
}

impl<R: Real> Rule<R, 2> for RmsProp<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, decay, momentum, epsilon] = hyper_parameters(hyper);
        Self {
            learning_rate: R::from_f64(learning_rate),
            one_minus_decay: R::from_f64(1.0 - decay),
            momentum: R::from_f64(momentum),
            epsilon: R::from_f64(epsilon),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [s, m]: [V; 2]) -> (V, [V; 2]) {
        let s = s + (g * g - s) * self.one_minus_decay;
        let m = m * self.momentum + g * self.learning_rate / (s + self.epsilon).sqrt();
        (w - m, [s, m])
    }
}
