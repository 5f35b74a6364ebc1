//! Lion: w ← w·(1 − lr·decay); w ← w − lr·sign(β₁·m + (1 − β₁)·g); m ← β₂·m + (1 − β₂)·g. With `maximize` the gradient is
//! negated first. Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2. Slot: m.

use super::weight_decay::DecayedGradient;
use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of Lion.
#[derive(Clone, Copy, Debug)]
pub struct Lion<R> {
    gradient: DecayedGradient<R>,
    learning_rate: R,
    beta1: R,
    beta2: R,
    one_minus_beta1: R,
    one_minus_beta2: R,
}

impl<R: Real> Rule<R, 1> for Lion<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, beta1, beta2, weight_decay, maximize] = hyper_parameters(hyper);
        Self {
            gradient: DecayedGradient::decoupled(learning_rate * weight_decay, maximize),
            learning_rate: R::from_f64(learning_rate),
            beta1: R::from_f64(beta1),
            beta2: R::from_f64(beta2),
            one_minus_beta1: R::from_f64(1.0 - beta1),
            one_minus_beta2: R::from_f64(1.0 - beta2),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [m]: [V; 1]) -> (V, [V; 1]) {
        let (g, w) = self.gradient.decayed(g, w);
        let direction = (m * self.beta1 + g * self.one_minus_beta1).sign();
        (w - direction * self.learning_rate, [m * self.beta2 + g * self.one_minus_beta2])
    }
}
