//! Waiting for a shared counter to move, without asking again and again.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Release;
use std::time::{Duration, Instant};

use rustix::thread::futex;

use crate::sync::modelled::AtomicU64;

/// Moves the counter on and wakes everybody who waits for that, in all processes.
///
/// # Cost
/// One system call.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Release);
    // Fails for addresses that are no memory only.
    let _ = futex::wake(half(counter), futex::Flags::empty(), i32::MAX as u32);
}

/// Sleeps until the counter is no longer `seen`, the deadline passes, or for no reason.
pub(crate) fn wait(counter: &AtomicU64, seen: u64, deadline: Option<Instant>) {
    let left = deadline.map_or(LONGEST, |deadline| deadline.saturating_duration_since(Instant::now()).min(LONGEST));
    if left.is_zero() {
        return;
    }
    let Ok(timeout) = left.try_into() else { return };
    // Interrupted, timed out, or moved before it slept: the caller looks again in any case.
    let _ = futex::wait(half(counter), futex::Flags::empty(), seen as u32, Some(&timeout));
}

/// The low half, which is what the kernel compares: futexes have 32 bits.
fn half(counter: &AtomicU64) -> &AtomicU32 {
    const { assert!(cfg!(target_endian = "little"), "the low half of a counter comes first") };
    // SAFETY: a word of 8 bytes contains one of 4, aligned; the reference is used for its address alone.
    unsafe { &*std::ptr::from_ref(counter).cast::<AtomicU32>() }
}

/// A sleeper looks again now and then, so that a wake-up that the kernel never got to send costs this much at most.
const LONGEST: Duration = Duration::from_secs(5);
