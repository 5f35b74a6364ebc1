//! G ← G + g; Q ← Q + g²; w ← −lr·sign(G)·max(|G| − l1·T, 0)/(l2·T·lr + √Q), T the number of the step.
//!
//! Dual averaging: section 1.2 of Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and
//! stochastic optimization", 2011. What the variable was does not matter.

use super::{Rule, expect};
use crate::kernels::lanes::{Lanes, Real};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct AdagradDA<R> {
    rate: R,
    threshold: R,
    ridge: R,
}

impl<R: Real> Rule<R, 2> for AdagradDA<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, l1, l2, step] = expect(hyper);
        Self {
            rate: R::from_f64(-learning_rate),
            threshold: R::from_f64(l1 * step),
            ridge: R::from_f64(l2 * step * learning_rate),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, _: V, [sum, squares]: [V; 2]) -> (V, [V; 2]) {
        let sum = sum + g;
        let squares = squares + g * g;
        let w = sum.shrink(self.threshold) * self.rate / (squares.sqrt() + self.ridge);
        (w, [sum, squares])
    }
}
