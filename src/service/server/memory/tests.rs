//! What the service does with a table that clients write to: here the clients are this thread, step by step.

use std::collections::HashMap;

use proptest::prelude::*;

use super::check::{assert_disjoint, check_rebuild};
use super::*;
use crate::key::Format;
use crate::shm::table::{BOUND, EPHEMERAL, Found, Label};

mod replica;

const A: u64 = 1 << 12;
const B: u64 = 2 << 12 | 1;

/// The service's memory and one client that looks around.
fn memory() -> (Memory, u32) {
    let mut memory = Memory::create(64 << 20, true).unwrap();
    let page = memory.page(B).unwrap();
    let cell = page * memory.table.layout().cells;
    (memory, cell)
}

fn lease(memory: &mut Memory, owner: u64, len: u64) -> Id {
    lease_for(memory, owner, len, 7)
}

fn lease_for(memory: &mut Memory, owner: u64, len: u64, request: u64) -> Id {
    let (slots, _) = memory.lease(owner, Class::of(len).unwrap(), 1, request, Effort::Grow).unwrap();
    let (generation, state) = memory.table.state(slots[0]).unwrap();
    assert_eq!(state, State::Reserved);
    Id { slot: slots[0], generation }
}

fn label(len: u64, flags: u16) -> Label {
    Label { len, format: FORMAT, flags, expires: 0 }
}

const FORMAT: Format = Format { codec: 3, fingerprint: 0x1234_5678_9abc };

fn object(memory: &mut Memory, owner: u64, flags: u16) -> Id {
    let id = lease(memory, owner, 100);
    memory.table.publish(id, &label(100, flags), 1);
    id
}

fn declared(memory: &mut Memory, owner: u64) -> Id {
    let id = lease(memory, owner, 0);
    memory.table.declare(id, FORMAT);
    id
}

fn state(memory: &Memory, id: Id) -> Option<State> {
    memory.table.state(id.slot).filter(|(generation, _)| *generation == id.generation).map(|(_, state)| state)
}

/// Nobody's, in a later generation.
fn is_free(memory: &Memory, id: Id) -> bool {
    memory.slots[id.slot as usize].owner == 0 && state(memory, id).is_none()
}

fn restart(memory: Memory, lives: impl Fn(u64) -> bool) -> Memory {
    let ctl = memory.ctl.try_clone().unwrap();
    let segments = memory.segments.iter().map(|(index, segment)| (*index, segment.try_clone().unwrap())).collect();
    let budget = memory.budget;
    drop(memory);
    Memory::rebuild(ctl, segments, budget, lives).unwrap()
}

#[test]
fn reclaim_waits_for_pins() {
    let (mut memory, cell) = memory();
    let id = object(&mut memory, A, 0);
    assert!(matches!(memory.table.pin(cell, id), Found::Object(_)));
    assert!(!memory.evicted(id.slot), "nobody evicted it");
    assert!(memory.table.retire(id));
    assert!(memory.evicted(id.slot));
    assert!(!memory.reclaim());
    assert_eq!(state(&memory, id), Some(State::Dying));
    memory.table.unpin(cell);
    assert!(memory.reclaim());
    assert!(is_free(&memory, id));
}

#[test]
fn pages_of_registered_memory_stay() {
    let (mut memory, _) = memory();
    for (is_registered, gives) in [(0, true), (1, false), (0, true)] {
        memory.table.header(word::REGISTERED).store(is_registered, Relaxed);
        let id = lease(&mut memory, A, 16 << 20);
        assert!(memory.give_back(A, id.slot));
        assert_eq!(memory.collect() >= 16 << 20, gives);
    }
}

#[test]
fn what_nobody_evicted_is_not_taken_back() {
    let (mut memory, cell) = memory();
    let id = object(&mut memory, A, 0);
    assert!(!memory.evicted(id.slot));
    assert!(!memory.give_back(A, id.slot), "it is no lease any more");
    let lease = lease(&mut memory, A, 100);
    assert!(!memory.give_back(B, lease.slot), "it is another client's");
    memory.reclaim();
    assert!(matches!(memory.table.pin(cell, id), Found::Object(_)));
    assert_eq!(state(&memory, lease), Some(State::Reserved));
    assert!(memory.give_back(A, lease.slot));
    assert!(is_free(&memory, lease));
}

#[test]
fn an_evicted_object_that_is_called_a_lease_is_taken_back_once() {
    let (mut memory, cell) = memory();
    let id = object(&mut memory, A, 0);
    assert!(matches!(memory.table.pin(cell, id), Found::Object(_)));
    assert!(memory.table.retire(id) && memory.evicted(id.slot));
    memory.table.set(id.slot, id.generation, State::Reserved);
    assert!(!memory.give_back(A, id.slot), "somebody looks at it, and it is taken back when nobody does");
    assert!(memory.slots[id.slot as usize].owner == A);
}

#[test]
fn bury_ends_what_a_client_left_and_nothing_else() {
    let (mut memory, cell) = memory();
    let page = memory.page(A).unwrap();
    let pin = page * memory.table.layout().cells;
    let unused = lease(&mut memory, A, 100);
    let (own, plain, unbound) =
        (object(&mut memory, A, EPHEMERAL), object(&mut memory, A, 0), object(&mut memory, A, BOUND));
    let (others, about_to_bind) = (object(&mut memory, B, EPHEMERAL), object(&mut memory, B, BOUND));
    let evicted = object(&mut memory, B, 0);
    // It looked at it, and evicted it without a word.
    assert!(matches!(memory.table.pin(pin, evicted), Found::Object(_)));
    assert!(memory.table.retire(evicted));
    let (key, bound) = (declared(&mut memory, B), object(&mut memory, A, BOUND));
    memory.table.bind(cell, key, FORMAT, bound).unwrap();
    let woken = [memory.table.bucket(key.slot), memory.table.any_bucket()].map(futex::load);
    for _ in 0..2 {
        memory.bury(A);
        for id in [unused, own, unbound, evicted] {
            assert!(is_free(&memory, id), "{id:?}");
        }
        for id in [plain, others, about_to_bind, bound] {
            assert_eq!(state(&memory, id), Some(State::Live), "{id:?}");
        }
        assert!(matches!(memory.table.pin(cell, key), Found::Object(found) if found.id == bound));
        memory.table.unpin(cell);
    }
    assert!(futex::load(memory.table.bucket(key.slot)) > woken[0]);
    assert!(futex::load(memory.table.any_bucket()) > woken[1]);
    assert!(memory.pages.iter().all(|owner| *owner != A));
}

#[test]
fn object_ends_with_its_key() {
    let (mut memory, cell) = memory();
    let (key, bound) = (declared(&mut memory, A), object(&mut memory, A, BOUND));
    memory.table.bind(cell, key, FORMAT, bound).unwrap();
    assert!(memory.table.retire(key));
    assert!(memory.evicted(key.slot));
    memory.reclaim();
    assert!(is_free(&memory, key) && is_free(&memory, bound));
}

#[test]
fn key_ends_with_its_object() {
    // A taker is killed between the object's end and the key's; the service hears of the object before or after the death.
    for told in [false, true] {
        let (mut memory, cell) = memory();
        let (key, bound) = (declared(&mut memory, B), object(&mut memory, B, BOUND));
        memory.table.bind(cell, key, FORMAT, bound).unwrap();
        assert!(memory.table.retire_object(bound));
        if told {
            assert!(memory.evicted(bound.slot));
            memory.reclaim();
            assert!(is_free(&memory, bound));
            // The slot is used again at once.
            assert_eq!(object(&mut memory, B, 0).slot, bound.slot);
        }
        memory.bury(A);
        assert!(is_free(&memory, key), "told: {told}");
    }
}

#[test]
fn link_leads_to_one_generation() {
    let (mut memory, cell) = memory();
    let (key, bound) = (declared(&mut memory, B), object(&mut memory, B, BOUND));
    memory.table.bind(cell, key, FORMAT, bound).unwrap();
    assert!(memory.table.retire_object(bound) && memory.evicted(bound.slot) && memory.reclaim());
    let next = object(&mut memory, B, 0);
    assert_eq!(next.slot, bound.slot);
    assert!(matches!(memory.table.pin(cell, key), Found::Missing));
    assert!(memory.table.is_unpinned(cell));
    // The key's end is not that of a stranger.
    assert!(memory.table.retire(key) && memory.evicted(key.slot) && memory.reclaim());
    assert_eq!(state(&memory, next), Some(State::Live));
}

#[test]
fn bind_wants_the_format_that_was_declared() {
    let (mut memory, cell) = memory();
    let (key, bound) = (declared(&mut memory, B), object(&mut memory, B, BOUND));
    let other = Format { codec: 4, ..FORMAT };
    assert_eq!(memory.table.bind(cell, key, other, bound), Err(crate::shm::table::Unbound::Format));
    assert!(matches!(memory.table.pin(cell, key), Found::Declared));
}

#[test]
fn stale_ids_end_and_bind_nothing() {
    let (mut memory, cell) = memory();
    let (stale, gone) = (object(&mut memory, A, 0), declared(&mut memory, A));
    for id in [stale, gone] {
        assert!(memory.table.retire(id) && memory.evicted(id.slot) && memory.reclaim());
    }
    let (next, key) = (object(&mut memory, A, 0), declared(&mut memory, A));
    let mut slots = [next.slot, key.slot, stale.slot, gone.slot];
    slots.sort_unstable();
    assert_eq!((slots[0], slots[2]), (slots[1], slots[3]), "the slots are used again");
    assert!(!memory.table.retire(stale) && !memory.table.retire_object(stale) && !memory.table.retire(gone));
    let offered = object(&mut memory, A, BOUND);
    assert_eq!(memory.table.bind(cell, gone, FORMAT, offered), Err(crate::shm::table::Unbound::Missing));
    for id in [stale, gone] {
        assert!(matches!(memory.table.pin(cell, id), Found::Missing));
    }
    assert_eq!(state(&memory, next), Some(State::Live));
    assert_eq!(state(&memory, key), Some(State::Declared));
}

#[test]
fn nonsense_is_mended_by_the_record() {
    let (mut memory, cell) = memory();
    let id = object(&mut memory, A, 0);
    let other = object(&mut memory, A, 0);
    let never = Id { slot: 4000, generation: memory.slots[4000].generation };
    assert!(matches!(memory.table.pin(cell, id), Found::Object(_)));
    // A client writes over an object of others, and over a slot that is nobody's.
    memory.table.set(id.slot, id.generation + 9, State::Free);
    memory.table.set(never.slot, never.generation, State::Live);
    memory.table.set(other.slot, other.generation + 9, State::Live);
    memory.sweep(|_| false);
    memory.reclaim();
    assert_eq!(memory.counters.quarantined, 3);
    assert_eq!(state(&memory, id), Some(State::Dying), "somebody looks at it");
    assert_eq!(state(&memory, never), Some(State::Free));
    memory.table.unpin(cell);
    assert!(memory.reclaim());
    assert!(is_free(&memory, id) && is_free(&memory, other));
    for id in [id, other] {
        assert!(matches!(memory.table.pin(cell, Id { generation: id.generation + 9, ..id }), Found::Missing));
    }
}

#[test]
fn grants_are_told_again_to_whom_they_were_made() {
    let (mut memory, _) = memory();
    let ids = [lease_for(&mut memory, A, 100, 8), lease_for(&mut memory, A, 100, 9), lease_for(&mut memory, B, 100, 8)];
    let used = lease_for(&mut memory, A, 100, 8);
    // Its fingerprint happens to be a request's number.
    let format = Format { codec: 0, fingerprint: 8 };
    memory.table.publish(used, &Label { format, ..label(100, 0) }, 0);
    let memory = restart(memory, |_| true);
    assert_eq!(memory.granted(A, 8), vec![ids[0].slot]);
    assert_eq!(memory.granted(A, 9), vec![ids[1].slot]);
    assert_eq!(memory.granted(B, 9), Vec::<u32>::new());
}

#[test]
fn displace_spares_what_is_looked_at() {
    let (mut memory, cell) = memory();
    let ids: Vec<Id> = (1..4)
        .map(|stamp| {
            let id = lease(&mut memory, A, 100);
            memory.table.publish(id, &label(100, 0), stamp);
            id
        })
        .collect();
    assert!(matches!(memory.table.pin(cell, ids[0]), Found::Object(_)));
    assert!(memory.displace(1));
    let states: Vec<_> = ids.iter().map(|id| state(&memory, *id)).collect();
    assert_eq!(states, [Some(State::Live), Some(State::Dying), Some(State::Live)]);
}

#[test]
fn evictions_that_nobody_told_are_found() {
    let (mut memory, _) = memory();
    let id = object(&mut memory, B, 0);
    assert!(memory.table.retire(id));
    memory.bury(A);
    assert!(is_free(&memory, id));
}

#[test]
fn a_slot_that_lost_its_generation_gets_one_that_no_key_has() {
    let (mut memory, _) = memory();
    let old: Vec<Id> = (0..8)
        .map(|_| {
            let id = object(&mut memory, B, 0);
            assert!(memory.table.retire(id) && memory.evicted(id.slot) && memory.reclaim());
            id
        })
        .collect();
    let slot = old[0].slot;
    assert!(old.iter().all(|id| id.slot == slot));
    let at = memory.table.layout().slot(slot);
    memory.table.header(at).store(u64::MAX, Relaxed);
    let mut memory = restart(memory, |_| true);
    assert_eq!(memory.counters.quarantined, 1);
    for _ in 0..16 {
        let id = object(&mut memory, B, 0);
        assert!(!old.contains(&id), "{id:?} was another object");
        assert!(memory.table.retire(id) && memory.evicted(id.slot) && memory.reclaim());
    }
}

#[test]
fn more_slots_than_there_are_cost_nothing() {
    let (mut memory, _) = memory();
    let id = object(&mut memory, A, 0);
    let (count, pages) = (memory.slots.len(), rustix::fs::fstat(memory.ctl.as_fd()).unwrap().st_blocks);
    memory.table.header(word::SLOTS).store(u64::MAX, Relaxed);
    let memory = restart(memory, |_| true);
    assert_eq!((memory.slots.len(), memory.table.slots() as usize), (count, count));
    assert_eq!(rustix::fs::fstat(memory.ctl.as_fd()).unwrap().st_blocks, pages);
    assert_eq!(state(&memory, id), Some(State::Live));
}

#[test]
fn a_segment_that_a_client_has_keeps_its_number() {
    let (mut memory, _) = memory();
    let id = object(&mut memory, B, 0);
    let ctl = memory.ctl.try_clone().unwrap();
    let budget = memory.budget;
    drop(memory);
    // The one that takes over does not have it yet.
    let mut memory = Memory::rebuild(ctl, BTreeMap::new(), budget, |_| true).unwrap();
    let next = object(&mut memory, B, 0);
    assert_ne!(next, id);
    assert_eq!(memory.slots[next.slot as usize].place.segment(), 1);
}

// ----------------------------------------------------------------------------------------------------------------------

/// A step of somebody; numbers pick among what there is.
#[derive(Clone, Debug)]
enum Step {
    Lease(bool, u16),
    Publish(u8, u8),
    Declare(u8),
    Bind(u8, u8),
    Pin(u8, u8),
    Unpin(u8),
    Retire(u8),
    RetireObject(u8),
    Stamp(u8, u32),
    Tell(u8),
    GiveBack(u8),
    Reclaim,
    Sweep,
    Kill,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let n = any::<u8>;
    prop_oneof![
        6 => (any::<bool>(), prop_oneof![Just(0), 1u16..3000]).prop_map(|(a, len)| Step::Lease(a, len)),
        5 => (n(), 0u8..4).prop_map(|(a, b)| Step::Publish(a, b)),
        2 => n().prop_map(Step::Declare),
        4 => (n(), n()).prop_map(|(a, b)| Step::Bind(a, b)),
        5 => (n(), n()).prop_map(|(a, b)| Step::Pin(a, b)),
        4 => n().prop_map(Step::Unpin),
        3 => n().prop_map(Step::Retire),
        2 => n().prop_map(Step::RetireObject),
        2 => (n(), any::<u32>()).prop_map(|(a, b)| Step::Stamp(a, b)),
        2 => n().prop_map(Step::Tell),
        1 => n().prop_map(Step::GiveBack),
        3 => Just(Step::Reclaim),
        2 => Just(Step::Sweep),
        1 => Just(Step::Kill),
        1 => Just(Step::Restart),
    ]
}

/// What must be so, by what was done.
#[derive(Default)]
struct Expected {
    /// Leases, with owner and capacity.
    leases: Vec<(Id, u64, u64)>,
    /// Objects that anybody may read: owner, label.
    live: HashMap<Id, (u64, Label)>,
    declared: HashMap<Id, Option<Id>>,
    /// Objects that a declared key ever had.
    bound: HashSet<Id>,
    over: Vec<Id>,
    /// Ids that were ever leased.
    given: HashSet<Id>,
    /// Pin cells of B, then of A, and what each keeps.
    pins: HashMap<u32, (Id, Place, Class)>,
}

impl Expected {
    fn end(&mut self, id: Id) {
        self.live.remove(&id);
        self.declared.remove(&id);
        self.leases.retain(|(lease, ..)| *lease != id);
        self.over.push(id);
    }
}

fn pick<T: Clone>(of: &[T], n: u8) -> Option<T> {
    (!of.is_empty()).then(|| of[usize::from(n) % of.len()].clone())
}

fn play(steps: Vec<Step>) {
    let (mut memory, cell) = memory();
    let cells = memory.table.layout().cells;
    let mut page_of_a = memory.page(A).unwrap();
    let mut is = Expected::default();
    for step in steps {
        let mut live: Vec<Id> = is.live.keys().copied().collect();
        live.sort_unstable_by_key(|id| id.slot);
        let mut keys: Vec<Id> = is.declared.keys().copied().collect();
        keys.sort_unstable_by_key(|id| id.slot);
        let all: Vec<Id> = live.iter().chain(&keys).copied().collect();
        match step {
            Step::Lease(a, len) => {
                let owner = if a { A } else { B };
                let id = lease(&mut memory, owner, len.into());
                assert!(is.given.insert(id), "{id:?} was given before");
                let held = memory.slots[id.slot as usize];
                is.leases.push((id, owner, held.class.capacity()));
                // Nothing that is looked at or can be is in it.
                let mut used: Vec<(Place, Class)> =
                    is.pins.values().map(|(_, place, class)| (*place, *class)).collect();
                used.sort_unstable();
                used.dedup();
                used.push((held.place, held.class));
                assert_disjoint(used);
            }
            Step::Publish(n, flags) => {
                if let Some((id, owner, capacity)) = pick(&is.leases, n) {
                    let label = label(capacity, u16::from(flags));
                    memory.table.publish(id, &label, 0);
                    is.leases.retain(|lease| lease.0 != id);
                    is.live.insert(id, (owner, label));
                }
            }
            Step::Declare(n) => {
                let empty: Vec<_> = is.leases.iter().copied().filter(|lease| lease.2 == 0).collect();
                if let Some((id, ..)) = pick(&empty, n) {
                    memory.table.declare(id, FORMAT);
                    is.leases.retain(|lease| lease.0 != id);
                    is.declared.insert(id, None);
                }
            }
            Step::Bind(key, n) => {
                // Its producer offers an object once.
                let is_offered = |id: &Id| is.live[id].1.flags & BOUND != 0 && !is.bound.contains(id);
                let objects: Vec<Id> = live.iter().copied().filter(is_offered).collect();
                if let (Some(key), Some(object)) = (pick(&keys, key), pick(&objects, n)) {
                    let done = memory.table.bind(cell, key, FORMAT, object);
                    assert_eq!(done.is_ok(), is.declared[&key].is_none());
                    if done.is_ok() {
                        is.declared.insert(key, Some(object));
                        is.bound.insert(object);
                    }
                }
            }
            Step::Pin(n, at) => {
                let at = u32::from(at) % 16;
                let at = if at < 8 { cell + 1 + at } else { page_of_a * cells + at };
                if let Some(id) = pick(&all, n) {
                    if memory.table.is_unpinned(at) {
                        if let Found::Object(object) = memory.table.pin(at, id) {
                            let held = memory.slots[object.id.slot as usize];
                            is.pins.insert(at, (object.id, held.place, held.class));
                        }
                    }
                }
            }
            Step::Unpin(n) => {
                let mut at: Vec<u32> = is.pins.keys().copied().collect();
                at.sort_unstable();
                if let Some(at) = pick(&at, n) {
                    memory.table.unpin(at);
                    is.pins.remove(&at);
                }
            }
            Step::Retire(n) => {
                if let Some(id) = pick(&all, n) {
                    assert!(memory.table.retire(id) && !memory.table.retire(id));
                    is.end(id);
                }
            }
            Step::RetireObject(n) => {
                if let Some(id) = pick(&all, n) {
                    assert_eq!(memory.table.retire_object(id), is.live.contains_key(&id));
                    if is.live.contains_key(&id) {
                        is.end(id);
                    }
                }
            }
            Step::Stamp(n, epoch) => {
                let mut at: Vec<u32> = is.pins.keys().copied().collect();
                at.sort_unstable();
                if let Some(at) = pick(&at, n) {
                    memory.table.stamp(&memory.table.read(is.pins[&at].0), epoch);
                }
            }
            Step::Tell(n) => {
                if let Some(id) = pick(&is.over, n) {
                    memory.evicted(id.slot);
                }
            }
            Step::GiveBack(n) => {
                if let Some((id, owner, _)) = pick(&is.leases, n) {
                    assert!(memory.give_back(owner, id.slot));
                    is.end(id);
                }
            }
            Step::Reclaim => {
                memory.reclaim();
            }
            Step::Sweep => {
                memory.sweep(|_| false);
                is.settle(&memory, |_| false);
            }
            Step::Kill => {
                memory.bury(A);
                is.settle(&memory, |owner| owner == A);
                is.pins.retain(|at, _| at / cells == cell / cells);
                page_of_a = memory.page(A).unwrap();
            }
            Step::Restart => {
                memory = restart(memory, |tag| tag != A);
                is.settle(&memory, |owner| owner == A);
                is.pins.retain(|at, _| at / cells == cell / cells);
                page_of_a = memory.page(A).unwrap();
            }
        }
        is.settle_reclaimed(&memory);
        is.check(&memory, cell);
    }
    // Nobody looks any more: all that is over is free.
    is.pins.drain().for_each(|(at, _)| memory.table.unpin(at));
    memory.sweep(|_| false);
    memory.reclaim();
    is.settle(&memory, |_| false);
    is.settle_reclaimed(&memory);
    memory.sweep(|_| false);
    memory.reclaim();
    let held = memory.slots.iter().filter(|held| held.owner != 0).count();
    assert_eq!(held, is.leases.len() + is.live.len() + is.declared.len());
    is.check(&memory, cell);
}

impl Expected {
    /// What a sweep ends.
    fn settle(&mut self, memory: &Memory, dead: impl Fn(u64) -> bool) {
        let over: Vec<Id> = self.leases.iter().filter(|lease| dead(lease.1)).map(|lease| lease.0).collect();
        over.into_iter().for_each(|id| self.end(id));
        // A key whose object is gone is gone.
        let gone = |object: &Option<Id>| object.is_some_and(|object| !self.live.contains_key(&object));
        let over: Vec<Id> = self.declared.iter().filter(|(_, object)| gone(object)).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.end(id));
        let bound: HashSet<Id> = self.declared.values().flatten().copied().collect();
        let over: Vec<Id> = self
            .live
            .iter()
            .filter(|(id, (owner, label))| {
                dead(*owner)
                    && if label.flags & BOUND != 0 {
                        !bound.contains(id) && !self.is_linked(memory, **id)
                    } else {
                        label.flags & EPHEMERAL != 0
                    }
            })
            .map(|(id, _)| *id)
            .collect();
        over.into_iter().for_each(|id| self.end(id));
    }

    /// Whether a declaration that is over, but still there, leads to it: then that decides.
    fn is_linked(&self, memory: &Memory, object: Id) -> bool {
        self.over.iter().any(|key| {
            state(memory, *key) == Some(State::Declared)
                && memory.table.bound_to(key.slot).is_some_and(|linked| linked == object)
        })
    }

    /// Objects whose keys were reclaimed went with them.
    fn settle_reclaimed(&mut self, memory: &Memory) {
        let gone: Vec<Id> = self
            .live
            .iter()
            .filter(|(id, (_, label))| {
                let bound = self.declared.values().any(|object| *object == Some(**id));
                label.flags & BOUND != 0 && !bound && state(memory, **id) != Some(State::Live)
            })
            .map(|(id, _)| *id)
            .collect();
        gone.into_iter().for_each(|id| self.end(id));
    }

    fn check(&self, memory: &Memory, cell: u32) {
        for (id, (owner, label)) in &self.live {
            match memory.table.pin(cell, *id) {
                Found::Object(object) => {
                    assert_eq!((object.id, object.owner, object.label), (*id, *owner, *label));
                }
                found => panic!("{id:?}: {found:?}"),
            }
            memory.table.unpin(cell);
        }
        for (id, object) in &self.declared {
            match (memory.table.pin(cell, *id), object) {
                (Found::Object(found), Some(object)) => assert_eq!(found.id, *object),
                (Found::Declared, None) => {}
                (Found::Missing, Some(object)) => assert!(!self.live.contains_key(object)),
                (found, _) => panic!("{id:?} of {object:?}: {found:?}"),
            }
            memory.table.unpin(cell);
        }
        for id in &self.over {
            assert!(matches!(memory.table.pin(cell, *id), Found::Missing), "{id:?}");
        }
        for (id, place, class) in self.pins.values() {
            let held = memory.slots[id.slot as usize];
            assert_eq!((held.generation, held.place, held.class), (id.generation, *place, *class), "it is looked at");
        }
        assert_disjoint(
            memory.slots.iter().filter(|held| held.owner != 0).map(|held| (held.place, held.class)).collect(),
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_steps(steps in prop::collection::vec(step(), 1..120)) {
        play(steps);
    }

    #[test]
    fn any_table_is_made_sense_of(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        check_rebuild(&bytes);
    }
}
