//! `Awake`: whether somebody who sleeps has to be woken, or looks again anyway.

use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release, SeqCst};

use crate::mutant::mutant;
use crate::sync::modelled::{AtomicBool, fence};

/// One who sleeps, several who give it work and wake it only when they must: waking costs a system call.
///
/// Work is handed over elsewhere, by a queue: these are the two halves of who looks at what in which order.
#[derive(Default)]
pub(crate) struct Awake(AtomicBool);

impl Awake {
    /// Whether the caller, who just handed work over, has to wake the sleeper; of several callers one has to.
    ///
    /// # Cost
    /// A fence and a load; the first time after it fell asleep an exchange too.
    #[inline]
    pub(crate) fn must_wake(&self) -> bool {
        // SYNC POINT: `falls_asleep`. Either this sees it asleep, or it sees what was handed over before.
        if !mutant!("wake_fence") {
            fence(SeqCst);
        }
        !self.0.load(Relaxed) && !self.0.swap(true, AcqRel)
    }

    /// Whether the sleeper will look again by itself, so that it must not sleep without end.
    pub(crate) fn is_awake(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// The sleeper found nothing to do for a while: from here on it has to be woken, unless there is work after all.
    pub(crate) fn falls_asleep(&self, has_work: impl FnOnce() -> bool) {
        self.0.store(false, Release);
        // SYNC POINT: `must_wake`.
        if !mutant!("sleep_fence") {
            fence(SeqCst);
        }
        // It looks once more before it sleeps anyway; this spares whoever hands over next an exchange and a wake-up.
        if has_work() {
            self.0.store(true, Release);
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    #[cfg(loom)]
    use loom::{
        model,
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };
    #[cfg(not(loom))]
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;
    use crate::sync::modelled::{Arc, Condvar, Mutex, lock};

    #[cfg(not(loom))]
    fn model(f: impl Fn()) {
        (0..if cfg!(miri) { 2 } else { 20 }).for_each(|_| f());
    }

    /// The descriptor that wakes, and what was handed over; the queue's own ordering is the least it may have.
    #[derive(Default)]
    struct Bell {
        awake: Awake,
        work: AtomicUsize,
        rung: Mutex<bool>,
        ring: Condvar,
    }

    impl Bell {
        fn hand_over(&self) {
            self.work.fetch_add(1, Ordering::Relaxed);
            if self.awake.must_wake() {
                *lock(&self.rung) = true;
                self.ring.notify_all();
            }
        }

        /// The life of the agent, until it did `all`. A sleep that is not woken is a deadlock, which loom reports.
        fn work(&self, all: usize) {
            let mut done = 0;
            while done < all {
                done += self.work.swap(0, Ordering::Relaxed);
                if done == all {
                    return;
                }
                if self.awake.is_awake() {
                    // It waited a millisecond in vain.
                    self.awake.falls_asleep(|| self.work.load(Ordering::Relaxed) != 0);
                } else {
                    let mut rung = lock(&self.rung);
                    while !*rung {
                        rung = self.ring.wait(rung).unwrap();
                    }
                    *rung = false;
                }
            }
        }
    }

    #[test]
    fn loom_agent_is_woken() {
        model(|| {
            let bell = Arc::new(Bell::default());
            let other = Arc::clone(&bell);
            let thread = thread::spawn(move || {
                other.hand_over();
                other.hand_over();
            });
            bell.work(2);
            thread.join().unwrap();
        });
    }

    #[test]
    fn loom_agent_is_woken_by_one_of_two() {
        model(|| {
            let bell = Arc::new(Bell::default());
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let bell = Arc::clone(&bell);
                    thread::spawn(move || bell.hand_over())
                })
                .collect();
            bell.work(2);
            others.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}
