//! What comes from owners: answers, their parts, refusals, and ends of connections.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::MutexGuard;
use std::time::Instant;

use ucx_sys::UCS_OK;

use super::{Core, Driver, Link};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::ucx::calls::{After, Calls, Early};
use crate::fabric::ucx::context::failed;
use crate::fabric::ucx::message::{Described, Kind, Message};
use crate::fabric::ucx::numbered::Numbered;
use crate::fabric::ucx::operation::{About, Body, Data, Event, Finished, Operation};
use crate::fabric::{Answer, Head, Lander, Landing, Landings};
use crate::failpoint::failpoint;
use crate::sync::lock;

/// Takes a message that came whole from where UCX has it, so that its bytes are copied once; `false` leaves it for later.
///
/// It runs within a step of UCX and under the driver's lock: what chooses memory does not wait, and knows nothing of this.
pub(super) fn take(
    links: &mut Numbered<Link>,
    calls: &mut Calls,
    after: &mut After,
    now: Instant,
    header: &[u8],
    bytes: &[u8],
) -> bool {
    // What is no message, or not for this process, is thrown away.
    let Ok(message) = Message::decode(header) else { return true };
    let Some(link) = links.get_mut(&message.token).filter(|known| known.failed.is_none()) else { return true };
    let Message { token, number, index, here, .. } = message;
    link.since = now;
    match message.kind {
        Kind::Answer | Kind::Apart if !calls.are_early(number) => {}
        Kind::Part if calls.came(Some(token), number, here) => return true,
        Kind::Part => return calls.fill(token, number, index, here, bytes, after),
        _ => return false,
    }
    failpoint!("ucx.answered");
    let Some(mut land) = calls.begin(token, number) else {
        calls.unwanted(token, number, message.rest());
        return true;
    };
    let answer = message.describe(header, bytes).and_then(|(described, _)| {
        let mut landings = choose(&mut land, &described)?;
        fill(&message, bytes, &mut landings)?;
        Ok(Answer { head: Head::from_slice(described.head), parts: landings })
    });
    match answer {
        Ok(Answer { head, parts }) if message.rest() > 0 => {
            let unused = calls.expect(number, head, parts, here as usize);
            debug_assert!(unused.is_ok_and(|early| early.is_empty()), "the call is open, and nothing came before");
        }
        answer => calls.end_before(number, answer, Some(message.rest()), after),
    }
    after.drop_later(land);
    true
}

/// Memory for the parts of an answer.
fn choose(land: &mut Lander, described: &Described<'_>) -> Result<Landings> {
    let landed = catch_unwind(AssertUnwindSafe(|| land.land(described.head, &described.lengths)));
    let landings = landed.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Cancelled, "request", "what chooses memory for the answer panicked"))
    })?;
    let fits = landings.len() == described.lengths.len()
        && landings.iter().zip(&*described.lengths).all(|(landing, len)| landing.len() as u64 == *len);
    match fits {
        true => Ok(landings),
        false => Err(Error::new(ErrorKind::Corrupt, "request", "the memory that was chosen does not fit the answer")),
    }
}

/// Copies the parts that came with an answer to where they belong.
fn fill(message: &Message, bytes: &[u8], landings: &mut [Landing]) -> Result<()> {
    let mut rest = &bytes[if message.is_long() { message.described() } else { 0 }..];
    let landings = &mut landings[..message.here as usize];
    for landing in &mut *landings {
        let taken = landing.write(rest);
        rest = &rest[taken..];
    }
    match rest.is_empty() && landings.iter().all(Landing::is_full) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Corrupt, "receive", "an answer of other lengths than it says")),
    }
}

impl Driver {
    pub(super) fn handle(&self, event: Event) {
        match event {
            Event::Message { header, data } => self.hear(&header, data),
            Event::Finished(finished) => self.finished(finished),
            Event::Broken { link, status } => {
                let error = failed(self.context.ucx(), "reach the owner any more", status);
                let error = Error::new(ErrorKind::PeerDown, "request", error.context().to_owned());
                let mut after = After::default();
                self.fail(&mut lock(&self.core), link, &error, &mut after);
                after.run();
            }
            Event::Closed | Event::Met => {}
        }
    }

    fn release(&self, data: Data) {
        lock(&self.core).worker.release(data);
    }

    /// A message. What does not belong to an open call of a connection is thrown away: it is late, or no peer's.
    fn hear(&self, header: &[u8], data: Data) {
        let Ok(message) = Message::decode(header) else { return self.release(data) };
        let (link, number) = (message.token, message.number);
        {
            let mut core = lock(&self.core);
            match core.links.get_mut(&link).filter(|known| known.failed.is_none()) {
                Some(known) => known.since = Instant::now(),
                None => {
                    core.worker.release(data);
                    return;
                }
            }
        }
        match message.kind {
            Kind::Refusal => {
                self.release(data);
                if self.is_wanted(&message) {
                    let error = Error::new(ErrorKind::Cancelled, "request", "the owner did not answer the question");
                    self.end(number, Err(error));
                }
            }
            Kind::Apart | Kind::Answer => self.answer(&message, header, data),
            Kind::Part => self.part(&message, data),
            Kind::Ask | Kind::Abandon | Kind::Alive => self.release(data),
        }
    }

    fn end(&self, number: u64, end: Result<Answer>) {
        self.end_before(number, end, Some(0));
    }

    fn end_before(&self, number: u64, end: Result<Answer>, parts: Option<usize>) {
        let mut after = After::default();
        let mut core = lock(&self.core);
        core.calls.end_before(number, end, parts, &mut after);
        self.give_back(&mut core, &mut after);
        drop(core);
        after.run();
    }

    /// Whether an answer, or its refusal, belongs to a call that has not been given up. A peer knows the numbers of other peers'
    /// calls, so nothing is done to a call before this was asked.
    fn is_wanted(&self, message: &Message) -> bool {
        let (link, number) = (message.token, message.number);
        let mut core = lock(&self.core);
        if core.calls.is_wanted(link, number) {
            return true;
        }
        core.calls.unwanted(link, number, message.rest());
        false
    }

    /// An answer begins.
    fn answer(&self, message: &Message, header: &[u8], data: Data) {
        let (link, number) = (message.token, message.number);
        failpoint!("ucx.answered");
        if !self.is_wanted(message) {
            return self.release(data);
        }
        if let Some(bytes) = data.bytes() {
            self.answer_here(message, header, bytes);
            return self.release(data);
        }
        if !message.is_long() && message.parts() == 1 && message.kind == Kind::Answer {
            // The one part goes where it belongs.
            let Some((described, landings)) = self.land(message, header, &[]) else { return self.release(data) };
            let mut core = lock(&self.core);
            let early = match core.calls.expect(number, Head::from_slice(described.head), landings, 0) {
                Ok(early) => early,
                Err(unused) => {
                    core.calls.unwanted(link, number, 0);
                    core.worker.release(data);
                    drop(core);
                    return drop(unused);
                }
            };
            // No part of such an answer comes by itself.
            early.into_iter().for_each(|early| core.worker.release(early.data));
            let mut after = After::default();
            let taken = core.calls.part(link, number, 0, 1, data, &mut after);
            return self.receive(core, message, taken, after);
        }
        if data.len() > MOST_PACKED {
            let error = Error::new(ErrorKind::Corrupt, "receive", "an answer of more small parts than were asked for");
            self.release(data);
            return self.end_before(number, Err(error), Some(message.rest()));
        }
        // Several came together: they are fetched, and copied to where they belong.
        let about = About::Packed { number };
        let mut core = lock(&self.core);
        if !core.calls.claim(link, number) {
            core.calls.unwanted(link, number, message.rest());
            core.worker.release(data);
            return;
        }
        let body = Body::Own(vec![0; data.len()]);
        let operation = Operation { about, header: header.to_vec(), body };
        let finished = core.worker.receive(data, operation);
        drop(core);
        if let Some(finished) = finished {
            self.finished(finished);
        }
    }

    /// An answer whose message is here.
    fn answer_here(&self, message: &Message, header: &[u8], bytes: &[u8]) {
        let number = message.number;
        let Some((described, mut landings)) = self.land(message, header, bytes) else { return };
        let (head, rest) = (Head::from_slice(described.head), message.rest());
        if let Err(error) = fill(message, bytes, &mut landings) {
            return self.end_before(number, Err(error), Some(rest));
        }
        if rest == 0 {
            return self.end(number, Ok(Answer { head, parts: landings }));
        }
        let mut core = lock(&self.core);
        let early = core.calls.expect(number, head, landings, message.here as usize);
        if early.is_err() {
            core.calls.unwanted(message.token, number, rest);
        }
        drop(core);
        for Early { index, here, data } in early.into_iter().flatten() {
            self.part(&Message::part(message.token, number, index, here), data);
        }
    }

    /// Where the parts of an answer go; `None` when that ended the call, or nobody wants them.
    fn land<'a>(&self, message: &Message, header: &'a [u8], bytes: &'a [u8]) -> Option<(Described<'a>, Landings)> {
        let number = message.number;
        let described = match message.describe(header, bytes) {
            Ok((described, _)) => described,
            Err(error) => {
                self.end_before(number, Err(error), Some(message.rest()));
                return None;
            }
        };
        let mut land = {
            let mut core = lock(&self.core);
            let land = core.calls.begin(message.token, number);
            if land.is_none() {
                // It was given up since it was looked for.
                core.calls.unwanted(message.token, number, message.rest());
            }
            land?
        };
        match choose(&mut land, &described) {
            Ok(landings) => Some((described, landings)),
            Err(error) => {
                self.end_before(number, Err(error), Some(message.rest()));
                None
            }
        }
    }

    /// Parts that come apart from their answer.
    fn part(&self, message: &Message, data: Data) {
        let Message { token: link, number, index, here, .. } = *message;
        let mut core = lock(&self.core);
        let mut after = After::default();
        let taken = core.calls.part(link, number, index, here, data, &mut after);
        self.receive(core, message, taken, after);
    }

    fn receive(
        &self,
        mut core: MutexGuard<'_, Core>,
        message: &Message,
        taken: std::result::Result<Option<(Landing, Data)>, Data>,
        mut after: After,
    ) {
        let Message { number, index, .. } = *message;
        match taken {
            Ok(None) => {
                self.give_back(&mut core, &mut after);
                drop(core);
                after.run();
            }
            Ok(Some((landing, data))) => {
                let (about, body) = (About::Part { number, index }, Body::Landing(landing));
                let finished = core.worker.receive(data, Operation { about, header: Vec::new(), body });
                drop(core);
                failpoint!("ucx.landing");
                if let Some(finished) = finished {
                    self.finished(finished);
                }
            }
            Err(data) => {
                core.worker.release(data);
                core.calls.misfit(message.token, number, message.here, &mut after);
                self.give_back(&mut core, &mut after);
                drop(core);
                after.run();
            }
        }
    }

    fn landed(&self, number: u64, index: u32, landing: Landing) {
        let mut after = After::default();
        let mut core = lock(&self.core);
        let unwanted = core.calls.landed(number, index, landing, &mut after);
        self.give_back(&mut core, &mut after);
        drop(core);
        drop(unwanted);
        after.run();
    }

    fn finished(&self, finished: Finished) {
        let Finished { operation, status } = finished;
        let is_good = status == UCS_OK;
        match (operation.about, operation.body) {
            (About::Part { number, index }, Body::Landing(landing)) if is_good => self.landed(number, index, landing),
            (About::Packed { number }, Body::Own(bytes)) if is_good => match Message::decode(&operation.header) {
                Ok(message) => self.answer_here(&message, &operation.header, &bytes),
                Err(error) => self.end(number, Err(error)),
            },
            (About::Part { number, .. } | About::Packed { number }, body) => {
                drop(body);
                // Of a call that nobody waits for, the others may still come.
                if !matches!(operation.about, About::Part { .. }) || !lock(&self.core).calls.came(None, number, 1) {
                    let error = failed(self.context.ucx(), "fetch an answer", status);
                    let error = Error::new(ErrorKind::PeerDown, "request", error.context().to_owned());
                    // A part has no header.
                    let rest = Message::decode(&operation.header).map_or(0, |message| message.rest());
                    self.end_before(number, Err(error), Some(rest));
                    lock(&self.core).calls.came(None, number, 1);
                }
            }
            // A question that was not sent fails by its endpoint, which UCX reports; what is sent is sent.
            (About::Message | About::Answer { .. } | About::Read { .. }, _) => {}
        }
    }
}

/// Bytes of small parts that come together.
const MOST_PACKED: usize = 4 << 20;
