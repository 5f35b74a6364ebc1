//! Centered `RMSProp`: s ← s + (g² − s)(1 − ρ); c ← c + (g − c)(1 − ρ); m ← μm + lr·g/√(s − c² + ε);
//! w ← w − m.
//!
//! As `rms_prop.rs`, with the variance of the gradient instead of its second moment: Graves, "Generating sequences
//! with recurrent neural networks", 2013, equations 38 to 41. Slots: s, m, c.

use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of centered `RMSProp`.
#[derive(Clone, Copy, Debug)]
pub struct CenteredRmsProp<R> {
    learning_rate: R,
    one_minus_decay: R,
    momentum: R,
    epsilon: R,
}

impl<R: Real> Rule<R, 3> for CenteredRmsProp<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, decay, momentum, epsilon] = hyper_parameters(hyper);
        Self {
            learning_rate: R::from_f64(learning_rate),
            one_minus_decay: R::from_f64(1.0 - decay),
            momentum: R::from_f64(momentum),
            epsilon: R::from_f64(epsilon),
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [s, m, c]: [V; 3]) -> (V, [V; 3]) {
        let s = s + (g * g - s) * self.one_minus_decay;
        let c = c + (g - c) * self.one_minus_decay;
        let m = m * self.momentum + g * self.learning_rate / (s - c * c + self.epsilon).sqrt();
        (w - m, [s, m, c])
    }
}
