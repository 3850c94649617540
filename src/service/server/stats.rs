//! What the service tells of itself.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use rustix::fs::{MemfdFlags, memfd_create};

use super::memory::Memory;
use super::{Server, failed};
use crate::error::{Error, Result};
use crate::service::stats::{ClientStats, Events, SegmentStats, ServiceStats, Usage};
use crate::shm::class::Class;
use crate::shm::layout::{client, word};
use crate::shm::table::State;

/// Since when each pin cell names its slot, as far as the service saw it.
#[derive(Default)]
pub(super) struct Ages(HashMap<u32, (u32, Instant)>);

impl Ages {
    /// Looks at all pins; called now and then.
    pub(super) fn look(&mut self, memory: &Memory) {
        let now = Instant::now();
        let mut seen = HashMap::with_capacity(self.0.len());
        memory.table.pinned(memory.pages_in_use(), |cell, slot| {
            let since = self.0.get(&cell).filter(|(named, _)| *named == slot).map_or(now, |(_, since)| *since);
            seen.insert(cell, (slot, since));
        });
        self.0 = seen;
    }
}

impl Server {
    /// The figures, in a memfd.
    pub(super) fn stats_fd(&mut self) -> Result<OwnedFd> {
        let bytes = self.stats().to_bytes()?;
        let fd = memfd_create("proxystore-stats", MemfdFlags::CLOEXEC).map_err(failed("stat"))?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let n = rustix::io::write(&fd, rest).map_err(failed("stat"))?;
            rest = rest.get(n..).ok_or_else(|| Error::io("stat", "a memfd", std::io::ErrorKind::WriteZero.into()))?;
        }
        Ok(fd)
    }

    fn stats(&mut self) -> ServiceStats {
        self.ages.look(&self.memory);
        let memory = &self.memory;
        let (count, bytes) = memory.replicas();
        let mut stats = ServiceStats {
            instance: memory.instance(),
            host: std::process::id(),
            supervised: self.keeper.is_some(),
            since: self.begun.elapsed().as_secs(),
            budget: memory.budget,
            replicas: Usage { count, bytes },
            replica_budget: memory.replica_budget,
            free_bytes: memory.arena().free_bytes(),
            slots: memory.slots().len() as u64,
            events: Events {
                deaths: self.deaths,
                reclaimed: memory.counters.reclaimed,
                recalls: self.recalls,
                restarts: memory.table.header(word::REBUILDS).load(Relaxed),
                refused: self.refused,
                quarantined: memory.counters.quarantined,
                trimmed: memory.counters.trimmed,
                ..Events::default()
            },
            ..ServiceStats::default()
        };
        for (index, segment) in memory.segments() {
            stats.segments.push(SegmentStats {
                index: *index,
                len: segment.len() as u64,
                pages: segment.pages().to_string(),
                free: memory.arena().segment_free(*index),
            });
        }
        let mut clients: HashMap<u64, ClientStats> = HashMap::new();
        for (index, attached) in &self.clients {
            let pid = memory.table.client(*index, client::PID).load(Relaxed) as u32;
            clients.insert(attached.tag, ClientStats { index: *index, pid, ..ClientStats::default() });
        }
        let count = |usage: &mut Usage, class: Class| {
            usage.count += 1;
            usage.bytes += class.capacity();
        };
        for (slot, held) in memory.slots().iter().enumerate() {
            if held.owner == 0 {
                continue;
            }
            stats.slots_used += 1;
            let owner = clients.get_mut(&held.owner);
            match memory.table.state(slot as u32) {
                Some((_, State::Reserved)) => {
                    count(&mut stats.reserved, held.class);
                    owner.into_iter().for_each(|owner| count(&mut owner.leased, held.class));
                }
                Some((_, State::Dying)) => count(&mut stats.dying, held.class),
                _ => {
                    count(&mut stats.live, held.class);
                    owner.into_iter().for_each(|owner| count(&mut owner.objects, held.class));
                }
            }
        }
        let cells = memory.table.layout().cells;
        for (cell, (slot, since)) in &self.ages.0 {
            let owner = memory.pages().get((cell / cells) as usize).copied().unwrap_or(0);
            if let Some(client) = clients.get_mut(&owner) {
                client.pins += 1;
                client.pinned_bytes += memory.slots().get(*slot as usize).map_or(0, |held| held.class.capacity());
                client.oldest_pin = client.oldest_pin.max(since.elapsed().as_secs());
            }
        }
        stats.clients = clients.into_values().collect();
        stats.clients.sort_unstable_by_key(|client| client.index);
        stats
    }
}
