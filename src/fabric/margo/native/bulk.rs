//! `Bulk`: memory that Mercury may move bytes from or to, here or at a peer.

use std::ffi::c_void;
use std::fmt;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

use bytes::Bytes;
use margo_sys::{HG_BULK_READ_ONLY, HG_BULK_WRITE_ONLY, HG_SUCCESS, hg_bulk_t};

use super::{Instance, generation};
use crate::error::Result;
use crate::fabric::{Landing, Segments};
use crate::region::RegionMut;

/// Registered memory, or the description of a peer's.
pub(in super::super) struct Bulk {
    pub(super) raw: hg_bulk_t,
    /// Addresses in this process; empty for a peer's.
    pub(super) memory: Range<usize>,
    descriptor: Vec<u8>,
    instance: Arc<Instance>,
    /// Dropped after the registration has ended.
    _keep: Keep,
}

// SAFETY: as for `Instance`; its reference count is atomic.
unsafe impl Send for Bulk {}
// SAFETY: as above.
unsafe impl Sync for Bulk {}

/// What keeps the memory where it is.
enum Keep {
    Segments {
        _memory: Arc<dyn Segments>,
    },
    Bytes {
        _part: Bytes,
    },
    /// The transfer that it was made for, who has the region, or the peer.
    Others,
}

/// What registered memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Access {
    /// Peers read it.
    Parts,
    /// This process pulls into it. Mercury calls that writing; its descriptor is never given to a peer.
    Landings,
}

impl Bulk {
    /// Registers a mapping of a segment.
    ///
    /// # Errors
    /// What Mercury says.
    pub(in super::super) fn of_segment(
        instance: &Arc<Instance>,
        segments: &Arc<dyn Segments>,
        addresses: Range<usize>,
        access: Access,
    ) -> Result<Self> {
        Self::register(instance, addresses, access, Keep::Segments { _memory: Arc::clone(segments) })
    }

    /// Registers bytes for peers to read.
    ///
    /// # Errors
    /// What Mercury says.
    pub(in super::super) fn of_bytes(instance: &Arc<Instance>, part: Bytes) -> Result<Self> {
        let start = part.as_ptr().addr();
        Self::register(instance, start..start + part.len(), Access::Parts, Keep::Bytes { _part: part })
    }

    /// Registers all of a region's memory, which whoever has both keeps for longer.
    ///
    /// # Errors
    /// What Mercury says.
    pub(in super::super) fn of_region(instance: &Arc<Instance>, region: &RegionMut, access: Access) -> Result<Self> {
        let start = region.as_slice().as_ptr().addr();
        Self::register(instance, start..start + region.capacity(), access, Keep::Others)
    }

    /// Registers a landing; the transfer that has it keeps it for longer.
    pub(super) fn of_landing(instance: &Arc<Instance>, landing: &Landing) -> Result<Self> {
        Self::register(instance, landing.addresses(), Access::Landings, Keep::Others)
    }

    fn register(instance: &Arc<Instance>, memory: Range<usize>, access: Access, keep: Keep) -> Result<Self> {
        let margo = instance.margo;
        let flags = if access == Access::Parts { HG_BULK_READ_ONLY } else { HG_BULK_WRITE_ONLY };
        let mut start: *mut c_void = ptr::with_exposed_provenance_mut(memory.start);
        let (size, mut raw) = (memory.len() as u64, ptr::null_mut());
        // SAFETY: one address and one size; the memory stays as long as the registration, see `Keep`.
        let outcome = unsafe { margo.margo_bulk_create(instance.mid, 1, &mut start, &size, flags, &mut raw) };
        if outcome != HG_SUCCESS {
            return Err(instance.failed("register", outcome, &format!("{} bytes of memory", memory.len())));
        }
        // Whatever happens now, it is freed again.
        let mut this = Self { raw, memory, descriptor: Vec::new(), instance: Arc::clone(instance), _keep: keep };
        if access == Access::Parts {
            // SAFETY: the handle lives, and the buffer has the length that is said. No flags: see `margo_sys`.
            let outcome = unsafe {
                this.descriptor = vec![0; margo.HG_Bulk_get_serialize_size(raw, 0) as usize];
                margo.HG_Bulk_serialize(this.descriptor.as_mut_ptr().cast(), this.descriptor.len() as u64, 0, raw)
            };
            if outcome != HG_SUCCESS {
                return Err(instance.failed("register", outcome, "the description of memory"));
            }
        }
        Ok(this)
    }

    /// The memory that a peer describes.
    ///
    /// # Errors
    /// `Corrupt` for what describes none.
    pub(in super::super) fn of_peer(instance: &Arc<Instance>, descriptor: &[u8]) -> Result<Self> {
        let margo = instance.margo;
        let mut raw = ptr::null_mut();
        // SAFETY: bytes of the length that is said; Mercury checks what it reads of them.
        let outcome = unsafe {
            let class = margo.margo_get_class(instance.mid);
            margo.HG_Bulk_deserialize(class, &mut raw, descriptor.as_ptr().cast(), descriptor.len() as u64)
        };
        if outcome != HG_SUCCESS {
            return Err(instance.failed("request", outcome, "the description of a peer's memory"));
        }
        Ok(Self { raw, memory: 0..0, descriptor: Vec::new(), instance: Arc::clone(instance), _keep: Keep::Others })
    }

    /// What a peer needs to read it.
    pub(in super::super) fn descriptor(&self) -> &[u8] {
        &self.descriptor
    }

    /// How far behind its first byte a range of addresses lies, if it is registered.
    pub(in super::super) fn offset_of(&self, addresses: &Range<usize>) -> Option<usize> {
        let within = self.memory.start <= addresses.start && addresses.end <= self.memory.end;
        within.then(|| addresses.start - self.memory.start)
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        if self.instance.generation == generation() {
            // SAFETY: made once, freed once; transfers own those that they use.
            unsafe { self.instance.margo.margo_bulk_free(self.raw) };
        }
    }
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bulk({:#x?})", self.memory)
    }
}
