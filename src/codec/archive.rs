//! rkyv archives: structured data viewed in place after one validation.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;

use rkyv::api::high::{HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;

use super::encoder::Encoder;
use super::object::{Object, corrupt};
use super::{fingerprint, id};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Format;
use crate::region::Region;

/// A value stored as an rkyv archive; a proxy of it dereferences to `T::Archived`, in place.
///
/// # Cost
/// Encoding goes through one buffer and is copied once. Reading validates the archive once, linear in its size, and
/// copies nothing; bytes from other processes are never trusted.
#[derive(Clone, Debug)]
pub struct Archive<T>(pub T);

/// An archive in the memory of its region.
pub struct ArchiveView<T: rkyv::Archive> {
    root: NonNull<T::Archived>,
    region: Region,
    archive: PhantomData<fn() -> T>,
}

impl<T: rkyv::Archive> ArchiveView<T> {
    /// The memory behind.
    pub fn region(&self) -> &Region {
        &self.region
    }
}

impl<T> Object for Archive<T>
where
    T: rkyv::Archive + for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>> + 'static,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>> + Send + Sync + 'static,
{
    type Target = T::Archived;
    type View = ArchiveView<T>;

    fn format() -> Format {
        Format { codec: id::RKYV, fingerprint: fingerprint::of_plain::<T::Archived>() }
    }

    fn encode(&self, out: &mut Encoder<'_>) -> Result<()> {
        let bytes = rkyv::to_bytes::<rancor::Error>(&self.0).map_err(|error| {
            let context = format!("rkyv cannot archive `{}`: {error}", type_name::<T>());
            Error::new(ErrorKind::Codec, "put", context)
        })?;
        out.reserve(bytes.len())?;
        out.write(&bytes)
    }

    fn view(region: Region) -> Result<ArchiveView<T>> {
        let root = rkyv::access::<T::Archived, rancor::Error>(&region).map_err(corrupt::<T>)?;
        Ok(ArchiveView { root: NonNull::from(root), region, archive: PhantomData })
    }
}

impl<T: rkyv::Archive> Deref for ArchiveView<T> {
    type Target = T::Archived;

    fn deref(&self) -> &T::Archived {
        // SAFETY: `view` validated the archive at this address, inside the bytes of the region, which keeps them alive and
        // unchanged while `self` lives; moving a region does not move its bytes.
        unsafe { self.root.as_ref() }
    }
}

impl<T: rkyv::Archive> Clone for ArchiveView<T> {
    fn clone(&self) -> Self {
        Self { root: self.root, region: self.region.clone(), archive: PhantomData }
    }
}

// SAFETY: a view only gives shared access to immutable bytes read as `T::Archived`.
unsafe impl<T: rkyv::Archive> Send for ArchiveView<T> where T::Archived: Sync {}
// SAFETY: see `Send`.
unsafe impl<T: rkyv::Archive> Sync for ArchiveView<T> where T::Archived: Sync {}

impl<T: rkyv::Archive> fmt::Debug for ArchiveView<T>
where
    T::Archived: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
