//! `Memory`: what the service owns, and what it knows of who has which part.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering::{Relaxed, Release};

use crate::environment;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::mutant::mutant;
use crate::service::arena::Arena;
use crate::shm::class::{Class, Place};
use crate::shm::futex;
use crate::shm::layout::{Layout, policy, word};
use crate::shm::mapped::Mapped;
use crate::shm::segment::{Access, Segment};
use crate::shm::table::{Id, State, Table};

mod growth;
mod rebuild;
mod replica;
mod shortage;
mod sweep;

use growth::Growth;
pub(super) use shortage::Shortage;

/// Segments, slots and pages of pin cells, with the service's own record of them.
///
/// The record is private: nothing that a client writes changes which memory is whose. It is rebuilt from the table when
/// another process takes over.
pub(super) struct Memory {
    ctl: Segment,
    pub(super) table: Table<Mapped>,
    segments: BTreeMap<u16, Segment>,
    arena: Arena,
    slots: Vec<Held>,
    free: Vec<u32>,
    /// Owner of each reserved page of pin cells, 0 for none.
    pages: Vec<u64>,
    /// Evicted objects whose memory is not free yet.
    dying: Vec<u32>,
    /// Whose cells were freed lately, and of which class.
    freed: Vec<(u64, Class)>,
    /// A large segment that is being made.
    growth: Option<Growth>,
    /// Most bytes of all data segments.
    pub(super) budget: u64,
    /// Most bytes of objects of other nodes, but for what is looked at.
    pub(super) replica_budget: u64,
    /// Bytes that were leased since somebody last looked at that budget.
    leased: u64,
    pub(super) counters: Counters,
}

/// What happened since the service began.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) reclaimed: u64,
    pub(super) expired: u64,
    pub(super) displaced: u64,
    pub(super) trimmed: u64,
    pub(super) quarantined: u64,
}

/// The service's record of a slot.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) generation: u64,
    pub(super) place: Place,
    pub(super) class: Class,
    /// Tag of the client that it was leased to, 0 when nobody has it.
    pub(super) owner: u64,
    queued: bool,
}

/// How far a lease may go for memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Effort {
    /// What is free.
    Free,
    /// New segments too.
    Grow,
    /// Objects that were not used for long too, where the policy says so.
    Displace,
}

impl Memory {
    /// Fresh memory: a control segment, no data.
    pub(super) fn create(budget: u64, stamp: bool) -> Result<Self> {
        let layout = Layout::SHARED;
        let ctl = Segment::create_sparse("proxystore-ctl", layout.words() * 8)?;
        let (offset, len) = layout.tables();
        ctl.reserve(offset, len)?;
        let table = Table::new(Mapped::new(ctl.map(Access::Write)?), layout);
        table.header(word::POLICY).store(if stamp { policy::STAMP } else { 0 }, Relaxed);
        table.header(word::BUDGET).store(budget, Relaxed);
        table.initialize(crate::key::random_number(), crate::key::random_number());
        let replica_budget = environment::replica_bytes().unwrap_or(budget / 4);
        table.header(word::REPLICA_BUDGET).store(replica_budget, Relaxed);
        let mut memory = Self::empty(ctl, table, BTreeMap::new(), Arena::new(), budget);
        memory.grow_slots()?;
        memory.grow_pages()?;
        Ok(memory)
    }

    /// Without a record of what the table says.
    fn empty(ctl: Segment, table: Table<Mapped>, segments: BTreeMap<u16, Segment>, arena: Arena, budget: u64) -> Self {
        let replica_budget = table.header(word::REPLICA_BUDGET).load(Relaxed);
        Self {
            ctl,
            table,
            segments,
            arena,
            slots: Vec::new(),
            free: Vec::new(),
            pages: Vec::new(),
            dying: Vec::new(),
            freed: Vec::new(),
            growth: None,
            budget,
            replica_budget,
            leased: 0,
            counters: Counters::default(),
        }
    }

    pub(super) fn ctl(&self) -> &Segment {
        &self.ctl
    }

    pub(super) fn instance(&self) -> u64 {
        self.table.header(word::INSTANCE).load(Relaxed)
    }

    pub(super) fn segments(&self) -> &BTreeMap<u16, Segment> {
        &self.segments
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(super) fn slots(&self) -> &[Held] {
        &self.slots
    }

    pub(super) fn dying(&self) -> &[u32] {
        &self.dying
    }

    pub(super) fn pages(&self) -> &[u64] {
        &self.pages
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Giving.

    /// Leases up to `count` cells of a class to `owner`; says whether segments were added, which must be announced first.
    ///
    /// # Errors
    /// `NoSpace` with the numbers when there is not even one.
    pub(super) fn lease(
        &mut self,
        owner: u64,
        class: Class,
        count: u32,
        request: u64,
        effort: Effort,
    ) -> Result<(Vec<u32>, Vec<u16>), Shortage> {
        failpoint!("service.lease.begin");
        let mut leased = Vec::with_capacity(count as usize);
        let mut added = Vec::new();
        while leased.len() < count as usize {
            // What is asked for in addition to the first is worth no effort when it is large.
            let effort = if leased.is_empty() || class.capacity() <= SMALL { effort } else { Effort::Free };
            let place =
                if class == NO_MEMORY { Ok(Place::from_bits(0)) } else { self.place(class, effort, &mut added) };
            let slot = place.and_then(|place| match self.free_slot() {
                Ok(slot) => Ok((place, slot)),
                Err(why) => {
                    if class != NO_MEMORY {
                        self.arena.free(place, class);
                    }
                    Err(Shortage { class, why })
                }
            });
            let (place, slot) = match slot {
                Ok(found) => found,
                Err(_) if !leased.is_empty() => break,
                Err(error) => return Err(error),
            };
            let held = &mut self.slots[slot as usize];
            (held.place, held.class, held.owner) = (place, class, owner);
            let id = Id { slot, generation: held.generation };
            self.table.lease(id, place.to_bits(), class.index() as u64, owner, request);
            leased.push(slot);
            if leased.len() == count as usize / 2 {
                failpoint!("service.lease.half");
            }
        }
        self.leased = self.leased.saturating_add(class.capacity() * leased.len() as u64);
        // Clients take the last one first: so neighbours are written one after the other, as the hardware expects.
        leased.sort_unstable_by_key(|slot| std::cmp::Reverse(self.slots[*slot as usize].place));
        failpoint!("service.lease.granted");
        Ok((leased, added))
    }

    fn place(&mut self, class: Class, effort: Effort, added: &mut Vec<u16>) -> Result<Place, Shortage> {
        if let Some(place) = self.allocate(class) {
            return Ok(place);
        }
        if self.reclaim() {
            if let Some(place) = self.allocate(class) {
                return Ok(place);
            }
        }
        let mut why = String::new();
        if effort >= Effort::Grow {
            match if class.capacity() > growth::ASIDE { self.grow_aside(class) } else { self.grow(class) } {
                Ok(Some(index)) => added.push(index),
                // Nothing has to go for what is on its way.
                Ok(None) if self.is_growing_for(class) => return Err(Shortage { class, why }),
                Ok(None) => {}
                Err(error) => why = format!(" ({error})"),
            }
            if let Some(place) = self.allocate(class) {
                return Ok(place);
            }
            // A client that was stopped or killed may not have told what it evicted.
            self.sweep(|_| false);
            if self.reclaim() {
                if let Some(place) = self.allocate(class) {
                    return Ok(place);
                }
            }
        }
        if effort >= Effort::Displace {
            // These can be had again.
            while self.displace_replicas(class.capacity()) {
                self.reclaim();
                if let Some(place) = self.allocate(class) {
                    return Ok(place);
                }
            }
        }
        if effort >= Effort::Displace && self.displaces() {
            while self.displace(class.capacity()) {
                self.reclaim();
                if let Some(place) = self.allocate(class) {
                    return Ok(place);
                }
            }
        }
        Err(Shortage { class, why })
    }

    /// A cell with all its pages.
    fn allocate(&mut self, class: Class) -> Option<Place> {
        let cell = self.arena.allocate(class)?;
        if cell.cold {
            let segment = self.segments.get(&cell.place.segment())?;
            if segment.reserve(cell.place.offset() as usize, class.capacity() as usize).is_err() {
                self.arena.free_cold(cell.place, class);
                return None;
            }
        }
        Some(cell.place)
    }

    /// Adds segments until there are `bytes` of them, within the budget.
    pub(super) fn prefault(&mut self, bytes: u64) -> Result<()> {
        while self.arena.total_bytes() < bytes.min(self.budget) {
            let rest = (bytes.min(self.budget) - self.arena.total_bytes()).min(LARGEST_STEP);
            let Some(class) = Class::of(rest.max(UNIT)) else { break };
            if self.grow(class)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn free_slot(&mut self) -> Result<u32, String> {
        if self.free.is_empty() {
            self.grow_slots().map_err(|error| format!(" ({error})"))?;
        }
        self.free.pop().ok_or_else(|| format!(" (all {} slots are in use)", self.slots.len()))
    }

    /// Reserves as many slots as there are, at most a large step.
    fn grow_slots(&mut self) -> Result<()> {
        let from = self.slots.len() as u32;
        let to = (from + from.clamp(4096, 1 << 17)).min(self.table.layout().slots);
        if to == from {
            return Ok(());
        }
        let (offset, len) = self.table.layout().slot_bytes(from, to);
        self.ctl.reserve(offset, len)?;
        for slot in from..to {
            let generation = self.table.free(slot, self.table.first_generation(slot));
            self.slots.push(Held { generation, place: Place::from_bits(0), class: NO_MEMORY, owner: 0, queued: false });
        }
        self.free.extend((from..to).rev());
        self.table.header(word::SLOTS).store(u64::from(to), Release);
        Ok(())
    }

    /// Gives a page of pin cells to a client.
    ///
    /// # Errors
    /// `NoSpace` when all are in use.
    pub(super) fn page(&mut self, owner: u64) -> Result<u32> {
        let page = match self.pages.iter().position(|owner| *owner == 0) {
            Some(page) => page,
            None => {
                let page = self.pages.len();
                self.grow_pages()?;
                page
            }
        };
        let Some(entry) = self.pages.get_mut(page) else {
            return Err(Error::new(ErrorKind::NoSpace, "get", "all pin cells of the node are in use"));
        };
        *entry = owner;
        self.table.clear_page(page as u32);
        self.table.page_owner(page as u32).store(owner, Release);
        Ok(page as u32)
    }

    fn grow_pages(&mut self) -> Result<()> {
        let from = self.pages.len() as u32;
        let to = (from + from.clamp(64, 4096)).min(self.table.layout().pages);
        if to > from {
            let (offset, len) = self.table.layout().page_bytes(from, to);
            self.ctl.reserve(offset, len)?;
            self.pages.resize(to as usize, 0);
            self.table.header(word::PAGES).store(u64::from(to), Release);
        }
        Ok(())
    }

    /// Leases of a client that were granted for a request whose answer nobody heard.
    pub(super) fn granted(&self, owner: u64, request: u64) -> Vec<u32> {
        (0..self.slots.len() as u32)
            .filter(|slot| {
                let held = self.slots[*slot as usize];
                let id = Id { slot: *slot, generation: held.generation };
                (held.owner == owner || mutant!("granted_owner"))
                    && (held.class == NO_MEMORY || self.segments.contains_key(&held.place.segment()))
                    && (self.table.state(*slot) == Some((held.generation, State::Reserved)) || mutant!("granted_state"))
                    && (self.table.read(id).request == request || mutant!("granted_request"))
            })
            .collect()
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Taking back.

    /// A client gives back a lease that it did not use.
    pub(super) fn give_back(&mut self, owner: u64, slot: u32) -> bool {
        let Some(held) = self.slots.get(slot as usize).copied() else { return false };
        if held.queued && !mutant!("return_queued") {
            return false;
        }
        if held.owner != owner && !mutant!("return_owner")
            || self.table.state(slot) != Some((held.generation, State::Reserved)) && !mutant!("return_state")
        {
            return false;
        }
        self.release(slot);
        true
    }

    /// A client says that it evicted an object.
    pub(super) fn evicted(&mut self, slot: u32) -> bool {
        let Some(held) = self.slots.get(slot as usize).copied() else { return false };
        if held.owner == 0
            || self.table.state(slot) != Some((held.generation, State::Dying)) && !mutant!("evicted_state")
        {
            // The sweep was faster, or it is not true.
            return false;
        }
        self.queue(slot);
        failpoint!("service.dying.queued");
        true
    }

    fn queue(&mut self, slot: u32) {
        // A link that somebody scribbled on may lead anywhere.
        let Some(held) = self.slots.get_mut(slot as usize) else { return };
        if !held.queued {
            held.queued = true;
            self.dying.push(slot);
        }
    }

    /// Makes a slot and its cell free; nobody may have either.
    fn release(&mut self, slot: u32) {
        let held = &mut self.slots[slot as usize];
        let (place, class) = (held.place, held.class);
        (held.owner, held.queued, held.class) = (0, false, NO_MEMORY);
        held.generation = self.table.free(slot, held.generation);
        if class != NO_MEMORY {
            self.arena.free(place, class);
        }
        self.free.push(slot);
    }

    /// Frees the memory of evicted objects that nobody looks at. Returns whether any was freed.
    pub(super) fn reclaim(&mut self) -> bool {
        let mut freed = false;
        // Objects of declared keys that end are found on the way.
        while !self.dying.is_empty() {
            failpoint!("service.reclaim.begin");
            let pinned = self.pinned_slots();
            failpoint!("service.reclaim.scanned");
            let (busy, unused): (Vec<u32>, Vec<u32>) =
                std::mem::take(&mut self.dying).into_iter().partition(|slot| pinned.contains(slot));
            self.dying = busy;
            let found = unused.len();
            for (n, slot) in unused.into_iter().enumerate() {
                let held = self.slots[slot as usize];
                if self.table.state(slot) != Some((held.generation, State::Dying)) {
                    // A put that raced with somebody's nonsense, which was taken for the end of the object.
                    self.slots[slot as usize].queued = false;
                    continue;
                }
                if self.slots[slot as usize].class == NO_MEMORY && !mutant!("reclaim_bound") {
                    if let Some(object) = self.table.bound_to(slot) {
                        if self.table.retire_object(object) {
                            self.queue(object.slot);
                        }
                    }
                }
                let held = self.slots[slot as usize];
                if self.freed.len() < MOST_FREED {
                    self.freed.push((held.owner, held.class));
                }
                self.release(slot);
                self.counters.reclaimed += 1;
                if n == found / 2 {
                    failpoint!("service.reclaim.half");
                }
            }
            freed |= found > 0;
            failpoint!("service.reclaim.end");
            if found == 0 {
                break;
            }
        }
        freed
    }

    /// Whose cells were freed since the last time, and of which class.
    pub(super) fn take_freed(&mut self) -> Vec<(u64, Class)> {
        std::mem::take(&mut self.freed)
    }

    fn pinned_slots(&self) -> HashSet<u32> {
        let mut pinned = HashSet::new();
        if mutant!("no_scan") {
            return pinned;
        }
        self.table.pinned(self.pages_in_use(), |_, slot| {
            pinned.insert(slot);
        });
        pinned
    }

    pub(super) fn pages_in_use(&self) -> impl Iterator<Item = u32> + '_ {
        self.pages.iter().enumerate().filter(|(_, owner)| **owner != 0).map(|(page, _)| page as u32)
    }

    /// A client is no more: its leases, pins and ephemeral objects end. Doing it twice does nothing.
    pub(super) fn bury(&mut self, tag: u64) {
        failpoint!("service.death.begin");
        self.release_pages(tag);
        self.sweep(|owner| owner == tag);
        failpoint!("service.death.swept");
        self.reclaim();
        // It may have been killed between a commit to a declared key and the wake-up.
        if !mutant!("bury_wake") {
            self.wake_all();
        }
        failpoint!("service.death.end");
    }

    fn release_pages(&mut self, tag: u64) {
        for page in 0..self.pages.len() {
            if self.pages[page] == tag && !mutant!("bury_pages") {
                self.table.clear_page(page as u32);
                self.table.page_owner(page as u32).store(0, Release);
                self.pages[page] = 0;
            }
        }
    }

    /// Wakes whoever waits for a declared key, to look again.
    pub(super) fn wake_all(&self) {
        for bucket in 0..crate::shm::layout::BUCKETS as u32 - 1 {
            futex::bump(self.table.bucket(bucket));
        }
        futex::bump(self.table.any_bucket());
    }

    /// Gives the pages of free memory back to the system; they come back when they are needed. Returns the bytes.
    ///
    /// None where memory was registered: an adapter would go on with the pages that it knows, and processes with new ones.
    pub(super) fn collect(&mut self) -> u64 {
        self.sweep(|_| false);
        self.reclaim();
        if self.table.header(word::REGISTERED).load(Relaxed) != 0 && !mutant!("collect_registered") {
            return 0;
        }
        let mut bytes = 0;
        // Whoever rebuilds must know that free memory may have no pages.
        self.table.header(word::COOLED).store(1, Relaxed);
        for (place, len) in self.arena.cool(UNIT, UNIT) {
            if let Some(segment) = self.segments.get(&place.segment()) {
                if segment.release(place.offset() as usize, len as usize).is_ok() {
                    bytes += len;
                }
            }
        }
        bytes
    }
}

/// The class of declared keys and empty objects.
const NO_MEMORY: Class = Class::EMPTY;

/// Freed cells that are remembered.
const MOST_FREED: usize = 1 << 16;

/// Segments are multiples of this, and of huge pages.
const UNIT: u64 = 2 << 20;

/// Segments double what there is, up to this step.
const LARGEST_STEP: u64 = 1 << 30;

/// Cells up to here are leased in batches at any price.
const SMALL: u64 = 64 << 10;

pub(crate) mod check;
#[cfg(test)]
mod tests;
