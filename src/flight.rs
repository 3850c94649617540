//! Single flight: however many ask at once, one operation runs and all get its result.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::pending::{Pending, Shared};
use crate::sync::{lock, modelled};

/// One operation that many may want at the same time.
///
/// Those who ask while it goes on get the same result, or the same error; after the end the flight is idle again.
pub(crate) struct Flight<V: Clone + Send + 'static> {
    current: Mutex<Option<modelled::Arc<Shared<V>>>>,
}

impl<V: Clone + Send + 'static> Flight<V> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { current: Mutex::new(None) })
    }

    /// Joins the operation in flight, or starts one.
    ///
    /// `known` is asked first, under the lock: what an earlier flight landed. `start` gives the operation and what keeps
    /// its result before anybody sees it; the latter is dropped unused when the operation fails.
    pub(crate) fn join<L: FnOnce(&V) + Send + 'static>(
        self: &Arc<Self>,
        known: impl FnOnce() -> Option<V>,
        start: impl FnOnce() -> (Pending<V>, L),
    ) -> Pending<V> {
        let mut current = lock(&self.current);
        if let Some(value) = known() {
            return Pending::ready(Ok(value));
        }
        if let Some(shared) = &*current {
            return Shared::join(shared);
        }
        let (operation, land) = start();
        if operation.is_ready() {
            let result = operation.wait();
            if let Ok(value) = &result {
                land(value);
            }
            return Pending::ready(result);
        }
        let flight = Arc::clone(self);
        let shared = Shared::new(operation, move |result| {
            match result {
                Ok(value) => land(value),
                Err(_) => drop(land),
            }
            // One flight at a time: what is there is the one that ends.
            *lock(&flight.current) = None;
        });
        Shared::join(current.insert(shared))
    }
}

impl<V: Clone + Send + 'static> fmt::Debug for Flight<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flight")
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::{Error, ErrorKind};

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
