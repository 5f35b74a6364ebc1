//! Sums of powers that neither overflow nor vanish.

use crate::kernels::scale::Factor;

/// Which norm: (Σ|x|ᵖ)^(1/p), or max|x|.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// p = 2
    Two,
    /// p = ∞
    Max,
    /// Any other p > 0
    Power(f64),
}

impl Order {
    /// The exponent p; infinite for the maximum.
    #[must_use]
    pub fn p(self) -> f64 {
        match self {
            Self::Two => 2.0,
            Self::Max => f64::INFINITY,
            Self::Power(p) => p,
        }
    }
}

/// Σ|x|ᵖ (or max|x|) of one or more tensors, as `sum · 2^(p·exponent)` (or `sum · 2^exponent`).
///
/// The exponent is 0 unless the sum would leave the range where float64 is accurate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Magnitude {
    /// The sum of the scaled elements' powers; NaN or infinite if an element is.
    pub sum: f64,
    /// Elements were multiplied by 2^-exponent.
    pub exponent: i32,
}

/// Below this a sum of squares may have lost elements to underflow that matter: 2^-900.
/// Above it, what fell below 2^-1074 is less than one part in 2^100 of it, however many there were.
pub const SMALL: f64 = f64::from_bits((1023 - 900) << 52);

impl Magnitude {
    /// Of no elements at all.
    pub const ZERO: Self = Self { sum: 0.0, exponent: 0 };

    /// Whether every element was finite.
    #[must_use]
    pub fn is_finite(self) -> bool {
        self.sum.is_finite()
    }

    /// The norm as a mantissa and an exponent of two.
    #[must_use]
    pub fn root(self, order: Order) -> (f64, i32) {
        let root = match order {
            Order::Two => self.sum.sqrt(),
            Order::Max | Order::Power(1.0) => self.sum,
            Order::Power(p) => self.sum.powf(1.0 / p),
        };
        (root, self.exponent)
    }

    /// The norm, infinite only if it is beyond float64 or an element was.
    #[must_use]
    pub fn norm(self, order: Order) -> f64 {
        let (root, exponent) = self.root(order);
        if exponent == 0 { root } else { times_power_of_two(root, exponent) }
    }

    /// What to multiply by so that the norm, divided by `divisor`, becomes `bound`: `None` if it is
    /// within the bound already.
    #[must_use]
    pub fn factor(self, order: Order, divisor: f64, bound: f64) -> Option<Factor> {
        let (root, exponent) = self.root(order);
        let measured = root / divisor;
        let norm = if exponent == 0 { measured } else { times_power_of_two(measured, exponent) };
        (norm > bound).then(|| Factor::new(bound, measured, exponent))
    }
}

/// Sums that several processes add up: the exponent that each would need is known to none of them, so
/// a sum travels in the one of a row of ranges that it fits.
pub mod ranges {
    use super::{Magnitude, Order, combine, times_power_of_two};

    /// Bits that one range spans, at most: its sums and those of many processes stay in float64.
    const BITS: f64 = 1200.0;
    /// The exponents of two that a norm may have lie between this and its negative.
    const LIMIT: f64 = 1140.0;

    /// How far the exponents of neighbouring ranges are apart, and how many there are on each side of 0.
    fn layout(order: Order) -> (i32, i32) {
        let step = (BITS / order.p()).floor().clamp(1.0, LIMIT);
        (step as i32, (LIMIT / step).ceil() as i32)
    }

    /// A sum in its range.
    #[must_use]
    pub fn split(total: Magnitude, order: Order) -> Vec<f64> {
        let (step, side) = layout(order);
        let mut sums = vec![0.0; 2 * side as usize + 1];
        if total.sum == 0.0 || !total.is_finite() {
            sums[side as usize] = total.sum;
            return sums;
        }
        let size = total.sum.log2() / order.p() + f64::from(total.exponent);
        let range = ((size / f64::from(step)).round() as i32).clamp(-side, side);
        let shift = total.exponent - range * step;
        sums[(range + side) as usize] = if order == Order::Two {
            times_power_of_two(total.sum, 2 * shift)
        } else {
            let half = (0.5 * order.p() * f64::from(shift)).exp2();
            total.sum * half * half
        };
        sums
    }

    /// What the sums come to.
    #[must_use]
    pub fn join(sums: &[f64], order: Order) -> Magnitude {
        let (step, side) = layout(order);
        let parts = sums.iter().enumerate().filter(|(_, sum)| **sum != 0.0);
        let parts: Vec<Magnitude> =
            parts.map(|(i, sum)| Magnitude { sum: *sum, exponent: (i as i32 - side) * step }).collect();
        combine(&parts, order)
    }
}

/// `x · 2^exponent`, in steps that cannot overflow on the way.
#[must_use]
pub fn times_power_of_two(x: f64, exponent: i32) -> f64 {
    let half = exponent / 2;
    x * f64::powi(2.0, half) * f64::powi(2.0, exponent - half)
}

/// Combines per-tensor magnitudes, pairwise, in their order.
#[must_use]
pub fn combine(parts: &[Magnitude], order: Order) -> Magnitude {
    if order == Order::Max {
        return maximum(parts);
    }
    if parts.iter().all(|part| part.exponent == 0) {
        let sum = pairwise(parts, &|part: &Magnitude| part.sum);
        if sum.is_finite() || parts.iter().any(|part| !part.is_finite()) {
            return Magnitude { sum, exponent: 0 };
        }
    }
    // The sum of one tensor or of all does not fit: bring every one to the largest exponent, with
    // room for as many of them as there can be.
    let p = order.p();
    let headroom = (64.0 / p).ceil() as i32;
    let largest =
        parts.iter().filter(|part| part.sum != 0.0).map(|part| part.exponent).max().unwrap_or(0) + headroom;
    let sum = pairwise(parts, &|part: &Magnitude| {
        if part.sum == 0.0 {
            return 0.0;
        }
        let shift = p * f64::from(part.exponent - largest);
        // In two steps: the sum may be near the top, and the shift below the bottom.
        part.sum * (0.5 * shift).exp2() * (0.5 * shift).exp2()
    });
    Magnitude { sum, exponent: largest }
}

fn maximum(parts: &[Magnitude]) -> Magnitude {
    let norms = parts.iter().map(|part| (part.norm(Order::Max), *part));
    norms
        .reduce(|a, b| if a.0.is_nan() || a.0 >= b.0 { a } else { b })
        .map_or(Magnitude::ZERO, |(_, part)| part)
}

/// The sum of `value` over `items`, split in halves down to runs of eight.
pub fn pairwise<T>(items: &[T], value: &impl Fn(&T) -> f64) -> f64 {
    if items.len() <= 8 {
        items.iter().map(value).fold(0.0, |sum, v| sum + v)
    } else {
        let (left, right) = items.split_at(items.len().next_power_of_two() / 2);
        pairwise(left, value) + pairwise(right, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(sum: f64) -> Magnitude {
        Magnitude { sum, exponent: 0 }
    }

    #[test]
    fn sums_that_fit_are_added() {
        let parts: Vec<_> = (1..=100).map(|i| plain(f64::from(i))).collect();
        assert_eq!(combine(&parts, Order::Two), plain(5050.0));
        assert_eq!(combine(&[], Order::Two), Magnitude::ZERO);
    }

    #[test]
    fn a_total_beyond_float64_keeps_its_norm() {
        let total = combine(&[plain(1e308), plain(1.5e308)], Order::Two);
        let want = 2.5_f64.sqrt() * 1e154;
        assert!((total.norm(Order::Two) - want).abs() < 1e-15 * want);
        let huge = Magnitude { sum: 4.0, exponent: 1000 };
        let norm = combine(&[huge, plain(1.0), huge], Order::Two).norm(Order::Two);
        assert!((norm / 8.0_f64.sqrt() / f64::powi(2.0, 1000) - 1.0).abs() < 1e-15);
    }

    #[test]
    fn tiny_tensors_add_up_and_vanish_beside_large_ones() {
        let tiny = Magnitude { sum: 2.0, exponent: -1022 };
        let norm = combine(&[tiny, tiny], Order::Two).norm(Order::Two);
        assert_eq!(norm, 2.0 * f64::powi(2.0, -1022));
        assert_eq!(combine(&[tiny, plain(9.0)], Order::Two).norm(Order::Two), 3.0);
    }

    #[test]
    fn sums_in_ranges_add_up_to_the_norm_of_all() {
        let orders = [1.0, 0.5, 3.0, 20.0].map(Order::Power);
        for order in orders.into_iter().chain([Order::Two]) {
            let huge = Magnitude { sum: 3.0, exponent: 1000 };
            let tiny = Magnitude { sum: 2.5, exponent: -1022 };
            for parts in [
                vec![huge, huge],
                vec![tiny, tiny, tiny],
                vec![huge, plain(1.0), tiny],
                vec![plain(1e-200), plain(7.0)],
                vec![plain(0.0)],
            ] {
                let split: Vec<_> = parts.iter().map(|part| ranges::split(*part, order)).collect();
                let sum = |i: usize| split.iter().map(|s| s[i]).sum();
                let sums: Vec<f64> = (0..split[0].len()).map(sum).collect();
                let got = ranges::join(&sums, order).norm(order);
                let want = combine(&parts, order).norm(order);
                assert!(got == want || (got / want - 1.0).abs() < 1e-12, "{order:?} {parts:?} {got} {want}");
            }
        }
        let nan = ranges::split(plain(f64::NAN), Order::Two);
        assert!(ranges::join(&nan, Order::Two).sum.is_nan());
    }

    #[test]
    fn not_a_number_and_infinity_survive() {
        assert!(combine(&[plain(1.0), plain(f64::NAN)], Order::Two).sum.is_nan());
        assert_eq!(combine(&[plain(1.0), plain(f64::INFINITY)], Order::Two).sum, f64::INFINITY);
        let huge = Magnitude { sum: 4.0, exponent: 1000 };
        assert!(combine(&[huge, plain(f64::NAN)], Order::Two).norm(Order::Two).is_nan());
        assert!(combine(&[plain(1.0), plain(f64::NAN), plain(5.0)], Order::Max).sum.is_nan());
        assert_eq!(combine(&[plain(1.0), plain(7.0), plain(5.0)], Order::Max).sum, 7.0);
    }
}
