//! Waiting for a shared counter to move, without asking again and again.

use std::time::Instant;

use crate::mutant::mutant;
use crate::sync::modelled::AtomicU64;

/// Moves the counter on and wakes everybody who waits for that, in all processes.
///
/// # Cost
/// One system call.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, mutant!(Release, "bump_release"));
    kernel::wake(counter);
}

/// Sleeps until the counter is no longer `seen`, the deadline passes, or for no reason.
pub(crate) fn wait(counter: &AtomicU64, seen: u64, deadline: Option<Instant>) {
    kernel::wait(counter, seen, deadline);
}

#[cfg(not(loom))]
mod kernel {
    use std::sync::atomic::AtomicU32;
    use std::time::{Duration, Instant};

    use rustix::thread::futex;

    use crate::sync::modelled::AtomicU64;

    pub(super) fn wake(counter: &AtomicU64) {
        // Fails for addresses that are no memory only.
        let _ = futex::wake(half(counter), futex::Flags::empty(), i32::MAX as u32);
    }

    pub(super) fn wait(counter: &AtomicU64, seen: u64, deadline: Option<Instant>) {
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
}

/// What futex(2) promises: comparing and falling asleep are one step, before or after any waking. Nobody looks again by
/// himself, so that a wake-up that is lost is a deadlock.
#[cfg(loom)]
mod kernel {
    use std::sync::atomic::Ordering::Relaxed;
    use std::time::Instant;

    use loom::sync::{Condvar, Mutex};

    use crate::sync::modelled::{AtomicU64, lock};

    loom::lazy_static! {
        static ref QUEUE: Mutex<()> = Mutex::new(());
        static ref SLEEPERS: Condvar = Condvar::new();
    }

    pub(super) fn wake(_: &AtomicU64) {
        drop(lock(&QUEUE));
        SLEEPERS.notify_all();
    }

    pub(super) fn wait(counter: &AtomicU64, seen: u64, _: Option<Instant>) {
        let queue = lock(&QUEUE);
        if counter.load(Relaxed) == seen {
            drop(SLEEPERS.wait(queue));
        }
    }
}
