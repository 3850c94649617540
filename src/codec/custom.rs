//! Codecs of the user's own: per call, per store, per process.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::encoder::Encoder;
use super::id;
use super::object::Object;
use crate::error::{Error, ErrorKind, Result};
use crate::region::Region;

/// Another way to write and read objects of type `T`.
///
/// The id travels in the key; the code does not. A consumer finds the codec by id where it was registered: with the call
/// ([`Store::get_with`](crate::Store::get_with)), with the store ([`StoreBuilder::codec`](crate::store::StoreBuilder::codec)),
/// or in the process ([`register`]).
pub trait Codec<T: Object + ?Sized>: Send + Sync + 'static {
    /// Number of the codec, at least [`id::FIRST_CUSTOM`], agreed among all programs that exchange objects.
    fn id(&self) -> u16;

    /// Writes `value`.
    ///
    /// # Errors
    /// Whatever makes it impossible; nothing stays behind then, nor when it panics.
    fn encode(&self, value: &T, out: &mut Encoder<'_>) -> Result<()>;

    /// Makes a view of what [`encode`](Self::encode) wrote, or of any other bytes that somebody passed off as that.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no such value.
    fn decode(&self, region: Region) -> Result<T::View>;
}

/// Makes `codec` the one that this process reads objects of type `T` and of the codec's id with.
///
/// # Errors
/// `Config` when the id is reserved, `AlreadyExists` when another codec has it for `T`.
pub fn register<T: Object + ?Sized>(codec: impl Codec<T>) -> Result<()> {
    let mut codecs = process().write().unwrap_or_else(PoisonError::into_inner);
    codecs.insert::<T>(Arc::new(codec))
}

/// Makes a codec of two functions.
///
/// # Examples
/// ```
/// use proxystore::{Error, ErrorKind, Store, codec};
///
/// // Counts to be stored as decimal text.
/// let decimal = codec::from_fns::<u64>(
///     0x8001,
///     |n, out| out.write(n.to_string().as_bytes()),
///     |region| {
///         let text = std::str::from_utf8(&region).ok().and_then(|text| text.parse().ok());
///         let n: u64 = text.ok_or_else(|| Error::new(ErrorKind::Corrupt, "get", "not a number"))?;
///         Ok(codec::Decoded::new(n))
///     },
/// );
/// let store = Store::open("memory://decimal")?;
/// let key = store.put_with(&42, &decimal).wait()?;
/// assert_eq!(*store.get_with(&key, decimal).wait()?.expect("just put"), 42);
/// # Ok::<(), Error>(())
/// ```
pub fn from_fns<T: Object + ?Sized>(
    id: u16,
    encode: impl Fn(&T, &mut Encoder<'_>) -> Result<()> + Send + Sync + 'static,
    decode: impl Fn(Region) -> Result<T::View> + Send + Sync + 'static,
) -> impl Codec<T> + Clone {
    FnCodec { id, functions: Arc::new((encode, decode)) }
}

struct FnCodec<E, D> {
    id: u16,
    functions: Arc<(E, D)>,
}

impl<E, D> Clone for FnCodec<E, D> {
    fn clone(&self) -> Self {
        Self { id: self.id, functions: Arc::clone(&self.functions) }
    }
}

impl<T, E, D> Codec<T> for FnCodec<E, D>
where
    T: Object + ?Sized,
    E: Fn(&T, &mut Encoder<'_>) -> Result<()> + Send + Sync + 'static,
    D: Fn(Region) -> Result<T::View> + Send + Sync + 'static,
{
    fn id(&self) -> u16 {
        self.id
    }

    fn encode(&self, value: &T, out: &mut Encoder<'_>) -> Result<()> {
        self.functions.0(value, out)
    }

    fn decode(&self, region: Region) -> Result<T::View> {
        self.functions.1(region)
    }
}

/// Registered codecs, by type and id, with the one that a store writes each type with.
#[derive(Clone, Default)]
pub(crate) struct Codecs {
    by_id: HashMap<(TypeId, u16), Shared>,
    preferred: HashMap<TypeId, Shared>,
}

/// An `Arc<dyn Codec<T>>` whose `T` is known from the map's key.
type Shared = Arc<dyn Any + Send + Sync>;

impl Codecs {
    /// Adds a codec, which also becomes the default for `T`.
    pub(crate) fn insert<T: Object + ?Sized>(&mut self, codec: Arc<dyn Codec<T>>) -> Result<()> {
        check_id(codec.id())?;
        let (this, number) = (TypeId::of::<T>(), codec.id());
        if self.by_id.contains_key(&(this, number)) {
            let context = format!("codec {number:#06x} is registered for `{}`", std::any::type_name::<T>());
            return Err(Error::new(ErrorKind::AlreadyExists, "register", context));
        }
        let shared: Shared = Arc::new(codec);
        self.by_id.insert((this, number), Arc::clone(&shared));
        self.preferred.insert(this, shared);
        Ok(())
    }

    /// The codec that `T` is written with, if it is not the type's own.
    pub(crate) fn preferred<T: Object + ?Sized>(&self) -> Option<Arc<dyn Codec<T>>> {
        if self.preferred.is_empty() {
            return None;
        }
        self.preferred.get(&TypeId::of::<T>()).and_then(typed)
    }

    /// The codec of that id: of this table, else of the process.
    pub(crate) fn find<T: Object + ?Sized>(&self, number: u16) -> Option<Arc<dyn Codec<T>>> {
        let entry = (TypeId::of::<T>(), number);
        if let Some(codec) = self.by_id.get(&entry) {
            return typed(codec);
        }
        process().read().unwrap_or_else(PoisonError::into_inner).by_id.get(&entry).and_then(typed)
    }
}

impl fmt::Debug for Codecs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.by_id.keys().map(|(_, number)| number)).finish()
    }
}

/// Refuses ids that are not the user's to give.
pub(crate) fn check_id(number: u16) -> Result<()> {
    if number >= id::FIRST_CUSTOM {
        return Ok(());
    }
    let context = format!("codec id {number:#06x} is reserved; choose {:#06x} or above", id::FIRST_CUSTOM);
    Err(Error::new(ErrorKind::Config, "register", context))
}

fn typed<T: Object + ?Sized>(shared: &Shared) -> Option<Arc<dyn Codec<T>>> {
    shared.downcast_ref::<Arc<dyn Codec<T>>>().cloned()
}

fn process() -> &'static RwLock<Codecs> {
    static PROCESS: OnceLock<RwLock<Codecs>> = OnceLock::new();
    PROCESS.get_or_init(RwLock::default)
}
