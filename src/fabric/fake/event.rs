//! `Event`: what happens at a virtual time, and what comes of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Net;
use super::end::{Duty, Knock};
use super::state::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Head, Incoming, Landings, Outgoing, Pieces, Responder};

/// An event with the way that it takes, if it is a message.
pub(super) struct Posted {
    pub(super) route: Option<Route>,
    pub(super) event: Event,
}

#[derive(Clone, Copy)]
pub(super) struct Route {
    pub(super) connection: u64,
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
}

pub(super) enum Event {
    /// Somebody wants a connection.
    Connect(Knock),
    /// A question reaches its owner.
    Ask { question: u64, head: Vec<u8> },
    /// The head of an answer reaches its requester.
    Answer { question: u64, outgoing: Outgoing, first: Duration, last: Duration },
    /// The last byte of an answer does.
    Land(Transfer),
    /// Word that there is no answer.
    Refuse { question: u64, error: Error },
    /// Word to the owner that nobody waits any more.
    Forget { question: u64 },
    /// What was cut has been so for the silence limit.
    Silence { from: IpAddr, to: IpAddr, since: Duration },
    /// Word that the listener is gone.
    Close { connection: u64 },
    /// A test's own.
    Call(Box<dyn FnOnce() + Send>),
}

/// Bytes between the first and the last.
pub(super) struct Transfer {
    question: u64,
    head: Head,
    parts: Pieces,
    landings: Landings,
    first: Duration,
    last: Duration,
}

impl Event {
    /// Tells kinds of events apart in the digest.
    pub(super) fn code(&self) -> u64 {
        match self {
            Self::Connect(_) => 1 << 56,
            Self::Ask { .. } => 2 << 56,
            Self::Answer { .. } => 3 << 56,
            Self::Land(_) => 4 << 56,
            Self::Refuse { .. } => 5 << 56,
            Self::Forget { .. } => 6 << 56,
            Self::Silence { .. } => 7 << 56,
            Self::Close { .. } => 8 << 56,
            Self::Call(_) => 9 << 56,
        }
    }
}

impl Transfer {
    /// Writes what has arrived at that time.
    pub(super) fn write_until(&mut self, now: Duration) {
        let all: u128 = self.parts.iter().map(|part| part.len() as u128).sum();
        let span = self.last.saturating_sub(self.first).as_nanos();
        let passed = now.saturating_sub(self.first).as_nanos().min(span);
        let mut left = usize::try_from((all * passed).checked_div(span).unwrap_or(0)).unwrap_or(usize::MAX);
        for (landing, part) in self.landings.iter_mut().zip(&self.parts) {
            let count = part.len().min(left);
            landing.write(&part[..count]);
            left -= count;
        }
    }

    fn complete(mut self) -> Answer {
        for (landing, part) in self.landings.iter_mut().zip(&self.parts) {
            landing.write(part);
        }
        Answer { head: self.head, parts: self.landings }
    }
}

impl Net {
    /// Makes an event happen. Whoever calls this holds no lock: it runs services, and what chooses landings.
    pub(super) fn deliver(&self, posted: Posted) {
        if let Some(posted) = self.arrives(posted) {
            self.happen(posted.route, posted.event);
        }
    }

    /// The event, unless its message is stopped on the way.
    fn arrives(&self, posted: Posted) -> Option<Posted> {
        let Some(route) = posted.route else { return Some(posted) };
        self.with(|state| {
            if state.connections.get(&route.connection).is_none_or(|connection| connection.ended.is_some()) {
                state.tear(posted);
                None
            } else if state.cut_since(route.from, route.to).is_some() {
                state.stall(posted);
                None
            } else {
                Some(posted)
            }
        })
    }

    fn happen(&self, route: Option<Route>, event: Event) {
        match event {
            Event::Connect(knock) => self.with(|state| knock.answer(state)),
            Event::Ask { question, head } => self.ask(route, question, &head),
            Event::Answer { question, outgoing, first, last } => self.land(route, question, outgoing, first, last),
            Event::Land(transfer) => {
                let question = transfer.question;
                let answer = transfer.complete();
                self.with(|state| state.finish(question, Ok(answer)));
            }
            Event::Refuse { question, error } => self.with(|state| state.finish(question, Err(error))),
            Event::Forget { question } => self.with(|state| {
                if let Some((_, wanted)) = state.owed.get(&question) {
                    wanted.store(false, Ordering::Relaxed);
                }
            }),
            Event::Silence { from, to, since } => self.with(|state| {
                if state.cut_since(from, to) != Some(since) {
                    return;
                }
                let between = |one: &Connection| {
                    (one.requester, one.owner) == (from, to) || (one.requester, one.owner) == (to, from)
                };
                let silent = state.connections.iter().filter(|(_, one)| between(one)).map(|(id, _)| *id);
                for connection in silent.collect::<Vec<_>>() {
                    state.end(connection, "the peer shows no sign of life");
                }
            }),
            Event::Close { connection } => self.with(|state| state.end(connection, "the peer ended")),
            Event::Call(call) => call(),
        }
    }

    fn ask(&self, route: Option<Route>, question: u64, head: &[u8]) {
        let found = self.with(|state| {
            let connection = state.connections.get(&route?.connection)?;
            let service = Arc::clone(&state.listeners.get(&connection.listener)?.service);
            let from = connection.from;
            let wanted = Arc::new(AtomicBool::new(true));
            state.owed.insert(question, (route?.connection, Arc::clone(&wanted)));
            Some((service, from, route?.connection, wanted))
        });
        if let Some((service, from, connection, wanted)) = found {
            let responder = Responder::new(Box::new(Duty::new(self.clone(), question, wanted)));
            service.answer(Incoming { head, from, connection, responder });
        }
    }

    fn land(&self, route: Option<Route>, question: u64, outgoing: Outgoing, first: Duration, last: Duration) {
        let Outgoing { head, parts } = outgoing;
        if parts.is_empty() {
            self.with(|state| state.finish(question, Ok(Answer { head, parts: Landings::new() })));
            return;
        }
        let land = self.with(|state| state.questions.get_mut(&question).and_then(|open| open.land.take()));
        let Some(mut land) = land else { return };
        let lens: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
        let landings = land.land(&head, &lens).and_then(|landings| fitting(landings, &lens));
        drop(land);
        match landings {
            Ok(landings) => {
                let transfer = Transfer { question, head, parts, landings, first, last };
                self.with(|state| state.post(last, route, Event::Land(transfer)));
            }
            Err(error) => self.with(|state| state.finish(question, Err(error))),
        }
    }
}

/// The landings, if they are as many and as long as the parts.
fn fitting(landings: Landings, lens: &[u64]) -> Result<Landings> {
    let fit = landings.len() == lens.len()
        && landings
            .iter()
            .zip(lens)
            .all(|(landing, len)| landing.len() as u64 == *len && landing.missing() as u64 == *len);
    match fit {
        true => Ok(landings),
        false => Err(Error::new(ErrorKind::Corrupt, "get", "the landings chosen are not those asked for")),
    }
}
