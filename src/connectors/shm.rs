//! `shm://[namespace]`: objects in memory that the processes of a node share.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::ConnectorConfig;
use crate::connector::{Capabilities, Connector, ConnectorExt, PutOptions, Registration, not_found};
use crate::environment::{self, parse_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::pending::Pending;
use crate::region::{Memory, Region, RegionMut};
use crate::service::client::{Arrival, Client, Lease, Look, Options};
use crate::shm::table::{EPHEMERAL, Id, Label, Unbound};

/// Keeps objects in memory that all processes of one user and namespace on this node map.
///
/// A put is one copy into leased memory and one store; a get is a pin and a pointer. Neither makes a system call or wakes
/// anybody. Memory, death and eviction are the affair of the node service, which `proxystore serve` hosts, or, where none
/// runs, the first process that opens the namespace.
///
/// Objects live until they are evicted, as long as any process of the namespace or `proxystore serve` does.
///
/// | in the URL | meaning | default |
/// |---|---|---|
/// | `shm://NAME` | namespace: processes that use the same one share objects | of the Slurm job, else `default` |
/// | `bytes=4GiB` | most memory of all objects; the first process's word counts | `PROXYSTORE_SHM_BYTES`, else half of the memory |
/// | `evict=lru` | full memory evicts what was not used for longest and nobody views, instead of refusing (`refuse`) | `refuse` |
pub struct ShmConnector {
    config: ConnectorConfig,
    client: Arc<Client>,
    closed: Arc<AtomicBool>,
}

/// The row of the connector table.
pub const REGISTRATION: Registration = Registration::new(
    SCHEME,
    "node",
    "objects in shared memory of this node; put and get copy nothing and wake nobody",
    &["bytes", "evict"],
    CAPABILITIES,
    |config| Ok(Arc::new(ShmConnector::open(config)?)),
);

impl ShmConnector {
    /// Attaches to a namespace, and hosts its service if nobody does.
    ///
    /// # Cost
    /// Below a millisecond the first time in a process, a look-up then.
    ///
    /// # Errors
    /// `Config` for options, `Unavailable` when the service does not answer, `Permission`, `Incompatible`, `NoSpace`.
    pub fn open(config: &ConnectorConfig) -> Result<Self> {
        let namespace = match config.location() {
            "" => default_namespace(),
            name => name.to_owned(),
        };
        let budget = config.parse_option("bytes", "a number of bytes such as 4GiB", |text| {
            parse_bytes(text).filter(|bytes| *bytes > 0)
        })?;
        let displace = config.parse_option("evict", "refuse or lru", |text| match text {
            "refuse" => Some(false),
            "lru" => Some(true),
            _ => None,
        })?;
        let options =
            Options { namespace: namespace.clone(), budget, displace, timeout: environment::timeout(), may_host: true };
        let client = Client::attach(&options).map_err(|error| error.with_connector(SCHEME))?;
        let mut canonical = ConnectorConfig::new(SCHEME, namespace);
        if let Some(budget) = budget {
            canonical = canonical.with_option("bytes", budget.to_string());
        }
        if let Some(displace) = displace {
            canonical = canonical.with_option("evict", if displace { "lru" } else { "refuse" });
        }
        Ok(Self { config: canonical, client, closed: Arc::default() })
    }

    #[inline]
    fn check_open(&self, op: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, op, "").with_connector(SCHEME));
        }
        self.client.check(op)
    }

    /// The object that a key of this memory names.
    #[inline]
    fn id(&self, op: &'static str, key: &Key) -> Result<Id> {
        self.check_open(op)?;
        self.check_scheme(op, key)?;
        let Ok(locator) = <&[u8; LOCATOR]>::try_from(key.locator()) else {
            return Err(bad_locator(op));
        };
        let (instance, rest) = locator.split_at(8);
        if number(instance) != self.client.instance() {
            let context = "the object lies in another namespace, or in memory that ended with all its processes; \
                           `proxystore serve` keeps memory between job steps";
            return Err(Error::new(ErrorKind::ForeignKey, op, context).with_connector(SCHEME));
        }
        let (slot, generation) = rest.split_at(4);
        let generation = number(generation);
        if generation >> Id::GENERATION_BITS != 0 {
            return Err(bad_locator(op));
        }
        Ok(Id { slot: number(slot) as u32, generation })
    }

    #[inline]
    fn key(&self, id: Id, len: u64, format: Format) -> Result<Key> {
        let mut locator = [0; LOCATOR];
        locator[..8].copy_from_slice(&self.client.instance().to_le_bytes());
        locator[8..12].copy_from_slice(&id.slot.to_le_bytes());
        locator[12..].copy_from_slice(&id.generation.to_le_bytes());
        Key::new(SCHEME, &locator, len, format)
    }

    /// The lease under a region of ours, or a fresh one with a copy of another's bytes.
    fn lease_of(&self, region: RegionMut) -> Result<(Lease, u64)> {
        match region.into_memory::<Cell>() {
            Ok((cell, len)) if Arc::ptr_eq(cell.lease.client(), &self.client) => Ok((cell.lease, len as u64)),
            Ok((cell, len)) => {
                let mut region = RegionMut::new(cell);
                region.initialize();
                self.copied(&region.as_slice()[..len])
            }
            Err(region) => self.copied(region.as_slice()),
        }
    }

    fn copied(&self, bytes: &[u8]) -> Result<(Lease, u64)> {
        let mut region = self.reserve(bytes.len())?;
        bytes::BufMut::put_slice(&mut region, bytes);
        match region.into_memory::<Cell>() {
            Ok((cell, len)) => Ok((cell.lease, len as u64)),
            Err(_) => Err(Error::new(ErrorKind::Io, "commit", "a reservation of another connector").with_connector(SCHEME)),
        }
    }

    fn label(&self, len: u64, format: Format, options: &PutOptions) -> Label {
        let flags = if options.ends_with_producer() { EPHEMERAL } else { 0 };
        let expires = options.lifetime().map_or(0, |limit| self.client.expiry(limit));
        Label { len, format, flags, expires }
    }

    fn commit_now(&self, region: RegionMut, format: Format, options: &PutOptions) -> Result<Key> {
        self.check_open("commit")?;
        let (lease, len) = self.lease_of(region)?;
        let id = lease.publish(self.label(len, format, options));
        self.key(id, len, format)
    }

}

impl Connector for ShmConnector {
    fn config(&self) -> &ConnectorConfig {
        &self.config
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn reserve(&self, len: usize) -> Result<RegionMut> {
        self.check_open("reserve")?;
        let lease = self.client.lease(len as u64)?;
        Ok(RegionMut::new(Box::new(Cell { lease, len })))
    }

    fn commit(&self, region: RegionMut, format: Format) -> Pending<Key> {
        Pending::ready(self.commit_now(region, format, &PutOptions::default()))
    }

    fn commit_with(&self, region: RegionMut, format: Format, options: &PutOptions) -> Pending<Key> {
        Pending::ready(self.commit_now(region, format, options))
    }

    #[inline]
    fn put(&self, bytes: &[u8], format: Format) -> Pending<Key> {
        let put = || {
            self.check_open("put")?;
            let id = self.client.put(bytes, Client::label(format))?;
            self.key(id, bytes.len() as u64, format)
        };
        Pending::ready(put())
    }

    #[inline]
    fn get(&self, key: &Key) -> Pending<Option<Region>> {
        let get = || {
            let id = self.id("get", key)?;
            region_of(key, self.client.get(id)?)
        };
        Pending::ready(get())
    }

    fn exists(&self, key: &Key) -> Pending<bool> {
        let exists = || {
            let id = self.id("exists", key)?;
            match self.client.exists(id)? {
                Some(object) => check_len("exists", key, object.label.len).map(|()| true),
                None => Ok(false),
            }
        };
        Pending::ready(exists())
    }

    fn evict(&self, key: &Key) -> Pending<()> {
        let evict = || {
            let id = self.id("evict", key)?;
            if key.is_len_known() {
                if let Some(object) = self.client.exists(id)? {
                    check_len("evict", key, object.label.len)?;
                }
            }
            if self.client.evict(id) && !key.is_len_known() {
                // Those who wait for it must learn that it does not come.
                self.client.wake(id);
            }
            Ok(())
        };
        Pending::ready(evict())
    }

    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        let take = || {
            let id = self.id("take", key)?;
            if key.is_len_known() {
                if let Some(object) = self.client.exists(id)? {
                    check_len("take", key, object.label.len)?;
                }
            }
            region_of(key, self.client.take(id)?)
        };
        Pending::ready(take())
    }

    fn declare(&self, format: Format) -> Result<Key> {
        self.check_open("declare")?;
        let id = self.client.declare(format)?;
        self.key(id, Key::UNKNOWN_LEN, format)
    }

    fn commit_at(&self, key: &Key, region: RegionMut) -> Pending<()> {
        let commit = || {
            let id = self.id("commit_at", key)?;
            let (lease, len) = self.lease_of(region)?;
            self.client.bind(id, key.format(), lease, len)?.map_err(|unbound| {
                let (kind, context) = match unbound {
                    Unbound::Taken => (ErrorKind::AlreadyExists, "the object was committed before"),
                    Unbound::Format => (ErrorKind::TypeMismatch, "declared with another format"),
                    Unbound::Missing => (ErrorKind::NotFound, "the declaration was evicted"),
                };
                Error::new(kind, "commit_at", context).with_connector(SCHEME)
            })
        };
        Pending::ready(commit())
    }

    fn get_when_committed(&self, key: &Key) -> Pending<Region> {
        let id = match self.id("get", key) {
            Ok(id) => id,
            Err(error) => return Pending::ready(Err(error)),
        };
        let key = *key;
        let finish = move |look| region_of(&key, look)?.ok_or_else(not_found("get", &key));
        match self.client.get(id) {
            Ok(Look::Declared) => {}
            Ok(look) => return Pending::ready(finish(look)),
            Err(error) => return Pending::ready(Err(error)),
        }
        Pending::from_source(Arrival::new(Arc::clone(&self.client), id, Arc::clone(&self.closed), finish))
    }

    fn close(&self) -> Result<()> {
        if !self.closed.swap(true, Ordering::AcqRel) && self.client.check("close").is_ok() {
            self.client.wake_own();
        }
        Ok(())
    }
}

impl fmt::Debug for ShmConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShmConnector").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A leased cell as a region's memory.
struct Cell {
    lease: Lease,
    len: usize,
}

// SAFETY: a lease's cell is aligned to 64 bytes, has at least the capacity of the length that it was leased for, and belongs
// to the lease alone; mapped pages hold values from the start.
unsafe impl Memory for Cell {
    fn as_ptr(&self) -> NonNull<u8> {
        self.lease.as_ptr()
    }

    fn capacity(&self) -> usize {
        self.len
    }

    fn initialized(&self) -> usize {
        self.len
    }
}

fn region_of(key: &Key, look: Look) -> Result<Option<Region>> {
    match look {
        Look::Object { object, region } => check_len("get", key, object.label.len).map(|()| Some(region)),
        Look::Declared | Look::Missing => Ok(None),
    }
}

#[inline]
fn check_len(op: &'static str, key: &Key, len: u64) -> Result<()> {
    if !key.is_len_known() || key.len() == len {
        return Ok(());
    }
    let context = format!("{key:?} names an object of {len} bytes");
    Err(Error::new(ErrorKind::Corrupt, op, context).with_connector(SCHEME))
}

fn bad_locator(op: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, op, "the locator is not one of a shared-memory store").with_connector(SCHEME)
}

/// Little-endian.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The namespace of a job, so that jobs of one user on one node do not see each other's objects.
fn default_namespace() -> String {
    match std::env::var("SLURM_JOB_ID") {
        Ok(job) if !job.is_empty() && job.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
            format!("slurm-{job}")
        }
        _ => "default".to_owned(),
    }
}

const SCHEME: &str = "shm";

/// Instance of the memory, slot, generation.
const LOCATOR: usize = 8 + 4 + 8;

const CAPABILITIES: Capabilities = Capabilities::ZERO_COPY_GET
    .union(Capabilities::ZERO_COPY_PUT)
    .union(Capabilities::DEFERRED)
    .union(Capabilities::NOTIFY)
    .union(Capabilities::CROSS_PROCESS)
    .union(Capabilities::OUTLIVES_PRODUCER)
    .union(Capabilities::TIME_TO_LIVE)
    .union(Capabilities::EVICT_WITH_PRODUCER);
