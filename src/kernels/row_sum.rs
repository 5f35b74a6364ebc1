//! Sums of rows that have the same index.
//!
//! - Formula: `out[r] = Σ x[i]` over the rows i of group r, elementwise. A group of one row is copied.
//! - Order of additions: that of the rows in their group, in float64; the sum is rounded once.
//! - Error: before it is rounded, relative to `Σ|x[i]|`, one rounding of 2⁻⁵³ for each row.
//! - Bits: elements do not interact, so they depend neither on the level nor on the number of threads.

use super::Float;
use fearless_simd::{Level, dispatch};

/// Number of elements of a row that are summed at a time: the sums stay in the first-level cache.
const BLOCK: usize = 512;

/// Groups of rows: group r has the rows `order[starts[r]..starts[r + 1]]`.
#[derive(Clone, Copy)]
pub struct Groups<'a> {
    /// Indices of rows.
    pub order: &'a [usize],
    /// Where each group starts, and where the last one ends.
    pub starts: &'a [usize],
}

/// Sums the rows of each group. `x` and `out` have rows of `width` elements.
///
/// # Panics
///
/// If an index of a row is out of range, or `out` has another number of rows than there are groups.
pub fn sum_rows<T: Float>(level: Level, x: &[T], out: &mut [T], width: usize, groups: Groups) {
    assert_eq!(out.len(), (groups.starts.len() - 1) * width);
    dispatch!(level, simd => {
        let _ = simd;
        for (to, ends) in out.chunks_exact_mut(width).zip(groups.starts.windows(2)) {
            let rows = &groups.order[ends[0]..ends[1]];
            if let [row] = rows {
                to.copy_from_slice(&x[row * width..(row + 1) * width]);
                continue;
            }
            for (block, to) in to.chunks_mut(BLOCK).enumerate() {
                let mut sums = [0.0; BLOCK];
                let sums = &mut sums[..to.len()];
                for row in rows {
                    let start = row * width + block * BLOCK;
                    for (sum, v) in sums.iter_mut().zip(&x[start..start + to.len()]) {
                        *sum += v.to_f64();
                    }
                }
                for (to, sum) in to.iter_mut().zip(sums) {
                    *to = T::rounded(*sum);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::oracle::samples;
    use half::{bf16, f16};

    fn check<T: Float>(make: impl Fn(f64) -> T) {
        for width in [1, 3, 32, BLOCK + 7] {
            let x: Vec<T> = samples(20 * width).into_iter().map(&make).collect();
            let (order, starts) = ([3, 0, 19, 7, 7, 7, 2, 1], [0, 1, 3, 6, 8]);
            for level in isa::all() {
                let mut out = vec![T::NAN; 4 * width];
                sum_rows(level, &x, &mut out, width, Groups { order: &order, starts: &starts });
                for (r, ends) in starts.windows(2).enumerate() {
                    for j in 0..width {
                        let terms = order[ends[0]..ends[1]].iter().map(|row| x[row * width + j].to_f64());
                        let want = T::rounded(terms.fold(0.0, |sum, v| sum + v));
                        assert_eq!(out[r * width + j].to_f64().to_bits(), want.to_f64().to_bits());
                    }
                }
            }
        }
    }

    #[test]
    fn sums_are_those_of_float64_rounded_once() {
        check(|v| v);
        check(|v| v as f32);
        check(f16::from_f64);
        check(bf16::from_f64);
    }

    #[test]
    fn a_single_row_keeps_its_bits() {
        let mut out = [0.0; 2];
        let groups = Groups { order: &[1], starts: &[0, 1] };
        sum_rows(isa::current(), &[1.0, 2.0, -0.0, 5e-324], &mut out, 2, groups);
        assert_eq!(out.map(f64::to_bits), [(-0.0_f64).to_bits(), 1]);
    }
}
