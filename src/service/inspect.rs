//! For tests: the figures of a running service, and where the words of the control segment lie.

use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut as _;

use super::client::{Advance, Claim, Client, Options, Passing, Replica};
use super::directory::Directory;
use super::stats::ServiceStats;
use crate::error::Result;
use crate::key::Format;
use crate::region::{Region, RegionMut};
use crate::shm::layout::{self, Layout};
use crate::shm::table::{Id, Label, Origin};

/// The figures of the service of a namespace; the process attaches to it if it is not.
///
/// # Errors
/// When there is no service and none can be hosted, or it does not answer.
pub fn stats(namespace: &str) -> Result<ServiceStats> {
    client(namespace)?.stats()
}

/// Makes the service look at all slots and give free memory back.
///
/// # Errors
/// As [`stats`].
pub fn collect(namespace: &str) -> Result<u64> {
    client(namespace)?.collect()
}

/// Removes the files of a namespace that nobody holds; whether it did.
///
/// # Errors
/// When a file cannot be removed.
pub fn sweep(namespace: &str) -> Result<bool> {
    match Directory::find(namespace)? {
        Some(directory) => directory.remove(),
        None => Ok(true),
    }
}

/// Offset in bytes of the eight words of a slot: state, place, length, class, owner, fingerprint, meta, expiry.
pub fn slot_offset(slot: u32) -> usize {
    Layout::SHARED.slot(slot) * 8
}

/// Offset in bytes of the number of slots in use.
pub fn slots_offset() -> usize {
    layout::word::SLOTS * 8
}

/// Offset in bytes of the index of replicas, and its length.
pub fn index_range() -> (usize, usize) {
    let layout = Layout::SHARED;
    (layout.entry(0, 0) * 8, (layout.sets * layout.ways) as usize * 8)
}

/// The line of the index in which an object of another node is found.
pub fn index_line(remote: Remote) -> u32 {
    Layout::SHARED.set(origin(remote).digest())
}

/// Where an object of another node lies: number of the memory, slot, generation.
pub type Remote = (u64, u32, u64);

/// What there is of such an object.
#[derive(Debug)]
pub enum Shared {
    /// The bytes, and whether they are fresh.
    Landed(Region, bool),
    /// Somebody else fetches it.
    InFlight(Awaited),
    /// It is ours to fetch.
    Claimed(Fetching),
    /// Nobody shares it.
    Unshared,
}

/// An object that somebody else fetches.
#[derive(Debug)]
pub struct Awaited(Arc<Client>, Id);

/// An object that is ours to fetch.
#[derive(Debug)]
pub struct Fetching(Arc<Client>, Claim);

/// What the processes of a namespace have of objects of other nodes.
#[derive(Debug)]
pub struct Replicas(Arc<Client>);

impl Replicas {
    /// Those of a namespace, to which the process attaches if it is not.
    ///
    /// # Errors
    /// As [`stats`].
    pub fn of(namespace: &str) -> Result<Self> {
        client(namespace).map(Self)
    }

    /// What there is of one.
    ///
    /// # Errors
    /// When slots or pin cells are out, or the service does not answer.
    pub fn get(&self, remote: Remote) -> Result<Shared> {
        Ok(match self.0.replica(origin(remote))? {
            Replica::Landed { region, fresh } => Shared::Landed(region, fresh),
            Replica::InFlight(id) => Shared::InFlight(Awaited(Arc::clone(&self.0), id)),
            Replica::Claimed(claim) => Shared::Claimed(Fetching(Arc::clone(&self.0), claim)),
            Replica::Unshared => Shared::Unshared,
        })
    }

    /// The owner was asked, and the object is there.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn refresh(&self, remote: Remote, fresh_for: Duration) -> Result<bool> {
        self.0.refresh_replica(origin(remote), fresh_for)
    }

    /// The first `end` bytes of one that landed or arrives, if they are here.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn pass(&self, remote: Remote, end: u64) -> Result<Option<Region>> {
        Ok(match self.0.pass(origin(remote), end)? {
            Passing::Here(region) => Some(region),
            Passing::NotYet(_) | Passing::Missing => None,
        })
    }

    /// The object was evicted.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn forget(&self, remote: Remote) -> Result<()> {
        self.0.forget_replica(origin(remote))
    }
}

impl Awaited {
    /// The bytes; `None` when it was given up.
    ///
    /// # Errors
    /// `Timeout`.
    pub fn wait(&self, limit: Duration) -> Result<Option<Region>> {
        self.0.await_replica(self.1, &Arc::default()).deadline(limit).wait()
    }
}

impl Fetching {
    /// Makes memory in which the bytes arrive, piece by piece.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn open(self, len: u64) -> Result<Arriving> {
        let Self(client, claim) = self;
        let (region, advance) = claim.open(client.lease(len)?, len)?;
        Ok(Arriving { client, claim, region, advance })
    }

    /// Puts the bytes where all find them.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn land(self, bytes: &[u8], fresh_for: Duration, lifetime: Option<Duration>) -> Result<Region> {
        let Self(client, claim) = self;
        let mut lease = client.lease(bytes.len() as u64)?;
        lease.fill(bytes);
        let expires = lifetime.map_or(0, |lifetime| client.expiry(lifetime));
        claim.land(lease, Label { len: bytes.len() as u64, format: Format::RAW, flags: 0, expires }, fresh_for)
    }
}

/// An object of another node of which some bytes have come.
#[derive(Debug)]
pub struct Arriving {
    client: Arc<Client>,
    claim: Claim,
    region: RegionMut,
    advance: Advance,
}

impl Arriving {
    /// More of them.
    pub fn write(&mut self, bytes: &[u8]) {
        self.region.put_slice(bytes);
        self.advance.to(self.region.len() as u64);
    }

    /// All came: puts the object where all find it.
    ///
    /// # Errors
    /// When they did not.
    pub fn land(self, fresh_for: Duration, lifetime: Option<Duration>) -> Result<Region> {
        let Self { client, claim, region, .. } = self;
        let expires = lifetime.map_or(0, |lifetime| client.expiry(lifetime));
        let label = Label { len: region.len() as u64, format: Format::RAW, flags: 0, expires };
        claim.land_arrived(region, label, fresh_for)
    }
}

fn origin((instance, slot, generation): Remote) -> Origin {
    Origin { instance, id: Id { slot, generation } }
}

fn client(namespace: &str) -> Result<Arc<Client>> {
    let options = Options {
        namespace: namespace.to_owned(),
        budget: None,
        displace: None,
        timeout: Duration::from_secs(10),
        may_host: true,
    };
    Client::attach(&options)
}
