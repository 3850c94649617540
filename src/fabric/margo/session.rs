//! `Session`: what an owner keeps for one requester: questions that are not answered yet, and parts that are being pulled.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::memory::{Memory, Staging};
use super::native::{Bulk, Handler, Instance, Reply, Token};
use super::wire::{DESCRIBED, Description, HELD, KEPT, LONG, Numbers, Part, Place, REFUSED, SMALL, Said, Source};
use crate::error::Result;
use crate::fabric::{Incoming, MAX_HEAD, MAX_PARTS, Outgoing, Respond, Responder, Service};
use crate::failpoint::failpoint;
use crate::key::fill_random;
use crate::shm::class::CELL_UNIT;
use crate::sync::lock;

/// See the module.
pub(super) struct Session {
    token: Token,
    connection: u64,
    /// Number of the requester's memory.
    from: u64,
    /// How long parts stay pinned without a word from the requester.
    patience: Duration,
    instance: Arc<Instance>,
    memory: Arc<Memory>,
    state: Mutex<State>,
}

struct State {
    /// Gone when the session has ended: a responder that is kept must not keep it.
    service: Option<Arc<dyn Service>>,
    held: HashMap<u64, Arc<Mutex<Slot>>>,
    pins: HashMap<u64, Pin>,
    /// Bytes of objects in them.
    pinned: u64,
    /// Questions that the service gets when fewer are pinned: whoever asked was told to collect the answers.
    backlog: VecDeque<Question>,
    /// As long as it is not answered, the control connection shows that this process lives.
    watch: Option<Responder>,
}

/// Where the answer to a question goes.
enum Slot {
    /// Whoever asked waits for the RPC.
    Rpc(Reply),
    /// It was told to collect the answer, and has not come yet.
    Waiting,
    Collector(Responder),
    Done(Prepared),
    Over,
}

/// Parts that a requester pulls.
struct Pin {
    since: Instant,
    _bulks: Vec<Bulk>,
    parts: Vec<Bytes>,
    /// The description, where it is pulled, too.
    staged: Option<Staged>,
}

/// What is packed for a requester, until it has pulled that.
struct Staged {
    memory: Arc<Memory>,
    staging: Option<Staging>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(staging) = self.staging.take() {
            self.memory.unstage(staging);
        }
    }
}

struct Question {
    head: Vec<u8>,
    responder: Responder,
}

/// An answer, described.
struct Prepared {
    /// The description, and the packed parts.
    pieces: Vec<Bytes>,
    len: usize,
    is_pinned: bool,
}

impl Session {
    pub(super) fn new(
        instance: &Arc<Instance>,
        memory: Arc<Memory>,
        service: Arc<dyn Service>,
        connection: u64,
        from: u64,
        silence: Duration,
    ) -> Arc<Self> {
        let mut token = Token::default();
        fill_random(&mut token);
        let (held, pins) = (HashMap::new(), HashMap::new());
        let state = State { service: Some(service), held, pins, pinned: 0, backlog: VecDeque::new(), watch: None };
        Arc::new(Self {
            token,
            connection,
            from,
            patience: silence * PATIENCE,
            instance: Arc::clone(instance),
            memory,
            state: Mutex::new(state),
        })
    }

    pub(super) fn token(&self) -> Token {
        self.token
    }

    /// Holds a responder whose connection so carries signs of life.
    pub(super) fn watch(&self, responder: Responder) {
        let mut state = lock(&self.state);
        let former = match state.service {
            Some(_) => state.watch.replace(responder),
            None => Some(responder),
        };
        drop(state);
        drop(former);
    }

    /// Gives the answer to a question that was held, now or when it is there.
    pub(super) fn collect(&self, number: u64, responder: Responder) {
        let slot = lock(&self.state).held.get(&number).cloned();
        let Some(slot) = slot else { return };
        let mut place = lock(&slot);
        match std::mem::replace(&mut *place, Slot::Over) {
            Slot::Waiting => *place = Slot::Collector(responder),
            Slot::Done(prepared) => {
                drop(place);
                let mut state = lock(&self.state);
                state.held.remove(&number);
                // The requester counts from when it asked to collect, and what has expired meanwhile is not there.
                let pin = state.pins.get_mut(&number).map(|pin| pin.since = Instant::now());
                let is_there = pin.is_some() || !prepared.is_pinned;
                drop(state);
                if is_there {
                    responder.reply(DESCRIBED.to_vec(), vec![prepared.joined()]);
                }
            }
            other => {
                *place = other;
                drop(place);
                lock(&self.state).held.remove(&number);
            }
        }
    }

    /// Lets go of parts for which there was no word for too long; when to look again.
    pub(super) fn expire(&self) -> Duration {
        let now = Instant::now();
        let mut late = Vec::new();
        let mut state = lock(&self.state);
        let all: Vec<u64> = state.pins.keys().copied().collect();
        for number in all {
            if state.pins.get(&number).is_some_and(|pin| now.saturating_duration_since(pin.since) > self.patience) {
                late.extend(state.unpin(number));
            }
        }
        drop(state);
        drop(late);
        self.catch_up();
        self.patience / 8
    }

    /// Lets go of everything; what comes later is refused.
    pub(super) fn end(&self) {
        self.instance.dismiss(&self.token);
        let mut state = lock(&self.state);
        let gone = (
            state.service.take(),
            std::mem::take(&mut state.held),
            std::mem::take(&mut state.pins),
            std::mem::take(&mut state.backlog),
            state.watch.take(),
            // Nothing waits for room from now on.
            std::mem::take(&mut state.pinned),
        );
        drop(state);
        drop(gone);
    }

    fn question(self: &Arc<Self>, number: u64, head: &[u8], reply: Reply) {
        failpoint!("margo.question");
        let Some(service) = lock(&self.state).service.clone() else { return };
        let slot = Arc::new(Mutex::new(Slot::Rpc(reply)));
        let duty = Duty { session: Arc::clone(self), number, slot: Arc::clone(&slot) };
        let responder = Responder::new(Box::new(duty));
        let mut state = lock(&self.state);
        // Behind those that wait it waits, too.
        let waits = state.is_full() || !state.backlog.is_empty();
        match waits {
            true if state.backlog.len() < MOST_HELD => {
                state.backlog.push_back(Question { head: head.to_vec(), responder });
                drop(state);
            }
            true => {
                drop(state);
                drop(responder);
            }
            false => {
                drop(state);
                self.answer(&service, head, responder);
            }
        }
        let mut place = lock(&slot);
        let reply = match std::mem::replace(&mut *place, Slot::Waiting) {
            Slot::Rpc(reply) => reply,
            answered => {
                *place = answered;
                return;
            }
        };
        drop(place);
        // An RPC that stays open takes one of the few places that Mercury has for what comes.
        let mut state = lock(&self.state);
        let has_room = state.service.is_some() && state.held.len() < MOST_HELD;
        if has_room {
            state.held.insert(number, slot);
        }
        drop(state);
        reply.send(&[if has_room { HELD } else { REFUSED }]);
    }

    fn answer(&self, service: &Arc<dyn Service>, head: &[u8], responder: Responder) {
        let call = Incoming { head, from: self.from, connection: self.connection, responder };
        // Its responder refuses as the panic drops it; others go on.
        let _ = catch_unwind(AssertUnwindSafe(|| service.answer(call)));
    }

    fn release(&self, numbers: Numbers<'_>) {
        let mut state = lock(&self.state);
        let pins: Vec<_> = numbers.iter().filter_map(|number| state.unpin(number)).collect();
        drop(state);
        drop(pins);
        self.catch_up();
    }

    /// Gives questions to the service that waited until fewer bytes are pinned.
    fn catch_up(&self) {
        loop {
            let mut state = lock(&self.state);
            let Some(service) = state.service.clone().filter(|_| !state.is_full()) else { return };
            let Some(Question { head, responder }) = state.backlog.pop_front() else { return };
            drop(state);
            self.answer(&service, &head, responder);
        }
    }

    /// The parts of an answer are still wanted; whether they are still there.
    pub(super) fn keep(&self, number: u64) -> bool {
        lock(&self.state).pins.get_mut(&number).map(|pin| pin.since = Instant::now()).is_some()
    }

    fn is_open(&self) -> bool {
        lock(&self.state).service.is_some()
    }

    /// Describes an answer, and pins what is to be pulled; `None` for one that cannot be.
    fn prepare(&self, number: u64, reply: Outgoing) -> Option<Prepared> {
        let (head, parts) = reply.into_bytes();
        if head.len() > MAX_HEAD || parts.len() > MAX_PARTS {
            return None;
        }
        let total: usize = parts.iter().map(Bytes::len).sum();
        let fits = 1 + Description::len_packed(head.len(), parts.len()) + total <= self.instance.inline();
        let several = parts.len() > 1;
        let are_pulled = !fits && are_together(&parts);
        let mut description = Description { head, ..Description::default() };
        let (mut packed, mut bulks, mut numbers) = (Vec::new(), Vec::new(), HashMap::new());
        for part in &parts {
            let len = part.len() as u64;
            let is_small = several && part.len() <= SMALL;
            let addresses = addresses(part);
            let is_packed = fits || part.is_empty() || is_small && !are_pulled;
            let known = if is_packed { None } else { self.memory.find(&addresses) };
            if is_packed || is_small && known.is_none() {
                description.parts.push(Part { len, place: Place::Packed });
                packed.push(part.clone());
                continue;
            }
            let (source, offset) = match known {
                Some((bulk, id)) => {
                    let source = *numbers.entry(id).or_insert_with(|| {
                        description.sources.push(Source { id, descriptor: bulk.descriptor().to_vec() });
                        description.sources.len() - 1
                    });
                    (source, bulk.offset_of(&addresses)?)
                }
                None => {
                    let bulk = Bulk::of_bytes(&self.instance, part.clone()).ok()?;
                    description.sources.push(Source { id: 0, descriptor: bulk.descriptor().to_vec() });
                    bulks.push(bulk);
                    (description.sources.len() - 1, 0)
                }
            };
            description.is_pinned = true;
            description.parts.push(Part { len, place: Place::Source(source as u16, offset as u64) });
        }
        let mut pieces = vec![Bytes::from(description.encode())];
        pieces.append(&mut packed);
        let len = pieces.iter().map(Bytes::len).sum();
        let is_pinned = description.is_pinned;
        match is_pinned && !self.pin(number, bulks, parts, None) {
            true => None,
            false => Some(Prepared { pieces, len, is_pinned }),
        }
    }

    /// Keeps parts until they are released; whether there is anybody who could pull them.
    fn pin(&self, number: u64, mut bulks: Vec<Bulk>, mut parts: Vec<Bytes>, staged: Option<Staged>) -> bool {
        let mut state = lock(&self.state);
        if state.service.is_none() {
            return false;
        }
        let since = Instant::now();
        state.pinned += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let empty = || Pin { since, _bulks: Vec::new(), parts: Vec::new(), staged: None };
        let pin = state.pins.entry(number).or_insert_with(empty);
        pin.staged = staged.or(pin.staged.take());
        pin._bulks.append(&mut bulks);
        pin.parts.append(&mut parts);
        true
    }

    /// Answers an RPC with a description that is to be pulled first.
    fn send_long(&self, number: u64, prepared: Prepared, reply: Reply) -> Result<()> {
        let len = (prepared.len as u64).to_le_bytes();
        let mut staging = self.memory.stage(prepared.len)?;
        prepared.pieces.iter().for_each(|piece| staging.append(piece));
        let descriptor = staging.bulk().descriptor().to_vec();
        let staged = Staged { memory: Arc::clone(&self.memory), staging: Some(staging) };
        if self.pin(number, Vec::new(), Vec::new(), Some(staged)) {
            reply.send(&[LONG, &len, &descriptor]);
        }
        Ok(())
    }
}

/// Whether small parts lie so, one behind the other, that pulling them from where they are takes few pulls.
fn are_together(parts: &[Bytes]) -> bool {
    let is_small = |part: &&Bytes| part.len() <= SMALL;
    // As the requester's cells can lie: it sorts those of one length.
    let follows = |parts: &[Bytes]| {
        let gap = addresses(&parts[1]).start.checked_sub(addresses(&parts[0]).end);
        parts[0].len() == parts[1].len() && gap.is_some_and(|gap| gap < CELL_UNIT as usize)
    };
    let total: usize = parts.iter().filter(is_small).map(Bytes::len).sum();
    let begin = parts.iter().take(1).filter(is_small).count();
    let breaks = parts.windows(2).filter(|parts| is_small(&&parts[1]) && !follows(parts)).count();
    (begin + breaks) * RUN <= total
}

fn addresses(part: &Bytes) -> Range<usize> {
    let start = part.as_ptr().addr();
    start..start + part.len()
}

impl State {
    fn unpin(&mut self, number: u64) -> Option<Pin> {
        let pin = self.pins.remove(&number)?;
        self.pinned -= pin.parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Some(pin)
    }

    /// Whether its requester has to let go of something first.
    fn is_full(&self) -> bool {
        self.pinned > MOST_PINNED
    }
}

impl Handler for Arc<Session> {
    fn asked(&self, message: &[u8], reply: Reply) {
        match Said::decode(message) {
            Ok(Said::Question { number, released, head }) => {
                self.release(released);
                self.question(number, head, reply);
            }
            Ok(Said::Keep { number }) => {
                reply.send(&[KEPT[usize::from(self.keep(number))]]);
            }
            // Dropped, it says that this is not understood.
            Ok(Said::Release { .. }) | Err(_) => drop(reply),
        }
    }

    fn told(&self, message: &[u8]) {
        if let Ok(Said::Release { released }) = Said::decode(message) {
            self.release(released);
        }
    }
}

impl Prepared {
    /// All of it in one piece.
    fn joined(self) -> Bytes {
        let mut all = Vec::with_capacity(self.len);
        self.pieces.iter().for_each(|piece| all.extend_from_slice(piece));
        all.into()
    }
}

/// The duty to answer a question.
struct Duty {
    session: Arc<Session>,
    number: u64,
    slot: Arc<Mutex<Slot>>,
}

impl Respond for Duty {
    fn respond(self: Box<Self>, reply: Option<Outgoing>) {
        // Nobody would release what is pinned for an answer that nobody wants.
        let reply = reply.filter(|_| self.is_wanted());
        let Self { session, number, slot } = *self;
        let prepared = reply.and_then(|reply| session.prepare(number, reply));
        failpoint!("margo.answer.half");
        let mut place = lock(&slot);
        match (std::mem::replace(&mut *place, Slot::Over), prepared) {
            (Slot::Rpc(rpc), Some(prepared)) => {
                drop(place);
                if prepared.len < session.instance.inline() {
                    let pieces: Vec<&[u8]> =
                        std::iter::once(DESCRIBED).chain(prepared.pieces.iter().map(|piece| &piece[..])).collect();
                    rpc.send(&pieces);
                } else {
                    // Dropped where it cannot be sent, the reply says so.
                    if session.send_long(number, prepared, rpc).is_err() {
                        let gone = lock(&session.state).unpin(number);
                        drop(gone);
                    }
                }
            }
            (Slot::Rpc(rpc), None) => {
                drop(place);
                rpc.send(&[REFUSED]);
            }
            (Slot::Waiting, Some(prepared)) => *place = Slot::Done(prepared),
            (Slot::Collector(responder), Some(prepared)) => {
                drop(place);
                lock(&session.state).held.remove(&number);
                responder.reply(DESCRIBED.to_vec(), vec![prepared.joined()]);
            }
            // Dropping a collector refuses; whoever comes to collect finds nothing, which says the same.
            (refused, _) => {
                drop(place);
                lock(&session.state).held.remove(&number);
                drop(refused);
            }
        }
        failpoint!("margo.answer.sent");
    }

    fn is_wanted(&self) -> bool {
        match &*lock(&self.slot) {
            Slot::Rpc(_) | Slot::Waiting => self.session.is_open(),
            Slot::Collector(responder) => responder.is_wanted(),
            Slot::Done(_) | Slot::Over => false,
        }
    }
}

/// A pull costs about as much as copying so many bytes at either side.
const RUN: usize = 32 << 10;

/// Parts stay pinned for so many silence limits after the last word of the requester, who counts on less.
pub(super) const PATIENCE: u32 = 2;

/// Bytes of one requester's answers from which on its further questions wait.
const MOST_PINNED: u64 = 64 << 20;

/// Questions of one requester that are not answered yet.
const MOST_HELD: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_parts_are_pulled_where_they_lie_together() {
        let memory = Bytes::from(vec![0; 8 << 20]);
        let cells = |len: usize, step: usize, count: usize| -> Vec<Bytes> {
            (0..count).map(|at| memory.slice(at * step..at * step + len)).collect()
        };
        assert!(are_together(&cells(4096, 4096, 64)) && are_together(&cells(1000, 1024, 64)));
        assert!(!are_together(&cells(4096, 4096, 7)) && !are_together(&cells(1000, 1064, 64)));
        assert!(!are_together(&cells(4096, 8192, 64)));
        let mut backwards = cells(4096, 4096, 64);
        backwards.reverse();
        assert!(!are_together(&backwards));
        // Other lengths, for which there are other cells.
        let mixed: Vec<Bytes> = (0..64).map(|at| memory.slice(at * 1024..at * 1024 + 1000 + at % 2)).collect();
        assert!(!are_together(&mixed));
        // What is large has no part in it.
        let mut scattered = cells(100, 8192, 20);
        scattered.push(memory.slice(1 << 20..8 << 20));
        assert!(!are_together(&scattered));
        assert!(are_together(&[memory.slice(0..1 << 20), memory.slice(1 << 20..2 << 20)]));
    }
}
