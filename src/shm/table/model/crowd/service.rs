//! The service of a crowd: as the one of production, it is one thread, and the table is all that is left when it is killed.

use std::collections::BTreeMap;

use super::*;

pub(super) struct Service<'a> {
    crowd: &'a Crowd,
    /// What it knows of each slot.
    held: Vec<Held>,
    free: Vec<u32>,
    dying: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Held {
    generation: u64,
    /// 0 for nobody.
    owner: u64,
    queued: bool,
}

/// What goes through the sockets.
#[derive(Default)]
pub(super) struct Mail {
    /// Leases that a client waits for.
    pub(super) wanted: [u32; CLIENTS],
    pub(super) leases: [Vec<Id>; CLIENTS],
    /// The attachment that each client is now, 0 for none.
    pub(super) tags: [u64; CLIENTS],
    pub(super) returned: Vec<(u64, Id)>,
    pub(super) evicted: Vec<u32>,
    /// Attachments that ended and are not buried yet, and whose pin cells they had.
    pub(super) dead: Vec<(u64, usize)>,
    pub(super) left: usize,
}

impl<'a> Service<'a> {
    /// Rebuilt from the table, which for the first service is empty.
    pub(super) fn new(crowd: &'a Crowd) -> Self {
        let mut service = Self { crowd, held: Vec::new(), free: Vec::new(), dying: Vec::new() };
        for slot in 0..SLOTS {
            let (generation, state) = crowd.table().state(slot).expect("a state");
            let owner = match state {
                State::Free => 0,
                _ => crowd.table().read(Id { slot, generation }).owner,
            };
            service.held.push(Held { generation, owner, queued: false });
            if owner == 0 {
                service.free.push(slot);
            }
        }
        service
    }

    /// Serves until all clients have left.
    pub(super) fn run(crowd: &Crowd) {
        let mut service = Service::new(crowd);
        loop {
            let is_last = lock(&crowd.mail).left == CLIENTS;
            if service.round().is_err() {
                crowd.seen.note("restarted");
                service = Service::new(crowd);
                while service.settle().is_err() {
                    service = Service::new(crowd);
                }
            } else if is_last {
                break;
            }
            thread::yield_now();
        }
    }

    /// Takes back what nobody told.
    pub(super) fn settle(&mut self) -> Result<(), Killed> {
        self.sweep(None)?;
        self.reclaim()
    }

    fn round(&mut self) -> Result<(), Killed> {
        self.read_mail()?;
        self.reclaim()?;
        match pick(6) {
            0 => self.sweep(None)?,
            1 => self.displace(),
            _ => {}
        }
        self.reclaim()
    }

    fn read_mail(&mut self) -> Result<(), Killed> {
        let crowd = self.crowd;
        while let Some(slot) = crowd.next(|mail| mail.evicted.pop()) {
            let held = self.held[slot as usize];
            if crowd.table().state(slot) == Some((held.generation, State::Dying)) {
                self.queue(slot);
            }
        }
        // Heard only when it was done: what a killed service had read is said again.
        while let Some((tag, id)) = crowd.next(|mail| mail.returned.first().copied()) {
            let held = self.held[id.slot as usize];
            let is_lease = crowd.table().state(id.slot) == Some((id.generation, State::Reserved));
            if held.owner == tag && is_lease {
                self.release(id.slot);
            }
            lock(&crowd.mail).returned.retain(|other| *other != (tag, id));
        }
        while let Some((tag, place)) = crowd.next(|mail| mail.dead.first().copied()) {
            self.bury(tag, place)?;
            lock(&crowd.mail).dead.retain(|other| *other != (tag, place));
            crowd.seen.note("buried");
        }
        for place in 0..CLIENTS {
            self.lend(place)?;
        }
        Ok(())
    }

    fn lend(&mut self, place: usize) -> Result<(), Killed> {
        let crowd = self.crowd;
        while let Some(tag) =
            crowd.next(|mail| (mail.wanted[place] > 0 && mail.tags[place] != 0).then_some(mail.tags[place]))
        {
            let Some(slot) = self.free.pop() else { break };
            let held = &mut self.held[slot as usize];
            held.owner = tag;
            let id = Id { slot, generation: held.generation };
            crowd.table().lease(id, mark(id), CLASS, tag, REQUEST);
            let granted = crowd.next(|mail| {
                // Otherwise the client is dead, and will be buried.
                (mail.tags[place] == tag).then(|| {
                    mail.wanted[place] = mail.wanted[place].saturating_sub(1);
                    mail.leases[place].push(id);
                })
            });
            if granted.is_none() {
                crowd.seen.note("lent to the dead");
            }
            crowd.may_be_killed()?;
        }
        Ok(())
    }

    fn queue(&mut self, slot: u32) {
        let held = &mut self.held[slot as usize];
        if !held.queued {
            held.queued = true;
            self.dying.push(slot);
        }
    }

    fn release(&mut self, slot: u32) {
        let held = &mut self.held[slot as usize];
        (held.owner, held.queued) = (0, false);
        lock(&self.crowd.truth).freed(Id { slot, generation: held.generation });
        held.generation = self.crowd.table().free(slot, held.generation);
        self.free.push(slot);
    }

    fn reclaim(&mut self) -> Result<(), Killed> {
        while !self.dying.is_empty() {
            let mut pinned = BTreeSet::new();
            self.crowd.table().pinned(0..CLIENTS as u32, |_, slot| _ = pinned.insert(slot));
            let (busy, unused): (Vec<u32>, Vec<u32>) =
                std::mem::take(&mut self.dying).into_iter().partition(|slot| pinned.contains(slot));
            if !busy.is_empty() {
                self.crowd.seen.note("busy");
            }
            self.dying = busy;
            let found = unused.len();
            for slot in unused {
                if let Some(object) = self.crowd.table().bound_to(slot) {
                    let declared = Id { slot, generation: self.held[slot as usize].generation };
                    lock(&self.crowd.truth).ends_with(declared, object);
                    self.end(object);
                    self.crowd.may_be_killed()?;
                }
                self.release(slot);
            }
            if found == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Ends an object or a declaration on somebody's behalf.
    fn end(&mut self, id: Id) {
        // The slot of a link may be another's by now, or nobody's.
        if lock(&self.crowd.truth).all().any(|(other, _)| other == id) && self.crowd.end(id, Table::retire) {
            self.queue(id.slot);
        }
    }

    fn bury(&mut self, tag: u64, place: usize) -> Result<(), Killed> {
        {
            let mut truth = lock(&self.crowd.truth);
            self.crowd.cells(place).for_each(|cell| truth.unview(cell));
        }
        self.crowd.table().clear_page(place as u32);
        self.sweep(Some(tag))?;
        self.reclaim()
    }

    /// What was not told, what leads nowhere, and what the dead left.
    fn sweep(&mut self, dead: Option<u64>) -> Result<(), Killed> {
        let table = self.crowd.table();
        let mut declared = BTreeMap::new();
        let mut bound = Vec::new();
        for slot in 0..SLOTS {
            let held = self.held[slot as usize];
            let (generation, state) = table.state(slot).expect("a state");
            let id = Id { slot, generation };
            assert_eq!(generation, held.generation, "slot {slot}, {state:?}");
            assert_eq!(state == State::Free, held.owner == 0, "slot {slot}, {state:?}");
            let is_dead = Some(held.owner) == dead;
            match state {
                State::Free => {}
                State::Reserved if is_dead => self.release(slot),
                State::Reserved => {}
                State::Dying => self.queue(slot),
                State::Live => {
                    let flags = table.read(id).label.flags;
                    if flags & BOUND != 0 {
                        bound.push((id, is_dead));
                    } else if flags & EPHEMERAL != 0 && is_dead {
                        self.end(id);
                    }
                }
                State::Declared if table.is_bound(slot) => {
                    let is_lost = table.is_replica(id) && !table.is_indexed(id);
                    match table.bound_to(slot).filter(|_| !is_lost) {
                        Some(object) => drop(declared.insert(object.slot, id)),
                        None => self.end(id),
                    }
                }
                State::Declared if is_dead && table.is_replica(id) => self.end(id),
                State::Declared => {}
            }
            self.crowd.may_be_killed()?;
        }
        for (object, is_dead) in bound {
            if declared.remove(&object.slot).is_none() && is_dead {
                self.end(object);
            }
        }
        for (object, id) in declared {
            if !matches!(table.state(object), Some((_, State::Live))) {
                self.end(id);
            }
        }
        Ok(())
    }

    /// Makes room, as for somebody who finds none.
    fn displace(&mut self) {
        let slot = pick(SLOTS);
        let id = Id { slot, generation: self.held[slot as usize].generation };
        if self.crowd.table().state(slot) == Some((id.generation, State::Live))
            && self.crowd.end(id, Table::retire_object)
        {
            self.queue(slot);
            self.crowd.seen.note("displaced");
        }
    }
}
