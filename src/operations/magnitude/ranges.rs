//! Sums of powers that several processes add up, elementwise: arrays with one sum for each of several ranges of
//! exponents.
//!
//! A norm beyond float64 needs an exponent that all processes agree on, which none of them knows. Therefore each
//! process puts its sum of powers into the element of the range that its norm is in, scaled by the exponent of that
//! range. The arrays are added elementwise by an allreduce, and the norm is computed from the total.

use super::{Magnitude, Order, combine, times_power_of_two};

/// Largest number of bits that the sums of one range span: those of many processes together are within float64.
const RANGE_BITS: f64 = 1200.0;
/// Largest absolute exponent of two of a norm of order 1 or more: those of float64, and some for the number of
/// elements.
const MAX_NORM_BITS: f64 = 1140.0;
/// A norm of order p may exceed the largest element by the factor n^(1/p), where n, the number of elements, is less
/// than 2 to this.
const COUNT_BITS: f64 = 64.0;

/// Returns the difference between the exponents of neighbouring ranges, and the number of ranges on each side of that
/// of exponent 0.
fn layout(order: Order) -> (i32, i32) {
    let p = order.p();
    let step = (RANGE_BITS / p).floor().clamp(1.0, MAX_NORM_BITS);
    let limit = if p < 1.0 { MAX_NORM_BITS + COUNT_BITS / p } else { MAX_NORM_BITS };
    (step as i32, (limit / step).ceil() as i32)
}

/// Returns the sum of powers of a magnitude in the element of its range, among zeros.
#[must_use]
pub fn split(total: Magnitude, order: Order) -> Vec<f64> {
    let (step, per_side) = layout(order);
    let mut sums = vec![0.0; 2 * per_side as usize + 1];
    let (root, exponent) = total.root(order);
    if root == 0.0 || !root.is_finite() {
        sums[per_side as usize] = root;
        return sums;
    }
    let log = root.log2() + f64::from(exponent);
    let range = ((log / f64::from(step)).round() as i32).clamp(-per_side, per_side);
    let shift = exponent - range * step;
    sums[(range + per_side) as usize] = match order {
        Order::Two => times_power_of_two(total.value, 2 * shift),
        Order::Power(p) => times_power_of_two(root, shift).powf(p),
        _ => times_power_of_two(root, shift),
    };
    sums
}

/// Returns the magnitude of the sums of all ranges.
#[must_use]
pub fn join(sums: &[f64], order: Order) -> Magnitude {
    let (step, per_side) = layout(order);
    let magnitude = |(i, sum): (usize, &f64)| {
        let exponent = (i as i32 - per_side) * step;
        match order {
            Order::Power(p) => Magnitude::from_powers(*sum, p, 1.0, exponent),
            _ => Magnitude { value: *sum, exponent },
        }
    };
    let nonzero = sums.iter().enumerate().filter(|(_, sum)| **sum != 0.0);
    combine(&nonzero.map(magnitude).collect::<Vec<_>>(), order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn magnitude_of(sum: f64) -> Magnitude {
        Magnitude { value: sum, exponent: 0 }
    }

    #[test]
    fn sums_in_ranges_join_to_the_norm_of_all() {
        let orders = [1.0, 0.5, 3.0, 20.0, 64.0, 0.1, 1.0 / 64.0].map(Order::new);
        for order in orders.into_iter().chain([Order::Two]) {
            let huge = Magnitude { value: 3.0, exponent: 1000 };
            let tiny = Magnitude { value: 2.5, exponent: -1022 };
            for magnitudes in [
                vec![huge, huge],
                vec![tiny, tiny, tiny],
                vec![huge, magnitude_of(1.0), tiny],
                vec![magnitude_of(1e-200), magnitude_of(7.0)],
                vec![magnitude_of(0.0)],
            ] {
                let rows: Vec<_> = magnitudes.iter().map(|magnitude| split(*magnitude, order)).collect();
                let sum = |i: usize| rows.iter().map(|row| row[i]).sum();
                let sums: Vec<f64> = (0..rows[0].len()).map(sum).collect();
                let got = join(&sums, order).norm(order);
                let want = combine(&magnitudes, order).norm(order);
                assert!(
                    got == want || (got / want - 1.0).abs() < 1e-12,
                    "{order:?} {magnitudes:?} {got} {want}"
                );
            }
        }
        let nan = split(magnitude_of(f64::NAN), Order::Two);
        assert!(join(&nan, Order::Two).value.is_nan());
    }

    #[test]
    fn ranges_hold_norms_of_many_elements_at_small_orders() {
        for p in [1.0 / 64.0, 0.02, 0.1, 0.5, 0.9] {
            let order = Order::new(p);
            // Equal elements, as many as memory may hold, of the largest and the smallest absolute value.
            for (elements, exponent) in
                [(f64::powi(2.0, 40), 1023), (f64::powi(2.0, 40), -1074), (1.0, -1074)]
            {
                let total = Magnitude::from_powers(elements, p, 1.0, exponent);
                let sums: Vec<f64> = split(total, order).into_iter().map(|sum| 2.0 * sum).collect();
                assert!(sums.iter().all(|sum| sum.is_finite()), "{p} {sums:?}");
                let got = join(&sums, order);
                let want = Magnitude::from_powers(2.0 * elements, p, 1.0, exponent);
                let ratio = times_power_of_two(got.value / want.value, got.exponent - want.exponent);
                assert!((ratio - 1.0).abs() <= 2e-14 / p, "{p} {elements} {exponent} {got:?} {want:?}");
            }
        }
    }
}
