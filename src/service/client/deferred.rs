//! Deferred keys: declared now, committed later, waited for meanwhile.

use std::sync::Arc;

use super::{Client, Lease, pins};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::key::Format;
use crate::shm::table::{BOUND, Id, Label, Unbound};

impl Client {
    /// Makes a key for an object that comes later.
    pub(crate) fn declare(self: &Arc<Self>, format: Format) -> Result<Id> {
        let id = self.lease(0)?.keep();
        self.table.declare(id, format);
        Ok(id)
    }

    /// Makes a filled lease the object of a declared key.
    pub(crate) fn bind(
        self: &Arc<Self>,
        declared: Id,
        format: Format,
        lease: Lease,
        len: u64,
    ) -> Result<Result<(), Unbound>> {
        self.bind_flagged(declared, format, lease, len, 0)
    }

    /// As [`bind`](Self::bind), for an object with flags.
    pub(crate) fn bind_flagged(
        self: &Arc<Self>,
        declared: Id,
        format: Format,
        lease: Lease,
        len: u64,
        flags: u16,
    ) -> Result<Result<(), Unbound>> {
        if !self.knows(declared.slot) {
            return Ok(Err(Unbound::Missing));
        }
        let cell = pins::cell(self)?;
        let object = lease.publish(Label { len, format, flags: BOUND | flags, expires: 0 });
        failpoint!("client.bind.published");
        let bound = self.table.bind(cell, declared, format, object);
        failpoint!("client.bind.bound");
        match bound {
            Ok(()) => self.wake(declared),
            Err(_) => {
                if self.table.retire_object(object) {
                    self.tell_retired(object.slot);
                }
            }
        }
        Ok(bound)
    }

    /// Makes everybody who waits for a declared key look again.
    pub(crate) fn wake(&self, declared: Id) {
        crate::shm::futex::bump(self.table.bucket(declared.slot));
        crate::shm::futex::bump(self.table.any_bucket());
    }

    /// Makes those of this process look again, because a connector was closed.
    pub(crate) fn wake_own(&self) {
        for bucket in 0..crate::shm::layout::BUCKETS as u32 - 1 {
            crate::shm::futex::bump(self.table.bucket(bucket));
        }
        self.waiting.wake_all();
    }
}

impl Unbound {
    /// As the caller of `commit_at` is told.
    pub(crate) fn into_error(self, scheme: &'static str) -> Error {
        let (kind, context) = match self {
            Self::Taken => (ErrorKind::AlreadyExists, "the object was committed before"),
            Self::Format => (ErrorKind::TypeMismatch, "declared with another format"),
            Self::Missing => (ErrorKind::NotFound, "the declaration was evicted"),
        };
        Error::new(kind, "commit_at", context).with_connector(scheme)
    }
}
