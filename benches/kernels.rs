//! Benchmarks of single kernels: one thread, one chunk that fits the second-level cache, every SIMD level.
//!
//! `cargo bench --no-default-features` measures them; `cargo test --benches --no-default-features` runs each once.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use fastclip::isa;
use fastclip::kernels::Float;
use fastclip::kernels::clamp::{Clamp, clamp_all};
use fastclip::kernels::columns::accumulate;
use fastclip::kernels::max_abs::max_abs;
use fastclip::kernels::power_sum::power_sum;
use fastclip::kernels::scale::{Factor, scale};
use fastclip::kernels::sum_squares::sum_squares;
use fastclip::kernels::update::update;
use fastclip::rules::{Rule, RuleKind, RuleVisitor};
use half::{bf16, f16};

/// Number of elements in a slice: the size of a chunk, `plan::CHUNK`.
const CHUNK: usize = 1 << 16;

fn main() {
    divan::main();
}

const TYPES: [&str; 4] = ["f16", "bf16", "f32", "f64"];

/// Returns every SIMD level of this machine with every type.
fn cases() -> Vec<(&'static str, &'static str)> {
    let levels = isa::all().into_iter().map(isa::name);
    levels.flat_map(|level| TYPES.map(|ty| (level, ty))).collect()
}

/// Evaluates `$body` with the type alias `$T` for the type of that name.
macro_rules! with_type {
    ($name:expr, $T:ident => $body:expr) => {
        match $name {
            "f16" => {
                type $T = f16;
                $body
            }
            "bf16" => {
                type $T = bf16;
                $body
            }
            "f32" => {
                type $T = f32;
                $body
            }
            _ => {
                type $T = f64;
                $body
            }
        }
    };
}

/// An element type that values are converted to.
trait FromF64 {
    fn from_f64(x: f64) -> Self;
}

impl FromF64 for f16 {
    fn from_f64(x: f64) -> Self {
        Self::from_f64(x)
    }
}

impl FromF64 for bf16 {
    fn from_f64(x: f64) -> Self {
        Self::from_f64(x)
    }
}

impl FromF64 for f32 {
    fn from_f64(x: f64) -> Self {
        x as Self
    }
}

impl FromF64 for f64 {
    fn from_f64(x: f64) -> Self {
        x
    }
}

/// Returns gradients between -1 and 1, or a little above.
fn data<T: FromF64>() -> Vec<T> {
    (0..CHUNK).map(|i| T::from_f64(((i * 7919) % 10007) as f64 / 5000.0 - 1.0)).collect()
}

fn level(name: &str) -> isa::Level {
    isa::by_name(name).unwrap_or_else(isa::detected)
}

#[divan::bench(args = cases())]
fn bench_sum_squares(bencher: Bencher, (isa, ty): (&str, &str)) {
    fn run<T: Float + FromF64>(bencher: Bencher, level: isa::Level) {
        let x = data::<T>();
        bencher.counter(BytesCount::of_slice(&x)).bench(|| sum_squares(level, black_box(&x)));
    }
    with_type!(ty, T => run::<T>(bencher, level(isa)));
}

#[divan::bench(args = cases())]
fn bench_max_abs(bencher: Bencher, (isa, ty): (&str, &str)) {
    fn run<T: Float + FromF64>(bencher: Bencher, level: isa::Level) {
        let x = data::<T>();
        bencher.counter(BytesCount::of_slice(&x)).bench(|| max_abs(level, black_box(&x)));
    }
    with_type!(ty, T => run::<T>(bencher, level(isa)));
}

#[divan::bench(args = cases())]
fn bench_scale(bencher: Bencher, (isa, ty): (&str, &str)) {
    fn run<T: Float + FromF64>(bencher: Bencher, level: isa::Level) {
        let mut x = data::<T>();
        let factor = Factor::new(0.999_999, 1.0, 0);
        bencher.counter(BytesCount::of_slice(&x)).bench_local(|| scale(level, black_box(&mut x), factor));
    }
    with_type!(ty, T => run::<T>(bencher, level(isa)));
}

/// float16 gradients so small that their products are subnormal.
#[divan::bench(args = isa::all().into_iter().map(isa::name))]
fn bench_scale_subnormal_f16(bencher: Bencher, isa: &str) {
    let mut x: Vec<f16> = data::<f64>().iter().map(|v| f16::from_f64(v * 3e-5)).collect();
    let factor = Factor::new(0.999_999, 1.0, 0);
    bencher.counter(BytesCount::of_slice(&x)).bench_local(|| scale(level(isa), black_box(&mut x), factor));
}

#[divan::bench(args = cases())]
fn bench_clamp(bencher: Bencher, (isa, ty): (&str, &str)) {
    fn run<T: Clamp + FromF64>(bencher: Bencher, level: isa::Level) {
        let mut x = data::<T>();
        let (lo, hi) = (T::from_f64(-0.5), T::from_f64(0.5));
        bencher.counter(BytesCount::of_slice(&x)).bench_local(|| clamp_all(level, black_box(&mut x), lo, hi));
    }
    with_type!(ty, T => run::<T>(bencher, level(isa)));
}

#[divan::bench(args = cases())]
fn bench_accumulate_columns(bencher: Bencher, (isa, ty): (&str, &str)) {
    fn run<T: Float + FromF64>(bencher: Bencher, level: isa::Level) {
        let x = data::<T>();
        let (mut sum, mut error) = (vec![0.0; 512], vec![0.0; 512]);
        bencher.counter(BytesCount::of_slice(&x)).bench_local(|| {
            for row in x.chunks(512) {
                accumulate(level, &mut sum, &mut error, black_box(row));
            }
        });
    }
    with_type!(ty, T => run::<T>(bencher, level(isa)));
}

#[divan::bench(args = [1.0, 3.0, 2.5])]
fn bench_power_sum_f32(bencher: Bencher, p: f64) {
    let x = data::<f32>();
    bencher
        .counter(BytesCount::of_slice(&x))
        .bench(|| power_sum(isa::detected(), black_box(&x), p, [0.5, 1.0]));
}

/// Visitor that applies a rule to one slice of float32.
struct UpdateSlice<'a> {
    level: isa::Level,
    g: &'a [f32],
    w: &'a mut [f32],
    slots: &'a mut [Vec<f32>],
}

impl RuleVisitor for UpdateSlice<'_> {
    type Result = ();

    fn visit<A: Rule<f32, N>, B: Rule<f64, N>, const N: usize>(self, narrow: A, _: B) {
        let mut slots = self.slots.iter_mut();
        let slots = std::array::from_fn(|_| slots.next().expect("as many as the rule has").as_mut_slice());
        update(self.level, narrow, 0.5, self.g, self.w, slots);
    }
}

#[divan::bench(args = rules())]
fn bench_update(bencher: Bencher, (level, rule): (&str, &str)) {
    let level = isa::by_name(level).expect("a level of this machine");
    let kind = RuleKind::from_name(rule).expect("a rule");
    let n = 1 << 14;
    let hyper = vec![0.1; kind.hyper().len()];
    let g = vec![0.01_f32; n];
    let mut w = vec![1.0_f32; n];
    let mut slots = vec![vec![1.0_f32; n]; kind.slots()];
    bencher.counter(BytesCount::new(4 * n * (3 + 2 * kind.slots()))).bench_local(|| {
        kind.with(&hyper, UpdateSlice { level, g: black_box(&g), w: &mut w, slots: &mut slots })
    });
}

/// Returns every SIMD level of this machine with some of the rules.
fn rules() -> Vec<(&'static str, &'static str)> {
    let levels = isa::all().into_iter().map(isa::name);
    levels
        .flat_map(|level| ["gradient_descent", "adamw", "centered_rms_prop"].map(|rule| (level, rule)))
        .collect()
}
