//! `Connector`: the contract between the generic layer and whatever keeps the bytes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::config::ConnectorConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::pending::Pending;
use crate::region::{Region, RegionMut};

/// A place where objects live: bytes in, key out; key in, bytes out.
///
/// Implementors write the required methods; users call those of [`ConnectorExt`] as well, which is implemented for
/// everything. `connectors/memory.rs` is the short reference implementation, and the contract below is executable: the
/// cases of [`conformance`](crate::conformance) run against every connector of the table, and against yours in six lines.
///
/// # Contract
/// * **Write once.** A key names one object for ever. Bytes become visible to `get` all at once, by [`commit`](Self::commit),
///   and never change. A producer that is killed before that leaves nothing visible.
/// * **Missing is ordinary.** `get` and [`take`](Self::take) of an evicted, never committed or unknown object give `None`,
///   `exists` gives false, `evict` succeeds: cheap, and no error, however the object went away and whatever races.
/// * **Never other bytes.** A key of another scheme is `ForeignKey`; so is one of another instance, or it names nothing,
///   where locators are never given twice; a locator that this connector cannot have made is `Invalid`; stored bytes whose
///   length is not the key's are `Corrupt`. Where keys are signed, all of these may be `Unauthorized` instead.
/// * **Regions outlive everything.** What `get` returned stays readable and unchanged after evict, close, and drop of the
///   connector, until its last clone is dropped. It starts at a multiple of [`ALIGNMENT`](crate::region::ALIGNMENT).
/// * **Reservations are lent.** A `RegionMut` that is dropped instead of committed gives its memory back. One from another
///   connector may be committed here: its bytes are copied.
/// * **Close is not delete.** [`close`](Self::close) is idempotent, releases what this handle holds, and leaves objects that
///   outlive processes in place. Every later operation is `Closed`.
/// * **Threads.** All methods may be called from any number of threads; none waits for another's operation on another key.
/// * **Time.** A method returns at once with a [`Pending`]; what may take long happens in it.
pub trait Connector: Send + Sync + 'static {
    /// The configuration that opens this connector again, in this process or another one.
    ///
    /// Its scheme is the scheme of all keys that the connector makes.
    fn config(&self) -> &ConnectorConfig;

    /// What this connector can do beyond the required methods.
    fn capabilities(&self) -> Capabilities;

    /// Lends memory for one object of at most `len` bytes.
    ///
    /// # Cost
    /// Connector-specific; must not touch the memory.
    ///
    /// # Errors
    /// `NoSpace`, `TooLarge`, `Closed`.
    fn reserve(&self, len: usize) -> Result<RegionMut>;

    /// Makes the bytes written to `region` an object and returns its key.
    ///
    /// # Cost
    /// No copy for memory that [`reserve`](Self::reserve) of the same connector lent; one copy otherwise.
    fn commit(&self, region: RegionMut, format: Format) -> Pending<Key>;

    /// As [`commit`](Self::commit), with options for how long the object stays.
    ///
    /// * **Time to live** ([`Capabilities::TIME_TO_LIVE`]). From that time on, counted from the commit, the object is as if
    ///   evicted: missing for every method and every process, whoever is alive then. It is there before. The clock is
    ///   CLOCK_BOOTTIME or one like it, which goes on in suspend and which nobody can set.
    /// * **Evict with producer** ([`Capabilities::EVICT_WITH_PRODUCER`]). The object is evicted when the process that
    ///   committed it ends, however it ends: by returning, by a signal, by a crash. Seen by others soon, not at once.
    ///   Closing the connector does not evict.
    ///
    /// With both, whichever comes first. Regions that were handed out stay valid, as after any evict. Deferred objects
    /// ([`commit_at`](Self::commit_at)) have no options.
    ///
    /// The default is `commit` for the default options. A connector that has one of the capabilities overrides this, and
    /// refuses what it lacks by [`unsupported_options`](Self::unsupported_options).
    ///
    /// # Cost
    /// As `commit`.
    ///
    /// # Errors
    /// As `commit`; `Unsupported`, naming the option, when the connector lacks the capability.
    fn commit_with(&self, region: RegionMut, format: Format, options: &PutOptions) -> Pending<Key> {
        match options.is_default() {
            true => self.commit(region, format),
            false => Pending::ready(Err(self.unsupported_options("commit", options))),
        }
    }

    /// Reads an object; `None` when there is none.
    ///
    /// # Cost
    /// No copy with [`Capabilities::ZERO_COPY_GET`].
    fn get(&self, key: &Key) -> Pending<Option<Region>>;

    /// Whether the object can be read now.
    fn exists(&self, key: &Key) -> Pending<bool>;

    /// Removes the object; silent when there is none. Regions that were handed out stay valid.
    fn evict(&self, key: &Key) -> Pending<()>;

    /// Reads and removes the object in one step: of any number of racing callers, in any process, exactly one gets it.
    fn take(&self, key: &Key) -> Pending<Option<Region>>;

    /// Releases what this handle holds; idempotent.
    fn close(&self) -> Result<()>;

    /// Stores a copy of `bytes`.
    ///
    /// # Cost
    /// One copy, in addition to what `commit` costs. Override where the operating system can take the bytes directly.
    fn put(&self, bytes: &[u8], format: Format) -> Pending<Key> {
        match self.reserve(bytes.len()) {
            Ok(mut region) => {
                bytes::BufMut::put_slice(&mut region, bytes);
                self.commit(region, format)
            }
            Err(error) => Pending::ready(Err(error)),
        }
    }

    /// Makes several objects; either all keys come back, or an error and none of the objects stays.
    ///
    /// The default starts a `commit` each and returns. When one fails, the others are evicted before the `Pending` ends in
    /// the failure of the first; of those evictions, a failure goes unreported. Takes an `Arc` because it does that later.
    ///
    /// # Cost
    /// The default is a commit each, and for those that do not end at once one allocation more. Override where one message
    /// can carry many.
    ///
    /// # Cancel safety
    /// Past a deadline, or when the `Pending` is dropped before its end, nobody has the keys: the default sees to it in the
    /// background that none of the objects stays. They may be there until the last commit has ended.
    fn commit_batch(self: Arc<Self>, regions: Vec<(RegionMut, Format)>) -> Pending<Vec<Key>> {
        commit_each(self, regions, |connector, region, format| connector.commit(region, format))
    }

    /// As [`commit_batch`](Self::commit_batch), each as by [`commit_with`](Self::commit_with).
    ///
    /// # Cost
    /// As `commit_batch`. Override where one message can carry many, in a connector that overrides `commit_with`.
    fn commit_batch_with(
        self: Arc<Self>,
        regions: Vec<(RegionMut, Format)>,
        options: &PutOptions,
    ) -> Pending<Vec<Key>> {
        if options.is_default() {
            return self.commit_batch(regions);
        }
        let options = *options;
        commit_each(self, regions, move |connector, region, format| connector.commit_with(region, format, &options))
    }

    /// Reads several objects, in the order of `keys`.
    ///
    /// # Cost
    /// The default starts one `get` each. Override where one message can carry many.
    fn get_batch(&self, keys: &[Key]) -> Pending<Vec<Option<Region>>> {
        Pending::all(keys.iter().map(|key| self.get(key)).collect())
    }

    /// Whether the objects can be read now, in the order of `keys`.
    fn exists_batch(&self, keys: &[Key]) -> Pending<Vec<bool>> {
        Pending::all(keys.iter().map(|key| self.exists(key)).collect())
    }

    /// Removes several objects.
    fn evict_batch(&self, keys: &[Key]) -> Pending<()> {
        Pending::all(keys.iter().map(|key| self.evict(key)).collect()).and_then(|_| Ok(()))
    }

    /// Makes the key of an object that will be committed later, by this process or another: a deferred key.
    ///
    /// Its length is [`Key::UNKNOWN_LEN`]. Until [`commit_at`](Self::commit_at), `get` gives `None`. Needs
    /// [`Capabilities::DEFERRED`]. Neither takes [`PutOptions`]: a declared object stays until it is evicted.
    fn declare(&self, format: Format) -> Result<Key> {
        let _ = format;
        Err(self.unsupported("declare"))
    }

    /// Makes the bytes of `region` the object of a declared key.
    ///
    /// # Errors
    /// `AlreadyExists` when it was committed before; `TypeMismatch` when the key's format is not the declared one;
    /// `NotFound` when the declaration was evicted; `Unsupported` without [`Capabilities::DEFERRED`].
    fn commit_at(&self, key: &Key, region: RegionMut) -> Pending<()> {
        let _ = (key, region);
        Pending::ready(Err(self.unsupported("commit_at")))
    }

    /// Waits until the object of a declared key is committed, by notification where the connector can, and reads it.
    ///
    /// # Errors
    /// `Timeout` at the deadline of the `Pending`; `NotFound` or `Cancelled` when the declaration is evicted, `Closed` or
    /// `Cancelled` when the connector is closed, with [`Capabilities::NOTIFY`] as soon as that happens; `Unsupported`
    /// without [`Capabilities::DEFERRED`].
    fn get_when_committed(&self, key: &Key) -> Pending<Region> {
        let _ = key;
        Pending::ready(Err(self.unsupported("get_when_committed")))
    }

    /// Whether every operation fails from now on, though nobody closed it: opening the URL again may help.
    #[doc(hidden)]
    fn is_lost(&self) -> bool {
        false
    }

    /// The error of a method that this connector does not have.
    #[doc(hidden)]
    fn unsupported(&self, op: &'static str) -> Error {
        let scheme = self.config().scheme().to_owned();
        Error::new(ErrorKind::Unsupported, op, "this connector has no deferred keys").with_connector(scheme)
    }

    /// The error of options that this connector does not have; for overrides of [`commit_with`](Self::commit_with).
    #[doc(hidden)]
    fn unsupported_options(&self, op: &'static str, options: &PutOptions) -> Error {
        let lacking: Vec<_> = options.needs().without(self.capabilities()).names().collect();
        let context = format!("this connector has no {}; `proxystore info` lists those that do", lacking.join(", no "));
        Error::new(ErrorKind::Unsupported, op, context).with_connector(self.config().scheme().to_owned())
    }
}

/// Conveniences on every connector. Implemented for all of them; not to be implemented.
pub trait ConnectorExt: Connector {
    /// The scheme of the connector and of its keys.
    fn scheme(&self) -> &str {
        self.config().scheme()
    }

    /// Refuses keys that another kind of connector made.
    ///
    /// # Errors
    /// `ForeignKey` with both schemes.
    fn check_scheme(&self, op: &'static str, key: &Key) -> Result<()> {
        if key.scheme() == self.scheme() {
            return Ok(());
        }
        let context = format!("the key belongs to a {} store, this is {}", key.scheme(), self.scheme());
        Err(Error::new(ErrorKind::ForeignKey, op, context).with_connector(self.scheme().to_owned()))
    }

    /// Stores copies of several byte strings.
    ///
    /// # Cost
    /// One copy each.
    fn put_batch(self: &Arc<Self>, objects: &[(&[u8], Format)]) -> Pending<Vec<Key>> {
        let mut regions = Vec::with_capacity(objects.len());
        for (bytes, format) in objects {
            match self.reserve(bytes.len()) {
                Ok(mut region) => {
                    bytes::BufMut::put_slice(&mut region, bytes);
                    regions.push((region, *format));
                }
                Err(error) => return Pending::ready(Err(error)),
            }
        }
        Arc::clone(self).commit_batch(regions)
    }

    /// Stores a copy of `bytes`, as by [`commit_with`](Connector::commit_with).
    ///
    /// # Cost
    /// That of [`put`](Connector::put); with other than the default options, one copy and a `commit_with`.
    fn put_with(&self, bytes: &[u8], format: Format, options: &PutOptions) -> Pending<Key> {
        if options.is_default() {
            return self.put(bytes, format);
        }
        match self.reserve(bytes.len()) {
            Ok(mut region) => {
                bytes::BufMut::put_slice(&mut region, bytes);
                self.commit_with(region, format, options)
            }
            Err(error) => Pending::ready(Err(error)),
        }
    }

    /// Reads an object that must be there.
    ///
    /// # Errors
    /// `NotFound` when it is not.
    fn fetch(&self, key: &Key) -> Pending<Region> {
        let missing = not_found("get", key);
        self.get(key).and_then(move |found| found.ok_or_else(missing))
    }
}

impl<C: Connector + ?Sized> ConnectorExt for C {}

/// Starts a commit each; when one fails, or nobody waits any more, evicts the objects of the others.
fn commit_each<C: Connector + ?Sized>(
    connector: Arc<C>,
    regions: Vec<(RegionMut, Format)>,
    commit: impl Fn(&C, RegionMut, Format) -> Pending<Key>,
) -> Pending<Vec<Key>> {
    let mut started = Vec::with_capacity(regions.len());
    for (region, format) in regions {
        started.push(commit(&connector, region, format));
        if started.last().is_some_and(Pending::has_failed) {
            // The rest need not begin; their memory goes back.
            break;
        }
    }
    let undo = Arc::clone(&connector);
    let settled = Pending::settle(started, move |keys| {
        // There is nobody to tell of a failure.
        let _ = undo.evict_batch(&keys).wait();
    });
    settled.chain(move |outcomes| {
        let (mut keys, mut failure) = (Vec::with_capacity(outcomes.len()), None);
        for outcome in outcomes {
            match outcome {
                Ok(key) => keys.push(key),
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        match failure {
            None => Pending::ready(Ok(keys)),
            Some(error) if keys.is_empty() => Pending::ready(Err(error)),
            Some(error) => connector.evict_batch(&keys).then(move |_| Err(error)),
        }
    })
}

/// A batch that a connector commits in one call of its own: when nobody waits for its end, what it made is evicted.
#[cfg(feature = "file")]
pub(crate) fn undo_if_abandoned<C: Connector>(connector: Arc<C>, batch: Pending<Vec<Key>>) -> Pending<Vec<Key>> {
    let settled = Pending::settle(vec![batch], move |made| {
        // There is nobody to tell of a failure.
        let _ = connector.evict_batch(&made.concat()).wait();
    });
    settled.and_then(|outcomes| outcomes.into_iter().collect::<Result<Vec<_>>>().map(|made| made.concat()))
}

/// Makes the `NotFound` of `key`, when it is needed.
pub(crate) fn not_found(op: &'static str, key: &Key) -> impl FnOnce() -> Error + Send + 'static {
    let key = *key;
    move || {
        let context = format!("{key:?} was evicted, taken, or never committed");
        Error::new(ErrorKind::NotFound, op, context).with_connector(key.scheme().to_owned())
    }
}

/// How long an object stays: what a put asks for beyond the bytes.
///
/// The default asks for nothing: an object stays until it is evicted or taken, or its connector's reach ends. What the
/// options mean is written on [`Connector::commit_with`]. For typed objects see [`Store::with`](crate::Store::with).
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use proxystore::connector::PutOptions;
///
/// let options = PutOptions::new().time_to_live(Duration::from_secs(60)).evict_with_producer();
/// assert_eq!(options.lifetime(), Some(Duration::from_secs(60)));
/// assert!(options.ends_with_producer());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutOptions {
    lifetime: Option<Duration>,
    ends_with_producer: bool,
}

impl PutOptions {
    /// Options that ask for nothing.
    pub const fn new() -> Self {
        Self { lifetime: None, ends_with_producer: false }
    }

    /// The object is as if evicted once `limit` has passed since its commit. Default: it never expires.
    #[must_use]
    pub const fn time_to_live(self, limit: Duration) -> Self {
        Self { lifetime: Some(limit), ..self }
    }

    /// The object is evicted when the process that committed it ends, however it ends. Default: it stays.
    #[must_use]
    pub const fn evict_with_producer(self) -> Self {
        Self { ends_with_producer: true, ..self }
    }

    /// The time to live, if there is one.
    pub const fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    /// Whether the object ends with its producer.
    pub const fn ends_with_producer(&self) -> bool {
        self.ends_with_producer
    }

    /// Whether nothing is asked for.
    pub const fn is_default(&self) -> bool {
        self.lifetime.is_none() && !self.ends_with_producer
    }

    /// What a connector must be able to do for these options.
    pub const fn needs(&self) -> Capabilities {
        let mut needs = Capabilities::NONE;
        if self.lifetime.is_some() {
            needs = needs.union(Capabilities::TIME_TO_LIVE);
        }
        if self.ends_with_producer {
            needs = needs.union(Capabilities::EVICT_WITH_PRODUCER);
        }
        needs
    }
}

/// What a connector can do: a set of bits.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(u32);

impl Capabilities {
    /// Nothing beyond the required methods.
    pub const NONE: Self = Self(0);
    /// `get` returns the stored bytes themselves.
    pub const ZERO_COPY_GET: Self = Self(1 << 0);
    /// `reserve` lends the memory in which the object will stay.
    pub const ZERO_COPY_PUT: Self = Self(1 << 1);
    /// Declared keys: `declare`, `commit_at`, `get_when_committed`.
    pub const DEFERRED: Self = Self(1 << 2);
    /// Waiters for a declared key are notified, not polling.
    pub const NOTIFY: Self = Self(1 << 3);
    /// Other processes of the node can open the same objects.
    pub const CROSS_PROCESS: Self = Self(1 << 4);
    /// Processes on other nodes can open the same objects.
    pub const CROSS_NODE: Self = Self(1 << 5);
    /// Objects outlive the process that put them.
    pub const OUTLIVES_PRODUCER: Self = Self(1 << 6);
    /// Objects may have a [time to live](PutOptions::time_to_live).
    pub const TIME_TO_LIVE: Self = Self(1 << 7);
    /// Objects may be [evicted with their producer](PutOptions::evict_with_producer).
    pub const EVICT_WITH_PRODUCER: Self = Self(1 << 8);

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without the bits of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Names of the set bits, in a fixed order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().filter(move |(bit, _)| self.contains(*bit)).map(|(_, name)| *name)
    }
}

const NAMES: [(Capabilities, &str); 9] = [
    (Capabilities::ZERO_COPY_GET, "zero-copy get"),
    (Capabilities::ZERO_COPY_PUT, "zero-copy put"),
    (Capabilities::DEFERRED, "deferred keys"),
    (Capabilities::NOTIFY, "notify"),
    (Capabilities::CROSS_PROCESS, "cross-process"),
    (Capabilities::CROSS_NODE, "cross-node"),
    (Capabilities::OUTLIVES_PRODUCER, "outlives producer"),
    (Capabilities::TIME_TO_LIVE, "time to live"),
    (Capabilities::EVICT_WITH_PRODUCER, "evict with producer"),
];

impl std::ops::BitOr for Capabilities {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// One row of the table of connectors: how a scheme is opened.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Registration {
    /// Scheme in URLs and keys.
    pub scheme: &'static str,
    /// Who can reach the objects: `process`, `node`, `shared directory`, `cluster`.
    pub reach: &'static str,
    /// One sentence for `proxystore info` and the README.
    pub summary: &'static str,
    /// Names of the options that its URL may carry; any other is refused before `open` is called.
    pub options: &'static [&'static str],
    /// What its connectors can do at most; what one of them can may depend on where it is.
    pub capabilities: Capabilities,
    /// Opens a connector. May block; is called once per distinct configuration and process.
    pub open: fn(&ConnectorConfig) -> Result<Arc<dyn Connector>>,
}

impl Registration {
    /// Describes a connector of yours, for [`connectors::register`](crate::connectors::register).
    pub const fn new(
        scheme: &'static str,
        reach: &'static str,
        summary: &'static str,
        options: &'static [&'static str],
        capabilities: Capabilities,
        open: fn(&ConnectorConfig) -> Result<Arc<dyn Connector>>,
    ) -> Self {
        Self { scheme, reach, summary, options, capabilities, open }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("scheme", &self.scheme)
            .field("reach", &self.reach)
            .field("capabilities", &self.capabilities)
            .finish_non_exhaustive()
    }
}
