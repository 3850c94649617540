//! Locks, and the one place that chooses between `std`, loom and shuttle.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic of another holder: every critical section of this crate leaves its data consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What loom and shuttle model, so that the code under test is the code that runs.
pub(crate) mod modelled {
    #[cfg(all(loom, feature = "shm"))]
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, fence};
    #[cfg(loom)]
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    #[cfg(all(shuttle, feature = "shm"))]
    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, fence};
    #[cfg(shuttle)]
    pub(crate) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
    #[cfg(all(not(any(loom, shuttle)), feature = "shm"))]
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, fence};
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};

    /// As [`lock`](super::lock).
    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
