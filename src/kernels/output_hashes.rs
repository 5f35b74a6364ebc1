//! Tests that the kernels' results have the stored hashes: the same at every SIMD level, on every processor and
//! system.
//!
//! A hash that changes means that results change for users: their norms, their clipped tensors, their trained
//! variables. Such a change is announced in the change log, and the table below is replaced by that in the test's
//! message.
//!
//! Operations that call the C library's `powf` are left out: norms of other orders than 1, 2 and infinity, and Ftrl
//! with another power than -1/2. The tests of `power_sum.rs` check the former against an error bound.

use super::clamp::{clamp_all, clamp_each};
use super::columns::{FactorVecs, accumulate, scale_each};
use super::convert::{Convert, convert};
use super::lanes::Real;
use super::max_abs::max_abs;
use super::oracle::{fnv1a, samples};
use super::power_sum::plain_power_sum;
use super::scale::{Factor, scale};
use super::sum_squares::sum_squares;
use super::update::update;
use super::{Clamp, Float};
use crate::engine::isa;
use crate::operations::magnitude::{Magnitude, Order, combine};
use crate::operations::rules::{Rule, RuleKind, RuleVisitor};
use fearless_simd::Level;
use half::{bf16, f16};

/// A float type with the bytes of its values, and special values.
trait Hashed: Float {
    const NAME: &'static str;
    /// Returns the nearest value.
    fn nearest(x: f64) -> Self;
    fn bytes(self) -> Vec<u8>;
    /// Returns infinities, NaNs, zeros and subnormal numbers of both signs.
    fn specials() -> Vec<Self>;
}

macro_rules! hashed {
    ($($T:ident, $nearest:expr;)*) => {$(
        impl Hashed for $T {
            const NAME: &'static str = stringify!($T);
            fn nearest(x: f64) -> Self {
                $nearest(x)
            }
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn specials() -> Vec<Self> {
                let (infinity, nan) = ($T::INFINITY.to_bits(), $T::NAN.to_bits());
                let sign = 1 << (size_of::<$T>() * 8 - 1);
                let positive = [infinity, nan, nan | 5, infinity | 5, 0, 1, 77];
                positive.into_iter().flat_map(|bits| [bits, bits | sign]).map($T::from_bits).collect()
            }
        }
    )*};
}

hashed! {
    f16, f16::from_f64;
    bf16, bf16::from_f64;
    f32, |x| x as f32;
    f64, |x| x;
}

/// Returns `n` sample values, those from index `from`. One in nine is a special value if `special`.
fn inputs<T: Hashed>(n: usize, from: usize, special: bool) -> Vec<T> {
    let mut x: Vec<T> = samples(from + n)[from..].iter().map(|v| T::nearest(*v)).collect();
    if special {
        let values = T::specials();
        for i in (from % 7..n).step_by(9) {
            x[i] = values[(i / 9 + from) % values.len()];
        }
    }
    x
}

fn hash<T: Hashed>(values: impl IntoIterator<Item = T>) -> u64 {
    fnv1a(values.into_iter().flat_map(T::bytes))
}

/// Labels and hashes, in the order of [`STORED`].
type Hashes = Vec<(String, u64)>;

const LENGTHS: [usize; 11] = [0, 1, 7, 15, 32, 33, 511, 1000, 2048, 2049, 20_000];

/// Appends the hashes of norms, products and clamped values of one type.
fn hash_type<T: Hashed>(level: Level, hashes: &mut Hashes) {
    let name = T::NAME;
    for special in [false, true] {
        let with = if special { " with odd values" } else { "" };
        for (order, p) in [(Order::One, "1"), (Order::Two, "2"), (Order::Max, "inf")] {
            let magnitudes: Vec<Magnitude> = LENGTHS
                .iter()
                .enumerate()
                .map(|(i, n)| {
                    let x: Vec<T> = inputs(*n, 11 * i, special && i % 2 == 1);
                    let value = match order {
                        Order::One => plain_power_sum(level, &x, 1.0),
                        Order::Two => sum_squares(level, &x),
                        _ => max_abs(level, &x),
                    };
                    Magnitude { value, exponent: 0 }
                })
                .collect();
            let total = combine(&magnitudes, order);
            let norms = magnitudes.iter().chain([&total]).map(|magnitude| magnitude.norm(order));
            hashes.push((format!("norms of order {p}, {name}{with}"), hash(norms)));
        }
        let factors = [Factor::new(0.3, 1.0, 0), Factor::new(1e-5, 7.0, 0), Factor::new(0.0, 3.0, 0)];
        let extreme = [Factor::new(1e-10, 1e30, 0), Factor::new(1.0, 1.0, 1030), Factor::NAN];
        let scaled = factors.into_iter().chain(extreme).flat_map(|factor| {
            LENGTHS.into_iter().flat_map(move |n| {
                let mut x: Vec<T> = inputs(n, 3, special);
                scale(level, &mut x, factor);
                x
            })
        });
        hashes.push((format!("products, {name}{with}"), hash(scaled)));

        let rows: Vec<Vec<T>> = (0..40).map(|row| inputs(300, 300 * row, special)).collect();
        let (mut sum, mut error) = (vec![0.0; 300], vec![0.0; 300]);
        for row in &rows {
            accumulate(level, &mut sum, &mut error, row);
        }
        let norms = sum.iter().zip(&error).map(|(sum, error)| {
            let value = if sum.is_finite() { sum + error } else { *sum };
            Magnitude { value, exponent: 0 }.norm(Order::Two)
        });
        hashes.push((format!("norms of columns, {name}{with}"), hash(norms)));
        let each: Vec<Factor> =
            (0..300).map(|j| if j % 11 == 0 { extreme[j % 3] } else { factors[j % 3] }).collect();
        let mut row = rows[1].clone();
        scale_each(level, &mut row, &FactorVecs::new(&each).unwrap().get());
        hashes.push((format!("products of columns, {name}{with}"), hash(row)));

        let clamped = LENGTHS.into_iter().flat_map(|n| {
            let mut all: Vec<T> = inputs(n, 5, special);
            let mut each = all.clone();
            clamp_all(level, &mut all, T::nearest(-0.25), T::nearest(0.5));
            clamp_each(level, &mut each, &inputs::<T>(n, 6, special), &inputs::<T>(n, 7, special));
            all.into_iter().chain(each)
        });
        hashes.push((format!("clamped, {name}{with}"), hash(clamped)));
    }
}

/// Appends the hashes of a conversion.
fn hash_conversion<A: Hashed + Convert<B>, B: Hashed>(level: Level, hashes: &mut Hashes) {
    for special in [false, true] {
        let x: Vec<A> = inputs(5000, 0, special);
        let mut to = vec![B::ZERO; x.len()];
        convert(level, &x, &mut to);
        let with = if special { " with odd values" } else { "" };
        hashes.push((format!("{} to {}{with}", A::NAME, B::NAME), hash(to)));
    }
}

/// Visitor that takes one step of a rule with float32 gradients.
struct Training {
    level: Level,
    special: bool,
    step: usize,
    narrow: Trained<f32>,
    wide: Trained<f64>,
}

/// A variable and its slots.
struct Trained<R> {
    w: Vec<R>,
    slots: Vec<Vec<R>>,
}

impl<R: Hashed + Clamp> Trained<R> {
    /// Returns sample values. All slots are above 0, because those that accumulate squares have to be.
    fn new(slots: usize, special: bool) -> Self {
        let slot = |k: usize| inputs::<R>(1037, 1000 * (k + 1), special).into_iter();
        let positive = |v: R| if v.to_f64().is_finite() { R::nearest(v.to_f64().abs() + 0.125) } else { v };
        Self {
            w: inputs(1037, 50, special),
            slots: (0..slots).map(|k| slot(k).map(positive).collect()).collect(),
        }
    }

    fn hash(&self) -> u64 {
        hash(self.w.iter().chain(self.slots.iter().flatten()).copied())
    }
}

impl Training {
    fn step<R: Real, K: Rule<R, N>, const N: usize>(&self, rule: K, trained: &mut Trained<R>)
    where
        f32: Convert<R>,
    {
        let g: Vec<f32> = inputs(1037, 400 + 100 * self.step, self.special);
        let mut gradient = vec![R::ZERO; g.len()];
        convert(self.level, &g, &mut gradient);
        let mut slots = trained.slots.iter_mut();
        let slots = std::array::from_fn(|_| slots.next().unwrap().as_mut_slice());
        update(self.level, rule, R::from_f64(0.75), &gradient, &mut trained.w, slots);
    }
}

impl RuleVisitor for &mut Training {
    type Result = ();

    fn visit<A: Rule<f32, N>, B: Rule<f64, N>, const N: usize>(self, narrow: A, wide: B) {
        let mut trained = std::mem::replace(&mut self.narrow, Trained { w: vec![], slots: vec![] });
        self.step(narrow, &mut trained);
        self.narrow = trained;
        let mut trained = std::mem::replace(&mut self.wide, Trained { w: vec![], slots: vec![] });
        self.step(wide, &mut trained);
        self.wide = trained;
    }
}

/// Returns valid hyper-parameters of a rule for a step.
fn hyper(kind: RuleKind, step: usize) -> Vec<f64> {
    let power = |x: f64| (0..=step).fold(1.0, |product, _| product * x);
    let value = |name: &str| match name {
        "learning_rate" => 0.1,
        "learning_rate_power" => -0.5,
        "beta1" | "momentum" => 0.9,
        "beta2" => 0.999,
        "beta1_power" => power(0.9),
        "beta2_power" => power(0.999),
        "rho" | "decay" => 0.95,
        "epsilon" => 1e-3,
        "step" => (step + 1) as f64,
        "use_nesterov" | "nesterov" | "decoupled" | "maximize" => (step % 2) as f64,
        "l1" | "l2" | "l2_shrinkage" | "beta" | "weight_decay" | "lr_decay" | "dampening" => 0.01,
        _ => unreachable!("{name} has no value here"),
    };
    kind.hyper().iter().map(|name| value(name)).collect()
}

/// Appends the hashes of variables and slots after four steps of each rule.
fn hash_training(level: Level, hashes: &mut Hashes) {
    for kind in RuleKind::ALL {
        for special in [false, true] {
            let (narrow, wide) = (Trained::new(kind.slots(), special), Trained::new(kind.slots(), special));
            let mut training = Training { level, special, step: 0, narrow, wide };
            for step in 0..4 {
                training.step = step;
                kind.with(&hyper(*kind, step), &mut training);
            }
            let with = if special { " with odd values" } else { "" };
            hashes.push((format!("{kind:?}, f32{with}"), training.narrow.hash()));
            hashes.push((format!("{kind:?}, f64{with}"), training.wide.hash()));
        }
    }
}

/// Returns the hashes of all results at one level.
fn hash_all(level: Level) -> Hashes {
    let mut hashes = Vec::new();
    hash_type::<f16>(level, &mut hashes);
    hash_type::<bf16>(level, &mut hashes);
    hash_type::<f32>(level, &mut hashes);
    hash_type::<f64>(level, &mut hashes);
    hash_conversion::<f16, f32>(level, &mut hashes);
    hash_conversion::<f16, f64>(level, &mut hashes);
    hash_conversion::<bf16, f64>(level, &mut hashes);
    hash_conversion::<f32, f16>(level, &mut hashes);
    hash_conversion::<f32, bf16>(level, &mut hashes);
    hash_conversion::<f64, f16>(level, &mut hashes);
    hash_conversion::<f64, bf16>(level, &mut hashes);
    hash_conversion::<f64, f32>(level, &mut hashes);
    hash_training(level, &mut hashes);
    hashes
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn results_have_the_stored_hashes() {
    for level in isa::all() {
        let hashes = hash_all(level);
        let name = isa::name(level);
        for ((label, hash), stored) in hashes.iter().zip(STORED) {
            if (label.as_str(), *hash) != *stored {
                println!("at level {name}: {label} has {hash:#018x} where {stored:x?} is stored");
            }
        }
        let same = hashes.iter().map(|(label, hash)| (label.as_str(), *hash)).eq(STORED.iter().copied());
        if !same {
            let lines = hashes.iter().map(|(label, hash)| {
                format!(
                    "    ({label:?}, 0x{:04x}_{:04x}_{:04x}_{:04x}),\n",
                    hash >> 48,
                    hash >> 32 & 0xffff,
                    hash >> 16 & 0xffff,
                    hash & 0xffff
                )
            });
            panic!("level {name} gives\n{}", lines.collect::<String>());
        }
    }
}

#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn a_level_with_vector_registers_is_tested() {
    let vectors = if cfg!(target_arch = "aarch64") { "neon" } else { "sse2" };
    assert!(isa::all().into_iter().any(|level| isa::name(level) == vectors));
}

#[test]
fn the_hash_is_fnv1a() {
    assert_eq!(fnv1a([]), 0xcbf2_9ce4_8422_2325);
    assert_eq!(fnv1a(*b"foobar"), 0x8594_4171_f739_67e8);
}

#[rustfmt::skip]
const STORED: &[(&str, u64)] = &[
    ("norms of order 1, f16", 0x6133_b913_52d6_1eba),
    ("norms of order 2, f16", 0x3fbd_42ad_5f92_a36c),
    ("norms of order inf, f16", 0x7cc7_7bff_e114_1aae),
    ("products, f16", 0x9ae8_1e0b_c111_014c),
    ("norms of columns, f16", 0x4c94_f0eb_d604_5e46),
    ("products of columns, f16", 0xa655_5ea9_4a5a_9aa1),
    ("clamped, f16", 0x3298_e4c1_9d52_d7f7),
    ("norms of order 1, f16 with odd values", 0xc914_bda3_6d7c_c659),
    ("norms of order 2, f16 with odd values", 0x27ea_4571_1400_3f7a),
    ("norms of order inf, f16 with odd values", 0x6d6c_e741_acde_5d98),
    ("products, f16 with odd values", 0xac8b_dc8d_2c10_3d2b),
    ("norms of columns, f16 with odd values", 0x0bea_f369_0e3f_b6b2),
    ("products of columns, f16 with odd values", 0x8ea1_ec78_4c5c_e6df),
    ("clamped, f16 with odd values", 0x2c39_2b3b_b7c2_4904),
    ("norms of order 1, bf16", 0xebdc_056c_f2da_826e),
    ("norms of order 2, bf16", 0xfdf5_606e_7c4a_4fda),
    ("norms of order inf, bf16", 0x64dd_bdb9_4b96_82d6),
    ("products, bf16", 0x4ca6_055d_97f3_a814),
    ("norms of columns, bf16", 0xe39e_59ec_5bec_bedf),
    ("products of columns, bf16", 0xf571_3013_119c_9400),
    ("clamped, bf16", 0xf30b_d597_818f_6ead),
    ("norms of order 1, bf16 with odd values", 0x1fc9_0a53_c59b_5bc3),
    ("norms of order 2, bf16 with odd values", 0x7420_6afa_92b6_3f0f),
    ("norms of order inf, bf16 with odd values", 0x821f_2ca0_1e2e_b30c),
    ("products, bf16 with odd values", 0xc696_a9e2_69ef_0356),
    ("norms of columns, bf16 with odd values", 0x71f8_8750_6a09_b92c),
    ("products of columns, bf16 with odd values", 0x083c_9f2e_4ddf_7433),
    ("clamped, bf16 with odd values", 0x966c_588b_bdda_d36b),
    ("norms of order 1, f32", 0x4547_6707_6c0e_1c2d),
    ("norms of order 2, f32", 0x059d_0e57_aa3b_e11d),
    ("norms of order inf, f32", 0x1d4a_d6fe_2fd9_9e0f),
    ("products, f32", 0x442f_a652_6136_4c69),
    ("norms of columns, f32", 0x552c_d5b1_5be4_b11f),
    ("products of columns, f32", 0x31ea_dbcf_a7fb_f713),
    ("clamped, f32", 0xc5ad_dab6_effa_1ad9),
    ("norms of order 1, f32 with odd values", 0x9789_6dd1_31e8_fdff),
    ("norms of order 2, f32 with odd values", 0xe25e_bbf9_566a_2481),
    ("norms of order inf, f32 with odd values", 0xf227_76a9_f907_60a6),
    ("products, f32 with odd values", 0x0667_ed0e_b322_59d0),
    ("norms of columns, f32 with odd values", 0x255e_d1ce_0baa_af10),
    ("products of columns, f32 with odd values", 0x4533_4193_590b_3802),
    ("clamped, f32 with odd values", 0xbce6_f9df_c215_4d29),
    ("norms of order 1, f64", 0x0c6f_df06_52af_f35d),
    ("norms of order 2, f64", 0x39d6_2fc5_8e36_3c6c),
    ("norms of order inf, f64", 0x90c4_9dc2_d500_8203),
    ("products, f64", 0x89bd_f0c2_b411_aa9a),
    ("norms of columns, f64", 0x5815_6c2a_cb13_0ce6),
    ("products of columns, f64", 0x932b_b5bd_4065_e3c2),
    ("clamped, f64", 0x5612_faff_283a_2fcf),
    ("norms of order 1, f64 with odd values", 0x205b_1f3a_9fe9_174f),
    ("norms of order 2, f64 with odd values", 0xe115_3eb7_df4b_a827),
    ("norms of order inf, f64 with odd values", 0x177e_885f_ab72_0d30),
    ("products, f64 with odd values", 0x3062_1fca_340a_8618),
    ("norms of columns, f64 with odd values", 0xa53b_5931_5bf5_a514),
    ("products of columns, f64 with odd values", 0x763d_81ca_cc85_ac87),
    ("clamped, f64 with odd values", 0x3824_0025_10fa_d970),
    ("f16 to f32", 0x1e2c_83bf_45eb_dc01),
    ("f16 to f32 with odd values", 0x9083_cbb1_6827_798a),
    ("f16 to f64", 0x5aa6_23ae_95d2_443a),
    ("f16 to f64 with odd values", 0x3e43_6fd3_a6f1_789f),
    ("bf16 to f64", 0x1403_a73b_1792_030f),
    ("bf16 to f64 with odd values", 0x4044_4228_c3e7_c601),
    ("f32 to f16", 0x23d1_8838_5385_86b3),
    ("f32 to f16 with odd values", 0x1e6a_4a9e_009e_ac3a),
    ("f32 to bf16", 0xf031_3034_a6fe_d084),
    ("f32 to bf16 with odd values", 0x6086_e89b_e789_4c0c),
    ("f64 to f16", 0x23d1_8838_5385_86b3),
    ("f64 to f16 with odd values", 0x1e6a_4a9e_009e_ac3a),
    ("f64 to bf16", 0xf031_3034_a6fe_d084),
    ("f64 to bf16 with odd values", 0x6086_e89b_e789_4c0c),
    ("f64 to f32", 0xb8cc_3582_f7c9_445d),
    ("f64 to f32 with odd values", 0x3241_557b_e17b_62d9),
    ("GradientDescent, f32", 0xfb46_9097_22e3_b7b2),
    ("GradientDescent, f64", 0xd706_ee61_bfa1_2765),
    ("GradientDescent, f32 with odd values", 0xee2f_992d_8fbc_6dd3),
    ("GradientDescent, f64 with odd values", 0xacb7_f0a4_032d_66b6),
    ("Momentum, f32", 0x9c51_0a52_cdbb_8156),
    ("Momentum, f64", 0xb30b_da35_85db_fba3),
    ("Momentum, f32 with odd values", 0x7ac6_991d_2df8_56dc),
    ("Momentum, f64 with odd values", 0x80c9_34fa_c13d_c9e0),
    ("Adam, f32", 0x0891_3c7e_f392_0788),
    ("Adam, f64", 0xf23d_ecb3_ad34_f061),
    ("Adam, f32 with odd values", 0xb891_93a1_3b09_1c4a),
    ("Adam, f64 with odd values", 0xa383_832b_b0a0_b83e),
    ("AdamW, f32", 0xdba2_e929_f286_acb2),
    ("AdamW, f64", 0x75b5_94d6_118b_5472),
    ("AdamW, f32 with odd values", 0xfe98_e8fc_c20d_8fa2),
    ("AdamW, f64 with odd values", 0xb8de_e461_0271_b262),
    ("Adagrad, f32", 0xdaa9_99bf_3948_3f23),
    ("Adagrad, f64", 0x8dea_e5c3_ab48_1cfa),
    ("Adagrad, f32 with odd values", 0x08d7_75a4_e4da_c71e),
    ("Adagrad, f64 with odd values", 0x0446_160d_84c2_469c),
    ("AdagradDA, f32", 0x8839_66bf_0abc_409b),
    ("AdagradDA, f64", 0x120b_2fae_1c30_3468),
    ("AdagradDA, f32 with odd values", 0x1364_9fa6_3a52_057e),
    ("AdagradDA, f64 with odd values", 0xd7a8_c900_dbfc_ceb7),
    ("RmsProp, f32", 0x49ab_931b_4aec_7452),
    ("RmsProp, f64", 0x7064_10df_7402_4b44),
    ("RmsProp, f32 with odd values", 0x0cc0_f929_2bea_dbaa),
    ("RmsProp, f64 with odd values", 0x1a9e_e238_9342_3019),
    ("CenteredRmsProp, f32", 0xfaf4_c7b7_f625_0713),
    ("CenteredRmsProp, f64", 0x6651_a650_b7e2_f468),
    ("CenteredRmsProp, f32 with odd values", 0x5502_8c04_e51a_9a0b),
    ("CenteredRmsProp, f64 with odd values", 0xecbe_2328_096a_3571),
    ("Adadelta, f32", 0xd6f9_1ad3_b8e8_9817),
    ("Adadelta, f64", 0x1536_5b87_9c1e_dba2),
    ("Adadelta, f32 with odd values", 0x352d_0611_8190_aa0e),
    ("Adadelta, f64 with odd values", 0xbbaf_11de_8751_1e8a),
    ("Ftrl, f32", 0x5398_9b6c_2c0c_b8a1),
    ("Ftrl, f64", 0x0ae7_5be0_2e09_99d6),
    ("Ftrl, f32 with odd values", 0x9bd9_285b_736f_9331),
    ("Ftrl, f64 with odd values", 0x7f41_796b_f50e_49e0),
    ("ProximalGradientDescent, f32", 0x7fd2_8a2f_3d6d_c713),
    ("ProximalGradientDescent, f64", 0xdf9e_a67b_6bb2_dc43),
    ("ProximalGradientDescent, f32 with odd values", 0xafa0_2fa2_f32f_6f76),
    ("ProximalGradientDescent, f64 with odd values", 0xf910_bd51_c6db_3ea9),
    ("ProximalAdagrad, f32", 0x7bb2_2e36_6f3a_a3bd),
    ("ProximalAdagrad, f64", 0x04d7_524b_d139_1abd),
    ("ProximalAdagrad, f32 with odd values", 0x6d2d_aae4_5bb1_90b2),
    ("ProximalAdagrad, f64 with odd values", 0xf0a5_0545_055f_dbfa),
    ("Lion, f32", 0xfd7e_7b86_6d4d_474a),
    ("Lion, f64", 0x4ab7_d355_8ff2_cb8e),
    ("Lion, f32 with odd values", 0xe121_3889_f0b3_a795),
    ("Lion, f64 with odd values", 0x72f7_5a53_6401_c469),
    ("TorchAdam, f32", 0xbbf9_d076_067d_4bc1),
    ("TorchAdam, f64", 0x637c_24f7_8888_37e1),
    ("TorchAdam, f32 with odd values", 0x8074_0395_7e2c_fefb),
    ("TorchAdam, f64 with odd values", 0x8603_1e27_6f90_87d2),
    ("TorchAmsGrad, f32", 0x3dfa_06ba_00fa_f954),
    ("TorchAmsGrad, f64", 0x774d_e130_32e3_c773),
    ("TorchAmsGrad, f32 with odd values", 0xdee4_101c_1165_eedf),
    ("TorchAmsGrad, f64 with odd values", 0xbed4_05fd_d514_ee63),
    ("TorchSgd, f32", 0xf8f2_674a_eeb6_d7fb),
    ("TorchSgd, f64", 0x9310_5582_7c7a_d721),
    ("TorchSgd, f32 with odd values", 0xb7ca_96fa_949a_3553),
    ("TorchSgd, f64 with odd values", 0x7af2_3949_5a81_682f),
    ("TorchPlainSgd, f32", 0xbc9b_56ee_df30_55a3),
    ("TorchPlainSgd, f64", 0x0cc1_f59b_7e6e_431f),
    ("TorchPlainSgd, f32 with odd values", 0xd936_c288_9d84_5f4a),
    ("TorchPlainSgd, f64 with odd values", 0x5d27_78ca_1a75_637a),
    ("TorchAdagrad, f32", 0xfbca_9829_554a_e083),
    ("TorchAdagrad, f64", 0x4ffb_680c_6a75_fd92),
    ("TorchAdagrad, f32 with odd values", 0xc5c7_b9ee_e9d8_b9b4),
    ("TorchAdagrad, f64 with odd values", 0x3c93_ee5f_5d0b_7310),
];
