//! `Export`: a node's answers to other nodes' questions about its objects.
//!
//! It is a client of the node's memory like any other: it pins what is asked for and hands the views to the fabric. The process
//! that hosts the node service hosts it too, so that objects can be reached for as long as they exist.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Context, Poll, Wake};

use bytes::Bytes;
use smallvec::smallvec;

use super::address::{Address, Node};
use super::client::{Arrival, Client, Expected, Passage, Sight};
use super::locator::NO_PLACE;
use super::question::{Pointer, Question, Verdict, Verdicts, Want};
use super::relays::{self, Relays};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Incoming, Pieces, Responder, Service};
use crate::failpoint::failpoint;
use crate::key::Format;
use crate::pending::Pending;
use crate::region::View;
use crate::shm::table::{Id, Origin, REDIRECT, Unbound};
use crate::sync::lock;

/// Answers for the objects of one node's memory.
pub(crate) struct Export {
    client: Arc<Client>,
    /// Whom others ask for the objects here; known a moment after listening began.
    contact: OnceLock<SocketAddr>,
    winners: Mutex<Winners>,
    /// Which nodes get large objects from which.
    relays: Mutex<Relays>,
    /// Answers that wait for an object; those that nobody wants any more are dropped by the next.
    held: Mutex<Vec<Weak<Held>>>,
    closed: Arc<AtomicBool>,
}

impl Export {
    pub(crate) fn new(client: Arc<Client>) -> Arc<Self> {
        Arc::new(Self {
            client,
            contact: OnceLock::new(),
            winners: Mutex::default(),
            relays: Mutex::default(),
            held: Mutex::default(),
            closed: Arc::default(),
        })
    }

    /// Says where it is reached.
    pub(crate) fn set_contact(&self, contact: SocketAddr) {
        let _ = self.contact.set(contact);
    }

    fn pointer(&self, id: Id, place: u64, len: u64, format: Format) -> Result<Pointer> {
        let Some(contact) = self.contact.get() else {
            return Err(Error::new(ErrorKind::Unavailable, "get", "this node has just begun to answer"));
        };
        let address = Address { contact: *contact, instance: self.client.instance(), id, place };
        Ok(Pointer { address, len, format })
    }

    /// An object as others are told of it, and its bytes.
    fn sight(&self, want: &Want) -> Result<(Verdict, Option<View>)> {
        Ok(match self.client.find(want.id, expected(want))? {
            Sight::Missing => (Verdict::Missing, None),
            Sight::Declared => (Verdict::Declared, None),
            Sight::Object(view, object) if Sight::is_redirect(&object) => {
                (Verdict::Bound(Box::new(Pointer::from_bytes(&view)?)), None)
            }
            // The one that was committed to a declaration has a place, and so a key, of its own.
            Sight::Object(_, object) if object.id != want.id => {
                let pointer = self.pointer(object.id, object.place, object.label.len, object.label.format)?;
                (Verdict::Bound(Box::new(pointer)), None)
            }
            Sight::Object(view, object) => (Verdict::Yes { expires_in: Client::expires_in(&object) }, Some(view)),
        })
    }

    fn get(&self, wants: &[Want]) -> (Verdicts, Pieces) {
        let mut verdicts = Verdicts::with_capacity(wants.len());
        let mut parts = Pieces::with_capacity(wants.len());
        for want in wants {
            let (verdict, view) = self.sight(want).unwrap_or_else(|error| (Verdict::refused(&error), None));
            failpoint!("export.get.pinned");
            // The range is one of the key's length, and `sight` compared that with the object's.
            let range = want.from as usize..(want.from + want.count) as usize;
            match view.map(|view| view.narrow(range)) {
                Some(Some(part)) => {
                    parts.push(part.into());
                    verdicts.push(verdict);
                }
                Some(None) => verdicts.push(Verdict::Refused { kind: ErrorKind::Corrupt }),
                None => verdicts.push(verdict),
            }
        }
        (verdicts, parts)
    }

    fn evict(&self, want: &Want) -> Result<Verdict> {
        // What a declaration leads to on another node is for the asker to evict.
        let verdict = match self.sight(want)? {
            (Verdict::Bound(pointer), _) if pointer.address.instance != self.client.instance() => {
                Verdict::Bound(pointer)
            }
            _ => Verdict::Yes { expires_in: 0 },
        };
        if self.client.evict(want.id, expected(want))? {
            failpoint!("export.evicted");
            lock(&self.relays).ended(want.id);
            if want.place == NO_PLACE {
                // Those who wait for it must learn that it does not come.
                self.client.wake(want.id);
            }
        }
        Ok(verdict)
    }

    fn retire(&self, want: &Want, number: u64) -> Result<Verdict> {
        let mut winners = lock(&self.winners);
        if winners.has(number) {
            return Ok(Verdict::Yes { expires_in: 0 });
        }
        if !self.client.evict(want.id, expected(want))? {
            return Ok(Verdict::Missing);
        }
        winners.add(number);
        drop(winners);
        failpoint!("export.retired");
        lock(&self.relays).ended(want.id);
        if want.place == NO_PLACE {
            self.client.wake(want.id);
        }
        Ok(Verdict::Yes { expires_in: 0 })
    }

    fn bind(&self, declared: &Want, format: Format, object: &Pointer) -> Result<Verdict> {
        let mut bytes = Vec::new();
        object.encode(&mut bytes);
        let (lease, len) = self.client.copied(&bytes)?;
        failpoint!("export.bind.written");
        match self.client.bind_flagged(declared.id, format, lease, len, REDIRECT)? {
            Ok(()) => Ok(Verdict::Yes { expires_in: 0 }),
            Err(Unbound::Missing) => Ok(Verdict::Missing),
            Err(Unbound::Format) => Ok(Verdict::Refused { kind: ErrorKind::TypeMismatch }),
            Err(Unbound::Taken) => match self.sight(declared)? {
                // Asked again, because the answer was lost.
                (Verdict::Bound(pointer), _) if *pointer == *object => Ok(Verdict::Yes { expires_in: 0 }),
                _ => Ok(Verdict::Taken),
            },
        }
    }

    /// Says from which node another one is to get an object.
    fn join(&self, want: &Want, as_node: Node, lost: &[u64], connection: u64) -> Result<Verdict> {
        Ok(match self.sight(want)? {
            (Verdict::Yes { expires_in }, _) => {
                let pieces = want.len.div_ceil(relays::piece(want.len));
                match lock(&self.relays).join(want.id, pieces, as_node, connection, lost) {
                    Some(node) => Verdict::From { expires_in, node: Box::new(node) },
                    None => Verdict::Yes { expires_in },
                }
            }
            (verdict, _) => {
                lock(&self.relays).ended(want.id);
                verdict
            }
        })
    }

    /// Answers when something is committed to the declaration, or it is evicted.
    fn wait(self: &Arc<Self>, want: Want, responder: Responder) {
        let arrival = Arrival::new(Arc::clone(&self.client), want.id, Arc::clone(&self.closed), |_| Ok(()));
        let export = Arc::clone(self);
        let answer = Pending::from_source(arrival).and_then(move |()| {
            let (verdict, _) = export.sight(&want)?;
            failpoint!("export.wait.arrived");
            Ok((verdict, None))
        });
        self.answer_later(answer, responder);
    }

    /// Answers with bytes of another node's object, when they are here; at once where none are wanted, whether they may come.
    fn pass(self: &Arc<Self>, instance: u64, want: Want, responder: Responder) {
        let origin = Origin { instance, id: want.id };
        if want.count == 0 {
            let verdict = match self.client.find_replica(origin) {
                Ok(Some(_)) => Verdict::Yes { expires_in: 0 },
                Ok(None) => Verdict::Missing,
                Err(error) => Verdict::refused(&error),
            };
            return responder.reply(Verdict::encode_all(&[verdict]), Vec::new());
        }
        let end = want.from + want.count;
        let passage = Passage::new(Arc::clone(&self.client), origin, end, Arc::clone(&self.closed));
        let answer = Pending::from_source(passage).and_then(move |region| {
            failpoint!("export.passing");
            let bytes = region.filter(|region| end <= region.len() as u64);
            Ok(match bytes {
                Some(region) => (Verdict::Yes { expires_in: 0 }, Some(region.slice(want.from as usize..end as usize))),
                None => (Verdict::Missing, None),
            })
        });
        self.answer_later(answer, responder);
    }

    /// Answers when it is known what.
    fn answer_later(&self, answer: Pending<(Verdict, Option<Bytes>)>, responder: Responder) {
        let held = Arc::new(Held { state: AtomicU32::new(IDLE), waiting: Mutex::new(Some((answer, responder))) });
        // Most of what is passed on is here.
        Arc::clone(&held).wake();
        if held.is_over() || self.hold(&held) {
            return;
        }
        let error = Error::new(ErrorKind::NoSpace, "get", "too many wait for objects of this node");
        if let Some((_, responder)) = held.end() {
            responder.reply(Verdict::encode_all(&[Verdict::refused(&error)]), Vec::new());
        }
    }

    /// Notes an answer that waits; whether there was room. Now and then those that nobody wants any more are dropped.
    fn hold(&self, held: &Arc<Held>) -> bool {
        let mut all = lock(&self.held);
        let mut unwanted = Vec::new();
        if all.len() == all.capacity() {
            all.retain(|held| match held.upgrade() {
                Some(held) if held.is_wanted() => true,
                gone => {
                    unwanted.extend(gone);
                    false
                }
            });
        }
        let has_room = all.len() < MOST_HELD;
        if has_room {
            all.push(Arc::downgrade(held));
        }
        drop(all);
        unwanted.iter().for_each(|held| drop(held.end()));
        has_room
    }
}

impl Service for Arc<Export> {
    fn answer(&self, call: Incoming<'_>) {
        let Incoming { head, responder, from, connection } = call;
        failpoint!("export.asked");
        let question = match Question::decode(head) {
            Ok(question) => question,
            // One verdict, which fits no question about several objects: it is refused as nonsense there too.
            Err(error) => return responder.reply(Verdict::encode_all(&[Verdict::refused(&error)]), Vec::new()),
        };
        let or_refused = |verdict: Result<Verdict>| -> Verdicts {
            smallvec![verdict.unwrap_or_else(|error| Verdict::refused(&error))]
        };
        let (verdicts, parts) = match question {
            Question::Get(wants) => self.get(&wants),
            Question::Exists(wants) => {
                let exists = |want| self.sight(want).map(|(verdict, _)| verdict);
                (wants.iter().flat_map(|want| or_refused(exists(want))).collect(), Pieces::new())
            }
            Question::Evict(wants) => {
                (wants.iter().flat_map(|want| or_refused(self.evict(want))).collect(), Pieces::new())
            }
            Question::Retire { want, number } => (or_refused(self.retire(&want, number)), Pieces::new()),
            Question::Bind { declared, format, object } => {
                (or_refused(self.bind(&declared, format, &object)), Pieces::new())
            }
            Question::Wait(want) => return self.wait(want, responder),
            // Nobody speaks for another node.
            Question::Join { as_node, .. } if as_node.instance != from => {
                (smallvec![Verdict::Refused { kind: ErrorKind::Invalid }], Pieces::new())
            }
            Question::Join { want, as_node, lost } => {
                (or_refused(self.join(&want, as_node, &lost, connection)), Pieces::new())
            }
            Question::Left { want, is_whole } => {
                lock(&self.relays).left(want.id, from, connection, is_whole);
                (smallvec![Verdict::Yes { expires_in: 0 }], Pieces::new())
            }
            Question::Pass { instance, want } => return self.pass(instance, want, responder),
        };
        failpoint!("export.answering");
        responder.send(Verdict::encode_all(&verdicts), parts);
        failpoint!("export.answered");
    }

    fn gone(&self, connection: u64) {
        lock(&self.relays).gone(connection);
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Export({:?} at {:?})", self.client, self.contact.get())
    }
}

/// An answer that waits for an object; it is polled by whoever wakes it.
struct Held {
    state: AtomicU32,
    waiting: Mutex<Option<Owed>>,
}

/// What will be said, and to whom.
type Owed = (Pending<(Verdict, Option<Bytes>)>, Responder);

/// Nobody polls; somebody does; and somebody was told to look once more.
const IDLE: u32 = 0;
const POLLING: u32 = 1;
const AGAIN: u32 = 2;

impl Held {
    fn is_wanted(&self) -> bool {
        // Locked by whoever polls it, who sees to the rest.
        match self.waiting.try_lock() {
            Ok(waiting) => waiting.as_ref().is_some_and(|(_, responder)| responder.is_wanted()),
            Err(_) => true,
        }
    }

    fn is_over(&self) -> bool {
        lock(&self.waiting).is_none()
    }

    /// Takes what it waits for, and with that the waker that keeps this alive.
    fn end(&self) -> Option<Owed> {
        lock(&self.waiting).take()
    }

    /// Looks whether it came; whether this is over.
    fn poll(self: &Arc<Self>) -> bool {
        let mut waiting = lock(&self.waiting);
        let Some((answer, responder)) = waiting.as_mut() else { return true };
        if !responder.is_wanted() {
            drop(waiting);
            drop(self.end());
            return true;
        }
        let waker = Arc::clone(self).into();
        let Poll::Ready(answer) = Pin::new(answer).poll(&mut Context::from_waker(&waker)) else { return false };
        let Some((_, responder)) = waiting.take() else { return true };
        drop(waiting);
        let (verdict, bytes) = answer.unwrap_or_else(|error| (Verdict::refused(&error), None));
        responder.reply(Verdict::encode_all(&[verdict]), Vec::from_iter(bytes));
        true
    }
}

impl Wake for Held {
    fn wake(self: Arc<Self>) {
        if self.state.swap(AGAIN, Ordering::AcqRel) != IDLE {
            return;
        }
        loop {
            self.state.store(POLLING, Ordering::Release);
            if self.poll() {
                // Nothing wakes it any more, and nothing has to.
                return;
            }
            if self.state.compare_exchange(POLLING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return;
            }
        }
    }
}

/// Numbers of those who ended an object, for a while: whoever lost the answer asks again.
#[derive(Default)]
struct Winners {
    numbers: HashMap<u64, ()>,
    order: VecDeque<u64>,
}

impl Winners {
    fn has(&self, number: u64) -> bool {
        self.numbers.contains_key(&number)
    }

    fn add(&mut self, number: u64) {
        if self.order.len() >= MOST_WINNERS {
            if let Some(oldest) = self.order.pop_front() {
                self.numbers.remove(&oldest);
            }
        }
        self.numbers.insert(number, ());
        self.order.push_back(number);
    }
}

/// What the key says of the object.
fn expected(want: &Want) -> Expected {
    match want.place {
        NO_PLACE => Expected::ANY,
        place => Expected::new(want.len, place),
    }
}

/// Most answers that wait at a time.
const MOST_HELD: usize = 1 << 16;

/// How many ends of objects are remembered.
const MOST_WINNERS: usize = 1 << 16;
