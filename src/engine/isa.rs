//! SIMD level of the kernels: the best that the processor supports, or a lower one set by `FASTCLIP_ISA`.

use std::sync::atomic::{AtomicU8, Ordering};

pub use fearless_simd::Level;

/// Valid values of `FASTCLIP_ISA`, in ascending order of the level.
pub const NAMES: [&str; 6] = ["scalar", "sse2", "sse4.2", "avx2", "avx512", "neon"];

/// The value of [`CURRENT`] before the first call of [`current`].
const UNSET: u8 = u8::MAX;
/// Index of the level in use in [`NAMES`].
static CURRENT: AtomicU8 = AtomicU8::new(UNSET);

/// Returns the best level that this processor supports.
#[must_use]
pub fn detected() -> Level {
    Level::new()
}

/// Whether the processor has AVX-512, but not all of the instructions that the level `avx512` uses: those of Ice Lake and
/// Zen 4. Skylake and Cascade Lake servers run the level `avx2`.
#[must_use]
pub fn has_early_avx512() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        std::arch::is_x86_feature_detected!("avx512f") && detected().as_avx512().is_none()
    }
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
    false
}

/// Returns the level of that name; None if there is none or this processor does not support it.
#[must_use]
pub fn by_name(name: &str) -> Option<Level> {
    let best = detected();
    match name {
        "scalar" => Some(Level::fallback()),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "sse2" => best.as_sse2().map(Level::Sse2),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "sse4.2" => best.as_sse4_2().map(Level::Sse4_2),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "avx2" => best.as_avx2().map(Level::Avx2),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "avx512" => best.as_avx512().map(Level::Avx512),
        #[cfg(target_arch = "aarch64")]
        "neon" => best.as_neon().map(Level::Neon),
        _ => {
            let _ = best;
            None
        }
    }
}

/// Returns the name of a level, one of [`NAMES`].
#[must_use]
pub fn name(level: Level) -> &'static str {
    match level {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Level::Sse2(_) => "sse2",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Level::Sse4_2(_) => "sse4.2",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Level::Avx2(_) => "avx2",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Level::Avx512(_) => "avx512",
        #[cfg(target_arch = "aarch64")]
        Level::Neon(_) => "neon",
        _ => "scalar",
    }
}

/// Returns every level that this processor supports, in ascending order.
#[must_use]
pub fn all() -> Vec<Level> {
    NAMES.iter().filter_map(|name| by_name(name)).collect()
}

/// Returns the level in use: that of `FASTCLIP_ISA` if the processor supports it, else the best one. The environment is
/// read by the first call only.
#[must_use]
pub fn current() -> Level {
    let mut index = CURRENT.load(Ordering::Relaxed);
    if index == UNSET {
        let level = std::env::var("FASTCLIP_ISA")
            .ok()
            .and_then(|value| by_name(value.trim()))
            .unwrap_or_else(detected);
        index = NAMES.iter().position(|candidate| *candidate == name(level)).unwrap_or(0) as u8;
        CURRENT.store(index, Ordering::Relaxed);
    }
    by_name(NAMES[usize::from(index)]).unwrap_or_else(detected)
}

/// Returns a message about `FASTCLIP_ISA` if its value is invalid or this processor does not support it.
#[must_use]
pub fn complaint() -> Option<String> {
    let value = std::env::var("FASTCLIP_ISA").ok()?;
    if value.trim().is_empty() || by_name(value.trim()).is_some() {
        return None;
    }
    let supported: Vec<&str> = all().into_iter().map(name).collect();
    Some(format!(
        "FASTCLIP_ISA is {value:?}; this processor runs {}. Using {:?}.",
        supported.join(", "),
        name(detected())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_found_by_its_name() {
        for level in all() {
            assert_eq!(name(by_name(name(level)).unwrap()), name(level));
        }
        assert!(by_name("mmx").is_none());
    }
}
