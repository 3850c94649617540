//! Defects, one of which a build may have, so that it can be seen that a test finds it: `scripts/mutants` lists them.

/// Whether this build has the defect with that name, or, with an ordering before it, the ordering or the one it degrades to.
///
/// A constant, hence no code, but with `--cfg mutant="NAME"`, and with `--cfg mutant="any"`, where `MUTANT`
/// names the defect when the process starts.
macro_rules! mutant {
    ($name:tt) => {
        cfg!(mutant = $name) || $crate::mutant::is_chosen($name)
    };
    ($ordering:ident, $name:tt) => {
        if mutant!($name) { std::sync::atomic::Ordering::Relaxed } else { std::sync::atomic::Ordering::$ordering }
    };
}
pub(crate) use mutant;

#[cfg(mutant = "any")]
pub(crate) fn is_chosen(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("MUTANT").unwrap_or_default()) == name
}

#[cfg(not(mutant = "any"))]
#[inline(always)]
pub(crate) const fn is_chosen(_: &str) -> bool {
    false
}
