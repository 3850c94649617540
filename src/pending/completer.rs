//! Completion by another thread: one slot under a mutex, one waiter, two ways to wake it.

use std::fmt;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Arc, Condvar, Mutex, lock};

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

impl<T: Send> super::Source<T> for Receiver<T> {
    fn wait(&mut self, deadline: Option<Instant>) -> Result<T> {
        let mut slot = lock(&self.shared.slot);
        loop {
            if let Some(result) = slot.result.take() {
                return result;
            }
            slot = match deadline {
                None => self.shared.filled.wait(slot).unwrap_or_else(|poison| poison.into_inner()),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(super::timed_out());
                    }
                    self.shared.filled.wait_timeout(slot, left).unwrap_or_else(|poison| poison.into_inner()).0
                }
            };
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let mut slot = lock(&self.shared.slot);
        if let Some(result) = slot.result.take() {
            return Poll::Ready(result);
        }
        match &mut slot.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut slot = lock(&self.shared.slot);
        slot.detached = true;
        let (result, waker) = (slot.result.take(), slot.waker.take());
        drop(slot);
        // Outside the lock: both may run foreign code.
        drop((result, waker));
    }
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
        let waker = slot.waker.take();
        let unwanted = match slot.detached {
            true => Some(result),
            false => {
                slot.result = Some(result);
                None
            }
        };
        drop(slot);
        self.filled.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
        // Outside the lock: it may run foreign code.
        drop(unwanted);
    }
}
