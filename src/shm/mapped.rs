//! `Mapped`: the control segment as this process sees it.

use crate::sync::modelled::AtomicU64;

use super::mem::Mem;
use super::segment::Mapping;

/// Words of a mapping that other processes write too.
pub(crate) struct Mapped(Mapping);

impl Mapped {
    pub(crate) fn new(mapping: Mapping) -> Self {
        Self(mapping)
    }
}

impl Mem for Mapped {
    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.0.len() / 8, "word {index} of a control segment of {} bytes", self.0.len());
        // SAFETY: the mapping is page-aligned, lives as long as `self`, and the index was just checked; every process reads and
        // writes these words as atomics only.
        unsafe { &*self.0.as_ptr().cast::<AtomicU64>().as_ptr().add(index) }
    }
}
