//! What everybody may see: what was begun and what was acknowledged, noted beside the table and never over a step of it.

use std::collections::BTreeMap;

use super::*;

/// The truth table. Whoever is about to do something says so before, and says what came of it after.
#[derive(Default)]
pub(super) struct Truth {
    entries: BTreeMap<(u32, u64), Entry>,
    /// Slots of what is being looked at, by the pin cell.
    views: BTreeMap<u32, u32>,
    /// For each origin, how many are about to end what there is of it.
    forgetting: [u32; ORIGINS],
    values: u64,
}

/// One generation of a slot, from just before somebody publishes or declares it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// What its words and bytes are made of; no two have the same.
    pub(super) value: u64,
    pub(super) flags: u16,
    pub(super) owner: u64,
    /// Others may know of it.
    pub(super) acknowledged: bool,
    /// How many began to end it: without any it is there, once acknowledged.
    pub(super) ends: u32,
    /// Somebody was told that it was he who ended it.
    ended: bool,
    /// Who begins to look now must not see it.
    pub(super) over: bool,
    /// Of a declaration: what somebody is about to bind to it, or did.
    bindings: Vec<Id>,
    pub(super) bound: Option<Id>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Object,
    Declared,
    /// The declaration of a replica, from this origin.
    Replica(usize),
    /// The object of a replica.
    Landed(usize),
}

/// What was so when a look began.
#[derive(Clone, Copy)]
pub(super) struct Before {
    over: bool,
    bound: Option<(Id, bool)>,
}

impl Truth {
    /// Something is about to be published or declared; what its words are to be made of.
    pub(super) fn begin(&mut self, id: Id, owner: u64, kind: Kind, flags: u16) -> u64 {
        self.values += 1;
        let ends = if let Kind::Replica(origin) = kind { self.forgetting[origin] } else { 0 };
        let entry = Entry {
            kind,
            value: self.values,
            flags,
            owner,
            acknowledged: false,
            ends,
            ended: false,
            over: false,
            bindings: Vec::new(),
            bound: None,
        };
        assert!(self.entries.insert(key(id), entry).is_none(), "{id:?} was lent twice");
        self.values
    }

    pub(super) fn acknowledge(&mut self, id: Id) {
        self.of(id).acknowledged = true;
    }

    #[track_caller]
    pub(super) fn of(&mut self, id: Id) -> &mut Entry {
        self.entries.get_mut(&key(id)).unwrap_or_else(|| panic!("{id:?} was never there"))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Id, &Entry)> {
        self.entries.iter().map(|((slot, generation), entry)| (Id { slot: *slot, generation: *generation }, entry))
    }

    /// The keys that everybody may have, of what is there and what is not any more, the latest last.
    pub(super) fn keys(&self) -> Vec<Id> {
        let is_key = |entry: &Entry| matches!(entry.kind, Kind::Object | Kind::Declared) && entry.flags & BOUND == 0;
        let keys = self.all().filter(|(_, entry)| entry.acknowledged && is_key(entry));
        let mut keys: Vec<(u64, Id)> = keys.map(|(id, entry)| (entry.value, id)).collect();
        keys.sort_unstable_by_key(|(value, _)| *value);
        keys.into_iter().map(|(_, id)| id).collect()
    }

    /// The latest declared keys: few, so that several commit to one.
    pub(super) fn declared(&self) -> Vec<Id> {
        let declared = self.all().filter(|(_, entry)| entry.acknowledged && entry.kind == Kind::Declared);
        let mut declared: Vec<(u64, Id)> = declared.map(|(id, entry)| (entry.value, id)).collect();
        declared.sort_unstable_by_key(|(value, _)| *value);
        declared.iter().rev().take(3).map(|(_, id)| *id).collect()
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Ends.

    pub(super) fn ending(&mut self, id: Id) {
        self.of(id).ends += 1;
    }

    /// The caller was told that it ended this.
    #[track_caller]
    pub(super) fn ended(&mut self, id: Id) {
        let entry = self.of(id);
        assert!(!entry.ended, "{id:?} was ended twice: {entry:?}");
        assert!(entry.ends > 0, "{id:?} was ended by nobody: {entry:?}");
        (entry.ended, entry.over) = (true, true);
    }

    /// The caller, who began to end it, was told that somebody else did.
    #[track_caller]
    pub(super) fn ended_by_another(&mut self, id: Id) {
        let entry = self.of(id);
        assert!(entry.ends > 1, "{id:?} could not be ended: {entry:?}");
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Looks.

    pub(super) fn before(&mut self, id: Id) -> Before {
        let entry = self.of(id).clone();
        Before { over: entry.over, bound: entry.bound.map(|object| (object, self.of(object).over)) }
    }

    /// Somebody found an object behind a key.
    #[track_caller]
    pub(super) fn saw_object(&mut self, asked: Id, before: Before, found: Id) {
        let entry = self.of(asked).clone();
        assert!(!before.over, "{asked:?} is over, and was found: {entry:?}");
        if entry.kind == Kind::Declared {
            assert!(entry.bindings.contains(&found), "{found:?} is not what was bound to {asked:?}: {entry:?}");
            if let Some((object, over)) = before.bound {
                assert!(object == found && !over, "{asked:?} was {object:?}, over: {over}, and is {found:?}");
            }
        } else {
            assert_eq!(asked, found);
        }
    }

    #[track_caller]
    pub(super) fn saw_declaration(&mut self, asked: Id, before: Before) {
        let entry = self.of(asked);
        assert_eq!(entry.kind, Kind::Declared);
        assert!(!before.over, "{asked:?} is over, and was found: {entry:?}");
        assert!(before.bound.is_none(), "{asked:?} was bound: {entry:?}");
    }

    #[track_caller]
    pub(super) fn saw_nothing(&mut self, asked: Id) {
        let entry = self.of(asked).clone();
        let is_ending = entry.ends > 0 || entry.bindings.iter().any(|object| self.of(*object).ends > 0);
        assert!(is_ending, "{asked:?} is lost: {entry:?}");
    }

    /// The cell names an object from before this until [`unview`](Self::unview).
    pub(super) fn view(&mut self, cell: u32, slot: u32) {
        self.views.insert(cell, slot);
    }

    pub(super) fn unview(&mut self, cell: u32) {
        self.views.remove(&cell);
    }

    /// The service makes the slot free.
    #[track_caller]
    pub(super) fn freed(&mut self, id: Id) {
        assert!(self.views.values().all(|slot| *slot != id.slot), "{id:?} is freed while somebody looks at it");
        if let Some(entry) = self.entries.get(&key(id)) {
            assert!(!entry.acknowledged || entry.ends > 0, "{id:?} is freed and nobody ended it: {entry:?}");
        }
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Bindings.

    pub(super) fn binding(&mut self, declared: Id, object: Id) {
        self.of(declared).bindings.push(object);
    }

    #[track_caller]
    pub(super) fn bound(&mut self, declared: Id, object: Id) {
        self.acknowledge(object);
        let entry = self.of(declared);
        assert!(entry.bound.is_none(), "a second object was bound to {declared:?}: {entry:?}");
        entry.bound = Some(object);
    }

    #[track_caller]
    pub(super) fn unbound(&mut self, declared: Id, object: Id, why: &Unbound) {
        let entry = self.of(declared);
        match why {
            Unbound::Taken => assert!(entry.bindings.len() > 1, "{declared:?} was taken by nobody: {entry:?}"),
            Unbound::Missing => assert!(entry.ends > 0, "{declared:?} is lost: {entry:?}"),
            Unbound::Format => {}
        }
        entry.bindings.retain(|other| *other != object);
    }

    /// The service ends an object because its key has ended.
    #[track_caller]
    pub(super) fn ends_with(&mut self, declared: Id, object: Id) {
        let entry = self.of(declared);
        assert!(
            entry.bindings.contains(&object),
            "{object:?} ends with {declared:?}, which it was not bound to: {entry:?}"
        );
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Replicas.

    fn of_origin(&mut self, origin: usize) -> impl Iterator<Item = (&(u32, u64), &mut Entry)> {
        self.entries.iter_mut().filter(move |(_, entry)| entry.kind == Kind::Replica(origin))
    }

    /// The declaration of a replica that a slot holds, of which there is one at a time.
    pub(super) fn replica_in(&self, slot: u32) -> Id {
        let of_slot = self.all().filter(|(id, entry)| id.slot == slot && matches!(entry.kind, Kind::Replica(_)));
        of_slot.last().expect("a declaration of a replica").0
    }

    #[track_caller]
    pub(super) fn claimed(&mut self, declared: Id, origin: usize) {
        let is_fetched = |entry: &Entry| entry.acknowledged && entry.bound.is_none() && entry.ends == 0;
        let other =
            self.of_origin(origin).find(|(_, entry)| is_fetched(entry)).map(|(key, entry)| (*key, entry.clone()));
        // A claim that was forgotten while it was made is in nobody's way.
        let is_over = self.of(declared).ends > 0;
        assert!(is_over || other.is_none(), "{declared:?} was claimed beside {other:?}");
        self.acknowledge(declared);
    }

    /// Somebody is about to forget an origin; what he must not leave.
    pub(super) fn forgetting(&mut self, origin: usize) -> BTreeSet<(u32, u64)> {
        self.forgetting[origin] += 1;
        self.of_origin(origin).for_each(|(_, entry)| entry.ends += 1);
        self.of_origin(origin).filter(|(_, entry)| entry.acknowledged).map(|(key, _)| *key).collect()
    }

    pub(super) fn forgot(&mut self, origin: usize, known: &BTreeSet<(u32, u64)>) {
        self.forgetting[origin] -= 1;
        self.of_origin(origin).filter(|(key, _)| known.contains(key)).for_each(|(_, entry)| entry.over = true);
    }

    /// What nobody may find who begins to look now.
    pub(super) fn over(&self) -> BTreeSet<(u32, u64)> {
        self.entries.iter().filter(|(_, entry)| entry.over).map(|(key, _)| *key).collect()
    }

    /// Somebody found what is on its way.
    #[track_caller]
    pub(super) fn saw_claim(&mut self, origin: usize, over: &BTreeSet<(u32, u64)>, declared: Id) {
        assert_eq!(self.of(declared).kind, Kind::Replica(origin));
        assert!(!over.contains(&key(declared)), "the claim {declared:?} is over, and was found");
    }

    /// Somebody found the object of a replica.
    #[track_caller]
    pub(super) fn saw_replica(&mut self, origin: usize, over: &BTreeSet<(u32, u64)>, object: Id) {
        assert_eq!(self.of(object).kind, Kind::Landed(origin));
        assert!(!over.contains(&key(object)), "the replica {object:?} is over, and was found");
        let declared = self.of_origin(origin).find(|(_, entry)| entry.bindings.contains(&object));
        let declared = *declared.expect("a declaration of what was found").0;
        assert!(!over.contains(&declared), "the replica's declaration {declared:?} is over, and was found");
    }
}

fn key(id: Id) -> (u32, u64) {
    (id.slot, id.generation)
}
