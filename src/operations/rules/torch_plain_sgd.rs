//! Gradient descent without momentum as PyTorch computes it: w ← w − lr·g. Before that, the decay is added to the
//! gradient, which `maximize` negates. PyTorch, `torch.optim.SGD`. No slots.

use super::weight_decay::DecayedGradient;
use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of PyTorch's SGD without momentum.
#[derive(Clone, Copy, Debug)]
pub struct TorchPlainSgd<R> {
    gradient: DecayedGradient<R>,
    learning_rate: R,
}

impl<R: Real> Rule<R, 0> for TorchPlainSgd<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, weight_decay, maximize] = hyper_parameters(hyper);
        Self {
            gradient: DecayedGradient::coupled(weight_decay, maximize),
            learning_rate: R::from_f64(learning_rate),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, []: [V; 0]) -> (V, [V; 0]) {
        let (g, w) = self.gradient.decayed(g, w);
        (w - g * self.learning_rate, [])
    }
}
