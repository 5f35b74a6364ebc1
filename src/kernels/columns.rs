//! Norms along an axis that is not the innermost: the sums of squares of many columns side by side, and the scaling
//! of a row by a factor per column.
//!
//! - Formula: `sum[j] + error[j] = Σ x[i][j]²` in float64, and `x[i][j] ← x[i][j]·s[j]`. Up to [`TILE`] neighbouring
//!   columns of a row are processed at a time.
//! - Order of additions: that of the rows, one accumulator per column.
//! - Error of a sum, relative, with u = 2⁻⁵³: rows·u for float32 and narrower, whose squares are exact. For float64
//!   2·u: each accumulator has a second one for the rounding errors of its additions (Knuth's two-sum), because the
//!   length of a column is not limited. Error of a product: ½ ulp, as in `scale.rs`, with the same bits.
//! - Bits: columns do not interact, and no multiplication is fused with an addition, so they do not depend on the
//!   level.

use super::half_precision::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, f64_to_f32_odd};
use super::scale::{Factor, with_canonical_nan};
use crate::allocation::{OutOfMemory, collect};
use fearless_simd::{Level, Simd, dispatch};
use half::{bf16, f16};

/// Number of columns that are summed side by side: their accumulators stay in the first-level cache.
pub const TILE: usize = 512;

/// An element type with kernels over columns.
pub trait Columns: Sized {
    /// Adds the squares of one row: `sum[j] + error[j] += x[j]²`. `error` is changed for float64 only.
    fn accumulate<S: Simd>(simd: S, sum: &mut [f64], error: &mut [f64], x: &[Self]);
    /// Computes `x[j] ← x[j]·factors[j]`, correctly rounded.
    fn scale_each<S: Simd>(simd: S, x: &mut [Self], factors: &Factors);
}

/// The factors of a tile of columns, with an array for each field of [`Factor`].
pub struct Factors {
    narrow: Vec<f32>,
    /// [`Factor::narrow_as_f64`] of each column.
    narrow_as_f64: Vec<f64>,
    wide: Vec<f64>,
    lift: Vec<f64>,
    any_wide: bool,
    any_special: bool,
    is_one: bool,
}

impl Factors {
    /// Whether every factor is 1.
    #[must_use]
    pub fn is_one(&self) -> bool {
        self.is_one
    }

    /// Returns factors for as many columns, in their order.
    ///
    /// # Errors
    ///
    /// If memory runs out.
    pub fn new(factors: &[Factor]) -> Result<Self, OutOfMemory> {
        Ok(Self {
            narrow: collect(factors.iter().map(|f| f.narrow))?,
            narrow_as_f64: collect(factors.iter().map(Factor::narrow_as_f64))?,
            wide: collect(factors.iter().map(|f| f.wide))?,
            lift: collect(factors.iter().map(|f| f.lift))?,
            any_wide: factors.iter().any(Factor::is_wide),
            any_special: factors.iter().any(Factor::is_special),
            is_one: factors.iter().all(|f| *f == Factor::ONE),
        })
    }
}

/// Adds the squares of one row to the sums of its columns: `sum[j] + error[j] += x[j]²`.
pub fn accumulate<T: Columns>(level: Level, sum: &mut [f64], error: &mut [f64], x: &[T]) {
    dispatch!(level, simd => T::accumulate(simd, sum, error, x));
}

/// Scales one row: `x[j] ← x[j]·factors[j]`, correctly rounded.
pub fn scale_each<T: Columns>(level: Level, x: &mut [T], factors: &Factors) {
    dispatch!(level, simd => T::scale_each(simd, x, factors));
}

impl Columns for f64 {
    #[inline(always)]
    fn accumulate<S: Simd>(_simd: S, sum: &mut [f64], error: &mut [f64], x: &[Self]) {
        for ((s, e), v) in sum.iter_mut().zip(error).zip(x) {
            let square = v * v;
            let total = *s + square;
            let part = total - *s;
            *e += (*s - (total - part)) + (square - part);
            *s = total;
        }
    }

    #[inline(always)]
    fn scale_each<S: Simd>(_simd: S, x: &mut [Self], factors: &Factors) {
        let columns = x.iter_mut().zip(&factors.wide).zip(&factors.lift);
        if factors.any_special {
            for ((v, wide), lift) in columns {
                *v = with_canonical_nan(*v, *wide, *v * lift * wide);
            }
        } else {
            for ((v, wide), lift) in columns {
                *v = *v * lift * wide;
            }
        }
    }
}

impl Columns for f32 {
    #[inline(always)]
    fn accumulate<S: Simd>(_simd: S, sum: &mut [f64], _error: &mut [f64], x: &[Self]) {
        for (s, v) in sum.iter_mut().zip(x) {
            let v = f64::from(*v);
            *s += v * v;
        }
    }

    #[inline(always)]
    fn scale_each<S: Simd>(_simd: S, x: &mut [Self], factors: &Factors) {
        if factors.any_wide || factors.any_special {
            for (j, v) in x.iter_mut().enumerate() {
                let product = f64::from(*v) * factors.lift[j] * factors.narrow_as_f64[j];
                *v = with_canonical_nan(*v, factors.wide[j], product as f32);
            }
        } else {
            for (v, narrow) in x.iter_mut().zip(&factors.narrow) {
                *v *= narrow;
            }
        }
    }
}

macro_rules! half_columns {
    ($($T:ty, $widen:path, $narrow:path;)*) => {$(
        impl Columns for $T {
            #[inline(always)]
            fn accumulate<S: Simd>(_simd: S, sum: &mut [f64], _error: &mut [f64], x: &[Self]) {
                for (s, v) in sum.iter_mut().zip(x) {
                    let v = f64::from($widen(v.to_bits()));
                    *s += v * v;
                }
            }

            #[inline(always)]
            fn scale_each<S: Simd>(_simd: S, x: &mut [Self], factors: &Factors) {
                let columns = x.iter_mut().zip(&factors.lift).zip(&factors.narrow_as_f64);
                if factors.any_special {
                    for (((v, lift), narrow), wide) in columns.zip(&factors.wide) {
                        let x = $widen(v.to_bits());
                        let product = f64_to_f32_odd(f64::from(x) * lift * narrow);
                        *v = <$T>::from_bits($narrow(with_canonical_nan(x, *wide, product)));
                    }
                } else {
                    for ((v, lift), narrow) in columns {
                        let product = f64::from($widen(v.to_bits())) * lift * narrow;
                        *v = <$T>::from_bits($narrow(f64_to_f32_odd(product)));
                    }
                }
            }
        }
    )*};
}

half_columns! {
    f16, f16_to_f32, f32_to_f16;
    bf16, bf16_to_f32, f32_to_bf16;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::Float;
    use crate::kernels::oracle::samples;
    use crate::kernels::scale::scale;

    fn check_columns<T: Float>(make: impl Fn(f64) -> T) {
        let columns = 67;
        let rows: Vec<Vec<T>> =
            samples(columns * 40).chunks(columns).map(|row| row.iter().map(|v| make(*v)).collect()).collect();
        for level in isa::all() {
            let (mut sum, mut error) = (vec![0.0; columns], vec![0.0; columns]);
            for row in &rows {
                accumulate(level, &mut sum, &mut error, row);
            }
            for j in 0..columns {
                let want: f64 = rows.iter().map(|row| row[j].to_f64().powi(2)).sum();
                assert!((sum[j] + error[j] - want).abs() <= 1e-14 * want);
            }
            let factors: Vec<Factor> =
                (0..columns).map(|j| Factor::new(0.1 + j as f64 / 100.0, 1.0, 0)).collect();
            let mut got = rows[0].clone();
            scale_each(level, &mut got, &Factors::new(&factors).unwrap());
            for j in 0..columns {
                let mut want = [rows[0][j]];
                scale(level, &mut want, factors[j]);
                assert_eq!(got[j].to_f64(), want[0].to_f64());
            }
        }
    }

    #[test]
    fn sums_and_products_equal_those_of_slices() {
        check_columns(|v| v);
        check_columns(|v| v as f32);
        check_columns(f16::from_f64);
        check_columns(bf16::from_f64);
    }
}
