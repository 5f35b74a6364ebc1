//! Gradient descent with momentum as PyTorch computes it: a ← μ·a + (1 − dampening)·g; w ← w − lr·a, or with Nesterov's
//! momentum w ← w − lr·(g + μ·a). Before that, the decay is added to the gradient, which `maximize` negates.
//! PyTorch, `torch.optim.SGD`. At the first step of a variable, a is 0 and the dampening does not apply. Slot: a.

use super::weight_decay::DecayedGradient;
use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of PyTorch's SGD with momentum.
#[derive(Clone, Copy, Debug)]
pub struct TorchSgd<R> {
    gradient: DecayedGradient<R>,
    learning_rate: R,
    momentum: R,
    one_minus_dampening: R,
    nesterov: bool,
}

impl<R: Real> Rule<R, 1> for TorchSgd<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, momentum, dampening, weight_decay, nesterov, maximize] = hyper_parameters(hyper);
        Self {
            gradient: DecayedGradient::coupled(weight_decay, maximize),
            learning_rate: R::from_f64(learning_rate),
            momentum: R::from_f64(momentum),
            one_minus_dampening: R::from_f64(1.0 - dampening),
            nesterov: nesterov != 0.0,
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [a]: [V; 1]) -> (V, [V; 1]) {
        let (g, w) = self.gradient.decayed(g, w);
        let a = a * self.momentum + g * self.one_minus_dampening;
        let step = if self.nesterov { g + a * self.momentum } else { a };
        (w - step * self.learning_rate, [a])
    }
}
