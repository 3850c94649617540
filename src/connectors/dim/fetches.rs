//! `Fetches`: gets of remote objects that are under way, in memory that is used again.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;

use super::landings::{Fetched, mismatch};
use super::objects::Objects;
use super::remote::{Found, Limit, Remote, whole};
use crate::environment;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::Answer;
use crate::key::Format;
use crate::pending::{Operations, Pending, Source};
use crate::region::Region;
use crate::service::address::Address;
use crate::sync::lock;

/// Fetches by their numbers, which are used again.
#[derive(Default)]
pub(super) struct Fetches(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    /// Nothing where the number is free, or somebody has the fetch in hands.
    all: Vec<Option<Fetching>>,
    free: Vec<usize>,
}

/// An object that is asked for.
pub(super) struct Fetching {
    at: Address,
    len: u64,
    asked: Instant,
    state: State,
}

enum State {
    Asked(Pending<Answer>),
    /// The connection broke: it is asked for once more, over another one.
    Again(Box<Pending<Fetched>>),
}

impl Fetches {
    /// A number for a fetch.
    ///
    /// # Errors
    /// The fetch, when there are too many.
    pub(super) fn insert(&self, fetching: Fetching) -> std::result::Result<u64, Box<Fetching>> {
        let mut slots = lock(&self.0);
        if let Some(number) = slots.free.pop() {
            slots.all[number] = Some(fetching);
            return Ok(number as u64);
        }
        if slots.all.len() >= MOST {
            drop(slots);
            return Err(Box::new(fetching));
        }
        slots.all.push(Some(fetching));
        Ok(slots.all.len() as u64 - 1)
    }

    /// The fetch, which its number is kept for.
    fn take(&self, number: u64) -> Option<Fetching> {
        lock(&self.0).all.get_mut(number as usize)?.take()
    }

    fn put_back(&self, number: u64, fetching: Fetching) {
        if let Some(place) = lock(&self.0).all.get_mut(number as usize) {
            *place = Some(fetching);
        }
    }

    fn forget(&self, number: u64) {
        let mut slots = lock(&self.0);
        let fetching = slots.all.get_mut(number as usize).and_then(Option::take);
        slots.free.push(number as usize);
        drop(slots);
        // It tells the owner that nobody wants it.
        drop(fetching);
    }
}

impl Fetching {
    /// An object of that node for which `answer` was asked at that time.
    pub(super) fn new(at: Address, len: u64, asked: Instant, answer: Pending<Answer>) -> Self {
        Self { at, len, asked, state: State::Asked(answer) }
    }

    fn wait(self, remote: &Remote, deadline: Option<Instant>) -> Result<Fetched> {
        let Self { at, len, asked, state } = self;
        let fetched = match state {
            State::Asked(answer) => match answer.wait_until(deadline) {
                Ok(answer) => finish(remote, &at, answer, asked),
                Err(error) => again(remote, at, len, asked, error, deadline),
            },
            State::Again(fetched) => fetched.wait_until(deadline),
        };
        fetched.map_err(|error| error.with_connector(remote.scheme))
    }

    fn poll(&mut self, remote: &Arc<Remote>, cx: &mut Context<'_>) -> Poll<Result<Fetched>> {
        let Self { at, len, asked, state } = self;
        let named = |error: Error| error.with_connector(remote.scheme);
        if let State::Asked(answer) = state {
            match Pin::new(answer).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(answer)) => return Poll::Ready(finish(remote, at, answer, *asked).map_err(named)),
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::PeerDown => {
                    let (remote, at, len, asked) = (Arc::clone(remote), *at, *len, *asked);
                    let begin = move |deadline| again(&remote, at, len, asked, error, deadline);
                    *state = State::Again(Box::new(Pending::blocking_until(begin)));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(named(error))),
            }
        }
        match state {
            State::Again(fetched) => Pin::new(fetched).poll(cx).map_err(named),
            State::Asked(_) => Poll::Pending,
        }
    }
}

fn finish(remote: &Remote, at: &Address, answer: Answer, asked: Instant) -> Result<Fetched> {
    let fetched = whole(answer, asked)?;
    remote.note_fetched(at, &fetched);
    Ok(fetched)
}

/// Fetches an object once more for which an answer failed so, if that may help and there is time.
fn again(
    remote: &Remote,
    at: Address,
    len: u64,
    asked: Instant,
    error: Error,
    deadline: Option<Instant>,
) -> Result<Fetched> {
    let deadline = deadline.unwrap_or_else(|| asked + environment::timeout());
    // Its silence may have taken all the time.
    if error.kind() != ErrorKind::PeerDown || deadline <= Instant::now() {
        return Err(error);
    }
    let begin = move |remote: &Remote, peer: &_| remote.begin_on(peer, &at, len);
    let fetched = remote.with_new_peer("get", at, Limit::new(Some(deadline)), begin)?;
    remote.note_fetched(&at, &fetched);
    Ok(fetched)
}

impl Remote {
    fn wait_for(&self, number: u64, deadline: Option<Instant>) -> Result<Fetched> {
        self.fetches.take(number).ok_or_else(ended)?.wait(self, deadline)
    }

    fn poll_for(self: &Arc<Self>, number: u64, cx: &mut Context<'_>) -> Poll<Result<Fetched>> {
        let Some(mut fetching) = self.fetches.take(number) else { return Poll::Ready(Err(ended())) };
        let polled = fetching.poll(self, cx);
        if polled.is_pending() {
            self.fetches.put_back(number, fetching);
        }
        polled
    }
}

impl Operations<Fetched> for Remote {
    fn wait(&self, number: u64, deadline: Option<Instant>) -> Result<Fetched> {
        self.wait_for(number, deadline)
    }

    fn poll(self: Arc<Self>, number: u64, cx: &mut Context<'_>) -> Poll<Result<Fetched>> {
        self.poll_for(number, cx)
    }

    fn forget(&self, number: u64) {
        self.fetches.forget(number);
    }
}

/// Fetches whose objects nobody but the caller gets.
impl Operations<Option<Region>> for Objects {
    fn wait(&self, number: u64, deadline: Option<Instant>) -> Result<Option<Region>> {
        self.remote.wait_for(number, deadline).and_then(|fetched| shown(&self.remote, fetched))
    }

    fn poll(self: Arc<Self>, number: u64, cx: &mut Context<'_>) -> Poll<Result<Option<Region>>> {
        self.remote.poll_for(number, cx).map(|fetched| shown(&self.remote, fetched?))
    }

    fn forget(&self, number: u64) {
        self.remote.fetches.forget(number);
    }
}

/// What was fetched for the caller alone.
pub(super) fn shown(remote: &Remote, fetched: Fetched) -> Result<Option<Region>> {
    // A format is for those who find it here later.
    match remote.found(fetched, Format::RAW, None)? {
        Found::Object(region) => Ok(Some(region)),
        Found::Missing => Ok(None),
        // Only declarations, whose keys have no place, lead elsewhere.
        Found::Elsewhere(_) => Err(mismatch()),
    }
}

/// A fetch beyond those that have numbers.
pub(super) struct Alone {
    pub(super) remote: Arc<Remote>,
    pub(super) fetching: Option<Box<Fetching>>,
}

impl Source<Fetched> for Alone {
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Fetched> {
        self.fetching.take().ok_or_else(ended)?.wait(&self.remote, deadline)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Fetched>> {
        match &mut self.fetching {
            Some(fetching) => fetching.poll(&self.remote, cx),
            None => Poll::Ready(Err(ended())),
        }
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Cancelled, "get", "the result was taken before")
}

/// Most fetches that have numbers, of some 400 bytes each, for good.
const MOST: usize = 1024;
