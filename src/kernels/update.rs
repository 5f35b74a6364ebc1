//! Update: applies an optimizer's rule to slices of a gradient g, a variable w and its slots.
//!
//! - Formula: `w[i], slots[i] ← rule(g[i]·factor, w[i], slots[i])`, in place; the rules are in `operations/rules`. No
//!   sums.
//! - Error: ½ ulp for each operation of the rule (`lanes.rs`); coefficients are rounded once from float64.
//! - Bits: every element is computed by the same operations, in a vector register or by itself at the end of the
//!   slice, and none is fused, so the bits do not depend on the level. A NaN result has the bits of
//!   [`Float::NAN`](super::Float::NAN), because which of two NaNs an operation returns, and the sign of the NaN of ∞
//!   − ∞, depend on the processor and on the order of the operands.

use super::lanes::{Lanes, Real};
use fearless_simd::{Level, Simd, dispatch};

/// Update rule of an optimizer, for one element of a variable that has `N` slots.
pub trait Rule<R: Real, const N: usize>: Copy + Send + Sync {
    /// Returns the rule with these hyper-parameters, in the order of `RuleKind::hyper`.
    fn new(hyper: &[f64]) -> Self;

    /// Returns the variable and its slots after a step with the gradient `g`.
    fn update<V: Lanes<R>>(self, g: V, w: V, slots: [V; N]) -> (V, [V; N]);
}

/// Computes `w[i], slots[i] ← rule(g[i]·factor, w[i], slots[i])`. All slices have the same length.
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
    let tail = len - len % R::LANES;
    for at in (0..tail).step_by(R::LANES) {
        let lanes = at..at + R::LANES;
        let scaled = R::load(simd, &g[lanes.clone()]) * factor;
        // A loop in place of `array::from_fn`, which need not be inlined with a closure that uses vectors.
        let mut before = [scaled; N];
        for k in 0..N {
            before[k] = R::load(simd, &slots[k][lanes.clone()]);
        }
        let (value, after) = rule.update(scaled, R::load(simd, &w[lanes.clone()]), before);
        R::store(value.canonical(), &mut w[lanes.clone()]);
        for k in 0..N {
            R::store(after[k].canonical(), &mut slots[k][lanes.clone()]);
        }
    }
    for at in tail..len {
        let before = std::array::from_fn(|k| slots[k][at]);
        let (value, after) = rule.update(g[at] * factor, w[at], before);
        w[at] = value.canonical();
        for k in 0..N {
            slots[k][at] = after[k].canonical();
        }
    }
}
