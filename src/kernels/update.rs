//! An optimizer's rule carried over slices: g is scaled on the way in, w and the slots change where they are.
//!
//! What becomes NaN has the bits of [`Float::NAN`](super::Float::NAN). Which of two NaNs an operation passes on, and
//! the sign of that of ∞ − ∞, depend on the processor and on how operands are arranged.

use super::lanes::{Lanes, Real};
use fearless_simd::{Level, Simd, dispatch};

/// The update rule of an optimizer, for one element of a variable that has `N` slots.
pub trait Rule<R: Real, const N: usize>: Copy + Send + Sync {
    /// The rule with these hyper-parameters, in the order in which the rule lists them.
    fn new(hyper: &[f64]) -> Self;

    /// Returns the variable and its slots after a step with gradient `g`.
    fn update<V: Lanes<R>>(self, g: V, w: V, slots: [V; N]) -> (V, [V; N]);
}

/// `w[i], slots[i] ← rule(g[i]·factor, w[i], slots[i])`. All slices have the same length.
pub fn update<R: Real, K: Rule<R, N>, const N: usize>(
    level: Level,
    rule: K,
    factor: R,
    g: &[R],
    w: &mut [R],
    slots: [&mut [R]; N],
) {
    dispatch!(level, simd => update_on(simd, rule, factor, g, w, slots));
}

#[inline(always)]
fn update_on<S: Simd, R: Real, K: Rule<R, N>, const N: usize>(
    simd: S,
    rule: K,
    factor: R,
    g: &[R],
    w: &mut [R],
    slots: [&mut [R]; N],
) {
    let len = w.len();
    let g = &g[..len];
    let slots = slots.map(|slot| &mut slot[..len]);
    let whole = len - len % R::LANES;
    for at in (0..whole).step_by(R::LANES) {
        let lanes = at..at + R::LANES;
        let scaled = R::load(simd, &g[lanes.clone()]) * factor;
        let before = std::array::from_fn(|k| R::load(simd, &slots[k][lanes.clone()]));
        let (value, after) = rule.update(scaled, R::load(simd, &w[lanes.clone()]), before);
        R::store(value.canonical(), &mut w[lanes.clone()]);
        for k in 0..N {
            R::store(after[k].canonical(), &mut slots[k][lanes.clone()]);
        }
    }
    for at in whole..len {
        let before = std::array::from_fn(|k| slots[k][at]);
        let (value, after) = rule.update(g[at] * factor, w[at], before);
        w[at] = value.canonical();
        for k in 0..N {
            slots[k][at] = after[k].canonical();
        }
    }
}
