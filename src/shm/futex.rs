//! Waiting for a shared counter to move, without asking again and again.
//!
//! A counter is the low half of a word, since futexes have 32 bits: it is read and written here alone, and always as that half.

use std::time::Instant;

use crate::mutant::mutant;
use crate::sync::modelled::AtomicU64;

/// Moves the counter on and wakes everybody who waits for that, in all processes.
///
/// # Cost
/// One system call.
pub(crate) fn bump(counter: &AtomicU64) {
    kernel::half(counter).fetch_add(1, mutant!(Release, "bump_release"));
    kernel::wake(counter);
}

/// Where the counter is. What happens after this load moves it on, and a [`wait`] for what was seen returns at once.
pub(crate) fn load(counter: &AtomicU64) -> u32 {
    // SYNC POINT: `bump`.
    kernel::half(counter).load(mutant!(Acquire, "counter_acquire"))
}

/// Sleeps until the counter is no longer `seen`, the deadline passes, or for no reason.
pub(crate) fn wait(counter: &AtomicU64, seen: u32, deadline: Option<Instant>) {
    kernel::wait(counter, seen, deadline);
}

#[cfg(not(any(loom, shuttle)))]
mod kernel {
    use std::sync::atomic::AtomicU32;
    use std::time::{Duration, Instant};

    use rustix::thread::futex;

    use crate::sync::modelled::AtomicU64;

    pub(super) fn wake(counter: &AtomicU64) {
        // Fails for addresses that are no memory only.
        let _ = futex::wake(half(counter), futex::Flags::empty(), i32::MAX as u32);
    }

    pub(super) fn wait(counter: &AtomicU64, seen: u32, deadline: Option<Instant>) {
        let left = deadline.map_or(LONGEST, |deadline| deadline.saturating_duration_since(Instant::now()).min(LONGEST));
        if left.is_zero() {
            return;
        }
        let Ok(timeout) = left.try_into() else { return };
        // Interrupted, timed out, or moved before it slept: the caller looks again in any case.
        let _ = futex::wait(half(counter), futex::Flags::empty(), seen, Some(&timeout));
    }

    /// The low half, which is what the kernel compares.
    pub(super) fn half(counter: &AtomicU64) -> &AtomicU32 {
        const { assert!(cfg!(target_endian = "little"), "the low half of a counter comes first") };
        // SAFETY: a word of 8 bytes contains one of 4, aligned; this half of it is all that anybody ever uses.
        unsafe { &*std::ptr::from_ref(counter).cast::<AtomicU32>() }
    }

    /// A sleeper looks again now and then, so that a wake-up that the kernel never got to send costs this much at most.
    const LONGEST: Duration = Duration::from_secs(5);
}

/// What futex(2) promises: comparing and falling asleep are one step, before or after any waking. Nobody looks again by
/// himself, so that a wake-up that is lost is a deadlock.
#[cfg(any(loom, shuttle))]
mod kernel {
    use std::sync::atomic::Ordering;
    use std::time::Instant;

    #[cfg(loom)]
    use loom::lazy_static;
    #[cfg(shuttle)]
    use shuttle::lazy_static;

    use crate::sync::modelled::{AtomicU64, Condvar, Mutex, lock};

    lazy_static! {
        static ref QUEUE: Mutex<()> = Mutex::new(());
        static ref SLEEPERS: Condvar = Condvar::new();
    }

    pub(super) fn wake(_: &AtomicU64) {
        drop(lock(&QUEUE));
        SLEEPERS.notify_all();
    }

    /// Models have no halves of words.
    pub(super) fn half(counter: &AtomicU64) -> Half<'_> {
        Half(counter)
    }

    pub(super) struct Half<'a>(&'a AtomicU64);

    impl Half<'_> {
        pub(super) fn fetch_add(&self, n: u32, order: Ordering) -> u32 {
            self.0.fetch_add(n.into(), order) as u32
        }

        pub(super) fn load(&self, order: Ordering) -> u32 {
            self.0.load(order) as u32
        }
    }

    pub(super) fn wait(counter: &AtomicU64, seen: u32, _: Option<Instant>) {
        let queue = lock(&QUEUE);
        if half(counter).load(Ordering::Relaxed) == seen {
            drop(SLEEPERS.wait(queue));
        }
    }
}
