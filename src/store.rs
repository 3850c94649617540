//! `Store`: objects in and out of a connector, with a cache of what was resolved.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cache::{Cache, CacheStats};
use crate::codec::{self, Codec, Codecs, Object};
use crate::config::StoreConfig;
use crate::connector::{Capabilities, Connector, ConnectorExt, PutOptions};
use crate::connectors;
use crate::environment;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::pending::Pending;
use crate::region::Region;
use crate::telemetry::{Op, OpStats, Telemetry};

mod builder;
mod registry;
mod reserved;

pub use builder::StoreBuilder;
pub use reserved::{Reserved, ReservedSlice};

/// Typed objects on top of a connector.
///
/// A `Store` is a handle: cloning it is cheap, and all handles with the same configuration are one store in a process,
/// with one connector and one cache. That includes the handles that proxies open for themselves from what they carry.
///
/// Every operation returns a [`Pending`] at once, is bounded by the store's deadline (10 s unless configured) and may be
/// called from any number of threads; a fetch of one key holds up nobody who wants another.
///
/// # Fork
/// A child of fork(2) opens stores anew: [`open`](Self::open) never returns one of its parent's, and threads for waiting
/// are made again. A handle that it inherited goes on where its connector can (`file`; `memory` only reads) and is
/// [`Forked`](ErrorKind::Forked) where it cannot. An operation of another thread that was under way at the moment of the
/// fork does not end in the child, and what it held locked in a store or among the registered codecs and factories stays
/// locked there: a child that opens its own stores meets none of a store's.
///
/// # Examples
/// ```
/// use proxystore::Store;
///
/// let store = Store::open("memory://example")?;
/// let key = store.put(&vec![1.0, 2.0, 3.0]).wait()?;
/// let numbers = store.get::<[f64]>(&key).wait()?.expect("just put");
/// assert_eq!(numbers.iter().sum::<f64>(), 6.0);
/// store.evict(&key).wait()?;
/// assert!(store.get::<[f64]>(&key).wait()?.is_none());
/// # Ok::<(), proxystore::Error>(())
/// ```
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// Of this handle alone.
    options: PutOptions,
}

struct Inner {
    config: StoreConfig,
    url: Arc<str>,
    connector: Arc<dyn Connector>,
    cache: Arc<Cache>,
    codecs: Codecs,
    deadline: Duration,
    telemetry: Option<Telemetry>,
    closed: AtomicBool,
}

impl Store {
    /// Opens the store of a URL such as `file:///scratch/run42?cache_bytes=1GiB`, or returns the one that this process has.
    ///
    /// # Cost
    /// The first time what the connector costs to open, which may block; a look-up after that. Opening one store never
    /// holds up another.
    ///
    /// # Errors
    /// `Invalid` and `Config` for the URL, `UnknownScheme` naming the feature to enable, and the connector's own.
    pub fn open(url: &str) -> Result<Self> {
        registry::by_url(url)
    }

    /// Opens the store that `$PROXYSTORE_STORE` names, else `shm://`: memory that the processes of the user on this node share.
    ///
    /// That memory lives as long as any process that uses it, or `proxystore serve`. In builds without the feature `shm` it
    /// is `file://`, a directory of the user's.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_default() -> Result<Self> {
        Self::open(&environment::default_store())
    }

    /// Opens the store of a configuration, or returns the one that this process has.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_config(config: &StoreConfig) -> Result<Self> {
        registry::by_config(config)
    }

    /// Prepares a store step by step, from the URL of its connector.
    pub fn builder(url: &str) -> StoreBuilder {
        StoreBuilder::from_url(url)
    }

    /// Prepares a store on a connector that is open already.
    pub fn builder_on(connector: Arc<dyn Connector>) -> StoreBuilder {
        StoreBuilder::from_connector(connector)
    }

    /// A handle of the same store whose puts carry `options`: those of values, batches, proxies and reservations.
    ///
    /// It is equal to this one and shares connector and cache. Clones of it carry the options too, this handle does not.
    /// [Promises](Self::promise) have no options: what keeps one stays until it is evicted.
    ///
    /// What was resolved is shared with whoever holds it: a view, a proxy that has its object, and a copy in the cache of a
    /// process outlive the object, as they do when another process evicts it. So [`get`](Self::get) may still answer from
    /// the cache when the time to live is over; [`exists`](Self::exists) asks the connector. Where that matters, open the
    /// store with `cache_bytes=0`.
    ///
    /// # Cost
    /// That of a clone.
    ///
    /// # Errors
    /// None here; puts are `Unsupported` where the connector lacks what the options need.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use proxystore::connector::PutOptions;
    /// use proxystore::{ErrorKind, Store};
    ///
    /// let store = Store::open("memory://options")?;
    /// let brief = store.with(PutOptions::new().time_to_live(Duration::from_secs(60)));
    /// assert_eq!(brief, store);
    /// let error = brief.put("a connector that cannot").wait().unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Unsupported);
    /// # Ok::<(), proxystore::Error>(())
    /// ```
    #[must_use]
    pub fn with(&self, options: PutOptions) -> Self {
        Self { inner: Arc::clone(&self.inner), options }
    }

    /// The options that puts through this handle carry.
    pub fn options(&self) -> &PutOptions {
        &self.options
    }

    /// The configuration that opens this store again; its `Display` is the store's URL.
    pub fn config(&self) -> &StoreConfig {
        &self.inner.config
    }

    /// The connector underneath.
    pub fn connector(&self) -> &Arc<dyn Connector> {
        &self.inner.connector
    }

    /// The canonical URL: what proxies carry.
    pub(crate) fn url(&self) -> &Arc<str> {
        &self.inner.url
    }

    /// Stores `value` and returns its key.
    ///
    /// # Cost
    /// Plain data: the connector's put, one copy. Other types are encoded once, straight into the connector's memory when
    /// they are larger than 64 KiB. The value is encoded before this returns.
    ///
    /// # Errors
    /// `Codec` when encoding fails, `NoSpace`, `Closed`, and the connector's own. Nothing stays behind.
    pub fn put<T: Object + ?Sized>(&self, value: &T) -> Pending<Key> {
        self.put_by(value, self.inner.codecs.preferred::<T>().as_deref())
    }

    /// As [`put`](Self::put), by a codec of yours.
    pub fn put_with<T: Object + ?Sized>(&self, value: &T, codec: &impl Codec<T>) -> Pending<Key> {
        match codec::check_id(codec.id()) {
            Ok(()) => self.put_by(value, Some(codec)),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn put_by<T: Object + ?Sized>(&self, value: &T, codec: Option<&dyn Codec<T>>) -> Pending<Key> {
        if let Err(error) = self.check_put("put") {
            return Pending::ready(Err(error));
        }
        let start = self.clock();
        self.observe(Op::Put, start, codec::encode(&*self.inner.connector, value, codec, &self.options), Key::len)
    }

    /// Stores several values, all or none.
    ///
    /// # Cost
    /// As [`put`](Self::put) for each, in one operation of the connector.
    ///
    /// # Errors
    /// As [`put`](Self::put); the first failure, and none of the values stays. Past the deadline they go in the background:
    /// see [`Connector::commit_batch`].
    pub fn put_batch<'a, T: Object + ?Sized>(&self, values: impl IntoIterator<Item = &'a T>) -> Pending<Vec<Key>> {
        let start = self.clock();
        let codec = self.inner.codecs.preferred::<T>();
        let regions = self.check_put("put").and_then(|()| {
            values
                .into_iter()
                .map(|value| codec::encode_region(&*self.inner.connector, value, codec.as_deref()))
                .collect::<Result<Vec<_>>>()
        });
        let committed = match regions {
            Ok(regions) => Arc::clone(&self.inner.connector).commit_batch_with(regions, &self.options),
            Err(error) => Pending::ready(Err(error)),
        };
        self.observe(Op::PutBatch, start, committed, |keys| keys.iter().map(Key::len).sum())
    }

    /// Reads the object of `key`; `None` when there is none.
    ///
    /// # Cost
    /// A hit in the cache costs a look-up. A miss costs the connector's get and the type's decoding: nothing for types
    /// viewed in place. Threads that miss the same key at once cause one fetch.
    ///
    /// # Errors
    /// `TypeMismatch` before anything is fetched, `Codec` and `Corrupt` for bytes that are no `T`, `ForeignKey`, `Timeout`,
    /// `Closed`, and the connector's own.
    pub fn get<T: Object + ?Sized>(&self, key: &Key) -> Pending<Option<T::View>> {
        if let Err(error) = self.check_open("get") {
            return Pending::ready(Err(error));
        }
        let cache = &self.inner.cache;
        if !cache.is_enabled() {
            return self.fetch::<T>(key);
        }
        match cache.get::<T::View>(key) {
            Some(view) => Pending::ready(Ok(Some(view))),
            None => cache.load(key, || self.fetch::<T>(key)).default_deadline(self.inner.deadline),
        }
    }

    /// As [`get`](Self::get), by a codec of yours; neither reads nor fills the cache, which knows one view of an object.
    pub fn get_with<T: Object + ?Sized>(&self, key: &Key, codec: impl Codec<T>) -> Pending<Option<T::View>> {
        self.read_with(Op::Get, key, codec, |connector| connector.get(key))
    }

    /// As [`take`](Self::take), by a codec of yours.
    pub fn take_with<T: Object + ?Sized>(&self, key: &Key, codec: impl Codec<T>) -> Pending<Option<T::View>> {
        self.read_with(Op::Take, key, codec, |connector| self.forgetting([*key], || connector.take(key)))
    }

    /// Fetches past the cache and decodes by `codec`.
    pub(crate) fn read_with<T: Object + ?Sized>(
        &self,
        op: Op,
        key: &Key,
        codec: impl Codec<T>,
        fetch: impl FnOnce(&dyn Connector) -> Pending<Option<Region>>,
    ) -> Pending<Option<T::View>> {
        let (start, format, store) = (self.clock(), key.format(), self.clone());
        let checked = self.check_open(op.name()).and_then(|()| codec::check_codec::<T>(format, codec.id()));
        let fetched = match checked {
            Ok(()) => fetch(&*self.inner.connector),
            Err(error) => Pending::ready(Err(error)),
        };
        let view = fetched.and_then(move |found| {
            found.map(|region| codec::decode::<T>(format, region, Some(&codec), &store.inner.codecs)).transpose()
        });
        self.observe(op, start, view, self.key_len(key))
    }

    /// Reads the stored bytes of `key` as they are, past codec and cache.
    ///
    /// # Cost
    /// The connector's get.
    pub fn get_region(&self, key: &Key) -> Pending<Option<Region>> {
        let start = self.clock();
        let found = match self.check_open("get") {
            Ok(()) => self.inner.connector.get(key),
            Err(error) => Pending::ready(Err(error)),
        };
        self.observe(Op::Get, start, found, self.key_len(key))
    }

    /// Fetches and decodes, past the cache.
    fn fetch<T: Object + ?Sized>(&self, key: &Key) -> Pending<Option<T::View>> {
        let start = self.clock();
        if let Err(error) = codec::check_format::<T>(key.format(), &self.inner.codecs) {
            return Pending::ready(Err(error));
        }
        let fetched = self.inner.connector.get(key);
        let view = self.decode_found::<T>(key, fetched);
        self.observe(Op::Get, start, view, self.key_len(key))
    }

    #[inline]
    fn decode_found<T: Object + ?Sized>(
        &self,
        key: &Key,
        fetched: Pending<Option<Region>>,
    ) -> Pending<Option<T::View>> {
        let format = key.format();
        let decode = move |store: &Self, found: Option<Region>| {
            found.map(|region| codec::decode::<T>(format, region, None, &store.inner.codecs)).transpose()
        };
        if fetched.is_ready() {
            // Without the handle that a closure needs to outlive this call.
            return Pending::ready(fetched.wait().and_then(|found| decode(self, found)));
        }
        let store = self.clone();
        fetched.and_then(move |found| decode(&store, found))
    }

    /// Reads several objects, in the order of `keys`.
    ///
    /// # Cost
    /// Cached ones cost a look-up; all others travel in one operation of the connector.
    ///
    /// # Errors
    /// As [`get`](Self::get); the first failure.
    pub fn get_batch<T: Object + ?Sized>(&self, keys: &[Key]) -> Pending<Vec<Option<T::View>>> {
        match keys.iter().try_for_each(|key| codec::check_format::<T>(key.format(), &self.inner.codecs)) {
            Ok(()) => self.get_each::<T>(keys).and_then(|views| views.into_iter().collect()),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    /// As [`get_batch`](Self::get_batch), with what became of each.
    pub(crate) fn get_each<T: Object + ?Sized>(&self, keys: &[Key]) -> Pending<Vec<Result<Option<T::View>>>> {
        if let Err(error) = self.check_open("get") {
            return Pending::ready(Err(error));
        }
        let start = self.clock();
        let cache = &self.inner.cache;
        let (mut wanted, mut landings) = (Vec::new(), Vec::new());
        let mut views: Vec<Result<Option<T::View>>> = Vec::with_capacity(keys.len());
        for (at, key) in keys.iter().enumerate() {
            let checked = codec::check_format::<T>(key.format(), &self.inner.codecs);
            let view = checked.map(|()| cache.get::<T::View>(key));
            if let Ok(None) = &view {
                wanted.push(*key);
                landings.push((at, cache.expect(key)));
            }
            views.push(view);
        }
        if wanted.is_empty() {
            return Pending::ready(Ok(views));
        }
        let store = self.clone();
        let bytes: u64 = wanted.iter().filter(|key| key.is_len_known()).map(Key::len).sum();
        let fetched = self.inner.connector.get_batch(&wanted).and_then(move |regions| {
            for (((at, landing), key), region) in landings.into_iter().zip(&wanted).zip(regions) {
                let Some(region) = region else { continue };
                let view = codec::decode::<T>(key.format(), region, None, &store.inner.codecs);
                if let Ok(view) = &view {
                    landing.land(view.clone());
                }
                views[at] = view.map(Some);
            }
            Ok(views)
        });
        self.observe(Op::GetBatch, start, fetched, move |_| bytes)
    }

    /// Reads and removes the object of `key` in one step: of any number of racing callers exactly one gets it.
    ///
    /// # Cost
    /// The connector's take and the type's decoding; the cache is not used.
    ///
    /// # Errors
    /// As [`get`](Self::get). A type mismatch removes nothing.
    pub fn take<T: Object + ?Sized>(&self, key: &Key) -> Pending<Option<T::View>> {
        let start = self.clock();
        let checked = self.check_open("take").and_then(|()| codec::check_format::<T>(key.format(), &self.inner.codecs));
        let taken = match checked {
            Ok(()) => self.decode_found::<T>(key, self.forgetting([*key], || self.inner.connector.take(key))),
            Err(error) => Pending::ready(Err(error)),
        };
        self.observe(Op::Take, start, taken, self.key_len(key))
    }

    /// Reads the object of a deferred key once it is committed.
    ///
    /// # Errors
    /// As [`get`](Self::get); `Timeout` when nobody commits it in time, `Cancelled` or `NotFound` when it was given up.
    pub(crate) fn get_when_committed<T: Object + ?Sized>(&self, key: &Key) -> Pending<Option<T::View>> {
        let (start, format, store) = (self.clock(), key.format(), self.clone());
        let checked = self.check_open("get").and_then(|()| codec::check_format::<T>(format, &self.inner.codecs));
        let fetched = match checked {
            Ok(()) => self.inner.connector.get_when_committed(key),
            Err(error) => Pending::ready(Err(error)),
        };
        let view =
            fetched.and_then(move |region| codec::decode::<T>(format, region, None, &store.inner.codecs).map(Some));
        self.observe(Op::Get, start, view, |_| 0)
    }

    /// Makes `value` the object of a declared key; an error right away means that nothing was begun.
    pub(crate) fn commit_at<T: Object + ?Sized>(&self, key: &Key, value: &T) -> Result<Pending<()>> {
        self.check_open("put")?;
        let start = self.clock();
        let codec = self.inner.codecs.preferred::<T>();
        let (region, _) = codec::encode_region(&*self.inner.connector, value, codec.as_deref())?;
        let len = region.len() as u64;
        Ok(self.observe(Op::Put, start, self.inner.connector.commit_at(key, region), move |()| len))
    }

    /// The format that this store writes objects of type `T` in.
    pub(crate) fn format<T: Object + ?Sized>(&self) -> Format {
        let own = T::format();
        Format { codec: self.inner.codecs.preferred::<T>().map_or(own.codec, |codec| codec.id()), ..own }
    }

    /// Whether the object of `key` can be read now. Asks the connector: a cached view proves nothing about the object.
    pub fn exists(&self, key: &Key) -> Pending<bool> {
        let start = self.clock();
        let asked = match self.check_open("exists") {
            Ok(()) => self.inner.connector.exists(key),
            Err(error) => Pending::ready(Err(error)),
        };
        self.observe(Op::Exists, start, asked, |_| 0)
    }

    /// Whether the objects of `keys` can be read now.
    pub fn exists_batch(&self, keys: &[Key]) -> Pending<Vec<bool>> {
        let start = self.clock();
        let asked = match self.check_open("exists") {
            Ok(()) => self.inner.connector.exists_batch(keys),
            Err(error) => Pending::ready(Err(error)),
        };
        self.observe(Op::Exists, start, asked, |_| 0)
    }

    /// Removes the object of `key`, here and from this process's cache; silent when there is none.
    ///
    /// Views that were handed out stay valid. Other processes may go on serving theirs from their caches.
    pub fn evict(&self, key: &Key) -> Pending<()> {
        let start = self.clock();
        let evicted = match self.check_open("evict") {
            Ok(()) => self.forgetting([*key], || self.inner.connector.evict(key)),
            Err(error) => Pending::ready(Err(error)),
        };
        self.observe(Op::Evict, start, evicted, |()| 0)
    }

    /// Removes several objects.
    pub fn evict_batch(&self, keys: &[Key]) -> Pending<()> {
        let start = self.clock();
        let evicted = match self.check_open("evict") {
            Ok(()) => self.forgetting(keys.to_vec(), || self.inner.connector.evict_batch(keys)),
            Err(error) => Pending::ready(Err(error)),
        };
        self.observe(Op::Evict, start, evicted, |()| 0)
    }

    /// Removes objects by `removal`, and their views from the cache.
    fn forgetting<T: Send + 'static>(
        &self,
        keys: impl AsRef<[Key]> + Send + 'static,
        removal: impl FnOnce() -> Pending<T>,
    ) -> Pending<T> {
        let cache = Arc::clone(&self.inner.cache);
        // Before, for who reads while it goes on or after giving it up; after, for who read while it went on.
        keys.as_ref().iter().for_each(|key| cache.remove(key));
        removal().then(move |result| {
            keys.as_ref().iter().for_each(|key| cache.remove(key));
            result
        })
    }

    /// Whether the cache of this process holds a view of `key`.
    pub fn is_cached(&self, key: &Key) -> bool {
        self.inner.cache.contains(key)
    }

    /// Hits, misses and fill of the cache. Kept whether or not metrics are on.
    pub fn cache_stats(&self) -> CacheStats {
        self.inner.cache.stats()
    }

    /// Counts and durations of the operations so far, where the store's configuration has `metrics=on`.
    pub fn metrics(&self) -> Option<Vec<OpStats>> {
        self.inner.telemetry.as_ref().map(Telemetry::snapshot)
    }

    /// Lends memory of the connector for an object of at most `len` bytes, to be written in place.
    ///
    /// # Cost
    /// The connector's reserve; touches no byte.
    ///
    /// # Errors
    /// `NoSpace`, `TooLarge`, `Closed`.
    ///
    /// # Examples
    /// ```
    /// use std::io::Write;
    ///
    /// let store = proxystore::Store::open("memory://reserve")?;
    /// let mut out = store.reserve(1024)?;
    /// out.write_all(b"written where it stays")?;
    /// let key = out.commit_key().wait()?;
    /// assert_eq!(&*store.get::<[u8]>(&key).wait()?.expect("just put"), b"written where it stays");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve(&self, len: usize) -> Result<Reserved> {
        self.check_open("reserve")?;
        Ok(Reserved::new(self.clone(), self.inner.connector.reserve(len)?))
    }

    /// Lends memory of the connector for `n` elements, to be filled in place; see [`ReservedSlice`].
    ///
    /// # Cost
    /// The connector's reserve. Process memory is zeroed; mapped memory is not.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn reserve_slice<T: bytemuck::Pod + Send + Sync>(&self, n: usize) -> Result<ReservedSlice<T>> {
        let Some(len) = n.checked_mul(size_of::<T>()) else {
            return Err(Error::new(ErrorKind::TooLarge, "reserve", format!("{n} elements")));
        };
        ReservedSlice::new(self.reserve(len)?)
    }

    /// Ends this store in this process: cache, registration, connector. Objects that outlive processes stay.
    ///
    /// Idempotent. All handles are closed with it, also those of proxies; opening the same URL again makes a new store.
    pub fn close(&self) -> Result<()> {
        if self.inner.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        registry::forget(self);
        self.inner.cache.close();
        self.inner.connector.close()
    }

    /// Whether [`close`](Self::close) was called on any handle.
    pub fn is_closed(&self) -> bool {
        self.inner.closed.load(Ordering::Acquire)
    }

    fn check_open(&self, op: &'static str) -> Result<()> {
        match self.is_closed() {
            true => Err(Error::new(ErrorKind::Closed, op, "the store was closed").with_connector(self.scheme())),
            false => Ok(()),
        }
    }

    /// Whether the store is open, and can do what the options of this handle ask for.
    #[inline]
    fn check_put(&self, op: &'static str) -> Result<()> {
        self.check_open(op)?;
        if self.options.is_default() {
            return Ok(());
        }
        let lacking = self.options.needs().without(self.inner.connector.capabilities());
        if lacking == Capabilities::NONE {
            return Ok(());
        }
        let known = connectors::registrations();
        let able: Vec<_> =
            known.iter().filter(|row| row.capabilities.contains(lacking)).map(|row| row.scheme).collect();
        let able = if able.is_empty() {
            "nor has any of this build".to_owned()
        } else {
            format!("these have: {}", able.join(", "))
        };
        let context = format!("the connector has no {}; {able}", lacking.names().collect::<Vec<_>>().join(", no "));
        Err(Error::new(ErrorKind::Unsupported, op, context).with_connector(self.scheme()))
    }

    fn scheme(&self) -> String {
        self.inner.connector.scheme().to_owned()
    }

    /// Whether opening its URL again would give nothing better.
    pub(crate) fn is_usable(&self) -> bool {
        !self.is_closed() && !self.inner.connector.is_lost()
    }

    /// The deadline of operations that set none.
    pub(crate) fn deadline(&self) -> Duration {
        self.inner.deadline
    }

    /// The start of an operation, if anybody counts.
    pub(crate) fn clock(&self) -> Option<Instant> {
        self.inner.telemetry.as_ref().map(|_| Instant::now())
    }

    /// Bounds an operation by the store's deadline and counts its end.
    #[inline]
    pub(crate) fn observe<T: Send + 'static>(
        &self,
        op: Op,
        start: Option<Instant>,
        operation: Pending<T>,
        bytes: impl FnOnce(&T) -> u64 + Send + 'static,
    ) -> Pending<T> {
        let Some(start) = start else {
            return if operation.is_ready() { operation } else { operation.default_deadline(self.inner.deadline) };
        };
        let store = self.clone();
        let counted = operation.then(move |result| {
            if let Some(telemetry) = &store.inner.telemetry {
                telemetry.record(op, start, &result, bytes);
            }
            result
        });
        counted.default_deadline(self.inner.deadline)
    }

    /// The bytes that an operation on `key` moved, given what it found.
    fn key_len<V>(&self, key: &Key) -> impl FnOnce(&Option<V>) -> u64 + Send + 'static {
        let len = if key.is_len_known() { key.len() } else { 0 };
        move |found| if found.is_some() { len } else { 0 }
    }
}

impl PartialEq for Store {
    /// Whether both are handles to the same store.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Eq for Store {}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.inner.url)
    }
}
