//! `Case`: one checked property; and how it is run so that neither a panic nor a hang goes further.

use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::mpsc;
use std::thread;

use super::footprint;
use super::subject::Subject;
use crate::connector::Capabilities;
use crate::error::{Error, ErrorKind, Result};

/// One property of the contract, as a program that checks it.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// The part of the contract.
    pub family: &'static str,
    /// Unique within the family.
    pub name: &'static str,
    /// The sentence that is checked.
    pub checks: &'static str,
    /// What the connector must be able to do for the case to mean anything.
    pub needs: Capabilities,
    /// What the connector must not be able to do for the case to mean anything.
    pub lacks: Capabilities,
    /// Takes long or much memory: runs on request only.
    pub slow: bool,
    check: fn(&Subject) -> Check,
}

impl Case {
    pub(super) const fn new(
        family: &'static str,
        name: &'static str,
        checks: &'static str,
        check: fn(&Subject) -> Check,
    ) -> Self {
        Self { family, name, checks, needs: Capabilities::NONE, lacks: Capabilities::NONE, slow: false, check }
    }

    pub(super) const fn needs(mut self, capabilities: Capabilities) -> Self {
        self.needs = capabilities;
        self
    }

    pub(super) const fn lacks(mut self, capabilities: Capabilities) -> Self {
        self.lacks = capabilities;
        self
    }

    pub(super) const fn slow(mut self) -> Self {
        self.slow = true;
        self
    }

    /// Why the case cannot run on `subject` here, if it cannot. Slowness is no such reason.
    pub fn excluded(&self, subject: &Subject) -> Option<String> {
        if let Some(reason) = subject.excluded() {
            return Some(reason);
        }
        let missing: Vec<_> =
            self.needs.names().filter(|name| subject.capabilities().names().all(|n| n != *name)).collect();
        if !missing.is_empty() {
            return Some(format!("needs {}", missing.join(", ")));
        }
        if self.lacks != Capabilities::NONE && subject.capabilities().contains(self.lacks) {
            return Some(format!("is about connectors without {}", self.lacks.names().collect::<Vec<_>>().join(", ")));
        }
        match footprint::available() {
            Some(bytes) if self.slow && bytes < SLOW_MEMORY => {
                Some(format!("needs {} GiB of free memory, there are {}", SLOW_MEMORY >> 30, bytes >> 30))
            }
            _ => None,
        }
    }

    /// Runs the case on its own thread; a panic or a missed deadline is a failure.
    ///
    /// A case that hangs leaves its thread behind.
    pub fn run(&self, subject: &Subject) -> Verdict {
        if let Some(reason) = self.excluded(subject) {
            return Verdict::Ignored(reason);
        }
        let (check, limit) = (self.check, subject.limit(self.slow));
        let (report, outcome) = mpsc::channel();
        let own = subject.lent();
        let spawned = thread::Builder::new().name(self.name.to_owned()).spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| check(&own)));
            // What the subject's functions own is given back before anybody hears of the end.
            drop(own);
            let _ = report
                .send(outcome.unwrap_or_else(|payload| Err(Fault::new(format!("panicked: {}", text(&*payload))))));
        });
        if let Err(error) = spawned {
            return Verdict::Failed(format!("no thread for the case: {error}"));
        }
        match outcome.recv_timeout(limit) {
            Ok(Ok(())) => Verdict::Passed,
            Ok(Err(fault)) => Verdict::Failed(fault.to_string()),
            Err(_) => Verdict::Failed(format!("did not end within {limit:?}")),
        }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.family, self.name)
    }
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The property holds.
    Passed,
    /// It does not; the text says what was seen.
    Failed(String),
    /// The case did not run; the text says why.
    Ignored(String),
}

/// What a case saw that the contract forbids.
pub struct Fault {
    text: String,
    at: &'static Location<'static>,
}

/// The end of a case.
pub(super) type Check<T = ()> = Result<T, Fault>;

impl Fault {
    #[track_caller]
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), at: Location::caller() }
    }
}

impl From<Error> for Fault {
    #[track_caller]
    fn from(error: Error) -> Self {
        Self::new(format!("unexpected error: {error}"))
    }
}

impl From<std::io::Error> for Fault {
    #[track_caller]
    fn from(error: std::io::Error) -> Self {
        Self::new(format!("unexpected I/O error: {error}"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.text, self.at.file(), self.at.line())
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Ends the case with a fault unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err($crate::conformance::Fault::new(format!($($text)+)));
        }
    };
}
pub(super) use ensure;

/// Passes when `result` failed with one of `kinds`.
#[track_caller]
pub(super) fn refused<T>(what: &str, result: Result<T>, kinds: &[ErrorKind]) -> Check {
    match result {
        Err(error) if kinds.contains(&error.kind()) => Ok(()),
        Err(error) => Err(Fault::new(format!("{what}: expected {kinds:?}, got {:?}: {error}", error.kind()))),
        Ok(_) => Err(Fault::new(format!("{what}: succeeded, expected {kinds:?}"))),
    }
}

/// Runs `body(0)` to `body(n - 1)` on a thread each, and gives the first fault.
#[track_caller]
pub(super) fn threads(n: usize, body: impl Fn(usize) -> Check + Sync) -> Check {
    let at = Location::caller();
    thread::scope(|scope| {
        let body = &body;
        let running: Vec<_> = (0..n).map(|i| scope.spawn(move || body(i))).collect();
        let ended: Vec<_> = running.into_iter().map(|thread| thread.join()).collect();
        ended.into_iter().try_for_each(|end| {
            end.unwrap_or_else(|payload| Err(Fault { text: format!("a thread panicked: {}", text(&*payload)), at }))
        })
    })
}

fn text(payload: &(dyn std::any::Any + Send)) -> &str {
    match payload.downcast_ref::<String>() {
        Some(text) => text,
        None => payload.downcast_ref::<&str>().copied().unwrap_or("no message"),
    }
}

/// What the slow cases may need: an object of over 4 GiB, its copy, and air.
const SLOW_MEMORY: u64 = 10 << 30;
