//! Deadlines of awaited operations: one thread that wakes tasks, made when the first such deadline is set.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::Instant;

/// A wake-up at a fixed instant; dropping it takes it back.
///
/// One pointer, because every operation has room for one and few need it.
pub(super) struct Alarm(Box<Entry>);

struct Entry {
    place: (Instant, u64),
    waker: Waker,
}

impl Alarm {
    /// Makes `alarm` wake `waker` at `at`, keeping it as it is when it does so already.
    pub(super) fn set(alarm: &mut Option<Self>, at: Instant, waker: &Waker) {
        if alarm.as_ref().is_some_and(|Self(set)| set.place.0 == at && set.waker.will_wake(waker)) {
            return;
        }
        *alarm = None;
        // Before the lock: it is foreign code.
        let (entered, kept) = (waker.clone(), waker.clone());
        let mut table = TIMER.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.next += 1;
        let place = (at, table.next);
        table.wakers.insert(place, entered);
        if !table.running {
            table.running = thread::Builder::new().name("proxystore-timer".into()).spawn(run).is_ok();
        }
        let running = table.running;
        let first = table.wakers.first_key_value().is_some_and(|(first, _)| *first == place);
        drop(table);
        if first {
            TIMER.changed.notify_one();
        }
        if !running {
            // No thread can be made now. A task that polls over and over still meets its deadline.
            waker.wake_by_ref();
        }
        *alarm = Some(Self(Box::new(Entry { place, waker: kept })));
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let mut table = TIMER.table.lock().unwrap_or_else(PoisonError::into_inner);
        let waker = table.wakers.remove(&self.0.place);
        drop(table);
        // Outside the lock: it may run foreign code.
        drop(waker);
    }
}

struct Timer {
    table: Mutex<Table>,
    changed: Condvar,
}

struct Table {
    wakers: BTreeMap<(Instant, u64), Waker>,
    next: u64,
    running: bool,
}

static TIMER: Timer =
    Timer { table: Mutex::new(Table { wakers: BTreeMap::new(), next: 0, running: false }), changed: Condvar::new() };

fn run() {
    let mut table = TIMER.table.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let now = Instant::now();
        let later = table.wakers.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut table.wakers, later);
        if !due.is_empty() {
            drop(table);
            due.into_values().for_each(super::wake);
            table = TIMER.table.lock().unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        table = match table.wakers.first_key_value().map(|(entry, _)| entry.0) {
            Some(next) => TIMER.changed.wait_timeout(table, next - now).unwrap_or_else(PoisonError::into_inner).0,
            None => TIMER.changed.wait(table).unwrap_or_else(PoisonError::into_inner),
        };
    }
}
