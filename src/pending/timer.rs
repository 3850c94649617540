//! Deadlines of awaited operations: one thread a process that wakes tasks, made when the first such deadline is set.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::Instant;

use crate::process::PerProcess;
use crate::sync::lock;

/// A wake-up at a fixed instant; dropping it takes it back.
///
/// One pointer, because every operation has room for one and few need it.
pub(super) struct Alarm(Box<Entry>);

struct Entry {
    /// Where it is set, if that is this process's: a child of fork inherits alarms of its parent's.
    timer: &'static Timer,
    place: (Instant, u64),
    waker: Waker,
}

impl Alarm {
    /// Makes `alarm` wake `waker` at `at`, keeping it as it is when it does so already.
    pub(super) fn set(alarm: &mut Option<Self>, at: Instant, waker: &Waker) {
        let timer = TIMER.get(Timer::new);
        let is_set =
            |Self(set): &Self| std::ptr::eq(set.timer, timer) && set.place.0 == at && set.waker.will_wake(waker);
        if alarm.as_ref().is_some_and(is_set) {
            return;
        }
        *alarm = None;
        // Before the lock: it is foreign code.
        let (entered, kept) = (waker.clone(), waker.clone());
        let mut table = lock(&timer.table);
        table.next += 1;
        let place = (at, table.next);
        table.wakers.insert(place, entered);
        if !table.running {
            table.running = thread::Builder::new().name("proxystore-timer".into()).spawn(|| timer.run()).is_ok();
        }
        let running = table.running;
        let first = table.wakers.first_key_value().is_some_and(|(first, _)| *first == place);
        drop(table);
        if first {
            timer.changed.notify_one();
        }
        if !running {
            // No thread can be made now. A task that polls over and over still meets its deadline.
            waker.wake_by_ref();
        }
        *alarm = Some(Self(Box::new(Entry { timer, place, waker: kept })));
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let timer = self.0.timer;
        if TIMER.current().is_none_or(|current| !std::ptr::eq(current, timer)) {
            return;
        }
        let mut table = lock(&timer.table);
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

static TIMER: PerProcess<Timer> = PerProcess::new();

impl Timer {
    fn new() -> Self {
        let table = Table { wakers: BTreeMap::new(), next: 0, running: false };
        Self { table: Mutex::new(table), changed: Condvar::new() }
    }

    fn run(&self) {
        let mut table = lock(&self.table);
        loop {
            let now = Instant::now();
            let later = table.wakers.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut table.wakers, later);
            if !due.is_empty() {
                drop(table);
                due.into_values().for_each(super::wake);
                table = lock(&self.table);
                continue;
            }
            table = match table.wakers.first_key_value().map(|(entry, _)| entry.0) {
                Some(next) => self.changed.wait_timeout(table, next - now).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(table).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}
