//! How stores make proxies.

use std::fmt;
use std::marker::PhantomData;
use std::sync::OnceLock;

use bytemuck::Pod;

use super::Proxy;
use crate::codec::{Codec, Decoded, Object};
use crate::connector::ConnectorExt;
use crate::error::{Error, ErrorKind, Result};
use crate::factory::Source;
use crate::key::Key;
use crate::pending::Pending;
use crate::store::{Reserved, ReservedSlice, Store};
use crate::token::Access;

/// # Proxies
impl Store {
    /// Stores `value` and returns a proxy of it.
    ///
    /// # Cost
    /// That of [`put`](Store::put), and three small allocations.
    ///
    /// # Errors
    /// As [`put`](Store::put).
    pub fn proxy<T: Object + ?Sized>(&self, value: &T) -> Pending<Proxy<T>> {
        self.proxy_of(self.put(value))
    }

    /// As [`proxy`](Self::proxy), by a codec of yours. Who resolves it needs that codec too.
    pub fn proxy_with<T: Object + ?Sized>(&self, value: &T, codec: &impl Codec<T>) -> Pending<Proxy<T>> {
        self.proxy_of(self.put_with(value, codec))
    }

    /// Stores `value` and returns a proxy that has it already: ProxyStore's `populate_target`.
    ///
    /// Copies of the proxy that leave the process resolve through the store as any other.
    ///
    /// # Errors
    /// As [`put`](Store::put).
    pub fn proxy_owned<T>(&self, value: T) -> Pending<Proxy<T>>
    where
        T: Object<Target = T, View = Decoded<T>> + Send + Sync,
    {
        let proxy = self.proxy(&value);
        let view = Decoded::new(value);
        proxy.and_then(move |mut proxy| {
            proxy.view = OnceLock::from(view.clone());
            // Nobody else can have set it: the proxy was made a line ago.
            let _ = proxy.shared.view.set(view);
            Ok(proxy)
        })
    }

    /// Stores `value` and returns a one-time proxy: see [`Proxy::once`].
    ///
    /// # Errors
    /// As [`put`](Store::put).
    pub fn proxy_once<T: Object + ?Sized>(&self, value: &T) -> Pending<Proxy<T>> {
        self.proxy(value).and_then(|proxy| Ok(Proxy::once(proxy)))
    }

    /// Stores several values, all or none, and returns proxies of them.
    ///
    /// # Errors
    /// As [`put_batch`](Store::put_batch).
    pub fn proxy_batch<'a, T: Object + ?Sized>(
        &self,
        values: impl IntoIterator<Item = &'a T>,
    ) -> Pending<Vec<Proxy<T>>> {
        let store = self.clone();
        self.put_batch(values).and_then(move |keys| {
            Ok(keys.into_iter().map(|key| Proxy::from_source(Source::object(&store, key, Access::Get))).collect())
        })
    }

    /// A proxy of an object that was put before. Asks nobody whether it exists.
    ///
    /// # Errors
    /// `ForeignKey` when another kind of connector made the key.
    pub fn proxy_from_key<T: Object + ?Sized>(&self, key: &Key) -> Result<Proxy<T>> {
        self.connector().check_scheme("proxy", key)?;
        let access = if key.is_len_known() { Access::Get } else { Access::WhenCommitted };
        Ok(Proxy::from_source(Source::object(self, *key, access)))
    }

    /// A proxy of an object that does not exist yet, and the promise to make it: ProxyStore's `Future`.
    ///
    /// Whoever uses the proxy waits until the promise is kept, by notification where the connector can, at most for the
    /// store's deadline.
    ///
    /// # Errors
    /// `Unsupported` when the connector has no deferred keys.
    ///
    /// # Examples
    /// ```
    /// use proxystore::Store;
    ///
    /// let store = Store::open("memory://promise")?;
    /// let (promise, proxy) = store.promise::<str>()?;
    /// let consumer = std::thread::spawn(move || proxy.len());
    /// promise.set("made later").wait()?;
    /// assert_eq!(consumer.join().expect("no panic"), 10);
    /// # Ok::<(), proxystore::Error>(())
    /// ```
    pub fn promise<T: Object + ?Sized>(&self) -> Result<(Promise<T>, Proxy<T>)> {
        let key = self.connector().declare(self.format::<T>())?;
        let proxy = Proxy::from_source(Source::object(self, key, Access::WhenCommitted));
        Ok((Promise { store: self.clone(), key, kept: false, object: PhantomData }, proxy))
    }

    fn proxy_of<T: Object + ?Sized>(&self, put: Pending<Key>) -> Pending<Proxy<T>> {
        let store = self.clone();
        put.and_then(move |key| Ok(Proxy::from_source(Source::object(&store, key, Access::Get))))
    }
}

impl Reserved {
    /// Makes what was written an object and returns a proxy of its bytes.
    ///
    /// # Cost
    /// The connector's commit; copies nothing.
    pub fn commit(self) -> Pending<Proxy<[u8]>> {
        let (store, key) = self.commit_as(<[u8]>::format());
        store.proxy_of(key)
    }
}

impl<T: Pod + Send + Sync> ReservedSlice<T> {
    /// Makes the slice an object and returns a proxy of it.
    ///
    /// # Cost
    /// The connector's commit; copies nothing.
    pub fn commit(self) -> Pending<Proxy<[T]>> {
        let (store, key) = self.commit_parts();
        store.proxy_of(key)
    }
}

/// The duty to make the object of a proxy that is out already.
///
/// Dropping it instead gives the key up, which ends the waiting of consumers with an error where the connector notifies.
#[must_use = "dropping a promise breaks it"]
pub struct Promise<T: Object + ?Sized> {
    store: Store,
    key: Key,
    kept: bool,
    object: PhantomData<fn(&T)>,
}

impl<T: Object + ?Sized> Promise<T> {
    /// The declared key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Makes `value` the object.
    ///
    /// # Cost
    /// As [`Store::put`]; wakes who waits.
    ///
    /// # Errors
    /// As [`Store::put`]; `AlreadyExists` when somebody else kept it.
    pub fn set(mut self, value: &T) -> Pending<()> {
        match self.store.commit_at(&self.key, value) {
            Ok(pending) => {
                self.kept = true;
                let (store, key) = (self.store.clone(), self.key);
                pending.then(move |result| {
                    // After a timeout it may be kept yet, and what somebody else kept is not ours to remove.
                    let broken = |error: &Error| !matches!(error.kind(), ErrorKind::Timeout | ErrorKind::AlreadyExists);
                    if result.as_ref().is_err_and(broken) {
                        drop(store.evict(&key).start());
                    }
                    result
                })
            }
            // The value could not be encoded, so dropping `self` breaks the promise, and consumers learn it.
            Err(error) => Pending::ready(Err(error)),
        }
    }
}

impl<T: Object + ?Sized> Drop for Promise<T> {
    fn drop(&mut self) {
        if !self.kept {
            // A failure leaves consumers to their deadline; there is nobody to tell.
            drop(self.store.evict(&self.key).start());
        }
    }
}

impl<T: Object + ?Sized> fmt::Debug for Promise<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Promise({:?} of {:?})", self.key, self.store)
    }
}
