//! What the kernels' tests share: exact sums, sample values, and slices of every length and offset.

/// The sum of finite values, rounded once: Shewchuk's algorithm, as Python's `math.fsum`
/// ("Adaptive precision floating-point arithmetic", 1997).
pub fn exact_sum(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut partials: Vec<f64> = Vec::new();
    for mut x in values {
        let mut kept = 0;
        for i in 0..partials.len() {
            let mut y = partials[i];
            if x.abs() < y.abs() {
                std::mem::swap(&mut x, &mut y);
            }
            let high = x + y;
            let low = y - (high - x);
            if low != 0.0 {
                partials[kept] = low;
                kept += 1;
            }
            x = high;
        }
        partials.truncate(kept);
        partials.push(x);
    }
    // The partials do not overlap and grow: adding them from the largest down rounds once, but for
    // a tie that the ones below would break, which the tests' bounds allow for.
    partials.iter().rev().fold(0.0, |sum, x| sum + x)
}

/// Values of both signs over many magnitudes, the same on every run.
pub fn samples(n: usize) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5;
            let exponent = ((state >> 7) % 25) as i32 - 12;
            unit * f64::powi(2.0, exponent)
        })
        .collect()
}

/// FNV-1a, of 64 bits: a hash of bytes for stored results, not against intent
/// (Fowler, Noll, Vo, <https://datatracker.ietf.org/doc/draft-eastlake-fnv/>).
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Calls `check` with slices that start at every offset up to a cache line and have every tail
/// length, short ones and ones past the kernels' block sizes.
pub fn for_every_length_and_offset<T: Copy>(values: &[T], check: impl Fn(&[T])) {
    let lengths = if cfg!(miri) {
        vec![0, 1, 31, 33, 70]
    } else {
        (0..=130).chain([511, 512, 513, 1000, 2047, 2048, 2049, 2081, 4096, 4500]).collect()
    };
    for length in lengths {
        for offset in if length > 200 || cfg!(miri) { vec![0, 1, 3] } else { (0..17).collect() } {
            check(&values[offset..offset + length]);
        }
    }
}
