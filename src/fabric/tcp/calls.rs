//! `Calls`: the open calls of a stream, who waits for them, and who reads.
//!
//! One of those who wait reads for all, so that a thread that waits is not woken by another one:
//!
//! ```text
//!   nobody reads ── a waiter comes ──> it leads: reads, ends calls, wakes their waiters
//!        ^                                  │ its own call ended, or its time is over
//!        │                                  v
//!        └──── no other waiter ──── a waiting thread is promoted, else the reactor looks after tasks
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::task::Waker;
use std::thread::Thread;
use std::time::Instant;

use smallvec::{SmallVec, smallvec};

use super::reader::Reader;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Lander};
use crate::sync::lock;

/// See the module.
pub(super) struct Calls(Mutex<State>);

pub(super) struct State {
    open: HashMap<u64, Entry>,
    /// How many of them have not ended.
    running: usize,
    /// Lies here while nobody reads.
    pub(super) reader: Option<Box<Reader>>,
    /// Threads that wait for others to read, by their calls.
    followers: VecDeque<u64>,
    /// The follower that was told to read, and has not come yet.
    promoted: Option<u64>,
    /// Why the stream ended.
    pub(super) failed: Option<Error>,
    /// When the first of the running calls began.
    since: Instant,
    /// What the reactor waits for.
    pub(super) armed: rustix::event::epoll::EventFlags,
}

struct Entry {
    /// Taken when the answer arrives.
    land: Option<Lander>,
    end: Option<Result<Answer>>,
    waiter: Waiter,
    abandoned: bool,
}

enum Waiter {
    None,
    Thread(Thread),
    Task(Waker),
}

/// Somebody to be woken, outside of all locks: a waker is foreign code.
#[must_use]
#[derive(Default)]
pub(super) struct Wake(SmallVec<[Waiter; 1]>);

impl Wake {
    pub(super) fn now(self) {
        for waiter in self.0 {
            match waiter {
                Waiter::None => {}
                Waiter::Thread(thread) => thread.unpark(),
                Waiter::Task(waker) => crate::pending::wake(waker),
            }
        }
    }
}

impl Calls {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            open: HashMap::new(),
            running: 0,
            reader: Some(Box::new(Reader::new())),
            followers: VecDeque::new(),
            promoted: None,
            failed: None,
            since: Instant::now(),
            armed: rustix::event::epoll::EventFlags::empty(),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// What chooses the memory for an answer that begins; `None` when nobody wants it.
    ///
    /// # Errors
    /// `Corrupt` for the answer to no question.
    pub(super) fn begin(&self, number: u64) -> Result<Option<Lander>> {
        let mut state = self.lock();
        let failed = state.failed.is_some();
        match state.open.get_mut(&number) {
            Some(entry) if entry.end.is_some() => Err(unasked(number)),
            Some(entry) => match entry.land.take() {
                _ if entry.abandoned => Ok(None),
                Some(land) => Ok(Some(land)),
                None => Err(unasked(number)),
            },
            // After the stream was ended from this side, what comes means nothing any more.
            None if failed => Ok(None),
            None => Err(unasked(number)),
        }
    }

    /// Ends a call.
    ///
    /// # Errors
    /// `Corrupt` for the answer to no question.
    pub(super) fn end(&self, number: u64, end: Result<Answer>) -> Result<()> {
        let mut state = self.lock();
        let failed = state.failed.is_some();
        let Some(entry) = state.open.get_mut(&number).filter(|entry| entry.end.is_none()) else {
            drop(state);
            return if failed { Ok(()) } else { Err(unasked(number)) };
        };
        let (wake, unused) = if entry.abandoned {
            let entry = state.open.remove(&number);
            (Waiter::None, (entry, Some(end)))
        } else {
            entry.end = Some(end);
            (std::mem::replace(&mut entry.waiter, Waiter::None), (None, None))
        };
        state.running -= 1;
        drop(state);
        drop(unused);
        Wake(smallvec![wake]).now();
        Ok(())
    }

    /// Ends all calls, for good; whether it did.
    pub(super) fn fail(&self, error: Error) -> bool {
        let mut state = self.lock();
        if state.failed.is_some() {
            return false;
        }
        let mut wake = Wake::default();
        let mut unused = Vec::new();
        state.open.retain(|_, entry| {
            unused.push(entry.land.take());
            if entry.end.is_none() {
                entry.end = Some(Err(error.clone()));
                wake.0.push(std::mem::replace(&mut entry.waiter, Waiter::None));
            }
            !entry.abandoned
        });
        state.running = 0;
        state.failed = Some(error);
        // What is half landed in a reader that nobody has goes with it.
        let reader = state.reader.take();
        drop(state);
        drop((reader, unused));
        wake.now();
        true
    }
}

impl State {
    pub(super) fn insert(&mut self, number: u64, land: Lander) {
        if self.running == 0 {
            self.since = Instant::now();
        }
        self.running += 1;
        self.open.insert(number, Entry { land: Some(land), end: None, waiter: Waiter::None, abandoned: false });
    }

    /// How many calls have not ended.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// When the peer's silence began that counts: its last byte, or the question it owes an answer to.
    pub(super) fn silent_since(&self, heard: Instant) -> Instant {
        heard.max(self.since)
    }

    /// The result of a call that ended, which is then forgotten.
    pub(super) fn take(&mut self, number: u64) -> Option<Result<Answer>> {
        let entry = self.open.get_mut(&number)?;
        let end = entry.end.take()?;
        self.open.remove(&number);
        self.leave(number);
        Some(end)
    }

    /// Whether a call has ended, and its result is not taken.
    pub(super) fn has_ended(&self, number: u64) -> bool {
        self.open.get(&number).is_none_or(|entry| entry.end.is_some())
    }

    /// Notes that this thread waits for a call while another one reads.
    ///
    /// What it returns is dropped outside of the lock: a waker is foreign code.
    #[must_use]
    pub(super) fn follow(&mut self, number: u64) -> impl Sized + use<> {
        // Told to read, it found that somebody else does by now, who has to tell it again.
        if self.promoted == Some(number) {
            self.promoted = None;
        }
        let entry = self.open.get_mut(&number).filter(|entry| !matches!(entry.waiter, Waiter::Thread(_)))?;
        self.followers.push_back(number);
        Some(std::mem::replace(&mut entry.waiter, Waiter::Thread(std::thread::current())))
    }

    /// Notes that a call's thread does not follow any more.
    pub(super) fn leave(&mut self, number: u64) {
        if self.promoted == Some(number) {
            self.promoted = None;
        }
        if let Some(entry) = self.open.get_mut(&number) {
            if matches!(entry.waiter, Waiter::Thread(_)) {
                entry.waiter = Waiter::None;
            }
        }
        self.followers.retain(|follower| *follower != number);
    }

    /// Notes the task that waits for a call; the waker that is not needed any more.
    #[must_use]
    pub(super) fn watch(&mut self, number: u64, waker: Waker) -> Option<Waker> {
        match self.open.get_mut(&number) {
            Some(entry) => match std::mem::replace(&mut entry.waiter, Waiter::Task(waker)) {
                Waiter::Task(former) => Some(former),
                _ => None,
            },
            None => Some(waker),
        }
    }

    /// Gives up a call; what it leaves behind is to be dropped outside of the lock. Whether the owner is to be told.
    pub(super) fn abandon(&mut self, number: u64) -> (impl Sized + use<>, bool) {
        self.leave(number);
        let Some(entry) = self.open.get_mut(&number) else { return ((None, None), false) };
        if entry.end.is_some() {
            return ((self.open.remove(&number), None), false);
        }
        entry.abandoned = true;
        // Its landing, if there is one by now, is the reader's until the last byte came.
        let waiter = std::mem::replace(&mut entry.waiter, Waiter::None);
        ((None, Some((waiter, entry.land.take()))), true)
    }

    /// Chooses who reads next, when nobody does: a thread that waits, if there is one.
    pub(super) fn promote(&mut self) -> Wake {
        if self.reader.is_none() || self.promoted.is_some() {
            return Wake::default();
        }
        while let Some(number) = self.followers.front().copied() {
            match self.open.get(&number).map(|entry| &entry.waiter) {
                Some(Waiter::Thread(thread)) => {
                    self.promoted = Some(number);
                    return Wake(smallvec![Waiter::Thread(thread.clone())]);
                }
                _ => drop(self.followers.pop_front()),
            }
        }
        Wake::default()
    }

    /// Whether a call can only go on by the reactor's help.
    pub(super) fn needs_reactor(&self) -> bool {
        self.reader.is_some()
            && self.followers.is_empty()
            && self.open.values().any(|entry| entry.end.is_none() && matches!(entry.waiter, Waiter::Task(_)))
    }
}

fn unasked(number: u64) -> Error {
    Error::new(ErrorKind::Corrupt, "receive", format!("an answer to question {number}, which is not open"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::Land;

    struct Nowhere;

    impl Land for Nowhere {
        fn land(&mut self, _: &[u8], _: &[u64]) -> Result<Vec<crate::fabric::Landing>> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn who_comes_too_late_to_read_is_told_again() {
        let calls = Calls::new();
        let mut state = calls.lock();
        state.insert(1, Box::new(Nowhere).into());
        let first = state.reader.take();
        drop(state.follow(1));
        state.reader = first;
        assert_eq!(state.promote().0.len(), 1);
        // A new caller is quicker, and steps down before the answer to 1 came.
        let overtaking = state.reader.take();
        drop(state.follow(1));
        state.reader = overtaking;
        assert_eq!(state.promote().0.len(), 1, "nobody reads, and 1 waits");
    }
}
