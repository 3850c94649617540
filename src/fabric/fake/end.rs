//! `Node`: a node of a `Net` as a fabric, with its listeners and its ends of connections.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use super::Net;
use super::event::{Event, Route};
use super::state::{Connection, Listening, Question, State};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Call, Fabric, Listener, MAX_HEAD, MAX_PARTS, Outgoing, Peer, Respond, Service};
use crate::pending::{Pending, Source};
use crate::sync::lock;

/// A node, named by its address.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    net: Net,
    host: IpAddr,
    instance: u64,
    secret: u64,
}

impl Node {
    pub(super) fn new(net: Net, host: IpAddr) -> Self {
        // Known from now on, so that a kill of another node cuts it off.
        net.with(|state| {
            state.host(host);
        });
        Self { net, host, instance: 1, secret: 0 }
    }

    /// With this number of its memory.
    pub(crate) fn instance(mut self, instance: u64) -> Self {
        self.instance = instance;
        self
    }

    /// With this secret; nodes of other secrets are strangers.
    pub(crate) fn secret(mut self, secret: u64) -> Self {
        self.secret = secret;
        self
    }
}

impl Fabric for Node {
    fn scheme(&self) -> &'static str {
        "fake"
    }

    fn listen(&self, addresses: &[SocketAddr], service: Arc<dyn Service>) -> Result<Box<dyn Listener>> {
        let (host, instance, secret) = (self.host, self.instance, self.secret);
        let found = self.net.with(|state| {
            let contact = addresses.iter().filter(|address| address.ip() == host).find_map(|address| {
                let mut port = address.port();
                if port == 0 {
                    port = (FIRST_PORT..=u16::MAX).find(|port| !state.contacts.contains_key(&(host, *port).into()))?;
                }
                let contact = SocketAddr::from((host, port));
                (!state.contacts.contains_key(&contact)).then_some(contact)
            })?;
            let listener = state.number();
            state.contacts.insert(contact, listener);
            state.listeners.insert(listener, Listening { service, instance, secret });
            Some((listener, contact))
        });
        match found {
            Some((listener, contact)) => Ok(Box::new(Ear { net: self.net.clone(), listener, contact })),
            None => Err(Error::new(ErrorKind::Unavailable, "open", format!("none of {addresses:?} is free"))),
        }
    }

    fn connect(&self, contact: SocketAddr, deadline: Instant) -> Result<Arc<dyn Peer>> {
        let (host, from, secret) = (self.host, self.instance, self.secret);
        let ticket = self.net.with(|state| {
            let ticket = state.number();
            state.tickets.insert(ticket, None);
            let there = state.travel(host, contact.ip(), HELLO) - state.now;
            let back = state.travel(contact.ip(), host, HELLO);
            let knock = Knock { ticket, host, from, secret, contact, unheard: false };
            state.post(back + there, None, Event::Connect(knock));
            ticket
        });
        let answered = self.net.wait(Some(deadline), |state| state.tickets.get_mut(&ticket).and_then(Option::take));
        self.net.with(|state| state.tickets.remove(&ticket));
        let connection = answered.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Timeout, "open", format!("{contact} did not answer before the deadline")))
        })?;
        let instance = self.net.with(|state| state.connections.get(&connection).map_or(0, |one| one.instance));
        Ok(Arc::new(End { net: self.net.clone(), connection, instance }))
    }
}

/// Asks for a connection.
#[derive(Debug)]
pub(super) struct Knock {
    ticket: u64,
    host: IpAddr,
    from: u64,
    secret: u64,
    contact: SocketAddr,
    /// Whether the silence limit passed without an answer.
    unheard: bool,
}

impl Knock {
    pub(super) fn answer(mut self, state: &mut State) {
        let owner = self.contact.ip();
        let cut = state.cut_since(self.host, owner).or(state.cut_since(owner, self.host));
        let silent = cut.is_some() || state.is_dead(owner) || state.is_dead(self.host);
        if silent && !self.unheard {
            self.unheard = true;
            state.post(state.now + state.silence, None, Event::Connect(self));
            return;
        }
        let (ticket, made) =
            (self.ticket, if silent { Err(self.down("nothing was heard")) } else { self.connect(state) });
        if let Some(waiting) = state.tickets.get_mut(&ticket) {
            *waiting = Some(made);
        } else if let Ok(connection) = made {
            state.connections.remove(&connection);
        }
    }

    fn down(&self, why: &str) -> Error {
        Error::new(ErrorKind::PeerDown, "open", format!("{}: {why}", self.contact))
    }

    fn connect(&self, state: &mut State) -> Result<u64> {
        let found = state.contacts.get(&self.contact).and_then(|id| state.listeners.get(id).map(|one| (*id, one)));
        let (listener, listening) = found.ok_or_else(|| self.down("nobody listens"))?;
        if listening.secret != self.secret {
            return Err(Error::new(ErrorKind::Unauthorized, "open", format!("{} has another secret", self.contact)));
        }
        let connection = Connection {
            requester: self.host,
            owner: self.contact.ip(),
            listener,
            from: self.from,
            instance: listening.instance,
            ended: None,
        };
        let id = state.number();
        state.connections.insert(id, connection);
        Ok(id)
    }
}

/// A listener.
#[derive(Debug)]
struct Ear {
    net: Net,
    listener: u64,
    contact: SocketAddr,
}

impl Listener for Ear {
    fn contact(&self) -> SocketAddr {
        self.contact
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.net.with(|state| {
            state.contacts.remove(&self.contact);
            if let Some(listening) = state.listeners.remove(&self.listener) {
                state.dropped.push(Box::new(listening.service));
            }
            let own = state.connections.iter().filter(|(_, one)| one.listener == self.listener && one.ended.is_none());
            let own: Vec<(u64, IpAddr, IpAddr)> = own.map(|(id, one)| (*id, one.owner, one.requester)).collect();
            for (connection, from, to) in own {
                let at = state.travel(from, to, BYE);
                state.post(at, Some(Route { connection, from, to }), Event::Close { connection });
            }
        });
    }
}

/// The requester's end of a connection.
#[derive(Debug)]
struct End {
    net: Net,
    connection: u64,
    instance: u64,
}

impl Peer for End {
    fn instance(&self) -> u64 {
        self.instance
    }

    fn is_up(&self) -> bool {
        lock(&self.net.0.state).connections.get(&self.connection).is_some_and(|one| one.ended.is_none())
    }

    fn lanes(&self) -> usize {
        1
    }

    fn request(self: Arc<Self>, call: Call) -> Pending<Answer> {
        let Call { head, land, lane: _ } = call;
        if head.len() > MAX_HEAD {
            let context = format!("a question of {} bytes, {MAX_HEAD} are allowed", head.len());
            return Pending::ready(Err(Error::new(ErrorKind::TooLarge, "get", context)));
        }
        let connection = self.connection;
        let asked = self.net.with(|state| {
            let (from, to) = match state.connections.get(&connection) {
                Some(one) if one.ended.is_none() => (one.requester, one.owner),
                _ => return Err((Error::new(ErrorKind::PeerDown, "get", "the connection has ended"), land)),
            };
            let question = state.number();
            let open = Question { connection, land: Some(land), result: None, waker: None };
            state.questions.insert(question, open);
            let at = state.travel(from, to, head.len());
            state.post(at, Some(Route { connection, from, to }), Event::Ask { question, head: head.into_vec() });
            Ok(question)
        });
        match asked {
            Ok(question) => Pending::from_source(Awaited { end: self, question }),
            Err((error, _land)) => Pending::ready(Err(error)),
        }
    }

    fn close(&self) {
        self.net.with(|state| state.end(self.connection, "the connection was closed"));
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.close();
        self.net.with(|state| state.connections.remove(&self.connection));
    }
}

/// An answer that is waited for.
struct Awaited {
    end: Arc<End>,
    question: u64,
}

impl Awaited {
    fn take(&self, state: &mut State) -> Option<Result<Answer>> {
        state.questions.get_mut(&self.question).and_then(|open| open.result.take())
    }
}

impl Source<Answer> for Awaited {
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Answer> {
        self.end.net.wait(deadline, |state| self.take(state)).unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Timeout, "get", "the peer did not answer; retry, or raise the deadline"))
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer>> {
        let net = &self.end.net;
        // Made before the lock is taken: a waker is foreign code.
        let mut waker = Some(cx.waker().clone());
        let mut state = lock(&net.0.state);
        let polled = loop {
            if let Some(result) = self.take(&mut state) {
                break Poll::Ready(result);
            }
            if state.running || state.next().is_none() {
                let former = state
                    .questions
                    .get_mut(&self.question)
                    .and_then(|open| std::mem::replace(&mut open.waker, waker.take()));
                state.dropped.extend(former.map(|waker| Box::new(waker) as _));
                break Poll::Pending;
            }
            state = net.step(state);
        };
        net.release(state);
        polled
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.end.net.with(|state| {
            let Some(open) = state.questions.remove(&self.question) else { return };
            let connection = open.connection;
            let is_open = open.land.is_some() || open.result.is_none();
            state.dropped.push(Box::new((open.land, open.result, open.waker)));
            let ends = state.connections.get(&connection).filter(|one| is_open && one.ended.is_none());
            if let Some((from, to)) = ends.map(|one| (one.requester, one.owner)) {
                let at = state.travel(from, to, BYE);
                let event = Event::Forget { question: self.question };
                state.post(at, Some(Route { connection, from, to }), event);
            }
        });
    }
}

/// The owner's duty to answer.
pub(super) struct Duty {
    net: Net,
    question: u64,
    wanted: Arc<AtomicBool>,
}

impl Duty {
    pub(super) fn new(net: Net, question: u64, wanted: Arc<AtomicBool>) -> Self {
        Self { net, question, wanted }
    }
}

impl Respond for Duty {
    fn respond(self: Box<Self>, reply: Option<Outgoing>) {
        let question = self.question;
        self.net.with(|state| {
            let Some((connection, _)) = state.owed.remove(&question) else { return };
            let ends = state.connections.get(&connection).filter(|one| one.ended.is_none());
            let (from, to) = match ends.filter(|one| state.listeners.contains_key(&one.listener)) {
                Some(one) => (one.owner, one.requester),
                None => return state.dropped.push(Box::new(reply)),
            };
            let route = Some(Route { connection, from, to });
            let fits = |reply: &Outgoing| reply.head.len() <= MAX_HEAD && reply.parts.len() <= MAX_PARTS;
            match reply {
                Some(outgoing) if fits(&outgoing) => {
                    let at = state.travel(from, to, outgoing.head.len());
                    let len: u64 = outgoing.parts.iter().map(|part| part.len() as u64).sum();
                    let (first, last) = if len == 0 { (at, at) } else { state.stream(from, to, len) };
                    state.post(at, route, Event::Answer { question, outgoing, first, last });
                }
                unfit => {
                    let why = if unfit.is_some() { "the answer is too large" } else { "the owner does not answer" };
                    let at = state.travel(from, to, BYE);
                    let error = Error::new(ErrorKind::Cancelled, "get", why);
                    state.post(at, route, Event::Refuse { question, error });
                    state.dropped.push(Box::new(unfit));
                }
            }
        });
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Duty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Duty({})", self.question)
    }
}

/// Ports are taken from here where none is asked for.
const FIRST_PORT: u16 = 40_000;

/// Bytes of a proof of the secret, one way.
const HELLO: usize = 128;

/// Bytes of a message that has no head.
const BYE: usize = 16;
