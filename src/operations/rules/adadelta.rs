//! a ← ρa + (1 − ρ)g²; u = √(d + ε)/√(a + ε)·g; w ← w − lr·u; d ← ρd + (1 − ρ)u²
//!
//! Zeiler, "ADADELTA: an adaptive learning rate method", 2012. The slots are a, d.

use super::{Rule, expect};
use crate::kernels::lanes::{Lanes, Real};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Adadelta<R> {
    learning_rate: R,
    rho: R,
    rest: R,
    epsilon: R,
}

impl<R: Real> Rule<R, 2> for Adadelta<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, rho, epsilon] = expect(hyper);
        Self {
            learning_rate: R::from_f64(learning_rate),
            rho: R::from_f64(rho),
            rest: R::from_f64(1.0 - rho),
            epsilon: R::from_f64(epsilon),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [a, d]: [V; 2]) -> (V, [V; 2]) {
        let a = a * self.rho + g * g * self.rest;
        let u = (d + self.epsilon).sqrt() / (a + self.epsilon).sqrt() * g;
        let d = d * self.rho + u * u * self.rest;
        (w - u * self.learning_rate, [a, d])
    }
}
