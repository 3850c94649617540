//! `Table`: the slots, pins and clients of a namespace in shared memory, and the steps of the protocol.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use super::layout::{BUCKETS, Layout, MAGIC, client, slot, word};
use super::mem::Mem;
use crate::key::Format;
use crate::mutant::mutant;
use crate::sync::modelled::{AtomicU64, fence};

pub(crate) use leaving::Others;
pub(crate) use replica::{Claimed, FoundReplica, Origin};

/// The control segment, and every step that a process takes in it.
///
/// A slot goes round, one generation each time:
///
/// ```text
///            service                 client: the linearisation point          client or service
///   FREE ───────────────> RESERVED ─────────────────────────────────> LIVE ────────────────────> DYING
///    ^                       │ └────────────> DECLARED ───────────────────────────────────────────> │
///    │                       v                                                                      │
///    └────── service: generation + 1, once no pin cell names the slot <─────────────────────────────┘
/// ```
///
/// Who may write: the service everything; a client the fields and the state of a slot that it leased, the pin cells of its own
/// pages, and the two steps to DYING by compare-and-swap. The table is the only truth: all else is rebuilt from it.
///
/// Nothing that is read here is trusted: states are decoded, numbers are compared with what the reader knows.
pub(crate) struct Table<M> {
    mem: M,
    layout: Layout,
}

/// One object that a slot holds, held or will hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Id {
    pub(crate) slot: u32,
    pub(crate) generation: u64,
}

/// The state of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum State {
    /// Nobody's.
    Free = 0,
    /// Leased; its cell is being written or waits for that.
    Reserved = 1,
    /// An object that everybody may read.
    Live = 2,
    /// Evicted; its memory is somebody's until no pin names it.
    Dying = 3,
    /// The key of an object that comes later; its place word names the object once it is there.
    Declared = 4,
}

impl Id {
    /// Bits of a generation; a state word has no more.
    pub(crate) const GENERATION_BITS: u32 = u64::BITS - STATE_BITS;
}

impl State {
    fn word(self, generation: u64) -> u64 {
        generation << STATE_BITS | self as u64
    }

    /// The generation and the state of a word; `None` for a word that nobody writes.
    pub(crate) fn of(word: u64) -> Option<(u64, Self)> {
        let state = match word & STATE_MASK {
            0 => Self::Free,
            1 => Self::Reserved,
            2 => Self::Live,
            3 => Self::Dying,
            4 => Self::Declared,
            _ => return None,
        };
        Some((word >> STATE_BITS, state))
    }
}

/// What a producer says of its object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Label {
    pub(crate) len: u64,
    pub(crate) format: Format,
    pub(crate) flags: u16,
    /// Milliseconds of CLOCK_BOOTTIME, 0 for never.
    pub(crate) expires: u64,
}

/// The object is evicted when its producer ends.
pub(crate) const EPHEMERAL: u16 = 1 << 0;
/// The object belongs to a declared key, and goes if it never came to that.
pub(crate) const BOUND: u16 = 1 << 1;
/// The bytes are the address of an object on another node, which is meant.
#[cfg(feature = "tcp")]
pub(crate) const REDIRECT: u16 = 1 << 3;

/// The slot leads to an object of another node, or holds one.
pub(crate) const REPLICA: u16 = 1 << 2;
/// The object is not whole yet; see `table/arriving.rs`.
pub(crate) const ARRIVING: u16 = 1 << 4;

/// The words of a slot, read one by one and not checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object {
    /// The slot that holds the bytes: of a declared key not its own.
    pub(crate) id: Id,
    pub(crate) place: u64,
    pub(crate) class: u64,
    /// Number of the request that the slot was leased for.
    pub(crate) request: u64,
    pub(crate) owner: u64,
    pub(crate) label: Label,
    /// Epoch of the last use.
    pub(crate) stamp: u32,
}

/// What a key leads to.
#[derive(Debug)]
pub(crate) enum Found {
    /// The object, pinned.
    Object(Object),
    /// A declared key whose object has not come yet.
    Declared,
    /// Evicted, taken, never there.
    Missing,
}

/// Why an object cannot become that of a declared key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unbound {
    /// Another one did.
    Taken,
    /// The declaration has another format.
    Format,
    /// There is no such declaration, or not any more.
    Missing,
}

impl<M: Mem> Table<M> {
    /// A table in memory that holds [`Layout::words`] words.
    pub(crate) fn new(mem: M, layout: Layout) -> Self {
        Self { mem, layout }
    }

    pub(crate) fn mem(&self) -> &M {
        &self.mem
    }

    #[inline]
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A word of the header.
    #[inline]
    pub(crate) fn header(&self, at: usize) -> &AtomicU64 {
        self.mem.word(at)
    }

    /// The counter that goes up whenever something happened to declared keys of this bucket; a futex.
    pub(crate) fn bucket(&self, slot: u32) -> &AtomicU64 {
        self.mem.word(self.layout.bucket(slot as usize % (BUCKETS - 1)))
    }

    /// The counter that goes up with every other one.
    pub(crate) fn any_bucket(&self) -> &AtomicU64 {
        self.mem.word(self.layout.bucket(BUCKETS - 1))
    }

    #[inline]
    fn slot(&self, slot: u32, at: usize) -> &AtomicU64 {
        self.mem.word(self.layout.slot(slot) + at)
    }

    #[inline]
    fn cell(&self, cell: u32) -> &AtomicU64 {
        self.mem.word(self.layout.cell(cell))
    }

    /// How many slots are reserved, hence may be touched; never more than there are.
    #[inline]
    pub(crate) fn slots(&self) -> u32 {
        (self.header(word::SLOTS).load(Acquire)).min(u64::from(self.layout.slots)) as u32
    }

    /// How many pages of pin cells are reserved.
    pub(crate) fn pages(&self) -> u32 {
        (self.header(word::PAGES).load(Acquire)).min(u64::from(self.layout.pages)) as u32
    }

    /// The address of a pin cell's word, for views that give it up by themselves.
    #[inline]
    pub(crate) fn cell_word(&self, cell: u32) -> &AtomicU64 {
        self.cell(cell)
    }

    /// The state word of a slot, decoded.
    pub(crate) fn state(&self, slot: u32) -> Option<(u64, State)> {
        State::of(self.slot(slot, slot::STATE).load(mutant!(Acquire, "state_acquire")))
    }

    /// The words of a live object that is not pinned: together of one moment at which it was live.
    ///
    /// It may be gone by the time that this returns.
    #[inline]
    pub(crate) fn peek(&self, id: Id) -> Option<Object> {
        let live = State::Live.word(id.generation);
        if self.slot(id.slot, slot::STATE).load(Acquire) != live {
            return None;
        }
        let object = self.read(id);
        // SYNC POINT: `lease`. If any word above is one of the slot's next use, the state below is not the one above:
        // generations never come back.
        fence(Acquire);
        (self.slot(id.slot, slot::STATE).load(Relaxed) == live).then_some(object)
    }

    /// The words of a slot as they are, for the service and for lists; an object's only while it is pinned.
    #[inline(always)]
    pub(crate) fn read(&self, id: Id) -> Object {
        let load = |at| self.slot(id.slot, at).load(Relaxed);
        let meta = load(slot::META);
        let format = Format { codec: meta as u16, fingerprint: load(slot::FINGERPRINT) };
        Object {
            id,
            place: load(slot::PLACE),
            class: load(slot::CLASS) & ((1 << CLASS_BITS) - 1),
            request: load(slot::CLASS) >> CLASS_BITS,
            owner: load(slot::OWNER),
            label: Label { len: load(slot::LEN), format, flags: (meta >> 16) as u16, expires: load(slot::EXPIRES) },
            stamp: (meta >> 32) as u32,
        }
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Clients.

    /// Says that the caller soon uses a leased slot: the service wrote it last, on another processor.
    #[inline]
    pub(crate) fn anticipate(&self, slot: u32) {
        self.mem.anticipate(self.layout.slot(slot));
    }

    /// Makes what was written to the cell of a leased slot an object: the one step at which a put happens.
    #[inline]
    pub(crate) fn publish(&self, id: Id, label: &Label, stamp: u32) {
        self.label(id.slot, label, stamp);
        // SYNC POINT: `pin`. The bytes and the label come before.
        self.slot(id.slot, slot::STATE).store(State::Live.word(id.generation), mutant!(Release, "publish_release"));
    }

    /// Makes a leased slot the key of an object that comes later.
    pub(crate) fn declare(&self, id: Id, format: Format) {
        self.label(id.slot, &Label { len: 0, format, flags: 0, expires: 0 }, 0);
        self.slot(id.slot, slot::PLACE).store(0, Relaxed);
        // SYNC POINT: `pin`, `bind`.
        self.slot(id.slot, slot::STATE).store(State::Declared.word(id.generation), mutant!(Release, "declare_release"));
    }

    #[inline]
    fn label(&self, slot: u32, label: &Label, stamp: u32) {
        let store = |at, value| self.slot(slot, at).store(value, Relaxed);
        store(slot::LEN, label.len);
        store(slot::FINGERPRINT, label.format.fingerprint);
        store(slot::META, meta(label, stamp));
        store(slot::EXPIRES, label.expires);
    }

    /// Looks an object up and keeps its memory, by a pin cell of the caller's own that names nothing.
    ///
    /// The cell names the object's slot when, and only when, an object was found.
    #[inline(always)]
    pub(crate) fn pin(&self, cell: u32, id: Id) -> Found {
        let state = self.point(cell, id.slot);
        if state == State::Live.word(id.generation)
            || mutant!("pin_generation") && state & STATE_MASK == State::Live as u64
        {
            return Found::Object(self.read(id));
        }
        self.pin_declared(cell, id, state)
    }

    #[cold]
    fn pin_declared(&self, cell: u32, id: Id, state: u64) -> Found {
        let mut found = Found::Missing;
        if state == State::Declared.word(id.generation) {
            // SYNC POINT: `bind`.
            match self.slot(id.slot, slot::PLACE).load(Acquire) {
                0 => found = Found::Declared,
                link => {
                    if let Some(target) = self.linked(link) {
                        let state = self.point(cell, target.0);
                        if State::of(state).is_some_and(|(generation, state)| {
                            state == State::Live
                                && (generation & LINK_GENERATION == target.1 || mutant!("pin_link_generation"))
                        }) {
                            return Found::Object(self.read(Id { slot: target.0, generation: state >> STATE_BITS }));
                        }
                    }
                }
            }
        }
        self.unpin(cell);
        found
    }

    /// Names a slot in a cell, and only then looks at its state.
    #[inline(always)]
    fn point(&self, cell: u32, slot: u32) -> u64 {
        // SYNC POINT: `pinned`. A scan that sees this cell name another slot than before knows that the view before is over.
        self.cell(cell).store(u64::from(slot) + 1, mutant!(Release, "point_release"));
        // SYNC POINT: `pinned`. Either the service's scan sees the cell, or this load sees DYING: the two fences are in one
        // order, and what stands before the earlier one is seen by what stands after the later one.
        if !mutant!("pin_fence") {
            fence(SeqCst);
        }
        self.slot(slot, slot::STATE).load(mutant!(Acquire, "point_acquire"))
    }

    /// Gives up a pin: the bytes must not be looked at any more.
    #[inline]
    pub(crate) fn unpin(&self, cell: u32) {
        unpin(self.cell(cell));
    }

    /// Whether a pin cell names nothing.
    #[inline]
    pub(crate) fn is_unpinned(&self, cell: u32) -> bool {
        // SYNC POINT: `unpin`, by another thread. What was read through the pin before is over for whoever sees the next.
        self.cell(cell).load(mutant!(Acquire, "unpinned_acquire")) == 0
    }

    /// Marks a pinned object as used in `epoch`.
    ///
    /// Readers race here, and all write the same: the object's label does not change while it is pinned.
    #[inline]
    pub(crate) fn stamp(&self, object: &Object, epoch: u32) {
        if object.stamp != epoch {
            // SYNC POINT: `expires`. It covers the word that says what another one means.
            self.slot(object.id.slot, slot::META).store(meta(&object.label, epoch), mutant!(Release, "stamp_release"));
        }
    }

    /// Ends an object or a declaration: `true` for the one caller that did.
    ///
    /// The memory is not free before the service has seen to it: tell it the slot.
    pub(crate) fn retire(&self, id: Id) -> bool {
        self.step(id, State::Live, State::Dying) || self.step(id, State::Declared, State::Dying)
    }

    /// Ends an object, not a declaration: of any number of callers the one that gets it.
    pub(crate) fn retire_object(&self, id: Id) -> bool {
        self.step(id, State::Live, State::Dying)
    }

    fn step(&self, id: Id, from: State, to: State) -> bool {
        let state = self.slot(id.slot, slot::STATE);
        if mutant!("step_without_cas") {
            let holds = state.load(Acquire) == from.word(id.generation);
            if holds {
                state.store(to.word(id.generation), Release);
            }
            return holds;
        }
        let id =
            if mutant!("step_generation") { Id { generation: state.load(Acquire) >> STATE_BITS, ..id } } else { id };
        // Stronger than it has to be: who reads DYING goes on to a fence, as did whoever pinned what it takes.
        state.compare_exchange(from.word(id.generation), to.word(id.generation), AcqRel, Relaxed).is_ok()
    }

    /// Makes a live object, labelled [`BOUND`], that of a declared key: the one step at which a deferred put happens.
    ///
    /// `cell` names the declaration meanwhile, so that its slot cannot become another one's.
    pub(crate) fn bind(&self, cell: u32, declared: Id, format: Format, object: Id) -> Result<(), Unbound> {
        self.bind_if(cell, declared, object, |label| match label.flags & REPLICA == 0 || mutant!("bind_replica") {
            true if label.format == format || mutant!("bind_format") => Ok(()),
            true => Err(Unbound::Format),
            // Nobody has the key of one.
            false => Err(Unbound::Missing),
        })
    }

    /// As [`bind`](Self::bind), if `check` finds nothing wrong with the declaration's words.
    fn bind_if(
        &self,
        cell: u32,
        declared: Id,
        object: Id,
        check: impl FnOnce(&Label) -> Result<(), Unbound>,
    ) -> Result<(), Unbound> {
        let state = match mutant!("bind_unpinned") {
            true => self.slot(declared.slot, slot::STATE).load(Acquire),
            false => self.point(cell, declared.slot),
        };
        let bound = if state == State::Live.word(declared.generation) {
            Err(Unbound::Taken)
        } else if state != State::Declared.word(declared.generation) && !mutant!("bind_generation") {
            Err(Unbound::Missing)
        } else {
            check(&self.read(declared).label).and_then(|()| {
                let link = u64::from(object.slot + 1) << LINK_SLOT | object.generation & LINK_GENERATION;
                // SYNC POINT: `pin_declared`, `examine`. Stronger than it has to be: the fence of `point` already puts the object
                // before its link.
                match self.slot(declared.slot, slot::PLACE).compare_exchange(0, link, AcqRel, Relaxed) {
                    Err(_) if mutant!("bind_over") => {
                        self.slot(declared.slot, slot::PLACE).store(link, Release);
                        Ok(())
                    }
                    Ok(_) => Ok(()),
                    Err(_) => Err(Unbound::Taken),
                }
            })
        };
        self.unpin(cell);
        bound
    }

    /// Whether something was committed to a declaration.
    pub(crate) fn is_bound(&self, declared: u32) -> bool {
        self.slot(declared, slot::PLACE).load(Acquire) != 0
    }

    /// The slot and the low bits of the generation in a link, if it can be one.
    fn linked(&self, link: u64) -> Option<(u32, u64)> {
        let slot = (link >> LINK_SLOT).checked_sub(1)?;
        (slot < u64::from(self.slots())).then_some((slot as u32, link & LINK_GENERATION))
    }

    // ------------------------------------------------------------------------------------------------------------------
    // The service, which is one thread.

    /// Writes the header of fresh memory.
    pub(crate) fn initialize(&self, instance: u64, seed: u64) {
        self.header(word::INSTANCE).store(instance, Relaxed);
        self.header(word::SEED).store(seed, Relaxed);
        self.header(word::EPOCH).store(1, Relaxed);
        self.header(word::VERSION).store(Layout::VERSION, Relaxed);
        self.header(word::MAGIC).store(MAGIC, Release);
    }

    /// Whether the header is one of this version.
    pub(crate) fn is_ours(&self) -> bool {
        self.header(word::MAGIC).load(Acquire) == MAGIC && self.header(word::VERSION).load(Relaxed) == Layout::VERSION
    }

    /// The first generation of a slot: nothing that follows from another slot's, so a key with a wrong slot names nothing.
    pub(crate) fn first_generation(&self, slot: u32) -> u64 {
        mix(self.header(word::SEED).load(Relaxed) ^ spread(u64::from(slot) + 1)) >> STATE_BITS
    }

    /// Makes a slot nobody's, in its next generation, which it returns.
    pub(crate) fn free(&self, slot: u32, generation: u64) -> u64 {
        let next = (generation + u64::from(!mutant!("free_generation"))) & (u64::MAX >> STATE_BITS);
        self.slot(slot, slot::STATE).store(State::Free.word(next), mutant!(Release, "free_release"));
        next
    }

    /// Overwrites the state of a slot that holds nonsense.
    pub(crate) fn set(&self, slot: u32, generation: u64, state: State) {
        self.slot(slot, slot::STATE).store(state.word(generation), SeqCst);
    }

    /// Lends a free slot and its cell to a client.
    ///
    /// `request` stands in the slot, where no client writes, so that a service that was killed before it answered can say it again.
    pub(crate) fn lease(&self, id: Id, place: u64, class: u64, owner: u64, request: u64) {
        // SYNC POINT: `peek`. The end of the slot's last use comes before what follows.
        fence(Release);
        self.slot(id.slot, slot::PLACE).store(place, Relaxed);
        self.slot(id.slot, slot::CLASS).store(class | request << CLASS_BITS, Relaxed);
        self.slot(id.slot, slot::OWNER).store(owner, Relaxed);
        self.slot(id.slot, slot::META).store(0, Relaxed);
        self.slot(id.slot, slot::STATE).store(State::Reserved.word(id.generation), mutant!(Release, "lease_release"));
    }

    /// Tells `seen` each slot that a pin cell of these pages names.
    ///
    /// What it does not tell and was DYING before the call is nobody's any more.
    pub(crate) fn pinned(&self, pages: impl IntoIterator<Item = u32>, mut seen: impl FnMut(u32, u32)) {
        // SYNC POINT: `point`.
        if !mutant!("scan_fence") {
            fence(SeqCst);
        }
        for page in pages {
            for cell in page * self.layout.cells..(page + 1) * self.layout.cells {
                // SYNC POINT: `unpin`.
                let named = self.cell(cell).load(mutant!(Acquire, "scan_acquire"));
                if named != 0 && named <= u64::from(self.layout.slots) {
                    seen(cell, named as u32 - 1);
                }
            }
        }
    }

    /// What was committed to a declaration that is dying and not pinned, hence cannot change any more.
    pub(crate) fn bound_to(&self, declared: u32) -> Option<Id> {
        let (slot, low) = self.linked(self.slot(declared, slot::PLACE).load(mutant!(Acquire, "bound_to_acquire")))?;
        let (generation, _) = self.state(slot)?;
        (generation & LINK_GENERATION == low || mutant!("bound_to_generation")).then_some(Id { slot, generation })
    }

    /// The client that a page of pin cells belongs to; 0 for none.
    pub(crate) fn page_owner(&self, page: u32) -> &AtomicU64 {
        self.mem.word(self.layout.owner(page))
    }

    /// Clears a page of pin cells.
    pub(crate) fn clear_page(&self, page: u32) {
        for cell in page * self.layout.cells..(page + 1) * self.layout.cells {
            self.cell(cell).store(0, Release);
        }
    }

    /// A word of a client's entry.
    pub(crate) fn client(&self, index: u32, at: usize) -> &AtomicU64 {
        debug_assert!(at <= client::PID);
        self.mem.word(self.layout.client(index) + at)
    }

    /// Length in bytes (word 0) and kind of pages (word 1) of a segment.
    pub(crate) fn segment(&self, index: u16, at: usize) -> &AtomicU64 {
        self.mem.word(self.layout.segment(index) + at)
    }
}

/// Gives up a pin by its word.
#[inline]
pub(crate) fn unpin(cell: &AtomicU64) {
    // SYNC POINT: `pinned`. What was read of the object was read before.
    cell.store(0, mutant!(Release, "unpin_release"));
}

fn meta(label: &Label, stamp: u32) -> u64 {
    u64::from(label.format.codec) | u64::from(label.flags) << 16 | u64::from(stamp) << 32
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Its step.
fn spread(x: u64) -> u64 {
    x.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Low bits of the class word that are the class; above is the number of a request.
const CLASS_BITS: u32 = 16;

/// Low bits of the state word that are the state.
const STATE_BITS: u32 = 3;
const STATE_MASK: u64 = (1 << STATE_BITS) - 1;

/// A link is slot + 1 above this bit, and the low bits of the generation below.
const LINK_SLOT: u32 = 40;
const LINK_GENERATION: u64 = (1 << LINK_SLOT) - 1;

mod leaving;
#[cfg_attr(not(feature = "tcp"), allow(dead_code, reason = "only who fetches from other nodes has replicas"))]
mod replica;

#[cfg_attr(
    not(feature = "tcp"),
    allow(dead_code, reason = "only who fetches from other nodes has something that arrives")
)]
mod arriving;

#[cfg(test)]
#[cfg_attr(not(shuttle), expect(unsafe_code, reason = "bytes of models, whose races checkers report"))]
mod bytes;
#[cfg(test)]
mod model;
