//! Loads and stores blocks of arrays, with conversion to the type of the arithmetic and back.

use super::{BLOCK, COPY, GRADIENT, Gradient, GradientTransform, OPERANDS, RowGradient, StochasticRounding};
use crate::engine::exec::ChunkMut;
use crate::engine::isa::Level;
use crate::kernels::Float;
use crate::kernels::clamp::Clamping;
use crate::kernels::convert::{Convert, convert};
use crate::kernels::lanes::Real;
use crate::kernels::operation::{Run, perform};
use crate::kernels::scale::{Factor, Scaling};
use crate::kernels::stochastic::{ArrayStream, round_stochastically};
use crate::scalar::Scalar;
use crate::with_float;
use half::{bf16, f16};
use std::ops::Range;

/// A type that updates are computed in: float32 or float64.
pub trait Arithmetic: Real {
    /// This type as a value.
    const SCALAR: Scalar;

    /// Loads a block of the gradient into `to`, and transforms it, except for a multiplication that is left to the
    /// caller: returns the factor by which the caller must multiply the block. `plain_factor` is the factor of a
    /// transform that only multiplies, and by a number of this type; None for any other transform.
    fn load_gradient(
        level: Level,
        gradient: Gradient,
        plain_factor: Option<Self>,
        chunk: &ChunkMut<OPERANDS>,
        block: Range<usize>,
        to: &mut [Self],
    ) -> Self;

    /// Loads a block of an operand into `to`.
    fn load_block(
        level: Level,
        chunk: &ChunkMut<OPERANDS>,
        operand: usize,
        block: Range<usize>,
        to: &mut [Self],
    );

    /// Stores a block of an operand, rounded once; does nothing if the operand is absent. With `rounding`, bfloat16 is
    /// rounded stochastically.
    fn store_block(
        level: Level,
        chunk: &mut ChunkMut<OPERANDS>,
        operand: usize,
        block: Range<usize>,
        from: &[Self],
        rounding: Option<StochasticRounding>,
    );

    /// Stores a block of the variable to its low-precision copy, if it has one.
    fn store_copy(level: Level, chunk: &mut ChunkMut<OPERANDS>, block: Range<usize>, from: &[Self]) {
        Self::store_block(level, chunk, COPY, block, from, None);
    }
}

impl<R> Arithmetic for R
where
    R: Real + Convert<f16> + Convert<bf16> + Convert<f32> + Convert<f64>,
    f16: Convert<R>,
    bf16: Convert<R>,
    f32: Convert<R>,
    f64: Convert<R>,
{
    const SCALAR: Scalar = if size_of::<R>() == size_of::<f64>() { Scalar::F64 } else { Scalar::F32 };

    fn load_gradient(
        level: Level,
        gradient: Gradient,
        plain_factor: Option<R>,
        chunk: &ChunkMut<OPERANDS>,
        block: Range<usize>,
        to: &mut [R],
    ) -> R {
        let Gradient { transform: GradientTransform { factor, clamp }, rows } = gradient;
        let scalar = rows.map_or_else(|| chunk.scalar_of(GRADIENT), |rows| Some(rows.values.scalar()));
        let Some(scalar) = scalar else { unreachable!("every update has a gradient") };
        // A float64 may overflow or underflow when it is converted to float32. Therefore it is scaled before.
        let is_scaled_first = scalar.size() > size_of::<R>();
        let early = if is_scaled_first { factor } else { Factor::ONE };
        with_float!(
            scalar,
            T => match rows {
                None => load_scaled::<T, R>(level, chunk, block, to, early),
                Some(rows) => load_rows::<T, R>(level, rows, &block, to, early),
            },
            else unreachable!("gradients are floats: the bindings check it")
        );
        if let (false, Some(factor)) = (is_scaled_first, plain_factor) {
            return factor;
        }
        if !is_scaled_first {
            perform(level, Scaling(factor), Run::InPlace(to));
        }
        if let Some(bound) = clamp {
            let hi = R::from_f64(bound);
            perform(level, Clamping { lo: -hi, hi }, Run::InPlace(to));
        }
        R::from_f64(1.0)
    }

    fn load_block(
        level: Level,
        chunk: &ChunkMut<OPERANDS>,
        operand: usize,
        block: Range<usize>,
        to: &mut [R],
    ) {
        let Some(scalar) = chunk.scalar_of(operand) else { unreachable!("operand {operand} is absent") };
        if scalar == Self::SCALAR {
            chunk.gather(operand, block, to);
            return;
        }
        with_float!(
            scalar,
            T => {
                let mut buffer = [T::ZERO; BLOCK];
                let values = &mut buffer[..block.len()];
                chunk.gather(operand, block, values);
                convert(level, values, to);
            },
            else unreachable!("variables and slots are floats: the bindings check it")
        );
    }

    fn store_block(
        level: Level,
        chunk: &mut ChunkMut<OPERANDS>,
        operand: usize,
        block: Range<usize>,
        from: &[R],
        rounding: Option<StochasticRounding>,
    ) {
        let Some(scalar) = chunk.scalar_of(operand) else { return };
        if scalar == Self::SCALAR {
            chunk.scatter(operand, block, from);
            return;
        }
        if let (Scalar::BF16, Some(StochasticRounding { stream, first })) = (scalar, rounding) {
            let random = (stream.of_array(operand as u64), first + block.start as u64);
            store_stochastically(level, chunk, operand, block, from, random);
            return;
        }
        with_float!(
            scalar,
            T => if chunk.is_dense() {
                convert(level, from, chunk.run_mut::<T>(operand, block));
            } else {
                let mut buffer = [T::ZERO; BLOCK];
                let values = &mut buffer[..block.len()];
                convert(level, from, values);
                chunk.scatter(operand, block, values);
            },
            else unreachable!("variables, slots and copies are floats: the bindings check it")
        );
    }
}

/// Stores a block of an operand of bfloat16, rounded stochastically by a stream, from this index on. float64 is first
/// rounded to float32.
fn store_stochastically<R: Real + Convert<f32>>(
    level: Level,
    chunk: &mut ChunkMut<OPERANDS>,
    operand: usize,
    block: Range<usize>,
    from: &[R],
    (stream, start): (ArrayStream, u64),
) {
    let (mut narrow, mut rounded) = ([0.0_f32; BLOCK], [bf16::ZERO; BLOCK]);
    let narrow = &mut narrow[..from.len()];
    convert(level, from, narrow);
    if chunk.is_dense() {
        round_stochastically(level, stream, start, narrow, chunk.run_mut::<bf16>(operand, block));
    } else {
        let rounded = &mut rounded[..from.len()];
        round_stochastically(level, stream, start, narrow, rounded);
        chunk.scatter(operand, block, rounded);
    }
}

/// Loads a block of a dense gradient, multiplied by `factor` before it is converted.
fn load_scaled<G: Convert<R> + Float, R: Real>(
    level: Level,
    chunk: &ChunkMut<OPERANDS>,
    block: Range<usize>,
    to: &mut [R],
    factor: Factor,
) {
    let gradient = chunk.read_only();
    if factor == Factor::ONE && chunk.is_dense() {
        convert(level, gradient.run::<G>(GRADIENT, block), to);
    } else {
        let mut buffer = [G::ZERO; BLOCK];
        let values = &mut buffer[..block.len()];
        gradient.gather(GRADIENT, block, values);
        scale_and_convert(level, values, to, factor);
    }
}

/// Loads a block of a sparse gradient, multiplied by `factor` before it is converted. Rows without a gradient are
/// filled with zeros.
fn load_rows<G: Convert<R> + Float, R: Real>(
    level: Level,
    rows: &RowGradient,
    block: &Range<usize>,
    to: &mut [R],
    factor: Factor,
) {
    let len = rows.row_len;
    to.fill(R::ZERO);
    let mut buffer = [G::ZERO; BLOCK];
    let (first, last) = (block.start / len, (block.end - 1) / len);
    let from = rows.indices.partition_point(|row| *row < first);
    for (position, row) in rows.indices.iter().enumerate().skip(from) {
        if *row > last {
            break;
        }
        let reals = (row * len).max(block.start)..((row + 1) * len).min(block.end);
        let at = position * len + (reals.start - row * len);
        let values = &mut buffer[..reals.len()];
        values.copy_from_slice(rows.values.run(0, at..at + reals.len()));
        scale_and_convert(level, values, &mut to[reals.start - block.start..reals.end - block.start], factor);
    }
}

/// Multiplies `from` by `factor` in place, and converts it into `to`.
fn scale_and_convert<G: Convert<R> + Float, R>(level: Level, from: &mut [G], to: &mut [R], factor: Factor) {
    if factor != Factor::ONE {
        perform(level, Scaling(factor), Run::InPlace(from));
    }
    convert(level, from, to);
}
