//! `Mapped`: the control segment as this process sees it.

use std::ptr::NonNull;
use std::sync::Arc;

use super::mem::Mem;
use super::segment::Mapping;
use crate::sync::modelled::AtomicU64;

/// Words of a mapping that other processes write too.
pub(crate) struct Mapped {
    words: NonNull<AtomicU64>,
    len: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: atomics that live as long as the mapping, which is shared with other processes as it is.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    pub(crate) fn new(mapping: Mapping) -> Self {
        Self { words: mapping.as_ptr().cast(), len: mapping.len() / 8, mapping: Arc::new(mapping) }
    }

    /// Keeps the mapping for the rest of the process's life.
    pub(crate) fn leak(&self) {
        std::mem::forget(Arc::clone(&self.mapping));
    }
}

impl Mem for Mapped {
    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.len, "no such word in the control segment");
        // SAFETY: the mapping is page-aligned, lives as long as `self`, and the index was just checked; every process reads and
        // writes these words as atomics only.
        unsafe { self.words.add(index).as_ref() }
    }

    #[inline]
    fn anticipate(&self, index: usize) {
        let word = std::ptr::from_ref(self.word(index));
        // `core::arch` makes a plain prefetch of a hint to write where the processor is any x86-64.
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: the instruction changes no register, no flag and no memory, and never faults.
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) word, options(nostack, preserves_flags, readonly));
        }
        #[cfg(all(target_arch = "aarch64", not(miri)))]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("prfm pstl1keep, [{}]", in(reg) word, options(nostack, preserves_flags, readonly));
        }
        #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
        let _ = word;
    }
}
