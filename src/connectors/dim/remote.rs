//! `Remote`: operations on objects of other nodes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use smallvec::smallvec;

use super::digest::Digest;
use super::gets::{Alone, Fetching};
use super::known::{Known, Sighted};
use super::landings::{self, Fetch, Fetched, mismatch};
use super::peers::Peers;
use super::slots::Slots;
use crate::environment;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Call, Landing, Parts, Peer, Spot};
use crate::key::Format;
use crate::mutant::mutant;
use crate::pending::{Operations, Pending};
use crate::region::{Region, RegionMut, Room};
use crate::service::address::Address;
use crate::service::client::{Claim, Client};
use crate::service::locator::NO_PLACE;
use crate::service::question::{MAX_ASKED, Pointer, Question, Verdict, Want, Wants};
use crate::shm::class::Place;
use crate::shm::table::{Label, Origin};

/// What operations on other nodes' objects need.
pub(super) struct Remote {
    pub(super) scheme: &'static str,
    pub(super) client: Arc<Client>,
    /// Where this node was reached when the store was opened.
    pub(super) contact: SocketAddr,
    pub(super) peers: Peers,
    /// How long a copy of another node's object is used before that node is asked again.
    pub(super) lease: Duration,
    /// Whether the processes of this node share what they fetch.
    pub(super) shares: bool,
    /// Whether nodes pass on to others what they fetch.
    pub(super) relays: bool,
    /// How long the owner's word that an object is there lets its memory be read without asking again.
    pub(super) trust: Duration,
    pub(super) known: Known,
    pub(super) fetches: Slots<Fetching>,
}

/// A fetch that was begun.
pub(super) enum Begun {
    Asked(Fetching),
    /// It takes more than a question on a connection that stands.
    Otherwise(Pending<Fetched>),
}

/// An object of another node, or the news that there is none.
pub(super) enum Found {
    Object(Region),
    /// A declaration's object is that one.
    Elsewhere(Pointer),
    Missing,
}

impl Found {
    /// What a claim made of the bytes that came.
    pub(super) fn landed(landed: Result<Region>) -> Result<Self> {
        match landed {
            Ok(region) => Ok(Self::Object(region)),
            // Its time was over when it came.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::Missing),
            Err(error) => Err(error),
        }
    }
}

/// When an operation of several steps has to be over.
#[derive(Clone, Copy)]
pub(super) struct Limit(Instant);

impl Limit {
    pub(super) fn new(deadline: Option<Instant>) -> Self {
        Self(deadline.unwrap_or_else(|| Instant::now() + environment::timeout()))
    }

    /// Half of the time that is left.
    pub(super) fn half(self) -> Self {
        let now = Instant::now();
        Self(now + self.0.saturating_duration_since(now) / 2)
    }

    /// The same, but not later than in `span`.
    pub(super) fn at_most(self, span: Duration) -> Self {
        Self(self.0.min(Instant::now() + span))
    }

    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Begins a step now, on another thread where it takes one: a peer that has to be connected first holds up no other.
    pub(super) fn start<T: Send + 'static>(self, step: Pending<T>) -> Pending<T> {
        step.deadline(self.0.saturating_duration_since(Instant::now())).start()
    }

    /// Waits for one step, as long as there is time.
    pub(super) fn wait<T: Send + 'static>(self, step: Pending<T>) -> Result<T> {
        step.deadline(self.0.saturating_duration_since(Instant::now())).wait()
    }
}

impl Remote {
    /// Runs `begin` on the peer that has the object, again where the connection broke meanwhile.
    ///
    /// `begin` must be harmless to repeat.
    ///
    /// # Errors
    /// Its own; `PeerDown`, `Timeout`, `Unauthorized` of connecting; `Stale` when the peer's memory is another one by now.
    pub(super) fn with_peer<T: Send + 'static>(
        self: &Arc<Self>,
        op: &'static str,
        at: Address,
        begin: impl Fn(&Self, &Arc<dyn Peer>) -> Pending<T> + Send + 'static,
    ) -> Pending<T> {
        let begun = Instant::now();
        let first = match self.peers.current(at.contact) {
            Some(peer) => match self.check_instance(op, &peer, &at) {
                Ok(()) => Some(begin(self, &peer)),
                Err(error) => return Pending::ready(Err(error)),
            },
            None => None,
        };
        let remote = Arc::clone(self);
        let again = move |deadline: Option<Instant>| remote.with_new_peer(op, at, Limit::new(deadline), begin);
        let scheme = self.scheme;
        let named = move |error: Error| error.with_connector(scheme);
        match first {
            None => Pending::blocking_until(move |deadline| again(deadline).map_err(named)),
            Some(first) => first.then(Ok).chain(move |outcome| match outcome {
                Err(error) if error.kind() == ErrorKind::PeerDown => Pending::blocking_until(move |deadline| {
                    let deadline = deadline.unwrap_or(begun + environment::timeout());
                    // Its silence may have taken all the time.
                    match deadline <= Instant::now() {
                        true => Err(error),
                        false => again(Some(deadline)),
                    }
                    .map_err(named)
                }),
                result => Pending::ready(result.map_err(named)),
            }),
        }
    }

    /// Runs `begin` on the peer that has the object, connecting to it where need be, some times where connections break.
    ///
    /// # Errors
    /// As [`with_peer`](Self::with_peer).
    pub(super) fn with_new_peer<T: Send + 'static>(
        &self,
        op: &'static str,
        at: Address,
        limit: Limit,
        begin: impl Fn(&Self, &Arc<dyn Peer>) -> Pending<T>,
    ) -> Result<T> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let peer = self.peers.reach(at.contact, at.instance, limit.0)?;
            self.check_instance(op, &peer, &at)?;
            match limit.wait(begin(self, &peer)) {
                Err(error) if error.kind() == ErrorKind::PeerDown && attempts < ATTEMPTS => {}
                result => return result,
            }
        }
    }

    pub(super) fn check_instance(&self, op: &'static str, peer: &Arc<dyn Peer>, at: &Address) -> Result<()> {
        if peer.instance() == at.instance {
            return Ok(());
        }
        let context = format!(
            "the memory that had the object ended with all its processes; {} has another one by now \
             (`proxystore serve` keeps memory between job steps)",
            at.contact
        );
        Err(Error::new(ErrorKind::Stale, op, context).with_connector(self.scheme))
    }

    /// Asks about one object; the answer has no bytes.
    pub(super) fn ask(self: &Arc<Self>, at: Address, question: Question) -> Pending<Verdict> {
        self.ask_counting(at, question).and_then(|(verdict, _)| Ok(verdict))
    }

    /// The same, and how often it was asked: again where a connection broke, before which it may have been answered.
    pub(super) fn ask_counting(self: &Arc<Self>, at: Address, question: Question) -> Pending<(Verdict, u32)> {
        let count = Arc::default();
        let asked = self.ask_noting(at, question, &count);
        asked.and_then(move |verdict| Ok((verdict, count.load(Relaxed))))
    }

    /// As [`ask`](Self::ask); adds to `count` each time it is asked, so that it is known of a failure too.
    pub(super) fn ask_noting(
        self: &Arc<Self>,
        at: Address,
        question: Question,
        count: &Arc<AtomicU32>,
    ) -> Pending<Verdict> {
        let op = question.op();
        let head = question.encode();
        let scheme = self.scheme;
        let counted = Arc::clone(count);
        let asked = self.with_peer(op, at, move |_, peer| {
            counted.fetch_add(1, Relaxed);
            Arc::clone(peer).request(Call::small(head.clone()))
        });
        asked.and_then(move |answer| match Verdict::decode_one(&answer.head)? {
            Verdict::Refused { kind } => Err(refused(op, kind, scheme)),
            verdict => Ok(verdict),
        })
    }

    /// Asks about several objects of one node; the answers have no bytes. `make` makes a question of at most [`MAX_ASKED`].
    pub(super) fn ask_all(
        self: &Arc<Self>,
        at: Address,
        wants: &[Want],
        make: impl Fn(Wants) -> Question,
    ) -> Pending<Vec<Verdict>> {
        let asked = wants.chunks(MAX_ASKED).map(|wants| {
            let question = make(Wants::from_slice(wants));
            let (op, head, count) = (question.op(), question.encode(), wants.len());
            self.with_peer(op, at, move |_, peer| Arc::clone(peer).request(Call::small(head.clone())))
                .and_then(move |answer| Ok(Verdict::decode_all(&answer.head, count)?.into_vec()))
        });
        Pending::all(asked.collect()).and_then(|verdicts| Ok(verdicts.concat()))
    }

    /// The bytes of an object, in memory of this node that nobody else knows of.
    ///
    /// What came before, and would be known again, is read where it was.
    ///
    /// # Cost
    /// Of an object that is fetched by an answer over a connection that stands, as almost always: no allocation.
    pub(super) fn fetch(self: &Arc<Self>, at: Address, len: u64) -> Pending<Fetched> {
        match self.begin(at, len) {
            Begun::Asked(fetching) => match self.fetches.insert(fetching) {
                Ok(number) => Pending::from_operations(Arc::clone(self) as Arc<dyn Operations<Fetched>>, number),
                Err(fetching) => Pending::from_source(Alone { remote: Arc::clone(self), fetching: Some(fetching) }),
            },
            Begun::Otherwise(fetched) => fetched,
        }
    }

    /// Begins to fetch an object.
    pub(super) fn begin(self: &Arc<Self>, at: Address, len: u64) -> Begun {
        let peer = self.peers.current(at.contact);
        // What came before, and would be known again, is read where it was.
        let is_read = peer.as_ref().is_some_and(|peer| is_read(peer, &at));
        if is_read {
            if let Some(sighted) = self.known.sighted(&at) {
                let remote = Arc::clone(self);
                let read = move |deadline| remote.fetch_again(at, len, &sighted, Limit::new(deadline));
                return Begun::Otherwise(Pending::blocking_until(read));
            }
        }
        let Some(peer) = peer.filter(|peer| peer.lanes() == 1 || len < 2 * LEAST_RANGE) else {
            return Begun::Otherwise(self.fetch_by_answer(at, len));
        };
        let begun = Instant::now();
        let asked = self.check_instance("get", &peer, &at).and_then(|()| self.ask_for(&peer, &at, len));
        match asked {
            Ok(answer) => Begun::Asked(Fetching::new(at, len, begun, is_read, answer)),
            Err(error) => Begun::Otherwise(Pending::ready(Err(error.with_connector(self.scheme)))),
        }
    }

    /// Asks for all bytes of an object at once.
    fn ask_for(&self, peer: &Arc<dyn Peer>, at: &Address, len: u64) -> Result<Pending<Answer>> {
        let len_here = usize::try_from(len).map_err(|_| too_large(len, self.scheme))?;
        let landing = Landing::whole(self.client.reserve_again(len_here)?, len_here)?;
        let want = want(at, len);
        let head = Question::Get(smallvec![want]).encode();
        Ok(Arc::clone(peer).request(landings::call(head, landing, landings::spot(&want), 0)))
    }

    /// Notes what came, so that it is known where it can be read the next time.
    pub(super) fn note_fetched(&self, at: &Address, fetched: &Fetched) {
        if let (Verdict::Yes { expires_in }, Some(region)) = (&fetched.verdict, &fetched.region) {
            if self.reader(at).is_some() {
                self.known.came(at, fetched.asked, *expires_in, region.as_slice());
            }
        }
    }

    /// The peer that has an object, where its memory can be read without it.
    fn reader(&self, at: &Address) -> Option<Arc<dyn Peer>> {
        self.peers.current(at.contact).filter(|peer| is_read(peer, at))
    }

    fn fetch_again(self: &Arc<Self>, at: Address, len: u64, sighted: &Sighted, limit: Limit) -> Result<Fetched> {
        let now = Instant::now();
        let is_fresh = sighted.asked.elapsed() < self.trust && sighted.expires_in.is_some() || mutant!("read_unasked");
        // At the same time: bytes that are the object's are that whenever they were read.
        let asking = (!is_fresh).then(|| self.ask(at, Question::Exists(smallvec![want(&at, len)])));
        let read = self.read(&at, len, sighted.digest, limit);
        let (asked, verdict) = match asking {
            Some(asking) => (now, limit.wait(asking)?),
            None => (sighted.asked, Verdict::Yes { expires_in: sighted.expires_in.unwrap_or(0) }),
        };
        match (&verdict, read) {
            (Verdict::Yes { expires_in }, Ok(region)) => {
                if !is_fresh {
                    self.known.confirmed(&at, asked, *expires_in, sighted.digest);
                }
                Ok(Fetched { verdict, region: Some(region), asked })
            }
            (Verdict::Yes { .. }, Err(_)) => limit.wait(self.fetch_by_answer(at, len)),
            _ => {
                self.known.forget(&at);
                Ok(Fetched { verdict, region: None, asked })
            }
        }
    }

    /// The bytes of an object from where it was, if they are its own.
    ///
    /// Nobody pins them: what was read may be another object's by now, or of two. The digest alone decides.
    fn read(&self, at: &Address, len: u64, digest: Digest, limit: Limit) -> Result<Room> {
        let Some(peer) = self.reader(at) else {
            return Err(Error::new(ErrorKind::Unavailable, "get", "the connection was lost"));
        };
        let place = Place::from_bits(at.place);
        let len = usize::try_from(len).map_err(|_| too_large(len, self.scheme))?;
        let landing = Landing::whole(self.client.reserve_again(len)?, len)?;
        let spot = Spot { segment: place.segment(), offset: place.offset() };
        let region = peer.read(spot, landing, limit.half().0)?.into_room()?;
        if Digest::of(region.as_slice()) == digest || mutant!("read_unverified") {
            return Ok(region);
        }
        self.known.forget(at);
        Err(Error::new(ErrorKind::Corrupt, "get", "the object's memory was used again"))
    }

    /// The bytes of an object by an answer, of which it is not known that it would be read again.
    pub(super) fn fetch_by_answer(self: &Arc<Self>, at: Address, len: u64) -> Pending<Fetched> {
        let remote = Arc::clone(self);
        let fetched = self.with_peer("get", at, move |remote, peer| remote.begin_on(peer, &at, len));
        fetched.and_then(move |fetched| {
            remote.note_fetched(&at, &fetched);
            Ok(fetched)
        })
    }

    /// Fetches an object from a peer.
    pub(super) fn begin_on(&self, peer: &Arc<dyn Peer>, at: &Address, len: u64) -> Pending<Fetched> {
        let lanes = peer.lanes();
        if lanes == 1 || len < 2 * LEAST_RANGE {
            let asked = Instant::now();
            return match self.ask_for(peer, at, len) {
                Ok(answer) => answer.and_then(move |answer| whole(answer, asked)),
                Err(error) => Pending::ready(Err(error)),
            };
        }
        let reserved = usize::try_from(len).map_err(|_| too_large(len, self.scheme));
        match reserved.and_then(|len| self.client.reserve(len)) {
            Ok(region) => fetch_ranges(peer, at, region, len, lanes),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    /// The bytes of several objects of one node, at most `MAX_WANTS`, in one round trip.
    pub(super) fn fetch_all(
        self: &Arc<Self>,
        at: Address,
        lane: usize,
        objects: Vec<Pointer>,
    ) -> Pending<Vec<Fetched>> {
        self.with_peer("get", at, move |remote, peer| {
            let begin = || {
                let mut regions = Vec::with_capacity(objects.len());
                for object in &objects {
                    regions.push(remote.client.reserve_again(object.len as usize)?);
                }
                // In the order of what comes, as the owner's cells mostly are, one transfer can fill many.
                for alike in regions.chunk_by_mut(|one, next| one.capacity() == next.capacity()) {
                    alike.sort_unstable_by_key(|room: &Room| room.as_slice().as_ptr().addr());
                }
                Fetch::new(objects.iter().map(|object| want(&object.address, object.len)).collect(), regions)
            };
            match begin() {
                Ok((fetch, mut call)) => {
                    call.lane = lane;
                    Arc::clone(peer).request(call).and_then(move |answer| fetch.finish(answer))
                }
                Err(error) => Pending::ready(Err(error)),
            }
        })
    }

    /// How long what was asked then is used without asking again: the answer may have come, or been looked at, much later.
    pub(super) fn fresh_for(&self, asked: Instant) -> Duration {
        self.lease.saturating_sub(asked.elapsed())
    }

    /// When what was to end in so many milliseconds when it was asked for ends here; 0 for never.
    pub(super) fn expiry(&self, expires_in: u64, asked: Instant) -> u64 {
        match expires_in {
            0 => 0,
            millis => self.client.expiry(Duration::from_millis(millis).saturating_sub(asked.elapsed())),
        }
    }

    /// Makes fetched bytes the object that all processes of this node find.
    fn land(&self, claim: Claim, region: Room, format: Format, expires_in: u64, asked: Instant) -> Result<Found> {
        let (lease, len) = self.client.lease_in(region)?;
        let expires = self.expiry(expires_in, asked);
        Found::landed(claim.land(lease, Label { len, expires, ..Client::label(format) }, self.fresh_for(asked)))
    }

    /// What was fetched: the object that all processes of this node find, where the caller has the duty to fetch it, else one
    /// that only its view keeps.
    pub(super) fn found(&self, fetched: Fetched, format: Format, claim: Option<Claim>) -> Result<Found> {
        match (fetched.verdict, fetched.region) {
            (Verdict::Yes { expires_in }, Some(region)) => match claim {
                Some(claim) => self.land(claim, region, format, expires_in, fetched.asked),
                // Its cell goes back to this process, still warm, with the last view.
                None => Ok(Found::Object(region.freeze())),
            },
            (Verdict::Bound(pointer), _) => Ok(Found::Elsewhere(*pointer)),
            (Verdict::Missing | Verdict::Declared, _) => Ok(Found::Missing),
            (Verdict::Refused { kind }, _) => Err(refused("get", kind, self.scheme)),
            _ => Err(mismatch()),
        }
    }
}

/// Whether an object's memory can be read without its owner.
fn is_read(peer: &Arc<dyn Peer>, at: &Address) -> bool {
    peer.instance() == at.instance && peer.reads()
}

/// One object from the answer to a question that was asked then.
pub(super) fn whole(mut answer: Answer, asked: Instant) -> Result<Fetched> {
    let verdict = Verdict::decode_one(&answer.head)?;
    let region = match (&verdict, answer.parts.pop()) {
        (Verdict::Yes { .. }, Some(landing)) => Some(landing.into_room()?),
        (Verdict::Yes { .. }, None) | (_, Some(_)) => return Err(mismatch()),
        (_, None) => None,
    };
    Ok(Fetched { verdict, region, asked })
}

/// Fetches a large object over several lanes, a range each.
fn fetch_ranges(peer: &Arc<dyn Peer>, at: &Address, region: RegionMut, len: u64, lanes: usize) -> Pending<Fetched> {
    let lanes = (len / LEAST_RANGE).min(lanes as u64);
    // Ranges begin at whole pages.
    let step = len.div_ceil(lanes).next_multiple_of(PAGE);
    let starts = (0..lanes).map(|lane| lane * step).filter(|start| *start < len);
    let ranges: Vec<(u64, u64)> = starts.map(|start| (start, step.min(len - start))).collect();
    let lens: Vec<usize> = ranges.iter().map(|(_, count)| *count as usize).collect();
    let (parts, landings) = match Parts::of(region, &lens) {
        Ok(parts) => parts,
        Err(error) => return Pending::ready(Err(error)),
    };
    let asked = Instant::now();
    let calls = ranges.into_iter().zip(landings).enumerate().map(|(lane, ((from, count), landing))| {
        let want = Want { from, count, ..want(at, len) };
        let head = Question::Get(smallvec![want]).encode();
        Arc::clone(peer).request(landings::call(head, landing, landings::spot(&want), lane))
    });
    Pending::all(calls.collect()).and_then(move |answers| joined(parts, answers, asked))
}

/// One object from the answers about all its ranges.
fn joined(parts: Parts, answers: Vec<Answer>, asked: Instant) -> Result<Fetched> {
    let mut landings: Vec<Landing> = Vec::with_capacity(answers.len());
    let mut verdict = None;
    for answer in answers {
        match Verdict::decode_one(&answer.head)? {
            yes @ Verdict::Yes { .. } => {
                landings.extend(answer.parts);
                verdict.get_or_insert(yes);
            }
            // It was evicted between two ranges, or never there: no bytes of it are shown.
            other => return Ok(Fetched { verdict: other, region: None, asked }),
        }
    }
    let verdict = verdict.ok_or_else(mismatch)?;
    Ok(Fetched { verdict, region: Some(parts.join(landings)?.into()), asked })
}

/// What identifies an object in the memory of other nodes.
pub(super) fn origin(at: &Address) -> Origin {
    Origin { instance: at.instance, id: at.id }
}

/// All of an object.
pub(super) fn want(at: &Address, len: u64) -> Want {
    let len = if at.place == NO_PLACE { 0 } else { len };
    Want { id: at.id, place: at.place, len, from: 0, count: len }
}

pub(super) fn refused(op: &'static str, kind: ErrorKind, scheme: &'static str) -> Error {
    Error::new(kind, op, "the node that has the object says so").with_connector(scheme)
}

fn too_large(len: u64, scheme: &'static str) -> Error {
    Error::new(ErrorKind::TooLarge, "get", format!("{len} bytes, more than this machine has addresses"))
        .with_connector(scheme)
}

/// How often an operation is tried whose connection breaks.
const ATTEMPTS: u32 = 3;

/// Objects are cut into ranges of at least this many bytes.
const LEAST_RANGE: u64 = 512 << 10;

const PAGE: u64 = 4096;
