//! `Bytes`: what an object holds, for models, which report whoever uses it while somebody writes.
//!
//! loom and Miri see every use that is not ordered with a write. shuttle sees none of that, so with it the value is there twice,
//! and who reads while somebody writes has half of each.

#[cfg(loom)]
use loom::cell::UnsafeCell;
#[cfg(not(any(loom, shuttle)))]
use std::cell::UnsafeCell;
#[cfg(shuttle)]
use std::sync::atomic::Ordering::Relaxed;

#[cfg(shuttle)]
use crate::sync::modelled::AtomicU64;

/// Memory without any ordering of its own, as the cells of the arena are.
#[cfg(not(shuttle))]
pub(super) struct Bytes(UnsafeCell<u64>);

// SAFETY: that no two threads use it at once, one of them writing, is what the models are to show: a checker sees each use.
#[cfg(not(shuttle))]
unsafe impl Sync for Bytes {}

#[cfg(not(shuttle))]
impl Bytes {
    pub(super) fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    pub(super) fn read(&self) -> u64 {
        #[cfg(loom)]
        // SAFETY: as above.
        return self.0.with(|bytes| unsafe { bytes.read() });
        #[cfg(not(loom))]
        // SAFETY: as above.
        unsafe {
            self.0.get().read()
        }
    }

    pub(super) fn write(&self, value: u64) {
        #[cfg(loom)]
        // SAFETY: as above.
        return self.0.with_mut(|bytes| unsafe { bytes.write(value) });
        #[cfg(not(loom))]
        // SAFETY: as above.
        unsafe {
            self.0.get().write(value);
        }
    }
}

/// Somebody else may run between the two halves.
#[cfg(shuttle)]
pub(super) struct Bytes([AtomicU64; 2]);

#[cfg(shuttle)]
impl Bytes {
    pub(super) fn new() -> Self {
        Self([AtomicU64::new(0), AtomicU64::new(0)])
    }

    pub(super) fn read(&self) -> u64 {
        let [first, second] = [0, 1].map(|half: usize| self.0[half].load(Relaxed));
        assert_eq!(first, second, "bytes of two objects");
        first
    }

    pub(super) fn write(&self, value: u64) {
        self.0.iter().for_each(|half| half.store(value, Relaxed));
    }
}
