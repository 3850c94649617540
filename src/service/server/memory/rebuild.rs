//! The service's record, made again from the table.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::{Held, Memory, NO_MEMORY};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::mutant::mutant;
use crate::service::arena::Arena;
use crate::service::message::MAX_SEGMENTS;
use crate::shm::class::{Class, Place};
use crate::shm::layout::{Layout, word};
use crate::shm::mapped::Mapped;
use crate::shm::segment::{Access, Segment};
use crate::shm::table::{Id, State, Table};

impl Memory {
    /// Memory that another process made, or a former life of this service: the table says what is whose.
    ///
    /// `lives` tells whether a client's tag is of one that may still be there.
    pub(in crate::service::server) fn rebuild(
        ctl: Segment,
        segments: BTreeMap<u16, Segment>,
        budget: u64,
        lives: impl Fn(u64) -> bool,
    ) -> Result<Self> {
        failpoint!("service.rebuild.begin");
        let table = Table::new(Mapped::new(ctl.map(Access::Write)?), Layout::SHARED);
        if !table.is_ours() {
            let context = "the control segment is not one of this version";
            return Err(Error::new(ErrorKind::Incompatible, "serve", context));
        }
        // What the first host decided holds for all.
        let budget = Some(table.header(word::BUDGET).load(Relaxed)).filter(|budget| *budget != 0).unwrap_or(budget);
        let mut memory = Self::empty(ctl, table, segments, Arena::new(), budget);
        memory.read_table(lives)?;
        memory.table.header(word::REBUILDS).fetch_add(1, Relaxed);
        failpoint!("service.rebuild.end");
        Ok(memory)
    }

    /// Fills the record from the table. Nonsense in the table costs the slot that it is in, nothing else.
    fn read_table(&mut self, lives: impl Fn(u64) -> bool) -> Result<()> {
        let count = self.reserved_slots()?;
        let mut lost = Vec::new();
        for slot in 0..count {
            let decoded = self.table.state(slot);
            let (generation, state) = decoded.unwrap_or_else(|| (unused_generation(), State::Free));
            let mut held = Held { generation, place: Place::from_bits(0), class: NO_MEMORY, owner: 0, queued: false };
            let object = self.table.read(Id { slot, generation });
            let class = u16::try_from(object.class).ok().and_then(Class::from_index);
            match (state, class) {
                (State::Free, _) => {
                    if decoded.is_none() {
                        lost.push(slot);
                    }
                }
                (_, None) => lost.push(slot),
                (_, Some(class)) => {
                    (held.class, held.owner) = (class, object.owner.max(1));
                    if class != NO_MEMORY {
                        held.place = Place::from_bits(object.place);
                    }
                }
            }
            self.slots.push(held);
        }
        lost.extend(self.make_arena());
        self.lose(&lost);
        self.pages = (0..self.table.pages()).map(|page| self.table.page_owner(page).load(Acquire)).collect();
        for slot in (0..count).rev() {
            if self.slots[slot as usize].owner == 0 {
                self.free.push(slot);
            }
        }
        let dead: HashSet<u64> = self.pages.iter().copied().filter(|tag| *tag != 0 && !lives(*tag)).collect();
        dead.iter().for_each(|tag| self.release_pages(*tag));
        self.sweep(|owner| owner > 1 && !lives(owner));
        self.reclaim();
        Ok(())
    }

    /// As many slots as the table says, if they have memory: to look at others would take as much, a gigabyte at most, and as
    /// long as that takes.
    fn reserved_slots(&self) -> Result<u32> {
        let layout = self.table.layout();
        let (start, slot) = (layout.slot_bytes(0, 0).0, layout.slot_bytes(0, 1).1);
        let there = (self.ctl.written_from(start)? / slot) as u32;
        let count = self.table.slots().min(if mutant!("rebuild_slots") { u32::MAX } else { there });
        self.table.header(word::SLOTS).store(u64::from(count), Release);
        Ok(count)
    }

    /// A segment of this memory that only a client had; whether it is one.
    pub(in crate::service::server) fn adopt_segment(&mut self, index: u16, segment: Segment) -> bool {
        if self.named_len(index) != Some(segment.len() as u64) {
            return false;
        }
        self.segments.insert(index, segment);
        for slot in self.make_arena() {
            // Another slot has the cell, and somebody may still look at this one.
            self.slots[slot as usize].class = NO_MEMORY;
            self.mend(slot);
        }
        true
    }

    /// Makes the arena from the record: all that nobody has is free. Returns the slots whose cells cannot be.
    fn make_arena(&mut self) -> Vec<u32> {
        let lens: Vec<(u16, u64)> =
            self.segments.iter().map(|(index, segment)| (*index, segment.len() as u64)).collect();
        let (mut occupied, mut lost) = (Vec::new(), Vec::new());
        for (slot, held) in self.slots.iter().enumerate().filter(|(_, held)| held.owner != 0 && held.class != NO_MEMORY)
        {
            let segment = held.place.segment();
            if self.segments.contains_key(&segment) {
                occupied.push((held.place, held.class, slot as u32));
            } else if self.named_len(segment).is_none() {
                lost.push(slot as u32);
            }
            // What lies in a segment that a client may still bring is neither lost nor free.
        }
        let (arena, refused) = Arena::rebuild(&lens, occupied);
        self.arena = arena;
        if self.table.header(word::COOLED).load(Relaxed) != 0 {
            let _ = self.arena.cool(PAGE, PAGE);
        }
        lost.extend(refused);
        lost
    }

    /// Gives up slots whose memory is somebody else's, or nowhere.
    fn lose(&mut self, lost: &[u32]) {
        self.counters.quarantined += lost.len() as u64;
        for slot in lost {
            let held = &mut self.slots[*slot as usize];
            (held.owner, held.class) = (0, NO_MEMORY);
            held.generation = self.table.free(*slot, held.generation);
        }
    }

    /// Segments that the table names and nobody brought yet.
    fn missing_segments(&self) -> Vec<u16> {
        let missing = |index: &u16| self.named_len(*index).is_some() && !self.segments.contains_key(index);
        (0..MAX_SEGMENTS as u16).filter(missing).collect()
    }

    /// Whether the table names memory that nobody brought yet.
    pub(in crate::service::server) fn misses_segments(&self) -> bool {
        !self.missing_segments().is_empty()
    }

    /// Everybody is here, and nobody has the rest: what lay there is gone with its last holder.
    pub(in crate::service::server) fn forget_missing_segments(&mut self) {
        for index in self.missing_segments() {
            self.table.segment(index, 0).store(0, Release);
            for slot in 0..self.slots.len() as u32 {
                let held = self.slots[slot as usize];
                if held.owner != 0 && held.class != NO_MEMORY && held.place.segment() == index {
                    self.table.set(slot, held.generation, State::Dying);
                    self.queue(slot);
                }
            }
        }
        self.reclaim();
    }

    /// The length of a segment that the table names, if it can be one.
    fn named_len(&self, index: u16) -> Option<u64> {
        if usize::from(index) >= MAX_SEGMENTS {
            return None;
        }
        let len = self.table.segment(index, 0).load(Acquire);
        (len != 0 && len % 4096 == 0).then_some(len)
    }
}

/// Pages are reserved again in multiples of this.
const PAGE: u64 = 4096;

/// A generation for a slot that lost its own: one that no key has, but once in 2^61.
fn unused_generation() -> u64 {
    crate::key::random_number() >> (u64::BITS - Id::GENERATION_BITS)
}
