//! `Factory`: where a proxy's object comes from.

use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{Codec, Object};
use crate::connector::PutOptions;
use crate::connector::not_found;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::pending::Pending;
use crate::store::Store;
use crate::telemetry::Op;
use crate::token::{Access, Token};

/// Makes the object of a proxy when it is first used: from a file format, a database, a computation, another proxy.
///
/// Closures are factories: `Fn() -> Result<View>`. A factory runs on the thread that first uses the proxy, or on the pool
/// when the proxy is awaited or prefetched; it runs once for a proxy and all its clones, however many threads ask.
///
/// # Examples
/// ```
/// use proxystore::Proxy;
///
/// let squares: Proxy<Vec<u64>> = Proxy::from_fn(|| Ok((0..10).map(|n| n * n).collect()));
/// assert!(!Proxy::is_resolved(&squares));
/// assert_eq!(squares[3], 9);
/// ```
pub trait Factory<T: Object + ?Sized>: Send + Sync + 'static {
    /// Makes the object; may block.
    ///
    /// # Errors
    /// Whatever makes it impossible; the next use tries again.
    fn resolve(&self) -> Result<T::View>;
}

impl<T, F> Factory<T> for F
where
    T: Object + ?Sized,
    F: Fn() -> Result<T::View> + Send + Sync + 'static,
{
    fn resolve(&self) -> Result<T::View> {
        self()
    }
}

/// A factory that can travel: its state is serialised, its code is found by name in the consumer.
///
/// Register it with [`register`] in every process that may resolve such proxies.
pub trait PortableFactory<T: Object + ?Sized>: Factory<T> + Serialize + DeserializeOwned {
    /// Name agreed among all programs that exchange such proxies; at most 255 bytes.
    const NAME: &'static str;
}

/// Makes this process able to resolve proxies of `T` that come from factories of type `F`.
///
/// # Errors
/// `AlreadyExists` when the name is taken by another factory of `T`.
pub fn register<T: Object + ?Sized, F: PortableFactory<T>>() -> Result<()> {
    let load: Load<T> = |payload| {
        let malformed =
            || Error::new(ErrorKind::Invalid, "resolve", format!("the state of factory {:?} is malformed", F::NAME));
        match postcard::take_from_bytes::<F>(payload) {
            Ok((factory, [])) => Ok(Arc::new(factory)),
            Ok(_) => Err(malformed()),
            Err(error) => Err(malformed().with_source(error)),
        }
    };
    let mut known = portable().write().unwrap_or_else(PoisonError::into_inner);
    let entry = (TypeId::of::<T>(), F::NAME);
    if let Some((other, _)) = known.get(&entry) {
        return match *other == TypeId::of::<F>() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::AlreadyExists, "register", format!("factory {:?}", F::NAME))),
        };
    }
    known.insert(entry, (TypeId::of::<F>(), Box::new(load)));
    Ok(())
}

/// What a proxy resolves through.
pub(crate) enum Source<T: Object + ?Sized> {
    /// An object of a store; the store is known where the proxy was made, and found by URL elsewhere.
    Object { url: Arc<str>, store: OnceLock<Store>, key: Key, access: Access },
    /// A factory that cannot leave the process.
    Local(Arc<dyn Factory<T>>),
    /// A factory that can: loaded at the first use.
    Portable { name: Box<str>, payload: Box<[u8]> },
}

impl<T: Object + ?Sized> Source<T> {
    pub(crate) fn object(store: &Store, key: Key, access: Access) -> Self {
        // Whoever asks the proxy for its store gets the handle that the URL would give.
        let plain = store.with(PutOptions::new());
        Self::Object { url: Arc::clone(store.url()), store: OnceLock::from(plain), key, access }
    }

    pub(crate) fn portable<F: PortableFactory<T>>(factory: &F) -> Result<Self> {
        let payload = postcard::to_allocvec(factory).map_err(|error| {
            Error::new(ErrorKind::Codec, "proxy", format!("the state of factory {:?}", F::NAME)).with_source(error)
        })?;
        if F::NAME.len() > usize::from(u8::MAX) || payload.len() > Token::MAX_BYTES - 512 {
            let context = format!("factory {:?} has {} bytes of state", F::NAME, payload.len());
            return Err(Error::new(ErrorKind::TooLarge, "proxy", context));
        }
        register::<T, F>()?;
        Ok(Self::Portable { name: F::NAME.into(), payload: payload.into() })
    }

    pub(crate) fn from_token(token: Token) -> Self {
        match token {
            Token::Object { url, key, access } => Self::Object { url, store: OnceLock::new(), key, access },
            Token::Factory { name, payload } => Self::Portable { name, payload },
        }
    }

    /// # Errors
    /// `Unsupported` for factories that cannot leave the process.
    pub(crate) fn token(&self) -> Result<Token> {
        match self {
            Self::Object { url, key, access, .. } => {
                Ok(Token::Object { url: Arc::clone(url), key: *key, access: *access })
            }
            Self::Portable { name, payload } => Ok(Token::Factory { name: name.clone(), payload: payload.clone() }),
            Self::Local(_) => {
                let context =
                    "a closure cannot leave its process; use a PortableFactory, or put the object into a store";
                Err(Error::new(ErrorKind::Unsupported, "token", context))
            }
        }
    }

    /// The store of an object, opened if need be.
    pub(crate) fn store(&self) -> Result<&Store> {
        let Self::Object { url, store, .. } = self else { return Err(not_stored()) };
        match store.get() {
            Some(store) => Ok(store),
            None => {
                let opened = Store::open(url)?;
                Ok(store.get_or_init(|| opened))
            }
        }
    }

    /// Starts making the object.
    pub(crate) fn resolve(&self) -> Pending<T::View> {
        match self {
            Self::Object { key, access, .. } => self.resolve_object(|store| match access {
                Access::Get => store.get::<T>(key),
                Access::Take => store.take::<T>(key),
                Access::WhenCommitted => store.get_when_committed::<T>(key),
            }),
            Self::Local(factory) => {
                let factory = Arc::clone(factory);
                Pending::blocking(move || factory.resolve())
            }
            Self::Portable { name, payload } => {
                let (name, payload) = (name.clone(), payload.clone());
                // Reading the state runs the user's code as well, which may panic.
                Pending::blocking(move || load::<T>(&name, &payload)?.resolve())
            }
        }
    }

    /// As [`resolve`](Self::resolve), decoding by `codec`.
    pub(crate) fn resolve_with(&self, codec: impl Codec<T>) -> Pending<T::View> {
        self.resolve_object(|store| match self {
            Self::Object { key, access: Access::Take, .. } => store.take_with(key, codec),
            Self::Object { key, access: Access::WhenCommitted, .. } => {
                store.read_with(Op::Get, key, codec, |connector| {
                    connector.get_when_committed(key).and_then(|found| Ok(Some(found)))
                })
            }
            Self::Object { key, .. } => store.get_with(key, codec),
            Self::Local(_) | Self::Portable { .. } => Pending::ready(Err(not_stored())),
        })
    }

    fn resolve_object(&self, read: impl FnOnce(&Store) -> Pending<Option<T::View>>) -> Pending<T::View> {
        let (store, key) = match (self.store(), self) {
            (Ok(store), Self::Object { key, .. }) => (store, key),
            (Ok(_), _) => return Pending::ready(Err(not_stored())),
            (Err(error), _) => return Pending::ready(Err(error)),
        };
        let start = store.clock();
        let missing = not_found("resolve", key);
        let view = read(store).and_then(move |found| found.ok_or_else(missing));
        let len = if key.is_len_known() { key.len() } else { 0 };
        store.observe(Op::Resolve, start, view, move |_| len)
    }

    /// The deadline of the store, where that is open.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Object { store, .. } => store.get().map(Store::deadline),
            Self::Local(_) | Self::Portable { .. } => None,
        }
    }
}

impl<T: Object + ?Sized> fmt::Debug for Source<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object { url, key, access: Access::Get, .. } => write!(f, "{url} {key:?}"),
            Self::Object { url, key, access, .. } => write!(f, "{url} {key:?} {access:?}"),
            Self::Local(_) => f.write_str("local factory"),
            Self::Portable { name, .. } => write!(f, "factory {name}"),
        }
    }
}

fn not_stored() -> Error {
    Error::new(ErrorKind::Unsupported, "store", "the proxy comes from a factory, not from a store")
}

/// Makes a factory of its serialised state.
type Load<T> = fn(&[u8]) -> Result<Arc<dyn Factory<T>>>;

/// The `Load<T>` of each registered factory, with the type of the factory.
type Portables = HashMap<(TypeId, &'static str), (TypeId, Box<dyn Any + Send + Sync>)>;

fn portable() -> &'static RwLock<Portables> {
    static PORTABLE: OnceLock<RwLock<Portables>> = OnceLock::new();
    PORTABLE.get_or_init(RwLock::default)
}

fn load<T: Object + ?Sized>(name: &str, payload: &[u8]) -> Result<Arc<dyn Factory<T>>> {
    let find = || {
        let known = portable().read().unwrap_or_else(PoisonError::into_inner);
        let (_, (_, load)) = known.iter().find(|((of, known), _)| *of == TypeId::of::<T>() && *known == name)?;
        load.downcast_ref::<Load<T>>().copied()
    };
    // Outside the lock: it runs the user's code, which may register more.
    match find() {
        Some(load) => load(payload),
        None => {
            let context =
                format!("no factory {name:?} of `{}` in this process; call factory::register", type_name::<T>());
            Err(Error::new(ErrorKind::Unsupported, "resolve", context))
        }
    }
}
