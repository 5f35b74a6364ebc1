//! Which SIMD instructions the kernels use: the best the processor has, or less if asked for.

use std::sync::atomic::{AtomicU8, Ordering};

pub use fearless_simd::Level;

/// The names that `FASTCLIP_ISA` takes, from least to most.
pub const NAMES: [&str; 6] = ["scalar", "sse2", "sse4.2", "avx2", "avx512", "neon"];

const UNSET: u8 = u8::MAX;
static CHOSEN: AtomicU8 = AtomicU8::new(UNSET);

/// The best level that this processor runs.
#[must_use]
pub fn detected() -> Level {
    Level::new()
}

/// The level of that name, if this processor runs it.
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

/// The name of a level, as in [`NAMES`].
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

/// Every level that this processor runs, the scalar one first.
#[must_use]
pub fn all() -> Vec<Level> {
    NAMES.iter().filter_map(|name| by_name(name)).collect()
}

/// The level in use: that of `FASTCLIP_ISA` when the processor has it, else the best one.
#[must_use]
pub fn current() -> Level {
    let mut index = CHOSEN.load(Ordering::Relaxed);
    if index == UNSET {
        let level = std::env::var("FASTCLIP_ISA")
            .ok()
            .and_then(|asked| by_name(asked.trim()))
            .unwrap_or_else(detected);
        index = NAMES.iter().position(|known| *known == name(level)).unwrap_or(0) as u8;
        CHOSEN.store(index, Ordering::Relaxed);
    }
    by_name(NAMES[usize::from(index)]).unwrap_or_else(detected)
}

/// What is wrong with `FASTCLIP_ISA`, if something is.
#[must_use]
pub fn complaint() -> Option<String> {
    let asked = std::env::var("FASTCLIP_ISA").ok()?;
    if asked.trim().is_empty() || by_name(asked.trim()).is_some() {
        return None;
    }
    let known: Vec<&str> = all().into_iter().map(name).collect();
    Some(format!(
        "FASTCLIP_ISA is {asked:?}; this processor runs {}. Using {:?}.",
        known.join(", "),
        name(detected())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_found_has_its_name() {
        for level in all() {
            assert_eq!(name(by_name(name(level)).unwrap()), name(level));
        }
        assert!(by_name("mmx").is_none());
    }
}
