//! `shm://[namespace]`: objects in memory that the processes of a node share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::ConnectorConfig;
use crate::connector::{Capabilities, Connector, ConnectorExt, PutOptions, Registration, not_found};
use crate::environment::{self, parse_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::pending::Pending;
use crate::region::{Region, RegionMut};
use crate::service::client::{Arrival, Client, Expected, Look, Options};
use crate::service::default_namespace;
use crate::service::locator::{self, NO_PLACE, SCHEME};
use crate::shm::table::Id;

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
/// | `shm://NAME` | namespace: processes that use the same one share objects | of the [job](crate::launch::Job::id), else `default` |
/// | `bytes=4GiB` | most memory of all objects; the first process's word counts | `PROXYSTORE_SHM_BYTES`, else half of the memory |
/// | `evict=lru` | full memory evicts what was not used for longest and nobody views, instead of refusing (`refuse`) | `refuse` |
pub struct ShmConnector {
    config: ConnectorConfig,
    client: Arc<Client>,
    closed: Arc<AtomicBool>,
    /// A key of this memory, to make others from.
    template: Key,
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
        let (options, canonical) = attachment(SCHEME, config)?;
        let client = Client::attach(&options).map_err(|error| error.with_connector(SCHEME))?;
        let nothing = Id { slot: 0, generation: 0 };
        let template = locator::key(client.instance(), nothing, 0, 0, Format::RAW)?;
        Ok(Self { config: canonical, client, closed: Arc::default(), template })
    }

    #[inline(always)]
    fn check_open(&self, op: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, op, "").with_connector(SCHEME));
        }
        self.client.check(op)
    }

    /// The object that a key of this memory names, and what the key says of it.
    #[inline(always)]
    fn id(&self, op: &'static str, key: &Key) -> Result<(Id, Expected)> {
        self.check_open(op)?;
        if !key.has_scheme_of(&self.template) {
            self.check_scheme(op, key)?;
        }
        let Some((instance, id, place)) = locator::parse(key.locator()) else {
            return Err(bad_locator(op));
        };
        if instance != self.client.instance() {
            let context = "the object lies in another namespace, or in memory that ended with all its processes; \
                           `proxystore serve` keeps memory between job steps";
            return Err(Error::new(ErrorKind::ForeignKey, op, context).with_connector(SCHEME));
        }
        match (key.is_len_known(), place == NO_PLACE) {
            (true, false) => Ok((id, Expected::new(key.len(), place))),
            (false, true) => Ok((id, Expected::ANY)),
            _ => Err(bad_locator(op)),
        }
    }

    #[inline]
    fn key(&self, id: Id, place: u64, len: u64, format: Format) -> Key {
        self.template.sibling(&locator::end(id, place), len, format)
    }

    fn commit_now(&self, region: RegionMut, format: Format, options: &PutOptions) -> Result<Key> {
        self.check_open("commit")?;
        let (lease, len) = self.client.lease_of(region)?;
        let place = lease.place();
        let id = lease.publish(self.client.label_with(len, format, options));
        Ok(self.key(id, place, len, format))
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
        self.client.reserve(len)
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
            let (id, place) = self.client.put(bytes, Client::label(format))?;
            Ok(self.key(id, place, bytes.len() as u64, format))
        };
        Pending::ready(put())
    }

    #[inline]
    fn get(&self, key: &Key) -> Pending<Option<Region>> {
        let (id, expected) = match self.id("get", key) {
            Ok(id) => id,
            Err(error) => return Pending::ready(Err(error)),
        };
        match self.client.get(id, expected) {
            Ok(Look::Object(region)) => Pending::ready(Ok(Some(region))),
            Ok(Look::Declared | Look::Missing) => Pending::ready(Ok(None)),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn exists(&self, key: &Key) -> Pending<bool> {
        let exists = || {
            let (id, expected) = self.id("exists", key)?;
            self.client.exists(id, expected)
        };
        Pending::ready(exists())
    }

    fn evict(&self, key: &Key) -> Pending<()> {
        let evict = || {
            let (id, expected) = self.id("evict", key)?;
            if self.client.evict(id, expected)? && !key.is_len_known() {
                // Those who wait for it must learn that it does not come.
                self.client.wake(id);
            }
            Ok(())
        };
        Pending::ready(evict())
    }

    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        let take = || {
            let (id, expected) = self.id("take", key)?;
            Ok(region_of(self.client.take(id, expected)?))
        };
        Pending::ready(take())
    }

    fn declare(&self, format: Format) -> Result<Key> {
        self.check_open("declare")?;
        let id = self.client.declare(format)?;
        Ok(self.key(id, NO_PLACE, Key::UNKNOWN_LEN, format))
    }

    fn commit_at(&self, key: &Key, region: RegionMut) -> Pending<()> {
        let commit = || {
            let (id, _) = self.id("commit_at", key)?;
            let (lease, len) = self.client.lease_of(region)?;
            self.client.bind(id, key.format(), lease, len)?.map_err(|unbound| unbound.into_error(SCHEME))
        };
        Pending::ready(commit())
    }

    fn get_when_committed(&self, key: &Key) -> Pending<Region> {
        let (id, expected) = match self.id("get", key) {
            Ok(id) => id,
            Err(error) => return Pending::ready(Err(error)),
        };
        let key = *key;
        let finish = move |look| region_of(look).ok_or_else(not_found("get", &key));
        match self.client.get(id, expected) {
            Ok(Look::Declared) => {}
            Ok(look) => return Pending::ready(finish(look)),
            Err(error) => return Pending::ready(Err(error)),
        }
        Pending::from_source(Arrival::new(Arc::clone(&self.client), id, Arc::clone(&self.closed), finish))
    }

    fn is_lost(&self) -> bool {
        self.client.is_lost()
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

/// How a URL with these options attaches, and the URL with all defaults filled in.
///
/// # Errors
/// `Config` for values that are none.
pub(super) fn attachment(scheme: &'static str, config: &ConnectorConfig) -> Result<(Options, ConnectorConfig)> {
    let namespace = match config.location() {
        "" => default_namespace()?,
        name => name.to_owned(),
    };
    let budget = config
        .parse_option("bytes", "a number of bytes such as 4GiB", |text| parse_bytes(text).filter(|bytes| *bytes > 0))?;
    let displace = config.parse_option("evict", "refuse or lru", |text| match text {
        "refuse" => Some(false),
        "lru" => Some(true),
        _ => None,
    })?;
    let options =
        Options { namespace: namespace.clone(), budget, displace, timeout: environment::timeout(), may_host: true };
    let mut canonical = ConnectorConfig::new(scheme, namespace);
    if let Some(budget) = budget {
        canonical = canonical.with_option("bytes", budget.to_string());
    }
    if let Some(displace) = displace {
        canonical = canonical.with_option("evict", if displace { "lru" } else { "refuse" });
    }
    Ok((options, canonical))
}

#[inline]
fn region_of(look: Look) -> Option<Region> {
    match look {
        Look::Object(region) => Some(region),
        Look::Declared | Look::Missing => None,
    }
}

fn bad_locator(op: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, op, "the locator is not one of a shared-memory store").with_connector(SCHEME)
}

const CAPABILITIES: Capabilities = Capabilities::ZERO_COPY_GET
    .union(Capabilities::ZERO_COPY_PUT)
    .union(Capabilities::DEFERRED)
    .union(Capabilities::NOTIFY)
    .union(Capabilities::CROSS_PROCESS)
    .union(Capabilities::OUTLIVES_PRODUCER)
    .union(Capabilities::TIME_TO_LIVE)
    .union(Capabilities::EVICT_WITH_PRODUCER);
