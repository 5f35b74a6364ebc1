//! g′ = g + 2·shrinkage·w; n′ = n + g²; z ← z + g′ − (n′^p − n^p)/lr·w; w ← −sign(z)·max(|z| − l1, 0)/(n′^p/lr + 2·l2′),
//! with p = −`learning_rate_power` and l2′ = l2 + beta/(2·lr). A numerator of 0 gives w = 0 whatever the denominator is:
//! both are 0 for an element that has had no gradient where the accumulator started at 0 and l2′ is 0.
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
        let w = (-z.shrink(self.l1)).over(after_raised * self.inverse_rate + self.ridge);
        (w, [after, z])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::Float;
    use crate::kernels::update::update;

    fn one_step<R: Real>(hyper: &[f64], g: R, w: R, n: R, z: R) -> Vec<[R; 3]> {
        let mut steps = Vec::new();
        for level in isa::all() {
            // Long enough for whole registers and a rest.
            let len = 2 * R::LANES + 3;
            let (g, mut w) = (vec![g; len], vec![w; len]);
            let (mut n, mut z) = (vec![n; len], vec![z; len]);
            let rule = Ftrl::<R>::new(hyper);
            update(level, rule, R::from_f64(1.0), &g, &mut w, [&mut n, &mut z]);
            steps.extend((0..len).map(|i| [w[i], n[i], z[i]]));
        }
        steps
    }

    fn check<R: Real>() {
        let number = R::from_f64;
        for power in [-0.5, -0.25, -1.0] {
            for l1 in [0.0, 0.5] {
                let hyper = [0.1, power, l1, 0.0, 0.0, 0.0];
                for g in [0.0, -0.0] {
                    for step in one_step::<R>(&hyper, number(g), number(0.0), number(0.0), number(0.0)) {
                        assert_eq!(step.map(Float::to_f64), [0.0; 3], "{power} {l1} {g}");
                    }
                }
                for step in one_step::<R>(&hyper, R::NAN, number(0.0), number(0.0), number(0.0)) {
                    assert!(step.iter().all(|x| x.to_f64().is_nan()), "{power} {l1}");
                }
            }
        }
        // With a denominator above 0 the quotient is what division gives, the sign of a zero included.
        let hyper = [0.1, -0.5, 0.0, 0.0, 0.0, 0.0];
        for (g, z) in [(0.0, 0.0), (0.0, -0.0), (2.0, 1.0), (-2.0, -1.0)] {
            let after = R::from_f64(1.0 + g * g).sqrt() * R::from_f64(10.0);
            let want = -number(z + g) / after;
            for [w, ..] in one_step::<R>(&hyper, number(g), number(0.0), number(1.0), number(z)) {
                assert_eq!(w.to_f64().to_bits(), want.to_f64().to_bits(), "{g} {z}");
            }
        }
    }

    #[test]
    fn an_element_without_gradient_and_state_stays_zero() {
        check::<f32>();
        check::<f64>();
    }
}
