//! Sums of powers that neither overflow nor vanish.

pub mod ranges;

use crate::kernels::exponent::normalised;
use crate::kernels::scale::Factor;

/// Which norm: (Σ|x|ᵖ)^(1/p), or max|x|.
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
    /// The order of that exponent.
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

    /// The exponent p; infinite for the maximum.
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

/// The norm of one or more tensors, in a form that neither overflows nor vanishes and that adds up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Magnitude {
    /// Σx² for order 2, Σ|x| for order 1, and for the others the norm itself, of elements that were multiplied
    /// by 2^-exponent. NaN or infinite if an element is.
    pub value: f64,
    /// 0 unless the value would leave the range where float64 is accurate.
    pub exponent: i32,
}

/// Below this a sum of squares may have lost elements to underflow that matter: 2^-900.
/// Above it, what fell below 2^-1074 is less than one part in 2^100 of it, however many there were.
pub const SMALL: f64 = f64::from_bits((1023 - 900) << 52);

/// The largest exponent of a magnitude. Norms there and beyond are infinite in float64, and the factors that bring them
/// to a bound are 0; differences and sums of a few such exponents stay in range.
pub const FAR: i32 = 1 << 28;

/// A root of a sum of powers above this, and below its inverse, stays in the magnitude's value: 2^-64.
const NEAR_ONE: f64 = f64::from_bits((1023 - 64) << 52);

impl Magnitude {
    /// Of no elements at all.
    pub const ZERO: Self = Self { value: 0.0, exponent: 0 };

    /// The magnitude of order `p` whose sum of powers, of elements divided by `unit·2^exponent`, is this.
    ///
    /// For small p the norm may be far beyond float64. Its exponent holds that, up to [`FAR`]: what comes of a finite
    /// sum is finite.
    #[must_use]
    pub fn from_powers(powers: f64, p: f64, unit: f64, exponent: i32) -> Self {
        if powers == 0.0 || !powers.is_finite() {
            return Self { value: powers, exponent: 0 };
        }
        let root = powers.powf(1.0 / p);
        if (NEAR_ONE..=1.0 / NEAR_ONE).contains(&root) {
            return Self { value: unit * root, exponent };
        }
        let (mantissa, more) = if root.is_normal() {
            normalised(root)
        } else {
            // The root is beyond float64 by itself, though perhaps not with its exponent.
            let log = powers.log2() / p;
            let whole = log.floor().clamp(f64::from(-FAR), f64::from(FAR));
            ((log - whole).clamp(0.0, 1.0).exp2(), whole as i32)
        };
        Self { value: unit * mantissa, exponent: (exponent + more).clamp(-FAR, FAR) }
    }

    /// Whether every element was finite.
    #[must_use]
    pub fn is_finite(self) -> bool {
        self.value.is_finite()
    }

    /// The norm as a mantissa and an exponent of two. If an element was NaN, it is the one of [`f64::NAN`].
    #[must_use]
    pub fn root(self, order: Order) -> (f64, i32) {
        if self.value.is_nan() {
            return (f64::NAN, 0);
        }
        (if order == Order::Two { self.value.sqrt() } else { self.value }, self.exponent)
    }

    /// The norm, infinite only if it is beyond float64 or an element was; NaN as [`Magnitude::root`] has it.
    #[must_use]
    pub fn norm(self, order: Order) -> f64 {
        let (root, exponent) = self.root(order);
        if exponent == 0 { root } else { times_power_of_two(root, exponent) }
    }

    /// The norm divided by a number, infinite only if the quotient is beyond float64 or an element was infinite.
    #[must_use]
    pub fn norm_divided(self, order: Order, divisor: f64) -> f64 {
        let (root, exponent) = self.root(order);
        let norm = if exponent == 0 { root } else { times_power_of_two(root, exponent) };
        if norm.is_normal() || !root.is_normal() {
            return norm / divisor;
        }
        // The norm itself does not fit, or fits badly. The quotient of the mantissas does.
        times_power_of_two(root / divisor, exponent)
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

/// `x · 2^exponent`, in steps that cannot overflow on the way.
#[must_use]
pub fn times_power_of_two(x: f64, exponent: i32) -> f64 {
    let exponent = exponent.clamp(-4000, 4000);
    let quarter = exponent / 4;
    let step = f64::powi(2.0, quarter);
    x * step * step * step * f64::powi(2.0, exponent - 3 * quarter)
}

/// Combines per-tensor magnitudes, pairwise, in their order.
#[must_use]
pub fn combine(parts: &[Magnitude], order: Order) -> Magnitude {
    if let [single] = parts {
        return *single;
    }
    match order {
        Order::Max => maximum(parts),
        Order::Power(p) => {
            // Relative to the largest, whose power is 1.
            let largest = maximum(parts);
            if largest.value == 0.0 || !largest.is_finite() {
                return largest;
            }
            let powers = pairwise(parts, &|part: &Magnitude| power_of_ratio(*part, largest, p));
            Magnitude::from_powers(powers, p, largest.value, largest.exponent)
        }
        Order::Two | Order::One => sum(parts, if order == Order::Two { 2 } else { 1 }),
    }
}

/// Bits of room for the sum of as many tensors as there can be.
const HEADROOM: i32 = 64;

/// Sums of x^p for p of 1 or 2.
fn sum(parts: &[Magnitude], p: i32) -> Magnitude {
    if parts.iter().all(|part| part.exponent == 0) {
        let value = pairwise(parts, &|part: &Magnitude| part.value);
        if value.is_finite() || parts.iter().any(|part| !part.is_finite()) {
            return Magnitude { value, exponent: 0 };
        }
    }
    // The sum of one tensor or of all does not fit: bring every one to the largest exponent, with
    // room for as many of them as there can be.
    let used = parts.iter().filter(|part| part.value != 0.0);
    let exponent = used.map(|part| part.exponent).max().unwrap_or(0) + HEADROOM;
    let value =
        pairwise(parts, &|part: &Magnitude| times_power_of_two(part.value, p * (part.exponent - exponent)));
    Magnitude { value, exponent }
}

/// (part / largest)ᵖ, for magnitudes that are norms.
fn power_of_ratio(part: Magnitude, largest: Magnitude, p: f64) -> f64 {
    let exponent = part.exponent - largest.exponent;
    let ratio = times_power_of_two(part.value, exponent) / largest.value;
    if ratio < SMALL && p < 1.0 {
        // The ratio is near the end of float64 or beyond it, while its power may be near 1.
        (part.value / largest.value).powf(p) * (p * f64::from(exponent)).exp2()
    } else {
        ratio.powf(p)
    }
}

fn maximum(parts: &[Magnitude]) -> Magnitude {
    let larger = |a: Magnitude, b: Magnitude| {
        // Compared at the exponent of one of them: both may be out of range.
        let other = times_power_of_two(b.value, b.exponent - a.exponent);
        if a.value.is_nan() || a.value >= other { a } else { b }
    };
    parts.iter().copied().reduce(larger).unwrap_or(Magnitude::ZERO)
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
        Magnitude { value: sum, exponent: 0 }
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
        let huge = Magnitude { value: 4.0, exponent: 1000 };
        let norm = combine(&[huge, plain(1.0), huge], Order::Two).norm(Order::Two);
        assert!((norm / 8.0_f64.sqrt() / f64::powi(2.0, 1000) - 1.0).abs() < 1e-15);
    }

    #[test]
    fn tiny_tensors_add_up_and_vanish_beside_large_ones() {
        let tiny = Magnitude { value: 2.0, exponent: -1022 };
        let norm = combine(&[tiny, tiny], Order::Two).norm(Order::Two);
        assert_eq!(norm, 2.0 * f64::powi(2.0, -1022));
        assert_eq!(combine(&[tiny, plain(9.0)], Order::Two).norm(Order::Two), 3.0);
    }

    #[test]
    fn a_norm_far_beyond_float64_is_infinite_and_clips_to_zero() {
        for (powers, p) in [(2.0, 5e-324), (1.0 + f64::EPSILON, 1e-310), (1e6, 1e-300), (3.0, 1e-4)] {
            let order = Order::new(p);
            let one = Magnitude::from_powers(powers, p, 1.5, 3);
            let total = combine(&[one, one, Magnitude::ZERO, plain(1e-300)], order);
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
    fn not_a_number_and_infinity_survive() {
        assert!(combine(&[plain(1.0), plain(f64::NAN)], Order::Two).value.is_nan());
        assert_eq!(combine(&[plain(1.0), plain(f64::INFINITY)], Order::Two).value, f64::INFINITY);
        let huge = Magnitude { value: 4.0, exponent: 1000 };
        assert!(combine(&[huge, plain(f64::NAN)], Order::Two).norm(Order::Two).is_nan());
        assert!(combine(&[plain(1.0), plain(f64::NAN), plain(5.0)], Order::Max).value.is_nan());
        assert_eq!(combine(&[plain(1.0), plain(7.0), plain(5.0)], Order::Max).value, 7.0);
    }
}
