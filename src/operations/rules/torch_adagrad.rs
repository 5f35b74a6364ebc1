//! Adagrad as PyTorch computes it: a ← a + g²; w ← w − lr/(1 + (t − 1)·`lr_decay`)·g/(√a + ε). Before that, the decay is
//! added to the gradient, which `maximize` negates. PyTorch, `torch.optim.Adagrad`. Slot: a.

use super::weight_decay::DecayedGradient;
use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of PyTorch's Adagrad.
#[derive(Clone, Copy, Debug)]
pub struct TorchAdagrad<R> {
    gradient: DecayedGradient<R>,
    step_size: R,
    epsilon: R,
}

impl<R: Real> Rule<R, 1> for TorchAdagrad<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, lr_decay, weight_decay, epsilon, maximize, step] = hyper_parameters(hyper);
        Self {
            gradient: DecayedGradient::coupled(weight_decay, maximize),
            step_size: R::from_f64(learning_rate / (1.0 + (step - 1.0) * lr_decay)),
            epsilon: R::from_f64(epsilon),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [a]: [V; 1]) -> (V, [V; 1]) {
        let (g, w) = self.gradient.decayed(g, w);
        let a = a + g * g;
        (w - g * self.step_size / (a.sqrt() + self.epsilon), [a])
    }
}
