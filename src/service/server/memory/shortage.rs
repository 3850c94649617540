//! `Shortage`: memory that could not be had, and who has it.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use super::{Memory, NO_MEMORY};
use crate::error::{Error, ErrorKind};
use crate::service::server::index_of;
use crate::shm::class::Class;
use crate::shm::layout::client;
use crate::shm::preflight::{self, Amount};
use crate::shm::table::State;

/// Memory that could not be had.
#[derive(Debug)]
pub(in crate::service::server) struct Shortage {
    pub(super) class: Class,
    /// Why there is no more, in parentheses, if that is not the budget.
    pub(super) why: String,
}

impl Memory {
    /// The error of a put that finds no memory: who has it.
    pub(in crate::service::server) fn exhausted(&self, shortage: &Shortage) -> Error {
        let Shortage { class, why } = shortage;
        let mut holders: HashMap<u64, (u64, u64)> = HashMap::new();
        let (mut live, mut leased) = (0, 0);
        for (slot, held) in self.slots.iter().enumerate() {
            if held.owner == 0 || held.class == NO_MEMORY {
                continue;
            }
            let bytes = held.class.capacity();
            match self.table.state(slot as u32) {
                Some((_, State::Reserved)) => leased += bytes,
                _ => live += bytes,
            }
            let entry = holders.entry(held.owner).or_default();
            *entry = (entry.0 + bytes, entry.1 + 1);
        }
        let dying: u64 = self.dying.iter().map(|slot| self.slots[*slot as usize].class.capacity()).sum();
        let mut holders: Vec<(u64, (u64, u64))> = holders.into_iter().collect();
        holders.sort_unstable_by_key(|(_, (bytes, _))| std::cmp::Reverse(*bytes));
        let largest: Vec<String> = holders
            .iter()
            .take(3)
            .map(|(tag, (bytes, count))| format!("{} holds {} in {count}", self.describe(*tag), Amount(*bytes)))
            .collect();
        let context = format!(
            "{} needed; of a budget of {} objects have {} ({} evicted but still viewed), leases {}, free are {} in pieces of at most {}; {}{why}; \
             evict objects, or raise PROXYSTORE_SHM_BYTES (available: {})",
            Amount(class.capacity()),
            Amount(self.budget),
            Amount(live),
            Amount(dying),
            Amount(leased),
            Amount(self.arena.free_bytes()),
            Amount(self.arena.largest_free()),
            if largest.is_empty() { "nobody holds any".to_owned() } else { largest.join(", ") },
            Amount(preflight::room().bytes),
        );
        Error::new(ErrorKind::NoSpace, "reserve", context)
    }

    fn describe(&self, tag: u64) -> String {
        let index = index_of(tag);
        match self.table.client(index, client::TAG).load(Relaxed) == tag {
            true => format!("process {}", self.table.client(index, client::PID).load(Relaxed) as u32),
            false => "a process that ended".to_owned(),
        }
    }
}
