//! `Memory`: what the service owns, and what it knows of who has which part.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::mutant::mutant;
use crate::service::arena::Arena;
use crate::service::message::MAX_SEGMENTS;
use crate::shm::class::{Class, Place};
use crate::shm::layout::{Layout, policy, word};
use crate::shm::mapped::Mapped;
use crate::shm::preflight;
use crate::shm::segment::{Access, Segment};
use crate::shm::table::{BOUND, EPHEMERAL, Id, State, Table};
use crate::shm::{clock, futex};

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
    /// Most bytes of all data segments.
    pub(super) budget: u64,
    /// Whether a former service may have granted what it did not tell.
    rebuilt: bool,
    pub(super) counters: Counters,
}

/// What happened since the service began.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) reclaimed: u64,
    pub(super) expired: u64,
    pub(super) displaced: u64,
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
        let mut random = [0; 16];
        crate::key::fill_random(&mut random);
        let (instance, seed) = random.split_at(8);
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        table.header(word::POLICY).store(if stamp { policy::STAMP } else { 0 }, Relaxed);
        table.initialize(number(instance), number(seed));
        let mut memory = Self::empty(ctl, table, BTreeMap::new(), Arena::new(), budget);
        memory.grow_slots()?;
        memory.grow_pages()?;
        Ok(memory)
    }

    fn empty(ctl: Segment, table: Table<Mapped>, segments: BTreeMap<u16, Segment>, arena: Arena, budget: u64) -> Self {
        Self {
            ctl,
            table,
            segments,
            arena,
            slots: Vec::new(),
            free: Vec::new(),
            pages: Vec::new(),
            dying: Vec::new(),
            budget,
            rebuilt: false,
            counters: Counters::default(),
        }
    }

    /// Memory that another process made, or a former life of this service: the table says what is whose.
    ///
    /// `lives` tells whether a client's tag is of one that may still be there.
    pub(super) fn rebuild(
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
        let mut memory = Self::empty(ctl, table, segments, Arena::new(), budget);
        memory.read_table(lives);
        memory.rebuilt = true;
        memory.table.header(word::REBUILDS).fetch_add(1, Relaxed);
        failpoint!("service.rebuild.end");
        Ok(memory)
    }

    /// Fills the record from the table. Nonsense in the table costs the slot that it is in, nothing else.
    fn read_table(&mut self, lives: impl Fn(u64) -> bool) {
        let lens: Vec<(u16, u64)> = self.segments.iter().map(|(index, segment)| (*index, segment.len() as u64)).collect();
        let count = self.table.slots();
        let mut occupied = Vec::new();
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
                        occupied.push((held.place, class, slot));
                    }
                }
            }
            self.slots.push(held);
        }
        let (arena, refused) = Arena::rebuild(&lens, occupied);
        self.arena = arena;
        lost.extend(refused);
        self.counters.quarantined += lost.len() as u64;
        for slot in lost {
            // Its memory is somebody else's, or nowhere.
            let held = &mut self.slots[slot as usize];
            (held.owner, held.class) = (0, NO_MEMORY);
            held.generation = self.table.free(slot, held.generation);
        }
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
    pub(super) fn lease(&mut self, owner: u64, class: Class, count: u32, request: u64, effort: Effort) -> Result<(Vec<u32>, Vec<u16>)> {
        failpoint!("service.lease.begin");
        let mut leased = Vec::with_capacity(count as usize);
        let mut added = Vec::new();
        while leased.len() < count as usize {
            // What is asked for in addition to the first is worth no effort when it is large.
            let effort = if leased.is_empty() || class.capacity() <= SMALL { effort } else { Effort::Free };
            let place = if class == NO_MEMORY { Ok(Place::from_bits(0)) } else { self.place(class, effort, &mut added) };
            let slot = place.and_then(|place| match self.free_slot() {
                Ok(slot) => Ok((place, slot)),
                Err(error) => {
                    if class != NO_MEMORY {
                        self.arena.free(place, class);
                    }
                    Err(error)
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
        failpoint!("service.lease.granted");
        Ok((leased, added))
    }

    fn place(&mut self, class: Class, effort: Effort, added: &mut Vec<u16>) -> Result<Place> {
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
            match self.grow(class) {
                Ok(Some(index)) => added.push(index),
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
        if effort >= Effort::Displace && self.displaces() {
            while self.displace(class.capacity()) {
                self.reclaim();
                if let Some(place) = self.allocate(class) {
                    return Ok(place);
                }
            }
        }
        Err(self.exhausted(class, &why))
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

    /// Adds a segment in which a cell of this class has room, if the budget allows.
    fn grow(&mut self, class: Class) -> Result<Option<u16>> {
        let total = self.arena.total_bytes();
        let left = self.budget.saturating_sub(total);
        let needed = class.capacity().next_multiple_of(UNIT);
        // There may be as many as one packet can announce, so the later ones are larger.
        let step = LARGEST_STEP << (self.segments.len() / 64);
        let wanted = total.clamp(FIRST_SEGMENT, step).max(needed);
        if needed > left {
            return Ok(None);
        }
        // A former service may have made one that only a client has: its number is taken.
        let is_new = |index: &u16| self.table.segment(*index, 0).load(Acquire) == 0 || mutant!("grow_over");
        let Some(index) = (0..MAX_SEGMENTS as u16).find(|index| !self.segments.contains_key(index) && is_new(index)) else {
            return Ok(None);
        };
        let create = |len: u64| Segment::create("proxystore-data", len as usize);
        let wanted = wanted.min(left / UNIT * UNIT).max(needed);
        // Less than what was hoped for is better than nothing.
        let segment = create(wanted).or_else(|error| if wanted > needed { create(needed) } else { Err(error) })?;
        let len = segment.len() as u64;
        failpoint!("service.segment.created");
        self.table.segment(index, 1).store(segment.pages() as u64, Relaxed);
        self.table.segment(index, 0).store(len, Release);
        self.segments.insert(index, segment);
        self.arena.add_segment(index, len);
        Ok(Some(index))
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

    fn free_slot(&mut self) -> Result<u32> {
        if self.free.is_empty() {
            self.grow_slots()?;
        }
        self.free.pop().ok_or_else(|| {
            let context = format!("all {} slots are in use; evict objects", self.slots.len());
            Error::new(ErrorKind::NoSpace, "reserve", context)
        })
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

    /// Leases of a client that were granted for a request whose answer nobody heard, if there are any.
    pub(super) fn granted(&self, owner: u64, request: u64) -> Option<Vec<u32>> {
        if !self.rebuilt {
            return None;
        }
        let granted: Vec<u32> = (0..self.slots.len() as u32)
            .filter(|slot| {
                let held = self.slots[*slot as usize];
                let id = Id { slot: *slot, generation: held.generation };
                (held.owner == owner || mutant!("granted_owner"))
                    && (self.table.state(*slot) == Some((held.generation, State::Reserved)) || mutant!("granted_state"))
                    && (self.table.read(id).label.format.fingerprint == request || mutant!("granted_request"))
            })
            .collect();
        (!granted.is_empty()).then_some(granted)
    }

    /// A segment of this memory that only a client had.
    pub(super) fn adopt_segment(&mut self, index: u16, segment: Segment) {
        if self.table.segment(index, 0).load(Acquire) == segment.len() as u64 {
            self.segments.insert(index, segment);
        }
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Taking back.

    /// A client gives back a lease that it did not use.
    pub(super) fn give_back(&mut self, owner: u64, slot: u32) -> bool {
        let Some(held) = self.slots.get(slot as usize).copied() else { return false };
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
        if held.owner == 0 || self.table.state(slot) != Some((held.generation, State::Dying)) && !mutant!("evicted_state") {
            // The sweep was faster, or it is not true.
            return false;
        }
        self.queue(slot);
        failpoint!("service.dying.queued");
        true
    }

    fn queue(&mut self, slot: u32) {
        let held = &mut self.slots[slot as usize];
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
            let (busy, unused): (Vec<u32>, Vec<u32>) = std::mem::take(&mut self.dying).into_iter().partition(|slot| pinned.contains(slot));
            self.dying = busy;
            let found = unused.len();
            for (n, slot) in unused.into_iter().enumerate() {
                if self.slots[slot as usize].class == NO_MEMORY && !mutant!("reclaim_bound") {
                    if let Some(object) = self.table.bound_to(slot) {
                        if self.table.retire_object(object) {
                            self.queue(object.slot);
                        }
                    }
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

    /// Walks all slots: ends what dead clients left, finds what was evicted and not told, mends what makes no sense.
    pub(super) fn sweep(&mut self, dead: impl Fn(u64) -> bool) {
        let mut declared: HashMap<u32, u32> = HashMap::new();
        let mut bound = Vec::new();
        for slot in 0..self.slots.len() as u32 {
            let held = self.slots[slot as usize];
            let state = match self.table.state(slot) {
                Some((generation, state)) if generation == held.generation || mutant!("sweep_generation") => state,
                _ => {
                    self.mend(slot);
                    continue;
                }
            };
            match state {
                State::Free if held.owner != 0 => self.mend(slot),
                State::Free => {}
                _ if held.owner == 0 => self.mend(slot),
                State::Reserved if dead(held.owner) && !mutant!("sweep_leases") => self.release(slot),
                State::Reserved => {}
                State::Dying if mutant!("sweep_dying") => {}
                State::Dying => self.queue(slot),
                State::Live => {
                    let id = Id { slot, generation: held.generation };
                    let flags = self.table.read(id).label.flags;
                    if flags & BOUND != 0 {
                        bound.push((id, dead(held.owner)));
                    } else if flags & EPHEMERAL != 0 && (dead(held.owner) || mutant!("sweep_ephemeral")) && self.table.retire_object(id) {
                        self.queue(slot);
                    }
                }
                // First whether it has a link: one that comes between the two looks is not that of an object that is gone.
                State::Declared if self.table.is_bound(slot) => match self.table.bound_to(slot) {
                    Some(object) => {
                        declared.insert(object.slot, slot);
                    }
                    // Its object was taken or displaced, and that slot is another object's by now.
                    None => {
                        if !mutant!("sweep_reclaimed") && self.table.retire(Id { slot, generation: held.generation }) {
                            self.queue(slot);
                        }
                    }
                },
                State::Declared => {}
            }
        }
        for (object, producer_died) in bound {
            // Without a declaration that names it nobody can ever ask for it; a live producer may be about to bind it.
            if declared.remove(&object.slot).is_none() && (producer_died || mutant!("sweep_producer")) && !mutant!("sweep_unbound") && self.table.retire_object(object) {
                self.queue(object.slot);
            }
        }
        // What is left names objects that are gone: taken by somebody who was killed before it ended the declaration.
        for (object, slot) in declared {
            let gone = !matches!(self.table.state(object), Some((_, State::Live)));
            let id = Id { slot, generation: self.slots[slot as usize].generation };
            if gone && !mutant!("sweep_gone") && self.table.retire(id) {
                self.queue(slot);
            }
        }
    }

    /// Somebody wrote nonsense to a slot: the record says whose memory it is, so it is taken back as evicted.
    fn mend(&mut self, slot: u32) {
        self.counters.quarantined += 1;
        let held = self.slots[slot as usize];
        if held.owner == 0 || mutant!("mend_owner") {
            self.table.set(slot, held.generation, State::Free);
        } else {
            self.table.set(slot, held.generation, State::Dying);
            self.queue(slot);
        }
    }

    /// Ends the objects whose time has come; whether there can be any.
    pub(super) fn expire(&mut self) -> bool {
        if self.table.header(word::EXPIRES).load(Relaxed) == 0 {
            return false;
        }
        let now = clock::boot_millis();
        for slot in 0..self.slots.len() as u32 {
            let id = Id { slot, generation: self.slots[slot as usize].generation };
            if self.table.state(slot) == Some((id.generation, State::Live)) {
                let expires = self.table.read(id).label.expires;
                if expires != 0 && expires <= now && self.table.retire_object(id) {
                    self.counters.expired += 1;
                    self.queue(slot);
                }
            }
        }
        self.reclaim();
        true
    }

    fn displaces(&self) -> bool {
        self.table.header(word::POLICY).load(Relaxed) & policy::STAMP != 0
    }

    /// Evicts what was not used for longest and is not in use, at least `bytes` of it or all there is; whether there was any.
    fn displace(&mut self, bytes: u64) -> bool {
        let pinned = self.pinned_slots();
        let mut candidates = Vec::new();
        for (slot, held) in self.slots.iter().enumerate() {
            let slot = slot as u32;
            let id = Id { slot, generation: held.generation };
            if held.class != NO_MEMORY && self.table.state(slot) == Some((id.generation, State::Live)) && (!pinned.contains(&slot) || mutant!("displace_pinned")) {
                candidates.push((self.table.read(id).stamp, id, held.class.capacity()));
            }
        }
        candidates.sort_unstable_by_key(|(stamp, id, _)| (*stamp, id.slot));
        let mut freed = 0;
        for (_, id, capacity) in candidates {
            if freed >= bytes {
                break;
            }
            if self.table.retire_object(id) {
                self.queue(id.slot);
                self.counters.displaced += 1;
                freed += capacity;
            }
        }
        freed > 0
    }

    /// Wakes whoever waits for a declared key, to look again.
    pub(super) fn wake_all(&self) {
        for bucket in 0..crate::shm::layout::BUCKETS as u32 - 1 {
            futex::bump(self.table.bucket(bucket));
        }
        futex::bump(self.table.any_bucket());
    }

    /// Gives the pages of free memory back to the system; they come back when they are needed. Returns the bytes.
    pub(super) fn collect(&mut self) -> u64 {
        self.sweep(|_| false);
        self.reclaim();
        let mut bytes = 0;
        for (place, len) in self.arena.cool(UNIT, UNIT) {
            if let Some(segment) = self.segments.get(&place.segment()) {
                if segment.release(place.offset() as usize, len as usize).is_ok() {
                    bytes += len;
                }
            }
        }
        bytes
    }

    /// The error of a put that finds no memory: who has it.
    fn exhausted(&self, class: Class, why: &str) -> Error {
        let mut holders: HashMap<u64, (u64, u64)> = HashMap::new();
        let (mut live, mut leased) = (0, 0);
        for (slot, held) in self.slots.iter().enumerate() {
            if held.owner == 0 || held.class == NO_MEMORY {
                continue;
            }
            let bytes = held.class.capacity();
            match self.table.state(slot as u32) {
                Some((_, State::Reserved)) => leased += bytes,
                _ => live += bytes,
            }
            let entry = holders.entry(held.owner).or_default();
            *entry = (entry.0 + bytes, entry.1 + 1);
        }
        let dying: u64 = self.dying.iter().map(|slot| self.slots[*slot as usize].class.capacity()).sum();
        let mut holders: Vec<(u64, (u64, u64))> = holders.into_iter().collect();
        holders.sort_unstable_by_key(|(_, (bytes, _))| std::cmp::Reverse(*bytes));
        let largest: Vec<String> = holders
            .iter()
            .take(3)
            .map(|(tag, (bytes, count))| format!("{} holds {} in {count}", self.describe(*tag), mib(*bytes)))
            .collect();
        let context = format!(
            "{} needed; of a budget of {} objects have {} ({} evicted but still viewed), leases {}, free are {} in pieces of at most {}; {}{why}; \
             evict objects, or raise PROXYSTORE_SHM_BYTES (available: {})",
            mib(class.capacity()),
            mib(self.budget),
            mib(live),
            mib(dying),
            mib(leased),
            mib(self.arena.free_bytes()),
            mib(self.arena.largest_free()),
            if largest.is_empty() { "nobody holds any".to_owned() } else { largest.join(", ") },
            mib(preflight::room().bytes),
        );
        Error::new(ErrorKind::NoSpace, "reserve", context)
    }

    fn describe(&self, tag: u64) -> String {
        let index = super::index_of(tag);
        match self.table.client(index, crate::shm::layout::client::TAG).load(Relaxed) == tag {
            true => format!("process {}", self.table.client(index, crate::shm::layout::client::PID).load(Relaxed)),
            false => "a process that ended".to_owned(),
        }
    }
}

/// A generation for a slot that lost its own: one that no key has, but once in 2^61.
fn unused_generation() -> u64 {
    let mut random = [0; 8];
    crate::key::fill_random(&mut random);
    random.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)) >> (u64::BITS - Id::GENERATION_BITS)
}

/// Bytes for people.
pub(super) fn mib(bytes: u64) -> String {
    match bytes {
        0..=9999 => format!("{bytes} B"),
        _ if bytes < 10 << 20 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ if bytes < 10 << 30 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// The class of declared keys and empty objects.
const NO_MEMORY: Class = Class::EMPTY;

/// Segments are multiples of this, and of huge pages.
const UNIT: u64 = 2 << 20;

/// The first segment: small, because whoever puts first waits for its pages.
const FIRST_SEGMENT: u64 = 4 << 20;

/// Segments double what there is, up to this step.
const LARGEST_STEP: u64 = 1 << 30;

/// Cells up to here are leased in batches at any price.
const SMALL: u64 = 64 << 10;

pub(crate) mod check;
#[cfg(test)]
mod tests;
