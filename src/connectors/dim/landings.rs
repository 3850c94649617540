//! Where the bytes of remote objects go: cells of this node's memory, chosen before the question is asked.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Call, Land, Landing, Parts, Spot};
use crate::region::RegionMut;
use crate::service::locator::NO_PLACE;
use crate::service::question::{Question, Verdict, Want};
use crate::shm::class::Place;
use crate::sync::lock;

/// One question for the bytes of several objects, and where they go.
pub(super) struct Fetch {
    /// Of the objects.
    count: usize,
    parts: Arc<Mutex<Vec<Option<Parts>>>>,
    asked: Instant,
}

/// What came of one object.
pub(super) struct Fetched {
    pub(super) verdict: Verdict,
    /// The bytes, where the verdict is `Yes`.
    pub(super) region: Option<RegionMut>,
    /// When it was asked for: all that is known of the original is that it was there later than that.
    pub(super) asked: Instant,
}

impl Fetch {
    /// A call for the bytes of `wants`, each of which goes to the region beside it.
    pub(super) fn new(wants: Vec<(Want, RegionMut)>) -> (Self, Call) {
        let count = wants.len();
        let parts: Arc<Mutex<Vec<Option<Parts>>>> = Arc::new(Mutex::new((0..count).map(|_| None).collect()));
        let (wants, regions): (Vec<Want>, Vec<Option<RegionMut>>) =
            wants.into_iter().map(|(want, region)| (want, Some(region))).unzip();
        let counts = wants.iter().map(|want| want.count).collect();
        let head = Question::Get(wants).encode();
        let land = Cells { counts, regions, parts: Arc::clone(&parts) };
        (Self { count, parts, asked: Instant::now() }, Call { head, land: Box::new(land), lane: 0 })
    }

    /// What the answer says of each object, and its bytes.
    ///
    /// # Errors
    /// `Corrupt` when head and parts do not fit together.
    pub(super) fn finish(self, answer: Answer) -> Result<Vec<Fetched>> {
        let verdicts = Verdict::decode_all(&answer.head, self.count)?;
        let parts = std::mem::take(&mut *lock(&self.parts));
        let mut landings = answer.parts.into_iter();
        let mut fetched = Vec::with_capacity(verdicts.len());
        for (verdict, parts) in verdicts.into_iter().zip(parts) {
            let region = match (&verdict, parts) {
                (Verdict::Yes { .. }, Some(parts)) => Some(parts.join_one(landings.next().ok_or_else(mismatch)?)?),
                (Verdict::Yes { .. }, None) => return Err(mismatch()),
                _ => None,
            };
            fetched.push(Fetched { verdict, region, asked: self.asked });
        }
        match landings.next() {
            None => Ok(fetched),
            Some(_) => Err(mismatch()),
        }
    }
}

/// Lands each object that is found in its own cell.
struct Cells {
    /// How many bytes of each are wanted.
    counts: Vec<u64>,
    regions: Vec<Option<RegionMut>>,
    parts: Arc<Mutex<Vec<Option<Parts>>>>,
}

impl Land for Cells {
    fn land(&mut self, head: &[u8], lens: &[u64]) -> Result<Vec<Landing>> {
        let verdicts = Verdict::decode_all(head, self.counts.len())?;
        let mut lens = lens.iter();
        let mut landings = Vec::with_capacity(lens.len());
        let mut parts = lock(&self.parts);
        for (at, verdict) in verdicts.iter().enumerate() {
            if !matches!(verdict, Verdict::Yes { .. }) {
                continue;
            }
            let region = self.regions[at].take();
            let (Some(region), Some(len)) = (region, lens.next()) else { return Err(mismatch()) };
            if *len != self.counts[at] {
                return Err(mismatch());
            }
            let (whole, landing) = Landing::whole(region, *len as usize)?;
            parts[at] = Some(whole);
            landings.push(landing);
        }
        match lens.next() {
            None => Ok(landings),
            Some(_) => Err(mismatch()),
        }
    }
}

/// Lands an object, or a range of it, in its cell.
pub(super) struct Range {
    pub(super) landing: Option<Landing>,
    /// Where the bytes are, by the key. An object's bytes stay the same from before there is a key until it ends, so that who is
    /// told that it has not ended has the right ones, whenever they were read.
    pub(super) spot: Option<Spot>,
}

impl Range {
    /// A landing for the bytes that are wanted.
    pub(super) fn new(landing: Landing, want: &Want) -> Self {
        let place = Place::from_bits(want.place);
        let offset = place.offset().checked_add(want.from).filter(|_| want.place != NO_PLACE);
        Self { landing: Some(landing), spot: offset.map(|offset| Spot { segment: place.segment(), offset }) }
    }
}

impl Land for Range {
    fn land(&mut self, head: &[u8], lens: &[u64]) -> Result<Vec<Landing>> {
        match (Verdict::decode_one(head)?, lens, self.landing.take()) {
            (Verdict::Yes { .. }, [len], Some(landing)) if *len == landing.len() as u64 => Ok(vec![landing]),
            (Verdict::Yes { .. }, ..) => Err(mismatch()),
            (_, [], _) => Ok(Vec::new()),
            _ => Err(mismatch()),
        }
    }

    fn likely(&self) -> Option<Spot> {
        self.spot
    }

    fn lend(&mut self) -> Option<Landing> {
        self.landing.take()
    }

    fn give_back(&mut self, landing: Landing) {
        self.landing = Some(landing);
    }
}

pub(super) fn mismatch() -> Error {
    Error::new(ErrorKind::Corrupt, "get", "the other node's answer and the bytes that came with it do not fit together")
}
