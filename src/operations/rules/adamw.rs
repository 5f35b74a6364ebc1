//! `AdamW`: w ← w − lr·decay·w, then the update of [`Adam`].
//!
//! Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, with the decay multiplied by the learning
//! rate, as in PyTorch. Slots: those of Adam.

use super::adam::Adam;
use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of `AdamW`.
#[derive(Clone, Copy, Debug)]
pub struct AdamW<R> {
    adam: Adam<R>,
    decay: R,
}

impl<R: Real> Rule<R, 2> for AdamW<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, _, _, _, _, _, weight_decay] = hyper_parameters(hyper);
        Self { adam: Adam::new(hyper), decay: R::from_f64(learning_rate * weight_decay) }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, slots: [V; 2]) -> (V, [V; 2]) {
        self.adam.update(g, w - w * self.decay, slots)
    }
}

#[cfg(feature = "gpu")]
impl AdamW<f32> {
    /// The coefficients in the order of the WGSL file.
    pub fn coefficients(self) -> Vec<f32> {
        let mut coefficients = self.adam.coefficients();
        coefficients.push(self.decay);
        coefficients
    }
}
