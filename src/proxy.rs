//! `Proxy<T>`: a small typed reference that becomes the object when it is first used.

use std::any::type_name;
use std::collections::HashMap;
use std::fmt;
use std::future::IntoFuture;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{Codec, Decoded, Object};
use crate::connector::not_found;
use crate::error::{Error, Result};
use crate::factory::{Factory, PortableFactory, Source};
use crate::flight::Flight;
use crate::key::Key;
use crate::pending::Pending;
use crate::store::Store;
use crate::token::{Access, Token, TokenBuffer};

mod create;
mod delegate;

pub use create::Promise;

/// A transparent reference to an object that lies elsewhere.
///
/// It dereferences to the object: the first use fetches it, later uses cost what a `Box` costs. What travels between
/// processes is the [`Token`], about a hundred characters, through any serde format, text or bytes; the consumer needs
/// nothing but the type.
///
/// All functions are associated ones, `Proxy::key(&p)`, so that nothing of `T` is shadowed; only the three that turn a
/// proxy into something to be sent can be called as methods.
///
/// | need | call |
/// |---|---|
/// | just use it | `*p`, `p.method()`, `&p[..]`; a failure panics with your line, the type and the key |
/// | handle failures | [`Proxy::try_get`] |
/// | wait as a task | `(&p).await`, [`Proxy::resolve`] |
/// | fetch ahead | [`Proxy::prefetch`], [`Proxy::resolve_all`] |
///
/// Any number of threads, and all clones in this process, cause one fetch.
///
/// # Examples
/// ```
/// use proxystore::{Proxy, Store};
///
/// let store = Store::open("memory://proxy-example")?;
/// let p: Proxy<Vec<f64>> = store.proxy(&vec![1.0, 2.0, 3.0]).wait()?;
/// let token = p.to_token()?;                 // or any serde format
///
/// let p: Proxy<Vec<f64>> = token.parse()?;   // opens and fetches nothing yet
/// assert!(!Proxy::is_resolved(&p));
/// assert_eq!(p.iter().sum::<f64>() / p.len() as f64, 2.0);
/// # Ok::<(), proxystore::Error>(())
/// ```
pub struct Proxy<T: Object + ?Sized> {
    /// This handle's own copy of the view, so that a use needs no look at what is shared.
    view: OnceLock<T::View>,
    shared: Arc<Shared<T>>,
}

/// What all clones of a proxy have in common.
struct Shared<T: Object + ?Sized> {
    source: Source<T>,
    view: OnceLock<T::View>,
    flight: Arc<Flight<T::View>>,
}

/// Unresolved proxies of one store.
type Members<T> = Vec<(Key, Arc<Shared<T>>)>;

impl<T: Object + ?Sized> Proxy<T> {
    fn from_source(source: Source<T>) -> Self {
        let shared = Shared { source, view: OnceLock::new(), flight: Flight::new() };
        Self { view: OnceLock::new(), shared: Arc::new(shared) }
    }

    /// A proxy of what `factory` makes. It stays in this process; see [`from_portable`](Self::from_portable).
    pub fn from_factory(factory: impl Factory<T>) -> Self {
        Self::from_source(Source::Local(Arc::new(factory)))
    }

    /// A proxy of what `factory` makes, which may be sent to processes that [registered](crate::factory::register) it.
    ///
    /// # Errors
    /// `Codec` when the factory's state cannot be serialised, `TooLarge` above some 63 KiB of it.
    pub fn from_portable<F: PortableFactory<T>>(factory: &F) -> Result<Self> {
        Source::portable(factory).map(Self::from_source)
    }

    /// The object; fetches it first if this is the first use.
    ///
    /// # Cost
    /// That of a `Box` once resolved. Before, blocks for the fetch, at most for the store's deadline.
    ///
    /// # Errors
    /// `NotFound` when the object is gone, `TypeMismatch`, `Timeout`, and whatever opening the store may give. A failed
    /// proxy tries again at the next use.
    pub fn try_get(this: &Self) -> Result<&T::Target> {
        if let Some(view) = this.view.get() {
            return Ok(view);
        }
        let view = Self::resolve(this).wait()?;
        Ok(this.view.get_or_init(|| view))
    }

    /// Starts fetching the object, or joins a fetch that goes on.
    ///
    /// `(&proxy).await` is the same.
    ///
    /// # Cancel safety
    /// Dropping the `Pending` loses nothing: the fetch goes on, and the proxy is resolved by it.
    pub fn resolve(this: &Self) -> Pending<T::View> {
        let shared = &this.shared;
        match this.view.get().or_else(|| shared.view.get()) {
            Some(view) => Pending::ready(Ok(view.clone())),
            None => Self::join(shared, || shared.source.resolve()),
        }
    }

    /// Joins the fetch that goes on, or begins one by `start`.
    fn join(shared: &Arc<Shared<T>>, start: impl FnOnce() -> Pending<T::View>) -> Pending<T::View> {
        let landing = || {
            let keep = Arc::clone(shared);
            let land = move |view: &T::View| {
                // Only a flight lands here, and there is one at a time; a batch may have been faster.
                let _ = keep.view.set(view.clone());
            };
            (start(), land)
        };
        let fetch = shared.flight.join(|| shared.view.get().cloned(), landing);
        // The fetch has its own, but who joins a call that cannot be interrupted need not wait for it.
        match shared.source.deadline() {
            Some(limit) => fetch.default_deadline(limit),
            None => fetch,
        }
    }

    /// As [`resolve`](Self::resolve), decoding by a codec of yours if this call is the one that fetches.
    ///
    /// # Errors
    /// As `resolve`; `Unsupported` for proxies of factories.
    pub fn resolve_with(this: &Self, codec: impl Codec<T>) -> Pending<T::View> {
        let shared = &this.shared;
        Self::join(shared, || shared.source.resolve_with(codec))
    }

    /// Fetches the object in the background, so that it is there, or nearer, when it is used: ProxyStore's
    /// `resolve_async`.
    ///
    /// # Cost
    /// Returns at once; blocking fetches run on the pool. A failure shows at the first use.
    pub fn prefetch(this: &Self) {
        if !Self::is_resolved(this) {
            drop(Self::resolve(this).start());
        }
    }

    /// Fetches the objects of many proxies, those of one store in one operation.
    ///
    /// # Errors
    /// The first failure. Proxies whose objects were found are resolved even so.
    pub fn resolve_all<'a>(proxies: impl IntoIterator<Item = &'a Self>) -> Pending<()> {
        let mut by_store: HashMap<Arc<str>, (Store, Members<T>)> = HashMap::new();
        let mut operations = Vec::new();
        for proxy in proxies {
            if Self::is_resolved(proxy) {
                continue;
            }
            match (&proxy.shared.source, proxy.shared.source.store()) {
                (Source::Object { url, key, access: Access::Get, .. }, Ok(store)) => {
                    let batch = by_store.entry(Arc::clone(url)).or_insert_with(|| (store.clone(), Vec::new()));
                    batch.1.push((*key, Arc::clone(&proxy.shared)));
                }
                _ => operations.push(Self::resolve(proxy).and_then(|_| Ok(()))),
            }
        }
        for (store, members) in by_store.into_values() {
            let keys: Vec<Key> = members.iter().map(|(key, _)| *key).collect();
            operations.push(store.get_each::<T>(&keys).and_then(move |views| {
                let mut first = Ok(());
                for ((key, shared), view) in members.into_iter().zip(views) {
                    match view.and_then(|view| view.ok_or_else(not_found("resolve", &key))) {
                        Ok(view) => drop(shared.view.set(view)),
                        Err(error) => first = first.and(Err(error)),
                    }
                }
                first
            }));
        }
        let operations = match operations.len() {
            0 | 1 => operations,
            _ => operations.into_iter().map(Pending::start).collect(),
        };
        Pending::all(operations).and_then(|_| Ok(()))
    }

    /// Whether the object is here, so that using it costs nothing more.
    pub fn is_resolved(this: &Self) -> bool {
        this.view.get().is_some() || this.shared.view.get().is_some()
    }

    /// The key of the object, unless the proxy comes from a factory of the user's.
    pub fn key(this: &Self) -> Option<&Key> {
        match &this.shared.source {
            Source::Object { key, .. } => Some(key),
            _ => None,
        }
    }

    /// The store of the object; opened if this process has not done so.
    ///
    /// # Errors
    /// As [`Store::open`]; `Unsupported` for proxies of factories.
    pub fn store(this: &Self) -> Result<Store> {
        this.shared.source.store().cloned()
    }

    /// Where the object comes from, without its type: what is sent.
    ///
    /// # Errors
    /// `Unsupported` for a closure, which cannot leave its process.
    pub fn token(this: &Self) -> Result<Token> {
        this.shared.source.token()
    }

    /// The printable token: URL-safe, one word.
    ///
    /// # Errors
    /// As [`Proxy::token`].
    pub fn to_token(&self) -> Result<String> {
        Ok(Self::token(self)?.to_string())
    }

    /// The token's bytes, the smallest form.
    ///
    /// # Errors
    /// As [`Proxy::token`].
    pub fn to_token_bytes(&self) -> Result<Vec<u8>> {
        Ok(Self::token(self)?.to_bytes())
    }

    /// Reads what [`to_token_bytes`](Self::to_token_bytes) wrote. Opens and fetches nothing.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub fn from_token_bytes(bytes: &[u8]) -> Result<Self> {
        Token::from_bytes(bytes).map(Self::from)
    }

    /// The token in a buffer of fixed size, for `MPI_Bcast` and its like.
    ///
    /// # Errors
    /// As [`Proxy::token`], and `TooLarge` when `N` bytes do not hold it.
    pub fn to_token_buffer<const N: usize>(&self) -> Result<TokenBuffer<N>> {
        TokenBuffer::new(&Self::token(self)?)
    }

    /// Reads what [`to_token_buffer`](Self::to_token_buffer) wrote. Opens and fetches nothing.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub fn from_token_buffer<const N: usize>(buffer: &TokenBuffer<N>) -> Result<Self> {
        buffer.token().map(Self::from)
    }

    /// The same object as a one-time proxy: its resolution removes the object, and of all holders of such proxies exactly
    /// one resolves it, in whichever process. The others get `NotFound`.
    ///
    /// A proxy from a factory, or one that waits for a deferred key, stays what it is.
    #[must_use]
    pub fn once(this: Self) -> Self {
        match &this.shared.source {
            Source::Object { url, store, key, access: Access::Get } => Self::from_source(Source::Object {
                url: Arc::clone(url),
                store: store.clone(),
                key: *key,
                access: Access::Take,
            }),
            _ => this,
        }
    }

    /// The view of the object; fetches it if need be.
    ///
    /// # Errors
    /// As [`try_get`](Self::try_get).
    pub fn into_view(this: Self) -> Result<T::View> {
        Self::resolve(&this).wait()
    }
}

impl<T: Object<Target = T, View = Decoded<T>>> Proxy<T> {
    /// A proxy of what `make` returns. It stays in this process.
    pub fn from_fn(make: impl Fn() -> Result<T> + Send + Sync + 'static) -> Self {
        Self::from_factory(move || make().map(Decoded::new))
    }

    /// The object itself; fetches it if need be.
    ///
    /// # Cost
    /// Clones the object if anything else holds it, such as the store's cache.
    ///
    /// # Errors
    /// As [`try_get`](Self::try_get).
    pub fn into_inner(this: Self) -> Result<T>
    where
        T: Clone,
    {
        let view = Self::into_view(this)?;
        Ok(view.try_unwrap().unwrap_or_else(|shared| (*shared).clone()))
    }
}

impl<T: Object + ?Sized> Deref for Proxy<T> {
    type Target = T::Target;

    /// Uses the object, fetching it the first time.
    ///
    /// # Panics
    /// When it cannot be fetched, with the caller's line, the type and the source. [`Proxy::try_get`] does not panic.
    #[track_caller]
    #[inline]
    fn deref(&self) -> &T::Target {
        match self.view.get() {
            Some(view) => view,
            None => resolve_or_panic(self),
        }
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn resolve_or_panic<T: Object + ?Sized>(proxy: &Proxy<T>) -> &T::Target {
    match Proxy::try_get(proxy) {
        Ok(target) => target,
        Err(error) => panic!("{proxy:?}: {error}"),
    }
}

impl<T: Object + ?Sized> Clone for Proxy<T> {
    /// # Cost
    /// One reference count, two once resolved; fetches nothing.
    fn clone(&self) -> Self {
        Self { view: self.view.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<T: Object + ?Sized> From<Token> for Proxy<T> {
    fn from(token: Token) -> Self {
        Self::from_source(Source::from_token(token))
    }
}

impl<T: Object + ?Sized> FromStr for Proxy<T> {
    type Err = Error;

    fn from_str(token: &str) -> Result<Self> {
        token.parse::<Token>().map(Self::from)
    }
}

impl<T: Object + ?Sized> Serialize for Proxy<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::token(self).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de, T: Object + ?Sized> Deserialize<'de> for Proxy<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Token::deserialize(deserializer).map(Self::from)
    }
}

impl<T: Object + ?Sized> IntoFuture for &Proxy<T> {
    type Output = Result<T::View>;
    type IntoFuture = Pending<T::View>;

    fn into_future(self) -> Pending<T::View> {
        Proxy::resolve(self)
    }
}

impl<T: Object + ?Sized> fmt::Debug for Proxy<T> {
    /// Never resolves: shows the type, the source and the state.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if Self::is_resolved(self) { "resolved" } else { "unresolved" };
        write!(f, "Proxy<{}>({:?}, {state})", type_name::<T>(), self.shared.source)
    }
}
