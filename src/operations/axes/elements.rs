//! Clipping with a bound for each element: if the norm of its slice exceeds that bound, an element is multiplied by
//! their ratio.
//!
//! The slices are measured first, and their norms are stored in memory allocated here, as mantissa and exponent: a
//! norm may be beyond float64 although all elements are finite. A second pass reads the norms and bounds together with
//! the tensor.

use crate::allocation::{OutOfMemory, filled, with_capacity};
use crate::engine::exec::{self, ChunkMut, Direction, Task};
use crate::engine::isa::Level;
use crate::engine::plan::{CHUNK, Plan};
use crate::engine::segment::{self, INPUT, Operand, Scratch, Segment, element_count};
use crate::engine::workspace::{Context, Workspace};
use crate::kernels::Float;
use crate::kernels::columns::{FactorArrays, scale_each};
use crate::operations::axes::{EXPONENTS, NORMS, Slices};
use crate::operations::clip::Action;
use crate::operations::magnitude::{Magnitude, Order};
use crate::scalar::{DType, Scalar};
use crate::with_float;

/// Number of operands: input, output, and the three below.
const OPERANDS: usize = 5;
/// Index of the operand that holds the mantissa of the norm of an element's slice: float64.
const ROOT: usize = 2;
/// Index of the operand that holds the exponent of two of that norm: float64.
const EXPONENT: usize = 3;
/// Index of the operand that holds an element's bound: float32 or float64.
const BOUND: usize = 4;

/// A tensor, the norms of its slices, and a bound for each of its elements.
pub type Elements = Task<SliceNorms, OPERANDS>;

/// The norms of a tensor's slices.
pub struct SliceNorms {
    /// None if there are no elements, or the slices have been measured.
    slices: Option<Slices>,
    /// Memory of the mantissas and exponents of the norms, to which `slices` and the segment of the tensor point.
    memory: [Vec<f64>; 2],
    /// Whether the exponent of a norm is not 0.
    has_exponents: bool,
}

/// Returns a copy of `items`, followed by `last` if it is present.
fn extended<T: Copy>(items: &[T], last: Option<T>) -> Result<Vec<T>, OutOfMemory> {
    let mut copy = with_capacity(items.len() + 1)?;
    copy.extend_from_slice(items);
    copy.extend(last);
    Ok(copy)
}

impl Elements {
    /// Describes a tensor of this shape, whose axes with `is_reduced[axis]` are spanned by a slice, and allocates its
    /// norms. `bounds` are float32 or float64, with stride 0 along axes on which they do not differ.
    ///
    /// # Safety
    ///
    /// As [`Segment::new`], for the input, the output and the bounds.
    pub unsafe fn new(
        dtype: DType,
        shape: &[usize],
        is_reduced: &[bool],
        [input, output, bounds]: [Operand; 3],
        order: Order,
    ) -> Result<Self, OutOfMemory> {
        // Without elements there is nothing to measure, and the product of the other axes may overflow.
        let is_empty = element_count(shape) == 0;
        let mut strides = filled(0, shape.len())?;
        let mut slice_count = usize::from(!is_empty);
        for axis in (0..shape.len()).rev().filter(|axis| !is_empty && !is_reduced[*axis]) {
            strides[axis] = slice_count.wrapping_mul(size_of::<f64>()).cast_signed();
            slice_count *= shape[axis];
        }
        let mut norms = [filled(0.0_f64, slice_count)?, filled(0.0_f64, slice_count)?];
        let [roots, exponents] = norms.each_mut().map(|norms| {
            let pointer = norms.as_mut_ptr().cast();
            Operand { pointer, strides: &strides, scalar: Scalar::F64, is_written: false }
        });

        let mut operands = [None; segment::OPERANDS];
        operands[INPUT] = Some(input);
        operands[NORMS] = Some(roots.written());
        operands[EXPONENTS] = Some(exponents.written());
        // SAFETY: by the contract of this function. There is one mantissa and one exponent for each slice, in memory
        // that lives as long, and that the segment below reads only after it has been written.
        let split = || unsafe { Slices::split(dtype, shape, is_reduced, operands, order) };
        let slices = if is_empty { None } else { Some(split()?) };

        // A complex tensor is a tensor of reals with one more axis, along which norms and bounds are repeated.
        let size = dtype.scalar.size();
        let shape = extended(shape, dtype.complex.then_some(2))?;
        let extended_strides = |operand: Operand, step: usize| {
            extended(operand.strides, dtype.complex.then_some(step.cast_signed()))
        };
        let operands = [(input, size), (output.written(), size), (roots, 0), (exponents, 0), (bounds, 0)];
        let mut strides: [Vec<isize>; OPERANDS] = Default::default();
        for (strides, (operand, step)) in strides.iter_mut().zip(operands) {
            *strides = extended_strides(operand, step)?;
        }
        let operands = std::array::from_fn(|k| Some(Operand { strides: &strides[k], ..operands[k].0 }));
        // SAFETY: as above.
        let segment = unsafe { Segment::new(false, &shape, operands)? };
        Ok(Self { segment, parameters: SliceNorms { slices, memory: norms, has_exponents: false } })
    }

    /// Measures every slice. Writes the memory of the norms only.
    pub fn measure(&mut self, context: Context) -> Result<(), OutOfMemory> {
        if let Some(slices) = self.parameters.slices.take() {
            slices.prepare(context)?.finish();
            self.parameters.has_exponents = self.parameters.memory[1].iter().any(|exponent| *exponent != 0.0);
        }
        Ok(())
    }
}

/// Allocates the plan and the workspace of a pass over measured tensors.
pub fn prepare(context: Context, tensors: &[Elements]) -> Result<(Plan, Workspace), OutOfMemory> {
    let plan = Plan::cut(tensors.iter().map(|t| (t.segment.len(), t.segment.scalar().size())), CHUNK)?;
    let scratch = tensors.iter().map(|tensor| tensor.segment.scratch_bytes(CHUNK)).max().unwrap_or(0);
    let workspace = Workspace::with_scratch(context, plan.bytes(), scratch)?;
    Ok((plan, workspace))
}

/// Clips every element of measured tensors. In place, blocks of elements within their bounds are not written. Cannot
/// fail.
pub fn clip(workspace: &Workspace, tensors: &mut [Elements], plan: &Plan) {
    exec::for_each(workspace, tensors, plan, Direction::Backwards, |_, norms, chunk, scratch| {
        with_float!(
            chunk.scalar(),
            T => clip_chunk::<T>(workspace.level, norms, chunk, scratch),
            else unreachable!("the bindings reject integers")
        );
    });
}

/// Number of elements whose norms and bounds are gathered at a time: the buffers stay in the first-level cache.
const BLOCK: usize = 512;

fn clip_chunk<T: Float>(level: Level, norms: &SliceNorms, chunk: ChunkMut<OPERANDS>, scratch: &mut Scratch) {
    let mut buffers = [[0.0_f64; BLOCK]; 3];
    let mut narrow_bounds = [0.0_f32; BLOCK];
    let mut factors = FactorArrays::<BLOCK>::default();
    let operands = chunk.read_only();
    let has_narrow_bounds = chunk.scalar_of(BOUND) == Some(Scalar::F32);
    // Clips a block, and returns whether that changed it.
    let clip_block = |x: &mut [T], at: usize| {
        let [roots, exponents, bounds] = buffers.each_mut().map(|buffer| &mut buffer[..x.len()]);
        let range = at..at + x.len();
        operands.gather(ROOT, range.clone(), roots);
        let plain = if has_narrow_bounds {
            let narrow = &mut narrow_bounds[..x.len()];
            operands.gather(BOUND, range.clone(), narrow);
            factors.set_plain::<T>(level, roots, narrow)
        } else {
            operands.gather(BOUND, range.clone(), bounds);
            factors.set_plain::<T>(level, roots, bounds)
        };
        if !norms.has_exponents
            && let Some(factors) = plain
        {
            if factors.is_one() {
                return false;
            }
            scale_each(level, x, &factors);
            return true;
        }
        if has_narrow_bounds {
            for (bound, narrow) in bounds.iter_mut().zip(&narrow_bounds) {
                *bound = (*narrow).into();
            }
        }
        operands.gather(EXPONENT, range, exponents);
        let mut changed = false;
        for (((x, root), exponent), bound) in x.iter_mut().zip(roots).zip(exponents).zip(bounds) {
            // For order infinity the value of a magnitude is the norm.
            let norm = Magnitude { value: *root, exponent: *exponent as i32 };
            *x = match Action::bounding(norm, Order::Max, *bound) {
                Action::Keep => continue,
                Action::Scale(factor) => x.product(factor),
                Action::FillNan => T::NAN,
                Action::FillZero => T::ZERO,
            };
            changed = true;
        }
        changed
    };
    chunk.update_blocks(BLOCK, scratch, clip_block);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::engine::segment::OUTPUT;
    use crate::kernels::oracle::samples;
    use crate::operations::axes::BOUNDS;
    use half::f16;

    /// A tensor and its slices. Strides are in elements.
    #[derive(Clone, Copy, Debug)]
    struct Case<'a> {
        dtype: DType,
        shape: &'a [usize],
        strides: &'a [isize],
        reduced: &'a [bool],
        order: Order,
    }

    const F64: DType = DType { scalar: Scalar::F64, complex: false };

    fn bytes(strides: &[isize], size: usize) -> Vec<isize> {
        strides.iter().map(|stride| stride * size as isize).collect()
    }

    fn operand<'a, T>(data: &mut [T], scalar: Scalar, strides: &'a [isize]) -> Operand<'a> {
        Operand { pointer: data.as_mut_ptr().cast(), strides, scalar, is_written: false }
    }

    /// Clips `input` with a bound for each element, in place or out of place, and returns the output. Without strides
    /// of the bounds there is one bound for all elements.
    fn clip_by_element<T: Float>(
        case: Case,
        input: &[T],
        (bounds, bound_strides): (&[f64], Option<&[isize]>),
        in_place: bool,
        threads: usize,
    ) -> Vec<T> {
        let (mut input, mut bounds) = (input.to_vec(), bounds.to_vec());
        let mut output = if in_place { input.clone() } else { vec![T::NAN; input.len()] };
        let strides = bytes(case.strides, case.dtype.size());
        let none = vec![0; case.shape.len()];
        let bound_strides = bound_strides.map_or(none, |strides| bytes(strides, 8));
        let context = Context { level: isa::detected(), threads };
        let result = operand(&mut output, case.dtype.scalar, &strides);
        let operands = [
            if in_place { result } else { operand(&mut input, case.dtype.scalar, &strides) },
            result,
            operand(&mut bounds, Scalar::F64, &bound_strides),
        ];
        // SAFETY: all arrays outlive the call, and the strides stay inside of them.
        unsafe {
            let tensor = Elements::new(case.dtype, case.shape, case.reduced, operands, case.order).unwrap();
            let mut tensors = [tensor];
            tensors[0].measure(context).unwrap();
            let (plan, workspace) = prepare(context, &tensors).unwrap();
            clip(&workspace, &mut tensors, &plan);
        }
        output
    }

    /// Clips `input` with one bound for all slices, by [`Slices`], and returns the output.
    fn clip_by_slice<T: Float>(case: Case, input: &[T], bound: f64) -> Vec<T> {
        let (mut input, mut bound) = (input.to_vec(), [bound]);
        let mut output = vec![T::NAN; input.len()];
        let (strides, none) = (bytes(case.strides, case.dtype.size()), vec![0; case.shape.len()]);
        let mut operands = [None; segment::OPERANDS];
        operands[INPUT] = Some(operand(&mut input, case.dtype.scalar, &strides));
        operands[OUTPUT] = Some(operand(&mut output, case.dtype.scalar, &strides).written());
        operands[BOUNDS] = Some(operand(&mut bound, Scalar::F64, &none));
        // SAFETY: as above.
        unsafe {
            let slices = Slices::new(case.dtype, case.shape, case.reduced, operands, case.order).unwrap();
            slices.prepare(Context { level: isa::detected(), threads: 1 }).unwrap().finish();
        }
        output
    }

    fn assert_same<T: Float>(got: &[T], want: &[T], case: Case) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(a, b)| a.to_f64().to_bits() == b.to_f64().to_bits()), "{case:?}");
    }

    const ORDERS: [Order; 4] = [Order::Two, Order::One, Order::Max, Order::Power(3.0)];

    fn agrees_with_slices<T: Float>(scalar: Scalar, convert: impl Fn(f64) -> T) {
        for (shape, strides) in [
            (vec![5, 33, 40], vec![33 * 40, 40, 1]),
            (vec![5, 33, 40], vec![1, 5, 5 * 33]),
            (vec![300, 700], vec![700, 1]),
        ] {
            for complex in [false, true] {
                let reals = if complex { 2 } else { 1 };
                let input: Vec<T> =
                    samples(shape.iter().product::<usize>() * reals).into_iter().map(&convert).collect();
                for mask in 1..1_usize << shape.len() {
                    let reduced: Vec<bool> = (0..shape.len()).map(|axis| mask >> axis & 1 == 1).collect();
                    let dtype = DType { scalar, complex };
                    let order = ORDERS[mask % 4];
                    let case = Case { dtype, shape: &shape, strides: &strides, reduced: &reduced, order };
                    let want = clip_by_slice(case, &input, 3.0);
                    for (in_place, threads) in [(false, 1), (true, 3)] {
                        let got = clip_by_element(case, &input, (&[3.0], None), in_place, threads);
                        assert_same(&got, &want, case);
                    }
                }
            }
        }
    }

    #[test]
    fn one_bound_for_all_elements_gives_the_bits_of_clipping_by_slice() {
        agrees_with_slices(Scalar::F32, |v| v as f32);
        agrees_with_slices(Scalar::F64, |v| v);
        agrees_with_slices(Scalar::F16, f16::from_f64);
    }

    #[test]
    fn each_element_has_its_own_bound() {
        let (rows, columns) = (700, 900);
        let case = Case {
            dtype: DType { scalar: Scalar::F32, complex: false },
            shape: &[rows, columns],
            strides: &[columns as isize, 1],
            reduced: &[false, true],
            order: Order::Two,
        };
        let input: Vec<f32> = samples(rows * columns).into_iter().map(|v| v as f32).collect();
        // One bound for each column, the same for every row.
        let bounds: Vec<f64> = (0..columns).map(|j| j as f64).collect();
        for (in_place, threads) in [(false, 1), (false, 3), (true, 1), (true, 3)] {
            let got = clip_by_element(case, &input, (&bounds, Some(&[0, 1])), in_place, threads);
            for (row, got) in input.chunks(columns).zip(got.chunks(columns)) {
                let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                for ((x, bound), got) in row.iter().zip(&bounds).zip(got) {
                    if norm < bound * (1.0 - 1e-12) {
                        assert_eq!(got.to_bits(), x.to_bits());
                    } else {
                        let want = f64::from(*x) * (bound / norm.max(*bound));
                        assert!((f64::from(*got) - want).abs() <= 2e-7 * want.abs());
                    }
                }
            }
        }
    }

    #[test]
    fn norms_beyond_float64_and_values_that_are_not_finite() {
        let case =
            Case { dtype: F64, shape: &[4, 2], strides: &[2, 1], reduced: &[false, true], order: Order::One };
        let input = [1e308, -1e308, f64::INFINITY, 1.0, 3.0, 4.0, f64::NAN, 0.0];
        let bounds = [1e307, f64::INFINITY, f64::INFINITY, 0.0, 7.0, f64::NAN, 1.0, 9.0];
        let got = clip_by_element(case, &input, (&bounds, Some(&[2, 1])), false, 1);
        assert!((got[0] / 5e306 - 1.0).abs() < 1e-15);
        assert_eq!([got[1], got[4]], [-1e308, 3.0]);
        for at in [2, 3, 5, 6, 7] {
            assert_eq!(got[at].to_bits(), f64::NAN.to_bits());
        }
    }

    #[test]
    fn tensors_of_one_or_no_element() {
        let reduced = [true, true];
        let one = Case { dtype: F64, shape: &[1, 1], strides: &[1, 1], reduced: &reduced, order: Order::Two };
        assert_eq!(clip_by_element(one, &[-4.0], (&[1.0], None), false, 1), [-1.0]);
        assert_eq!(clip_by_element(one, &[-4.0], (&[5.0], None), true, 1), [-4.0]);
        let scalar = Case { shape: &[], strides: &[], reduced: &[], ..one };
        assert_eq!(clip_by_element(scalar, &[-4.0], (&[1.0], None), false, 1), [-1.0]);
        let huge = 1 << 40;
        let none = Case { shape: &[huge, 0, huge], strides: &[0; 3], reduced: &[false, true, false], ..one };
        assert!(clip_by_element::<f64>(none, &[], (&[1.0], None), false, 1).is_empty());
    }
}
