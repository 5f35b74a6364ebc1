//! FTRL-Proximal: g′ = g + 2·shrinkage·w; n′ = n + g²; z ← z + g′ − (n′^p − n^p)/lr·w;
//! w ← −sign(z)·max(|z| − l1, 0)/(n′^p/lr + 2·l2′), with p = −`learning_rate_power` and l2′ = l2 + beta/(2·lr).
//!
//! A numerator of 0 gives w = 0 whatever the denominator is: both are 0 for an element that has had no gradient, if
//! the initial accumulator and l2′ are 0.
//!
//! McMahan and others, "Ad click prediction: a view from the trenches", 2013, with the learning rate power, shrinkage
//! and beta of TensorFlow. Slots: n, z.

use super::{Rule, hyper_parameters};
use crate::kernels::lanes::{Lanes, Real};

/// The rule of FTRL-Proximal.
#[derive(Clone, Copy, Debug)]
pub struct Ftrl<R> {
    inverse_rate: R,
    power: R,
    l1: R,
    l2_term: R,
    shrinkage: R,
    is_square_root: bool,
}

impl<R: Real> Rule<R, 2> for Ftrl<R> {
    fn new(hyper: &[f64]) -> Self {
        let [learning_rate, learning_rate_power, l1, l2, l2_shrinkage, beta] = hyper_parameters(hyper);
        Self {
            inverse_rate: R::from_f64(1.0 / learning_rate),
            power: R::from_f64(-learning_rate_power),
            l1: R::from_f64(l1),
            l2_term: R::from_f64(2.0 * l2 + beta / learning_rate),
            shrinkage: R::from_f64(2.0 * l2_shrinkage),
            is_square_root: learning_rate_power == -0.5,
        }
    }

    #[inline(always)]
    fn update<V: Lanes<R>>(self, g: V, w: V, [n, z]: [V; 2]) -> (V, [V; 2]) {
        let power = |n: V| if self.is_square_root { n.sqrt() } else { n.powf(self.power) };
        let after = n + g * g;
        let (power_before, power_after) = (power(n), power(after));
        let z = z + (g + w * self.shrinkage) - (power_after - power_before) * self.inverse_rate * w;
        let w = (-z.shrink(self.l1)).div_unless_zero(power_after * self.inverse_rate + self.l2_term);
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
            // Two full vectors and a tail.
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
        // If the denominator is above 0, the quotient is that of a division, including the sign of a zero.
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
    fn an_element_without_gradient_and_accumulators_stays_zero() {
        check::<f32>();
        check::<f64>();
    }
}
