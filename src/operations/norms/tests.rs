//! Tests of norms over whole tensors.

use super::scaled::exponent_of;
use super::*;
use crate::engine::isa;
use crate::engine::segment::Run;
use crate::engine::workspace::Context;
use crate::kernels::oracle::{exact_sum, fnv1a};
use crate::operations::magnitude::{combine, times_power_of_two};

/// Returns dense segments that are read, one for each tensor.
fn segments<T>(scalar: Scalar, is_complex: bool, tensors: &mut [Vec<T>]) -> Vec<Segment> {
    tensors
        .iter_mut()
        .map(|t| {
            let pointer = t.as_mut_ptr().cast::<u8>();
            let run = Run { pointer, scalar, is_written: false };
            Segment::dense_in_test(is_complex, t.len(), [Some(run), None, None, None])
        })
        .collect()
}

/// Returns the norm of each segment, followed by that of all together. Checks that [`measure_chunk`] agrees.
fn norms(segments: &[Segment], order: Order, threads: usize) -> Vec<f64> {
    let plan = Plan::new(segments).unwrap();
    let context = Context { level: isa::detected(), threads };
    let workspace = Workspace::new(context, segments, &plan).unwrap();
    let magnitudes = measure(&workspace, segments, &plan, order).unwrap();
    for (segment, magnitude) in
        segments.iter().zip(&magnitudes).filter(|(s, _)| s.len() <= crate::engine::plan::CHUNK)
    {
        let alone = measure_chunk(workspace.level, segment, order, &mut Scratch::default());
        assert!(alone == *magnitude || alone.value.is_nan() && magnitude.value.is_nan());
    }
    let total = combine(&magnitudes, order).norm(order);
    magnitudes.iter().map(|m| m.norm(order)).chain([total]).collect()
}

#[test]
fn norms_of_extreme_values_neither_overflow_nor_underflow() {
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
fn norms_of_extreme_complex_numbers_neither_overflow_nor_underflow() {
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
fn bits_do_not_depend_on_the_number_of_threads() {
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
fn nan_and_infinity_reach_the_norm_of_their_tensor_and_the_total() {
    let mut tensors = [vec![1.0_f64, f64::INFINITY], vec![2.0, f64::NAN], vec![3.0]];
    let s = segments(Scalar::F64, false, &mut tensors);
    for order in [Order::Two, Order::Max, Order::One, Order::Power(2.5)] {
        let got = norms(&s, order, 1);
        assert!(got[0] == f64::INFINITY && got[1].is_nan() && got[3].is_nan(), "{order:?} {got:?}");
        assert!((got[2] - 3.0).abs() < 1e-15);
    }
}

/// Returns the norm of order `p` of non-negative values, with mantissas and exponents of two computed separately.
fn reference(values: &[f64], p: f64) -> f64 {
    let split = |x: f64| {
        let exponent = exponent_of(x);
        (times_power_of_two(x, -exponent), exponent)
    };
    let Some((top_mantissa, top_exponent)) =
        values.iter().filter(|x| **x > 0.0).map(|x| split(*x)).max_by_key(|(m, e)| (*e, m.to_bits()))
    else {
        return 0.0;
    };
    let power = |x: f64| {
        let (mantissa, exponent) = split(x);
        (p * ((mantissa / top_mantissa).log2() + f64::from(exponent - top_exponent))).exp2()
    };
    let total = exact_sum(values.iter().filter(|x| **x > 0.0).map(|x| power(*x)));
    let log = if total == 1.0 { 0.0 } else { total.log2() / p };
    let floor = log.floor().min(1e6);
    times_power_of_two(top_mantissa * (log - floor).clamp(0.0, 1.0).exp2(), top_exponent + floor as i32)
}

/// Orders from the smallest to the largest float64.
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

/// Compares norms of real and complex tensors of one type, and the norm of all together, with [`reference`].
fn check_against_reference<T: crate::kernels::Float>(
    scalar: Scalar,
    tensors: &[&[f64]],
    convert: impl Fn(f64) -> T,
) {
    let mut converted: Vec<Vec<T>> =
        tensors.iter().map(|x| x.iter().map(|v| convert(*v)).collect()).collect();
    let values: Vec<Vec<f64>> =
        converted.iter().map(|x| x.iter().map(|v| v.to_f64().abs()).collect()).collect();
    let together = values.concat();
    // The same absolute values as complex numbers, real and imaginary ones in turn.
    let mut pairs: Vec<Vec<T>> = converted
        .iter()
        .map(|x| {
            let pair = |(i, v): (usize, &T)| if i % 2 == 0 { [*v, T::ZERO] } else { [T::ZERO, *v] };
            x.iter().enumerate().flat_map(pair).collect()
        })
        .collect();
    for p in ORDERS {
        let want: Vec<f64> = values.iter().chain([&together]).map(|values| reference(values, p)).collect();
        for is_complex in [false, true] {
            let tensors = if is_complex { &mut pairs } else { &mut converted };
            let got = norms(&segments(scalar, is_complex, tensors), Order::new(p), 1);
            let bound = 1e-14 * (1.0 / p).max(1.0);
            for (got, want) in got.iter().zip(&want) {
                let is_close = got == want || (got - want).abs() <= bound * want + 5e-324;
                assert!(is_close, "{p:e} {is_complex} {got:e} {want:e} {values:?}");
            }
        }
    }
}

#[test]
fn norms_of_every_order_agree_with_a_reference() {
    let float64_tensors: [&[f64]; 9] = [
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
    for tensor in float64_tensors {
        check_against_reference(Scalar::F64, &[tensor], |v| v);
    }
    check_against_reference(Scalar::F64, &float64_tensors, |v| v);
    let narrow_tensors: [&[f64]; 6] =
        [&[0.0, -0.3, 0.0], &[0.7; 5], &[1e-3, 7.0, -1e3, 12.5], &[6e4, 6e-8, 1.0], &[0.0; 4], &[]];
    check_against_reference(Scalar::F32, &narrow_tensors, |v| v as f32);
    check_against_reference(Scalar::F16, &narrow_tensors, half::f16::from_f64);
    check_against_reference(Scalar::BF16, &narrow_tensors, half::bf16::from_f64);
    check_against_reference(Scalar::F32, &[&[3e38, 1e-45]], |v| v as f32);
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn bits_of_norms_over_many_chunks_have_not_changed() {
    let samples = crate::kernels::oracle::samples(700_001);
    let mut tensors = [samples.clone(), samples[..131_073].to_vec(), samples[..9].to_vec()];
    let s = segments(Scalar::F64, false, &mut tensors);
    for threads in [1, 3] {
        let orders = [Order::One, Order::Two, Order::Max];
        let norms = orders.into_iter().flat_map(|order| norms(&s, order, threads));
        let hash = fnv1a(norms.flat_map(f64::to_le_bytes));
        assert_eq!(hash, 0xf41e_7bf9_b422_976d, "{hash:#018x} of {threads} threads");
    }
}
