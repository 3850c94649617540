//! Gets of remote objects that are under way: none takes memory of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::landings::{Fetched, mismatch};
use super::objects::Objects;
use super::remote::{Found, Limit, Remote, whole};
use super::slots::ended;
use crate::environment;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::Answer;
use crate::key::Format;
use crate::pending::{Operations, Pending, Source, caught};
use crate::region::Region;
use crate::service::address::Address;
use crate::service::question::Pointer;

/// An object that is asked for.
pub(super) struct Fetching {
    at: Address,
    len: u64,
    asked: Instant,
    /// Whether the owner's memory is read where it is known what lies there.
    is_read: bool,
    state: State,
}

enum State {
    Asked(Pending<Answer>),
    /// The connection broke: it is asked for once more, over another one.
    Again(Box<Pending<Fetched>>),
}

impl Fetching {
    /// An object of that node for which `answer` was asked at that time.
    pub(super) fn new(at: Address, len: u64, asked: Instant, is_read: bool, answer: Pending<Answer>) -> Self {
        Self { at, len, asked, is_read, state: State::Asked(answer) }
    }

    fn wait(self, remote: &Remote, deadline: Option<Instant>) -> Result<Fetched> {
        let Self { at, len, asked, is_read, state } = self;
        let fetched = match state {
            State::Asked(answer) => match answer.wait_until(deadline) {
                Ok(answer) => finish(remote, &at, answer, asked, is_read),
                Err(error) => again(remote, at, len, asked, error, deadline),
            },
            State::Again(fetched) => fetched.wait_until(deadline),
        };
        fetched.map_err(|error| error.with_connector(remote.scheme))
    }

    fn poll(&mut self, remote: &Arc<Remote>, cx: &mut Context<'_>) -> Poll<Result<Fetched>> {
        let Self { at, len, asked, is_read, state } = self;
        let named = |error: Error| error.with_connector(remote.scheme);
        if let State::Asked(answer) = state {
            match Pin::new(answer).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(answer)) => {
                    return Poll::Ready(finish(remote, at, answer, *asked, *is_read).map_err(named));
                }
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

fn finish(remote: &Remote, at: &Address, answer: Answer, asked: Instant, is_read: bool) -> Result<Fetched> {
    let fetched = whole(answer, asked)?;
    if is_read {
        remote.note_fetched(at, &fetched);
    }
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

impl Operations<Fetched> for Remote {
    fn wait(self: Arc<Self>, number: u64, deadline: Option<Instant>) -> Result<Fetched> {
        self.fetches.take(number)?.wait(&self, deadline)
    }

    fn poll(self: Arc<Self>, number: u64, cx: &mut Context<'_>) -> Poll<Result<Fetched>> {
        let mut fetching = match self.fetches.take(number) {
            Ok(fetching) => fetching,
            Err(error) => return Poll::Ready(Err(error)),
        };
        let polled = fetching.poll(&self, cx);
        if polled.is_pending() {
            self.fetches.put(number, fetching);
        }
        polled
    }

    fn let_go(self: Arc<Self>, number: u64) {
        // Its owner learns that nobody wants it.
        drop(self.fetches.free(number));
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

/// A get of an object of another node.
pub(super) enum Get {
    /// For the caller alone.
    Asked(Fetching),
    /// For all processes of this node: whoever has the duty to fetch it is at it until it is done, so it begins when somebody
    /// waits for it.
    Shared(Pointer),
    Begun(Box<Pending<Option<Region>>>),
}

impl Objects {
    /// A get that takes no memory of its own.
    pub(super) fn getting(self: &Arc<Self>, get: Get) -> Pending<Option<Region>> {
        let get = match self.gets.insert(get) {
            Ok(number) => {
                return Pending::from_operations(Arc::clone(self) as Arc<dyn Operations<Option<Region>>>, number);
            }
            Err(get) => *get,
        };
        match get {
            Get::Asked(fetching) => {
                let remote = Arc::clone(&self.remote);
                let alone = Alone { remote: Arc::clone(&remote), fetching: Some(Box::new(fetching)) };
                Pending::from_source(alone).and_then(move |fetched| shown(&remote, fetched))
            }
            Get::Shared(object) => self.sharing(object),
            Get::Begun(begun) => *begun,
        }
    }

    fn sharing(self: &Arc<Self>, object: Pointer) -> Pending<Option<Region>> {
        let all = Arc::clone(self);
        Pending::blocking_until(move |deadline| all.get_shared(object, deadline))
    }

    fn get_shared(self: &Arc<Self>, object: Pointer, deadline: Option<Instant>) -> Result<Option<Region>> {
        region_of(self.fetch_shared(object, Limit::new(deadline))?)
    }

    /// The get of a number, begun where it is to go on without its waiter.
    fn begun(self: &Arc<Self>, number: u64, deadline: Option<Instant>) -> Result<Get> {
        Ok(match self.gets.take(number)? {
            Get::Shared(object) => Get::Begun(Box::new(self.sharing(object).start_until(deadline))),
            get => get,
        })
    }
}

impl Operations<Option<Region>> for Objects {
    fn wait(self: Arc<Self>, number: u64, deadline: Option<Instant>) -> Result<Option<Region>> {
        match self.gets.take(number)? {
            Get::Asked(fetching) => shown(&self.remote, fetching.wait(&self.remote, deadline)?),
            Get::Shared(object) => caught(|| self.get_shared(object, deadline)),
            Get::Begun(begun) => begun.wait_until(deadline),
        }
    }

    fn poll(self: Arc<Self>, number: u64, cx: &mut Context<'_>) -> Poll<Result<Option<Region>>> {
        let mut get = match self.begun(number, None) {
            Ok(get) => get,
            Err(error) => return Poll::Ready(Err(error)),
        };
        let polled = match &mut get {
            Get::Asked(fetching) => fetching.poll(&self.remote, cx).map(|fetched| shown(&self.remote, fetched?)),
            Get::Begun(begun) => Pin::new(begun).poll(cx),
            Get::Shared(_) => Poll::Ready(Err(ended())),
        };
        if polled.is_pending() {
            self.gets.put(number, get);
        }
        polled
    }

    fn start(self: Arc<Self>, number: u64, deadline: Option<Instant>) {
        if let Ok(begun) = self.begun(number, deadline) {
            self.gets.put(number, begun);
        }
    }

    fn let_go(self: Arc<Self>, number: u64) {
        match self.gets.free(number) {
            // Nobody waits, and it goes on: others will find the object here.
            Some(Get::Shared(object)) => drop(self.sharing(object)),
            left => drop(left),
        }
    }
}

/// What was fetched for the caller alone.
pub(super) fn shown(remote: &Remote, fetched: Fetched) -> Result<Option<Region>> {
    // A format is for those who find it here later.
    region_of(remote.found(fetched, Format::RAW, None)?)
}

pub(super) fn region_of(found: Found) -> Result<Option<Region>> {
    match found {
        Found::Object(region) => Ok(Some(region)),
        Found::Missing => Ok(None),
        // Only declarations, whose keys have no place, lead elsewhere.
        Found::Elsewhere(_) => Err(mismatch()),
    }
}
