//! `Cell`: a leased cell as the memory of a reservation.

#[cfg(feature = "tcp")]
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Client, Lease};
use crate::error::{Error, ErrorKind, Result};
#[cfg(feature = "tcp")]
use crate::process;
#[cfg(feature = "tcp")]
use crate::region::{self, Reuse, Room};
use crate::region::{Memory, RegionMut};
#[cfg(feature = "tcp")]
use crate::sync::lock;

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

/// The same, used again: without a lease while nobody but the client has it.
#[cfg(feature = "tcp")]
pub(super) struct Again {
    lease: Option<Lease>,
    len: usize,
}

// SAFETY: as of a `Cell`, of the lease that it has as long as anybody but the client has it.
#[cfg(feature = "tcp")]
unsafe impl Memory for Again {
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

#[cfg(feature = "tcp")]
impl Reuse for Again {
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
        let lease = self.lease(len as u64)?;
        Ok(RegionMut::new(Box::new(Cell { lease, len })))
    }

    /// As [`reserve`](Self::reserve), for an object that comes from another node.
    ///
    /// # Cost
    /// 40 ns more than `reserve`, for looks at who else has what is used again; neither the reservation nor its region asks the
    /// allocator for memory.
    ///
    /// # Errors
    /// As `reserve`.
    #[cfg(feature = "tcp")]
    pub(crate) fn reserve_again(self: &Arc<Self>, len: usize) -> Result<Room> {
        let lease = Some(self.lease(len as u64)?);
        let kept = lock(&self.cells).pop();
        if let Some(mut kept) = kept {
            if let Some(cell) = Arc::get_mut(&mut kept) {
                *cell = Again { lease, len };
                return Ok(Room::reusing(kept));
            }
        }
        Ok(Room::reusing(Arc::new(Again { lease, len })))
    }

    /// Keeps a cell without a lease, for the next reservation.
    #[cfg(feature = "tcp")]
    fn keep_cell(&self, cell: Arc<Again>) {
        // A forked child's lock may be held for ever.
        if process::generation() == self.generation {
            let mut cells = lock(&self.cells);
            if cells.len() < MOST_KEPT {
                cells.push(cell);
            }
        }
    }

    /// The lease under a reservation of this client and how much of it is written, or a fresh one with a copy of another's
    /// bytes.
    ///
    /// # Errors
    /// As [`lease`](Self::lease).
    pub(crate) fn lease_of(self: &Arc<Self>, region: RegionMut) -> Result<(Lease, u64)> {
        match region.into_memory::<Cell>() {
            Ok((cell, len)) if Arc::ptr_eq(cell.lease.client(), self) => Ok((cell.lease, len as u64)),
            Ok((cell, len)) => self.copy_of(RegionMut::new(cell), len),
            Err(region) => self.copied(region.as_slice()),
        }
    }

    /// As [`lease_of`](Self::lease_of), of a [`Room`].
    ///
    /// # Errors
    /// As `lease_of`.
    #[cfg(feature = "tcp")]
    pub(crate) fn lease_in(self: &Arc<Self>, room: Room) -> Result<(Lease, u64)> {
        let (memory, len) = match room {
            Room::Own(region) => return self.lease_of(region),
            Room::Reused(memory, len) => (memory, len as u64),
        };
        let mut cell = memory.downcast::<Again>().ok_or_else(foreign)?;
        let lease = Arc::get_mut(&mut cell).and_then(|cell| cell.lease.take()).ok_or_else(foreign)?;
        match Arc::ptr_eq(lease.client(), self) {
            true => {
                self.keep_cell(cell);
                Ok((lease, len))
            }
            false => Err(foreign()),
        }
    }

    /// A lease with a copy of the first bytes of another client's cell.
    fn copy_of(self: &Arc<Self>, mut region: RegionMut, len: usize) -> Result<(Lease, u64)> {
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
        let (cell, len) = region.into_memory::<Cell>().map_err(|_| foreign())?;
        Ok((cell.lease, len as u64))
    }
}

fn foreign() -> Error {
    Error::new(ErrorKind::Io, "commit", "a reservation of another connector")
}

/// Most [`Again`]s that are kept for reservations to come, of 80 bytes each: as many as are often under way at a time.
#[cfg(feature = "tcp")]
const MOST_KEPT: usize = 256;

#[cfg(all(test, feature = "tcp", not(miri)))]
mod tests {
    use std::time::Duration;

    use super::super::Options;
    use super::*;
    use crate::fabric::Landing;

    #[test]
    fn cells_are_used_again_and_not_more_than_some_are_kept() {
        let options = Options {
            namespace: format!("test-cells-{}", std::process::id()),
            budget: Some(1 << 30),
            displace: None,
            timeout: Duration::from_secs(20),
            may_host: true,
        };
        let client = Client::attach(&options).expect("a service of its own");
        let kept = || lock(&client.cells).len();
        let region = |bytes: &[u8]| {
            let mut landing = Landing::whole(client.reserve_again(100).unwrap(), bytes.len()).unwrap();
            landing.write(bytes);
            landing.into_room().unwrap().freeze()
        };
        let (first, second) = (region(b"first"), region(b"second"));
        let clone = first.clone();
        drop(first);
        assert_eq!((&clone[..], kept()), (&b"first"[..], 0));
        drop(clone);
        assert_eq!(kept(), 1);
        let again = region(b"again");
        assert_eq!((&again[..], &second[..], kept()), (&b"again"[..], &b"second"[..], 0));
        drop((again, second));
        // The lease goes on without it.
        let (lease, len) = client.lease_in(client.reserve_again(100).unwrap()).unwrap();
        assert_eq!((lease.capacity() >= 100, len, kept()), (true, 0, 2));
        let many: Vec<_> = (0..2 * MOST_KEPT).map(|_| region(b"x")).collect();
        assert_eq!(kept(), 0);
        drop(many);
        assert_eq!(kept(), MOST_KEPT);
    }
}
