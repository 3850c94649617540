//! `Backlog`: questions of requesters that leave too much unread of what they asked for before.

use std::collections::{BTreeMap, HashSet, btree_map, hash_map};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::{Client, Desk, Order, Shared};
use crate::fabric::ucx::Options;
use crate::fabric::ucx::numbered::{Numbered, Seeded};
use crate::fabric::{Answers, Asked, Head, Incoming, Outgoing, Responder, Service};
use crate::mutant::mutant;
use crate::sync::lock;

/// Questions that the service has not seen yet, of the connections that have any.
#[derive(Default)]
pub(super) struct Backlog(Numbered<Questions>);

/// Those of one connection, by numbers, which requesters count up: in the order in which they were asked.
#[derive(Default)]
struct Questions {
    heads: BTreeMap<u64, Head>,
    bytes: u64,
}

/// Questions that the service has, and what it has answered.
#[derive(Default)]
pub(super) struct Open {
    /// By connection and number, which is the requester's choice.
    asked: HashSet<Asked, Seeded>,
    /// Bytes of all answers so far, by connection.
    answered: Numbered<u64>,
}

impl Backlog {
    pub(super) fn has(&self, connection: u64) -> bool {
        self.0.contains_key(&connection)
    }

    /// Keeps a question for later; `false` where its requester has too many.
    pub(super) fn keep(&mut self, asked: Asked, head: &[u8], options: &Options) -> bool {
        let questions = self.0.entry(asked.connection).or_default();
        let bytes = questions.bytes + head.len() as u64;
        if questions.heads.len() >= options.held || bytes > options.queued {
            return false;
        }
        // One of a number that is there already is no question.
        if let btree_map::Entry::Vacant(place) = questions.heads.entry(asked.number) {
            place.insert(Head::from_slice(head));
            questions.bytes = bytes;
        }
        true
    }

    /// Forgets a question; whether it was there.
    pub(super) fn remove(&mut self, asked: Asked) -> bool {
        if mutant!("backlog_abandoned") {
            return false;
        }
        let hash_map::Entry::Occupied(mut questions) = self.0.entry(asked.connection) else { return false };
        let Some(head) = questions.get_mut().heads.remove(&asked.number) else { return false };
        questions.get_mut().bytes -= head.len() as u64;
        if questions.get().heads.is_empty() {
            questions.remove();
        }
        true
    }
}

impl Open {
    /// Ends a question; whether it was open.
    pub(super) fn remove(&mut self, asked: Asked) -> bool {
        self.asked.remove(&asked)
    }

    /// The same, with an answer.
    pub(super) fn answer(&mut self, asked: Asked, reply: Option<&Outgoing>) -> bool {
        let is_open = self.remove(asked);
        if is_open {
            *self.answered.entry(asked.connection).or_default() += bytes(reply);
        }
        is_open
    }

    pub(super) fn contains(&self, asked: Asked) -> bool {
        self.asked.contains(&asked)
    }

    /// Ends all questions of a connection.
    pub(super) fn forget(&mut self, connection: u64) {
        self.asked.retain(|asked| asked.connection != connection);
        self.answered.remove(&connection);
    }
}

/// Gives a question to the service; `false` where its requester has to read more first.
///
/// What was answered counts at once, before this thread has seen the order: in one step of UCX come many questions.
pub(super) fn hand(
    shared: &Arc<Shared>,
    service: &Arc<dyn Service>,
    client: &Client,
    asked: Asked,
    head: &[u8],
) -> bool {
    {
        let mut open = lock(&shared.open);
        let answered = match mutant!("unread_unordered") {
            true => 0,
            false => open.answered.get(&asked.connection).copied().unwrap_or_default(),
        };
        if client.unread(answered) > shared.options.queued && !mutant!("unread_limit") {
            return false;
        }
        if open.asked.len() >= shared.options.held {
            drop(open);
            shared.order(Order::Answer { asked, reply: None });
            return true;
        }
        if !open.asked.insert(asked) {
            return true;
        }
    }
    let responder = Responder::among(Arc::clone(shared) as Arc<dyn Answers>, asked);
    let call = Incoming { head, from: client.from, connection: asked.connection, responder };
    // Its responder refuses as the panic drops it; others are answered on.
    let _ = catch_unwind(AssertUnwindSafe(|| service.answer(call)));
    true
}

impl Desk {
    /// Gives questions to the service whose requesters have read enough, and forgets those of who is gone; whether any were given.
    pub(super) fn catch_up(&mut self) -> bool {
        let Self { shared, service, clients, backlog, .. } = self;
        let mut moved = false;
        backlog.0.retain(|&connection, questions| {
            let Some(client) = clients.get(&connection) else { return false };
            for _ in 0..FAIR {
                let Some(first) = questions.heads.first_entry() else { break };
                let asked = Asked { connection, number: *first.key() };
                if !hand(shared, service, client, asked, first.get()) {
                    break;
                }
                questions.bytes -= first.remove().len() as u64;
                moved = true;
            }
            !questions.heads.is_empty()
        });
        moved
    }
}

/// Bytes of an answer.
pub(super) fn bytes(reply: Option<&Outgoing>) -> u64 {
    reply.map_or(0, |reply| (reply.head.len() + reply.parts.iter().map(|part| part.len()).sum::<usize>()) as u64)
}

/// Questions of one requester before others have their turn.
const FAIR: usize = 64;
