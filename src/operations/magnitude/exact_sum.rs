//! Sums of float64 that are rounded once, so that they do not depend on the order of the numbers.

/// Number of partial sums that are kept. Those of numbers of one sign do not overlap, so that there are at most as many as
/// 53 bits fit into the range of float64: 2098 / 53.
const MOST_PARTIALS: usize = 64;

/// Returns the sum of numbers that are not negative, rounded once: the float64 nearest to the exact sum. It is infinite if
/// the sum is beyond float64, and NaN if a number is.
///
/// Shewchuk, "Adaptive precision floating-point arithmetic and fast robust geometric predicates", 1997: the partial sums
/// are numbers without common bits, whose sum is exact. The last rounding is that of Python's `math.fsum`.
pub fn exact_sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut partials, mut count) = ([0.0_f64; MOST_PARTIALS], 0);
    let mut rounded = 0.0;
    for value in values {
        rounded += value;
        let (mut x, mut kept) = (value, 0);
        for at in 0..count {
            let y = partials[at];
            let (large, small) = if x.abs() < y.abs() { (y, x) } else { (x, y) };
            let high = large + small;
            let low = small - (high - large);
            if low != 0.0 {
                partials[kept] = low;
                kept += 1;
            }
            x = high;
        }
        if kept == MOST_PARTIALS {
            return rounded;
        }
        partials[kept] = x;
        count = kept + 1;
    }
    if !rounded.is_finite() {
        return rounded;
    }
    let Some(mut at) = count.checked_sub(1) else { return 0.0 };
    let (mut high, mut low) = (partials[at], 0.0);
    while at > 0 {
        at -= 1;
        let (x, y) = (high, partials[at]);
        high = x + y;
        low = y - (high - x);
        if low != 0.0 {
            break;
        }
    }
    // Half-way cases are rounded by the sign of what follows.
    if at > 0 && (low < 0.0 && partials[at - 1] < 0.0 || low > 0.0 && partials[at - 1] > 0.0) {
        let doubled = low * 2.0;
        let other = high + doubled;
        if doubled == other - high {
            return other;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_rounded_once_in_any_order() {
        let values = [1e16, 1.0, 1.0, 1e-30, 3.7, 5e-324, 2e300, 1e-300];
        for start in 0..values.len() {
            for step in [1, 3, 5, 7] {
                let order = (0..values.len()).map(|at| values[(start + at * step) % values.len()]);
                assert_eq!(exact_sum(order), 2e300);
            }
        }
        assert_eq!(exact_sum([1.0, f64::EPSILON / 2.0, f64::EPSILON / 4.0].into_iter()), 1.0 + f64::EPSILON);
        assert_eq!(exact_sum([f64::EPSILON / 2.0, 1.0].into_iter()), 1.0);
        assert_eq!(exact_sum((0..10_000_000).map(|_| 0.1)), 1_000_000.0);
        assert_eq!(exact_sum(std::iter::empty()), 0.0);
    }

    #[test]
    fn sums_beyond_float64_are_infinite_and_nan_stays() {
        assert_eq!(exact_sum([f64::MAX, f64::MAX].into_iter()), f64::INFINITY);
        assert_eq!(exact_sum([f64::INFINITY, 1.0].into_iter()), f64::INFINITY);
        assert!(exact_sum([1.0, f64::NAN, f64::INFINITY].into_iter()).is_nan());
    }
}
