//! Norms of many tensors in one pass.

use crate::allocation::{OutOfMemory, collect, try_collect};
use crate::engine::exec;
use crate::engine::isa::Level;
use crate::engine::plan::Plan;
use crate::engine::segment::{Scratch, Segment};
use crate::engine::workspace::Workspace;
use crate::kernels::Float;
use crate::kernels::max_abs::max_abs;
use crate::kernels::power_sum::{max_abs_complex, power_sum, power_sum_complex};
use crate::kernels::sum_squares::{sum_squares, sum_squares_scaled};
use crate::operations::magnitude::{Magnitude, Order, SMALL, pairwise};
use crate::scalar::Scalar;
use crate::with_float;
use std::ops::Range;

/// The magnitude of each segment, in one pass over all (two for orders that need the maximum first).
///
/// A float64 tensor whose squares over- or underflow is read again, scaled by a power of two.
pub fn measure<const N: usize>(
    workspace: &Workspace,
    segments: &[Segment<N>],
    plan: &Plan,
    order: Order,
) -> Result<Vec<Magnitude>, OutOfMemory> {
    let level = workspace.level;
    let sums = |partial: &(dyn Fn(&Segment<N>, Range<usize>, &mut Scratch) -> f64 + Sync), largest: bool| {
        let partials = exec::reduce(workspace, segments, plan, partial)?;
        let one = |parts: &[f64]| match parts {
            [single] => *single,
            parts if largest => parts.iter().copied().fold(0.0, nan_max),
            parts => pairwise(parts, &|v| *v),
        };
        let mut found = fold(segments, plan, &partials, one)?;
        for (segment, magnitude) in segments.iter().zip(&mut found) {
            if is_lost(segment, *magnitude, order) {
                *magnitude = measure_scaled(workspace, segment, order)?;
            }
        }
        Ok(found)
    };
    match order {
        Order::Max => sums(
            &|segment, range, scratch| largest(level, segment, range, segment.is_complex(), 1.0, scratch),
            true,
        ),
        Order::Two => sums(&|segment, range, scratch| squares(level, segment, range, scratch), false),
        Order::One => {
            sums(&|segment, range, scratch| powers(level, segment, range, 1.0, [1.0, 1.0], scratch), false)
        }
        Order::Power(_) => {
            try_collect(segments.len(), segments.iter().map(|s| measure_scaled(workspace, s, order)))
        }
    }
}

/// The magnitude of a segment of at most one chunk, by the calling thread: the value that [`measure`] finds.
pub fn measure_chunk<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    order: Order,
    scratch: &mut Scratch,
) -> Magnitude {
    let whole = 0..segment.len();
    let found = plain(match order {
        _ if segment.is_empty() => 0.0,
        Order::Max => largest(level, segment, whole, segment.is_complex(), 1.0, scratch),
        Order::Two => squares(level, segment, whole, scratch),
        Order::One => powers(level, segment, whole, 1.0, [1.0, 1.0], scratch),
        Order::Power(_) => f64::INFINITY,
    });
    let again = matches!(order, Order::Power(_)) || is_lost(segment, found, order);
    if segment.is_empty() || !again {
        return found;
    }
    let pass = |partial: &Partial, _| Ok(partial(0..segment.len(), scratch));
    // A single chunk is measured without an allocation.
    scaled(level, segment, order, pass).unwrap_or(found)
}

fn plain(sum: f64) -> Magnitude {
    Magnitude { value: sum, exponent: 0 }
}

/// Partial results of each segment's chunks made one.
fn fold<const N: usize>(
    segments: &[Segment<N>],
    plan: &Plan,
    partials: &[f64],
    one: impl Fn(&[f64]) -> f64,
) -> Result<Vec<Magnitude>, OutOfMemory> {
    let mut at = 0;
    collect((0..segments.len()).map(|index| {
        let start = at;
        while at < plan.chunks().len() && plan.chunks()[at].segment == index {
            at += 1;
        }
        plain(one(&partials[start..at]))
    }))
}

fn nan_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || a >= b { a } else { b }
}

/// Whether the sum of a segment may have left the range of float64, and has to be taken again with scaling.
fn is_lost<const N: usize>(segment: &Segment<N>, found: Magnitude, order: Order) -> bool {
    let sum = found.value;
    let lost = match order {
        Order::Two => !sum.is_finite() || sum < SMALL,
        // Absolute values so small that they are rounded coarsely.
        Order::One if segment.is_complex() && sum < SMALL => true,
        // A sum or a complex absolute value that overflowed.
        _ => sum.is_infinite(),
    };
    lost && segment.scalar() == Scalar::F64 && !segment.is_empty()
}

/// What is computed of a range of a segment.
type Partial<'a> = dyn Fn(Range<usize>, &mut Scratch) -> f64 + Sync + 'a;

/// How the results of the chunks of a segment become one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fold {
    Largest,
    Sum,
}

/// As [`scaled`], in passes on the threads of a workspace.
fn measure_scaled<const N: usize>(
    workspace: &Workspace,
    segment: &Segment<N>,
    order: Order,
) -> Result<Magnitude, OutOfMemory> {
    let segments = std::slice::from_ref(segment);
    let plan = Plan::new(segments)?;
    scaled(workspace.level, segment, order, |partial: &Partial, fold| {
        let parts = exec::reduce(workspace, segments, &plan, |_, range, scratch| partial(range, scratch))?;
        Ok(match fold {
            Fold::Largest => parts.into_iter().fold(0.0, nan_max),
            Fold::Sum => pairwise(&parts, &|v| *v),
        })
    })
}

/// The magnitude of one segment in two passes: the largest element, then the sum of powers scaled by it. `pass` runs
/// over the segment and folds what it finds.
fn scaled<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    order: Order,
    mut pass: impl FnMut(&Partial, Fold) -> Result<f64, OutOfMemory>,
) -> Result<Magnitude, OutOfMemory> {
    let mut maximum = |complex: bool, factor: f64| {
        pass(&|range, scratch| largest(level, segment, range, complex, factor, scratch), Fold::Largest)
    };
    // Of the parts, if the numbers are complex: their absolute value may be out of range.
    let part = maximum(false, 1.0)?;
    if part == 0.0 || !part.is_finite() {
        return Ok(plain(part));
    }
    let exponent = exponent_of(part);
    // 2^1074 is out of range, but 2^1022 brings the smallest number there is to 2^-52.
    let exponent = exponent.max(-1022);
    let factor = f64::powi(2.0, -exponent);
    if order == Order::Max {
        return Ok(if segment.is_complex() {
            Magnitude { value: maximum(true, factor)?, exponent }
        } else {
            plain(part)
        });
    }
    // For other powers the largest element is divided by itself: 1, whose power neither overflows nor vanishes.
    let unit = match order {
        Order::Power(_) if segment.is_complex() => maximum(true, factor)?,
        Order::Power(_) => part * factor,
        _ => 1.0,
    };
    let sum = |range: Range<usize>, scratch: &mut Scratch| match order {
        Order::Two if segment.scalar() == Scalar::F64 => {
            segment.read(range, scratch, |x: &[f64]| sum_squares_scaled(level, x, factor))
        }
        _ => powers(level, segment, range, order.p(), [factor, unit], scratch),
    };
    let total = pass(&sum, Fold::Sum)?;
    Ok(match order {
        Order::Power(p) => Magnitude::from_powers(total, p, unit, exponent),
        _ => Magnitude { value: total, exponent },
    })
}

/// The exponent of the largest power of two that is not above a positive number.
fn exponent_of(x: f64) -> i32 {
    let biased = (x.to_bits() >> 52) as i32;
    if biased == 0 { -1074 + 63 - x.to_bits().leading_zeros() as i32 } else { biased - 1023 }
}

/// Σx² over a range.
pub fn squares<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    range: Range<usize>,
    scratch: &mut Scratch,
) -> f64 {
    with_float!(segment.scalar(), T => segment.read(range, scratch, |x: &[T]| sum_squares(level, x)), else 0.0)
}

fn largest<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    range: Range<usize>,
    complex: bool,
    factor: f64,
    scratch: &mut Scratch,
) -> f64 {
    fn of<T: Float>(level: Level, x: &[T], complex: bool, factor: f64) -> f64 {
        if complex { max_abs_complex(x, factor) } else { max_abs(level, x) }
    }
    with_float!(segment.scalar(), T => {
        segment.read(range, scratch, |x: &[T]| of(level, x, complex, factor))
    }, else 0.0)
}

fn powers<const N: usize>(
    level: Level,
    segment: &Segment<N>,
    range: Range<usize>,
    p: f64,
    factors: [f64; 2],
    scratch: &mut Scratch,
) -> f64 {
    let complex = segment.is_complex();
    with_float!(segment.scalar(), T => {
        segment.read(range, scratch, |x: &[T]| {
            if complex { power_sum_complex(level, x, p, factors) } else { power_sum(level, x, p, factors) }
        })
    }, else 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::engine::segment::Run;
    use crate::engine::workspace::Context;
    use crate::kernels::oracle::{exact_sum, fnv1a};
    use crate::operations::magnitude::{combine, times_power_of_two};
    use crate::scalar::DType;

    fn segments<T>(scalar: Scalar, complex: bool, tensors: &mut [Vec<T>]) -> Vec<Segment> {
        let dtype = DType { scalar, complex };
        tensors
            .iter_mut()
            .map(|t| {
                let pointer = t.as_mut_ptr().cast::<u8>();
                let run = Run { pointer, scalar: dtype.scalar, is_written: false };
                Segment::dense_in_test(dtype.complex, t.len(), [Some(run), None, None, None])
            })
            .collect()
    }

    fn norms(segments: &[Segment], order: Order, threads: usize) -> Vec<f64> {
        let plan = Plan::new(segments).unwrap();
        let context = Context { level: isa::detected(), threads };
        let workspace = Workspace::new(context, segments, &plan).unwrap();
        let found = measure(&workspace, segments, &plan, order).unwrap();
        for (segment, magnitude) in
            segments.iter().zip(&found).filter(|(s, _)| s.len() <= crate::engine::plan::CHUNK)
        {
            let alone = measure_chunk(workspace.level, segment, order, &mut Scratch::default());
            assert!(alone == *magnitude || alone.value.is_nan() && magnitude.value.is_nan());
        }
        let total = combine(&found, order).norm(order);
        found.iter().map(|m| m.norm(order)).chain([total]).collect()
    }

    #[test]
    fn extreme_values_neither_overflow_nor_vanish() {
        let mut tensors = [vec![3e307, -4e307], vec![3e-320, 4e-320], vec![], vec![5e-324], vec![0.0; 3]];
        let s = segments(Scalar::F64, false, &mut tensors);
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-15;
        let got = norms(&s, Order::Two, 1);
        assert!(close(got[0], 5e307) && close(got[1], 5e-320), "{got:?}");
        assert_eq!(got[2..], [0.0, 5e-324, 0.0, got[0]]);
        let got = norms(&s, Order::Power(3.0), 1);
        assert!(close(got[0], 91.0_f64.cbrt() * 1e307), "{got:?}");
        assert!(close(norms(&s, Order::One, 1)[0], 7e307));
        assert_eq!(norms(&s, Order::Max, 1), [4e307, 4e-320, 0.0, 5e-324, 0.0, 4e307]);
        assert_eq!(
            norms(&segments(Scalar::F64, false, &mut [vec![1.5e308; 9]]), Order::Two, 1)[0],
            f64::INFINITY
        );
    }

    #[test]
    fn complex_numbers_near_the_top_keep_their_absolute_value() {
        let mut tensors = [vec![1.2e308, 1.2e308, 1.0, 0.0]];
        let s = segments(Scalar::F64, true, &mut tensors);
        let want = 1.2e308 * 2.0_f64.sqrt();
        assert!((norms(&s, Order::Max, 1)[0] / want - 1.0).abs() < 1e-15);
        assert!((norms(&s, Order::Two, 1)[0] / want - 1.0).abs() < 1e-15);
        assert!((norms(&s, Order::One, 1)[0] / want - 1.0).abs() < 1e-15);
        let mut tensors = [vec![5e-324, 0.0]];
        let s = segments(Scalar::F64, true, &mut tensors);
        for order in [Order::Two, Order::Max, Order::One, Order::Power(3.0)] {
            assert_eq!(norms(&s, order, 1)[0], 5e-324);
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let values = crate::kernels::oracle::samples(1 << 20);
        let mut tensors = [
            values.iter().map(|v| *v as f32).collect::<Vec<_>>(),
            values[..700_001].iter().map(|v| *v as f32).collect(),
            vec![1.0; 5],
        ];
        let s = segments(Scalar::F32, false, &mut tensors);
        for order in [Order::Two, Order::Max, Order::One, Order::Power(3.0)] {
            let want: Vec<u64> = norms(&s, order, 1).into_iter().map(f64::to_bits).collect();
            for threads in 2..5 {
                let got: Vec<u64> = norms(&s, order, threads).into_iter().map(f64::to_bits).collect();
                assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows_in_its_tensor_and_in_the_total() {
        let mut tensors = [vec![1.0_f64, f64::INFINITY], vec![2.0, f64::NAN], vec![3.0]];
        let s = segments(Scalar::F64, false, &mut tensors);
        for order in [Order::Two, Order::Max, Order::One, Order::Power(2.5)] {
            let got = norms(&s, order, 1);
            assert!(got[0] == f64::INFINITY && got[1].is_nan() && got[3].is_nan(), "{order:?} {got:?}");
            assert!((got[2] - 3.0).abs() < 1e-15);
        }
    }

    /// The norm in float64, from sums of powers of mantissas and exponents by themselves.
    fn reference(sizes: &[f64], p: f64) -> f64 {
        let split = |x: f64| {
            let exponent = exponent_of(x);
            (times_power_of_two(x, -exponent), exponent)
        };
        let Some((top, above)) =
            sizes.iter().filter(|x| **x > 0.0).map(|x| split(*x)).max_by_key(|(m, e)| (*e, m.to_bits()))
        else {
            return 0.0;
        };
        let power = |x: f64| {
            let (mantissa, exponent) = split(x);
            (p * ((mantissa / top).log2() + f64::from(exponent - above))).exp2()
        };
        let total = exact_sum(sizes.iter().filter(|x| **x > 0.0).map(|x| power(*x)));
        let log = if total == 1.0 { 0.0 } else { total.log2() / p };
        let whole = log.floor().min(1e6);
        times_power_of_two(top * (log - whole).clamp(0.0, 1.0).exp2(), above + whole as i32)
    }

    const ORDERS: [f64; 17] = [
        5e-324,
        1e-310,
        1e-300,
        1e-3,
        0.01,
        0.1,
        0.5,
        0.9,
        1.5,
        3.0,
        64.0,
        65.0,
        1e3,
        1e6,
        1e20,
        1e300,
        f64::MAX,
    ];

    fn agree_with_the_reference<T: crate::kernels::Float>(
        scalar: Scalar,
        tensors: &[&[f64]],
        make: impl Fn(f64) -> T,
    ) {
        let mut made: Vec<Vec<T>> = tensors.iter().map(|x| x.iter().map(|v| make(*v)).collect()).collect();
        let sizes: Vec<Vec<f64>> =
            made.iter().map(|x| x.iter().map(|v| v.to_f64().abs()).collect()).collect();
        let together = sizes.concat();
        // As complex numbers: the first of each pair is real, the second imaginary.
        let mut pairs: Vec<Vec<T>> = made
            .iter()
            .map(|x| {
                let pair = |(i, v): (usize, &T)| if i % 2 == 0 { [*v, T::ZERO] } else { [T::ZERO, *v] };
                x.iter().enumerate().flat_map(pair).collect()
            })
            .collect();
        for p in ORDERS {
            let want: Vec<f64> = sizes.iter().chain([&together]).map(|sizes| reference(sizes, p)).collect();
            for complex in [false, true] {
                let tensors = if complex { &mut pairs } else { &mut made };
                let got = norms(&segments(scalar, complex, tensors), Order::new(p), 1);
                let bound = 1e-14 * (1.0 / p).max(1.0);
                for (got, want) in got.iter().zip(&want) {
                    let near = got == want || (got - want).abs() <= bound * want + 5e-324;
                    assert!(near, "{p:e} {complex} {got:e} {want:e} {sizes:?}");
                }
            }
        }
    }

    #[test]
    fn every_order_has_its_limit() {
        let wide: [&[f64]; 9] = [
            &[0.0, -0.3, 0.0],
            &[0.7; 5],
            &[1e-3, 7.0, -1e3, 12.5, 1e-3],
            &[1.7e308, -1.1e308, 1.7e308],
            &[1e-320, 3e-320, -5e-324],
            &[1.3e308, 1e-320, 1.0],
            &[2.5e-310],
            &[0.0; 4],
            &[],
        ];
        for tensor in wide {
            agree_with_the_reference(Scalar::F64, &[tensor], |v| v);
        }
        agree_with_the_reference(Scalar::F64, &wide, |v| v);
        let narrow: [&[f64]; 6] =
            [&[0.0, -0.3, 0.0], &[0.7; 5], &[1e-3, 7.0, -1e3, 12.5], &[6e4, 6e-8, 1.0], &[0.0; 4], &[]];
        agree_with_the_reference(Scalar::F32, &narrow, |v| v as f32);
        agree_with_the_reference(Scalar::F16, &narrow, half::f16::from_f64);
        agree_with_the_reference(Scalar::BF16, &narrow, half::bf16::from_f64);
        agree_with_the_reference(Scalar::F32, &[&[3e38, 1e-45]], |v| v as f32);
    }

    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn norms_over_many_chunks_have_the_stored_bits() {
        let values = crate::kernels::oracle::samples(700_001);
        let mut tensors = [values.clone(), values[..131_073].to_vec(), values[..9].to_vec()];
        let s = segments(Scalar::F64, false, &mut tensors);
        for threads in [1, 3] {
            let orders = [Order::One, Order::Two, Order::Max];
            let norms = orders.into_iter().flat_map(|order| norms(&s, order, threads));
            let hash = fnv1a(norms.flat_map(f64::to_le_bytes));
            assert_eq!(hash, 0x4942_8c06_25bc_c984, "{hash:#018x} of {threads} threads");
        }
    }
}
