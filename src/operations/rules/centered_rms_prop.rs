//! s ← s + (g² − s)(1 − ρ); c ← c + (g − c)(1 − ρ); m ← μm + lr·g/√(s − c² + ε); w ← w − m
//!
//! As `rms_prop.rs`, with the variance of the gradient in place of its second moment: Graves, "Generating sequences
//! with recurrent neural networks", 2013, equations 38 to 41. The slots are s, m, c.

use super::{Rule, expect};
use crate::kernels::lanes::{Lanes, Real};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct CenteredRmsProp<R> {
    learning_rate: R,
    rate: R,
    momentum: R,
    epsilon: R,
}

impl<R: Real> Rule<R, 3> for CenteredRmsProp<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, decay, momentum, epsilon] = expect(hyper);
        Self {
            learning_rate: R::from_f64(learning_rate),
            rate: R::from_f64(1.0 - decay),
            momentum: R::from_f64(momentum),
            epsilon: R::from_f64(epsilon),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [s, m, c]: [V; 3]) -> (V, [V; 3]) {
        let s = s + (g * g - s) * self.rate;
        let c = c + (g - c) * self.rate;
        let m = m * self.momentum + g * self.learning_rate / (s - c * c + self.epsilon).sqrt();
        (w - m, [s, m, c])
    }
}
