//! `Poller`: somebody who waits for an operation while no thread does: whoever wakes it looks.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake};
use std::time::{Duration, Instant};

use super::Answer;
use crate::error::Result;
use crate::pending::Pending;
use crate::sync::lock;

/// See the module.
pub(crate) struct Poller {
    state: AtomicU32,
    waiting: Mutex<Option<Waiting>>,
}

struct Waiting {
    pending: Pending<Answer>,
    end: Box<dyn FnOnce(Result<Answer>) + Send>,
}

impl Poller {
    /// Sees an operation to its end, and calls `end` then; [`wake`](Wake::wake) has to be called once to begin.
    pub(crate) fn new(pending: Pending<Answer>, end: impl FnOnce(Result<Answer>) + Send + 'static) -> Arc<Self> {
        let waiting = Mutex::new(Some(Waiting { pending, end: Box::new(end) }));
        Arc::new(Self { state: AtomicU32::new(IDLE), waiting })
    }

    /// Drops the operation.
    #[cfg(feature = "margo")]
    pub(crate) fn cancel(&self) {
        let gone = lock(&self.waiting).take();
        drop(gone);
    }

    /// Whether this is over.
    fn poll(self: &Arc<Self>) -> bool {
        let waker = Arc::clone(self).into();
        let mut waiting = lock(&self.waiting);
        let Some(Waiting { pending, .. }) = waiting.as_mut() else { return true };
        let Poll::Ready(result) = Pin::new(pending).poll(&mut Context::from_waker(&waker)) else { return false };
        let Some(Waiting { end, pending }) = waiting.take() else { return true };
        drop(waiting);
        drop(pending);
        end(result);
        true
    }
}

impl Wake for Poller {
    fn wake(self: Arc<Self>) {
        if self.state.swap(AGAIN, Ordering::AcqRel) != IDLE {
            return;
        }
        loop {
            self.state.store(POLLING, Ordering::Release);
            if self.poll() {
                return;
            }
            if self.state.compare_exchange(POLLING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return;
            }
        }
    }
}

/// Calls `then` after so long; never, where no thread can be made that counts time.
pub(crate) fn after(limit: Duration, then: impl FnOnce() + Send + 'static) {
    let begun = Instant::now();
    let (completer, pending) = Pending::channel();
    let waits = Poller::new(pending.deadline(limit), move |_| {
        // Nobody completes it: its end is the time.
        drop(completer);
        if begun.elapsed() >= limit {
            then();
        }
    });
    waits.wake();
}

/// Nobody polls; somebody does; and somebody was told to look once more.
const IDLE: u32 = 0;
const POLLING: u32 = 1;
const AGAIN: u32 = 2;
