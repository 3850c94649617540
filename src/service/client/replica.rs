//! Replicas: the objects of other nodes, each of which the processes of this one fetch once, and share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::pins::{self, Pinned};
use super::{Arrival, Client, Expected, Lease, Look};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::pending::Pending;
use crate::process;
use crate::region::Region;
use crate::shm::clock;
use crate::shm::layout::word;
use crate::shm::table::{BOUND, Claimed, FoundReplica, Id, Label, Origin, REPLICA};

/// What to do about an object of another node.
#[derive(Debug)]
pub(crate) enum Replica {
    /// It is here. While it is `fresh` the original was there so short a time ago that nobody need ask.
    Landed { region: Region, fresh: bool },
    /// Another process or thread of this node fetches it: wait for it, with [`Client::await_replica`].
    InFlight(Id),
    /// It is the caller's to fetch; others wait for that.
    Claimed(Claim),
    /// It cannot be shared, because too many others are being fetched or nothing is shared here: fetch it for oneself.
    Unshared,
}

/// The duty to fetch an object of another node.
///
/// Dropped, it is given up, and one of those who wait gets it. So it is, by the node service, when this process is killed.
pub(crate) struct Claim {
    pub(super) client: Arc<Client>,
    origin: Origin,
    pub(super) declared: Id,
    landed: bool,
}

impl Client {
    /// What this node has of an object of another one, or the duty to fetch it.
    ///
    /// # Cost
    /// For one that has landed, two pins and a look at the clock; a few hundred nanoseconds for a claim.
    ///
    /// # Errors
    /// `NoSpace` and `Unavailable` without slots or pin cells.
    #[inline]
    pub(crate) fn replica(self: &Arc<Self>, origin: Origin) -> Result<Replica> {
        match self.find_replica(origin)? {
            Some(found) => Ok(found),
            None => self.claim_replica(origin),
        }
    }

    /// As [`replica`](Self::replica), without the duty: `None` where nobody has it, and nobody fetches it.
    ///
    /// # Errors
    /// As `replica`.
    #[inline]
    pub(crate) fn find_replica(self: &Arc<Self>, origin: Origin) -> Result<Option<Replica>> {
        let cell = pins::cell(self)?;
        let (object, until) = match self.table.find_replica(cell, origin) {
            FoundReplica::Landed(object, until) => (object, until),
            FoundReplica::InFlight(id) => return Ok(Some(Replica::InFlight(id))),
            FoundReplica::Missing => return Ok(None),
        };
        let pinned = Pinned::new(self, cell);
        // Whatever the policy for other objects is, of replicas those go first that were not used for longest.
        self.table.stamp(&object, self.table.header(word::EPOCH).load(Relaxed) as u32);
        match self.view(&object, Expected::ANY, pinned) {
            Ok(Look::Object(region)) => Ok(Some(Replica::Landed { region, fresh: now() < until })),
            Err(error) if error.kind() != ErrorKind::Corrupt => Err(error),
            // Expired, or scribbled on: there is an original.
            Ok(_) | Err(_) => {
                self.forget_replica(origin)?;
                Ok(None)
            }
        }
    }

    #[cold]
    fn claim_replica(self: &Arc<Self>, origin: Origin) -> Result<Replica> {
        if self.table.header(word::REPLICA_BUDGET).load(Relaxed) == 0 {
            return Ok(Replica::Unshared);
        }
        self.table.header(word::REPLICAS).store(1, Relaxed);
        let declared = self.lease(0)?.keep();
        self.table.declare_replica(declared, origin);
        // From here on it is retired when it is dropped.
        let claim = Claim { client: Arc::clone(self), origin, declared, landed: false };
        failpoint!("client.replica.declared");
        for _ in 0..ATTEMPTS {
            let cell = pins::cell(self)?;
            let told = |slot| {
                failpoint!("client.replica.displaced");
                self.tell_retired(slot);
            };
            match self.table.claim_replica(cell, origin, declared, told) {
                Claimed::Won => {
                    failpoint!("client.replica.claimed");
                    return Ok(Replica::Claimed(claim));
                }
                Claimed::Full => break,
                Claimed::Lost => {
                    if let Some(found) = self.find_replica(origin)? {
                        return Ok(found);
                    }
                }
            }
        }
        Ok(Replica::Unshared)
    }

    /// The object that somebody else fetches, when it has landed; `None` when that was given up: look again then.
    ///
    /// # Errors
    /// `Timeout` by the deadline of whoever waits, `Closed` once `closed` is set.
    pub(crate) fn await_replica(self: &Arc<Self>, id: Id, closed: &Arc<AtomicBool>) -> Pending<Option<Region>> {
        let finish = |look| match look {
            Look::Object(region) => Ok(Some(region)),
            Look::Declared | Look::Missing => Ok(None),
        };
        Pending::from_source(Arrival::new(Arc::clone(self), id, Arc::clone(closed), finish))
    }

    /// Notes that the original was there just now: the replica is fresh for so long, counted from this call. Whether there is
    /// one.
    ///
    /// # Errors
    /// As [`replica`](Self::replica).
    pub(crate) fn refresh_replica(self: &Arc<Self>, origin: Origin, fresh_for: Duration) -> Result<bool> {
        let cell = pins::cell(self)?;
        Ok(self.table.refresh_replica(cell, origin, until(fresh_for)))
    }

    /// Ends what there is of an object whose original ended. Views stay; those who wait for it are told to look again.
    ///
    /// # Errors
    /// As [`replica`](Self::replica).
    pub(crate) fn forget_replica(self: &Arc<Self>, origin: Origin) -> Result<()> {
        let cell = pins::cell(self)?;
        self.table.forget_replica(cell, origin, |id| {
            failpoint!("client.replica.retired");
            self.tell_retired(id.slot);
            self.wake(id);
        });
        Ok(())
    }
}

impl Claim {
    /// Makes what was fetched into a lease the object that all processes of this node find, and wakes those who wait.
    ///
    /// The original was there just now: the replica is fresh for so long, counted from this call. `label` says its length and
    /// format, and when it expires. Should the claim have ended meanwhile, because somebody evicted the object, only the
    /// caller gets to see it.
    ///
    /// # Errors
    /// `Invalid` for a lease of another namespace or shorter than the label says; then the claim is given up.
    pub(crate) fn land(mut self, lease: Lease, label: Label, fresh_for: Duration) -> Result<Region> {
        let client = Arc::clone(&self.client);
        if !Arc::ptr_eq(&client, lease.client()) || label.len > lease.capacity() {
            let context = "the lease is not one for this object";
            return Err(Error::new(ErrorKind::Invalid, "get", context).with_connector("shm"));
        }
        if label.expires != 0 {
            client.table.header(word::EXPIRES).store(1, Relaxed);
        }
        let view = pins::cell(&client)?;
        client.table.hold(view, lease.slot());
        let pinned = Pinned::new(&client, view);
        let cell = pins::cell(&client)?;
        let object = lease.publish(Label { flags: BOUND | REPLICA, ..label });
        failpoint!("client.replica.published");
        let region = client.view(&client.table.read(object), Expected::ANY, pinned);
        self.bind(cell, object, fresh_for);
        shown(region?)
    }

    /// Makes a published object the one that all find. Should the claim have ended meanwhile, because somebody evicted the original,
    /// the object is ended, and only the caller gets to see it.
    pub(super) fn bind(&mut self, cell: u32, object: Id, fresh_for: Duration) {
        let client = &self.client;
        let landed = client.table.land_replica(cell, self.declared, object, until(fresh_for));
        failpoint!("client.replica.bound");
        if landed.is_ok() {
            self.landed = true;
            client.wake(self.declared);
        } else if client.table.retire_object(object) {
            client.tell_retired(object.slot);
        }
    }
}

/// What is there to be seen of an object that has landed.
pub(super) fn shown(look: Look) -> Result<Region> {
    match look {
        Look::Object(region) => Ok(region),
        // It expired on its way.
        Look::Declared | Look::Missing => {
            Err(Error::new(ErrorKind::NotFound, "get", "the object expired").with_connector("shm"))
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let client = &self.client;
        if self.landed || process::generation() != client.generation {
            return;
        }
        if client.table.retire(self.declared) {
            failpoint!("client.replica.abandoned");
            client.tell_retired(self.declared.slot);
        }
        client.table.withdraw_replica(self.origin, self.declared);
        client.wake(self.declared);
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim({:?} as {:?})", self.origin, self.declared)
    }
}

/// The time, as freshness is counted.
#[inline]
fn now() -> u32 {
    u32::try_from(clock::boot_millis() / Origin::FRESH_MILLIS).unwrap_or(u32::MAX)
}

/// The end of freshness: rounded so that it is over early rather than late.
fn until(fresh_for: Duration) -> u32 {
    let millis = u64::try_from(fresh_for.as_millis()).unwrap_or(u64::MAX);
    u32::try_from(clock::boot_millis().saturating_add(millis) / Origin::FRESH_MILLIS).unwrap_or(u32::MAX)
}

/// How often one tries to be the one who fetches, where others come and go at the same moment.
const ATTEMPTS: u32 = 8;
