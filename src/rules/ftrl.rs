//! g′ = g + 2·shrinkage·w; n′ = n + g²; z ← z + g′ − (n′^p − n^p)/lr·w; w ← −sign(z)·max(|z| − l1, 0)/(n′^p/lr + 2·l2′),
//! with p = −`learning_rate_power` and l2′ = l2 + beta/(2·lr).
//!
//! McMahan and others, "Ad click prediction: a view from the trenches", 2013, with TensorFlow's power, shrinkage and
//! beta. The slots are n, z.

use super::{Rule, expect};
use crate::kernels::lanes::{Lanes, Real};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Ftrl<R> {
    inverse_rate: R,
    power: R,
    l1: R,
    ridge: R,
    shrinkage: R,
    is_root: bool,
}

impl<R: Real> Rule<R, 2> for Ftrl<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, learning_rate_power, l1, l2, l2_shrinkage, beta] = expect(hyper);
        Self {
            inverse_rate: R::from_f64(1.0 / learning_rate),
            power: R::from_f64(-learning_rate_power),
            l1: R::from_f64(l1),
            ridge: R::from_f64(2.0 * l2 + beta / learning_rate),
            shrinkage: R::from_f64(2.0 * l2_shrinkage),
            is_root: learning_rate_power == -0.5,
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [n, z]: [V; 2]) -> (V, [V; 2]) {
        let raised = |n: V| if self.is_root { n.sqrt() } else { n.powf(self.power) };
        let after = n + g * g;
        let (before_raised, after_raised) = (raised(n), raised(after));
        let z = z + (g + w * self.shrinkage) - (after_raised - before_raised) * self.inverse_rate * w;
        let w = -z.shrink(self.l1) / (after_raised * self.inverse_rate + self.ridge);
        (w, [after, z])
    }
}
