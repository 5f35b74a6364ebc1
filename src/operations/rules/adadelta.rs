//! Adadelta: a ← ρa + (1 − ρ)g²; u = √(d + ε)/√(a + ε)·g; w ← w − lr·u; d ← ρd + (1 − ρ)u²
//!
//! Zeiler, "ADADELTA: an adaptive learning rate method", 2012. Slots: a, d.

use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of Adadelta.
#[derive(Clone, Copy, Debug)]
pub struct Adadelta<R> {
    learning_rate: R,
    rho: R,
    one_minus_rho: R,
    epsilon: R,
}

impl<R: Real> Rule<R, 2> for Adadelta<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, rho, epsilon] = hyper_parameters(hyper);
        Self {
            learning_rate: R::from_f64(learning_rate),
            rho: R::from_f64(rho),
            one_minus_rho: R::from_f64(1.0 - rho),
            epsilon: R::from_f64(epsilon),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [a, d]: [V; 2]) -> (V, [V; 2]) {
        let a = a * self.rho + g * g * self.one_minus_rho;
        let u = (d + self.epsilon).sqrt() / (a + self.epsilon).sqrt() * g;
        let d = d * self.rho + u * u * self.one_minus_rho;
        (w - u * self.learning_rate, [a, d])
    }
}
