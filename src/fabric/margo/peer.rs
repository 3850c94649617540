//! `MargoPeer`: an owner that was reached.
//!
//! ```text
//!   request ── RPC ──> owner        the progress thread reads the answer, lands what is in it, and pulls the rest
//!   Ask: land, completer            the control connection carries signs of life, and answers that were held
//! ```

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Wake as _};
use std::time::{Duration, Instant};

use super::Options;
use super::ask::Ask;
use super::memory::Memory;
use super::native;
use super::native::{Address, Bulk, Flight, Instance, Token, Transfer};
use super::session::PATIENCE;
use super::wire::{Control, MOST_RELEASED, Numbers, Said};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::poller::{Poller, after};
use crate::fabric::{Answer, Call, MAX_HEAD, Peer, Spot};
use crate::failpoint::failpoint;
use crate::pending::{Pending, Source};
use crate::sync::lock;

/// The handle of a connection, which ends with it.
pub(super) struct MargoPeer {
    pub(super) link: Arc<Link>,
    /// Of this handle: open questions keep it.
    this: Weak<MargoPeer>,
}

/// A connection.
pub(super) struct Link {
    pub(super) contact: SocketAddr,
    pub(super) instance: Arc<Instance>,
    pub(super) address: Arc<Address>,
    pub(super) memory: Arc<Memory>,
    pub(super) token: Token,
    pub(super) silence: Duration,
    /// Number of the owner's memory.
    owner: u64,
    spin: Duration,
    /// The process that made it: a forked child must not touch it.
    generation: u32,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Gone with its end: what is still on its way by Margo keeps no descriptor.
    control: Option<Arc<dyn Peer>>,
    open: HashMap<u64, Arc<Ask>>,
    /// Questions that wait for others to be answered.
    queue: VecDeque<Arc<Ask>>,
    in_flight: usize,
    /// The owner's memory, as it was described before.
    sources: HashMap<u32, Arc<Bulk>>,
    /// By the number of a segment in keys, the source that it is, and how far from its beginning.
    spots: HashMap<u16, (u32, u64)>,
    /// Whether what was found out about spots was wrong once.
    is_misled: bool,
    /// RPCs that are not over, by numbers of their own.
    flights: HashMap<u64, Open>,
    transfers: HashMap<u64, Arc<Transfer>>,
    /// Whether somebody looks after what takes long.
    is_ticking: bool,
    watch: Option<Arc<Poller>>,
    /// Numbers of answers whose parts the owner may let go of, which the next question says.
    released: Vec<u8>,
    /// Whether they are said alone, soon, if there is no question.
    is_lazy: bool,
    failed: Option<Error>,
}

/// An RPC that is not over.
struct Open {
    flight: Arc<Flight>,
    /// For how many ticks no bytes have been on their way.
    quiet: u32,
}

impl State {
    /// Answers whose parts are being pulled, and RPCs whose answers are not behind any bytes, and late.
    fn tick(&mut self, is_flying: bool) -> (Vec<u64>, Vec<Arc<Flight>>) {
        let numbers = self.transfers.keys().copied().collect();
        let mut late = Vec::new();
        for Open { flight, quiet } in self.flights.values_mut() {
            *quiet = if is_flying { 0 } else { *quiet + 1 };
            if *quiet > LATE {
                late.push(Arc::clone(flight));
            }
        }
        self.is_ticking = !self.flights.is_empty() || !self.transfers.is_empty();
        (numbers, late)
    }

    /// What one message may release of it.
    fn take_released(&mut self) -> Vec<u8> {
        let rest = self.released.split_off(self.released.len().min(8 * MOST_RELEASED));
        std::mem::replace(&mut self.released, rest)
    }
}

impl MargoPeer {
    /// Takes over a control connection on which Margo's address was told.
    pub(super) fn new(
        control: Arc<dyn Peer>,
        contact: SocketAddr,
        (instance, address): (Arc<Instance>, Arc<Address>),
        memory: Arc<Memory>,
        token: Token,
        options: &Options,
    ) -> Arc<Self> {
        let link = Arc::new(Link {
            contact,
            instance,
            address,
            memory,
            token,
            silence: options.silence,
            owner: control.instance(),
            spin: options.spin,
            generation: crate::process::generation(),
            next: AtomicU64::new(1),
            state: Mutex::new(State { control: Some(Arc::clone(&control)), ..State::default() }),
        });
        link.watch(control);
        Arc::new_cyclic(|this| Self { link, this: Weak::clone(this) })
    }
}

impl Peer for MargoPeer {
    fn instance(&self) -> u64 {
        self.link.owner
    }

    fn is_up(&self) -> bool {
        self.link.is_own() && self.link.control().is_some_and(|control| control.is_up())
    }

    fn request(self: Arc<Self>, call: Call) -> Pending<Answer> {
        self.link.request(call, self.this.upgrade())
    }

    fn close(&self) {
        self.link.close();
    }
}

impl Drop for MargoPeer {
    fn drop(&mut self) {
        self.link.close();
    }
}

impl fmt::Debug for MargoPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MargoPeer({}, instance {:016x})", self.link.contact, self.instance())
    }
}

impl Link {
    fn is_own(&self) -> bool {
        self.generation == crate::process::generation()
    }

    /// Learns of the owner's end by a question that it never answers.
    fn watch(self: &Arc<Self>, control: Arc<dyn Peer>) {
        let link = Arc::downgrade(self);
        let watch = control.request(Call::small(Control::Watch.encode()));
        let poller = Poller::new(watch, move |result| {
            let Some(link) = link.upgrade() else { return };
            link.fail(match result {
                Err(error) if error.kind() == ErrorKind::PeerDown => error,
                _ => Error::new(ErrorKind::PeerDown, "request", format!("{} ended the connection", link.contact)),
            });
        });
        lock(&self.state).watch = Some(Arc::clone(&poller));
        poller.wake();
    }

    /// The control connection, until the end.
    pub(super) fn control(&self) -> Option<Arc<dyn Peer>> {
        lock(&self.state).control.clone()
    }

    fn request(self: &Arc<Self>, call: Call, handle: Option<Arc<MargoPeer>>) -> Pending<Answer> {
        if !self.is_own() {
            let context = "connections of the parent process are not this one's; open the store again after fork";
            return Pending::ready(Err(Error::new(ErrorKind::Forked, "request", context)));
        }
        if let Err(error) = native::exits() {
            return Pending::ready(Err(error));
        }
        let Call { head, land, .. } = call;
        if head.len() > MAX_HEAD {
            let context = format!("a question of {} bytes, more than {MAX_HEAD}", head.len());
            return Pending::ready(Err(Error::new(ErrorKind::TooLarge, "request", context)));
        }
        let (completer, pending) = Pending::channel();
        let ask = Ask::new(self, self.next.fetch_add(1, Relaxed), head, land, completer, handle);
        let mut state = lock(&self.state);
        if let Some(error) = &state.failed {
            let context = format!("{}: the connection ended: {}", self.contact, error.context());
            drop(state);
            return Pending::ready(Err(Error::new(ErrorKind::PeerDown, "request", context)));
        }
        state.open.insert(ask.number, Arc::clone(&ask));
        if state.in_flight < AT_ONCE {
            state.in_flight += 1;
            drop(state);
            // The bytes first: their way is long, and the owner answers while they are on it.
            let early = ask.prepare_early().map(|piece| ask.pull_early(piece));
            self.post(&ask);
            if let Some(early) = early {
                early.go_on();
            }
        } else {
            state.queue.push_back(Arc::clone(&ask));
        }
        Pending::from_source(Waiting { pending: Some(pending), ask })
    }

    /// Asks by RPC.
    fn post(self: &Arc<Self>, ask: &Arc<Ask>) {
        let head = ask.begin();
        let released = lock(&self.state).take_released();
        let said = Said::Question { number: ask.number, released: Numbers(&released), head: &head };
        let prefix = said.prefix(&self.token);
        let (link, asked) = (Arc::clone(self), Arc::clone(ask));
        let done = move |result: Result<&[u8]>| {
            asked.answered(result);
            link.advance();
        };
        if let Err(error) = self.say(&[&prefix, &head], done) {
            ask.end(Err(error));
            self.advance();
        }
        failpoint!("margo.asked");
    }

    /// Says something that is answered, and gives it up when the connection ends.
    pub(super) fn say(
        self: &Arc<Self>,
        message: &[&[u8]],
        done: impl FnOnce(Result<&[u8]>) + Send + 'static,
    ) -> Result<()> {
        let number = self.next.fetch_add(1, Relaxed);
        let link = Arc::clone(self);
        let done = move |result: Result<&[u8]>| {
            let open = lock(&link.state).flights.remove(&number);
            drop(open);
            done(result);
        };
        // Without a limit: an answer comes behind the bytes that were asked for by then, however slow the link is; that the owner lives
        // is shown by the control connection.
        let flight = self.instance.ask(&self.address, message, None, done)?;
        let mut state = lock(&self.state);
        if state.failed.is_some() {
            drop(state);
            flight.cancel();
        } else if !flight.is_over() {
            state.flights.insert(number, Open { flight, quiet: 0 });
            let begins = !std::mem::replace(&mut state.is_ticking, true);
            drop(state);
            if begins {
                self.tick_later();
            }
        }
        Ok(())
    }

    /// A question is not in flight any more: another one may be.
    fn advance(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        let next = loop {
            match state.queue.pop_front() {
                Some(ask) if ask.is_abandoned() => {}
                next => break next,
            }
        };
        if next.is_none() {
            state.in_flight -= 1;
        }
        drop(state);
        if let Some(ask) = next {
            self.post(&ask);
        }
    }

    /// Forgets a question that has ended.
    pub(super) fn forget(&self, number: u64) {
        let mut state = lock(&self.state);
        let gone = (state.open.remove(&number), state.transfers.remove(&number));
        drop(state);
        drop(gone);
    }

    /// Keeps a transfer, so that it ends with its question or the connection.
    pub(super) fn keep(self: &Arc<Self>, number: u64, transfer: &Arc<Transfer>) {
        let mut state = lock(&self.state);
        if !state.open.contains_key(&number) {
            drop(state);
            return transfer.cancel(abandoned());
        }
        state.transfers.insert(number, Arc::clone(transfer));
        let begins = !std::mem::replace(&mut state.is_ticking, true);
        drop(state);
        if begins {
            self.tick_later();
        }
    }

    /// Looks twice a silence after what takes long, as long as there is any: tells the owner which parts are still being pulled, so
    /// that it keeps them where they are, and gives up RPCs that are not answered though nothing is in the way.
    fn tick_later(self: &Arc<Self>) {
        let link = Arc::downgrade(self);
        after(self.silence / 2, move || {
            let Some(link) = link.upgrade() else { return };
            if let Err(error) = native::exits() {
                return link.fail(error);
            }
            let mut state = lock(&link.state);
            let (numbers, late) = state.tick(link.address.is_flying());
            let goes_on = state.is_ticking;
            let control = state.control.clone();
            drop(state);
            for number in numbers {
                let Some(control) = control.clone() else { break };
                let kept = control.request(Call::small(Control::Keep { number }.encode()));
                // Whether they are, is asked when all are here.
                Poller::new(kept, |_| {}).wake();
            }
            late.iter().for_each(|flight| flight.cancel());
            if goes_on {
                link.tick_later();
            }
        });
    }

    pub(super) fn stop_transfer(&self, number: u64) {
        let transfer = lock(&self.state).transfers.remove(&number);
        if let Some(transfer) = transfer {
            transfer.cancel(abandoned());
        }
    }

    /// The owner's memory by its description; what has a number is made once.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn source(&self, id: u32, descriptor: &[u8]) -> Result<Arc<Bulk>> {
        if let Some(known) = lock(&self.state).sources.get(&id).filter(|_| id > 0) {
            return Ok(Arc::clone(known));
        }
        let source = Arc::new(Bulk::of_peer(&self.instance, descriptor)?);
        if id > 0 {
            lock(&self.state).sources.insert(id, Arc::clone(&source));
        }
        Ok(source)
    }

    /// The source that holds a spot, its number, and where in it; as answers before have shown.
    pub(super) fn place_of(&self, spot: Spot) -> Option<(Arc<Bulk>, u32, u64)> {
        let state = lock(&self.state);
        let (id, base) = state.spots.get(&spot.segment)?;
        Some((Arc::clone(state.sources.get(id)?), *id, base.checked_add(spot.offset)?))
    }

    /// An answer has shown where in a source a spot is.
    pub(super) fn learn(&self, spot: Spot, source: u32, offset: u64) {
        let mut state = lock(&self.state);
        if let Some(base) = offset.checked_sub(spot.offset).filter(|_| source > 0 && !state.is_misled) {
            state.spots.insert(spot.segment, (source, base));
        }
    }

    /// Nothing is pulled any more before the answer says where from.
    pub(super) fn unlearn(&self) {
        let mut state = lock(&self.state);
        state.is_misled = true;
        state.spots.clear();
    }

    /// Tells the owner that the parts of an answer are not needed any more: with the next question, or soon.
    pub(super) fn release(self: &Arc<Self>, number: u64) {
        let mut state = lock(&self.state);
        state.released.extend_from_slice(&number.to_le_bytes());
        let is_full = state.released.len() >= 8 * MOST_RELEASED;
        let begins = !is_full && !std::mem::replace(&mut state.is_lazy, true);
        drop(state);
        if is_full {
            self.say_released();
        }
        if begins {
            let link = Arc::downgrade(self);
            after(LAZY, move || {
                let Some(link) = link.upgrade() else { return };
                lock(&link.state).is_lazy = false;
                link.say_released();
            });
        }
    }

    fn say_released(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        let released = state.take_released();
        let is_open = state.failed.is_none();
        drop(state);
        if is_open && !released.is_empty() {
            let prefix = Said::Release { released: Numbers(&released) }.prefix(&self.token);
            self.instance.tell(&self.address, &[&prefix]);
        }
    }

    fn close(&self) {
        let is_first =
            self.end(Error::new(ErrorKind::PeerDown, "request", "the connection was closed by this process"));
        if is_first && self.address.is_flying() {
            // The owner may live, and send what was asked for; nobody sees any more whether it does.
            let address = Arc::clone(&self.address);
            after(self.silence * PATIENCE, move || address.cut());
        }
    }

    /// Ends the connection and all questions, for good, because the owner is dead to this node.
    pub(super) fn fail(&self, error: Error) {
        if self.end(error) {
            self.address.cut();
        }
    }

    /// Whether it had not ended before.
    fn end(&self, error: Error) -> bool {
        if !self.is_own() {
            return false;
        }
        let mut state = lock(&self.state);
        if state.failed.is_some() {
            return false;
        }
        state.failed = Some(error.clone());
        let open: Vec<_> = state.open.drain().map(|(_, ask)| ask).collect();
        let transfers: Vec<_> = state.transfers.drain().map(|(_, transfer)| transfer).collect();
        let gone = (std::mem::take(&mut state.queue), std::mem::take(&mut state.sources), state.watch.take());
        let control = state.control.take();
        let flights: Vec<_> = state.flights.drain().map(|(_, open)| open.flight).collect();
        drop(state);
        if let Some(control) = &control {
            control.close();
        }
        if let Some(watch) = &gone.2 {
            watch.cancel();
        }
        drop(control);
        if !flights.is_empty() {
            // Most have their errors by then; a dead peer answers nothing.
            after(ANSWERED, move || flights.iter().for_each(|flight| flight.cancel()));
        }
        transfers.iter().for_each(|transfer| transfer.cancel(error.clone()));
        open.iter().for_each(|ask| ask.end(Err(error.clone())));
        drop((gone, transfers, open));
        true
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link(to {})", self.contact)
    }
}

/// Whoever waits for an answer; dropped, nobody does.
struct Waiting {
    pending: Option<Pending<Answer>>,
    ask: Arc<Ask>,
}

impl Waiting {
    fn check_process(&self) -> Result<()> {
        match self.ask.link.is_own() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Forked, "request", "the question was the parent process's")),
        }
    }
}

impl Source<Answer> for Waiting {
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Answer> {
        self.check_process()?;
        // To be woken takes longer than most answers; whoever else wants the processor gets it. Long ones take their time, and
        // threads that move their bytes can use the processor.
        if self.ask.is_long() {
            self.ask.sleep_until_near(deadline);
        }
        let until = Instant::now() + self.ask.link.spin;
        let until = deadline.map_or(until, |deadline| deadline.min(until));
        while !self.ask.has_ended() && Instant::now() < until {
            std::thread::yield_now();
        }
        match (self.pending.take(), deadline) {
            (Some(pending), Some(at)) => pending.deadline(at.saturating_duration_since(Instant::now())).wait(),
            (Some(pending), None) => pending.wait(),
            (None, _) => Err(abandoned()),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer>> {
        if let Err(error) = self.check_process() {
            return Poll::Ready(Err(error));
        }
        match &mut self.pending {
            Some(pending) => Pin::new(pending).poll(cx),
            None => Poll::Ready(Err(abandoned())),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.ask.link.is_own() {
            self.ask.abandon();
        }
    }
}

pub(super) fn abandoned() -> Error {
    Error::new(ErrorKind::Cancelled, "request", "nobody waits for the answer any more")
}

/// How long what was asked has to end by itself after the connection ended.
const ANSWERED: Duration = Duration::from_millis(100);

/// Ticks, two a silence, after which an answer that nothing is in the way of is late.
const LATE: u32 = 2;

/// How long the news that parts are not needed waits for a question to go with.
const LAZY: Duration = Duration::from_millis(10);

/// Questions in flight to one owner; more fill the queues of `na+sm`, which then slows down.
const AT_ONCE: usize = 32;
