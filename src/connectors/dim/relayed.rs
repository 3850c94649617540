//! Large objects, which nodes that fetch them at the same time pass on to each other, piece by piece.
//!
//! ```text
//!   asks the owner:  Join ──> From(node), or Yes: from the owner itself
//!   pieces in order, some in flight:  Get of the owner, or Pass of that node
//!   each that came is there for others at once:  Advance::to
//!   a node that fails:  Join again, naming it, and on with the next piece that is missing
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::landings::{Fetched, Range, mismatch};
use super::objects::Objects;
use super::remote::{Found, Limit, refused, want};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Call, Landing, Parts};
use crate::pending::Pending;
use crate::region::RegionMut;
use crate::service::address::{Address, Node};
use crate::service::client::{Advance, Claim, Client};
use crate::service::contact;
use crate::service::question::{MAX_LOST, Pointer, Question, Verdict, Want};
use crate::service::relays;
use crate::shm::table::Label;
use crate::sync::lock;

/// Objects of at least so many bytes are passed on.
pub(super) const LEAST: u64 = 4 << 20;

/// A fetch in which this node takes part.
struct Fetch {
    all: Arc<Objects>,
    object: Pointer,
    limit: Limit,
    /// Who did not serve it.
    lost: Vec<u64>,
    slowest: Duration,
}

/// What the owner said when this node joined.
struct Joined {
    verdict: Verdict,
    asked: Instant,
}

/// Tells the owner how it ended, so that this node is a source for others or is not.
struct Leaving<'a> {
    fetch: &'a Arc<Objects>,
    object: Pointer,
    is_whole: bool,
}

/// The pieces of the object that are on their way, in order.
struct Flight {
    parts: Arc<Parts>,
    pieces: Vec<(u64, u64)>,
    landed: Vec<Landing>,
    flying: VecDeque<(Pending<Answer>, Instant)>,
}

impl Objects {
    /// Fetches a large object that this process has the duty to fetch for its node.
    ///
    /// # Errors
    /// Those of the owner; a node in between that fails is replaced.
    pub(super) fn fetch_relayed(self: &Arc<Self>, object: Pointer, claim: Claim, limit: Limit) -> Result<Found> {
        let fetch = Fetch { all: Arc::clone(self), object, limit, lost: Vec::new(), slowest: Duration::ZERO };
        fetch.run(claim)
    }
}

impl Fetch {
    fn run(mut self, claim: Claim) -> Result<Found> {
        let Pointer { address, len, format } = self.object;
        let remote = Arc::clone(&self.all.remote);
        let joined = self.join()?;
        let (mut source, expires_in) = match joined.verdict {
            Verdict::Yes { expires_in } => (None, expires_in),
            Verdict::From { expires_in, node } => (Some(node), expires_in),
            verdict => {
                let fetched = Fetched { verdict, region: None, asked: joined.asked };
                return remote.found(fetched, format, Some(claim));
            }
        };
        let all = Arc::clone(&self.all);
        let mut leaving = Leaving { fetch: &all, object: self.object, is_whole: false };
        let reserved = usize::try_from(len).map_err(|_| mismatch()).and_then(|len| remote.client.reserve(len))?;
        let (lease, _) = remote.client.lease_of(reserved)?;
        let (region, advance) = claim.open(lease, len)?;
        let mut flight = Flight::new(region, len)?;
        while flight.landed.len() < flight.pieces.len() {
            match self.step(&mut flight, source, &advance) {
                Ok(()) => {}
                Err(Lost::Owner(error)) => return Err(error),
                Err(Lost::Ended(verdict)) => {
                    let fetched = Fetched { verdict, region: None, asked: joined.asked };
                    return remote.found(fetched, format, Some(claim));
                }
                Err(Lost::Relay) => {
                    flight.settle(self.patience());
                    source = self.next_source(source)?;
                }
                // A transfer that failed still has its landing: the object has to land elsewhere, for this caller alone.
                Err(Lost::Landing) => {
                    drop((flight, claim));
                    let alone = self.limit.wait(remote.fetch(address, len))?;
                    return remote.found(alone, format, None);
                }
            }
        }
        let region = flight.finish()?;
        let expires = if expires_in == 0 { 0 } else { remote.client.expiry(Duration::from_millis(expires_in)) };
        let label = Label { len, expires, ..Client::label(format) };
        let landed = claim.land_arrived(region, label, remote.fresh_for(joined.asked));
        leaving.is_whole = landed.is_ok();
        match landed {
            Ok(region) => Ok(Found::Object(region)),
            // Its time was over when it came.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Found::Missing),
            Err(error) => Err(error),
        }
    }

    /// Asks the owner from whom to get it.
    fn join(&self) -> Result<Joined> {
        let Pointer { address, len, .. } = self.object;
        let client = &self.all.client;
        // A node that nobody can reach passes nothing on.
        let Some(contact) = contact::read(client.table()) else {
            let asked = Instant::now();
            let asking = self.all.remote.ask(address, Question::Exists(vec![want(&address, len)]));
            return Ok(Joined { verdict: self.limit.wait(asking)?, asked });
        };
        let as_node = Node { contact, instance: client.instance() };
        let question = Question::Join { want: want(&address, len), as_node, lost: self.lost.clone() };
        let asked = Instant::now();
        Ok(Joined { verdict: self.limit.wait(self.all.remote.ask(address, question))?, asked })
    }

    /// Another node than the one that failed; the owner after some.
    fn next_source(&mut self, failed: Option<Node>) -> Result<Option<Node>> {
        self.lost.extend(failed.map(|node| node.instance));
        if self.lost.len() > MAX_LOST {
            return Ok(None);
        }
        Ok(match self.join()?.verdict {
            Verdict::From { node, .. } => Some(node),
            _ => None,
        })
    }

    /// Sees to it that enough pieces are on their way, and waits for the next.
    fn step(&mut self, flight: &mut Flight, source: Option<Node>, advance: &Advance) -> Result<(), Lost> {
        while flight.flying.len() < WINDOW && flight.landed.len() + flight.flying.len() < flight.pieces.len() {
            let piece = flight.landed.len() + flight.flying.len();
            let Some(landing) = flight.parts.lend(piece) else { return Err(Lost::Landing) };
            let asked = self.ask(flight, piece, landing, source);
            flight.flying.push_back((asked, Instant::now()));
        }
        let Some((piece, begun)) = flight.flying.pop_front() else { return Ok(()) };
        let answer = match source {
            None => self.limit.wait(piece).map_err(Lost::Owner)?,
            Some(_) => self.patience().wait(piece).map_err(|_| Lost::Relay)?,
        };
        self.slowest = self.slowest.max(begun.elapsed());
        match Verdict::decode_all(&answer.head, 1).map(|mut verdicts| verdicts.pop()) {
            Ok(Some(Verdict::Yes { .. })) => flight.land(answer, advance),
            Ok(Some(Verdict::Refused { kind })) if source.is_none() => {
                Err(Lost::Owner(refused("get", kind, self.all.scheme)))
            }
            Ok(Some(verdict)) if source.is_none() => Err(Lost::Ended(verdict)),
            _ if source.is_none() => Err(Lost::Owner(mismatch())),
            _ => Err(Lost::Relay),
        }
    }

    /// Asks for a piece.
    fn ask(&self, flight: &Flight, piece: usize, landing: Landing, source: Option<Node>) -> Pending<Answer> {
        let Pointer { address, len, .. } = self.object;
        let (from, count) = flight.pieces[piece];
        let wanted = Want { from, count, ..want(&address, len) };
        let (at, question) = match source {
            None => (address, Question::Get(vec![wanted])),
            Some(Node { contact, instance }) => {
                (Address { contact, instance, ..address }, Question::Pass { instance: address.instance, want: wanted })
            }
        };
        let limit = if source.is_none() { self.limit } else { self.patience() };
        let head = question.encode();
        // The first attempt has the landing; later ones have it when that gave it back.
        let first = Mutex::new(Some(landing));
        let parts = Arc::clone(&flight.parts);
        let asked = self.all.remote.with_peer("get", at, move |_, peer| {
            let landing = lock(&first).take().or_else(|| parts.lend(piece));
            let Some(landing) = landing else {
                let context = "the memory of a transfer that failed is still in use";
                return Pending::ready(Err(Error::new(ErrorKind::Unavailable, "get", context)));
            };
            let land = Box::new(Range { landing: Some(landing), spot: None });
            Arc::clone(peer).request(Call { head: head.clone(), land, lane: piece })
        });
        limit.start(asked)
    }

    /// How long a node in between may take for a piece: it may be stopped, and its own source too.
    fn patience(&self) -> Limit {
        self.limit.at_most((self.slowest * 8).max(PATIENCE))
    }
}

impl Flight {
    fn new(region: RegionMut, len: u64) -> Result<Self> {
        let step = relays::piece(len);
        let starts = (0..len.div_ceil(step)).map(|piece| piece * step);
        let pieces: Vec<(u64, u64)> = starts.map(|start| (start, step.min(len - start))).collect();
        let lens: Vec<usize> = pieces.iter().map(|(_, count)| *count as usize).collect();
        let parts = Arc::new(Parts::cut(region, &lens)?);
        Ok(Self { parts, pieces, landed: Vec::with_capacity(lens.len()), flying: VecDeque::new() })
    }

    /// Notes the next piece, all of which came.
    fn land(&mut self, answer: Answer, advance: &Advance) -> Result<(), Lost> {
        let (from, count) = self.pieces[self.landed.len()];
        match <[Landing; 1]>::try_from(answer.parts) {
            Ok([landing]) if landing.is_full() => self.landed.push(landing),
            _ => return Err(Lost::Relay),
        }
        advance.to(from + count);
        Ok(())
    }

    /// Waits for what is on its way from a node that failed, so that its landings come back: it is asked for again.
    fn settle(&mut self, limit: Limit) {
        std::mem::take(&mut self.flying).into_iter().for_each(|(piece, _)| drop(limit.wait(piece)));
    }

    fn finish(self) -> Result<RegionMut> {
        let Self { parts, landed, flying, .. } = self;
        drop(flying);
        match Arc::try_unwrap(parts) {
            Ok(parts) => parts.join(landed),
            Err(_) => Err(mismatch()),
        }
    }
}

/// Why a piece did not come.
enum Lost {
    /// The owner failed.
    Owner(Error),
    /// The owner does not have the object any more.
    Ended(Verdict),
    /// A node in between failed.
    Relay,
    /// There is nowhere for it to go.
    Landing,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let Pointer { address, len, .. } = self.object;
        let question = Question::Left { want: want(&address, len), is_whole: self.is_whole };
        // Nobody waits for the answer, and the owner finds out by itself if it does not hear of it.
        drop(Limit::new(None).start(self.fetch.remote.ask(address, question)));
    }
}

/// Pieces that are on their way at a time.
const WINDOW: usize = 4;

/// How long a node in between may take for a piece at least.
const PATIENCE: Duration = Duration::from_secs(5);
