//! Crowds: three clients and a service take dozens of steps on a few slots, some are killed on the way, and a truth table knows
//! what each of them may see.
//!
//! shuttle runs them in orders that are picked at random, or with few changes of the thread, at places picked at random (PCT).
//! Here every load sees the last store: what weak orders of memory add is for loom to show, in models that are too small to go
//! round as often as these do.
//!
//! `SHUTTLE_ITERATIONS` says how often; a failure prints its schedule, and `SHUTTLE_REPLAY`, the path of a file that holds it,
//! runs that again.

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};

use self::service::{Mail, Service};
use self::truth::{Kind, Truth};
use super::*;
use crate::sync::lock;

mod service;
mod truth;

/// Everything that a client or the service has, but for what it knows by itself.
struct Crowd {
    world: World,
    truth: Plain<Truth>,
    mail: Plain<Mail>,
    seen: Seen,
    mix: &'static Mix,
}

/// What clients do.
struct Mix {
    steps: &'static [fn(&mut Client) -> Result<(), Killed>],
    /// One in so many chances to be killed is taken; 0 for none.
    kills: u32,
}

/// Whoever ran is no more, wherever it was.
#[derive(Debug)]
struct Killed;

/// A process that is attached.
struct Client {
    crowd: Arc<Crowd>,
    place: usize,
    tag: u64,
    /// What it looks at meanwhile.
    views: Vec<(u32, Object)>,
    /// What it fetches: which origin, by which declaration.
    claims: Vec<(usize, Id)>,
}

impl Crowd {
    fn new(mix: &'static Mix, seen: &Seen) -> Self {
        let world = World::with(CROWDED);
        for slot in 0..SLOTS {
            world.table.set(slot, FIRST, State::Free);
        }
        Self { world, truth: Plain::default(), mail: Plain::default(), seen: seen.clone(), mix }
    }

    fn table(&self) -> &Table<Heap> {
        &self.world.table
    }

    /// The pin cells of a client.
    fn cells(&self, place: usize) -> std::ops::Range<u32> {
        let first = place as u32 * CROWDED.cells;
        first..first + CROWDED.cells
    }

    fn next<T>(&self, read: impl FnOnce(&mut Mail) -> Option<T>) -> Option<T> {
        read(&mut lock(&self.mail))
    }

    fn may_be_killed(&self) -> Result<(), Killed> {
        if self.mix.kills != 0 && pick(self.mix.kills) == 0 { Err(Killed) } else { Ok(()) }
    }

    /// Ends something by one of the two steps that do; whether the caller did.
    fn end(&self, id: Id, step: fn(&Table<Heap>, Id) -> bool) -> bool {
        lock(&self.truth).ending(id);
        let ended = step(self.table(), id);
        match ended {
            true => lock(&self.truth).ended(id),
            false => lock(&self.truth).ended_by_another(id),
        }
        ended
    }

    /// The words and bytes of an object that is being looked at are those that its producer and its lender wrote.
    fn check(&self, object: &Object) {
        self.check_words(object);
        let value = lock(&self.truth).of(object.id).value;
        assert_eq!(self.world.bytes[object.id.slot as usize].read(), value, "{object:?}");
    }

    fn check_words(&self, object: &Object) {
        let entry = lock(&self.truth).of(object.id).clone();
        let label = Label { len: entry.value, format: FORMAT, flags: entry.flags, expires: entry.value };
        assert_eq!(object.label, label, "{object:?}");
        let words = (object.place, object.class, object.request, object.owner);
        assert_eq!(words, (mark(object.id), CLASS, REQUEST, entry.owner), "{object:?}");
    }

    /// Everybody is gone: what was acknowledged and nobody ended is there, and nothing else is anybody's.
    fn audit(&self) {
        let mut service = Service::new(self);
        while service.settle().is_err() {
            service = Service::new(self);
        }
        for cell in 0..CROWDED.cells * CROWDED.pages {
            assert!(self.table().is_unpinned(cell), "cell {cell} is in use");
        }
        let mut truth = lock(&self.truth);
        for slot in 0..SLOTS {
            let (generation, state) = self.table().state(slot).expect("a state");
            let id = Id { slot, generation };
            match state {
                State::Free => continue,
                State::Live | State::Declared => {}
                State::Reserved | State::Dying => panic!("{id:?} leaked: {state:?}"),
            }
            let entry = truth.of(id).clone();
            assert!(!entry.over, "{id:?} is over and there: {entry:?}");
            let is_declaration = matches!(entry.kind, Kind::Declared | Kind::Replica(_));
            assert_eq!(is_declaration, state == State::Declared, "{id:?}: {entry:?}");
            let is_fetched = matches!(entry.kind, Kind::Replica(_)) && !self.table().is_bound(slot);
            assert!(!is_fetched, "{id:?} is a claim of nobody: {entry:?}");
            if entry.flags & BOUND != 0 {
                assert!(entry.acknowledged, "{id:?} is bound to nothing: {entry:?}");
            }
        }
        for (id, entry) in truth.all().filter(|(_, entry)| entry.acknowledged && entry.ends == 0) {
            let expected =
                if matches!(entry.kind, Kind::Declared | Kind::Replica(_)) { State::Declared } else { State::Live };
            assert_eq!(self.table().state(id.slot), Some((id.generation, expected)), "{id:?} is lost: {entry:?}");
        }
    }
}

impl Client {
    /// Lives as often as it must to take all its steps, and leaves.
    fn run(crowd: Arc<Crowd>, place: usize) {
        let mut lives = 0;
        let mut client = Self::attach(&crowd, place, lives);
        for _ in 0..STEPS {
            let step = crowd.mix.steps[pick(crowd.mix.steps.len() as u32) as usize];
            if step(&mut client).is_err() {
                let dead = (client.tag, place);
                lock(&crowd.mail).tags[place] = 0;
                lock(&crowd.mail).dead.push(dead);
                // The next one may get its pin cells.
                while lock(&crowd.mail).dead.contains(&dead) {
                    thread::yield_now();
                }
                lives += 1;
                client = Self::attach(&crowd, place, lives);
            }
        }
        client.leave();
    }

    fn attach(crowd: &Arc<Crowd>, place: usize, lives: u64) -> Self {
        let tag = (lives << 8) + place as u64 + 1;
        let mut mail = lock(&crowd.mail);
        (mail.tags[place], mail.wanted[place]) = (tag, 0);
        mail.leases[place].clear();
        Self { crowd: Arc::clone(crowd), place, tag, views: Vec::new(), claims: Vec::new() }
    }

    /// As a process that ends in good order.
    fn leave(mut self) {
        while !self.views.is_empty() {
            self.look_away();
        }
        for (origin, declared) in std::mem::take(&mut self.claims) {
            self.abandon(origin, declared);
        }
        let mut mail = lock(&self.crowd.mail);
        mail.left += 1;
        // The service finds its leases, one of which may be on its way.
        mail.tags[self.place] = 0;
        mail.dead.push((self.tag, self.place));
    }

    /// A cell for what is over within a step.
    fn cell(&self) -> u32 {
        self.crowd.cells(self.place).start
    }

    fn tell(&self, slot: u32) {
        lock(&self.crowd.mail).evicted.push(slot);
    }

    /// Ends something and tells the service.
    fn end(&self, id: Id, step: fn(&Table<Heap>, Id) -> bool) -> Result<bool, Killed> {
        let ended = self.crowd.end(id, step);
        if ended {
            self.crowd.may_be_killed()?;
            self.tell(id.slot);
        }
        Ok(ended)
    }

    /// A lease, if the service has one within some time.
    fn lease(&self) -> Option<Id> {
        for _ in 0..PATIENCE {
            {
                let mut mail = lock(&self.crowd.mail);
                if let Some(id) = mail.leases[self.place].pop() {
                    return Some(id);
                }
                mail.wanted[self.place] = 1 + pick(2);
            }
            thread::yield_now();
        }
        self.crowd.seen.note("no lease");
        None
    }

    /// Writes and publishes an object in a lease.
    fn write(&self, id: Id, kind: Kind, flags: u16) -> Result<(), Killed> {
        let value = lock(&self.crowd.truth).begin(id, self.tag, kind, flags);
        self.crowd.world.bytes[id.slot as usize].write(value);
        self.crowd.may_be_killed()?;
        self.crowd.table().publish(id, &Label { len: value, format: FORMAT, flags, expires: value }, 0);
        self.crowd.may_be_killed()
    }

    /// A key that somebody had some time.
    fn key(&self) -> Option<Id> {
        let keys = lock(&self.crowd.truth).keys();
        // Mostly one of the last.
        let latest = keys.len().saturating_sub(if pick(4) == 0 { keys.len() } else { SLOTS as usize });
        let keys = &keys[latest..];
        (!keys.is_empty()).then(|| keys[pick(keys.len() as u32) as usize])
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Steps: objects and keys.

    fn put(&mut self) -> Result<(), Killed> {
        let Some(id) = self.lease() else { return Ok(()) };
        self.write(id, Kind::Object, if pick(3) == 0 { EPHEMERAL } else { 0 })?;
        lock(&self.crowd.truth).acknowledge(id);
        self.crowd.seen.note("put");
        Ok(())
    }

    fn return_lease(&mut self) -> Result<(), Killed> {
        let Some(id) = self.lease() else { return Ok(()) };
        lock(&self.crowd.mail).returned.push((self.tag, id));
        Ok(())
    }

    /// Looks an object up, and goes on looking at it for some time.
    fn get(&mut self) -> Result<(), Killed> {
        let mut cells = self.crowd.cells(self.place).skip(1);
        let cell = cells.find(|cell| self.views.iter().all(|(busy, _)| busy != cell));
        let (Some(cell), Some(id)) = (cell, self.key()) else { return Ok(()) };
        if let Some(object) = self.look_up(cell, id) {
            self.views.push((cell, object));
        }
        self.crowd.may_be_killed()
    }

    fn look_up(&self, cell: u32, id: Id) -> Option<Object> {
        let before = lock(&self.crowd.truth).before(id);
        let found = self.crowd.table().pin(cell, id);
        let mut truth = lock(&self.crowd.truth);
        match found {
            Found::Object(object) => {
                truth.view(cell, object.id.slot);
                truth.saw_object(id, before, object.id);
                drop(truth);
                self.crowd.check(&object);
                if pick(3) == 0 {
                    self.crowd.table().stamp(&object, pick(9));
                }
                self.crowd.seen.note(if object.id == id { "object" } else { "bound object" });
                return Some(object);
            }
            Found::Declared => {
                truth.saw_declaration(id, before);
                self.crowd.seen.note("declared");
            }
            Found::Missing => {
                truth.saw_nothing(id);
                self.crowd.seen.note("missing");
            }
        }
        None
    }

    fn end_view(&mut self) -> Result<(), Killed> {
        self.look_away();
        Ok(())
    }

    /// Whatever happened meanwhile, a view shows what it showed.
    fn look_away(&mut self) {
        if let Some((cell, object)) = self.views.pop() {
            self.crowd.check(&object);
            self.unpin(cell);
        }
    }

    fn unpin(&self, cell: u32) {
        lock(&self.crowd.truth).unview(cell);
        self.crowd.table().unpin(cell);
    }

    fn peek(&mut self) -> Result<(), Killed> {
        let Some(id) = self.key() else { return Ok(()) };
        let before = lock(&self.crowd.truth).before(id);
        if let Some(object) = self.crowd.table().peek(id) {
            lock(&self.crowd.truth).saw_object(id, before, object.id);
            self.crowd.check_words(&object);
            self.crowd.seen.note("peeked");
        }
        Ok(())
    }

    fn evict(&mut self) -> Result<(), Killed> {
        let Some(id) = self.key() else { return Ok(()) };
        if self.end(id, Table::retire)? {
            self.crowd.seen.note("evicted");
        }
        Ok(())
    }

    fn take(&mut self) -> Result<(), Killed> {
        let Some(id) = self.key() else { return Ok(()) };
        let Some(object) = self.look_up(self.cell(), id) else { return Ok(()) };
        let taken = self.end(object.id, Table::retire_object)?;
        if taken && object.id != id {
            self.end(id, Table::retire)?;
        }
        self.crowd.check(&object);
        self.unpin(self.cell());
        if taken {
            self.crowd.seen.note("taken");
        }
        Ok(())
    }

    fn declare(&mut self) -> Result<(), Killed> {
        let Some(id) = self.lease() else { return Ok(()) };
        lock(&self.crowd.truth).begin(id, self.tag, Kind::Declared, 0);
        self.crowd.table().declare(id, FORMAT);
        lock(&self.crowd.truth).acknowledge(id);
        Ok(())
    }

    fn bind(&mut self) -> Result<(), Killed> {
        let keys = lock(&self.crowd.truth).declared();
        let Some(declared) = (!keys.is_empty()).then(|| keys[pick(keys.len() as u32) as usize]) else { return Ok(()) };
        let Some(object) = self.lease() else { return Ok(()) };
        self.write(object, Kind::Object, BOUND)?;
        lock(&self.crowd.truth).binding(declared, object);
        let format = if pick(8) == 0 { OTHER_FORMAT } else { FORMAT };
        let bound = self.crowd.table().bind(self.cell(), declared, format, object);
        match bound {
            Ok(()) => {
                assert_eq!(format, FORMAT, "{declared:?} was bound to another type");
                lock(&self.crowd.truth).bound(declared, object);
            }
            Err(why) => {
                assert!(why != Unbound::Format || format == OTHER_FORMAT, "{declared:?} has another type");
                lock(&self.crowd.truth).unbound(declared, object, &why);
                self.crowd.seen.note(match why {
                    Unbound::Taken => "bound by another",
                    Unbound::Format => "another type",
                    Unbound::Missing => "key ended",
                });
                self.end(object, Table::retire_object)?;
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Steps: replicas.

    /// Looks for a replica, and claims what is not there.
    fn fetch(&mut self) -> Result<(), Killed> {
        let n = pick(ORIGINS as u32) as usize;
        let over = lock(&self.crowd.truth).over();
        match self.crowd.table().find_replica(self.cell(), origin(n)) {
            FoundReplica::Landed(object, until) => {
                {
                    let mut truth = lock(&self.crowd.truth);
                    truth.view(self.cell(), object.id.slot);
                    truth.saw_replica(n, &over, object.id);
                }
                assert_eq!(until / FRESH, n as u32 + 1, "fresh by another's word");
                self.crowd.check(&object);
                self.unpin(self.cell());
                self.crowd.seen.note("replica");
            }
            FoundReplica::InFlight(declared) => {
                lock(&self.crowd.truth).saw_claim(n, &over, declared);
                self.crowd.seen.note("in flight");
            }
            FoundReplica::Missing => return self.claim(n),
        }
        Ok(())
    }

    fn claim(&mut self, n: usize) -> Result<(), Killed> {
        let Some(declared) = self.lease() else { return Ok(()) };
        lock(&self.crowd.truth).begin(declared, self.tag, Kind::Replica(n), 0);
        self.crowd.table().declare_replica(declared, origin(n));
        self.crowd.may_be_killed()?;
        let claimed = self.crowd.table().claim_replica(self.cell(), origin(n), declared, |slot| {
            // Within the step that ended it.
            let mut truth = lock(&self.crowd.truth);
            let victim = truth.replica_in(slot);
            truth.ending(victim);
            truth.ended(victim);
            self.tell(slot);
            self.crowd.seen.note("made room");
        });
        match claimed {
            Claimed::Won => {
                lock(&self.crowd.truth).claimed(declared, n);
                self.claims.push((n, declared));
            }
            Claimed::Lost => {
                self.crowd.seen.note("lost");
                self.end(declared, Table::retire)?;
            }
            Claimed::Full => {
                self.crowd.seen.note("full");
                self.end(declared, Table::retire)?;
            }
        }
        self.crowd.may_be_killed()
    }

    /// What was claimed comes, or does not.
    fn land(&mut self) -> Result<(), Killed> {
        if self.claims.is_empty() {
            return Ok(());
        }
        if pick(5) == 0 {
            let (n, declared) = self.claims.remove(0);
            self.abandon(n, declared);
            return Ok(());
        }
        let Some(object) = self.lease() else { return Ok(()) };
        let (n, declared) = self.claims.remove(0);
        self.write(object, Kind::Landed(n), BOUND | REPLICA)?;
        lock(&self.crowd.truth).binding(declared, object);
        match self.crowd.table().land_replica(self.cell(), declared, object, (n as u32 + 1) * FRESH) {
            Ok(()) => {
                lock(&self.crowd.truth).bound(declared, object);
                self.crowd.seen.note("landed");
            }
            Err(why) => {
                lock(&self.crowd.truth).unbound(declared, object, &why);
                self.crowd.seen.note("too late");
                self.end(object, Table::retire_object)?;
            }
        }
        Ok(())
    }

    fn abandon(&self, n: usize, declared: Id) {
        if self.crowd.end(declared, Table::retire) {
            self.tell(declared.slot);
        }
        self.crowd.table().withdraw_replica(origin(n), declared);
    }

    fn forget(&mut self) -> Result<(), Killed> {
        let n = pick(ORIGINS as u32) as usize;
        let known = lock(&self.crowd.truth).forgetting(n);
        self.crowd.table().forget_replica(self.cell(), origin(n), |declared| {
            lock(&self.crowd.truth).ended(declared);
            self.tell(declared.slot);
            self.crowd.seen.note("forgotten");
        });
        lock(&self.crowd.truth).forgot(n, &known);
        Ok(())
    }

    fn refresh(&mut self) -> Result<(), Killed> {
        let n = pick(ORIGINS as u32) as usize;
        let until = (n as u32 + 1) * FRESH + pick(FRESH);
        if self.crowd.table().refresh_replica(self.cell(), origin(n), until) {
            self.crowd.seen.note("refreshed");
        }
        Ok(())
    }
}

/// Origins that one line of the index has to hold; the first two begin alike.
fn origin(n: usize) -> Origin {
    let (one, two) = replica::twins();
    [one, two, Origin { instance: 78, ..one }][n]
}

/// What the lender writes: no link, and of this generation.
fn mark(id: Id) -> u64 {
    id.generation << 8 | u64::from(id.slot)
}

fn pick(n: u32) -> u32 {
    thread_rng().gen_range(0..n)
}

/// Runs crowds, and wants all that is `expected` to have come up in some of them.
fn crowds(scheduler: impl Scheduler + 'static, mix: &'static Mix, expected: &[&str]) {
    let seen = Seen::default();
    let notes = seen.clone();
    let crowd = move || {
        let crowd = Arc::new(Crowd::new(mix, &notes));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|place| {
                let crowd = Arc::clone(&crowd);
                thread::spawn(move || Client::run(crowd, place))
            })
            .collect();
        let served = Arc::clone(&crowd);
        let service = thread::spawn(move || Service::run(&served));
        clients.into_iter().chain([service]).for_each(|thread| thread.join().unwrap());
        crowd.audit();
    };
    if let Some(path) = std::env::var_os("SHUTTLE_REPLAY") {
        return shuttle::replay_from_file(crowd, path);
    }
    let mut config = shuttle::Config::new();
    // That it knows no weak orders is said above.
    config.silence_warnings = true;
    shuttle::Runner::new(scheduler, config).run(crowd);
    let seen = seen.0.lock().unwrap();
    let missed: Vec<_> = expected.iter().filter(|what| !seen.contains(*what)).collect();
    assert!(missed.is_empty(), "never seen: {missed:?} of {seen:?}");
}

fn iterations() -> usize {
    std::env::var("SHUTTLE_ITERATIONS").map_or(10_000, |n| n.parse().expect("a number"))
}

fn at_random(mix: &'static Mix, expected: &[&str]) {
    crowds(RandomScheduler::new(iterations()), mix, expected);
}

fn with_few_changes(mix: &'static Mix, expected: &[&str]) {
    crowds(PctScheduler::new(DEPTH, iterations()), mix, expected);
}

#[test]
fn shuttle_objects() {
    at_random(&OBJECTS, OF_OBJECTS);
}

#[test]
fn shuttle_objects_with_few_changes() {
    with_few_changes(&OBJECTS, OF_OBJECTS);
}

#[test]
fn shuttle_replicas() {
    at_random(&REPLICAS, OF_REPLICAS);
}

#[test]
fn shuttle_replicas_with_few_changes() {
    with_few_changes(&REPLICAS, OF_REPLICAS);
}

#[test]
fn shuttle_deaths() {
    at_random(&DEATHS, OF_DEATHS);
}

#[test]
fn shuttle_deaths_with_few_changes() {
    with_few_changes(&DEATHS, OF_DEATHS);
}

const OBJECTS: Mix = Mix {
    steps: &[
        Client::put,
        Client::put,
        Client::get,
        Client::get,
        Client::end_view,
        Client::peek,
        Client::evict,
        Client::take,
        Client::declare,
        Client::bind,
        Client::bind,
        Client::return_lease,
    ],
    kills: 0,
};

const OF_OBJECTS: &[&str] = &[
    "another type",
    "bound by another",
    "bound object",
    "busy",
    "declared",
    "displaced",
    "evicted",
    "key ended",
    "missing",
    "object",
    "peeked",
    "put",
    "taken",
];

const REPLICAS: Mix = Mix {
    steps: &[
        Client::fetch,
        Client::fetch,
        Client::fetch,
        Client::land,
        Client::land,
        Client::forget,
        Client::refresh,
        Client::return_lease,
    ],
    kills: 0,
};

const OF_REPLICAS: &[&str] =
    &["displaced", "forgotten", "full", "in flight", "landed", "lost", "made room", "refreshed", "replica", "too late"];

const DEATHS: Mix = Mix {
    steps: &[
        Client::put,
        Client::get,
        Client::end_view,
        Client::evict,
        Client::take,
        Client::declare,
        Client::bind,
        Client::fetch,
        Client::fetch,
        Client::land,
        Client::forget,
    ],
    kills: 40,
};

const OF_DEATHS: &[&str] = &["bound object", "buried", "evicted", "forgotten", "landed", "restarted", "taken"];

const CLIENTS: usize = 3;
const SLOTS: u32 = 5;
/// Of each client.
const STEPS: usize = 20;
/// How often a client looks for a lease that it asked for: there may be none before it ends something itself.
const PATIENCE: usize = 5;
const ORIGINS: usize = 3;
/// Changes of the thread that PCT looks for: most defects need no more.
const DEPTH: usize = 4;

/// A page of pin cells for each client.
const CROWDED: Layout = Layout { pages: CLIENTS as u32, slots: SLOTS, ..LAYOUT };

const FORMAT: Format = Format { codec: 1, fingerprint: 2 };
const OTHER_FORMAT: Format = Format { codec: 1, fingerprint: 3 };
const CLASS: u64 = 5;
const REQUEST: u64 = 9;
/// Times until which replicas of the n-th origin are fresh begin at n + 1 times this.
const FRESH: u32 = 1000;
