//! Objects of other nodes while they arrive: written piece by piece, and passed on as far as they are there.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::pins::{self, Pinned};
use super::replica::{Claim, Replica, shown};
use super::{Client, Expected, Lease};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::pending::Source;
use crate::process;
use crate::region::{Memory, Region, RegionMut};
use crate::shm::futex;
use crate::shm::layout::word;
use crate::shm::table::{BOUND, Id, Label, Origin, REPLICA};

/// Memory of an object that arrives.
///
/// Dropped, the object is given up; its memory is free when those who read of it are done.
struct Arriving {
    client: Arc<Client>,
    object: Id,
    ptr: NonNull<u8>,
    len: usize,
    /// Keeps the slot, and becomes the view of who lands it.
    pinned: Option<Pinned>,
}

// SAFETY: the cell belongs to who fetches the object: others read only bytes of which `Advance` said that they are there. The
// pin keeps it from the service. Nothing in it is bound to a thread.
unsafe impl Send for Arriving {}
// SAFETY: a shared one only tells where it is.
unsafe impl Sync for Arriving {}

// SAFETY: a lease's cell is aligned to 64 bytes, has at least `len` bytes (`Claim::open` compared that), and mapped pages hold
// values from the start. It is the holder's alone but for what it said is there, which it does not write again.
unsafe impl Memory for Arriving {
    fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    fn capacity(&self) -> usize {
        self.len
    }

    fn initialized(&self) -> usize {
        self.len
    }
}

/// Says how much of an object has come.
///
/// Not to be used when the object was landed or given up.
pub(crate) struct Advance {
    client: Arc<Client>,
    object: Id,
    is_hinted: bool,
}

impl Claim {
    /// Makes a lease the memory of an object of `len` bytes that others get of while it arrives.
    ///
    /// # Errors
    /// `Invalid` for a lease of another namespace or a shorter one; `NoSpace` without pin cells.
    pub(crate) fn open(&self, lease: Lease, len: u64) -> Result<(RegionMut, Advance)> {
        let client = &self.client;
        if !Arc::ptr_eq(client, lease.client()) || len > lease.capacity() {
            let context = "the lease is not one for this object";
            return Err(Error::new(ErrorKind::Invalid, "get", context).with_connector("shm"));
        }
        let cell = pins::cell(client)?;
        client.table.hold(cell, lease.slot());
        let pinned = Some(Pinned::new(client, cell));
        let ptr = lease.as_ptr();
        let object = lease.keep();
        client.table.publish_arriving(object, self.declared, len);
        failpoint!("client.arriving.published");
        // From here on it is retired when it is dropped.
        let memory = Arriving { client: Arc::clone(client), object, ptr, len: len as usize, pinned };
        let is_hinted = client.table.hint_at(pins::cell(client)?, self.declared, object);
        failpoint!("client.arriving.hinted");
        let advance = Advance { client: Arc::clone(client), object, is_hinted };
        Ok((RegionMut::new(Box::new(memory)), advance))
    }

    /// As [`land`](Self::land), of an object that was [opened](Self::open) by this claim and is all there.
    ///
    /// # Errors
    /// `Invalid` for another region, or one that is not full; then the claim is given up.
    pub(crate) fn land_arrived(mut self, region: RegionMut, label: Label, fresh_for: Duration) -> Result<Region> {
        let client = Arc::clone(&self.client);
        let mut memory = match region.into_memory::<Arriving>() {
            Ok((memory, len)) if Arc::ptr_eq(&memory.client, &client) && len == memory.len => memory,
            _ => {
                let context = "the memory is not that of an object that is all there";
                return Err(Error::new(ErrorKind::Invalid, "get", context).with_connector("shm"));
            }
        };
        if label.expires != 0 {
            client.table.header(word::EXPIRES).store(1, Relaxed);
        }
        let object = memory.object;
        let label = Label { len: memory.len as u64, flags: BOUND | REPLICA, ..label };
        client.table.label_arrived(object, &label, client.table.header(word::EPOCH).load(Relaxed) as u32);
        failpoint!("client.arriving.labelled");
        let cell = pins::cell(&client)?;
        let Some(pinned) = memory.pinned.take() else { unreachable!("it is taken here alone") };
        self.bind(cell, object, fresh_for);
        shown(client.view(&client.table.read(object), Expected::ANY, pinned)?)
    }
}

impl Advance {
    /// The first `bytes` are there: others may get them, and nobody writes to them any more.
    ///
    /// # Cost
    /// A system call, which wakes those who wait for pieces; not those who wait for the whole.
    pub(crate) fn to(&self, bytes: u64) {
        if self.is_hinted {
            self.client.table.advance(self.object, bytes);
            failpoint!("client.arriving.advanced");
            futex::bump(self.client.table.any_bucket());
        }
    }
}

impl fmt::Debug for Advance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Advance({:?})", self.object)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // Without its pin it has landed.
        if self.pinned.is_none() || process::generation() != self.client.generation {
            return;
        }
        if self.client.table.retire_object(self.object) {
            failpoint!("client.arriving.abandoned");
            self.client.tell_retired(self.object.slot);
        }
    }
}

/// What this node can pass on of an object of another one.
pub(crate) enum Passing {
    /// The bytes from the first one up to the end that was asked for.
    Here(Region),
    /// They have not come yet: this is the declaration to watch.
    NotYet(Id),
    /// It is not here, and nobody fetches it.
    Missing,
}

impl Client {
    /// The first `end` bytes of an object of another node, if this one has them.
    ///
    /// # Errors
    /// As [`replica`](Self::replica); `Corrupt` for what has fewer.
    pub(crate) fn pass(self: &Arc<Self>, origin: Origin, end: u64) -> Result<Passing> {
        match self.find_replica(origin)? {
            None => Ok(Passing::Missing),
            Some(Replica::Landed { region, .. }) if end <= region.len() as u64 => Ok(Passing::Here(region)),
            Some(Replica::InFlight(declared)) => {
                let cell = pins::cell(self)?;
                let Some((object, there)) = self.table.arriving(cell, declared) else {
                    return Ok(Passing::NotYet(declared));
                };
                let pinned = Pinned::new(self, cell);
                if there < end {
                    return Ok(match end <= object.label.len {
                        true => Passing::NotYet(declared),
                        false => Passing::Missing,
                    });
                }
                let (ptr, len) = self.bytes_of(&object)?;
                let len = len.min(usize::try_from(end).unwrap_or(usize::MAX));
                failpoint!("client.arriving.passing");
                // SAFETY: `bytes_of` checked the range against the mapping, which `pinned` keeps; the slot is live and pinned,
                // so its cell is not another object's; and of these bytes `Advance` said that nobody writes to them any more.
                Ok(Passing::Here(unsafe { pinned.into_region(ptr, len) }))
            }
            Some(_) => Ok(Passing::Missing),
        }
    }

    /// Whether so many bytes of what arrives for a declaration are there, or nothing more will come.
    pub(super) fn has_come(self: &Arc<Self>, declared: Id, end: u64) -> bool {
        if !self.is_declared(declared) {
            return true;
        }
        // Who waits for the whole is told by the declaration.
        if end == u64::MAX {
            return false;
        }
        let Ok(cell) = pins::cell(self) else { return true };
        let there = self.table.arriving(cell, declared);
        self.table.unpin(cell);
        there.is_some_and(|(_, there)| there >= end)
    }
}

/// The first bytes of an object of another node, which arrive at this one.
pub(crate) struct Passage {
    client: Arc<Client>,
    origin: Origin,
    end: u64,
    closed: Arc<AtomicBool>,
    token: Option<u64>,
}

impl Passage {
    pub(crate) fn new(client: Arc<Client>, origin: Origin, end: u64, closed: Arc<AtomicBool>) -> Self {
        Self { client, origin, end, closed, token: None }
    }

    /// The bytes, `None` where they will not come; or the declaration to watch.
    fn look(&self) -> Result<Result<Option<Region>, Id>> {
        if self.closed.load(Acquire) {
            return Err(Error::new(ErrorKind::Closed, "get", "").with_connector("shm"));
        }
        self.client.check("get")?;
        Ok(match self.client.pass(self.origin, self.end)? {
            Passing::Here(region) => Ok(Some(region)),
            Passing::Missing => Ok(None),
            Passing::NotYet(declared) => Err(declared),
        })
    }
}

impl Source<Option<Region>> for Passage {
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Option<Region>> {
        loop {
            // Before the look, of the bucket that the look is about: any of them goes up with this one.
            let counter = self.client.table.any_bucket();
            let seen = futex::load(counter);
            if let Ok(found) = self.look()? {
                return Ok(found);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let context = "what this node passes on has not come in time";
                return Err(Error::new(ErrorKind::Timeout, "get", context).with_connector("shm"));
            }
            futex::wait(counter, seen, deadline);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Region>>> {
        let declared = match self.look() {
            Ok(Ok(found)) => return Poll::Ready(Ok(found)),
            Ok(Err(declared)) => declared,
            Err(error) => return Poll::Ready(Err(error)),
        };
        let client = Arc::clone(&self.client);
        let token = *self.token.get_or_insert_with(|| client.waiting.token());
        if let Err(error) = client.watch(token, declared, self.end, cx.waker().clone()) {
            return Poll::Ready(Err(error));
        }
        // They may have come between the look and the registration.
        match self.look() {
            Ok(Ok(found)) => Poll::Ready(Ok(found)),
            Ok(Err(again)) if again == declared => Poll::Pending,
            // Another one fetches it by now.
            Ok(Err(_)) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            self.client.waiting.forget(token);
        }
    }
}

impl fmt::Debug for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Passage({:?} up to {})", self.origin, self.end)
    }
}
