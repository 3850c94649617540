//! `Cell`: a leased cell as the memory of a reservation.

use std::ptr::NonNull;
use std::sync::Arc;

use super::{Client, Lease};
use crate::error::{Error, ErrorKind, Result};
use crate::region::{Memory, RegionMut};

/// Memory for one object, of which the lease's cell has at least as much.
struct Cell {
    lease: Lease,
    len: usize,
}

// SAFETY: a lease's cell is aligned to 64 bytes, has at least the capacity of the length that it was leased for, and belongs
// to the lease alone; mapped pages hold values from the start.
unsafe impl Memory for Cell {
    fn as_ptr(&self) -> NonNull<u8> {
        self.lease.as_ptr()
    }

    fn capacity(&self) -> usize {
        self.len
    }

    fn initialized(&self) -> usize {
        self.len
    }
}

impl Client {
    /// Leases a cell for an object of at most `len` bytes.
    ///
    /// # Errors
    /// As [`lease`](Self::lease).
    pub(crate) fn reserve(self: &Arc<Self>, len: usize) -> Result<RegionMut> {
        let lease = self.lease(len as u64)?;
        Ok(RegionMut::new(Box::new(Cell { lease, len })))
    }

    /// The lease under a reservation of this client and how much of it is written, or a fresh one with a copy of another's
    /// bytes.
    ///
    /// # Errors
    /// As [`lease`](Self::lease).
    pub(crate) fn lease_of(self: &Arc<Self>, region: RegionMut) -> Result<(Lease, u64)> {
        match region.into_memory::<Cell>() {
            Ok((cell, len)) if Arc::ptr_eq(cell.lease.client(), self) => Ok((cell.lease, len as u64)),
            Ok((cell, len)) => {
                let mut region = RegionMut::new(cell);
                region.initialize();
                self.copied(&region.as_slice()[..len])
            }
            Err(region) => self.copied(region.as_slice()),
        }
    }

    /// A lease whose cell has a copy of these bytes.
    ///
    /// # Errors
    /// As [`lease`](Self::lease).
    pub(crate) fn copied(self: &Arc<Self>, bytes: &[u8]) -> Result<(Lease, u64)> {
        let mut region = self.reserve(bytes.len())?;
        bytes::BufMut::put_slice(&mut region, bytes);
        match region.into_memory::<Cell>() {
            Ok((cell, len)) => Ok((cell.lease, len as u64)),
            Err(_) => Err(Error::new(ErrorKind::Io, "commit", "a reservation of another connector")),
        }
    }
}
