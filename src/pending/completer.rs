//! Completion by another thread: one slot under a mutex, one waiter, two ways to wake it.

use std::fmt;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::modelled::{Arc, Condvar, Mutex, MutexGuard, lock};

/// The side that ends a [`Pending`](super::Pending).
///
/// Dropped without use, it ends the operation in [`ErrorKind::Cancelled`], so a waiter never waits for nobody.
pub struct Completer<T> {
    shared: Option<Arc<Shared<T>>>,
}

impl<T> Completer<T> {
    /// Ends the operation and wakes its waiter.
    ///
    /// # Cost
    /// A lock and at most one system call.
    pub fn complete(mut self, result: Result<T>) {
        if let Some(shared) = self.shared.take() {
            shared.put(result);
        }
    }

    /// Whether the waiting side was dropped, so that the result interests nobody.
    pub fn is_detached(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| lock(&shared.slot).detached)
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.put(Err(Error::new(ErrorKind::Cancelled, "wait", "the completing side went away")));
        }
    }
}

impl<T> fmt::Debug for Completer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completer")
    }
}

pub(super) fn channel<T>() -> (Completer<T>, Receiver<T>) {
    let slot = Mutex::new(Slot { result: None, waker: None, detached: false });
    let shared = Arc::new(Shared { slot, filled: Condvar::new() });
    (Completer { shared: Some(Arc::clone(&shared)) }, Receiver { shared })
}

/// The side that waits.
pub(super) struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> super::Operation<T> for Receiver<T> {
    fn wait(&mut self, limit: super::Limit) -> Result<T> {
        let mut slot = lock(&self.shared.slot);
        loop {
            if let Some(result) = slot.result.take() {
                return result;
            }
            slot = wait_on(&self.shared.filled, slot, limit.at)?;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let mut slot = lock(&self.shared.slot);
        if let Some(result) = slot.result.take() {
            return Poll::Ready(result);
        }
        if slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        drop(slot);
        // A waker is foreign code: cloning or dropping one may drop a task, and with it the completer of this very slot.
        let waker = cx.waker().clone();
        let mut slot = lock(&self.shared.slot);
        let (result, unused) = match slot.result.take() {
            Some(result) => (Poll::Ready(result), Some(waker)),
            None => (Poll::Pending, slot.waker.replace(waker)),
        };
        drop(slot);
        drop(unused);
        result
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut slot = lock(&self.shared.slot);
        slot.detached = true;
        let waker = slot.waker.take();
        drop(slot);
        // Outside the lock: it may run foreign code. A result that is there goes with the last of both sides.
        drop(waker);
    }
}

/// Waits for a notification, or for the deadline, which is an error.
pub(super) fn wait_on<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Option<Instant>,
) -> Result<MutexGuard<'a, T>> {
    let Some(deadline) = deadline else {
        return Ok(changed.wait(guard).unwrap_or_else(PoisonError::into_inner));
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(super::timed_out());
    }
    Ok(changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0)
}

struct Shared<T> {
    slot: Mutex<Slot<T>>,
    filled: Condvar,
}

struct Slot<T> {
    result: Option<Result<T>>,
    waker: Option<Waker>,
    detached: bool,
}

impl<T> Shared<T> {
    fn put(&self, result: Result<T>) {
        let mut slot = lock(&self.slot);
        slot.result = Some(result);
        let waker = slot.waker.take();
        drop(slot);
        self.filled.notify_all();
        if let Some(waker) = waker {
            super::wake(waker);
        }
    }
}

/// Under loom every order of events, else (and so under Miri) some that happen.
#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use std::task::Wake;

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

    use super::super::{Limit, Operation};
    use super::*;
    use crate::error::ErrorKind;

    #[cfg(not(loom))]
    fn model(f: impl Fn()) {
        (0..20).for_each(|_| f());
    }

    /// Counts what happens to a task that loom's own executor does not run.
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counter() -> (std::sync::Arc<Counter>, Waker) {
        let counter = std::sync::Arc::new(Counter(AtomicUsize::new(0)));
        (std::sync::Arc::clone(&counter), Waker::from(counter))
    }

    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }

    /// The least executor: a wake-up that is lost is a deadlock, which loom reports.
    fn block_on<T: Send>(receiver: &mut Receiver<T>) -> Result<T> {
        let waker = Waker::from(std::sync::Arc::new(Unpark(thread::current())));
        loop {
            match receiver.poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(result) => return result,
                Poll::Pending => thread::park(),
            }
        }
    }

    /// Tells who is dropped, and when.
    struct Value(Arc<AtomicUsize>);

    impl Drop for Value {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn loom_complete_against_wait() {
        model(|| {
            let (completer, mut receiver) = channel();
            let other = thread::spawn(move || completer.complete(Ok(7)));
            assert_eq!(receiver.wait(Limit::NONE).unwrap(), 7);
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_drop_completer_against_wait() {
        model(|| {
            let (completer, mut receiver) = channel::<u8>();
            let other = thread::spawn(move || drop(completer));
            assert_eq!(receiver.wait(Limit::NONE).unwrap_err().kind(), ErrorKind::Cancelled);
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_complete_against_poll() {
        model(|| {
            let (completer, mut receiver) = channel();
            let other = thread::spawn(move || completer.complete(Ok(7)));
            assert_eq!(block_on(&mut receiver).unwrap(), 7);
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_drop_completer_against_poll() {
        model(|| {
            let (completer, mut receiver) = channel::<u8>();
            let other = thread::spawn(move || drop(completer));
            assert_eq!(block_on(&mut receiver).unwrap_err().kind(), ErrorKind::Cancelled);
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_complete_against_change_of_waker() {
        model(|| {
            let (completer, mut receiver) = channel();
            let (first, second) = (counter(), counter());
            assert!(receiver.poll(&mut Context::from_waker(&first.1)).is_pending());
            let other = thread::spawn(move || completer.complete(Ok(7)));
            let seen = receiver.poll(&mut Context::from_waker(&second.1));
            other.join().unwrap();
            match seen {
                Poll::Ready(result) => assert_eq!(result.unwrap(), 7),
                // Registered before the end, so the end woke exactly the waker that counts.
                Poll::Pending => {
                    assert_eq!(second.0.0.load(Ordering::SeqCst), 1);
                    assert_eq!(first.0.0.load(Ordering::SeqCst), 0);
                    assert!(receiver.poll(&mut Context::from_waker(&second.1)).is_ready());
                }
            }
        });
    }

    #[test]
    fn loom_polled_then_waited_for() {
        model(|| {
            let (completer, mut receiver) = channel();
            let (_, waker) = counter();
            let other = thread::spawn(move || completer.complete(Ok(7)));
            match receiver.poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(result) => assert_eq!(result.unwrap(), 7),
                Poll::Pending => assert_eq!(receiver.wait(Limit::NONE).unwrap(), 7),
            }
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_drop_receiver_against_complete() {
        model(|| {
            let drops = Arc::new(AtomicUsize::new(0));
            let (completer, receiver) = channel();
            let value = Value(Arc::clone(&drops));
            let other = thread::spawn(move || completer.complete(Ok(value)));
            drop(receiver);
            other.join().unwrap();
            // Not kept by a slot that nobody reads, not dropped twice.
            assert_eq!(drops.load(Ordering::SeqCst), 1);
        });
    }

    #[test]
    fn loom_detached_is_seen() {
        model(|| {
            let (completer, receiver) = channel::<u8>();
            let other = thread::spawn(move || drop(receiver));
            // Either answer is right while the other thread runs.
            let _ = completer.is_detached();
            other.join().unwrap();
            assert!(completer.is_detached());
        });
    }
}
