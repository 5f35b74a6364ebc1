//! Weight decay and maximisation, which come before the rules of PyTorch.

use crate::kernels::lanes::{Lanes, Real};

/// What is done with a gradient and its variable before a rule.
#[derive(Clone, Copy, Debug)]
pub struct DecayedGradient<R> {
    /// The multiple of the variable that is added to the gradient; 0 for nothing.
    coupled: R,
    /// What the variable is multiplied by: 1 less the decay, rounded once, as in PyTorch.
    kept: R,
    /// Whether the gradient is negated first.
    maximize: bool,
}

impl<R: Real> DecayedGradient<R> {
    /// Adds the decay to the gradient. `maximize` is 0 for false.
    pub fn coupled(decay: f64, maximize: f64) -> Self {
        Self { coupled: R::from_f64(decay), kept: R::from_f64(1.0), maximize: maximize != 0.0 }
    }

    /// Subtracts the decay from the variable. `maximize` is 0 for false.
    pub fn decoupled(decay: f64, maximize: f64) -> Self {
        Self { coupled: R::from_f64(0.0), kept: R::from_f64(1.0 - decay), maximize: maximize != 0.0 }
    }

    /// Returns gradient and variable after the decay. A decay of 0 changes nothing, even if the variable is infinite.
    #[inline(always)]
    pub fn decayed<V: Lanes<R>>(self, g: V, w: V) -> (V, V) {
        let g = if self.maximize { -g } else { g };
        let g = if self.coupled == R::from_f64(0.0) { g } else { g + w * self.coupled };
        (g, w * self.kept)
    }
}
