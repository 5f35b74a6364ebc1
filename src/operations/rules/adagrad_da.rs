//! Adagrad with dual averaging: G ← G + g; Q ← Q + g²; w ← −lr·sign(G)·max(|G| − l1·T, 0)/(l2·T·lr + √Q), where T is
//! the number of the step. The previous value of the variable does not enter.
//!
//! Section 1.2 of Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic
//! optimization", 2011. Slots: G, Q.

use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of Adagrad with dual averaging.
#[derive(Clone, Copy, Debug)]
pub struct AdagradDA<R> {
    negative_learning_rate: R,
    threshold: R,
    l2_term: R,
}

impl<R: Real> Rule<R, 2> for AdagradDA<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, l1, l2, step] = hyper_parameters(hyper);
        Self {
            negative_learning_rate: R::from_f64(-learning_rate),
            threshold: R::from_f64(l1 * step),
            l2_term: R::from_f64(l2 * step * learning_rate),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, _: V, [sum, squares]: [V; 2]) -> (V, [V; 2]) {
        let sum = sum + g;
        let squares = squares + g * g;
        let w = sum.shrink(self.threshold) * self.negative_learning_rate / (squares.sqrt() + self.l2_term);
        (w, [sum, squares])
    }
}
