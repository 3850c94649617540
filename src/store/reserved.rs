//! Objects written in place: reserve, fill, commit.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

use super::Store;
use crate::codec::Object;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::pending::Pending;
use crate::region::RegionMut;
use crate::telemetry::Op;

/// An object of bytes that is being written in the memory where it will stay.
///
/// It is a [`RegionMut`]: append through [`BufMut`](bytes::BufMut) or [`std::io::Write`], then commit. Dropping it gives the memory back.
#[must_use = "memory that is neither committed nor dropped serves nobody"]
pub struct Reserved {
    store: Store,
    region: RegionMut,
}

impl Reserved {
    pub(super) fn new(store: Store, region: RegionMut) -> Self {
        Self { store, region }
    }

    /// Makes what was written an object of plain bytes.
    ///
    /// # Cost
    /// The connector's commit; copies nothing.
    pub fn commit_key(self) -> Pending<Key> {
        self.commit_as(<[u8]>::format()).1
    }

    /// Commits under a format and returns the store as well.
    pub(crate) fn commit_as(self, format: Format) -> (Store, Pending<Key>) {
        let start = self.store.clock();
        let committed = match self.store.check_put("commit") {
            Ok(()) => self.store.inner.connector.commit_with(self.region, format, &self.store.options),
            Err(error) => Pending::ready(Err(error)),
        };
        let observed = self.store.observe(Op::Put, start, committed, Key::len);
        (self.store, observed)
    }
}

impl Deref for Reserved {
    type Target = RegionMut;

    fn deref(&self) -> &RegionMut {
        &self.region
    }
}

impl DerefMut for Reserved {
    fn deref_mut(&mut self) -> &mut RegionMut {
        &mut self.region
    }
}

impl std::io::Write for Reserved {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.region.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reserved({:?} of {:?})", self.region, self.store)
    }
}

/// A slice that is being filled in the memory where it will stay: registered, 64-byte aligned.
///
/// Its elements hold some value from the start (zero in process memory, arbitrary in mapped memory), so it is used as any
/// `&mut [T]`. Dropping it gives the memory back.
///
/// # Examples
/// ```
/// use proxystore::{Proxy, Store};
///
/// let store = Store::open("memory://slice")?;
/// let mut numbers = store.reserve_slice::<f64>(1 << 10)?;
/// for (i, x) in numbers.iter_mut().enumerate() {
///     *x = i as f64;
/// }
/// let proxy: Proxy<[f64]> = numbers.commit().wait()?;
/// assert_eq!(proxy[1023], 1023.0);
/// # Ok::<(), proxystore::Error>(())
/// ```
#[must_use = "memory that is neither committed nor dropped serves nobody"]
pub struct ReservedSlice<T> {
    reserved: Reserved,
    elements: PhantomData<fn() -> T>,
}

impl<T: Pod + Send + Sync> ReservedSlice<T> {
    pub(super) fn new(mut reserved: Reserved) -> Result<Self> {
        if align_of::<T>() > crate::region::ALIGNMENT || size_of::<T>() == 0 {
            let context = format!("elements of {} bytes, aligned to {}", size_of::<T>(), align_of::<T>());
            return Err(Error::new(ErrorKind::Unsupported, "reserve", context));
        }
        reserved.region.initialize();
        Ok(Self { reserved, elements: PhantomData })
    }

    /// Makes the slice an object and returns its key.
    ///
    /// # Cost
    /// The connector's commit; copies nothing.
    pub fn commit_key(self) -> Pending<Key> {
        self.commit_parts().1
    }

    pub(crate) fn commit_parts(self) -> (Store, Pending<Key>) {
        self.reserved.commit_as(<[T]>::format())
    }
}

impl<T: Pod> Deref for ReservedSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // Aligned and a whole number of elements by `reserve_slice`, so this never panics.
        bytemuck::cast_slice(self.reserved.region.as_slice())
    }
}

impl<T: Pod> DerefMut for ReservedSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.reserved.region.initialize())
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for ReservedSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReservedSlice({} elements of {:?})", self.len(), self.reserved.store)
    }
}
