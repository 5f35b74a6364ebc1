//! Adam and `AdamW` as PyTorch computes them: m ← β₁·m + (1 − β₁)·g; v ← β₂·v + (1 − β₂)·g²;
//! w ← w − lr/(1 − β₁ᵗ)·m/(√v/√(1 − β₂ᵗ) + ε). The ε stands outside the bias correction, unlike that of [`Adam`](super::adam).
//!
//! Before that, the decay is added to the gradient, g ← g + decay·w, or with `decoupled` subtracted from the variable,
//! w ← w·(1 − lr·decay). With `maximize` the gradient is negated first. PyTorch, `torch.optim.Adam` and
//! `torch.optim.AdamW`. Slots: m, v.

use super::weight_decay::DecayedGradient;
use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of PyTorch's Adam and `AdamW`.
#[derive(Clone, Copy, Debug)]
pub struct TorchAdam<R> {
    gradient: DecayedGradient<R>,
    step_size: R,
    beta1: R,
    beta2: R,
    one_minus_beta1: R,
    one_minus_beta2: R,
    inverse_correction: R,
    epsilon: R,
}

impl<R: Real> TorchAdam<R> {
    /// Returns gradient and variable after the decay.
    #[inline(always)]
    pub fn decayed<V: Lanes<R>>(self, g: V, w: V) -> (V, V) {
        self.gradient.decayed(g, w)
    }

    /// Returns the moments after a step.
    #[inline(always)]
    pub fn moments<V: Lanes<R>>(self, g: V, m: V, v: V) -> (V, V) {
        (m * self.beta1 + g * self.one_minus_beta1, v * self.beta2 + g * g * self.one_minus_beta2)
    }

    /// Returns the variable after a step along the first moment `m`, divided by the root of the second moment `v`.
    #[inline(always)]
    pub fn variable<V: Lanes<R>>(self, w: V, m: V, v: V) -> V {
        w - m * self.step_size / (v.sqrt() * self.inverse_correction + self.epsilon)
    }
}

impl<R: Real> Rule<R, 2> for TorchAdam<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, beta1, beta2, epsilon, weight_decay, decoupled, maximize, beta1_power, beta2_power] =
            hyper_parameters(hyper);
        let gradient = if decoupled == 0.0 {
            DecayedGradient::coupled(weight_decay, maximize)
        } else {
            DecayedGradient::decoupled(learning_rate * weight_decay, maximize)
        };
        Self {
            gradient,
            step_size: R::from_f64(learning_rate / (1.0 - beta1_power)),
            beta1: R::from_f64(beta1),
            beta2: R::from_f64(beta2),
            one_minus_beta1: R::from_f64(1.0 - beta1),
            one_minus_beta2: R::from_f64(1.0 - beta2),
            inverse_correction: R::from_f64(1.0 / (1.0 - beta2_power).sqrt()),
            epsilon: R::from_f64(epsilon),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [m, v]: [V; 2]) -> (V, [V; 2]) {
        let (g, w) = self.decayed(g, w);
        let (m, v) = self.moments(g, m, v);
        (self.variable(w, m, v), [m, v])
    }
}
