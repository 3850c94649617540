//! `Room`: memory for an object of another node, whose holder may be used again.

use std::any::Any;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::BufMut;

use super::{Inner, Memory, Region, RegionMut};

/// Memory for an object of another node, empty or written.
pub(crate) enum Room {
    Own(RegionMut),
    /// Memory whose holder is used again, and how much of it is written.
    Reused(Reused, usize),
}

impl Room {
    /// Memory that nobody else has, empty.
    pub(crate) fn reusing(memory: Arc<dyn Reuse>) -> Self {
        Self::Reused(Reused(ManuallyDrop::new(memory)), 0)
    }

    pub(crate) fn capacity(&self) -> usize {
        match self {
            Self::Own(region) => region.capacity(),
            Self::Reused(memory, _) => memory.0.capacity(),
        }
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Own(region) => region.len(),
            Self::Reused(_, len) => *len,
        }
    }

    /// What was written so far.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Own(region) => region.as_slice(),
            // SAFETY: so many bytes are valid by the contract of `Memory`, and were written: see `advance`.
            Self::Reused(memory, len) => unsafe { std::slice::from_raw_parts(memory.as_ptr().as_ptr(), *len) },
        }
    }

    /// First byte that is not written, with the room behind it.
    pub(crate) fn spare(&mut self) -> *mut u8 {
        match self {
            Self::Own(region) => region.spare_capacity_mut().as_mut_ptr().cast(),
            // SAFETY: at most the capacity is written.
            Self::Reused(memory, len) => unsafe { memory.as_ptr().as_ptr().add(*len) },
        }
    }

    /// Notes that the next bytes are written.
    ///
    /// # Safety
    /// They are.
    pub(crate) unsafe fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.capacity() - self.len(), "advanced {bytes} bytes beyond {self:?}");
        match self {
            // SAFETY: the caller's.
            Self::Own(region) => unsafe { region.advance_mut(bytes) },
            Self::Reused(_, len) => *len += bytes,
        }
    }

    /// Ends writing and keeps the memory, as [`RegionMut::freeze`].
    ///
    /// # Cost
    /// Nothing of memory that is used again.
    pub(crate) fn freeze(self) -> Region {
        match self {
            Self::Own(region) => region.freeze(),
            Self::Reused(memory, len) => Region(Inner::Reused(memory, len)),
        }
    }
}

impl From<RegionMut> for Room {
    fn from(region: RegionMut) -> Self {
        Self::Own(region)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Room({} of {} B)", self.len(), self.capacity())
    }
}

/// Memory whose holder serves one reservation after another: neither a reservation nor its region takes any of the allocator's.
pub(crate) trait Reuse: Memory {
    /// Somebody lets go of it. Where nobody else has it, gives the memory back and keeps the holder for another reservation.
    fn release(self: Arc<Self>);

    /// The holder as [`Any`].
    fn into_any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// One of those who have such memory: a [`Room`] alone, or the clones of a region.
pub(crate) struct Reused(ManuallyDrop<Arc<dyn Reuse>>);

impl Reused {
    pub(super) fn as_ptr(&self) -> NonNull<u8> {
        self.0.as_ptr()
    }

    /// The holder as an `M`.
    pub(crate) fn downcast<M: Memory>(self) -> Option<Arc<M>> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: taken once: `this` is not dropped.
        let memory = unsafe { ManuallyDrop::take(&mut this.0) };
        memory.into_any_arc().downcast::<M>().ok()
    }
}

impl Clone for Reused {
    fn clone(&self) -> Self {
        Self(ManuallyDrop::new(Arc::clone(&self.0)))
    }
}

impl Drop for Reused {
    fn drop(&mut self) {
        // SAFETY: taken once, as this ends.
        unsafe { ManuallyDrop::take(&mut self.0) }.release();
    }
}
