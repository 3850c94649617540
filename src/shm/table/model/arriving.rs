//! Models of objects that are passed on while they arrive: what is said to be there is there, whoever gives up and whatever the
//! slots are used for next.

use super::replica::twins;
use super::*;

/// The declaration, and what arrives for it.
const DECLARED: Id = Id { slot: 0, generation: FIRST };
const OBJECT: Id = Id { slot: 1, generation: FIRST };

const LEN: u64 = 7;

impl World {
    /// A claim, and a lease for what it is to fetch.
    fn claimed(&self) {
        let (one, _) = twins();
        self.table.lease(DECLARED, 3, 0, FIRST + 300, 0);
        self.table.declare_replica(DECLARED, one);
        assert_eq!(self.table.claim_replica(1, one, DECLARED, |_| {}), Claimed::Won);
        self.lease(OBJECT);
    }

    /// What the fetcher does before the first byte.
    fn open(&self) -> bool {
        self.table.hold(2, OBJECT.slot);
        self.table.publish_arriving(OBJECT, DECLARED, LEN);
        self.table.hint_at(1, DECLARED, OBJECT)
    }

    fn fill(&self, value: u64) {
        self.bytes[OBJECT.slot as usize].write(value);
        self.table.advance(OBJECT, LEN);
    }

    /// Somebody who wants all of what arrives.
    fn pass(&self, value: u64) -> &'static str {
        let Some((object, there)) = self.table.arriving(0, DECLARED) else { return "nothing" };
        let seen = if there == LEN { "bytes" } else { "none yet" };
        if there == LEN {
            assert_eq!(self.bytes[object.id.slot as usize].read(), value);
        }
        self.table.unpin(0);
        seen
    }
}

fn arrived() -> Label {
    Label { flags: BOUND | REPLICA, expires: 99, ..label(LEN) }
}

#[test]
fn loom_pass_against_arrival() {
    model(|seen| {
        let world = Arc::new(World::new());
        world.claimed();
        let reader = spawn(&world, |world| world.pass(5));
        assert!(world.open());
        world.fill(5);
        seen.note(reader.join().unwrap());
    })
    .all(&["bytes", "none yet", "nothing"]);
}

#[test]
fn loom_pass_against_landing() {
    model(|seen| {
        let world = Arc::new(World::new());
        world.claimed();
        assert!(world.open());
        let reader = spawn(&world, |world| world.pass(5));
        world.bytes[OBJECT.slot as usize].write(5);
        // Who takes the expiry for a number of bytes is right.
        world.table.label_arrived(OBJECT, &arrived(), 0);
        world.table.land_replica(1, DECLARED, OBJECT, 9).unwrap();
        world.table.unpin(2);
        seen.note(reader.join().unwrap());
    })
    .all(&["bytes", "none yet", "nothing"]);
}

#[test]
fn loom_pass_against_giving_up_and_reuse() {
    model(|seen| {
        let world = Arc::new(World::new());
        world.claimed();
        assert!(world.open());
        world.fill(5);
        let reader = spawn(&world, |world| world.pass(5));
        assert!(world.table.retire_object(OBJECT));
        world.table.unpin(2);
        if let Some(next) = world.reclaim(OBJECT) {
            world.lease(next);
            world.bytes[next.slot as usize].write(6);
            let other = Id { slot: 2, generation: FIRST + 9 };
            world.table.publish_arriving(next, other, LEN);
            world.table.advance(next, LEN);
            seen.note("reused");
        }
        seen.note(reader.join().unwrap());
    })
    .all(&["bytes", "nothing", "reused"]);
}

#[test]
fn loom_hint_against_forget_and_reuse() {
    model(|seen| {
        let world = Arc::new(World::new());
        world.claimed();
        let fetcher = spawn(&world, |world| world.open());
        assert!(world.table.retire(DECLARED));
        let next = world.reclaim(DECLARED);
        if let Some(next) = next {
            world.reuse(next, 2);
            seen.note("reused");
        }
        seen.note(if fetcher.join().unwrap() { "hinted" } else { "too late" });
        if let Some(next) = next {
            assert_eq!(world.look(0, next, 2), "object");
        }
    })
    .all(&["hinted", "reused", "too late"]);
}

#[test]
fn loom_expiry_against_arrival() {
    model(|seen| {
        let world = Arc::new(World::new());
        world.claimed();
        assert!(world.open());
        world.fill(5);
        let service = spawn(&world, |world| world.table.expires(OBJECT.slot));
        world.table.label_arrived(OBJECT, &arrived(), 0);
        match service.join().unwrap() {
            0 => seen.note("arrives"),
            99 => seen.note("expires"),
            other => panic!("{other} is a number of bytes"),
        }
    })
    .all(&["arrives", "expires"]);
}

#[test]
fn loom_expiry_against_arrival_and_use() {
    model(|seen| {
        let world = Arc::new(World::new());
        world.claimed();
        assert!(world.open());
        world.fill(5);
        let service = spawn(&world, |world| world.table.expires(OBJECT.slot));
        world.table.label_arrived(OBJECT, &arrived(), 0);
        // Somebody views it, and it is marked as used.
        world.table.stamp(&world.table.read(OBJECT), 3);
        match service.join().unwrap() {
            0 => seen.note("arrives"),
            99 => seen.note("expires"),
            other => panic!("{other} is a number of bytes"),
        }
    })
    .all(&["arrives", "expires"]);
}

// ----------------------------------------------------------------------------------------------------------------------

#[cfg(not(any(loom, shuttle)))]
mod alone {
    use super::*;

    #[test]
    fn a_hint_at_another_object_shows_nothing_of_it() {
        let world = World::new();
        world.claimed();
        assert!(world.open());
        world.fill(5);
        assert_eq!(world.pass(5), "bytes");
        // That of another declaration.
        world.table.publish_arriving(OBJECT, Id { slot: 2, ..DECLARED }, LEN);
        world.table.advance(OBJECT, LEN);
        let other = Id { generation: FIRST + 1, ..DECLARED };
        assert!(world.table.arriving(0, other).is_none());
        // No replica at all, whose type has a number that would do.
        let format = Format { codec: 0, fingerprint: FIRST };
        world.table.publish(OBJECT, &Label { format, expires: LEN, ..label(LEN) }, 0);
        assert_eq!(world.pass(5), "nothing");
        assert!(world.table.is_unpinned(0));
    }
}
