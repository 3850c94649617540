//! Single flight: however many ask at once, one operation runs and all get its result.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::pending::{Completer, Pending};
use crate::sync::lock;

/// One operation that many may want at the same time.
///
/// The first to ask is the leader and drives the operation; those who ask before it ends wait for the same result, or the
/// same error. After the end the flight is idle again.
pub(crate) struct Flight<V> {
    waiters: Mutex<Option<Vec<Completer<V>>>>,
}

impl<V: Clone + Send + 'static> Flight<V> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { waiters: Mutex::new(None) })
    }

    /// Joins the operation in flight, or starts one.
    ///
    /// `known` is asked first, under the lock: what an earlier flight landed. `start` gives the operation and what keeps
    /// its result before anybody sees it; the latter is dropped unused when the operation fails or is lost.
    pub(crate) fn join<L: FnOnce(&V) + Send + 'static>(
        self: &Arc<Self>,
        known: impl FnOnce() -> Option<V>,
        start: impl FnOnce() -> (Pending<V>, L),
    ) -> Pending<V> {
        let mut state = lock(&self.waiters);
        if let Some(value) = known() {
            return Pending::ready(Ok(value));
        }
        if let Some(waiters) = &mut *state {
            let (completer, pending) = Pending::channel();
            waiters.push(completer);
            return pending;
        }
        *state = Some(Vec::new());
        drop(state);
        let mut leader = Leader { flight: Some(Arc::clone(self)) };
        let (operation, land) = start();
        operation.then(move |result| {
            match &result {
                Ok(value) => land(value),
                Err(_) => drop(land),
            }
            leader.end(&result);
            result
        })
    }

    fn end(&self, result: &Result<V>) {
        let waiters = lock(&self.waiters).take();
        for waiter in waiters.into_iter().flatten() {
            waiter.complete(result.clone());
        }
    }
}

impl<V> fmt::Debug for Flight<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flight")
    }
}

/// Ends the flight, also when its operation is lost by a panic.
struct Leader<V: Clone + Send + 'static> {
    /// `None` once ended: a new flight may have begun since, which is not ours to end.
    flight: Option<Arc<Flight<V>>>,
}

impl<V: Clone + Send + 'static> Leader<V> {
    fn end(&mut self, result: &Result<V>) {
        if let Some(flight) = self.flight.take() {
            flight.end(result);
        }
    }
}

impl<V: Clone + Send + 'static> Drop for Leader<V> {
    fn drop(&mut self) {
        self.end(&Err(Error::new(ErrorKind::Cancelled, "resolve", "the operation was lost, probably by a panic")));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn nowhere(_: &u32) {}

    #[test]
    fn one_operation_for_all_who_ask() {
        let flight = Flight::<u32>::new();
        let landed = Arc::new(OnceLock::new());
        let starts = AtomicUsize::new(0);
        let (completer, operation) = Pending::channel();
        let mut operation = Some(operation);
        let mut join = || {
            let keep = Arc::clone(&landed);
            flight.join(
                || landed.get().copied(),
                || {
                    starts.fetch_add(1, Ordering::Relaxed);
                    (operation.take().unwrap(), move |value: &u32| keep.set(*value).unwrap())
                },
            )
        };
        let (first, second) = (join(), join());
        completer.complete(Ok(7));
        assert_eq!(first.wait().unwrap(), 7);
        assert_eq!(second.wait().unwrap(), 7);
        assert_eq!(join().wait().unwrap(), 7);
        assert_eq!(starts.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn all_share_the_failure_and_the_next_may_try_again() {
        let flight = Flight::<u32>::new();
        let (completer, operation) = Pending::channel();
        let first = flight.join(|| None, || (operation, nowhere));
        let second = flight.join(|| None, || -> (_, fn(&u32)) { unreachable!() });
        completer.complete(Err(Error::new(ErrorKind::NoSpace, "get", "")));
        assert_eq!(first.wait().unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(second.wait().unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(flight.join(|| None, || (Pending::ready(Ok(1)), nowhere)).wait().unwrap(), 1);
    }

    #[test]
    fn a_leader_that_is_dropped_still_serves_the_others() {
        for blocking in [false, true] {
            let flight = Flight::<u32>::new();
            let (completer, operation) = Pending::channel();
            let operation = match blocking {
                false => operation,
                true => Pending::blocking(|| operation.wait()),
            };
            let first = flight.join(|| None, || (operation, nowhere));
            let second = flight.join(|| None, || -> (_, fn(&u32)) { unreachable!() });
            drop(first);
            completer.complete(Ok(3));
            assert_eq!(second.wait().unwrap(), 3);
        }
    }

    #[test]
    fn a_panicking_leader_fails_the_others() {
        let flight = Flight::<u32>::new();
        let first = flight.join(|| None, || (Pending::blocking(|| panic!("on purpose")), nowhere)).start();
        let second = flight.join(|| None, || (Pending::ready(Ok(2)), nowhere));
        assert_eq!(first.wait().unwrap_err().kind(), ErrorKind::Cancelled);
        // Either it joined the doomed flight, or came after its end and ran its own.
        match second.wait() {
            Ok(value) => assert_eq!(value, 2),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
        }
    }
}
