//! `Bytes`: what an object holds, for models; loom and Miri report every use of it that is not ordered with a write.

#[cfg(loom)]
use loom::cell::UnsafeCell;
#[cfg(not(loom))]
use std::cell::UnsafeCell;

/// Memory without any ordering of its own, as the cells of the arena are.
pub(super) struct Bytes(UnsafeCell<u64>);

// SAFETY: that no two threads use it at once, one of them writing, is what the models are to show: a checker sees each use.
unsafe impl Sync for Bytes {}

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
