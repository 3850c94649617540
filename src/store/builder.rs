//! `StoreBuilder`: a store with codecs, limits, or a connector that is open already.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::{Inner, Store, registry};
use crate::cache::Cache;
use crate::codec::{Codec, Codecs, Object};
use crate::config::StoreConfig;
use crate::connector::{Connector, PutOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::Telemetry;
use crate::{connectors, environment};

/// Prepares a [`Store`]; see [`Store::builder`].
///
/// What it sets becomes part of the store's URL, except codecs, which are code: they make the store one that only this
/// builder can make, so [`build`](Self::build) fails if the process has a store of that URL already.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use proxystore::Store;
///
/// let store = Store::builder("memory://built").cache_bytes(64 << 20).deadline(Duration::from_secs(2)).build()?;
/// assert_eq!(store.config().to_string(), "memory://built?cache_bytes=67108864&deadline=2s");
/// assert_eq!(Store::open("memory://built?cache_bytes=64MiB&deadline=2s")?, store);
/// # Ok::<(), proxystore::Error>(())
/// ```
#[must_use = "a builder does nothing until `build`"]
pub struct StoreBuilder {
    config: Result<StoreConfig>,
    connector: Option<Arc<dyn Connector>>,
    codecs: Codecs,
    has_codecs: bool,
}

impl StoreBuilder {
    pub(super) fn from_url(url: &str) -> Self {
        Self { config: url.parse(), connector: None, codecs: Codecs::default(), has_codecs: false }
    }

    pub(super) fn from_connector(connector: Arc<dyn Connector>) -> Self {
        let config = StoreConfig::new(connector.config().clone());
        Self { config: Ok(config), connector: Some(connector), codecs: Codecs::default(), has_codecs: false }
    }

    /// Byte budget of the cache of resolved objects; 0 disables it. Default: `PROXYSTORE_CACHE_BYTES`, else 256 MiB.
    pub fn cache_bytes(self, bytes: u64) -> Self {
        self.set(|config| config.cache_bytes = Some(bytes))
    }

    /// Most objects in the cache, in addition to the byte budget. Default: no limit.
    pub fn cache_objects(self, objects: u64) -> Self {
        self.set(|config| config.cache_objects = Some(objects))
    }

    /// Deadline of every operation that sets none itself. Default: `PROXYSTORE_TIMEOUT`, else 10 s.
    pub fn deadline(self, limit: Duration) -> Self {
        self.set(|config| config.deadline = Some(limit))
    }

    /// Whether operations are timed and counted; costs two clock readings an operation. Default: off.
    pub fn metrics(self, on: bool) -> Self {
        self.set(|config| config.metrics = on)
    }

    /// Writes objects of type `T` by `codec`, and reads those that carry its id. The last one set for a type writes.
    pub fn codec<T: Object + ?Sized>(mut self, codec: impl Codec<T>) -> Self {
        self.has_codecs = true;
        match self.codecs.insert::<T>(Arc::new(codec)) {
            Ok(()) => self,
            Err(error) => Self { config: Err(error), ..self },
        }
    }

    /// Opens the store.
    ///
    /// # Errors
    /// As [`Store::open`]; `AlreadyExists` when the process has a store of that URL and this one brings codecs or a
    /// connector, which that one lacks.
    pub fn build(self) -> Result<Store> {
        let config = self.config?;
        match (self.connector, self.has_codecs) {
            (None, false) => registry::by_config(&config),
            (None, true) => registry::insert(open(&config, connectors::open(&config.connector)?, self.codecs)),
            (Some(connector), _) => registry::insert(open(&config, connector, self.codecs)),
        }
    }

    fn set(mut self, f: impl FnOnce(&mut StoreConfig)) -> Self {
        if let Ok(config) = &mut self.config {
            f(config);
            if config.deadline.is_some_and(|limit| limit.is_zero()) {
                self.config = Err(Error::new(ErrorKind::Config, "configure", "a deadline of zero leaves no time"));
            }
        }
        self
    }
}

/// Makes a store that is not registered yet. The connector's canonical form of its configuration becomes the store's.
pub(super) fn open(config: &StoreConfig, connector: Arc<dyn Connector>, codecs: Codecs) -> Store {
    environment::warn_of_unknown();
    let config = StoreConfig { connector: connector.config().clone(), ..config.clone() };
    let max_bytes = config.cache_bytes.unwrap_or_else(environment::cache_bytes);
    let telemetry = config.metrics.then(|| Telemetry::new(config.connector.scheme()));
    Store {
        options: PutOptions::new(),
        inner: Arc::new(Inner {
            url: config.to_string().into(),
            cache: Arc::new(Cache::new(max_bytes, config.cache_objects.unwrap_or(u64::MAX))),
            deadline: config.deadline.unwrap_or_else(environment::timeout),
            telemetry,
            connector,
            codecs,
            config,
            closed: AtomicBool::new(false),
        }),
    }
}

impl fmt::Debug for StoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreBuilder").field("config", &self.config).field("codecs", &self.codecs).finish()
    }
}
