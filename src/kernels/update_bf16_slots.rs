//! Update of variables whose slots are bfloat16: applies an optimizer's rule to slices of a gradient g, a variable w and its
//! slots in float32, and rounds the slots in registers, to the nearest or stochastically.
//!
//! - Formula: `w[i], slots[i] ← rule(g[i]·factor, w[i], slots[i])`, in place, as in `update.rs`. No sums.
//! - Error: that of `update.rs`; the slots are rounded once more, as in `convert.rs` or in `stochastic.rs`.
//! - Bits: those that `update.rs` gives for slots that were converted to float32 before, and back after it. NaNs have the
//!   bits of [`Float::NAN`](super::Float::NAN) before they are rounded, so that adding to their bits cannot change them.

use super::half_precision::bf16_to_f32;
use super::lanes::{Lanes, Real};
use super::stochastic::{Key, PairStream, for_each_part, hash, hash_lanes};
use super::update::Rule;
use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, f32x16, u16x32, u32x16};
use half::bf16;
use half::slice::HalfFloatSliceExt;

/// Number of elements of an iteration: two vectors, whose slots fill one of 16-bit numbers.
const GROUP: usize = 2 * f32::LANES;

/// Number of hashes of an element: each gives the bits of two slots, and there are at most four.
const PAIRS: usize = 2;

/// How slots are rounded to bfloat16.
#[derive(Clone, Copy, Debug)]
pub enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    /// Stochastically. The first slot takes the upper halves of the hashes of the first stream, the second the lower ones;
    /// the third begins with the second stream.
    Stochastic {
        /// The streams of the slots.
        streams: [PairStream; PAIRS],
        /// The index of the first element of the slices in its array.
        start: u64,
    },
}

/// Computes `w[i], slots[i] ← rule(g[i]·factor, w[i], slots[i])`. All slices have the same length.
pub fn update_bf16_slots<K: Rule<f32, N>, const N: usize>(
    level: Level,
    rule: K,
    (factor, g): (f32, &[f32]),
    w: &mut [f32],
    slots: [&mut [bf16]; N],
    rounding: Rounding,
) {
    const { assert!(N <= 2 * PAIRS) };
    let mut slots = slots.map(HalfFloatSliceExt::reinterpret_cast_mut);
    match rounding {
        Rounding::Nearest => dispatch!(level, simd => update_part(simd, rule, (factor, g), w, slots, None)),
        Rounding::Stochastic { streams, start } => for_each_part(start, w.len(), |upper, start, range| {
            let slots = slots.each_mut().map(|slot| &mut slot[range.clone()]);
            let (g, w) = (&g[range.clone()], &mut w[range.clone()]);
            let random = Some((streams.map(|stream| stream.key(upper)), start));
            dispatch!(level, simd => update_part(simd, rule, (factor, g), w, slots, random));
        }),
    }
}

/// Updates elements, the indices of which have the same upper 32 bits. `random` are the keys of these, and the lower bits of
/// the first index; None to round to the nearest.
#[inline(always)]
fn update_part<S: Simd, K: Rule<f32, N>, const N: usize>(
    simd: S,
    rule: K,
    (factor, g): (f32, &[f32]),
    w: &mut [f32],
    slots: [&mut [u16]; N],
    random: Option<([Key; PAIRS], u32)>,
) {
    let len = w.len();
    let g = &g[..len];
    let slots = slots.map(|slot| &mut slot[..len]);
    let tail = len - len % GROUP;
    let zeros = u32x16::splat(simd, 0);
    let offsets = u32x16::from_fn(simd, |lane| lane as u32);
    // Loops in place of `array::map` and `array::from_fn`: these need not be inlined with closures that use vectors.
    for at in (0..tail).step_by(GROUP) {
        let mut bits = [[zeros; 2]; N];
        for k in 0..N {
            let (low, high) = u16x32::from_slice(simd, &slots[k][at..at + GROUP]).widen();
            bits[k] = [low, high];
        }
        for (part, first) in [(0, at), (1, at + f32::LANES)] {
            let lanes = first..first + f32::LANES;
            let scaled = f32::load(simd, &g[lanes.clone()]) * factor;
            let mut before = [scaled; N];
            for k in 0..N {
                before[k] = (bits[k][part] << 16).bitcast::<f32x16<S>>();
            }
            let (value, after) = rule.update(scaled, f32::load(simd, &w[lanes.clone()]), before);
            f32::store(value.canonical(), &mut w[lanes]);
            let mut hashes = [zeros; PAIRS];
            if let Some((keys, start)) = random {
                let indices = offsets + start.wrapping_add(first as u32);
                for pair in 0..N.div_ceil(2) {
                    hashes[pair] = hash_lanes(indices, keys[pair]);
                }
            }
            for k in 0..N {
                let result = after[k].canonical().bitcast::<u32x16<S>>();
                let addend = if random.is_none() {
                    ((result >> 16) & 1) + 0x7fff
                } else if k % 2 == 0 {
                    hashes[k / 2] >> 16
                } else {
                    hashes[k / 2] & 0xffff
                };
                bits[k][part] = (result + addend) >> 16;
            }
        }
        for k in 0..N {
            bits[k][0].narrow(bits[k][1]).store_slice(&mut slots[k][at..at + GROUP]);
        }
    }
    for at in tail..len {
        let before = std::array::from_fn(|k| bf16_to_f32(slots[k][at]));
        let (value, after) = rule.update(g[at] * factor, w[at], before);
        w[at] = value.canonical();
        for k in 0..N {
            let result = after[k].canonical().to_bits();
            let addend = match random {
                None => ((result >> 16) & 1) + 0x7fff,
                Some((keys, start)) => {
                    let hash = hash(start.wrapping_add(at as u32), keys[k / 2]);
                    if k % 2 == 0 { hash >> 16 } else { hash & 0xffff }
                }
            };
            slots[k][at] = ((result + addend) >> 16) as u16;
        }
    }
}
