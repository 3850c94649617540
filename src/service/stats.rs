//! `ServiceStats`: the figures of a node service, as `proxystore stat` shows them.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// The figures of a node service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServiceStats {
    /// Random number of the memory: it stays the same when another process hosts it.
    pub instance: u64,
    /// Process that hosts the service.
    pub host: u32,
    /// Whether `proxystore serve` supervises it, so that it outlives its clients.
    pub supervised: bool,
    /// Seconds since this process began to host.
    pub since: u64,
    /// Most bytes of memory that segments may take.
    pub budget: u64,
    /// The memory that was made so far.
    pub segments: Vec<SegmentStats>,
    /// Objects that can be got, replicas included.
    pub live: Usage,
    /// Objects of other nodes that landed here and are shared.
    pub replicas: Usage,
    /// Most bytes of those; what nobody looks at and was not used for longest goes when there are more, or memory is short.
    pub replica_budget: u64,
    /// Cells leased to clients and not committed yet.
    pub reserved: Usage,
    /// Evicted objects whose memory is still pinned or not reclaimed yet.
    pub dying: Usage,
    /// Bytes of segments that nothing occupies.
    pub free_bytes: u64,
    /// Slots that the table has.
    pub slots: u64,
    /// Slots in use: live, reserved or dying.
    pub slots_used: u64,
    /// The processes attached.
    pub clients: Vec<ClientStats>,
    /// What happened since the memory was made.
    pub events: Events,
}

/// A number of things and their length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// How many.
    pub count: u64,
    /// Their length together, in bytes of memory taken.
    pub bytes: u64,
}

/// A segment of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SegmentStats {
    /// Its number.
    pub index: u16,
    /// Its length in bytes.
    pub len: u64,
    /// The pages that it got, such as `4KiB` or `2MiB`.
    pub pages: String,
    /// Bytes that nothing occupies.
    pub free: u64,
}

/// An attached process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClientStats {
    /// Its place in the table of clients.
    pub index: u32,
    /// Its process; 0 when that lives in another pid namespace.
    pub pid: u32,
    /// Objects that it is reading.
    pub pins: u64,
    /// Their length, in bytes.
    pub pinned_bytes: u64,
    /// Seconds for which it has held the oldest of them.
    pub oldest_pin: u64,
    /// Cells leased to it and not committed yet.
    pub leased: Usage,
    /// Live objects that it put or fetched from other nodes.
    pub objects: Usage,
}

/// Counters of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Events {
    /// Clients that ended without saying so.
    pub deaths: u64,
    /// Objects and leases whose memory was reclaimed after an eviction or a death.
    pub reclaimed: u64,
    /// Times that clients were asked for unused leases.
    pub recalls: u64,
    /// Times that the memory changed hands: a restart, or another host.
    pub restarts: u64,
    /// Requests and connections that were refused.
    pub refused: u64,
    /// Clients cut off because what they wrote made no sense.
    pub quarantined: u64,
    /// Replicas that made room.
    pub trimmed: u64,
}

impl ServiceStats {
    /// Reads what the service put into a memfd.
    ///
    /// # Errors
    /// `Invalid` for anything else, or more than [`MAX_STATS`] bytes.
    pub(crate) fn from_descriptor(descriptor: OwnedFd) -> Result<Self> {
        let mut bytes = Vec::new();
        let mut file = File::from(descriptor);
        file.rewind()
            .and_then(|()| file.take(MAX_STATS).read_to_end(&mut bytes))
            .map_err(|error| Error::io("stat", "a memfd", error))?;
        Self::from_bytes(&bytes)
    }

    /// The bytes that travel in a memfd.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        postcard::to_allocvec(self).map_err(|error| Error::new(ErrorKind::Codec, "stats", "").with_source(error))
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        match postcard::take_from_bytes(bytes) {
            Ok((stats, [])) => Ok(stats),
            Ok((_, rest)) => Err(invalid(format!("followed by {} bytes", rest.len()))),
            Err(error) => Err(invalid("").with_source(error)),
        }
    }
}

/// Longest figures, in bytes: of all clients that there can be.
const MAX_STATS: u64 = 4 << 20;

fn invalid(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, "stats", context)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn figures_round_trip() {
        let stats = ServiceStats {
            instance: 1,
            segments: vec![SegmentStats { index: 0, len: 1 << 30, pages: "2MiB".into(), free: 5 }],
            clients: vec![ClientStats { pid: 7, ..ClientStats::default() }],
            ..ServiceStats::default()
        };
        let mut bytes = stats.to_bytes().unwrap();
        assert_eq!(ServiceStats::from_bytes(&bytes).unwrap(), stats);
        bytes.push(0);
        assert!(ServiceStats::from_bytes(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn figures_from_anything(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = ServiceStats::from_bytes(&bytes);
        }
    }
}
