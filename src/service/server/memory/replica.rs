//! What the service does about objects of other nodes: they have a budget, and make room for all else.

use std::sync::atomic::Ordering::Relaxed;

use super::Memory;
use crate::failpoint::failpoint;
use crate::mutant::mutant;
use crate::shm::layout::word;
use crate::shm::table::{Id, State};

/// A replica that can be found.
struct Landed {
    declared: Id,
    object: Id,
    /// Epoch of its last use.
    stamp: u32,
    bytes: u64,
}

impl Memory {
    /// How many there are, and the memory that they take.
    pub(in crate::service::server) fn replicas(&self) -> (u64, u64) {
        let (landed, _) = self.landed();
        (landed.len() as u64, landed.iter().map(|replica| replica.bytes).sum())
    }

    /// Whether so much was leased since the last look that it matters to the budget if it has landed.
    pub(in crate::service::server) fn may_have_too_many_replicas(&self) -> bool {
        self.leased > (self.replica_budget / 8).max(LOOK)
    }

    /// Ends what exceeds the budget, that which was not used for longest first, and the declarations of objects that ended by
    /// themselves.
    ///
    /// # Cost
    /// A walk through the index, which has half a MiB, and to what it leads; nothing where nobody ever fetched anything.
    pub(in crate::service::server) fn trim_replicas(&mut self) {
        self.leased = 0;
        if self.table.header(word::REPLICAS).load(Relaxed) == 0 {
            return;
        }
        let (landed, gone) = self.landed();
        for declared in gone {
            if !mutant!("trim_gone") && self.table.retire(declared) {
                self.queue(declared.slot);
            }
        }
        let bytes: u64 = landed.iter().map(|replica| replica.bytes).sum();
        let excess = bytes.saturating_sub(self.replica_budget);
        if excess > 0 && !mutant!("trim_excess") {
            self.end_replicas(landed, excess);
        }
        self.reclaim();
    }

    /// Ends at least `bytes` of what nobody looks at, or all there is; whether there was any.
    pub(super) fn displace_replicas(&mut self, bytes: u64) -> bool {
        if self.table.header(word::REPLICAS).load(Relaxed) == 0 {
            return false;
        }
        let (landed, _) = self.landed();
        self.end_replicas(landed, bytes)
    }

    fn end_replicas(&mut self, mut landed: Vec<Landed>, bytes: u64) -> bool {
        let pinned = self.pinned_slots();
        // What is looked at would take its memory until the view ends, and be fetched once more meanwhile.
        landed.retain(|replica| !pinned.contains(&replica.object.slot) || mutant!("trim_pinned"));
        landed.sort_unstable_by_key(|replica| match mutant!("trim_order") {
            true => (u32::MAX - replica.stamp, 0),
            false => (replica.stamp, replica.object.slot),
        });
        let mut freed = 0;
        for replica in landed {
            if freed >= bytes {
                break;
            }
            // What is empty has no memory to give.
            if replica.bytes > 0 && self.table.retire_object(replica.object) {
                self.queue(replica.object.slot);
                failpoint!("service.replica.ended");
                if self.table.retire(replica.declared) {
                    self.queue(replica.declared.slot);
                }
                freed += replica.bytes;
                self.counters.trimmed += 1;
            }
        }
        freed > 0
    }

    /// All that can be found, and declarations whose objects are gone.
    fn landed(&self) -> (Vec<Landed>, Vec<Id>) {
        let (mut landed, mut gone) = (Vec::new(), Vec::new());
        for (declared, object) in self.table.landed_replicas() {
            let object = object.filter(|object| self.is_live(*object));
            match object.and_then(|object| Some((object, self.slots.get(object.slot as usize)?))) {
                Some((object, held)) => {
                    let stamp = self.table.read(object).stamp;
                    landed.push(Landed { declared, object, stamp, bytes: held.class.capacity() });
                }
                None => gone.push(declared),
            }
        }
        (landed, gone)
    }

    fn is_live(&self, object: Id) -> bool {
        self.table.state(object.slot) == Some((object.generation, State::Live)) && self.table.is_replica(object)
    }
}

/// Bytes that are leased between two looks at least: a look takes as long as copying this much.
const LOOK: u64 = 1 << 20;
