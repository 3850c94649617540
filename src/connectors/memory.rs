//! `memory://[name]`: objects in this process. The reference implementation of [`Connector`].

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use crate::config::ConnectorConfig;
use crate::connector::{Capabilities, Connector, ConnectorExt, Registration};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::pending::{Completer, Pending};
use crate::process::generation;
use crate::region::{Region, RegionMut};

/// Keeps objects in the memory of this process, until they are evicted or the last handle is dropped.
///
/// Every operation but the wait for a deferred key ends before it returns. Tables are sharded, so threads that use
/// different keys rarely meet.
///
/// A child of fork(2) reads what its copy of the parent's memory holds; what it puts there is `Forked`, because parent and
/// child would give out one key for two objects. It opens a store of its own.
pub struct MemoryConnector {
    config: ConnectorConfig,
    /// Random; keys of another instance, in this process or another, are told apart by it.
    instance: u64,
    /// Of the process that made it; keys that a forked child gave out would be its parent's too.
    generation: u32,
    next: AtomicU64,
    closed: AtomicBool,
    shards: [RwLock<Shard>; SHARDS],
}

/// The row of the connector table.
pub const REGISTRATION: Registration = Registration::new(
    SCHEME,
    "process",
    "objects in this process; the reference implementation",
    &[],
    CAPABILITIES,
    |config| Ok(Arc::new(MemoryConnector::new(config.location()))),
);

impl MemoryConnector {
    /// Makes an empty store of objects; `name` only tells stores apart in URLs.
    pub fn new(name: &str) -> Self {
        Self {
            config: ConnectorConfig::new(SCHEME, name),
            instance: crate::key::random_number(),
            generation: generation(),
            next: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            shards: std::array::from_fn(|_| RwLock::default()),
        }
    }

    fn new_key(&self, op: &'static str, len: u64, format: Format) -> Result<(u64, Key)> {
        self.check_open(op)?;
        if self.generation != generation() {
            let context =
                "a child of fork reads the memory store of its parent, and puts into one that it opens itself";
            return Err(Error::new(ErrorKind::Forked, op, context).with_connector(SCHEME));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut locator = [0; 16];
        locator[..8].copy_from_slice(&self.instance.to_le_bytes());
        locator[8..].copy_from_slice(&id.to_le_bytes());
        Ok((id, Key::new(SCHEME, &locator, len, format)?))
    }

    fn check_open(&self, op: &'static str) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(Error::new(ErrorKind::Closed, op, "").with_connector(SCHEME)),
            false => Ok(()),
        }
    }

    /// The number of a key of ours.
    fn id(&self, op: &'static str, key: &Key) -> Result<u64> {
        self.check_open(op)?;
        self.check_scheme(op, key)?;
        let Some((instance, id)) = key.locator().split_first_chunk::<8>() else {
            return Err(bad_locator(op));
        };
        let Ok(id) = <[u8; 8]>::try_from(id) else { return Err(bad_locator(op)) };
        if u64::from_le_bytes(*instance) != self.instance {
            let context = "the object lives in another process or another memory store; use file:// to cross processes";
            return Err(Error::new(ErrorKind::ForeignKey, op, context).with_connector(SCHEME));
        }
        Ok(u64::from_le_bytes(id))
    }

    fn write(&self, id: u64) -> RwLockWriteGuard<'_, Shard> {
        self.shards[id as usize % SHARDS].write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on the entry under the shard's read lock.
    fn read<T>(&self, op: &'static str, key: &Key, f: impl FnOnce(Option<&Region>) -> Result<T>) -> Result<T> {
        let id = self.id(op, key)?;
        let shard = self.shards[id as usize % SHARDS].read().unwrap_or_else(PoisonError::into_inner);
        match shard.get(&id) {
            Some(Entry::Live(region)) => {
                check_len(op, key, region)?;
                f(Some(region))
            }
            Some(Entry::Declared { .. }) | None => f(None),
        }
    }

    /// Removes the entry if `unwanted` says so; a live one only under a key of its length.
    fn remove(&self, op: &'static str, key: &Key, unwanted: fn(&Entry) -> bool) -> Result<Option<Entry>> {
        let id = self.id(op, key)?;
        let mut shard = self.write(id);
        match shard.get(&id) {
            Some(Entry::Live(region)) => check_len(op, key, region)?,
            Some(declared) if unwanted(declared) => {}
            _ => return Ok(None),
        }
        Ok(shard.remove(&id))
    }
}

impl Connector for MemoryConnector {
    fn config(&self) -> &ConnectorConfig {
        &self.config
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn reserve(&self, len: usize) -> Result<RegionMut> {
        self.check_open("reserve")?;
        RegionMut::heap(len)
    }

    fn commit(&self, region: RegionMut, format: Format) -> Pending<Key> {
        Pending::ready(self.new_key("commit", region.len() as u64, format).and_then(|(id, key)| {
            let region = region.into_heap()?.freeze();
            self.write(id).insert(id, Entry::Live(region));
            Ok(key)
        }))
    }

    fn get(&self, key: &Key) -> Pending<Option<Region>> {
        Pending::ready(self.read("get", key, |region| Ok(region.cloned())))
    }

    fn exists(&self, key: &Key) -> Pending<bool> {
        Pending::ready(self.read("exists", key, |region| Ok(region.is_some())))
    }

    fn evict(&self, key: &Key) -> Pending<()> {
        // Dropping the waiters of a declared key, outside the lock, tells them `Cancelled`.
        Pending::ready(self.remove("evict", key, |_| true).map(drop))
    }

    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        Pending::ready(self.remove("take", key, |_| false).map(|entry| match entry {
            Some(Entry::Live(region)) => Some(region),
            _ => None,
        }))
    }

    fn declare(&self, format: Format) -> Result<Key> {
        let (id, key) = self.new_key("declare", Key::UNKNOWN_LEN, format)?;
        self.write(id).insert(id, Entry::Declared { format, waiters: Vec::new() });
        Ok(key)
    }

    fn commit_at(&self, key: &Key, region: RegionMut) -> Pending<()> {
        Pending::ready(self.id("commit_at", key).and_then(|id| {
            let region = region.into_heap()?.freeze();
            let mut shard = self.write(id);
            let waiters = match shard.get_mut(&id) {
                Some(Entry::Declared { format, waiters }) if *format == key.format() => std::mem::take(waiters),
                Some(Entry::Declared { .. }) => {
                    return Err(Error::new(ErrorKind::TypeMismatch, "commit_at", "declared with another format"));
                }
                Some(Entry::Live(_)) => {
                    return Err(Error::new(ErrorKind::AlreadyExists, "commit_at", format!("{key:?}")));
                }
                None => return Err(Error::new(ErrorKind::NotFound, "commit_at", format!("{key:?} was evicted"))),
            };
            shard.insert(id, Entry::Live(region.clone()));
            drop(shard);
            for waiter in waiters {
                waiter.complete(Ok(region.clone()));
            }
            Ok(())
        }))
    }

    fn get_when_committed(&self, key: &Key) -> Pending<Region> {
        let id = match self.id("get", key) {
            Ok(id) => id,
            Err(error) => return Pending::ready(Err(error)),
        };
        match self.write(id).get_mut(&id) {
            Some(Entry::Live(region)) => Pending::ready(check_len("get", key, region).map(|()| region.clone())),
            Some(Entry::Declared { waiters, .. }) => {
                waiters.retain(|waiter| !waiter.is_detached());
                let (waiter, pending) = Pending::channel();
                waiters.push(waiter);
                pending
            }
            None => Pending::ready(Err(crate::connector::not_found("get", key)())),
        }
    }

    /// The objects stay readable through regions only: they belong to this process, and this handle was the way to them.
    fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        for shard in &self.shards {
            let entries = std::mem::take(&mut *shard.write().unwrap_or_else(PoisonError::into_inner));
            drop(entries);
        }
        Ok(())
    }
}

impl fmt::Debug for MemoryConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryConnector").field("config", &self.config).finish_non_exhaustive()
    }
}

type Shard = HashMap<u64, Entry, BuildHasherDefault<IdHasher>>;

/// Spreads ids, which are a counter of ours: nobody else chooses what is in the tables.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((self.0 << 8) | u64::from(*byte)));
    }

    fn finish(&self) -> u64 {
        // The ids of a shard agree in their low bits, hence so do the products; the table looks at the low bits.
        self.0.rotate_left(32)
    }
}

enum Entry {
    Live(Region),
    Declared { format: Format, waiters: Vec<Completer<Region>> },
}

fn check_len(op: &'static str, key: &Key, region: &Region) -> Result<()> {
    if !key.is_len_known() || key.len() == region.len() as u64 {
        return Ok(());
    }
    let context = format!("{key:?} names an object of {} bytes", region.len());
    Err(Error::new(ErrorKind::Corrupt, op, context).with_connector(SCHEME))
}

fn bad_locator(op: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, op, "the locator is not one of a memory store").with_connector(SCHEME)
}

const SCHEME: &str = "memory";

const CAPABILITIES: Capabilities = Capabilities::ZERO_COPY_GET
    .union(Capabilities::ZERO_COPY_PUT)
    .union(Capabilities::DEFERRED)
    .union(Capabilities::NOTIFY);

/// Power of two; enough that threads of one node rarely meet.
const SHARDS: usize = 64;
