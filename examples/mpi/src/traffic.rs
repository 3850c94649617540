//! Bytes that nodes send each other.

use std::fs;

use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

/// Bytes sent by the network interfaces of all nodes since it was made, headers included, loopback not.
#[derive(Debug)]
pub struct Traffic {
    /// Whether this rank speaks for its node.
    counts: bool,
    before: u64,
}

impl Traffic {
    /// Collective: from here on.
    pub fn begin(world: &SimpleCommunicator) -> Self {
        let counts = world.split_shared(world.rank()).rank() == 0;
        // Nobody sends before everybody has looked.
        let traffic = Self { counts, before: if counts { sent() } else { 0 } };
        world.barrier();
        traffic
    }

    /// Collective: the sum over all nodes, the same in every rank.
    pub fn end(&self, world: &SimpleCommunicator) -> u64 {
        let own = if self.counts { sent().saturating_sub(self.before) } else { 0 };
        let mut sum = 0;
        world.all_reduce_into(&own, &mut sum, SystemOperation::sum());
        sum
    }
}

/// By /proc/net/dev: the ninth number of each line is what the interface has sent.
fn sent() -> u64 {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter(|(name, _)| name.trim() != "lo")
        .filter_map(|(_, numbers)| numbers.split_whitespace().nth(8)?.parse::<u64>().ok())
        .sum()
}
