//! Sums that several processes add up: the exponent that each would need is known to none of them, so
//! a sum travels in the one of a row of ranges that it fits.

use super::{Magnitude, Order, combine, times_power_of_two};

/// Bits that one range spans, at most: its sums and those of many processes stay in float64.
const BITS: f64 = 1200.0;
/// The exponents of two that a norm may have lie between this and its negative, if its order is 1 or more: those
/// of float64, and some for the number of elements.
const LIMIT: f64 = 1140.0;
/// A norm of order p may exceed its largest element by the number of elements to the power 1/p, which is less than
/// 2^64.
const COUNT_BITS: f64 = 64.0;

/// How far the exponents of neighbouring ranges are apart, and how many there are on each side of 0.
fn layout(order: Order) -> (i32, i32) {
    let p = order.p();
    let step = (BITS / p).floor().clamp(1.0, LIMIT);
    let limit = if p < 1.0 { LIMIT + COUNT_BITS / p } else { LIMIT };
    (step as i32, (limit / step).ceil() as i32)
}

/// A sum of powers in its range.
#[must_use]
pub fn split(total: Magnitude, order: Order) -> Vec<f64> {
    let (step, side) = layout(order);
    let mut sums = vec![0.0; 2 * side as usize + 1];
    let (root, exponent) = total.root(order);
    if root == 0.0 || !root.is_finite() {
        sums[side as usize] = root;
        return sums;
    }
    let size = root.log2() + f64::from(exponent);
    let range = ((size / f64::from(step)).round() as i32).clamp(-side, side);
    let shift = exponent - range * step;
    sums[(range + side) as usize] = match order {
        Order::Two => times_power_of_two(total.value, 2 * shift),
        Order::Power(p) => times_power_of_two(root, shift).powf(p),
        _ => times_power_of_two(root, shift),
    };
    sums
}

/// What the sums come to.
#[must_use]
pub fn join(sums: &[f64], order: Order) -> Magnitude {
    let (step, side) = layout(order);
    let part = |(i, sum): (usize, &f64)| {
        let exponent = (i as i32 - side) * step;
        match order {
            Order::Power(p) => Magnitude::from_powers(*sum, p, 1.0, exponent),
            _ => Magnitude { value: *sum, exponent },
        }
    };
    let parts = sums.iter().enumerate().filter(|(_, sum)| **sum != 0.0);
    combine(&parts.map(part).collect::<Vec<_>>(), order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(sum: f64) -> Magnitude {
        Magnitude { value: sum, exponent: 0 }
    }

    #[test]
    fn sums_in_ranges_add_up_to_the_norm_of_all() {
        let orders = [1.0, 0.5, 3.0, 20.0, 64.0, 0.1, 1.0 / 64.0].map(Order::new);
        for order in orders.into_iter().chain([Order::Two]) {
            let huge = Magnitude { value: 3.0, exponent: 1000 };
            let tiny = Magnitude { value: 2.5, exponent: -1022 };
            for parts in [
                vec![huge, huge],
                vec![tiny, tiny, tiny],
                vec![huge, plain(1.0), tiny],
                vec![plain(1e-200), plain(7.0)],
                vec![plain(0.0)],
            ] {
                let rows: Vec<_> = parts.iter().map(|part| split(*part, order)).collect();
                let sum = |i: usize| rows.iter().map(|row| row[i]).sum();
                let sums: Vec<f64> = (0..rows[0].len()).map(sum).collect();
                let got = join(&sums, order).norm(order);
                let want = combine(&parts, order).norm(order);
                assert!(got == want || (got / want - 1.0).abs() < 1e-12, "{order:?} {parts:?} {got} {want}");
            }
        }
        let nan = split(plain(f64::NAN), Order::Two);
        assert!(join(&nan, Order::Two).value.is_nan());
    }

    #[test]
    fn ranges_hold_the_norms_of_many_elements_in_small_orders() {
        for p in [1.0 / 64.0, 0.02, 0.1, 0.5, 0.9] {
            let order = Order::new(p);
            // As many equal elements as memory may hold, of the largest and the smallest size.
            for (elements, size) in [(f64::powi(2.0, 40), 1023), (f64::powi(2.0, 40), -1074), (1.0, -1074)] {
                let total = Magnitude::from_powers(elements, p, 1.0, size);
                let sums: Vec<f64> = split(total, order).into_iter().map(|sum| 2.0 * sum).collect();
                assert!(sums.iter().all(|sum| sum.is_finite()), "{p} {sums:?}");
                let got = join(&sums, order);
                let want = Magnitude::from_powers(2.0 * elements, p, 1.0, size);
                let ratio = times_power_of_two(got.value / want.value, got.exponent - want.exponent);
                assert!((ratio - 1.0).abs() <= 2e-14 / p, "{p} {elements} {got:?} {want:?}");
            }
        }
    }
}
