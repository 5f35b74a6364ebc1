use super::*;
use crate::engine::exec::ChunkMut;
use crate::kernels::operation;

fn operand(pointer: *mut u8, strides: &[isize]) -> Operand<'_> {
    Operand { pointer, strides, scalar: Scalar::F32, is_written: false }
}

/// Returns a segment, in place, whose element at index 0 of every axis is `data[first]`. Strides are in elements.
fn segment(data: &mut [f32], shape: &[usize], strides: &[isize], first: usize) -> Segment {
    let bytes: Vec<isize> = strides.iter().map(|s| s * 4).collect();
    let pointer = data[first..].as_mut_ptr().cast::<u8>();
    let operand = operand(pointer, &bytes);
    Segment::in_test(false, shape, [Some(operand), Some(operand.written()), None, None])
}

fn scratch() -> Scratch {
    Scratch::new(1 << 16).unwrap()
}

fn read_all(s: &Segment) -> Vec<f32> {
    s.read(0..s.len(), &mut scratch(), <[f32]>::to_vec)
}

fn numbers(n: u16) -> Vec<f32> {
    (0..n).map(f32::from).collect()
}

#[test]
fn memory_without_gaps_is_dense_in_any_axis_order_and_direction() {
    let mut data = numbers(24);
    for (shape, strides, first) in [
        (vec![2, 3, 4], vec![12, 4, 1], 0),
        (vec![4, 3, 2], vec![1, 4, 12], 0),
        (vec![3, 2, 4], vec![4, 12, 1], 0),
        (vec![24], vec![-1], 23),
        (vec![2, 12], vec![-12, 1], 12),
        (vec![2, 1, 12], vec![12, 999, 1], 0),
    ] {
        let s = segment(&mut data, &shape, &strides, first);
        assert_eq!(s.layout, Layout::Dense, "{shape:?} {strides:?}");
        assert_eq!(read_all(&s), numbers(24));
    }
}

#[test]
fn gaps_repeated_elements_and_ranges_are_gathered() {
    let mut data = numbers(24);
    let every_other = segment(&mut data, &[12], &[2], 0);
    assert_eq!(read_all(&every_other), (0..12).map(|i| f32::from(i as u16 * 2)).collect::<Vec<_>>());
    let part = every_other.read(3..7, &mut scratch(), <[f32]>::to_vec);
    assert_eq!(part, [6.0, 8.0, 10.0, 12.0]);
    let repeated = segment(&mut data, &[2, 3], &[0, 1], 5);
    assert_eq!(read_all(&repeated).iter().sum::<f32>(), 2.0 * (5.0 + 6.0 + 7.0));
    let corner = segment(&mut data, &[3, 2], &[4, 1], 1);
    assert_eq!(read_all(&corner), [1.0, 2.0, 5.0, 6.0, 9.0, 10.0]);
    assert_eq!(corner.read(1..4, &mut scratch(), <[f32]>::to_vec), [2.0, 5.0, 6.0]);
}

#[test]
fn a_strided_output_receives_the_updated_block() {
    let mut data = numbers(5000);
    let mut s = segment(&mut data, &[2500], &[2], 0);
    ChunkMut::from_segment(&mut s).update::<f32>(false, &mut scratch(), |run, _| {
        let operation::Run::InPlace(block) = run else { unreachable!() };
        for v in block {
            *v = -*v;
        }
        true
    });
    for (i, v) in data.iter().enumerate() {
        let want = i as f32 * if i % 2 == 0 { -1.0 } else { 1.0 };
        assert_eq!(*v, want);
    }
}

#[test]
fn a_misaligned_run_is_strided_and_an_empty_one_is_dense() {
    let mut bytes = vec![0_u8; 64];
    let at = bytes.as_mut_ptr().align_offset(4) + 1;
    bytes[at..at + 8].copy_from_slice(&[0, 0, 128, 63, 0, 0, 0, 64]);
    let strides = [4];
    let operand = Some(operand(bytes[at..].as_mut_ptr(), &strides));
    let s = Segment::in_test(false, &[2], [operand, None, None, None]);
    assert!(matches!(s.layout, Layout::Strided(_)));
    assert_eq!(read_all(&s), [1.0, 2.0]);
    let empty = Segment::in_test(false, &[0], [operand, None, None, None]);
    assert_eq!(empty.layout, Layout::Dense);
    assert!(read_all(&empty).is_empty());
}

#[test]
fn complex_numbers_are_pairs_of_reals() {
    let mut data = numbers(8);
    let pointer = data.as_mut_ptr().cast::<u8>();
    let dense = operand(pointer, &[8]);
    let with_gaps = operand(pointer, &[16]);
    let dense = Segment::in_test(true, &[4], [Some(dense), None, None, None]);
    let with_gaps = Segment::in_test(true, &[2], [Some(with_gaps), None, None, None]);
    assert_eq!((&dense.layout, read_all(&dense)), (&Layout::Dense, numbers(8)));
    assert_eq!(read_all(&with_gaps), [0.0, 1.0, 4.0, 5.0]);
    let repeated = operand(pointer, &[0, 8]);
    let repeated = Segment::in_test(true, &[3, 2], [Some(repeated), None, None, None]);
    for pair in read_all(&repeated).chunks(2) {
        assert_eq!(pair[1], pair[0] + 1.0);
    }
}
