use super::*;
use crate::engine::isa;
use crate::scalar::Scalar;

/// Clips `data` of this shape and these strides along `axes`, out of place. Returns the output and the norms.
fn clip(
    data: &[f32],
    shape: &[usize],
    strides: &[isize],
    axes: &[usize],
    bound: f64,
    threads: usize,
) -> (Vec<f32>, Vec<f64>) {
    let dtype = DType { scalar: Scalar::F32, complex: false };
    let mut input = data.to_vec();
    let mut output = vec![f32::NAN; data.len()];
    let reduced: Vec<bool> = (0..shape.len()).map(|axis| axes.contains(&axis)).collect();
    let slices: usize = (0..shape.len()).filter(|a| !reduced[*a]).map(|a| shape[a]).product();
    let mut norms = vec![0.0; slices];
    let mut bound = bound;
    let bytes: Vec<isize> = strides.iter().map(|s| s * 4).collect();
    let mut step = 8;
    let mut norm_strides = vec![0; shape.len()];
    for axis in (0..shape.len()).rev().filter(|a| !reduced[*a]) {
        norm_strides[axis] = step;
        step *= shape[axis] as isize;
    }
    let none = vec![0; shape.len()];
    let operand =
        |pointer, strides, scalar, is_written| Some(Operand { pointer, strides, scalar, is_written });
    let operands = [
        operand(input.as_mut_ptr().cast(), &bytes[..], Scalar::F32, false),
        operand(output.as_mut_ptr().cast(), &bytes, Scalar::F32, true),
        operand(norms.as_mut_ptr().cast(), &norm_strides, Scalar::F64, true),
        operand((&raw mut bound).cast(), &none, Scalar::F64, false),
    ];
    let context = Context { level: isa::detected(), threads };
    let slices = Slices::in_test(dtype, shape, &reduced, operands, Order::Two);
    slices.prepare(context).unwrap().finish();
    (output, norms)
}

/// Returns the position of an element in the data.
fn position(strides: &[isize], index: &[usize]) -> usize {
    index.iter().zip(strides).map(|(i, s)| *i as isize * s).sum::<isize>() as usize
}

#[test]
fn all_axes_and_memory_orders_agree_with_a_simple_loop() {
    let shape = [5, 33, 700];
    let n = shape.iter().product();
    let data: Vec<f32> = crate::kernels::oracle::samples(n).into_iter().map(|v| v as f32).collect();
    for strides in [[33 * 700, 700, 1], [1, 5, 5 * 33], [33, 1, 33 * 5]] {
        for axes in [vec![], vec![0], vec![1], vec![2], vec![0, 1], vec![1, 2], vec![0, 2], vec![0, 1, 2]] {
            let mut sums = std::collections::BTreeMap::new();
            let mut visit = |f: &mut dyn FnMut(&mut f64, usize)| {
                for i in 0..shape[0] {
                    for j in 0..shape[1] {
                        for k in 0..shape[2] {
                            let index = [i, j, k];
                            let key: Vec<usize> =
                                (0..3).filter(|a| !axes.contains(a)).map(|a| index[a]).collect();
                            f(sums.entry(key).or_insert(0.0), position(&strides, &index));
                        }
                    }
                }
            };
            visit(&mut |sum, at| *sum += f64::from(data[at]).powi(2));
            let bound = 3.0;
            for threads in [1, 3] {
                let (got, norms) = clip(&data, &shape, &strides, &axes, bound, threads);
                visit(&mut |sum, at| {
                    let norm = sum.sqrt();
                    let want = f64::from(data[at]) * (bound / norm.max(bound));
                    assert!((f64::from(got[at]) - want).abs() <= 2e-7 * want.abs(), "{axes:?} {strides:?}");
                });
                let want: Vec<f64> = sums_of(&data, &shape, &strides, &axes);
                assert_eq!(norms.len(), want.len());
                for (a, b) in norms.iter().zip(want) {
                    assert!((a - b).abs() <= 1e-13 * b);
                }
            }
        }
    }
}

fn sums_of(data: &[f32], shape: &[usize; 3], strides: &[isize; 3], axes: &[usize]) -> Vec<f64> {
    let mut sums = std::collections::BTreeMap::new();
    for i in 0..shape[0] {
        for j in 0..shape[1] {
            for k in 0..shape[2] {
                let index = [i, j, k];
                let key: Vec<usize> = (0..3).filter(|a| !axes.contains(a)).map(|a| index[a]).collect();
                *sums.entry(key).or_insert(0.0) += f64::from(data[position(strides, &index)]).powi(2);
            }
        }
    }
    sums.into_values().map(f64::sqrt).collect()
}

#[test]
fn slices_of_more_than_a_chunk_and_empty_slices() {
    let n = 2 * (CHUNK + 5);
    let data: Vec<f32> = vec![1.0; n];
    let (got, norms) = clip(&data, &[2, CHUNK + 5], &[(CHUNK + 5) as isize, 1], &[1], 1.0, 2);
    let want = ((CHUNK + 5) as f64).sqrt();
    assert_eq!(norms, [want, want]);
    assert!(got.iter().all(|v| *v == (1.0 / want) as f32));
    let (_, norms) = clip(&[], &[3, 0], &[0, 1], &[1], 1.0, 1);
    assert_eq!(norms, [0.0; 3]);
    let (_, norms) = clip(&[], &[0, 9], &[0, 1], &[0], 1.0, 1);
    assert_eq!(norms, [0.0; 9]);
}
