//! New segments: at once, or, where zeroing them takes long, by a thread of their own.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use super::{LARGEST_STEP, Memory, UNIT};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::mutant::mutant;
use crate::service::message::MAX_SEGMENTS;
use crate::shm::class::Class;
use crate::shm::segment::Segment;

/// A segment that a thread makes. Dropping this gives it up.
pub(super) struct Growth {
    index: u16,
    len: u64,
    made: Receiver<Result<Segment>>,
}

/// A segment that there may be: its number, the length that is hoped for, and the least.
struct Wish {
    index: u16,
    len: u64,
    least: u64,
}

impl Memory {
    /// Adds a segment in which a cell of this class has room, if the budget allows.
    pub(super) fn grow(&mut self, class: Class) -> Result<Option<u16>> {
        let Some(wish) = self.wish(class) else { return Ok(None) };
        let segment = wish.make()?;
        Ok(Some(self.add_segment(wish.index, segment)))
    }

    /// As [`grow`](Self::grow), but for one that is made meanwhile: to be asked again until it is there or there is none.
    pub(super) fn grow_aside(&mut self, class: Class) -> Result<Option<u16>> {
        if let Some(growth) = &self.growth {
            let made = match growth.made.try_recv() {
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::Disconnected) => {
                    Err(Error::new(ErrorKind::NoSpace, "reserve", "the thread that makes memory ended"))
                }
                Ok(made) => made,
            };
            let index = growth.index;
            self.growth = None;
            return made.map(|segment| Some(self.add_segment(index, segment)));
        }
        let Some(wish) = self.wish(class) else { return Ok(None) };
        let (maker, made) = channel();
        let growth = Growth { index: wish.index, len: wish.len, made };
        // Nobody listens when it is not wanted any more.
        let make = move || drop(maker.send(wish.make()));
        match thread::Builder::new().name("proxystore-grow".to_owned()).spawn(make) {
            Ok(_) => {
                self.growth = Some(growth);
                Ok(None)
            }
            Err(_) => self.grow(class),
        }
    }

    /// Whether memory of which this class may get some is being made.
    pub(in crate::service::server) fn is_growing_for(&self, class: Class) -> bool {
        self.growth.is_some() && class.capacity() > ASIDE
    }

    /// Nobody waits for the segment that is being made.
    pub(in crate::service::server) fn give_growth_up(&mut self) {
        self.growth = None;
    }

    fn wish(&self, class: Class) -> Option<Wish> {
        let total = self.arena.total_bytes() + self.growth.as_ref().map_or(0, |growth| growth.len);
        let left = self.budget.saturating_sub(total);
        let least = class.capacity().next_multiple_of(UNIT);
        // There may be as many as one packet can announce, so the later ones are larger.
        let step = LARGEST_STEP << (self.segments.len() / 64);
        let wanted = total.clamp(FIRST_SEGMENT, step).max(least);
        if least > left {
            return None;
        }
        // A former service may have made one that only a client has: its number is taken.
        let is_new = |index: &u16| self.table.segment(*index, 0).load(Acquire) == 0 || mutant!("grow_over");
        let is_growing = |index: &u16| self.growth.as_ref().is_some_and(|growth| growth.index == *index);
        let index = (0..MAX_SEGMENTS as u16)
            .find(|index| !self.segments.contains_key(index) && is_new(index) && !is_growing(index))?;
        Some(Wish { index, len: wanted.min(left / UNIT * UNIT).max(least), least })
    }

    fn add_segment(&mut self, index: u16, segment: Segment) -> u16 {
        let len = segment.len() as u64;
        failpoint!("service.segment.created");
        self.table.segment(index, 1).store(segment.pages() as u64, Relaxed);
        self.table.segment(index, 0).store(len, Release);
        self.segments.insert(index, segment);
        self.arena.add_segment(index, len);
        index
    }
}

impl Wish {
    fn make(&self) -> Result<Segment> {
        let create = |len: u64| Segment::create("proxystore-data", len as usize);
        // Less than what was hoped for is better than nothing.
        create(self.len).or_else(|error| if self.len > self.least { create(self.least) } else { Err(error) })
    }
}

/// Memory for larger cells is made aside: a gigabyte takes a third of a second, in which nobody else is served.
pub(super) const ASIDE: u64 = 256 << 20;

/// The first segment: small, because whoever puts first waits for its pages.
const FIRST_SEGMENT: u64 = 4 << 20;
