//! Adagrad: a ← a + g²; w ← w − lr·g/√a.
//!
//! Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic optimization", 2011.
//! Slot: a.

use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of Adagrad.
#[derive(Clone, Copy, Debug)]
pub struct Adagrad<R> {
    learning_rate: R,
}

impl<R: Real> Rule<R, 1> for Adagrad<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate] = hyper_parameters(hyper);
        Self { learning_rate: R::from_f64(learning_rate) }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [a]: [V; 1]) -> (V, [V; 1]) {
        let a = a + g * g;
        (w - g * self.learning_rate / a.sqrt(), [a])
    }
}
