//! Replicas: objects of other nodes that landed on this one, found by where they come from.
//!
//! A replica is a declared slot whose words say where the original lies, and an object that is bound to it when it has landed.
//! An index leads from an original to the declared slot:
//!
//! ```text
//! entry: 16 bits of the hash | slot + 1 (24 bits) | low bits of the generation (24 bits); 0 for none
//! ```
//!
//! The index only says where to look: what counts is the declared slot, which is pinned while its words are read. An entry
//! whose slot went on is dead, and whoever needs its place takes it. One that leads to a declaration is replaced only after
//! that was ended, so that a process may be killed between any two steps and nothing is left that nobody finds.

use super::*;

/// An object in the memory of another node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Origin {
    /// Number of that memory.
    pub(crate) instance: u64,
    pub(crate) id: Id,
}

/// What this node has of an object of another one.
#[derive(Debug)]
pub(crate) enum FoundReplica {
    /// The object, pinned, and until when the original was there: in [`FRESH_MILLIS`](Origin::FRESH_MILLIS).
    Landed(Object, u32),
    /// Somebody fetches it: the declaration to wait for.
    InFlight(Id),
    Missing,
}

/// What became of an attempt to be the one who fetches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claimed {
    Won,
    /// Somebody else has it, or had: look again.
    Lost,
    /// All places in which it could be found are those of objects that others fetch now.
    Full,
}

/// A declaration that an entry leads to; its slot is pinned, so that the words stay what they are.
struct Examined {
    id: Id,
    origin: Origin,
    fresh_until: u32,
    /// 0 while it is in flight.
    link: u64,
}

impl Origin {
    /// Unit of the time until which a replica is fresh: 32 bits of it are eight years of CLOCK_BOOTTIME.
    pub(crate) const FRESH_MILLIS: u64 = 64;

    /// The label of the declared slot.
    fn label(self) -> Label {
        let format = Format { codec: 0, fingerprint: self.id.slot.into() };
        Label { len: self.instance, format, flags: REPLICA, expires: self.id.generation }
    }

    /// `None` for a slot whose words are not those of a replica.
    fn of(label: &Label) -> Option<Self> {
        // Above is a hint; see `arriving`.
        let slot = label.format.fingerprint as u32;
        (label.flags & REPLICA != 0).then_some(Self { instance: label.len, id: Id { slot, generation: label.expires } })
    }

    pub(crate) fn digest(self) -> u64 {
        mix(mix(self.instance ^ spread(self.id.slot.into())) ^ self.id.generation)
    }
}

impl<M: Mem> Table<M> {
    // ------------------------------------------------------------------------------------------------------------------
    // Clients.

    /// Looks for the replica of an object, and keeps it by a pin cell of the caller's own that names nothing.
    ///
    /// The cell names the object's slot when, and only when, it has landed.
    #[inline]
    pub(crate) fn find_replica(&self, cell: u32, origin: Origin) -> FoundReplica {
        let (set, tag) = self.set_of(origin);
        for way in 0..self.layout.ways {
            let entry = self.entry(set, way).load(Acquire);
            if entry == 0 || entry >> ENTRY_TAG != tag {
                continue;
            }
            let Some(found) = self.examine(cell, entry) else { continue };
            if found.origin == origin || mutant!("replica_origin") {
                if found.link == 0 {
                    self.unpin(cell);
                    return FoundReplica::InFlight(found.id);
                }
                if let Some(object) = self.follow(cell, found.link) {
                    return FoundReplica::Landed(object, found.fresh_until);
                }
            }
            self.unpin(cell);
        }
        FoundReplica::Missing
    }

    /// Makes a leased slot the declaration of a replica, which nobody can find yet.
    pub(crate) fn declare_replica(&self, id: Id, origin: Origin) {
        self.label(id.slot, &origin.label(), 0);
        self.slot(id.slot, slot::PLACE).store(0, Relaxed);
        // SYNC POINT: `examine`.
        self.slot(id.slot, slot::STATE).store(State::Declared.word(id.generation), Release);
    }

    /// Enters a declaration into the index, unless somebody else's of the same origin is there: of any number of callers one
    /// wins, until it withdraws or somebody ends its declaration.
    ///
    /// Where there is no room, the replica that was used least lately makes some. `ended` is told each slot that was ended.
    pub(crate) fn claim_replica(&self, cell: u32, origin: Origin, own: Id, mut ended: impl FnMut(u32)) -> Claimed {
        let (set, _) = self.set_of(origin);
        // Stamp (none for dead entries, which come first), way, entry, and what has to end before.
        let mut best: Option<(Option<u32>, u32, u64, Option<Id>)> = None;
        for way in 0..self.layout.ways {
            let entry = self.entry(set, way).load(Acquire);
            let (stamp, victim) = match self.examine(cell, entry) {
                None => (None, None),
                Some(found) => {
                    let object = self.follow(cell, found.link);
                    self.unpin(cell);
                    match (object, found.origin == origin && !mutant!("claim_origin")) {
                        (Some(_), true) => return Claimed::Lost,
                        (None, true) if found.link == 0 => return Claimed::Lost,
                        (None, false) if found.link == 0 && !mutant!("claim_in_flight") => continue,
                        // What was bound to it was evicted by itself.
                        (None, _) => (None, Some(found.id)),
                        (Some(object), false) => (Some(object.stamp), Some(found.id)),
                    }
                }
            };
            if best.as_ref().is_none_or(|best| stamp < best.0) {
                best = Some((stamp, way, entry, victim));
            }
        }
        let Some((_, way, entry, victim)) = best else { return Claimed::Full };
        // First: a declaration that no entry leads to would be found by nobody.
        if let Some(victim) = victim.filter(|victim| self.retire(*victim)) {
            ended(victim.slot);
        }
        // SYNC POINT: `find_replica`, and the second look of another claimant.
        if self.entry(set, way).compare_exchange(entry, self.entry_of(origin, own), AcqRel, Relaxed).is_err() {
            return Claimed::Lost;
        }
        // Another claimant may have found another place free, because that became free in between. Of two, one at least sees
        // the other behind these fences, and nobody is told that it won before it looked.
        fence(SeqCst);
        let others = (0..self.layout.ways).filter(|other| *other != way);
        for other in others {
            let Some(found) = self.examine(cell, self.entry(set, other).load(Acquire)) else { continue };
            let is_there = found.link == 0 || self.follow(cell, found.link).is_some();
            self.unpin(cell);
            if is_there && found.origin == origin && !mutant!("claim_second_look") {
                self.withdraw_replica(origin, own);
                return Claimed::Lost;
            }
        }
        Claimed::Won
    }

    /// Takes a declaration out of the index, if it is there.
    pub(crate) fn withdraw_replica(&self, origin: Origin, own: Id) {
        let (set, _) = self.set_of(origin);
        let entry = self.entry_of(origin, own);
        for way in 0..self.layout.ways {
            // What displaced it meanwhile is another word.
            let _ = self.entry(set, way).compare_exchange(entry, 0, AcqRel, Relaxed);
        }
    }

    /// Makes a live object, labelled [`BOUND`] and [`REPLICA`], that of a declaration of the caller's own: it has landed.
    pub(crate) fn land_replica(&self, cell: u32, declared: Id, object: Id, fresh_until: u32) -> Result<(), Unbound> {
        self.bind_if(cell, declared, object, |label| {
            // Before the link, whose reader is to see it.
            self.slot(declared.slot, slot::META).store(meta(label, fresh_until), Relaxed);
            Ok(())
        })
    }

    /// Notes that the original is there until then; whether there was a replica.
    pub(crate) fn refresh_replica(&self, cell: u32, origin: Origin, fresh_until: u32) -> bool {
        let mut refreshed = false;
        self.each_of(cell, origin, |found| {
            // Others may write here too: who loses makes it look older than it is, no more.
            if found.fresh_until < fresh_until {
                self.slot(found.id.slot, slot::META).store(meta(&origin.label(), fresh_until), Relaxed);
            }
            refreshed = true;
        });
        refreshed
    }

    /// Ends what there is of an origin; `ended` is told each declaration.
    pub(crate) fn forget_replica(&self, cell: u32, origin: Origin, mut ended: impl FnMut(Id)) {
        self.each_of(cell, origin, |found| {
            if self.retire(found.id) {
                ended(found.id);
            }
            self.withdraw_replica(origin, found.id);
        });
    }

    fn each_of(&self, cell: u32, origin: Origin, mut act: impl FnMut(&Examined)) {
        let (set, tag) = self.set_of(origin);
        for way in 0..self.layout.ways {
            let entry = self.entry(set, way).load(Acquire);
            if entry >> ENTRY_TAG == tag {
                if let Some(found) = self.examine(cell, entry) {
                    if found.origin == origin {
                        act(&found);
                    }
                    self.unpin(cell);
                }
            }
        }
    }

    /// Keeps the slot of a lease of the caller's own, so that what is published in it stays to be read whoever ends it.
    pub(crate) fn hold(&self, cell: u32, slot: u32) {
        self.point(cell, slot);
    }

    /// The declaration of an entry, pinned, unless the slot is another's by now.
    #[inline]
    fn examine(&self, cell: u32, entry: u64) -> Option<Examined> {
        let slot = self.slot_in(entry)?;
        let state = match mutant!("examine_unpinned") {
            true => self.slot(slot, slot::STATE).load(Acquire),
            // SYNC POINT: `declare_replica`.
            false => self.point(cell, slot),
        };
        let examined = State::of(state)
            .filter(|(generation, state)| {
                *state == State::Declared
                    && (generation & ENTRY_GENERATION == entry & ENTRY_GENERATION || mutant!("examine_generation"))
            })
            .and_then(|(generation, _)| {
                let id = Id { slot, generation };
                // SYNC POINT: `bind_if`. Before the other words, of which one is written just before it.
                let link = self.slot(slot, slot::PLACE).load(mutant!(Acquire, "examine_acquire"));
                let words = self.read(id);
                Some(Examined { id, origin: Origin::of(&words.label)?, fresh_until: words.stamp, link })
            });
        if examined.is_none() {
            self.unpin(cell);
        }
        examined
    }

    /// The object that a link leads to, which the cell then names; where there is none, anything.
    #[inline]
    fn follow(&self, cell: u32, link: u64) -> Option<Object> {
        let (slot, low) = self.linked(link)?;
        let (generation, state) = State::of(self.point(cell, slot))?;
        let is_there = state == State::Live && (generation & LINK_GENERATION == low || mutant!("follow_generation"));
        let object = is_there.then(|| self.read(Id { slot, generation }))?;
        // A word that somebody scribbled on leads to no object of this node's own.
        (object.label.flags & REPLICA != 0 || mutant!("follow_flags")).then_some(object)
    }

    fn entry(&self, set: u32, way: u32) -> &AtomicU64 {
        self.mem.word(self.layout.entry(set, way))
    }

    /// The line in which an origin is found, and what its entry begins with.
    fn set_of(&self, origin: Origin) -> (u32, u64) {
        let digest = origin.digest();
        (self.layout.set(digest), digest >> ENTRY_TAG)
    }

    fn entry_of(&self, origin: Origin, declared: Id) -> u64 {
        let (_, tag) = self.set_of(origin);
        tag << ENTRY_TAG | u64::from(declared.slot + 1) << ENTRY_SLOT | declared.generation & ENTRY_GENERATION
    }

    /// The slot in an entry, if it can be one.
    fn slot_in(&self, entry: u64) -> Option<u32> {
        let slot = (entry >> ENTRY_SLOT & ENTRY_GENERATION).checked_sub(1)?;
        (slot < u64::from(self.slots())).then_some(slot as u32)
    }

    // ------------------------------------------------------------------------------------------------------------------
    // The service, which is one thread.

    /// Whether a declared slot is that of a replica.
    pub(crate) fn is_replica(&self, id: Id) -> bool {
        self.read(id).label.flags & REPLICA != 0
    }

    /// Whether a replica's declaration can be found. Once it could, it can until it is ended, or somebody scribbled on it.
    pub(crate) fn is_indexed(&self, declared: Id) -> bool {
        let Some(origin) = Origin::of(&self.read(declared).label) else { return false };
        let (set, _) = self.set_of(origin);
        let entry = self.entry_of(origin, declared);
        (0..self.layout.ways).any(|way| self.entry(set, way).load(Acquire) == entry)
    }

    /// The replicas that landed and can be found: declaration, and object if that is still the one.
    pub(crate) fn landed_replicas(&self) -> impl Iterator<Item = (Id, Option<Id>)> + '_ {
        let entries =
            (0..self.layout.sets).flat_map(move |set| (0..self.layout.ways).map(move |way| self.entry(set, way)));
        entries.filter_map(|entry| {
            let entry = entry.load(Acquire);
            let slot = self.slot_in(entry)?;
            let (generation, state) = self.state(slot)?;
            let id = Id { slot, generation };
            let leads_here = state == State::Declared && generation & ENTRY_GENERATION == entry & ENTRY_GENERATION;
            (leads_here && self.is_replica(id) && self.is_bound(slot)).then(|| (id, self.bound_to(slot)))
        })
    }
}

/// Parts of an entry.
const ENTRY_TAG: u32 = 48;
const ENTRY_SLOT: u32 = 24;
const ENTRY_GENERATION: u64 = (1 << ENTRY_SLOT) - 1;
