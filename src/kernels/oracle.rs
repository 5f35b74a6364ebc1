//! Support for the kernels' tests: exact sums, sample values, hashes, and slices of every length and offset.

/// Returns the sum of finite values, rounded once: Shewchuk's algorithm, as Python's `math.fsum`
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
    // The partials grow in size and their bits do not overlap: adding them from the largest down rounds once, except
    // for a tie that smaller partials would break, which the bounds of the tests allow for.
    partials.iter().rev().fold(0.0, |sum, x| sum + x)
}

/// Returns values of both signs over 25 powers of two, the same on every run.
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

/// Returns the 64-bit FNV-1a hash of bytes. It detects changes of stored results; it is not cryptographic.
/// (Fowler, Noll, Vo, <https://datatracker.ietf.org/doc/draft-eastlake-fnv/>).
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Calls `check` with slices of every short length and of lengths around the kernels' block sizes, each from several
/// offsets: 0 to 16 elements for lengths up to 200.
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
