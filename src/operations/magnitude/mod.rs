//! Norms of one or more tensors, with an exponent of two of their own, so that they neither overflow nor underflow;
//! and their combination into the norm of all.

mod exact_sum;
pub mod ranges;

use crate::kernels::exponent::mantissa_exponent;
use crate::kernels::scale::Factor;
use exact_sum::exact_sum;

/// Order p of a norm: (Σ|x|ᵖ)^(1/p), or max|x| for p = ∞.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// p = 2
    Two,
    /// p = 1
    One,
    /// p = ∞
    Max,
    /// Any other p > 0
    Power(f64),
}

impl Order {
    /// Returns the order with the exponent p, a positive number or infinity.
    #[must_use]
    pub fn new(p: f64) -> Self {
        if p == 2.0 {
            Self::Two
        } else if p == 1.0 {
            Self::One
        } else if p.is_infinite() {
            Self::Max
        } else {
            Self::Power(p)
        }
    }

    /// Returns the exponent p; infinity for the maximum.
    #[must_use]
    pub fn p(self) -> f64 {
        match self {
            Self::Two => 2.0,
            Self::One => 1.0,
            Self::Max => f64::INFINITY,
            Self::Power(p) => p,
        }
    }
}

/// Norm of one or more tensors, or its square for order 2, as a float64 and an exponent of two. It neither overflows
/// nor underflows, and magnitudes can be combined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Magnitude {
    /// Σx² for order 2, Σ|x| for order 1, and the norm itself for other orders, of the elements multiplied by
    /// 2^-exponent. NaN or infinite if an element is.
    pub value: f64,
    /// Exponent of two: 0 unless the value would leave the range in which float64 is accurate.
    pub exponent: i32,
}

/// Sum of squares, 2^-900, below which squares that underflowed may matter. Above it, the squares that fell below
/// 2^-1074 are less than one part in 2^100 of the sum, for any number of elements.
pub const SMALL: f64 = f64::from_bits((1023 - 900) << 52);

/// Largest exponent of a magnitude. Norms of this exponent are infinite in float64, and the factors that scale them
/// to a bound are 0. Differences and sums of a few such exponents are in the range of an i32.
pub const MAX_EXPONENT: i32 = 1 << 28;

/// A root of a sum of powers between this, 2^-64, and its inverse is kept in the value of a magnitude, not in its
/// exponent.
const NEAR_ONE: f64 = f64::from_bits((1023 - 64) << 52);

impl Magnitude {
    /// Magnitude of an empty tensor.
    pub const ZERO: Self = Self { value: 0.0, exponent: 0 };

    /// Returns the magnitude of order `p` from the sum of powers of the elements divided by `unit·2^exponent`.
    ///
    /// For small p the norm may be far beyond float64. The exponent of the magnitude holds it, up to
    /// [`MAX_EXPONENT`]: the magnitude of a finite sum is finite.
    #[must_use]
    pub fn from_powers(powers: f64, p: f64, unit: f64, exponent: i32) -> Self {
        if powers == 0.0 || !powers.is_finite() {
            return Self { value: powers, exponent: 0 };
        }
        let root = powers.powf(1.0 / p);
        if (NEAR_ONE..=1.0 / NEAR_ONE).contains(&root) {
            return Self { value: unit * root, exponent };
        }
        let (mantissa, root_exponent) = if root.is_normal() {
            mantissa_exponent(root)
        } else {
            // The root alone is beyond float64, though the norm may be within it.
            let log = powers.log2() / p;
            let floor = log.floor().clamp(f64::from(-MAX_EXPONENT), f64::from(MAX_EXPONENT));
            ((log - floor).clamp(0.0, 1.0).exp2(), floor as i32)
        };
        Self {
            value: unit * mantissa,
            exponent: (exponent + root_exponent).clamp(-MAX_EXPONENT, MAX_EXPONENT),
        }
    }

    /// Whether every element is finite.
    #[must_use]
    pub fn is_finite(self) -> bool {
        self.value.is_finite()
    }

    /// Returns the norm as a float64 and an exponent of two: `(r, e)` for the norm r·2^e. r is [`f64::NAN`], with its
    /// bits, if an element is NaN.
    #[must_use]
    pub fn root(self, order: Order) -> (f64, i32) {
        if self.value.is_nan() {
            return (f64::NAN, 0);
        }
        (if order == Order::Two { self.value.sqrt() } else { self.value }, self.exponent)
    }

    /// Returns the norm: infinite only if it is beyond float64 or an element is infinite, [`f64::NAN`] if an element
    /// is NaN.
    #[must_use]
    pub fn norm(self, order: Order) -> f64 {
        let (root, exponent) = self.root(order);
        if exponent == 0 { root } else { times_power_of_two(root, exponent) }
    }

    /// Returns the norm divided by a number: infinite only if the quotient is beyond float64 or an element is
    /// infinite.
    #[must_use]
    pub fn norm_divided(self, order: Order, divisor: f64) -> f64 {
        let (root, exponent) = self.root(order);
        let norm = if exponent == 0 { root } else { times_power_of_two(root, exponent) };
        if norm.is_normal() || !root.is_normal() {
            return norm / divisor;
        }
        // The norm is beyond float64 or subnormal in it, but its float64 without the exponent can be divided.
        times_power_of_two(root / divisor, exponent)
    }

    /// Returns the factor that scales the norm, divided by `divisor`, to `bound`, or `None` if it is within the
    /// bound.
    #[must_use]
    pub fn factor(self, order: Order, divisor: f64, bound: f64) -> Option<Factor> {
        let (root, exponent) = self.root(order);
        let measured = root / divisor;
        let norm = if exponent == 0 { measured } else { times_power_of_two(measured, exponent) };
        (norm > bound).then(|| Factor::new(bound, measured, exponent))
    }
}

/// Returns `x · 2^exponent`, in steps whose intermediate products do not overflow unless the result does.
#[must_use]
pub fn times_power_of_two(x: f64, exponent: i32) -> f64 {
    let exponent = exponent.clamp(-4000, 4000);
    let quarter = exponent / 4;
    let step = f64::powi(2.0, quarter);
    x * step * step * step * f64::powi(2.0, exponent - 3 * quarter)
}

/// Combines magnitudes of tensors into that of all of them. The result has the same bits in any order: sums are rounded once.
#[must_use]
pub fn combine(magnitudes: &[Magnitude], order: Order) -> Magnitude {
    if let [single] = magnitudes {
        return *single;
    }
    match order {
        Order::Max => maximum(magnitudes),
        Order::Power(p) => {
            // Powers of the ratios to the largest, whose own power is 1.
            let largest = maximum(magnitudes);
            if largest.value == 0.0 || !largest.is_finite() {
                return largest;
            }
            let powers = exact_sum(magnitudes.iter().map(|magnitude| power_of_ratio(*magnitude, largest, p)));
            Magnitude::from_powers(powers, p, largest.value, largest.exponent)
        }
        Order::Two | Order::One => sum(magnitudes, if order == Order::Two { 2 } else { 1 }),
    }
}

/// Bits of headroom: a sum of any number of tensors is less than 2^64 times the largest.
const HEADROOM: i32 = 64;

/// Adds the magnitudes of order p, 1 or 2.
fn sum(magnitudes: &[Magnitude], p: i32) -> Magnitude {
    if magnitudes.iter().all(|magnitude| magnitude.exponent == 0) {
        let value = exact_sum(magnitudes.iter().map(|magnitude| magnitude.value));
        if value.is_finite() || magnitudes.iter().any(|magnitude| !magnitude.is_finite()) {
            return Magnitude { value, exponent: 0 };
        }
    }
    // A magnitude or the sum is beyond float64: all are scaled to the largest exponent, plus headroom for the sum.
    let nonzero = magnitudes.iter().filter(|magnitude| magnitude.value != 0.0);
    let exponent = nonzero.map(|magnitude| magnitude.exponent).max().unwrap_or(0) + HEADROOM;
    let scaled =
        |magnitude: &Magnitude| times_power_of_two(magnitude.value, p * (magnitude.exponent - exponent));
    let value = exact_sum(magnitudes.iter().map(scaled));
    Magnitude { value, exponent }
}

/// Returns (magnitude / largest)ᵖ, for magnitudes whose values are norms.
fn power_of_ratio(magnitude: Magnitude, largest: Magnitude, p: f64) -> f64 {
    let exponent = magnitude.exponent - largest.exponent;
    let ratio = times_power_of_two(magnitude.value, exponent) / largest.value;
    if ratio < SMALL && p < 1.0 {
        // The ratio is subnormal or underflows, or nearly so, although its power may be near 1.
        (magnitude.value / largest.value).powf(p) * (p * f64::from(exponent)).exp2()
    } else {
        ratio.powf(p)
    }
}

/// Returns the largest magnitude, or the first that is NaN, for magnitudes whose values are norms.
fn maximum(magnitudes: &[Magnitude]) -> Magnitude {
    let larger = |a: Magnitude, b: Magnitude| {
        // Compared at the exponent of `a`: both norms may be beyond float64.
        let other = times_power_of_two(b.value, b.exponent - a.exponent);
        if a.value.is_nan() || a.value >= other { a } else { b }
    };
    magnitudes.iter().copied().reduce(larger).unwrap_or(Magnitude::ZERO)
}

/// Returns the sum of `value` over `items` by pairwise summation, in halves down to eight items.
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

    fn magnitude_of(sum: f64) -> Magnitude {
        Magnitude { value: sum, exponent: 0 }
    }

    #[test]
    fn sums_within_float64_are_added() {
        let magnitudes: Vec<_> = (1..=100).map(|i| magnitude_of(f64::from(i))).collect();
        assert_eq!(combine(&magnitudes, Order::Two), magnitude_of(5050.0));
        assert_eq!(combine(&[], Order::Two), Magnitude::ZERO);
    }

    #[test]
    fn a_sum_beyond_float64_keeps_its_norm() {
        let total = combine(&[magnitude_of(1e308), magnitude_of(1.5e308)], Order::Two);
        let want = 2.5_f64.sqrt() * 1e154;
        assert!((total.norm(Order::Two) - want).abs() < 1e-15 * want);
        let huge = Magnitude { value: 4.0, exponent: 1000 };
        let norm = combine(&[huge, magnitude_of(1.0), huge], Order::Two).norm(Order::Two);
        assert!((norm / 8.0_f64.sqrt() / f64::powi(2.0, 1000) - 1.0).abs() < 1e-15);
    }

    #[test]
    fn tiny_tensors_are_added_and_vanish_beside_large_ones() {
        let tiny = Magnitude { value: 2.0, exponent: -1022 };
        let norm = combine(&[tiny, tiny], Order::Two).norm(Order::Two);
        assert_eq!(norm, 2.0 * f64::powi(2.0, -1022));
        assert_eq!(combine(&[tiny, magnitude_of(9.0)], Order::Two).norm(Order::Two), 3.0);
    }

    #[test]
    fn a_norm_far_beyond_float64_is_infinite_and_clips_to_zero() {
        for (powers, p) in [(2.0, 5e-324), (1.0 + f64::EPSILON, 1e-310), (1e6, 1e-300), (3.0, 1e-4)] {
            let order = Order::new(p);
            let one = Magnitude::from_powers(powers, p, 1.5, 3);
            let total = combine(&[one, one, Magnitude::ZERO, magnitude_of(1e-300)], order);
            let again = combine(&[total, one, total], order);
            for magnitude in [one, total, again] {
                assert!(magnitude.is_finite() && magnitude.exponent > 1100, "{p} {magnitude:?}");
                assert_eq!(magnitude.norm(order), f64::INFINITY);
                let factor = magnitude.factor(order, 1.0, 1.0).unwrap();
                assert_eq!(factor.wide * factor.lift, 0.0);
                assert_eq!(f64::MAX * factor.lift * factor.wide, 0.0);
                assert!(magnitude.factor(order, 1.0, f64::MAX).is_some());
            }
        }
        // One element is its own norm.
        for p in [5e-324, 1e-310, 1e-300] {
            assert_eq!(Magnitude::from_powers(1.0, p, 1.5, 3).norm(Order::new(p)), 12.0);
        }
    }

    #[test]
    fn nan_and_infinity_are_kept() {
        assert!(combine(&[magnitude_of(1.0), magnitude_of(f64::NAN)], Order::Two).value.is_nan());
        assert_eq!(
            combine(&[magnitude_of(1.0), magnitude_of(f64::INFINITY)], Order::Two).value,
            f64::INFINITY
        );
        let huge = Magnitude { value: 4.0, exponent: 1000 };
        assert!(combine(&[huge, magnitude_of(f64::NAN)], Order::Two).norm(Order::Two).is_nan());
        assert!(
            combine(&[magnitude_of(1.0), magnitude_of(f64::NAN), magnitude_of(5.0)], Order::Max)
                .value
                .is_nan()
        );
        assert_eq!(
            combine(&[magnitude_of(1.0), magnitude_of(7.0), magnitude_of(5.0)], Order::Max).value,
            7.0
        );
    }
}
