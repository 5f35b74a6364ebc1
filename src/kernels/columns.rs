//! Norms along an axis that is not the innermost: the sums of squares, sums of powers or maxima of many columns side by
//! side, and the scaling of a row by a factor per column.
//!
//! - Formula: `sum[j] + error[j] = Σ x[i][j]²` in float64, or `Σ |x[i][j]|ᵖ` for plain orders p, and
//!   `x[i][j] ← x[i][j]·s[j]`. Up to [`TILE`] neighbouring columns of a row are processed at a time.
//! - Order of additions: that of the rows, one accumulator per column.
//! - Error of a sum, relative, with u = 2⁻⁵³: rows·u for float32 and narrower, whose squares are exact. For float64
//!   2·u, and so for powers of any type, besides their own error: each accumulator has a second one for the rounding errors of its additions (Knuth's two-sum), because the
//!   length of a column is not limited. Error of a product: ½ ulp, as in `scale.rs`, with the same bits.
//! - Bits: columns do not interact, and no multiplication is fused with an addition, so they do not depend on the
//!   level.

use super::Float;
use super::half_precision::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, f64_to_f32_odd};
use super::power_sum::PlainPower;
use super::scale::{Factor, with_canonical_nan};
use crate::allocation::{OutOfMemory, with_capacity};
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

/// The factors of columns that lie side by side, with a slice for each field of [`Factor`].
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    narrow: &'a [f32],
    /// [`Factor::narrow_as_f64`] of each column.
    narrow_as_f64: &'a [f64],
    wide: &'a [f64],
    lift: &'a [f64],
    any_wide: bool,
    any_special: bool,
    is_one: bool,
}

impl Factors<'_> {
    /// Whether every factor is 1.
    #[must_use]
    pub fn is_one(&self) -> bool {
        self.is_one
    }
}

/// Memory for the factors of columns: vectors.
pub struct FactorVecs {
    narrow: Vec<f32>,
    narrow_as_f64: Vec<f64>,
    wide: Vec<f64>,
    lift: Vec<f64>,
    any_wide: bool,
    any_special: bool,
    is_one: bool,
}

impl FactorVecs {
    /// Returns factors for as many columns, in their order.
    ///
    /// # Errors
    ///
    /// If memory runs out.
    pub fn new(factors: &[Factor]) -> Result<Self, OutOfMemory> {
        let mut result = Self::with_capacity(factors.len())?;
        result.set(factors.iter().copied());
        Ok(result)
    }

    /// Returns memory for the factors of `capacity` columns.
    ///
    /// # Errors
    ///
    /// If memory runs out.
    pub fn with_capacity(capacity: usize) -> Result<Self, OutOfMemory> {
        Ok(Self {
            narrow: with_capacity(capacity)?,
            narrow_as_f64: with_capacity(capacity)?,
            wide: with_capacity(capacity)?,
            lift: with_capacity(capacity)?,
            any_wide: false,
            any_special: false,
            is_one: true,
        })
    }

    /// Returns the factors.
    #[must_use]
    pub fn get(&self) -> Factors<'_> {
        Factors {
            narrow: &self.narrow,
            narrow_as_f64: &self.narrow_as_f64,
            wide: &self.wide,
            lift: &self.lift,
            any_wide: self.any_wide,
            any_special: self.any_special,
            is_one: self.is_one,
        }
    }

    /// Replaces the factors. There must not be more than the capacity.
    pub fn set(&mut self, factors: impl Iterator<Item = Factor>) {
        for column in [&mut self.narrow_as_f64, &mut self.wide, &mut self.lift] {
            column.clear();
        }
        self.narrow.clear();
        (self.any_wide, self.any_special, self.is_one) = (false, false, true);
        for factor in factors {
            self.narrow.push(factor.narrow);
            self.narrow_as_f64.push(factor.narrow_as_f64());
            self.wide.push(factor.wide);
            self.lift.push(factor.lift);
            self.any_wide |= factor.is_wide();
            self.any_special |= factor.is_special();
            self.is_one &= factor == Factor::ONE;
        }
    }
}

/// Memory for the factors of up to `N` columns that are all plain: 1, or a normal float32 below 1.
pub struct FactorArrays<const N: usize> {
    narrow: [f32; N],
    narrow_as_f64: [f64; N],
    wide: [f64; N],
    lift: [f64; N],
}

impl<const N: usize> Default for FactorArrays<N> {
    fn default() -> Self {
        Self { narrow: [1.0; N], narrow_as_f64: [1.0; N], wide: [1.0; N], lift: [1.0; N] }
    }
}

impl<const N: usize> FactorArrays<N> {
    /// Returns the factors that [`Factor::new`] returns for norms above their bounds, and 1 for others, for elements of
    /// type `T`. Returns None if a norm is not finite, a bound is negative or NaN, or a factor is not a normal float32.
    pub fn set_plain<T: Columns>(
        &mut self,
        level: Level,
        norms: &[f64],
        bounds: &[impl Copy + Into<f64>],
    ) -> Option<Factors<'_>> {
        let count = norms.len();
        let Self { narrow, narrow_as_f64, wide, lift } = self;
        let (narrow, narrow_as_f64) = (&mut narrow[..count], &mut narrow_as_f64[..count]);
        let (wide, lift) = (&mut wide[..count], &lift[..count]);
        let found = dispatch!(level, simd => {
            let _ = simd;
            // Each type of element reads one of these.
            match size_of::<T>() {
                2 => plain_factors(norms, bounds, narrow_as_f64, |factor| f64::from(factor as f32)),
                4 => plain_factors(norms, bounds, narrow, |factor| factor as f32),
                _ => plain_factors(norms, bounds, wide, |factor| factor),
            }
        });
        found.map(|is_one| Factors {
            narrow,
            narrow_as_f64,
            wide,
            lift,
            any_wide: false,
            any_special: false,
            is_one,
        })
    }
}

/// Stores the factors of [`FactorArrays::set_plain`], each converted by `convert`. Returns whether all are 1.
#[inline(always)]
fn plain_factors<F>(
    norms: &[f64],
    bounds: &[impl Copy + Into<f64>],
    factors: &mut [F],
    convert: impl Fn(f64) -> F,
) -> Option<bool> {
    let (mut failed, mut exceeded) = (0_u64, 0_u64);
    for ((to, norm), bound) in factors.iter_mut().zip(norms).zip(bounds) {
        let bound: f64 = (*bound).into();
        let exceeds = *norm > bound;
        let factor = if exceeds { bound / norm } else { 1.0 };
        *to = convert(factor);
        exceeded |= u64::from(exceeds);
        // Without branches, so that the loop is compiled to vector instructions. The comparisons are false for NaN.
        let (is_finite, is_bound) = (*norm <= f64::MAX, bound >= 0.0);
        let is_normal = factor >= f64::from(f32::MIN_POSITIVE);
        failed |= u64::from(!is_finite) | u64::from(!is_bound) | u64::from(!is_normal);
    }
    (failed == 0).then_some(exceeded == 0)
}

/// Adds the squares of one row to the sums of its columns: `sum[j] + error[j] += x[j]²`.
pub fn accumulate<T: Columns>(level: Level, sum: &mut [f64], error: &mut [f64], x: &[T]) {
    dispatch!(level, simd => T::accumulate(simd, sum, error, x));
}

/// Adds the powers |x|ᵖ of one row to the sums of its columns, for orders that are plain (see `power_sum.rs`).
pub fn accumulate_powers<T: Float>(level: Level, sum: &mut [f64], error: &mut [f64], x: &[T], p: f64) {
    let plain = PlainPower::new(p);
    dispatch!(level, simd => {
        let _ = simd;
        let (mut abs, mut powers) = ([0.0; POWERS], [0.0; POWERS]);
        let blocks = sum.chunks_mut(POWERS).zip(error.chunks_mut(POWERS)).zip(x.chunks(POWERS));
        for ((sum, error), x) in blocks {
            for (abs, x) in abs.iter_mut().zip(x) {
                *abs = x.to_f64().abs();
            }
            for (power, abs) in powers.iter_mut().zip(&abs) {
                *power = if plain.has_root { abs.sqrt() } else { *abs };
            }
            for _ in usize::from(!plain.has_root)..plain.whole {
                for (power, abs) in powers.iter_mut().zip(&abs) {
                    *power *= abs;
                }
            }
            for ((s, e), power) in sum.iter_mut().zip(error).zip(&powers) {
                add_with_error(s, e, *power);
            }
        }
    });
}

/// Computes `roots[j] = √sums[j]`.
pub fn square_roots(level: Level, sums: &[f64], roots: &mut [f64]) {
    dispatch!(level, simd => {
        let _ = simd;
        for (root, sum) in roots.iter_mut().zip(sums) {
            *root = sum.sqrt();
        }
    });
}

/// Replaces the maxima of the columns where the absolute value of one row's element is larger, or NaN.
pub fn accumulate_max<T: Float>(level: Level, max: &mut [f64], x: &[T]) {
    dispatch!(level, simd => {
        let _ = simd;
        for (max, x) in max.iter_mut().zip(x) {
            let abs = x.to_f64().abs();
            *max = if max.is_nan() || *max >= abs { *max } else { abs };
        }
    });
}

/// Number of elements whose powers are computed at a time: as many as stay in the first-level cache.
const POWERS: usize = 64;

/// Adds `x` to `sum`, and the rounding error of the addition to `error`.
#[inline(always)]
fn add_with_error(sum: &mut f64, error: &mut f64, x: f64) {
    let total = *sum + x;
    let part = total - *sum;
    *error += (*sum - (total - part)) + (x - part);
    *sum = total;
}

/// Scales one row: `x[j] ← x[j]·factors[j]`, correctly rounded.
pub fn scale_each<T: Columns>(level: Level, x: &mut [T], factors: &Factors) {
    dispatch!(level, simd => T::scale_each(simd, x, factors));
}

impl Columns for f64 {
    #[inline(always)]
    fn accumulate<S: Simd>(_simd: S, sum: &mut [f64], error: &mut [f64], x: &[Self]) {
        for ((s, e), v) in sum.iter_mut().zip(error).zip(x) {
            add_with_error(s, e, v * v);
        }
    }

    #[inline(always)]
    fn scale_each<S: Simd>(_simd: S, x: &mut [Self], factors: &Factors) {
        let columns = x.iter_mut().zip(factors.wide).zip(factors.lift);
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
            for (v, narrow) in x.iter_mut().zip(factors.narrow) {
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
                let columns = x.iter_mut().zip(factors.lift).zip(factors.narrow_as_f64);
                if factors.any_special {
                    for (((v, lift), narrow), wide) in columns.zip(factors.wide) {
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
            scale_each(level, &mut got, &FactorVecs::new(&factors).unwrap().get());
            for j in 0..columns {
                let mut want = [rows[0][j]];
                scale(level, &mut want, factors[j]);
                assert_eq!(got[j].to_f64(), want[0].to_f64());
            }
        }
    }

    #[test]
    fn powers_and_maxima_equal_those_of_slices() {
        use crate::kernels::max_abs::max_abs;
        use crate::kernels::power_sum::plain_power_sum;
        let columns = 131;
        let x: Vec<f32> = samples(columns * 40).iter().map(|v| *v as f32).collect();
        for level in isa::all() {
            for p in [0.5, 1.0, 2.5, 3.0, 6.0] {
                let (mut sum, mut error, mut max) =
                    (vec![0.0; columns], vec![0.0; columns], vec![0.0; columns]);
                for row in x.chunks(columns) {
                    accumulate_powers(level, &mut sum, &mut error, row, p);
                    accumulate_max(level, &mut max, row);
                }
                for j in 0..columns {
                    let column: Vec<f32> = x[j..].iter().step_by(columns).copied().collect();
                    let want = plain_power_sum(level, &column, p);
                    assert!((sum[j] + error[j] - want).abs() <= 1e-14 * want, "{level:?} {p}");
                    assert_eq!(max[j], max_abs(level, &column));
                }
            }
            let mut max = [0.0, 0.0];
            accumulate_max(level, &mut max, &[f64::NAN, 1.0]);
            accumulate_max(level, &mut max, &[5.0, f64::NEG_INFINITY]);
            assert!(max[0].is_nan() && max[1] == f64::INFINITY);
        }
    }

    #[test]
    fn plain_factors_are_those_of_single_norms() {
        let norms = [2.0, 1.0, 0.25, 1e300, 2.0, 9e-200, 0.0, 3.0, 49.0];
        let bounds = [1.0, 1.0, 3.0, 1e280, f64::INFINITY, 1e-205, 0.5, 0.1, 1e-30];
        let factor = |j: usize| {
            if norms[j] > bounds[j] { Factor::new(bounds[j], norms[j], 0) } else { Factor::ONE }
        };
        let each = FactorVecs::new(&(0..norms.len()).map(factor).collect::<Vec<_>>()).unwrap();
        let each = each.get();
        for level in isa::all() {
            let mut arrays = FactorArrays::<16>::default();
            let plain = arrays.set_plain::<f32>(level, &norms, &bounds).unwrap();
            assert!(plain.narrow == each.narrow && !plain.is_one() && !each.is_one());
            assert_eq!(
                arrays.set_plain::<f16>(level, &norms, &bounds).unwrap().narrow_as_f64,
                each.narrow_as_f64
            );
            let plain = arrays.set_plain::<f64>(level, &norms, &bounds).unwrap();
            assert_eq!((plain.wide, plain.lift), (each.wide, each.lift));
            assert!(arrays.set_plain::<f32>(level, &norms[..2], &[2.0_f32, 1.0]).unwrap().is_one());
            for (norm, bound) in [
                (f64::NAN, 1.0),
                (f64::INFINITY, 1.0),
                (1.0, f64::NAN),
                (1.0, 0.0),
                (1.0, -1.0),
                (1.0, 1e-39),
            ] {
                assert!(
                    arrays.set_plain::<f32>(level, &[1.0, norm], &[1.0, bound]).is_none(),
                    "{norm} {bound}"
                );
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
