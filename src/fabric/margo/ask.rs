//! `Ask`: an open question, from its RPC to the last byte of its answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex};
use std::task::Wake as _;
use std::thread::{self, Thread};
use std::time::Instant;

use super::memory::Staging;
use super::native::{AT_ONCE, Bulk, Piece, Transfer};
use super::peer::{Link, MargoPeer};
use super::session::PATIENCE;
use super::wire::{Answered, Control, DESCRIBED, Description, MOST_DESCRIBED, Part, Place, Said};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::poller::Poller;
use crate::fabric::{Answer, Call, Head, Land, Lander, Landing};
use crate::failpoint::failpoint;
use crate::pending::Completer;
use crate::region::{RegionMut, Room};
use crate::sync::lock;

/// See the module.
pub(super) struct Ask {
    pub(super) number: u64,
    pub(super) link: Arc<Link>,
    ended: AtomicBool,
    /// All bytes are here, or the result is; what is missing follows at once.
    near: AtomicBool,
    state: Mutex<State>,
}

struct State {
    head: Head,
    land: Option<Lander>,
    completer: Option<Completer<Answer>>,
    /// Parts that the owner pinned for it were pinned later than this.
    asked: Instant,
    early: Option<Early>,
    /// What waits for an answer that was held.
    collecting: Option<Arc<Poller>>,
    /// Keeps the connection as long as somebody waits.
    handle: Option<Arc<MargoPeer>>,
    /// Sleeps until that is near.
    sleeper: Option<Thread>,
}

/// Bytes that are pulled from where they should be, while the question is on its way.
struct Early {
    /// Number of the source, and where in it.
    place: (u32, u64),
    /// All that came, or that it did not.
    landed: Option<Result<Landing>>,
    /// The answer, if it was there before the bytes: its description, and whether they are pinned.
    described: Option<(Vec<u8>, bool)>,
}

impl Ask {
    pub(super) fn new(
        link: &Arc<Link>,
        number: u64,
        head: Head,
        land: Lander,
        completer: Completer<Answer>,
        handle: Option<Arc<MargoPeer>>,
    ) -> Arc<Self> {
        let (land, completer) = (Some(land), Some(completer));
        let asked = Instant::now();
        let state = State { head, land, completer, asked, early: None, collecting: None, handle, sleeper: None };
        let (ended, near) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { number, link: Arc::clone(link), ended, near, state: Mutex::new(state) })
    }

    /// What to ask, now.
    pub(super) fn begin(&self) -> Head {
        let mut state = lock(&self.state);
        state.asked = Instant::now();
        std::mem::take(&mut state.head)
    }

    /// Whether the result is there.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Acquire)
    }

    /// Whether bytes are being pulled already.
    pub(super) fn is_long(&self) -> bool {
        lock(&self.state).early.is_some()
    }

    /// Sleeps until nothing but the owner's word is missing, or nothing at all, or there is no time left.
    pub(super) fn sleep_until_near(&self, deadline: Option<Instant>) {
        while !self.near.load(Acquire) {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return;
            }
            let mut state = lock(&self.state);
            if self.near.load(Acquire) {
                return;
            }
            state.sleeper = Some(thread::current());
            drop(state);
            match left {
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
        }
    }

    /// Wakes who sleeps until then.
    fn come_near(&self, state: &mut State) {
        self.near.store(true, Release);
        if let Some(sleeper) = state.sleeper.take() {
            sleeper.unpark();
        }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        lock(&self.state).completer.is_none()
    }

    /// Ends it for who waits.
    pub(super) fn end(&self, result: Result<Answer>) {
        let mut state = lock(&self.state);
        self.come_near(&mut state);
        let completer = state.completer.take();
        let early = state.early.take();
        let gone = (state.land.take(), state.collecting.take(), state.handle.take());
        drop(state);
        if early.is_some_and(|early| early.landed.is_none()) {
            self.link.stop_transfer(self.number);
        }
        self.link.forget(self.number);
        if let Some(completer) = completer {
            completer.complete(result);
        }
        self.ended.store(true, Release);
        drop(gone);
    }

    /// Nobody waits any more.
    pub(super) fn abandon(&self) {
        let mut state = lock(&self.state);
        if state.completer.is_none() {
            return;
        }
        let completer = state.completer.take();
        let collecting = state.collecting.take();
        let gone = (state.land.take(), state.early.take(), state.handle.take());
        drop(state);
        let is_pinned = gone.1.as_ref().is_some_and(|early| matches!(early.described, Some((_, true))));
        if let Some(collecting) = &collecting {
            // The owner learns of it by that; an answer may be on its way all the same.
            collecting.cancel();
        }
        if is_pinned || collecting.is_some() {
            self.link.release(self.number);
        }
        self.link.stop_transfer(self.number);
        self.link.forget(self.number);
        drop((completer, gone));
    }

    /// The RPC is over.
    pub(super) fn answered(self: &Arc<Self>, result: Result<&[u8]>) {
        let message = match result {
            Ok(message) => message,
            // One that is alive answers at once, be it that the answer comes later.
            Err(error) => return self.link.fail(error),
        };
        match Answered::decode(message) {
            Ok(Answered::Described(description)) => self.described(description, false),
            Ok(Answered::Held) => self.collect(),
            Ok(Answered::Long { len, descriptor }) => self.pull_description(len, descriptor),
            Ok(Answered::Refused) => self.end(Err(refused())),
            Ok(Answered::Unknown) => {
                let context = format!("{} has ended the connection", self.link.contact);
                self.link.fail(Error::new(ErrorKind::PeerDown, "request", context));
            }
            Ok(Answered::Kept(_)) => self.link.fail(nonsense("an answer to another question")),
            Err(error) => self.link.fail(nonsense(error.context())),
        }
    }

    /// What to pull before the answer is there, where it is known from where: an object's place is in its key, and the owner says,
    /// by the answer, that the object has not ended yet.
    pub(super) fn prepare_early(&self) -> Option<Piece> {
        // Not under the link's lock nor with it inside this one, which others take in the opposite order.
        let spot = lock(&self.state).land.as_ref()?.likely()?;
        let (theirs, source, offset) = self.link.place_of(spot)?;
        let mut state = lock(&self.state);
        let land = state.land.as_mut()?;
        let landing = land.lend()?;
        if landing.len() <= self.link.instance.inline() {
            // It comes with the answer.
            land.give_back(landing);
            return None;
        }
        let ours = self.link.memory.find(&landing.addresses()).map(|(bulk, _)| bulk);
        state.early = Some(Early { place: (source, offset), landed: None, described: None });
        Some(Piece { landing, ours, theirs, offset })
    }

    /// Begins to, with the first stretch: the question goes before the others, so that its answer does not come behind them.
    pub(super) fn pull_early(self: &Arc<Self>, piece: Piece) -> Arc<Transfer> {
        let ask = Arc::clone(self);
        let done = move |result: Result<Vec<Landing>>| {
            ask.landed_early(result.and_then(|mut landings| landings.pop().ok_or_else(misled)));
        };
        let transfer = Transfer::start(&self.link.instance, &self.link.address, vec![piece], 1, done);
        self.link.keep(self.number, &transfer);
        transfer
    }

    fn landed_early(self: &Arc<Self>, landed: Result<Landing>) {
        let mut state = lock(&self.state);
        let Some(early) = &mut state.early else {
            drop(state);
            return drop(landed);
        };
        early.landed = Some(landed);
        let described = early.described.take();
        // To be woken takes about as long as the owner's word that the object has not ended.
        self.come_near(&mut state);
        drop(state);
        if let Some((bytes, is_pinned)) = described {
            self.described(&bytes, is_pinned);
        }
    }

    /// Asks for an answer that comes later, on the control connection.
    fn collect(self: &Arc<Self>) {
        let call = Call {
            head: Control::Collect { number: self.number }.encode().into(),
            land: Box::new(OnHeap).into(),
            lane: 0,
        };
        lock(&self.state).asked = Instant::now();
        // Without it the question has ended, too.
        let Some(control) = self.link.control() else { return };
        let pending = control.request(call);
        let ask = Arc::clone(self);
        let poller = Poller::new(pending, move |result| {
            let whole = result.and_then(|mut answer| match (&answer.head[..], answer.parts.pop()) {
                (head, Some(landing)) if head == DESCRIBED => landing.into_room(),
                _ => Err(nonsense("an answer that is not described")),
            });
            match whole {
                Ok(whole) => ask.described(whole.as_slice(), false),
                Err(error) if error.kind() == ErrorKind::Cancelled => ask.end(Err(refused())),
                Err(error) => ask.end(Err(error)),
            }
        });
        let mut state = lock(&self.state);
        if state.completer.is_none() {
            drop(state);
            // The owner learns by this that nobody wants it; it may have been there by then.
            poller.cancel();
            return self.link.release(self.number);
        }
        state.collecting = Some(Arc::clone(&poller));
        drop(state);
        poller.wake();
    }

    /// Fetches a description that is too long for an RPC.
    fn pull_description(self: &Arc<Self>, len: u64, descriptor: &[u8]) {
        let begin = || {
            let theirs = Arc::new(Bulk::of_peer(&self.link.instance, descriptor)?);
            let (bulk, region) = self.link.memory.stage(len as usize)?.parts();
            let landing = Landing::whole(region, len as usize)?;
            Ok((Arc::clone(&bulk), Piece { landing, ours: Some(bulk), theirs, offset: 0 }))
        };
        let (bulk, piece) = match begin() {
            Ok(begun) => begun,
            Err(error) => {
                self.link.release(self.number);
                return self.end(Err(error));
            }
        };
        let ask = Arc::clone(self);
        let done = move |result: Result<Vec<Landing>>| {
            let whole = result.and_then(|mut landings| landings.pop().ok_or_else(refused)?.into_room());
            // Where nothing came the landing goes after this, and the registration before it.
            let bulk = whole.is_ok().then_some(bulk);
            let asked = Arc::clone(&ask);
            ask.if_kept(move |is_kept| match is_kept.and(whole) {
                Ok(whole) => {
                    asked.described(whole.as_slice(), true);
                    if let (Room::Own(region), Some(bulk)) = (whole, bulk) {
                        asked.link.memory.unstage(Staging::of((bulk, region)));
                    }
                }
                Err(error) => {
                    asked.link.release(asked.number);
                    asked.end(Err(error));
                }
            });
        };
        let transfer = Transfer::start(&self.link.instance, &self.link.address, vec![piece], AT_ONCE, done);
        self.link.keep(self.number, &transfer);
    }

    /// Lands what is described, and pulls what is not in the description.
    fn described(self: &Arc<Self>, bytes: &[u8], is_pinned: bool) {
        let (description, packed) = match Description::decode(bytes) {
            Ok(decoded) => decoded,
            Err(error) => return self.link.fail(nonsense(error.context())),
        };
        let is_pinned = is_pinned || description.is_pinned;
        let mut state = lock(&self.state);
        if let Some(early) = &mut state.early {
            if early.landed.is_none() && !description.parts.is_empty() {
                early.described = Some((bytes.to_vec(), is_pinned));
                return;
            }
        }
        drop(state);
        let landed = self.land(&description, bytes, packed);
        match landed {
            Ok(Landed { places, pieces, is_early: true }) if pieces.is_empty() => {
                failpoint!("margo.landing");
                return self
                    .landed(Answer { head: description.head.into(), parts: places.into_iter().flatten().collect() });
            }
            Ok(Landed { places, pieces, .. }) if pieces.is_empty() => {
                failpoint!("margo.answered");
                let parts = places.into_iter().flatten().collect();
                self.end(Ok(Answer { head: description.head.into(), parts }));
            }
            Ok(Landed { places, pieces, .. }) => return self.pull(description.head, places, pieces),
            Err(error) => self.end(Err(error)),
        }
        if is_pinned {
            self.link.release(self.number);
        }
    }

    /// Landings for all parts, those of packed ones full; and for the others, which are not in their places yet, how to fill them.
    fn land(&self, description: &Description, bytes: &[u8], packed: Vec<std::ops::Range<usize>>) -> Result<Landed> {
        let mut state = lock(&self.state);
        let early = state.early.take_if(|early| early.landed.is_some() || description.parts.is_empty());
        let Some(mut land) = state.land.take() else { return Err(refused()) };
        drop(state);
        let only = match &description.parts[..] {
            [Part { len, place: Place::Source(source, offset) }] => {
                Some((*len, description.sources[usize::from(*source)].id, *offset))
            }
            _ => None,
        };
        let is_early = match (early, only) {
            (None, Some((_, source, offset))) => {
                land.likely().inspect(|spot| self.link.learn(*spot, source, offset));
                false
            }
            (None, None) => false,
            // The object has ended.
            (Some(early), _) if description.parts.is_empty() => {
                if early.landed.is_none() {
                    self.link.stop_transfer(self.number);
                }
                false
            }
            (Some(Early { place, landed: Some(Ok(landing)), .. }), Some((len, source, offset)))
                if place == (source, offset) && landing.len() as u64 == len =>
            {
                land.give_back(landing);
                true
            }
            (Some(_), _) => {
                self.link.unlearn();
                return Err(misled());
            }
        };
        let lens: Vec<u64> = description.parts.iter().map(|part| part.len).collect();
        let chosen = catch_unwind(AssertUnwindSafe(|| land.land(&description.head, &lens)));
        let landings = chosen.map_err(|_| {
            Error::new(ErrorKind::Cancelled, "request", "a panic in what chooses the memory for an answer")
        })??;
        let fit = landings.len() == lens.len()
            && landings.iter().zip(&lens).all(|(landing, len)| {
                landing.len() as u64 == *len && landing.missing() == if is_early { 0 } else { landing.len() }
            });
        if !fit {
            return Err(Error::new(ErrorKind::Corrupt, "request", "the memory for an answer has not its size"));
        }
        let mut packed = packed.into_iter();
        let (mut places, mut pieces) = (Vec::with_capacity(lens.len()), Vec::new());
        for (mut landing, part) in landings.into_iter().zip(&description.parts) {
            match part.place {
                Place::Packed => {
                    let range = packed.next().unwrap_or(0..0);
                    landing.write(&bytes[range]);
                    places.push(Some(landing));
                }
                Place::Source(..) if is_early => places.push(Some(landing)),
                Place::Source(source, offset) => {
                    let source = &description.sources[usize::from(source)];
                    let theirs = self.link.source(source.id, &source.descriptor)?;
                    let ours = self.link.memory.find(&landing.addresses()).map(|(bulk, _)| bulk);
                    pieces.push(Piece { landing, ours, theirs, offset });
                    places.push(None);
                }
            }
        }
        Ok(Landed { places, pieces, is_early })
    }

    fn pull(self: &Arc<Self>, head: Vec<u8>, mut places: Vec<Option<Landing>>, pieces: Vec<Piece>) {
        let ask = Arc::clone(self);
        let done = move |result: Result<Vec<Landing>>| {
            failpoint!("margo.landing");
            let mut landed = match result {
                Ok(landings) => landings.into_iter(),
                Err(error) => {
                    ask.link.release(ask.number);
                    return ask.end(Err(error));
                }
            };
            places.iter_mut().filter(|place| place.is_none()).for_each(|place| *place = landed.next());
            ask.landed(Answer { head: head.into(), parts: places.into_iter().flatten().collect() });
        };
        let transfer = Transfer::start(&self.link.instance, &self.link.address, pieces, AT_ONCE, done);
        self.link.keep(self.number, &transfer);
    }

    /// All bytes came.
    fn landed(self: &Arc<Self>, answer: Answer) {
        let ask = Arc::clone(self);
        self.if_kept(move |is_kept| {
            failpoint!("margo.answered");
            ask.end(is_kept.map(|()| answer));
            ask.link.release(ask.number);
        });
    }

    /// Bytes that came count if the owner kept them where they were for all that time.
    fn if_kept(self: &Arc<Self>, told: impl FnOnce(Result<()>) + Send + 'static) {
        let asked = lock(&self.state).asked;
        if asked.elapsed() < self.link.silence * PATIENCE * 3 / 4 {
            return told(Ok(()));
        }
        let contact = self.link.contact;
        self.ask_to_keep(move |is_kept| {
            let context = || format!("{contact} let go of the bytes before they were here");
            told(is_kept.then_some(()).ok_or_else(|| Error::new(ErrorKind::PeerDown, "request", context())));
        });
    }

    /// Asks whether the parts are still pinned, which keeps them so for a while.
    fn ask_to_keep(self: &Arc<Self>, told: impl FnOnce(bool) + Send + 'static) {
        let prefix = Said::Keep { number: self.number }.prefix(&self.link.token);
        let done = move |result: Result<&[u8]>| {
            let is_kept = matches!(result.and_then(Answered::decode), Ok(Answered::Kept(true)));
            told(is_kept);
        };
        if let Err(error) = self.link.say(&[&prefix], done) {
            self.end(Err(error));
        }
    }
}

/// Lands a description that comes on the control connection.
struct OnHeap;

impl Land for OnHeap {
    fn land(&mut self, _: &[u8], lens: &[u64]) -> Result<Vec<Landing>> {
        match lens {
            [len @ 0..=MOST_DESCRIBED] => Ok(vec![Landing::whole(RegionMut::heap(*len as usize)?, *len as usize)?]),
            _ => Err(nonsense("an answer of a length that none has")),
        }
    }
}

/// What an answer's parts land in.
struct Landed {
    /// Full; nothing where there is a piece.
    places: Vec<Option<Landing>>,
    /// To be pulled.
    pieces: Vec<Piece>,
    /// Whether the bytes were pulled before the answer was there.
    is_early: bool,
}

/// Harmless to ask again.
fn misled() -> Error {
    Error::new(ErrorKind::PeerDown, "request", "the bytes could not be read where they were before")
}

fn refused() -> Error {
    Error::new(ErrorKind::Cancelled, "request", "the owner did not answer: it is ending, or gave the question up")
}

fn nonsense(context: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "request", context.to_owned())
}
