//! `AMSGrad` as PyTorch computes it: as in `torch_adam.rs`, with the largest second moment so far, u ← max(u, v), in place
//! of v: w ← w − lr/(1 − β₁ᵗ)·m/(√u/√(1 − β₂ᵗ) + ε).
//! Reddi, Kale, Kumar, "On the convergence of Adam and beyond", 2018; PyTorch, `torch.optim.Adam`. Slots: m, v, u.

use super::torch_adam::TorchAdam;
use super::Rule;
use crate::kernels::lanes::{Lanes, Real};

/// The rule of PyTorch's Adam and `AdamW` with `amsgrad`.
#[derive(Clone, Copy, Debug)]
pub struct TorchAmsGrad<R>(TorchAdam<R>);

impl<R: Real> Rule<R, 3> for TorchAmsGrad<R> {
    fn new(hyper: &[f64]) -> Self {
        Self(TorchAdam::new(hyper))
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [m, v, u]: [V; 3]) -> (V, [V; 3]) {
        let (g, w) = self.0.decayed(g, w);
        let (m, v) = self.0.moments(g, m, v);
        let u = u.max(v);
        (self.0.variable(w, m, u), [m, v, u])
    }
}
