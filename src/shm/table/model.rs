//! Models of the protocol: what several processes do at once, in every order, and with every value that memory may show.
//!
//! Each is small enough for loom to be exhaustive; without loom they run some times with real threads, which Miri watches.
//! Those in `crowd` are too large for that: shuttle runs them in orders picked at random.

#[cfg(loom)]
use loom::{
    sync::atomic::{AtomicBool, AtomicUsize},
    thread,
};
#[cfg(shuttle)]
use shuttle::{
    sync::atomic::{AtomicBool, AtomicUsize},
    thread,
};
use std::collections::BTreeSet;
use std::sync::Mutex as Plain;
use std::sync::atomic::Ordering::Relaxed;
#[cfg(not(any(loom, shuttle)))]
use std::{
    sync::atomic::{AtomicBool, AtomicUsize},
    thread,
};

use super::bytes::Bytes;
use super::*;
use crate::shm::futex;
use crate::shm::mem::Heap;
use crate::sync::modelled::Arc;

mod arriving;
#[cfg(shuttle)]
mod crowd;
mod leaving;
mod replica;

const LAYOUT: Layout = Layout { segments: 1, clients: 1, pages: 1, cells: 3, sets: 1, ways: 2, slots: 3 };

/// The table, and the memory of each slot's cell.
struct World {
    table: Table<Heap>,
    bytes: Vec<Bytes>,
}

impl World {
    fn new() -> Self {
        Self::with(LAYOUT)
    }

    fn with(layout: Layout) -> Self {
        let header = |index| index == word::SLOTS || index == word::PAGES;
        let buckets = |index| (0..layout.slots as usize).any(|slot| index == layout.bucket(slot));
        let entries = layout.entry(0, 0)..layout.entry(layout.sets, 0);
        let cells = layout.cell(0)..layout.cell(layout.pages * layout.cells);
        let slots = layout.slot(0)..layout.words();
        let parts = [entries, cells, slots];
        let is_there = |index| header(index) || buckets(index) || parts.iter().any(|part| part.contains(&index));
        let table = Table::new(Heap::some(layout.words(), is_there), layout);
        table.header(word::SLOTS).store(layout.slots.into(), Relaxed);
        table.header(word::PAGES).store(layout.pages.into(), Relaxed);
        Self { table, bytes: (0..layout.slots).map(|_| Bytes::new()).collect() }
    }

    /// The service lends a slot; the fields tell of which lease they are.
    fn lease(&self, id: Id) {
        let n = id.generation;
        self.table.lease(id, n + 100, n + 200, n + 300, n + 400);
    }

    /// A client writes an object whose bytes and label are all `value`.
    fn put(&self, id: Id, value: u64, flags: u16) {
        self.bytes[id.slot as usize].write(value);
        self.table.publish(id, &Label { flags, ..label(value) }, value as u32);
    }

    /// The first object of a slot.
    fn object(&self, slot: u32, value: u64) -> Id {
        let id = Id { slot, generation: FIRST };
        self.lease(id);
        self.put(id, value, 0);
        id
    }

    fn declared(&self, slot: u32, format: u64) -> Id {
        let id = Id { slot, generation: FIRST };
        self.table.lease(id, 0, 0, FIRST + 300, 0);
        self.table.declare(id, label(format).format);
        id
    }

    /// A client looks an object up, reads all of it, and gives it up.
    fn look(&self, cell: u32, id: Id, value: u64) -> &'static str {
        match self.table.pin(cell, id) {
            Found::Object(object) => {
                self.check(&object, value);
                self.table.unpin(cell);
                "object"
            }
            Found::Declared => "declared",
            Found::Missing => "missing",
        }
    }

    /// The words and bytes of a pinned object are those that its producer and its lender wrote.
    fn check(&self, object: &Object, value: u64) {
        let n = object.id.generation;
        assert_eq!(object.label.len, value);
        assert_eq!(object.label.format, label(value).format);
        assert_eq!((object.place, object.class, object.owner), (n + 100, n + 200, n + 300));
        assert_eq!(self.bytes[object.id.slot as usize].read(), value);
    }

    /// What the service does with a slot that it was told of: `None` while somebody looks at the object.
    fn reclaim(&self, id: Id) -> Option<Id> {
        if self.table.state(id.slot) != Some((id.generation, State::Dying)) {
            return None;
        }
        let mut pinned = false;
        self.table.pinned(0..LAYOUT.pages, |_, slot| pinned |= slot == id.slot);
        if pinned {
            return None;
        }
        if let Some(object) = self.table.bound_to(id.slot) {
            self.table.retire_object(object);
        }
        Some(Id { slot: id.slot, generation: self.table.free(id.slot, id.generation) })
    }

    /// The slot and its memory become another object's; who may still look at the former one is a race.
    fn reuse(&self, next: Id, value: u64) {
        self.lease(next);
        self.put(next, value, 0);
    }
}

fn label(value: u64) -> Label {
    Label { len: value, format: Format { codec: value as u16, fingerprint: value }, flags: 0, expires: 0 }
}

const FIRST: u64 = 5;

/// What happened in some execution: a model in which a case never comes up shows nothing of it.
#[derive(Clone, Default)]
struct Seen(std::sync::Arc<Plain<BTreeSet<&'static str>>>);

impl Seen {
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap().insert(what);
    }

    #[track_caller]
    fn all(&self, expected: &[&'static str]) {
        if cfg!(loom) {
            assert_eq!(self.0.lock().unwrap().iter().copied().collect::<Vec<_>>(), expected);
        }
    }
}

/// Runs `f` in every order; returns what it saw.
fn model(f: impl Fn(&Seen) + Send + Sync + 'static) -> Seen {
    let seen = Seen::default();
    let notes = seen.clone();
    #[cfg(loom)]
    loom::model(move || f(&notes));
    #[cfg(shuttle)]
    shuttle::check_random(move || f(&notes), 100);
    #[cfg(not(any(loom, shuttle)))]
    (0..if cfg!(miri) { 2 } else { 50 }).for_each(|_| f(&notes));
    seen
}

fn spawn<T: Send + 'static>(world: &Arc<World>, f: impl FnOnce(&World) -> T + Send + 'static) -> thread::JoinHandle<T> {
    let world = Arc::clone(world);
    thread::spawn(move || f(&world))
}

#[test]
fn loom_publish_against_pin() {
    model(|seen| {
        let world = Arc::new(World::new());
        let id = Id { slot: 0, generation: FIRST };
        world.lease(id);
        let producer = spawn(&world, move |world| world.put(id, 7, 0));
        seen.note(world.look(0, id, 7));
        producer.join().unwrap();
    })
    .all(&["missing", "object"]);
}

#[test]
fn loom_pin_against_reuse() {
    model(|seen| {
        let world = Arc::new(World::new());
        let id = world.object(0, 1);
        let reader = spawn(&world, move |world| [world.look(0, id, 1), world.look(1, id, 1)]);
        assert!(world.table.retire(id));
        let next = world.reclaim(id);
        if let Some(next) = next {
            world.reuse(next, 2);
            seen.note("reused at once");
        }
        reader.join().unwrap().into_iter().for_each(|found| seen.note(found));
        if next.is_none() {
            let next = world.reclaim(id).expect("nobody looks any more");
            assert_ne!(next.generation, id.generation);
            seen.note("reused later");
        }
    })
    .all(&["missing", "object", "reused at once", "reused later"]);
}

#[test]
fn loom_evicted_by_another() {
    model(|seen| {
        let world = Arc::new(World::new());
        let id = world.object(0, 1);
        let reader = spawn(&world, move |world| world.look(0, id, 1));
        let evictor = spawn(&world, move |world| assert!(world.table.retire(id)));
        if let Some(next) = world.reclaim(id) {
            world.reuse(next, 2);
            seen.note("reused at once");
        }
        evictor.join().unwrap();
        seen.note(reader.join().unwrap());
    })
    .all(&["missing", "object", "reused at once"]);
}

#[test]
fn loom_cell_names_the_next_slot() {
    // A scan that sees the second name only has to know that the first view is over.
    model(|seen| {
        let world = Arc::new(World::new());
        let (first, second) = (world.object(0, 1), world.object(1, 11));
        let reader = spawn(&world, move |world| {
            world.look(0, first, 1);
            world.look(0, second, 11)
        });
        assert!(world.table.retire(first));
        if let Some(next) = world.reclaim(first) {
            world.reuse(next, 2);
            seen.note("reused");
        }
        seen.note(reader.join().unwrap());
    })
    .all(&["object", "reused"]);
}

#[test]
fn loom_cell_is_given_up_by_another_thread() {
    // A view is dropped by one thread, and the cell's owner uses the cell again.
    model(|seen| {
        let world = Arc::new(World::new());
        let (first, second) = (world.object(0, 1), world.object(1, 11));
        let Found::Object(object) = world.table.pin(0, first) else { unreachable!("nobody evicted it") };
        let view = spawn(&world, move |world| {
            world.check(&object, 1);
            world.table.unpin(0);
        });
        let owner = spawn(&world, move |world| match world.table.is_unpinned(0) {
            true => world.look(0, second, 11),
            false => "busy",
        });
        assert!(world.table.retire(first));
        if let Some(next) = world.reclaim(first) {
            world.reuse(next, 2);
            seen.note("reused");
        }
        view.join().unwrap();
        seen.note(owner.join().unwrap());
    })
    .all(&["busy", "object", "reused"]);
}

#[test]
fn loom_one_taker_or_evictor() {
    model(|seen| {
        let world = Arc::new(World::new());
        let id = world.object(0, 1);
        let takers: Vec<_> = (0..2)
            .map(|cell| {
                spawn(&world, move |world| match world.table.pin(cell, id) {
                    Found::Object(object) => {
                        let taken = world.table.retire_object(object.id);
                        world.check(&object, 1);
                        world.table.unpin(cell);
                        taken
                    }
                    _ => false,
                })
            })
            .collect();
        let evicted = world.table.retire(id);
        let taken = takers.into_iter().map(|taker| usize::from(taker.join().unwrap())).sum::<usize>();
        assert_eq!(taken + usize::from(evicted), 1);
        seen.note(if evicted { "evicted" } else { "taken" });
        assert!(world.reclaim(id).is_some());
    })
    .all(&["evicted", "taken"]);
}

#[test]
fn loom_stamp_against_reuse() {
    model(|seen| {
        let world = Arc::new(World::new());
        let id = world.object(0, 1);
        let reader = spawn(&world, move |world| {
            if let Found::Object(object) = world.table.pin(0, id) {
                world.table.stamp(&object, 99);
                world.table.unpin(0);
            }
        });
        assert!(world.table.retire_object(id));
        let next = world.reclaim(id);
        if let Some(next) = next {
            world.reuse(next, 2);
        }
        reader.join().unwrap();
        if let Some(next) = next {
            let object = world.table.read(next);
            assert_eq!((object.label, object.stamp), (label(2), 2));
            seen.note("reused");
        } else {
            seen.note(if world.table.read(id).stamp == 99 { "stamped" } else { "too late" });
        }
    })
    .all(&["reused", "stamped", "too late"]);
}

#[test]
fn loom_lease_goes_from_client_to_client() {
    model(|seen| {
        let world = Arc::new(World::new());
        let id = world.object(0, 1);
        let next = Id { generation: FIRST + 1, ..id };
        let reader = spawn(&world, move |world| world.look(0, id, 1));
        // What the other client is told comes by a socket, which orders things; it must not have to.
        let client = spawn(&world, move |world| {
            if world.table.state(0) == Some((next.generation, State::Reserved)) {
                let lease = world.table.read(next);
                assert_eq!((lease.place, lease.class, lease.owner), (FIRST + 101, FIRST + 201, FIRST + 301));
                assert_eq!(lease.request, FIRST + 401);
                world.put(next, 2, 0);
                return "put";
            }
            "no lease"
        });
        assert!(world.table.retire(id));
        if world.reclaim(id).is_some() {
            world.lease(next);
        }
        reader.join().unwrap();
        seen.note(client.join().unwrap());
    })
    .all(&["no lease", "put"]);
}

#[test]
fn loom_service_restarts() {
    // The first service is killed somewhere; the second knows nothing but the table, not even that by anything ordered.
    model(|seen| {
        let world = Arc::new(World::new());
        let id = world.object(0, 1);
        let killed = Arc::new(AtomicBool::new(false));
        let reader = spawn(&world, move |world| world.look(0, id, 1));
        let gone = Arc::clone(&killed);
        let first = spawn(&world, move |world| {
            world.table.retire(id);
            world.reclaim(id);
            gone.store(true, Relaxed);
        });
        if killed.load(Relaxed) {
            match world.table.state(0) {
                Some((generation, State::Free)) => {
                    assert_eq!(generation, FIRST + 1);
                    world.reuse(Id { slot: 0, generation }, 2);
                    seen.note("free");
                }
                Some((FIRST, State::Dying)) => {
                    if let Some(next) = world.reclaim(id) {
                        world.reuse(next, 2);
                        seen.note("dying");
                    }
                }
                // An older word than the last one: what the socket and the lock in between forbid.
                _ => {}
            }
        }
        first.join().unwrap();
        reader.join().unwrap();
    })
    .all(&["dying", "free"]);
}

#[test]
fn loom_two_binders() {
    model(|seen| {
        let world = Arc::new(World::new());
        let declared = world.declared(0, 7);
        let binders: Vec<_> = (1..3)
            .map(|slot| {
                let object = Id { slot, generation: FIRST };
                world.lease(object);
                spawn(&world, move |world| {
                    world.put(object, 7, BOUND);
                    let bound = world.table.bind(slot, declared, label(7).format, object);
                    if bound.is_err() {
                        assert_eq!(bound, Err(Unbound::Taken));
                        assert!(world.table.retire_object(object));
                    }
                    bound.is_ok()
                })
            })
            .collect();
        let won: Vec<bool> = binders.into_iter().map(|binder| binder.join().unwrap()).collect();
        assert_eq!(won.iter().filter(|won| **won).count(), 1);
        let winner = 1 + u32::from(won[1]);
        assert_eq!(world.table.bound_to(0), Some(Id { slot: winner, generation: FIRST }));
        assert_eq!(world.look(0, declared, 7), "object");
        seen.note(if winner == 1 { "first" } else { "second" });
    })
    .all(&["first", "second"]);
}

#[test]
fn loom_reader_of_a_declared_key() {
    model(|seen| {
        let world = Arc::new(World::new());
        let declared = world.declared(0, 7);
        let object = Id { slot: 1, generation: FIRST };
        world.lease(object);
        // Never missing: a link is seen after what it leads to.
        let reader = spawn(&world, move |world| world.look(1, declared, 7));
        world.put(object, 7, BOUND);
        world.table.bind(0, declared, label(7).format, object).unwrap();
        seen.note(reader.join().unwrap());
    })
    .all(&["declared", "object"]);
}

#[test]
fn loom_declare_against_bind() {
    model(|seen| {
        let world = Arc::new(World::new());
        let declared = Id { slot: 0, generation: FIRST };
        // What a lease leaves in the slot has to be gone for whoever sees the declaration.
        world.table.lease(declared, 3, 0, 1, 2);
        let object = world.object(1, 7);
        let producer = spawn(&world, move |world| world.table.declare(declared, label(7).format));
        match world.table.bind(0, declared, label(7).format, object) {
            Ok(()) => seen.note("bound"),
            Err(unbound) => {
                assert_eq!(unbound, Unbound::Missing);
                seen.note("missing");
            }
        }
        producer.join().unwrap();
    })
    .all(&["bound", "missing"]);
}

#[test]
fn loom_bind_against_evict_and_reuse() {
    model(|seen| {
        let world = Arc::new(World::new());
        let declared = world.declared(0, 7);
        let object = Id { slot: 1, generation: FIRST };
        world.lease(object);
        let binder = spawn(&world, move |world| {
            world.put(object, 7, BOUND);
            let bound = world.table.bind(0, declared, label(7).format, object);
            if bound.is_err() {
                world.table.retire_object(object);
            }
            bound.is_ok()
        });
        assert!(world.table.retire(declared));
        let again = |next: Id| {
            world.table.lease(next, 0, 0, 1, 0);
            world.table.declare(next, label(7).format);
        };
        let next = world.reclaim(declared);
        if let Some(next) = next {
            again(next);
        }
        let bound = binder.join().unwrap();
        let next = next.unwrap_or_else(|| {
            let next = world.reclaim(declared).expect("nobody binds any more");
            again(next);
            next
        });
        seen.note(if bound { "bound" } else { "missing" });
        // Bound before it was evicted, or never: the next declaration of the slot has nothing, and the object is over.
        assert_eq!(world.look(0, next, 7), "declared");
        assert_eq!(world.table.state(1), Some((FIRST, State::Dying)));
    })
    .all(&["bound", "missing"]);
}

#[test]
fn loom_sweep_sees_a_binding() {
    model(|seen| {
        let world = Arc::new(World::new());
        let declared = world.declared(0, 7);
        let object = Id { slot: 1, generation: FIRST };
        world.lease(object);
        // As the service's sweep does: a declaration whose object is not live any more is ended.
        let service = spawn(&world, |world| match world.table.bound_to(0) {
            Some(object) => {
                assert_eq!(world.table.state(object.slot), Some((FIRST, State::Live)));
                "bound"
            }
            None => "unbound",
        });
        world.put(object, 7, BOUND);
        world.table.bind(0, declared, label(7).format, object).unwrap();
        seen.note(service.join().unwrap());
    })
    .all(&["bound", "unbound"]);
}

#[test]
fn loom_waiter_is_woken() {
    model(|seen| {
        let world = Arc::new(World::new());
        let declared = world.declared(0, 7);
        let object = Id { slot: 1, generation: FIRST };
        world.lease(object);
        let binder = spawn(&world, move |world| {
            world.put(object, 7, BOUND);
            world.table.bind(0, declared, label(7).format, object).unwrap();
            futex::bump(world.table.bucket(0));
        });
        // As `Arrival::wait`.
        loop {
            let bucket = world.table.bucket(0);
            let counter = futex::load(bucket);
            match world.look(1, declared, 7) {
                "object" => break,
                found => seen.note(found),
            }
            futex::wait(bucket, counter, None);
        }
        binder.join().unwrap();
    })
    .all(&["declared"]);
}

/// As the thread that looks after the tasks of a process: it looks at words alone, without a pin and its fence.
#[test]
fn loom_watcher_sees_what_woke_it() {
    model(|seen| {
        let world = Arc::new(World::new());
        let declared = world.declared(0, 7);
        let object = Id { slot: 1, generation: FIRST };
        world.lease(object);
        let binder = spawn(&world, move |world| {
            world.put(object, 7, BOUND);
            world.table.bind(0, declared, label(7).format, object).unwrap();
            futex::bump(world.table.bucket(0));
        });
        loop {
            let bucket = world.table.bucket(0);
            let counter = futex::load(bucket);
            if world.table.is_bound(declared.slot) {
                break;
            }
            seen.note("declared");
            futex::wait(bucket, counter, None);
        }
        binder.join().unwrap();
    })
    .all(&["declared"]);
}

#[test]
fn loom_waiter_is_told_of_the_end() {
    model(|seen| {
        let world = Arc::new(World::new());
        let declared = world.declared(0, 7);
        let evictor = spawn(&world, move |world| {
            assert!(world.table.retire(declared));
            futex::bump(world.table.bucket(0));
        });
        loop {
            let bucket = world.table.bucket(0);
            let counter = futex::load(bucket);
            match world.look(1, declared, 7) {
                "missing" => break,
                found => seen.note(found),
            }
            futex::wait(bucket, counter, None);
        }
        evictor.join().unwrap();
    })
    .all(&["declared"]);
}

#[test]
fn loom_two_evictions_of_an_object_and_its_key() {
    // A taker ends the object, then the key; somebody else ends the key. The service is told of each once.
    model(|seen| {
        let world = Arc::new(World::new());
        let declared = world.declared(0, 7);
        let object = Id { slot: 1, generation: FIRST };
        world.lease(object);
        world.put(object, 7, BOUND);
        world.table.bind(0, declared, label(7).format, object).unwrap();
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        let taker = spawn(&world, move |world| {
            let Found::Object(found) = world.table.pin(1, declared) else { return false };
            let taken = world.table.retire_object(found.id);
            world.check(&found, 7);
            world.table.unpin(1);
            if taken && world.table.retire(declared) {
                count.fetch_add(1, Relaxed);
            }
            taken
        });
        if world.table.retire(declared) {
            told.fetch_add(1, Relaxed);
        }
        while world.reclaim(declared).is_none() {
            thread::yield_now();
        }
        let taken = taker.join().unwrap();
        assert_eq!(told.load(Relaxed), 1);
        // By the taker, or by the service on behalf of the key.
        assert_eq!(world.table.state(1), Some((FIRST, State::Dying)));
        assert!(world.reclaim(object).is_some());
        seen.note(if taken { "taken" } else { "missing" });
    })
    .all(&["missing", "taken"]);
}
