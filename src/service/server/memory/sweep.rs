//! What the service takes back without being asked: what the dead left, what nobody told, what expired, what was not used.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use super::{Memory, NO_MEMORY};
use crate::mutant::mutant;
use crate::shm::clock;
use crate::shm::layout::{policy, word};
use crate::shm::table::{BOUND, EPHEMERAL, Id, State};

impl Memory {
    /// Walks all slots: ends what dead clients left, finds what was evicted and not told, mends what makes no sense.
    pub(in crate::service::server) fn sweep(&mut self, dead: impl Fn(u64) -> bool) {
        let mut declared: HashMap<u32, u32> = HashMap::new();
        let mut bound = Vec::new();
        for slot in 0..self.slots.len() as u32 {
            let held = self.slots[slot as usize];
            let state = match self.table.state(slot) {
                Some((generation, state)) if generation == held.generation || mutant!("sweep_generation") => state,
                _ => {
                    self.mend(slot);
                    continue;
                }
            };
            match state {
                State::Free if held.owner != 0 => self.mend(slot),
                State::Free => {}
                _ if held.owner == 0 => self.mend(slot),
                State::Reserved if dead(held.owner) && !mutant!("sweep_leases") => self.release(slot),
                State::Reserved => {}
                State::Dying if mutant!("sweep_dying") => {}
                State::Dying => self.queue(slot),
                State::Live => {
                    let id = Id { slot, generation: held.generation };
                    let flags = self.table.read(id).label.flags;
                    if flags & BOUND != 0 {
                        bound.push((id, dead(held.owner)));
                    } else if flags & EPHEMERAL != 0
                        && (dead(held.owner) || mutant!("sweep_ephemeral"))
                        && self.table.retire_object(id)
                    {
                        self.queue(slot);
                    }
                }
                // First whether it has a link: one that comes between the two looks is not that of an object that is gone.
                State::Declared if self.table.is_bound(slot) => {
                    let id = Id { slot, generation: held.generation };
                    // What landed could be found before: somebody scribbled on the way to it.
                    let is_lost =
                        self.table.is_replica(id) && !self.table.is_indexed(id) && !mutant!("sweep_lost_replicas");
                    match self.table.bound_to(slot).filter(|_| !is_lost) {
                        Some(object) => drop(declared.insert(object.slot, slot)),
                        // Its object was taken or displaced, and that slot is another object's by now.
                        None => {
                            if !mutant!("sweep_reclaimed") && self.table.retire(id) {
                                self.queue(slot);
                            }
                        }
                    }
                }
                State::Declared => {
                    // Only who declared it knows that it is to be fetched.
                    let id = Id { slot, generation: held.generation };
                    if dead(held.owner)
                        && (self.table.is_replica(id) || mutant!("sweep_promises"))
                        && !mutant!("sweep_claims")
                        && self.table.retire(id)
                    {
                        self.queue(slot);
                    }
                }
            }
        }
        for (object, producer_died) in bound {
            // Without a declaration that names it nobody can ever ask for it; a live producer may be about to bind it.
            if declared.remove(&object.slot).is_none()
                && (producer_died || mutant!("sweep_producer"))
                && !mutant!("sweep_unbound")
                && self.table.retire_object(object)
            {
                self.queue(object.slot);
            }
        }
        // What is left names objects that are gone: taken by somebody who was killed before it ended the declaration.
        for (object, slot) in declared {
            let gone = !matches!(self.table.state(object), Some((_, State::Live)));
            let id = Id { slot, generation: self.slots[slot as usize].generation };
            if gone && !mutant!("sweep_gone") && self.table.retire(id) {
                self.queue(slot);
            }
        }
    }

    /// Somebody wrote nonsense to a slot: the record says whose memory it is, so it is taken back as evicted.
    pub(super) fn mend(&mut self, slot: u32) {
        self.counters.quarantined += 1;
        let held = self.slots[slot as usize];
        if held.owner == 0 || mutant!("mend_owner") {
            self.table.set(slot, held.generation, State::Free);
        } else {
            self.table.set(slot, held.generation, State::Dying);
            self.queue(slot);
        }
    }

    /// Ends the objects whose time has come; whether there can be any.
    pub(in crate::service::server) fn expire(&mut self) -> bool {
        if self.table.header(word::EXPIRES).load(Relaxed) == 0 {
            return false;
        }
        let now = clock::boot_millis();
        for slot in 0..self.slots.len() as u32 {
            let id = Id { slot, generation: self.slots[slot as usize].generation };
            if self.table.state(slot) == Some((id.generation, State::Live)) {
                let expires = self.table.expires(slot);
                if expires != 0 && expires <= now && self.table.retire_object(id) {
                    self.counters.expired += 1;
                    self.queue(slot);
                }
            }
        }
        self.reclaim();
        true
    }

    pub(super) fn displaces(&self) -> bool {
        self.table.header(word::POLICY).load(Relaxed) & policy::STAMP != 0
    }

    /// Evicts what was not used for longest and is not in use, at least `bytes` of it or all there is; whether there was any.
    pub(super) fn displace(&mut self, bytes: u64) -> bool {
        let pinned = self.pinned_slots();
        let mut candidates = Vec::new();
        for (slot, held) in self.slots.iter().enumerate() {
            let slot = slot as u32;
            let id = Id { slot, generation: held.generation };
            if held.class != NO_MEMORY
                && self.table.state(slot) == Some((id.generation, State::Live))
                && (!pinned.contains(&slot) || mutant!("displace_pinned"))
            {
                candidates.push((self.table.read(id).stamp, id, held.class.capacity()));
            }
        }
        candidates.sort_unstable_by_key(|(stamp, id, _)| (*stamp, id.slot));
        let mut freed = 0;
        for (_, id, capacity) in candidates {
            if freed >= bytes {
                break;
            }
            if self.table.retire_object(id) {
                self.queue(id.slot);
                self.counters.displaced += 1;
                freed += capacity;
            }
        }
        freed > 0
    }
}
