//! `dim`, distributed in-memory: objects in the memory of the nodes of a job, wherever they were put.
//!
//! One connector over any fabric, each of which has a scheme: a put is the shared-memory put, a get on the same node the shared-memory get. Only a get
//! from another node crosses the network, and lands in shared memory of this one.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::time::{Duration, Instant};

use super::shm::attachment;
use crate::config::ConnectorConfig;
use crate::connector::{Capabilities, Connector, ConnectorExt, PutOptions, not_found};
use crate::environment;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::Fabric;
use crate::key::{Format, Key};
use crate::pending::Pending;
use crate::region::{Region, RegionMut};
use crate::service::address::{Address, Signer, Stamp};
use crate::service::client::{Arrival, Client, Expected};
use crate::service::contact;
use crate::service::exported;
use crate::service::locator::NO_PLACE;
use crate::service::question::{Pointer, Question, Verdict, Want};
use crate::shm::table::{Id, Label, Unbound};

mod batch;
mod digest;
mod gets;
#[cfg(test)]
mod crowd;
#[cfg(test)]
mod faults;
mod known;
mod landings;
mod objects;
mod peers;
#[cfg(test)]
mod reads;
mod relayed;
mod remote;
mod slots;

use known::Known;
use objects::{HOPS, Objects};
use peers::Peers;
use remote::{Found, Limit, Remote, want};
use slots::Slots;

/// Keeps objects in the memory of the node that puts them; all nodes of the job reach them.
///
/// A key says which node has the object. There it is a shared-memory object like any other: it outlives its producer as long
/// as the node service lives. Elsewhere its bytes are moved once, when they are first asked for. The scheme says over which
/// fabric.
///
/// | in the URL | meaning | default |
/// |---|---|---|
/// | `SCHEME://NAME` | namespace: processes that use the same one share objects | of the job, else `default` |
/// | `bytes=4GiB` | most memory of all objects on a node; the first process's word counts | `PROXYSTORE_SHM_BYTES`, else half of the memory |
/// | `evict=lru` | full memory evicts what was not used for longest and nobody views, instead of refusing (`refuse`) | `refuse` |
/// | `lease=10s` | how long a node uses its copy of another node's object before it asks whether that still exists: an evicted object may be read so long | `10s` |
/// | `devices=mlx5_0:1` | `ucx`: devices as in `UCX_NET_DEVICES`, which comes before it | network interfaces as for `tcp`, and RDMA adapters |
/// | `tls=rc,tcp` | `ucx`: transports as in `UCX_TLS`, which comes before it | all but those within a node |
/// | `rndv=64KiB` | `ucx`: from how many bytes on a message is fetched by its receiver, as in `UCX_RNDV_THRESH` | UCX's choice, 255 KiB at most |
/// | `spin=20us` | `ucx`, `margo`: how long a waiting thread looks for its answer before it sleeps, at most | `100us` |
/// | `idle=5m` | `ucx`: a connection to another node that was not used for so long is closed, within twice the time, and made again when it is; `0s`: never | `5m` |
/// | `one_sided=auto` | `ucx`: what a process has got twice it reads from its owner's memory, without a question for as long as `lease` allows, where an adapter (or cma) does that; `on`: or the store is not opened; see docs/ucx.md | `off` |
/// | `protocol=ofi+cxi` | `margo`: Mercury's name of what moves the bytes: `ofi+cxi`, `ofi+verbs`, `ofi+tcp`, `ucx+all`, ..., perhaps with a device, as `ofi+tcp://ib0` | the first of these that the node with the object has |
/// | `relays=off` | objects of 4 MiB and more come from their owner alone; `on`: nodes that fetch one at the same time pass it on to each other, piece by piece | `on` |
/// | `replicas=off` | each get fetches for itself, and nothing that was evicted is read (with `one_sided`, for as long as `lease` says, if it is given); `on`: one fetch a node | `on` |
pub struct DimConnector {
    config: ConnectorConfig,
    /// Where the objects of this node were reached when this was opened.
    contact: SocketAddr,
    /// The same in shared memory, and what the keys have in common as long as it is that.
    words: [u64; 3],
    stamp: Stamp,
    objects: Arc<Objects>,
}

impl DimConnector {
    /// Attaches to a namespace of this node, hosts its service if nobody does, and has it answer other nodes.
    ///
    /// # Cost
    /// Some milliseconds the first time on a node; below a millisecond then.
    ///
    /// # Errors
    /// As [`ShmConnector::open`](super::ShmConnector::open); `Unavailable` when no port is free, `Config` and `Permission`
    /// for devices and secrets that cannot be used; `UnknownScheme` for that of another connector.
    pub fn open(config: &ConnectorConfig) -> Result<Self> {
        let Some(scheme) = SCHEMES.iter().copied().find(|scheme| *scheme == config.scheme()) else {
            let context = format!("{} is the scheme of no fabric; there are {}", config.scheme(), SCHEMES.join(", "));
            return Err(Error::new(ErrorKind::UnknownScheme, "open", context));
        };
        let (options, mut canonical) = attachment(scheme, config)?;
        for name in ["lease", "replicas", "relays", "devices", "tls", "rndv", "spin", "idle", "one_sided", "protocol"] {
            if let Some(value) = config.option(name) {
                canonical = canonical.with_option(name, value);
            }
        }
        let begin = || {
            let client = Client::attach(&options)?;
            let contact = client.export()?;
            let (fabric, signing) = exported::fabric(&client, config, &options.namespace)?;
            Self::new(canonical, client, contact, &signing, fabric)
        };
        begin().map_err(|error: Error| error.with_connector(scheme))
    }

    /// A connector on an attachment whose service can be reached at `contact`.
    fn new(
        config: ConnectorConfig,
        client: Arc<Client>,
        contact: SocketAddr,
        signing: &[u8; 16],
        fabric: Arc<dyn Fabric>,
    ) -> Result<Self> {
        let scheme = fabric.scheme();
        let lease = config.parse_option("lease", "a duration such as 10s", environment::parse_duration)?;
        let switch = |name| {
            let is_on = config.parse_option(name, "on or off", |text| match text {
                "on" => Some(true),
                "off" => Some(false),
                _ => None,
            });
            is_on.map(|is_on| is_on.unwrap_or(true))
        };
        let (shares, relays) = (switch("replicas")?, switch("relays")?);
        // Without copies nothing that was evicted is read, unless the user says how long it may be.
        let trust = lease.unwrap_or(if shares { LEASE } else { Duration::ZERO });
        let remote = Remote {
            scheme,
            client: Arc::clone(&client),
            contact,
            peers: Peers::new(fabric),
            lease: lease.unwrap_or(LEASE),
            shares,
            relays,
            trust,
            known: Known::default(),
            fetches: Slots::default(),
        };
        let signer = Signer::new(scheme, signing);
        // In this order: of a change in between the words tell.
        let words = contact::words(client.table());
        let here = contact::read(client.table()).unwrap_or(contact);
        let nothing = Id { slot: 0, generation: 0 };
        let stamp = signer.stamp(&Address { contact: here, instance: client.instance(), id: nothing, place: 0 })?;
        let all = Objects {
            scheme,
            client,
            closed: Arc::default(),
            signer,
            remote: Arc::new(remote),
            gets: Slots::default(),
        };
        Ok(Self { config, contact, words, stamp, objects: Arc::new(all) })
    }

    fn check_open(&self, op: &'static str) -> Result<()> {
        self.objects.check_open(op)
    }

    #[inline]
    fn address(&self, id: Id, place: u64) -> Address {
        // A service that was restarted may not have found its former port free.
        let contact = contact::read(self.objects.client.table()).unwrap_or(self.contact);
        Address { contact, instance: self.objects.client.instance(), id, place }
    }

    #[inline]
    fn key(&self, id: Id, place: u64, len: u64, format: Format) -> Result<Key> {
        match contact::words(self.objects.client.table()) == self.words {
            true => Ok(self.objects.signer.stamped(&self.stamp, id, place, len, format)),
            false => self.objects.signer.key(&self.address(id, place), len, format),
        }
    }

    /// Where a key's object lies.
    fn locate(&self, op: &'static str, key: &Key) -> Result<Address> {
        self.check_open(op)?;
        self.check_scheme(op, key)?;
        let address = self.objects.signer.address(op, key)?;
        if key.is_len_known() == (address.place == NO_PLACE) {
            let context = "the locator is not one of a distributed store";
            return Err(Error::new(ErrorKind::Invalid, op, context).with_connector(self.objects.scheme));
        }
        Ok(address)
    }

    fn commit_now(&self, region: RegionMut, format: Format, options: &PutOptions) -> Result<Key> {
        self.check_open("commit")?;
        let (lease, len) = self.objects.client.lease_of(region)?;
        let place = lease.place();
        let id = lease.publish(self.objects.client.label_with(len, format, options));
        self.key(id, place, len, format)
    }

    /// The positions of `keys` by the node that has the objects; this node's under its own contact.
    fn by_node(&self, op: &'static str, keys: &[Key]) -> Result<Vec<(Address, Vec<Located>)>> {
        let mut nodes: Vec<(Address, Vec<Located>)> = Vec::new();
        let mut places: HashMap<(SocketAddr, u64), usize> = HashMap::new();
        let mut last = 0;
        for (at, key) in keys.iter().enumerate() {
            let address = self.locate(op, key)?;
            let is_of = |node: &Address| (node.contact, node.instance) == (address.contact, address.instance);
            // Neighbours often lie together.
            if !nodes.get(last).is_some_and(|(node, _)| is_of(node)) {
                last = *places.entry((address.contact, address.instance)).or_insert_with(|| {
                    // Often there is one node.
                    nodes.push((address, Vec::with_capacity(if at == 0 { keys.len() } else { 0 })));
                    nodes.len() - 1
                });
            }
            nodes[last].1.push((at, address));
        }
        Ok(nodes)
    }
}

impl Connector for DimConnector {
    fn config(&self) -> &ConnectorConfig {
        &self.config
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn reserve(&self, len: usize) -> Result<RegionMut> {
        self.check_open("reserve")?;
        self.objects.client.reserve(len)
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
            let (id, place) = self.objects.client.put(bytes, Client::label(format))?;
            self.key(id, place, bytes.len() as u64, format)
        };
        Pending::ready(put())
    }

    fn get(&self, key: &Key) -> Pending<Option<Region>> {
        match self.locate("get", key) {
            Ok(address) => self.objects.get(pointer(address, key)),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn exists(&self, key: &Key) -> Pending<bool> {
        match self.locate("exists", key) {
            Ok(address) => self.objects.exists(pointer(address, key), HOPS),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn evict(&self, key: &Key) -> Pending<()> {
        match self.locate("evict", key) {
            Ok(address) => self.objects.evict(pointer(address, key)),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        match self.locate("take", key) {
            Ok(address) => self.objects.take(pointer(address, key)),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn get_batch(&self, keys: &[Key]) -> Pending<Vec<Option<Region>>> {
        let nodes = match self.by_node("get", keys) {
            Ok(nodes) => nodes,
            Err(error) => return Pending::ready(Err(error)),
        };
        let mut local: Vec<Option<Region>> = vec![None; keys.len()];
        let mut elsewhere = Vec::new();
        for (node, objects) in nodes {
            let objects = objects.into_iter().map(|(at, address)| (at, pointer(address, &keys[at])));
            if !self.objects.is_here(&node) {
                elsewhere.push((node, objects.collect()));
                continue;
            }
            let mut through = Vec::new();
            for (at, object) in objects {
                match self.objects.find(&object) {
                    Ok(Found::Object(region)) => local[at] = Some(region),
                    Ok(Found::Missing) => {}
                    Ok(Found::Elsewhere(_)) => through.push((at, object)),
                    Err(error) => return Pending::ready(Err(error)),
                }
            }
            if !through.is_empty() {
                elsewhere.push((node, through));
            }
        }
        if elsewhere.is_empty() {
            return Pending::ready(Ok(local));
        }
        let all = Arc::clone(&self.objects);
        Pending::blocking_until(move |deadline| {
            for (at, region) in batch::fetch(&all, elsewhere, Limit::new(deadline))? {
                local[at] = region;
            }
            Ok(local)
        })
    }

    fn exists_batch(&self, keys: &[Key]) -> Pending<Vec<bool>> {
        let nodes = match self.by_node("exists", keys) {
            Ok(nodes) => nodes,
            Err(error) => return Pending::ready(Err(error)),
        };
        let mut started = Vec::with_capacity(nodes.len());
        for (node, objects) in nodes {
            if self.objects.is_here(&node) {
                started.extend(objects.iter().map(|(at, address)| {
                    let at = *at;
                    self.objects
                        .exists(pointer(*address, &keys[at]), HOPS)
                        .and_then(move |exists| Ok(vec![(at, exists)]))
                }));
                continue;
            }
            let wants: Vec<Want> = objects.iter().map(|(at, address)| want(address, keys[*at].len())).collect();
            let (all, asked) = (Arc::clone(&self.objects), Instant::now());
            let objects: Vec<(usize, Pointer)> =
                objects.iter().map(|(at, address)| (*at, pointer(*address, &keys[*at]))).collect();
            started.push(self.objects.remote.ask_all(node, &wants, Question::Exists).chain(move |verdicts| {
                let exist = objects.into_iter().zip(verdicts).map(|((at, object), verdict)| {
                    all.exists_as(&object, verdict, asked, HOPS).and_then(move |exists| Ok((at, exists)))
                });
                Pending::all(exist.collect())
            }));
        }
        let count = keys.len();
        Pending::all(started).and_then(move |parts| Ok(in_order(count, parts)))
    }

    fn evict_batch(&self, keys: &[Key]) -> Pending<()> {
        let nodes = match self.by_node("evict", keys) {
            Ok(nodes) => nodes,
            Err(error) => return Pending::ready(Err(error)),
        };
        let mut started = Vec::with_capacity(nodes.len());
        for (node, objects) in nodes {
            if self.objects.is_here(&node) {
                started.extend(objects.iter().map(|(at, address)| self.objects.evict(pointer(*address, &keys[*at]))));
                continue;
            }
            let wants: Vec<Want> = objects.iter().map(|(at, address)| want(address, keys[*at].len())).collect();
            let all = Arc::clone(&self.objects);
            started.push(self.objects.remote.ask_all(node, &wants, Question::Evict).chain(move |verdicts| {
                objects.iter().for_each(|(_, address)| all.forget(address));
                let targets = verdicts.into_iter().map(|verdict| all.evict_target(verdict));
                Pending::all(targets.collect()).and_then(|_| Ok(()))
            }));
        }
        Pending::all(started).and_then(|_| Ok(()))
    }

    fn declare(&self, format: Format) -> Result<Key> {
        self.check_open("declare")?;
        let id = self.objects.client.declare(format)?;
        self.key(id, NO_PLACE, Key::UNKNOWN_LEN, format)
    }

    fn commit_at(&self, key: &Key, region: RegionMut) -> Pending<()> {
        let address = match self.locate("commit_at", key) {
            Ok(address) => address,
            Err(error) => return Pending::ready(Err(error)),
        };
        if address.place != NO_PLACE {
            let scheme = self.objects.scheme;
            return self.objects.exists(pointer(address, key), 0).and_then(move |exists| match exists {
                true => Err(Unbound::Taken.into_error(scheme)),
                false => Err(Unbound::Missing.into_error(scheme)),
            });
        }
        let (lease, len) = match self.objects.client.lease_of(region) {
            Ok(lease) => lease,
            Err(error) => return Pending::ready(Err(error)),
        };
        let scheme = self.objects.scheme;
        if self.objects.is_here(&address) {
            let bound = self.objects.client.bind(address.id, key.format(), lease, len);
            return Pending::ready(bound.and_then(|bound| bound.map_err(|unbound| unbound.into_error(scheme))));
        }
        // The bytes stay here; the declaration's node learns where they are.
        let place = lease.place();
        let id = lease.publish(Label { len, ..Client::label(key.format()) });
        let object = Pointer { address: self.address(id, place), len, format: key.format() };
        let question = Question::Bind { declared: want(&address, 0), format: key.format(), object };
        let all = Arc::clone(&self.objects);
        let asked: Arc<AtomicU32> = Arc::default();
        self.objects.remote.ask_noting(address, question, &asked).then(move |verdict| {
            let error = match verdict {
                Ok(Verdict::Yes { .. }) => return Ok(()),
                Ok(Verdict::Taken) => Unbound::Taken.into_error(scheme),
                Ok(Verdict::Missing) => Unbound::Missing.into_error(scheme),
                Ok(_) => landings::mismatch(),
                Err(error) if error.kind() == ErrorKind::TypeMismatch => Unbound::Format.into_error(scheme),
                // It may have been bound: the object stays, for there may be who finds it.
                Err(error) if may_be_bound(asked.load(Relaxed), error.kind()) => return Err(error),
                Err(error) => error,
            };
            let _ = all.client.evict(id, Expected::new(len, place));
            Err(error)
        })
    }

    fn get_when_committed(&self, key: &Key) -> Pending<Region> {
        let address = match self.locate("get", key) {
            Ok(address) => address,
            Err(error) => return Pending::ready(Err(error)),
        };
        let missing = not_found("get", key);
        let object = pointer(address, key);
        let all = Arc::clone(&self.objects);
        let arrived = match self.objects.is_here(&address) {
            // Of a key that was not declared the object is there or never will be.
            _ if address.place != NO_PLACE => Pending::ready(Ok(object)),
            true => {
                let client = Arc::clone(&self.objects.client);
                let arrival = Arrival::new(client, address.id, Arc::clone(&self.objects.closed), |_| Ok(()));
                Pending::from_source(arrival).and_then(move |()| Ok(object))
            }
            false => self.objects.remote.ask(address, Question::Wait(want(&address, 0))).and_then(move |verdict| {
                Ok(match verdict {
                    Verdict::Bound(pointer) => *pointer,
                    _ => object,
                })
            }),
        };
        arrived.chain(move |object| all.get(object)).and_then(move |found| found.ok_or_else(missing))
    }

    fn is_lost(&self) -> bool {
        self.objects.client.is_lost()
    }

    fn close(&self) -> Result<()> {
        if !self.objects.closed.swap(true, AcqRel) && self.objects.client.check("close").is_ok() {
            self.objects.client.wake_own();
            self.objects.remote.peers.close();
        }
        Ok(())
    }
}

impl fmt::Debug for DimConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DimConnector")
            .field("config", &self.config)
            .field("contact", &self.contact)
            .finish_non_exhaustive()
    }
}

/// The position of a key among others, and where its object lies.
type Located = (usize, Address);

fn pointer(address: Address, key: &Key) -> Pointer {
    Pointer { address, len: key.len(), format: key.format() }
}

/// Whether an object may be that of a declaration whose node was asked for that so often, and last with this outcome.
fn may_be_bound(asked: u32, failure: ErrorKind) -> bool {
    match (asked, failure) {
        (0, _) | (_, ErrorKind::TypeMismatch | ErrorKind::Stale) => false,
        // Said before anything is bound; but an answer before may have been lost.
        (1, ErrorKind::NoSpace | ErrorKind::Unavailable) => false,
        _ => true,
    }
}

/// Results at their positions.
fn in_order<T: Default>(count: usize, parts: Vec<Vec<(usize, T)>>) -> Vec<T> {
    let mut all: Vec<T> = (0..count).map(|_| T::default()).collect();
    for (at, value) in parts.into_iter().flatten() {
        all[at] = value;
    }
    all
}

/// Schemes of the fabrics.
const SCHEMES: &[&str] = &[
    super::tcp::SCHEME,
    #[cfg(feature = "ucx")]
    super::ucx::SCHEME,
    #[cfg(feature = "margo")]
    super::margo::SCHEME,
];

/// Default of `lease`.
const LEASE: Duration = Duration::from_secs(10);

pub(super) const CAPABILITIES: Capabilities = Capabilities::ZERO_COPY_GET
    .union(Capabilities::ZERO_COPY_PUT)
    .union(Capabilities::DEFERRED)
    .union(Capabilities::NOTIFY)
    .union(Capabilities::CROSS_PROCESS)
    .union(Capabilities::CROSS_NODE)
    .union(Capabilities::OUTLIVES_PRODUCER)
    .union(Capabilities::TIME_TO_LIVE)
    .union(Capabilities::EVICT_WITH_PRODUCER);
