//! Models of replicas: who fetches, who waits, and what a look-up shows while replicas are ended and their slots used again.

use super::*;

/// Two objects of another node whose entries begin alike, so that one is taken for the other if nobody looks closely.
pub(super) fn twins() -> (Origin, Origin) {
    static TWIN: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let tag = |slot: u32| origin(slot).digest() >> 48;
    let twin = *TWIN.get_or_init(|| (1..).find(|slot| tag(*slot) == tag(0)).expect("65536 tags"));
    (origin(0), origin(twin))
}

fn origin(slot: u32) -> Origin {
    Origin { instance: 77, id: Id { slot, generation: 99 } }
}

fn first(slot: u32) -> Id {
    Id { slot, generation: FIRST }
}

impl World {
    fn declared_replica(&self, id: Id, origin: Origin) {
        self.table.lease(id, 3, 0, id.generation + 300, 0);
        self.table.declare_replica(id, origin);
    }

    /// A client declares and claims.
    fn claim(&self, cell: u32, id: Id, origin: Origin) -> Claimed {
        self.declared_replica(id, origin);
        self.table.claim_replica(cell, origin, id, |_| {})
    }

    /// The claimant's object comes.
    fn land(&self, cell: u32, declared: Id, object: Id, value: u64) -> Result<(), Unbound> {
        self.put(object, value, BOUND | REPLICA);
        let landed = self.table.land_replica(cell, declared, object, UNTIL);
        if landed.is_err() {
            self.table.retire_object(object);
        }
        landed
    }

    /// A replica that has landed before anything else happens.
    fn replica(&self, slot: u32, object: u32, origin: Origin, value: u64) {
        assert_eq!(self.claim(0, first(slot), origin), Claimed::Won);
        self.lease(first(object));
        self.land(0, first(slot), first(object), value).unwrap();
    }

    /// A client looks for it, reads all of it, and gives it up.
    fn find(&self, cell: u32, origin: Origin, value: u64) -> &'static str {
        match self.table.find_replica(cell, origin) {
            FoundReplica::Landed(object, until) => {
                self.check(&object, value);
                assert_eq!(until, UNTIL);
                self.table.unpin(cell);
                "landed"
            }
            FoundReplica::InFlight(_) => "in flight",
            FoundReplica::Missing => "missing",
        }
    }

    /// As a claim that is dropped.
    fn abandon(&self, declared: Id, origin: Origin) {
        self.table.retire(declared);
        self.table.withdraw_replica(origin, declared);
        futex::bump(self.table.bucket(declared.slot));
    }
}

const UNTIL: u32 = 9;

#[test]
fn loom_two_claimants() {
    model(|seen| {
        let world = Arc::new(World::new());
        let (one, _) = twins();
        let other = spawn(&world, move |world| world.claim(0, first(0), one) == Claimed::Won);
        let won = [world.claim(1, first(1), one) == Claimed::Won, other.join().unwrap()];
        assert!(won[0] != won[1], "{won:?}");
        assert_eq!(world.find(0, one, 0), "in flight");
        seen.note(if won[0] { "first" } else { "second" });
    })
    .all(&["first", "second"]);
}

#[test]
fn loom_claimants_while_a_place_becomes_free() {
    // Each may find another place free.
    model(|seen| {
        let world = Arc::new(World::new());
        let (one, two) = twins();
        assert_eq!(world.claim(0, first(0), two), Claimed::Won);
        world.declared_replica(first(1), one);
        world.declared_replica(first(2), one);
        let former = spawn(&world, move |world| {
            world.table.retire(first(0));
        });
        let other = spawn(&world, move |world| world.table.claim_replica(1, one, first(1), |_| {}) == Claimed::Won);
        let won = world.table.claim_replica(2, one, first(2), |_| {}) == Claimed::Won;
        let won = [won, other.join().unwrap()];
        former.join().unwrap();
        assert!(won != [true; 2], "two fetch it");
        match won {
            [false, false] => {
                // Both stepped back, and nothing is in the way of whoever tries again.
                assert_eq!(world.table.claim_replica(2, one, first(2), |_| {}), Claimed::Won);
                seen.note("neither");
            }
            _ => seen.note("one"),
        }
        assert_eq!(world.find(0, one, 0), "in flight");
    })
    .all(&["neither", "one"]);
}

#[test]
fn loom_find_against_land() {
    model(|seen| {
        let world = Arc::new(World::new());
        let (one, _) = twins();
        world.declared_replica(first(0), one);
        world.lease(first(1));
        let reader = spawn(&world, move |world| world.find(1, one, 7));
        assert_eq!(world.table.claim_replica(0, one, first(0), |_| {}), Claimed::Won);
        world.land(0, first(0), first(1), 7).unwrap();
        seen.note(reader.join().unwrap());
        assert_eq!(world.find(1, one, 7), "landed");
    })
    .all(&["in flight", "landed", "missing"]);
}

#[test]
fn loom_find_against_forget_and_reuse() {
    model(|seen| {
        let world = Arc::new(World::new());
        let (one, two) = twins();
        world.replica(0, 1, one, 7);
        // One that looks for what was there, and finds it or nothing; one that looks for what comes into the same slots.
        let reader = spawn(&world, move |world| world.find(1, one, 7));
        world.table.forget_replica(0, one, |_| {});
        if let Some(next) = world.reclaim(first(0)) {
            assert_eq!(world.claim(0, next, two), Claimed::Won);
            if let Some(object) = world.reclaim(first(1)) {
                world.lease(object);
                world.land(0, next, object, 2).unwrap();
                seen.note("reused");
            }
        }
        seen.note(reader.join().unwrap());
    })
    .all(&["landed", "missing", "reused"]);
}

#[test]
fn loom_find_of_what_comes_into_a_used_slot() {
    model(|seen| {
        let world = Arc::new(World::new());
        let (one, two) = twins();
        world.replica(0, 1, one, 7);
        let reader = spawn(&world, move |world| match world.table.find_replica(1, two) {
            FoundReplica::Landed(..) => panic!("it never landed"),
            FoundReplica::InFlight(id) => {
                assert_eq!(id.generation, FIRST + 1);
                "in flight"
            }
            FoundReplica::Missing => "missing",
        });
        assert!(world.table.retire(first(0)));
        if let Some(next) = world.reclaim(first(0)) {
            assert_eq!(world.claim(0, next, two), Claimed::Won);
        }
        seen.note(reader.join().unwrap());
    })
    .all(&["in flight", "missing"]);
}

#[test]
fn loom_find_against_displacement() {
    model(|seen| {
        let world = Arc::new(World::with(Layout { ways: 1, ..LAYOUT }));
        let (one, two) = twins();
        world.replica(0, 1, one, 7);
        let reader = spawn(&world, move |world| world.find(1, one, 7));
        let mut ended = Vec::new();
        world.declared_replica(first(2), two);
        assert_eq!(world.table.claim_replica(0, two, first(2), |slot| ended.push(slot)), Claimed::Won);
        assert_eq!(ended, [0]);
        if world.reclaim(first(0)).is_some() {
            if let Some(next) = world.reclaim(first(1)) {
                world.reuse(next, 2);
                seen.note("reused");
            }
        }
        seen.note(reader.join().unwrap());
    })
    .all(&["landed", "missing", "reused"]);
}

#[test]
fn loom_land_against_forget_and_reuse() {
    model(|seen| {
        let world = Arc::new(World::new());
        let (one, two) = twins();
        assert_eq!(world.claim(0, first(0), one), Claimed::Won);
        world.lease(first(1));
        let claimant = spawn(&world, move |world| world.land(0, first(0), first(1), 7).is_ok());
        world.table.forget_replica(1, one, |_| {});
        let next = world.reclaim(first(0));
        if let Some(next) = next {
            assert_eq!(world.claim(1, next, two), Claimed::Won);
        }
        let landed = claimant.join().unwrap();
        seen.note(if landed { "landed" } else { "too late" });
        match next {
            // Whose slot it is now has nothing to do with what came.
            Some(_) => assert_eq!(world.find(1, two, 0), "in flight"),
            None => assert!(world.reclaim(first(0)).is_some()),
        }
        assert_eq!(world.find(1, one, 0), "missing");
        assert_eq!(world.table.state(1), Some((FIRST, State::Dying)));
    })
    .all(&["landed", "too late"]);
}

#[test]
fn loom_waiter_takes_over() {
    model(|seen| {
        let world = Arc::new(World::new());
        let (one, _) = twins();
        assert_eq!(world.claim(0, first(0), one), Claimed::Won);
        world.declared_replica(first(1), one);
        let claimant = spawn(&world, move |world| world.abandon(first(0), one));
        loop {
            match world.table.find_replica(1, one) {
                FoundReplica::InFlight(id) => {
                    // As `Arrival::wait`.
                    let bucket = world.table.bucket(id.slot);
                    let counter = futex::load(bucket);
                    if world.look(1, id, 0) == "declared" {
                        seen.note("waits");
                        futex::wait(bucket, counter, None);
                    }
                }
                FoundReplica::Missing => match world.table.claim_replica(1, one, first(1), |_| {}) {
                    Claimed::Won => break,
                    // The entry was taken away in between.
                    Claimed::Lost => seen.note("lost"),
                    Claimed::Full => panic!("nobody else fetches anything"),
                },
                FoundReplica::Landed(..) => panic!("nobody landed it"),
            }
        }
        claimant.join().unwrap();
        assert_eq!(world.find(0, one, 0), "in flight");
    })
    .all(&["lost", "waits"]);
}

#[test]
fn loom_refresh_against_forget_and_reuse() {
    model(|seen| {
        let world = Arc::new(World::new());
        let (one, two) = twins();
        world.replica(0, 1, one, 7);
        let refresher = spawn(&world, move |world| world.table.refresh_replica(1, one, 50));
        assert!(world.table.retire(first(0)));
        let next = world.reclaim(first(0));
        if let Some(next) = next {
            assert_eq!(world.claim(0, next, two), Claimed::Won);
        }
        let refreshed = refresher.join().unwrap();
        seen.note(if refreshed { "refreshed" } else { "missing" });
        if let Some(next) = next {
            assert_eq!(world.table.read(next).stamp, 0, "another one looks fresh");
            seen.note("reused");
        }
    })
    .all(&["missing", "refreshed", "reused"]);
}

// ----------------------------------------------------------------------------------------------------------------------

/// What is so without anybody else: loom has nothing to order here.
#[cfg(not(any(loom, shuttle)))]
mod alone {
    use super::*;

    /// Room for two replicas and their objects, and one more of each.
    const ROOM: Layout = Layout { slots: 6, ..LAYOUT };

    #[test]
    fn what_was_used_least_lately_makes_room_for_a_claim() {
        let world = World::with(ROOM);
        let origins = [0, 1, 2].map(origin);
        world.replica(0, 1, origins[0], 7);
        world.replica(2, 3, origins[1], 5);
        let mut ended = Vec::new();
        world.declared_replica(first(4), origins[2]);
        assert_eq!(world.table.claim_replica(0, origins[2], first(4), |slot| ended.push(slot)), Claimed::Won);
        // Objects of models are stamped with their value.
        assert_eq!(ended, [2]);
        assert_eq!(origins.map(|origin| world.find(0, origin, 7)), ["landed", "missing", "in flight"]);
    }

    #[test]
    fn what_is_in_flight_makes_no_room() {
        let world = World::with(ROOM);
        let origins = [0, 1, 2].map(origin);
        assert_eq!(world.claim(0, first(0), origins[0]), Claimed::Won);
        assert_eq!(world.claim(0, first(1), origins[1]), Claimed::Won);
        assert_eq!(world.claim(0, first(2), origins[2]), Claimed::Full);
        assert_eq!(world.find(0, origins[0], 0), "in flight");
        world.abandon(first(1), origins[1]);
        assert_eq!(world.table.claim_replica(0, origins[2], first(2), |_| {}), Claimed::Won);
    }

    #[test]
    fn what_landed_is_not_claimed_again() {
        let world = World::with(ROOM);
        world.replica(0, 1, origin(0), 5);
        assert_eq!(world.claim(0, first(2), origin(0)), Claimed::Lost);
        assert_eq!(world.find(0, origin(0), 5), "landed");
        // Nor is it what makes room for itself.
        assert!(world.table.retire(first(2)));
        let next = world.reclaim(first(2)).unwrap();
        assert_eq!(world.claim(0, next, origin(1)), Claimed::Won);
        world.lease(first(3));
        world.land(0, next, first(3), 7).unwrap();
        world.declared_replica(first(4), origin(0));
        let ended = |slot| panic!("slot {slot} was ended");
        assert_eq!(world.table.claim_replica(0, origin(0), first(4), ended), Claimed::Lost);
        assert_eq!(world.find(0, origin(0), 5), "landed");
    }

    #[test]
    fn an_entry_leads_to_one_declaration() {
        let world = World::with(ROOM);
        world.replica(0, 1, origin(0), 7);
        assert!(world.table.retire(first(0)));
        let next = world.reclaim(first(0)).unwrap();
        // Somebody is about to claim it, in the same slot.
        world.declared_replica(next, origin(0));
        assert_eq!(world.find(0, origin(0), 0), "missing");
    }

    #[test]
    fn a_replica_leads_to_one_object() {
        let world = World::with(ROOM);
        world.replica(0, 1, origin(0), 7);
        assert!(world.table.retire_object(first(1)));
        assert_eq!(world.find(0, origin(0), 7), "missing");
        let next = world.reclaim(first(1)).unwrap();
        world.lease(next);
        world.put(next, 2, BOUND | REPLICA);
        assert_eq!(world.find(0, origin(0), 7), "missing");
        // The declaration stays in nobody's way, and goes.
        let mut ended = Vec::new();
        world.declared_replica(first(2), origin(0));
        assert_eq!(world.table.claim_replica(0, origin(0), first(2), |slot| ended.push(slot)), Claimed::Won);
        assert_eq!(ended, [0]);
    }

    #[test]
    fn a_scribbled_replica_leads_to_no_object_of_this_node() {
        let world = World::with(ROOM);
        world.replica(0, 1, origin(0), 7);
        world.lease(first(2));
        world.put(first(2), 3, 0);
        let at = ROOM.slot(0) + slot::PLACE;
        world.table.header(at).store(3 << LINK_SLOT | FIRST, Relaxed);
        assert_eq!(world.find(0, origin(0), 7), "missing");
        for word in [0, u64::MAX, 1 << LINK_SLOT, 9 << LINK_SLOT | FIRST] {
            world.table.header(at).store(word, Relaxed);
            assert_ne!(world.find(0, origin(0), 7), "landed");
        }
        // Nor does an entry, whatever it says.
        for word in
            [1, u64::MAX, origin(0).digest() >> 48 << 48 | 3 << 24 | FIRST, origin(0).digest() >> 48 << 48 | 9 << 24]
        {
            world.table.header(ROOM.entry(0, 0)).store(word, Relaxed);
            assert_eq!(world.find(0, origin(0), 7), "missing");
            assert!((0..3).all(|cell| world.table.is_unpinned(cell)));
        }
    }

    #[test]
    fn nobody_commits_to_a_replica() {
        let world = World::with(ROOM);
        assert_eq!(world.claim(0, first(0), origin(0)), Claimed::Won);
        world.lease(first(1));
        world.put(first(1), 7, BOUND);
        let format = Format { codec: 0, fingerprint: 0 };
        assert_eq!(world.table.bind(0, first(0), format, first(1)), Err(Unbound::Missing));
        assert_eq!(world.find(0, origin(0), 0), "in flight");
    }

    #[test]
    fn freshness_grows_and_ends() {
        let world = World::with(ROOM);
        world.replica(0, 1, origin(0), 7);
        let until = || match world.table.find_replica(0, origin(0)) {
            FoundReplica::Landed(_, until) => {
                world.table.unpin(0);
                until
            }
            other => panic!("{other:?}"),
        };
        assert!(world.table.refresh_replica(0, origin(0), 50));
        assert!(world.table.refresh_replica(0, origin(0), 40));
        assert_eq!(until(), 50);
        assert!(!world.table.refresh_replica(0, origin(1), 60));
        world.table.forget_replica(0, origin(0), |_| {});
        assert_eq!(world.find(0, origin(0), 0), "missing");
        assert!(!world.table.refresh_replica(0, origin(0), 70));
    }
}
