//! What the service does with replicas of other nodes' objects.

use super::*;
use crate::shm::table::{Claimed, FoundReplica, Origin, REPLICA};

fn origin(n: u32) -> Origin {
    Origin { instance: 77, id: Id { slot: n, generation: 99 } }
}

fn claimed(memory: &mut Memory, cell: u32, owner: u64, origin: Origin) -> Id {
    let id = lease(memory, owner, 0);
    memory.table.header(word::REPLICAS).store(1, Relaxed);
    memory.table.declare_replica(id, origin);
    assert_eq!(memory.table.claim_replica(cell, origin, id, |_| {}), Claimed::Won);
    id
}

/// The declaration and the object of a replica of `len` bytes, last used at `stamp`.
fn landed(memory: &mut Memory, cell: u32, owner: u64, origin: Origin, len: u64, stamp: u32) -> (Id, Id) {
    let declared = claimed(memory, cell, owner, origin);
    let object = lease(memory, owner, len);
    memory.table.publish(object, &label(len, BOUND | REPLICA), stamp);
    memory.table.land_replica(cell, declared, object, 9).unwrap();
    (declared, object)
}

fn find(memory: &Memory, cell: u32, origin: Origin) -> &'static str {
    match memory.table.find_replica(cell, origin) {
        FoundReplica::Landed(..) => {
            memory.table.unpin(cell);
            "landed"
        }
        FoundReplica::InFlight(_) => "in flight",
        FoundReplica::Missing => "missing",
    }
}

#[test]
fn claims_of_the_dead_end_and_nothing_else() {
    for rebuilt in [false, true] {
        let (mut memory, cell) = memory();
        let dead = claimed(&mut memory, cell, A, origin(0));
        let unfound = lease(&mut memory, A, 0);
        memory.table.declare_replica(unfound, origin(1));
        // Fetched, and killed before anybody could find it.
        let half = claimed(&mut memory, cell, A, origin(2));
        let object = lease(&mut memory, A, 100);
        memory.table.publish(object, &label(100, BOUND | REPLICA), 1);
        let promise = declared(&mut memory, A);
        let others = claimed(&mut memory, cell, B, origin(3));
        let (kept, bytes) = landed(&mut memory, cell, A, origin(4), 100, 1);
        let woken = futex::load(memory.table.bucket(dead.slot));
        if rebuilt {
            memory = restart(memory, |tag| tag != A);
        }
        memory.bury(A);
        for id in [dead, unfound, half, object] {
            assert!(is_free(&memory, id), "{id:?}");
        }
        for (id, wanted) in [(promise, State::Declared), (others, State::Declared), (kept, State::Declared)] {
            assert_eq!(state(&memory, id), Some(wanted));
        }
        assert_eq!(state(&memory, bytes), Some(State::Live));
        assert_ne!(futex::load(memory.table.bucket(dead.slot)), woken);
        let found = [0, 1, 2, 3, 4].map(|n| find(&memory, cell, origin(n)));
        assert_eq!(found, ["missing", "missing", "missing", "in flight", "landed"]);
        // Whoever waited has it now.
        claimed(&mut memory, cell, B, origin(0));
    }
}

#[test]
fn what_exceeds_the_budget_goes_that_was_used_least_lately() {
    let (mut memory, cell) = memory();
    let own = object(&mut memory, A, 0);
    let ids: Vec<(Id, Id)> = [(0, 3), (1, 1), (2, 4), (3, 2)]
        .map(|(n, stamp)| landed(&mut memory, cell, A, origin(n), 100_000, stamp))
        .to_vec();
    let (_, each) = memory.replicas();
    memory.replica_budget = each;
    memory.trim_replicas();
    assert_eq!(memory.replicas(), (4, each), "they fit");
    // The oldest one is looked at.
    assert!(matches!(memory.table.find_replica(cell, origin(1)), FoundReplica::Landed(..)));
    memory.replica_budget = each / 2;
    memory.trim_replicas();
    memory.table.unpin(cell);
    let found = [0, 1, 2, 3].map(|n| find(&memory, cell, origin(n)));
    assert_eq!(found, ["missing", "landed", "landed", "missing"]);
    for (declared, object) in [ids[0], ids[3]] {
        assert!(is_free(&memory, declared) && is_free(&memory, object));
    }
    assert_eq!((state(&memory, own), memory.counters.trimmed), (Some(State::Live), 2));
    assert_eq!(memory.replicas(), (2, each / 2));
}

#[test]
fn replicas_make_room_before_anything_else() {
    let mut memory = Memory::create(16 << 20, true).unwrap();
    let page = memory.page(B).unwrap();
    let cell = page * memory.table.layout().cells;
    let own = object(&mut memory, A, 0);
    let (declared, copy) = landed(&mut memory, cell, A, origin(0), 4 << 20, 9);
    let (_, viewed) = landed(&mut memory, cell, A, origin(1), 100_000, 1);
    assert!(matches!(memory.table.find_replica(cell, origin(1)), FoundReplica::Landed(..)));
    let class = Class::of(4 << 20).unwrap();
    let mut leases = 0;
    while let Ok((slots, _)) = memory.lease(A, class, 1, 1, Effort::Grow) {
        leases += slots.len();
    }
    assert!(leases > 0);
    assert_eq!(state(&memory, copy), Some(State::Live), "no effort");
    assert!(memory.lease(A, class, 1, 1, Effort::Displace).is_ok());
    assert_eq!([state(&memory, copy), state(&memory, declared)], [None; 2]);
    assert_eq!([state(&memory, own), state(&memory, viewed)], [Some(State::Live); 2]);
}

#[test]
fn declarations_of_replicas_that_ended_by_themselves_go() {
    let (mut memory, cell) = memory();
    let (expired, object) = landed(&mut memory, cell, A, origin(0), 100, 1);
    let (stays, _) = landed(&mut memory, cell, A, origin(1), 100, 1);
    let waits = claimed(&mut memory, cell, A, origin(2));
    assert!(memory.table.retire_object(object) && memory.evicted(object.slot));
    memory.trim_replicas();
    assert!(is_free(&memory, object) && is_free(&memory, expired));
    assert_eq!([state(&memory, stays), state(&memory, waits)], [Some(State::Declared); 2]);
}

#[test]
fn what_nobody_can_find_any_more_goes() {
    let (mut memory, cell) = memory();
    let layout = *memory.table.layout();
    let (stays, _) = landed(&mut memory, cell, B, origin(0), 100, 1);
    let (lost, object) = landed(&mut memory, cell, B, origin(1), 100, 1);
    let (renamed, other) = landed(&mut memory, cell, B, origin(2), 100, 1);
    let entry = layout.entry(layout.set(origin(1).digest()), 0);
    assert_ne!(memory.table.header(entry).swap(7, Relaxed), 0);
    memory.table.header(layout.slot(renamed.slot) + 2).store(78, Relaxed);
    assert_eq!([0, 1, 2].map(|n| find(&memory, cell, origin(n))), ["landed", "missing", "missing"]);
    memory.sweep(|_| false);
    memory.reclaim();
    for id in [lost, object, renamed, other] {
        assert!(is_free(&memory, id), "{id:?}");
    }
    assert_eq!(state(&memory, stays), Some(State::Declared));
}

#[test]
fn budget_outlives_the_service() {
    let (mut memory, cell) = memory();
    memory.table.header(word::REPLICA_BUDGET).store(4711, Relaxed);
    landed(&mut memory, cell, B, origin(0), 100, 1);
    let memory = restart(memory, |_| true);
    assert_eq!(memory.replica_budget, 4711);
    assert_eq!(memory.replicas().0, 1);
}
