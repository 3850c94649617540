//! `Gate`: what nobody passes any more when the process exits. UCX's own end comes then, beneath threads that go on: stores in
//! statics are never closed.
//!
//! ```text
//!   exit ── handlers, the last made first ── end: the gates are shut, and those behind them come out ── ends of the libraries ── gone
//!   other threads ─────────────────────────────────────── what they begin from here on fails ──────────────────────────────────>
//! ```

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, Once, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::mutant::mutant;
use crate::sync::lock;

/// Of one process: whether it exits, and who calls UCX.
#[derive(Debug)]
pub(super) struct Exit {
    has_begun: AtomicBool,
    /// Shared by calls that are of no worker, some of which are within others: nobody ever queues here to have it alone.
    beside: RwLock<()>,
    gates: Mutex<Gates>,
}

/// They are never freed: the exit looks at all of them.
#[derive(Debug)]
struct Gates {
    all: Vec<&'static Gate>,
    unused: Vec<&'static Gate>,
}

/// A worker's: it is held during each call.
#[derive(Debug)]
pub(super) struct Gate {
    exit: &'static Exit,
    held: Mutex<()>,
}

/// The process's.
pub(super) static EXIT: Exit = Exit::new();

impl Exit {
    const fn new() -> Self {
        let gates = Gates { all: Vec::new(), unused: Vec::new() };
        Self { has_begun: AtomicBool::new(false), beside: RwLock::new(()), gates: Mutex::new(gates) }
    }

    /// Sees to it that the process's exit is noticed: once before the first context is made, and once more behind it, since what handlers
    /// the libraries have that UCX loads with it runs earlier than ours of before.
    pub(super) fn watch(&self, once: &Once) {
        once.call_once(|| {
            // SAFETY: a function that stays.
            if unsafe { libc::atexit(exits) } != 0 {
                // The process exits already, or nobody could tell when it does.
                self.has_begun.store(true, Relaxed);
            }
        });
    }

    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Relaxed)
    }

    /// For a call that is of no worker, while it lasts.
    ///
    /// # Errors
    /// `Unavailable` when the process exits.
    pub(super) fn enter(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let held = self.beside.read().unwrap_or_else(PoisonError::into_inner);
        match self.has_begun() && !mutant!("exit_unseen") {
            true => Err(exiting()),
            false => Ok(held),
        }
    }

    pub(super) fn gate(&'static self) -> &'static Gate {
        let mut gates = lock(&self.gates);
        gates.unused.pop().unwrap_or_else(|| {
            let gate = Box::leak(Box::new(Gate { exit: self, held: Mutex::new(()) }));
            gates.all.push(gate);
            gate
        })
    }

    /// Shuts all gates, and waits until nobody is behind them, for so long at most.
    fn end(&self, limit: Duration) {
        // SYNC POINT: the locks. Who takes one later sees this, and who had it before gives it back.
        self.has_begun.store(true, Relaxed);
        let until = Instant::now() + limit;
        let mut gates = None;
        // Held for moments.
        wait(until, || {
            gates = self.gates.try_lock().ok().map(|gates| gates.all.clone());
            gates.is_some()
        });
        let (mut waiting, mut is_beside) = (gates.unwrap_or_default(), true);
        wait(until, || {
            is_beside = is_beside && !is_free(self.beside.try_write());
            waiting.retain(|gate| !is_free(gate.held.try_lock()));
            !is_beside && waiting.is_empty() || mutant!("exit_unwaited")
        });
    }
}

impl Gate {
    /// For a call, while it lasts; none when the process exits.
    pub(super) fn enter(&self) -> Option<MutexGuard<'_, ()>> {
        let held = lock(&self.held);
        (!self.exit.has_begun() || mutant!("exit_unseen")).then_some(held)
    }

    /// For another worker.
    pub(super) fn give_back(&'static self) {
        lock(&self.exit.gates).unused.push(self);
    }
}

pub(super) fn exiting() -> Error {
    Error::new(ErrorKind::Unavailable, "request", "the process exits")
}

fn is_free<T>(tried: std::sync::TryLockResult<T>) -> bool {
    !matches!(tried, Err(TryLockError::WouldBlock))
}

fn wait(until: Instant, mut is_so: impl FnMut() -> bool) {
    while !is_so() && Instant::now() < until {
        std::thread::sleep(Duration::from_micros(50));
    }
}

extern "C" fn exits() {
    // A forked child has none of the threads that could hold anything, and nothing of UCX is its own.
    if super::context::is_used_here() {
        EXIT.end(LIMIT);
    }
}

/// How long an exit waits for a call that does not return, as one that connects may, before UCX 1.14.
const LIMIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// An exit that waits for whoever is let in by `enter`; what `enter` gives is dropped by the second of these.
    fn begun<T>(enter: impl FnOnce(&'static Exit) -> Option<T>) -> (&'static Exit, T, mpsc::Receiver<()>) {
        let exit: &'static Exit = Box::leak(Box::new(Exit::new()));
        let held = enter(exit).expect("nobody exits");
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || {
            exit.end(Duration::from_secs(20));
            let _ = sender.send(());
        });
        (exit, held, ended)
    }

    #[track_caller]
    fn assert_waits<T>((exit, held, ended): (&'static Exit, T, mpsc::Receiver<()>), is_let_in: impl Fn() -> bool) {
        while !exit.has_begun() {
            std::thread::yield_now();
        }
        assert!(ended.recv_timeout(Duration::from_millis(100)).is_err(), "somebody is still in a call");
        drop(held);
        ended.recv_timeout(Duration::from_secs(10)).expect("nobody is in a call");
        assert!(!is_let_in());
    }

    #[test]
    fn an_exit_waits_for_calls_and_lets_nobody_in() {
        let begun_by_gate = begun(|exit| exit.gate().enter());
        let exit = begun_by_gate.0;
        let first = lock(&exit.gates).all[0];
        let second = exit.gate();
        assert_waits(begun_by_gate, || first.enter().is_some() || second.enter().is_some() || exit.enter().is_ok());

        let begun_beside = begun(|exit| exit.enter().ok());
        let exit = begun_beside.0;
        assert_waits(begun_beside, || exit.enter().is_ok() || exit.gate().enter().is_some());
    }

    #[test]
    fn an_exit_does_not_wait_for_ever() {
        let exit: &'static Exit = Box::leak(Box::new(Exit::new()));
        let _held = (exit.gate().enter(), exit.enter());
        let begun = Instant::now();
        exit.end(Duration::from_millis(20));
        assert!(exit.has_begun() && begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn gates_are_used_again() {
        let exit: &'static Exit = Box::leak(Box::new(Exit::new()));
        exit.gate().give_back();
        let gate = exit.gate();
        assert!(gate.enter().is_some());
        assert_eq!(lock(&exit.gates).all.len(), 1);
        let _ = exit.gate();
        assert_eq!(lock(&exit.gates).all.len(), 2);
    }
}
