//! Stochastic rounding of float32 to bfloat16: up or down, with probabilities that make the mean the number itself.
//!
//! - Formula: `to[i] = (bits(from[i]) + r) >> 16`, where r is uniform over 0 to 2^16 − 1. A number between two neighbours
//!   a < x < b becomes b with probability (x − a)/(b − a), in steps of 2^-16; a number that bfloat16 holds stays.
//! - Random bits: r is the upper or the lower half of a 32-bit hash of the element's index, keyed by 64 bits: the mixing
//!   function "lowbias32" of Chris Wellons' hash-prospector, with one half of the key added before it, and the other half
//!   combined by exclusive or between its two multiplications. The key is that of a [`PairStream`]: a pair of arrays shares
//!   a hash, of which each takes one half. The splitmix64 finaliser of Steele, Lea and Flood, "Fast splittable
//!   pseudorandom number generators", 2014, mixes seed, step, tensor and pair into the key. No state is carried from one
//!   element to the next: the bits depend neither on the order nor on the number of threads.
//! - Bits: integer arithmetic, the same at every level. NaN becomes [`Float::NAN`](super::Float::NAN); infinities stay. A finite number
//!   beyond the largest bfloat16 becomes that or infinity.

use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, u32x16};
use half::bf16;
use std::ops::Range;

/// The random bits of a tensor in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(u64);

/// The random bits of two arrays of a tensor, the even one of which takes the upper halves of the hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairStream(u64);

/// The random bits of one array of a tensor: a half of those of its pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrayStream {
    pair: PairStream,
    takes_upper_half: bool,
}

/// The key of the hash of elements whose indices have the same upper 32 bits.
pub type Key = [u32; 2];

impl Stream {
    /// Returns the stream of a tensor, the number of which is `tensor`, in a step.
    #[must_use]
    pub fn new(seed: u64, step: u64, tensor: u64) -> Self {
        Self(mix(mix(mix(seed).wrapping_add(step)).wrapping_add(tensor)))
    }

    /// Returns the stream of the arrays `2·pair` and `2·pair + 1` of the tensor: the variable is array 0, and the slots
    /// begin with array 2.
    #[must_use]
    pub fn of_pair(self, pair: u64) -> PairStream {
        PairStream(mix(self.0.wrapping_add(pair)))
    }

    /// Returns the stream of one of the arrays of the tensor.
    #[must_use]
    pub fn of_array(self, array: u64) -> ArrayStream {
        ArrayStream { pair: self.of_pair(array / 2), takes_upper_half: array.is_multiple_of(2) }
    }
}

impl PairStream {
    /// Returns the key for elements whose indices have these upper 32 bits.
    #[must_use]
    pub fn key(self, upper: u64) -> Key {
        let key = if upper == 0 { self.0 } else { mix(self.0 ^ upper) };
        [key as u32, (key >> 32) as u32]
    }
}

/// Returns the next number of the splitmix64 generator after `x`: a permutation of all numbers.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Returns 32 random bits for the element at an index, 16 for each array of a pair.
#[inline(always)]
#[must_use]
pub fn hash(index: u32, [first, second]: Key) -> u32 {
    let x = index.wrapping_add(first);
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d) ^ second;
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// As [`hash`], for 16 elements.
#[inline(always)]
#[must_use]
pub fn hash_lanes<S: Simd>(indices: u32x16<S>, [first, second]: Key) -> u32x16<S> {
    let x = indices + first;
    let x = ((x ^ (x >> 16)) * 0x7feb_352d) ^ second;
    let x = (x ^ (x >> 15)) * 0x846c_a68b;
    x ^ (x >> 16)
}

/// Calls `part` for every range of elements whose indices have the same upper 32 bits, with these upper bits and the lower
/// bits of the first index. The indices of the elements are `start` and those that follow it; the ranges begin with 0.
pub fn for_each_part(start: u64, len: usize, mut part: impl FnMut(u64, u32, Range<usize>)) {
    let mut at = 0;
    while at < len {
        let first = start + at as u64;
        let count = (len - at).min((1_usize << 32) - (first as u32) as usize);
        part(first >> 32, first as u32, at..at + count);
        at += count;
    }
}

/// Rounds numbers stochastically. The first of them is the element at index `start` of its array. The slices have the same
/// length.
pub fn round_stochastically(level: Level, stream: ArrayStream, start: u64, from: &[f32], to: &mut [bf16]) {
    let shift = if stream.takes_upper_half { 16 } else { 0 };
    for_each_part(start, from.len(), |upper, start, range| {
        let (from, to) = (&from[range.clone()], &mut to[range]);
        dispatch!(level, simd => round_part(simd, stream.pair.key(upper), start, shift, from, to));
    });
}

#[inline(always)]
fn round_part<S: Simd>(_simd: S, key: Key, start: u32, shift: u32, from: &[f32], to: &mut [bf16]) {
    for ((x, to), offset) in from.iter().zip(to).zip(0_u32..) {
        let random = hash(start.wrapping_add(offset), key) >> shift & 0xffff;
        let rounded = (x.to_bits().wrapping_add(random) >> 16) as u16;
        let is_kept = x.abs() <= f32::INFINITY;
        *to = bf16::from_bits(if is_kept { rounded } else { bf16::NAN.to_bits() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::isa;
    use crate::kernels::Float;

    fn round(stream: ArrayStream, start: u64, x: f32, count: usize) -> Vec<f64> {
        let mut to = vec![bf16::ZERO; count];
        round_stochastically(isa::detected(), stream, start, &vec![x; count], &mut to);
        to.iter().map(|y| f64::from(y.to_f32())).collect()
    }

    #[test]
    fn numbers_become_one_of_their_neighbours_with_the_right_mean() {
        for (at, x) in [1.000_01_f32, -1.003, 3.7e-39, 1e30, 0.1, -2.000_000_2].into_iter().enumerate() {
            let rounded = round(Stream::new(3, 5, at as u64).of_array(at as u64), 0, x, 1 << 20);
            let down = f64::from(f32::from_bits(x.to_bits() & 0xffff_0000));
            let up = f64::from(f32::from_bits((x.to_bits() & 0xffff_0000) + 0x1_0000));
            assert!(rounded.iter().all(|y| *y == down || *y == up));
            let mean = rounded.iter().sum::<f64>() / rounded.len() as f64;
            // Five standard deviations of the mean of 2^20 numbers, of at most half a step each.
            assert!((mean - f64::from(x)).abs() <= (up - down).abs() * 2.5 / 1024.0, "{x}: {mean}");
        }
    }

    #[test]
    fn numbers_of_bfloat16_stay_and_nan_has_the_bits_of_all_results() {
        for bits in 0..=u16::MAX {
            let x = bf16::from_bits(bits);
            let mut to = [bf16::ZERO];
            round_stochastically(
                isa::detected(),
                Stream::new(0, 1, 2).of_array(u64::from(bits)),
                u64::from(bits),
                &[x.to_f32()],
                &mut to,
            );
            let want = if x.is_nan() { bf16::NAN } else { x };
            assert_eq!(to[0].to_bits(), want.to_bits());
            assert!(!x.is_nan() || <bf16 as Float>::NAN.to_bits() == want.to_bits());
        }
    }

    #[test]
    fn bits_depend_on_the_index_alone() {
        let x: Vec<f32> = (0..1000_u32).map(|i| (f64::from(i) * 0.137).sin() as f32).collect();
        for start in [0, 7, (1 << 32) - 500, 1 << 40] {
            let mut want = vec![bf16::ZERO; x.len()];
            let stream = Stream::new(1, 2, 3).of_array(start % 2);
            round_stochastically(isa::detected(), stream, start, &x, &mut want);
            for level in isa::all() {
                let mut to = vec![bf16::ZERO; x.len()];
                for (at, (x, to)) in x.chunks(37).zip(to.chunks_mut(37)).enumerate() {
                    round_stochastically(level, stream, start + 37 * at as u64, x, to);
                }
                assert!(to == want);
            }
        }
    }

    #[test]
    fn streams_of_seeds_steps_tensors_and_arrays_are_unrelated() {
        // Pairs of streams that agree in all but one part of their key, or that a naive key would confuse.
        let base = Stream::new(1, 2, 3).of_array(0);
        let others = [
            Stream::new(2, 2, 3).of_array(0),
            Stream::new(1, 3, 3).of_array(0),
            Stream::new(1, 2, 4).of_array(0),
            Stream::new(1, 2, 3).of_array(1),
            Stream::new(1, 2, 3).of_array(2),
            Stream::new(1, 2, 3).of_array(3),
            Stream::new(2, 1, 3).of_array(0),
            Stream::new(1, 3, 2).of_array(0),
        ];
        let bits = |stream: ArrayStream, shift: u32| -> Vec<u32> {
            let (key, half) = (stream.pair.key(0), if stream.takes_upper_half { 16 } else { 0 });
            (0..1_u32 << 16).map(|index| hash(index + shift, key) >> half & 0xffff).collect()
        };
        let expected = f64::from(1_u32 << 16) * 0.5;
        for other in others {
            for shift in [0, 1, 1000] {
                // Half of the highest bits agree if they are independent; six standard deviations.
                let (a, b) = (bits(base, 0), bits(other, shift));
                let equal = a.iter().zip(&b).filter(|(a, b)| (*a ^ *b) >> 15 == 0).count() as f64;
                assert!((equal - expected).abs() < 6.0 * 128.0, "{equal}");
            }
        }
    }

    #[test]
    fn random_bits_are_uniform() {
        // A chi-square test of the 256 values of each byte.
        for seed in 0..8 {
            let key = Stream::new(seed, 1, 0).of_pair(0).key(0);
            for shift in [0, 8, 16, 24] {
                let mut counts = [0_u32; 256];
                (0..1_u32 << 20).for_each(|index| counts[(hash(index, key) >> shift & 255) as usize] += 1);
                let expected = f64::from(1 << 12);
                let chi: f64 = counts.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
                // The mean is 255 and the standard deviation 22.6.
                assert!((255.0 - 5.0 * 22.6..255.0 + 5.0 * 22.6).contains(&chi), "{seed} {shift}: {chi}");
            }
        }
    }
}
