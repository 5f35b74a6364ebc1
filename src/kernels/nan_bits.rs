//! Tests of the bits of NaNs: the same at every level, and those that `README.md` in this folder promises.

use super::Float;
use super::clamp::{clamp_all, clamp_each};
use super::columns::{FactorVecs, scale_each};
use super::convert::{Convert, convert};
use super::lanes::Real;
use super::scale::{Factor, scale};
use super::update::update;
use crate::engine::isa;
use crate::kernels::oracle::samples;
use crate::operations::magnitude::{Magnitude, Order, combine, ranges};
use crate::operations::rules::{Rule, RuleKind, RuleVisitor};
use fearless_simd::{Level, dispatch};
use half::{bf16, f16};

/// A float type whose values convert to and from their bits, as a u64.
trait Bits: Float {
    /// Bits of +∞.
    const INFINITY: u64;
    /// Bit that makes a NaN quiet.
    const QUIET: u64;
    /// Sign bit.
    const SIGN: u64;
    fn bits(self) -> u64;
    fn from_u64(bits: u64) -> Self;

    fn infinity() -> Self {
        Self::from_u64(Self::INFINITY)
    }

    fn is_nan(self) -> bool {
        self.bits() & !Self::SIGN > Self::INFINITY
    }

    /// Returns NaNs of both signs, without and with payload, signalling and quiet.
    fn nans() -> Vec<Self> {
        let payloads = [1, Self::QUIET >> 1, Self::QUIET - 1, 5];
        let signalling = payloads.map(|payload| Self::INFINITY | payload);
        let quiet = [0, 1, Self::QUIET >> 1, Self::QUIET - 1].map(|p| Self::INFINITY | Self::QUIET | p);
        let positive = signalling.into_iter().chain(quiet);
        positive.flat_map(|bits| [bits, bits | Self::SIGN]).map(Self::from_u64).collect()
    }
}

macro_rules! bits {
    ($($T:ty, $U:ty, $mantissa:literal;)*) => {$(
        impl Bits for $T {
            const INFINITY: u64 = <$T>::INFINITY.to_bits() as u64;
            const QUIET: u64 = 1 << ($mantissa - 1);
            const SIGN: u64 = 1 << (<$U>::BITS - 1);
            fn bits(self) -> u64 {
                u64::from(self.to_bits())
            }
            fn from_u64(bits: u64) -> Self {
                <$T>::from_bits(bits as $U)
            }
        }
    )*};
}

bits! {
    f16, u16, 10;
    bf16, u16, 7;
    f32, u32, 23;
    f64, u64, 52;
}

const LENGTHS: [usize; 6] = [1, 3, 8, 17, 33, 41];

/// Calls `check` with slices of ones that have the element `special` at one position, and with that position.
fn at_every_position<T: Bits>(special: T, one: T, check: impl Fn(&[T], usize)) {
    for length in LENGTHS {
        for position in 0..length {
            let mut x = vec![one; length];
            x[position] = special;
            check(&x, position);
        }
    }
}

/// Returns the bits of a slice scaled in place, out of place, and by columns with equal and with different factors.
fn scaled<T: Bits>(level: Level, x: &[T], factor: Factor) -> Vec<Vec<u64>> {
    let mut in_place = x.to_vec();
    scale(level, &mut in_place, factor);
    let mut out_of_place = vec![T::ZERO; x.len()];
    dispatch!(level, simd => T::scale_to(simd, x, &mut out_of_place, factor));
    let mut columns = x.to_vec();
    scale_each(level, &mut columns, &FactorVecs::new(&vec![factor; x.len()]).unwrap().get());
    // Columns with this factor beside one whose factor is NaN.
    let mut mixed = x.to_vec();
    let last = x.len() - 1;
    if last > 0 {
        let mut factors = vec![factor; x.len()];
        factors[last] = Factor::NAN;
        scale_each(level, &mut mixed, &FactorVecs::new(&factors).unwrap().get());
        assert_eq!(mixed[last].bits(), T::NAN.bits(), "{level:?}");
    }
    mixed[last] = in_place[last];
    [in_place, out_of_place, columns, mixed].map(|x| x.into_iter().map(T::bits).collect()).to_vec()
}

fn check_products<T: Bits>(one: T) {
    let ordinary = [0.3, 1.0, 1e-3, 0.5].map(|c| Factor::new(c, 1.0, 0));
    // Too small for float32, and for float64.
    let extreme = [Factor::new(1e-20, 1e30, 0), Factor::new(1.0, 1.0, 1030), Factor::new(1.0, 1.0, 1500)];
    let (zero, underflowing) = (Factor::new(0.0, 3.0, 0), Factor::new(1.0, 1.0, 1 << 28));
    for level in isa::all() {
        for nan in T::nans() {
            at_every_position(nan, one, |x, at| {
                for factor in ordinary.into_iter().chain(extreme).chain([zero, underflowing]) {
                    for got in scaled(level, x, factor) {
                        assert_eq!(got[at], nan.bits() | T::QUIET, "{level:?} {factor:?}");
                    }
                }
                for got in scaled(level, x, Factor::NAN) {
                    assert!(got.iter().all(|bits| *bits == T::NAN.bits()), "{level:?}");
                }
            });
        }
        for infinity in [T::infinity(), T::from_u64(T::infinity().bits() | T::SIGN)] {
            at_every_position(infinity, one, |x, at| {
                for factor in ordinary.into_iter().chain(extreme) {
                    for got in scaled(level, x, factor) {
                        assert_eq!(got[at], infinity.bits(), "{level:?} {factor:?}");
                    }
                }
                for factor in [zero, underflowing] {
                    for got in scaled(level, x, factor) {
                        assert_eq!(got[at], T::NAN.bits(), "{level:?} {factor:?}");
                    }
                }
            });
        }
        at_every_position(T::ZERO, one, |x, at| {
            for got in scaled(level, x, Factor::new(f64::MAX, f64::MIN_POSITIVE, -10)) {
                assert_eq!(got[at], T::NAN.bits(), "{level:?}: 0 times infinity");
            }
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri gives computed NaNs arbitrary bits")]
fn a_scaled_nan_keeps_its_payload_and_a_new_nan_is_canonical() {
    check_products(1.0_f32);
    check_products(1.0_f64);
    check_products(f16::ONE);
    check_products(bf16::ONE);
}

fn check_clamps<T: Bits>(one: T) {
    let minus_one = T::from_u64(one.bits() | T::SIGN);
    let clamped = |level, x: &[T], lo: T, hi: T| {
        let mut all = x.to_vec();
        clamp_all(level, &mut all, lo, hi);
        let mut out_of_place = vec![T::ZERO; x.len()];
        dispatch!(level, simd => T::clamp_all_to(simd, x, &mut out_of_place, lo, hi));
        let mut each = x.to_vec();
        clamp_each(level, &mut each, &vec![lo; x.len()], &vec![hi; x.len()]);
        [all, out_of_place, each].map(|x| x.into_iter().map(T::bits).collect::<Vec<_>>())
    };
    for level in isa::all() {
        for nan in T::nans() {
            at_every_position(nan, one, |x, at| {
                for got in clamped(level, x, minus_one, one) {
                    assert_eq!(got[at], nan.bits(), "{level:?}");
                }
                for (lo, hi) in [(T::NAN, one), (one, T::NAN), (T::NAN, T::NAN)] {
                    for got in clamped(level, x, lo, hi) {
                        assert_eq!(got[at], nan.bits(), "{level:?}");
                    }
                }
                let numbers = vec![one; x.len()];
                for (lo, hi) in [(nan, one), (minus_one, nan), (T::NAN, nan)] {
                    for got in clamped(level, &numbers, lo, hi) {
                        assert!(got.iter().all(|bits| *bits == nan.bits()), "{level:?}");
                    }
                }
            });
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn a_clamped_nan_keeps_its_bits_and_a_nan_bound_gives_its_own() {
    check_clamps(1.0_f32);
    check_clamps(1.0_f64);
    check_clamps(f16::ONE);
    check_clamps(bf16::ONE);
}

/// Returns the bits of a NaN converted to another type: its sign, as many bits of its payload as fit, and quiet if
/// `quiet`.
fn converted_nan<A: Bits, B: Bits>(nan: A, quiet: bool) -> u64 {
    let (from, to) = (A::QUIET.trailing_zeros(), B::QUIET.trailing_zeros());
    let mantissa = nan.bits() & (2 * A::QUIET - 1);
    let mantissa = if to >= from { mantissa << (to - from) } else { mantissa >> (from - to) };
    let sign = if nan.bits() & A::SIGN == 0 { 0 } else { B::SIGN };
    sign | B::INFINITY | mantissa | if quiet { B::QUIET } else { 0 }
}

fn check_conversions<A: Bits + Convert<B>, B: Bits>(one: A, quiet: bool) {
    for level in isa::all() {
        for nan in A::nans() {
            at_every_position(nan, one, |x, at| {
                let mut to = vec![B::ZERO; x.len()];
                convert(level, x, &mut to);
                assert_eq!(to[at].bits(), converted_nan::<A, B>(nan, quiet), "{level:?} {:x}", nan.bits());
            });
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri gives computed NaNs arbitrary bits")]
fn a_converted_nan_becomes_quiet_and_keeps_the_payload_that_fits() {
    check_conversions::<f16, f32>(f16::ONE, true);
    check_conversions::<f16, f64>(f16::ONE, true);
    check_conversions::<bf16, f64>(bf16::ONE, true);
    check_conversions::<f32, f16>(1.0, true);
    check_conversions::<f32, bf16>(1.0, true);
    check_conversions::<f64, f16>(1.0, true);
    check_conversions::<f64, bf16>(1.0, true);
    check_conversions::<f32, f64>(1.0, true);
    check_conversions::<f64, f32>(1.0, true);
    // These copy the bits.
    check_conversions::<bf16, f32>(bf16::ONE, false);
    check_conversions::<f32, f32>(1.0, false);
    check_conversions::<f64, f64>(1.0, false);
}

/// Visitor that takes steps of a rule at every level, with a NaN or an infinity in each operand.
struct Steps;

impl Steps {
    /// Checks the bits of all NaN results, and that all results are the same at every level. Returns the number of
    /// NaNs.
    fn check<R: Real + Bits, K: Rule<R, N>, const N: usize>(rule: K) -> usize {
        let mut specials = R::nans();
        specials.extend([R::infinity(), R::from_u64(R::INFINITY | R::SIGN), R::ZERO]);
        let numbers: Vec<R> = samples(200).into_iter().map(R::from_f64).collect();
        let len = R::LANES + 5;
        let mut nans = 0;
        for (index, value) in specials.iter().enumerate() {
            for operand in 0..N + 2 {
                // With and without another special value at the same position of another operand.
                for other in [None, Some((operand + 1) % (N + 2))] {
                    let mut operands: Vec<Vec<R>> =
                        (0..N + 2).map(|k| numbers[7 * k..][..len].to_vec()).collect();
                    for position in [0, R::LANES - 1, R::LANES + 2] {
                        operands[operand][position] = *value;
                        if let Some(other) = other {
                            operands[other][position] = specials[(index * 5 + 3) % specials.len()];
                        }
                    }
                    let mut expected: Option<Vec<u64>> = None;
                    for level in isa::all() {
                        let mut w = operands[1].clone();
                        let mut slots: [Vec<R>; N] = std::array::from_fn(|k| operands[k + 2].clone());
                        for _ in 0..2 {
                            let slots = slots.each_mut().map(Vec::as_mut_slice);
                            update(level, rule, R::from_f64(0.5), &operands[0], &mut w, slots);
                        }
                        let all = w.iter().chain(slots.iter().flatten());
                        nans += all.clone().filter(|v| Bits::is_nan(**v)).count();
                        let bits: Vec<u64> = all.map(|v| v.bits()).collect();
                        for bits in &bits {
                            let nan = Bits::is_nan(R::from_u64(*bits));
                            assert!(!nan || *bits == <R as Float>::NAN.bits(), "{level:?} {bits:x}");
                        }
                        assert_eq!(expected.get_or_insert_with(|| bits.clone()), &bits, "{level:?}");
                    }
                }
            }
        }
        nans
    }
}

impl RuleVisitor for Steps {
    type Result = usize;

    fn visit<A: Rule<f32, N>, B: Rule<f64, N>, const N: usize>(self, narrow: A, wide: B) -> usize {
        Self::check(narrow).min(Self::check(wide))
    }
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn a_nan_result_of_a_rule_is_canonical() {
    for kind in RuleKind::ALL {
        let hyper: Vec<f64> = kind
            .hyper()
            .iter()
            .map(|name| match *name {
                "learning_rate_power" => -0.5,
                "step" => 3.0,
                "use_nesterov" => 1.0,
                _ => 0.25,
            })
            .collect();
        assert!(kind.with(&hyper, Steps) > 0, "{kind:?}");
    }
}

#[test]
fn a_nan_norm_is_canonical() {
    for order in [1.0, 2.0, 3.0, 0.25, f64::INFINITY].map(Order::new) {
        for nan in f64::nans() {
            for exponent in [0, -1022, 1000] {
                let magnitude = Magnitude { value: nan, exponent };
                assert_eq!(magnitude.norm(order).to_bits(), f64::NAN.to_bits());
                let total = combine(&[Magnitude::ZERO, magnitude, Magnitude::ZERO], order);
                assert_eq!(total.norm(order).to_bits(), f64::NAN.to_bits());
                if order != Order::Max {
                    let sums = ranges::split(magnitude, order);
                    let nans: Vec<u64> =
                        sums.iter().filter(|sum| sum.is_nan()).map(|sum| sum.to_bits()).collect();
                    assert_eq!(nans, [f64::NAN.to_bits()]);
                    assert_eq!(ranges::join(&sums, order).norm(order).to_bits(), f64::NAN.to_bits());
                }
            }
        }
    }
}
