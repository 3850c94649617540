//! `Cell`: a leased cell as the memory of a reservation.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Client, Lease};
use crate::error::{Error, ErrorKind, Result};
use crate::process;
use crate::region::{self, Memory, RegionMut, Reuse};
use crate::sync::lock;

/// Memory for one object, of which the lease's cell has at least as much; without a lease while it is kept for another one.
pub(super) struct Cell {
    lease: Option<Lease>,
    len: usize,
}

// SAFETY: a lease's cell is aligned to 64 bytes, has at least the capacity of the length that it was leased for, and belongs
// to the lease alone; mapped pages hold values from the start. It has a lease as long as anybody but the client has it.
unsafe impl Memory for Cell {
    fn as_ptr(&self) -> NonNull<u8> {
        self.lease.as_ref().map_or(region::nowhere(), Lease::as_ptr)
    }

    fn capacity(&self) -> usize {
        self.len
    }

    fn initialized(&self) -> usize {
        self.len
    }
}

impl Reuse for Cell {
    fn release(mut self: Arc<Self>) {
        // Of two that let go at the same time neither may see that it is the last: then the allocator gets it back.
        let Some(cell) = Arc::get_mut(&mut self) else { return };
        if let Some(lease) = cell.lease.take() {
            let client = Arc::clone(lease.client());
            drop(lease);
            client.keep_cell(self);
        }
    }

    fn into_any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Client {
    /// Leases a cell for an object of at most `len` bytes.
    ///
    /// # Errors
    /// As [`lease`](Self::lease).
    pub(crate) fn reserve(self: &Arc<Self>, len: usize) -> Result<RegionMut> {
        let lease = Some(self.lease(len as u64)?);
        let kept = lock(&self.cells).pop();
        if let Some(mut kept) = kept {
            if let Some(cell) = Arc::get_mut(&mut kept) {
                *cell = Cell { lease, len };
                return Ok(RegionMut::reusing(kept));
            }
        }
        Ok(RegionMut::reusing(Arc::new(Cell { lease, len })))
    }

    /// Keeps a cell without a lease, for the next reservation.
    fn keep_cell(&self, cell: Arc<Cell>) {
        // A forked child's lock may be held for ever.
        if process::generation() == self.generation {
            let mut cells = lock(&self.cells);
            if cells.len() < MOST_KEPT {
                cells.push(cell);
            }
        }
    }

    /// Takes the lease out of a cell that a reservation had, and keeps the cell.
    fn lease_in(cell: Arc<Cell>) -> Option<Lease> {
        let mut cell = cell;
        let lease = Arc::get_mut(&mut cell)?.lease.take()?;
        lease.client().keep_cell(cell);
        Some(lease)
    }

    /// The lease under a reservation of this client and how much of it is written, or a fresh one with a copy of another's
    /// bytes.
    ///
    /// # Errors
    /// As [`lease`](Self::lease).
    pub(crate) fn lease_of(self: &Arc<Self>, region: RegionMut) -> Result<(Lease, u64)> {
        let (cell, len) = match region.into_reused::<Cell>() {
            Ok(own) => own,
            Err(region) => return self.copied(region.as_slice()),
        };
        if cell.lease.as_ref().is_some_and(|lease| Arc::ptr_eq(lease.client(), self)) {
            return Ok((Self::lease_in(cell).ok_or_else(foreign)?, len as u64));
        }
        let mut region = RegionMut::reusing(cell);
        region.initialize();
        self.copied(&region.as_slice()[..len])
    }

    /// A lease whose cell has a copy of these bytes.
    ///
    /// # Errors
    /// As [`lease`](Self::lease).
    pub(crate) fn copied(self: &Arc<Self>, bytes: &[u8]) -> Result<(Lease, u64)> {
        let mut region = self.reserve(bytes.len())?;
        bytes::BufMut::put_slice(&mut region, bytes);
        let (cell, len) = region.into_reused::<Cell>().map_err(|_| foreign())?;
        Ok((Self::lease_in(cell).ok_or_else(foreign)?, len as u64))
    }
}

fn foreign() -> Error {
    Error::new(ErrorKind::Io, "commit", "a reservation of another connector")
}

/// Most cells that are kept for reservations to come, of 80 bytes each: as many as are often under way at a time.
pub(super) const MOST_KEPT: usize = 256;
