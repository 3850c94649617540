//! Where the bytes of remote objects go: cells of this node's memory, chosen before the question is asked.

use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Call, Head, Land, Lander, Landing, One, Spot};
use crate::region::Room;
use crate::service::locator::NO_PLACE;
use crate::service::question::{Question, Verdict, Want, Wants};
use crate::shm::class::Place;

/// One question for the bytes of several objects.
pub(super) struct Fetch {
    /// Of the objects.
    count: usize,
    asked: Instant,
}

/// What came of one object.
pub(super) struct Fetched {
    pub(super) verdict: Verdict,
    /// The bytes, where the verdict is `Yes`.
    pub(super) region: Option<Room>,
    /// When it was asked for: all that is known of the original is that it was there later than that.
    pub(super) asked: Instant,
}

impl Fetch {
    /// A call for the bytes of `wants`, each of which goes to the region of the same place.
    ///
    /// # Errors
    /// `TooLarge` for more than a region has room for.
    pub(super) fn new(wants: Wants, regions: Vec<Room>) -> Result<(Self, Call)> {
        let mut landings = Vec::with_capacity(wants.len());
        for (want, region) in wants.iter().zip(regions) {
            let len = usize::try_from(want.count).map_err(|_| mismatch())?;
            landings.push(Some(Landing::whole(region, len)?));
        }
        let land = Cells { landings };
        let count = wants.len();
        let head = Question::Get(wants).encode();
        Ok((Self { count, asked: Instant::now() }, Call { head, land: Box::new(land).into(), lane: 0 }))
    }

    /// What the answer says of each object, and its bytes.
    ///
    /// # Errors
    /// `Corrupt` when head and parts do not fit together.
    pub(super) fn finish(self, answer: Answer) -> Result<Vec<Fetched>> {
        let verdicts = Verdict::decode_all(&answer.head, self.count)?;
        let mut landings = answer.parts.into_iter();
        let mut fetched = Vec::with_capacity(verdicts.len());
        for verdict in verdicts {
            let region = match verdict {
                Verdict::Yes { .. } => Some(landings.next().ok_or_else(mismatch)?.into_room()?),
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
    landings: Vec<Option<Landing>>,
}

impl Land for Cells {
    fn land(&mut self, head: &[u8], lens: &[u64]) -> Result<Vec<Landing>> {
        let verdicts = Verdict::decode_all(head, self.landings.len())?;
        let mut lens = lens.iter();
        let mut landings = Vec::with_capacity(lens.len());
        for (landing, verdict) in self.landings.iter_mut().zip(&verdicts) {
            if !matches!(verdict, Verdict::Yes { .. }) {
                continue;
            }
            match (landing.take(), lens.next()) {
                (Some(landing), Some(len)) if landing.len() as u64 == *len => landings.push(landing),
                _ => return Err(mismatch()),
            }
        }
        match lens.next() {
            None => Ok(landings),
            Some(_) => Err(mismatch()),
        }
    }
}

/// A question about one object, whose bytes, or a range of them, go to that landing.
pub(super) fn call(head: Head, landing: Landing, spot: Option<Spot>, lane: usize) -> Call {
    let has_part = |head: &[u8]| Ok(matches!(Verdict::decode_one(head)?, Verdict::Yes { .. }));
    Call { head, land: Lander::One(One::new(landing, spot, has_part)), lane }
}

/// Where the bytes are, by the key. An object's bytes stay the same from before there is a key until it ends, so that who is told
/// that it has not ended has the right ones, whenever they were read.
pub(super) fn spot(want: &Want) -> Option<Spot> {
    let place = Place::from_bits(want.place);
    let offset = place.offset().checked_add(want.from).filter(|_| want.place != NO_PLACE);
    offset.map(|offset| Spot { segment: place.segment(), offset })
}

pub(super) fn mismatch() -> Error {
    Error::new(ErrorKind::Corrupt, "get", "the other node's answer and the bytes that came with it do not fit together")
}
