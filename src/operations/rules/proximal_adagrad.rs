//! Proximal Adagrad: a ← a + g²; η = lr/√a; v = w − η·g; w ← sign(v)·max(|v| − η·l1, 0)/(1 + η·l2).
//!
//! The update of `proximal_gradient_descent.rs` with the learning rates of `adagrad.rs`. Slot: a.

use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of proximal Adagrad.
#[derive(Clone, Copy, Debug)]
pub struct ProximalAdagrad<R> {
    learning_rate: R,
    l1: R,
    l2: R,
    one: R,
}

impl<R: Real> Rule<R, 1> for ProximalAdagrad<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, l1, l2] = hyper_parameters(hyper);
        Self {
            learning_rate: R::from_f64(learning_rate),
            l1: R::from_f64(l1),
            l2: R::from_f64(l2),
            one: R::from_f64(1.0),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [a]: [V; 1]) -> (V, [V; 1]) {
        let a = a + g * g;
        let rate = a.broadcast(self.learning_rate) / a.sqrt();
        let w = (w - g * rate).shrink(rate * self.l1) / (rate * self.l2 + self.one);
        (w, [a])
    }
}
