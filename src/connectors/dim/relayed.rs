//! Large objects, which nodes that fetch them at the same time pass on to each other, piece by piece.
//!
//! ```text
//!   asks the owner:  Join ──> From(node), or Yes: from the owner itself
//!   pieces in order, some in flight:  Get of the owner, or Pass of that node
//!   each that came is there for others at once:  Advance::to
//!   a node that fails:  Join again, naming it, and on with the next piece that is missing
//!   one that is slow:   a Pass of nothing tells whether it lives: who waits itself is not to blame
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use smallvec::smallvec;

use super::landings::{self, Fetched, mismatch};
use super::objects::Objects;
use super::remote::{Found, Limit, refused, want};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Landing, Parts};
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
    /// The longest time from a question for a piece to its end.
    slowest: Duration,
    /// How often in a row a source that lives sent nothing in time.
    starved: u32,
}

/// What the owner said when this node joined.
struct Joined {
    verdict: Verdict,
    asked: Instant,
}

/// Tells the owner how it ended, so that this node is a source for others or is not.
struct Leaving {
    all: Arc<Objects>,
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
        let all = Arc::clone(self);
        Fetch { all, object, limit, lost: Vec::new(), slowest: Duration::ZERO, starved: 0 }.run(claim)
    }
}

impl Fetch {
    fn run(mut self, claim: Claim) -> Result<Found> {
        let Pointer { address, len, format } = self.object;
        let remote = Arc::clone(&self.all.remote);
        let joined = self.join()?;
        let (mut source, expires_in) = match joined.verdict {
            Verdict::Yes { expires_in } => (None, expires_in),
            Verdict::From { expires_in, node } => (Some(*node), expires_in),
            verdict => {
                let fetched = Fetched { verdict, region: None, asked: joined.asked };
                return remote.found(fetched, format, Some(claim));
            }
        };
        // Counted from the question: the answer may have come late, and the bytes come later.
        let expires = remote.expiry(expires_in, joined.asked);
        let mut leaving = Leaving { all: Arc::clone(&self.all), object: self.object, is_whole: false };
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
                    flight.flying.clear();
                    source = self.next_source(source)?;
                }
                Err(Lost::Slow(node)) => {
                    flight.flying.clear();
                    source = self.after_silence(node, flight.landed_bytes())?;
                }
                // A transfer that failed still has its landing: the object has to land elsewhere, for this caller alone.
                Err(Lost::Landing) => {
                    drop((flight, claim, leaving));
                    let alone = self.limit.wait(remote.fetch(address, len))?;
                    return remote.found(alone, format, None);
                }
            }
        }
        let region = flight.finish()?;
        let label = Label { len, expires, ..Client::label(format) };
        let landed = claim.land_arrived(region, label, remote.fresh_for(joined.asked));
        leaving.is_whole = landed.is_ok();
        Found::landed(landed)
    }

    /// Asks the owner from whom to get it.
    fn join(&self) -> Result<Joined> {
        let Pointer { address, len, .. } = self.object;
        let client = &self.all.client;
        // A service that was restarted may not have found its former port free.
        let contact = contact::read(client.table()).unwrap_or(self.all.remote.contact);
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
            Verdict::From { node, .. } => Some(*node),
            _ => None,
        })
    }

    /// From whom to go on after one that sent nothing in time: itself, while it lives and waits for its own source.
    fn after_silence(&mut self, node: Node, landed: u64) -> Result<Option<Node>> {
        let Pointer { address, len, .. } = self.object;
        let nothing = Want { from: landed, count: 0, ..want(&address, len) };
        let question = Question::Pass { instance: address.instance, want: nothing };
        let at = Address { contact: node.contact, instance: node.instance, ..address };
        self.starved += 1;
        match self.limit.at_most(SIGN_OF_LIFE).wait(self.all.remote.ask(at, question)) {
            Ok(Verdict::Yes { .. }) if self.starved <= MOST_STARVED => Ok(Some(node)),
            // Nobody is to blame, but there has to be an end.
            Ok(Verdict::Yes { .. }) => Ok(None),
            _ => {
                // What it has half sent lands no more, so that the memory can be asked for of others.
                if let Some(peer) = self.all.remote.peers.current(node.contact) {
                    peer.close();
                }
                self.next_source(Some(node))
            }
        }
    }

    /// Sees to it that enough pieces are on their way, and waits for the next.
    fn step(&mut self, flight: &mut Flight, source: Option<Node>, advance: &Advance) -> Result<(), Lost> {
        while flight.flying.len() < WINDOW && flight.landed.len() + flight.flying.len() < flight.pieces.len() {
            let piece = flight.landed.len() + flight.flying.len();
            let Some(landing) = flight.lend(piece) else { return Err(Lost::Landing) };
            let asked = self.ask(flight, piece, landing, source);
            flight.flying.push_back((asked, Instant::now()));
        }
        let Some((piece, begun)) = flight.flying.pop_front() else { return Ok(()) };
        let answer = match source {
            None => self.limit.wait(piece).map_err(|error| match flight.lend(flight.landed.len()) {
                Some(_) => Lost::Owner(error),
                // It failed because a transfer before it has not ended.
                None => Lost::Landing,
            })?,
            Some(node) => self.patience().wait(piece).map_err(|error| match error.kind() {
                ErrorKind::Timeout => Lost::Slow(node),
                _ => Lost::Relay,
            })?,
        };
        self.slowest = self.slowest.max(begun.elapsed());
        self.starved = 0;
        match Verdict::decode_one(&answer.head) {
            Ok(Verdict::Yes { .. }) if flight.land(answer, advance) => Ok(()),
            Ok(Verdict::Refused { kind }) if source.is_none() => {
                Err(Lost::Owner(refused("get", kind, self.all.scheme)))
            }
            Ok(verdict @ (Verdict::Missing | Verdict::Declared)) if source.is_none() => Err(Lost::Ended(verdict)),
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
            None => (address, Question::Get(smallvec![wanted])),
            Some(Node { contact, instance }) => {
                (Address { contact, instance, ..address }, Question::Pass { instance: address.instance, want: wanted })
            }
        };
        let limit = if source.is_none() { self.limit } else { self.patience() };
        let head = question.encode();
        // The first attempt has the landing; later ones have it when that gave it back.
        let first = Mutex::new(Some(landing));
        // Not its owner: an attempt may go on when nobody waits for it any more.
        let parts = Arc::downgrade(&flight.parts);
        let asked = self.all.remote.with_peer("get", at, move |_, peer| {
            let landing = lock(&first).take().or_else(|| parts.upgrade()?.lend(piece));
            let Some(landing) = landing else {
                let context = "the memory of a transfer that failed is still in use";
                return Pending::ready(Err(Error::new(ErrorKind::Unavailable, "get", context)));
            };
            // Where the key says that it lies, it lies at its owner.
            let spot = if source.is_none() { landings::spot(&wanted) } else { None };
            Arc::clone(peer).request(landings::call(head.clone(), landing, spot, piece))
        });
        limit.start(asked)
    }

    /// How long a node in between may take for a piece: it may be stopped, and its own source too.
    fn patience(&self) -> Limit {
        self.limit.at_most((self.slowest * 8).max(PATIENCE).min(self.limit.left() / 4))
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

    /// Notes the next piece; whether all of it came.
    fn land(&mut self, answer: Answer, advance: &Advance) -> bool {
        match answer.parts.into_inner() {
            Ok([landing]) if landing.is_full() => self.landed.push(landing),
            _ => return false,
        }
        advance.to(self.landed_bytes());
        true
    }

    fn landed_bytes(&self) -> u64 {
        self.pieces
            .get(self.landed.len())
            .map_or_else(|| self.pieces.iter().map(|(_, count)| count).sum(), |next| next.0)
    }

    /// Memory for a piece, which a transfer that was given up may have for a moment more.
    fn lend(&self, piece: usize) -> Option<Landing> {
        let begun = Instant::now();
        loop {
            let landing = self.parts.lend(piece);
            if landing.is_some() || begun.elapsed() > GIVING_BACK {
                return landing;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
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
    /// It sent nothing in time.
    Slow(Node),
    /// There is nowhere for it to go.
    Landing,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let Pointer { address, len, .. } = self.object;
        let question = Question::Left { want: want(&address, len), is_whole: self.is_whole };
        // Nobody waits for the answer, and the owner finds out by itself if it does not hear of it.
        drop(Limit::new(None).start(self.all.remote.ask(address, question)));
    }
}

/// Pieces that are on their way at a time.
const WINDOW: usize = 4;

/// How long a node in between may take for a piece at least, where there is time enough for other ways after that.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long one that took longer may take to say that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How often in a row it may say so.
const MOST_STARVED: u32 = 3;

/// How long a transfer that was given up may keep its landing, where it is not for ever.
const GIVING_BACK: Duration = Duration::from_millis(500);
