//! Looking at objects without reading them, and leaving in order: what tools need of a client.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use super::{Client, pins};
use crate::error::Result;
use crate::process;
use crate::service::locator;
use crate::service::lock::LockFile;
use crate::service::server::index_of;
use crate::shm::clock;
use crate::shm::layout::{client, word};
use crate::shm::table::{BOUND, Found, Id, Object, REPLICA, State};
use crate::sync::lock;

/// What a key leads to.
pub(crate) struct Seen {
    /// The one in the key: of a declared key that of the declaration.
    pub(crate) id: Id,
    pub(crate) object: Object,
    /// Nothing was committed to the declaration yet.
    pub(crate) is_awaited: bool,
}

impl Client {
    /// What lies in a slot and can be asked for by a key, and replicas that landed; nothing for leases and evicted objects.
    pub(crate) fn look_at(self: &Arc<Self>, slot: u32) -> Result<Option<Seen>> {
        let Some((generation, state @ (State::Live | State::Declared))) = self.table.state(slot) else {
            return Ok(None);
        };
        let id = Id { slot, generation };
        let has_expired = |object: &Object| {
            let expires = object.label.expires;
            expires != 0 && expires <= clock::boot_millis()
        };
        if state == State::Live {
            let is_own = |object: &Object| object.label.flags & BOUND == 0 && !has_expired(object);
            let object = self.table.peek(id).filter(is_own);
            return Ok(object.map(|object| Seen { id, object, is_awaited: false }));
        }
        let cell = pins::cell(self)?;
        let seen = match self.table.pin(cell, id) {
            Found::Object(object) => {
                self.table.unpin(cell);
                (!has_expired(&object)).then_some(Seen { id, object, is_awaited: false })
            }
            Found::Declared => {
                let object = self.table.read(id);
                // Not pinned, so what was read counts only if it still is a declaration.
                let still = self.table.state(slot) == Some((generation, State::Declared));
                // Nobody was promised a replica, and its words say other things.
                (still && object.label.flags & REPLICA == 0).then_some(Seen { id, object, is_awaited: true })
            }
            Found::Missing => None,
        };
        Ok(seen)
    }

    /// The slot of a key of this memory.
    pub(crate) fn slot_of(&self, locator: &[u8]) -> Option<Id> {
        let (instance, id, _) = locator::parse(locator)?;
        (instance == self.instance && id.slot < self.table.slots()).then_some(id)
    }

    /// How many views there are of each slot in use.
    pub(crate) fn pin_counts(&self) -> HashMap<u32, u64> {
        let mut counts = HashMap::new();
        let in_use = (0..self.table.pages()).filter(|page| self.table.page_owner(*page).load(Acquire) != 0);
        self.table.pinned(in_use, |_, slot| *counts.entry(slot).or_default() += 1);
        counts
    }

    /// The process behind a tag, while it is attached and its number can be seen from the service.
    pub(crate) fn pid_of(&self, tag: u64) -> Option<u32> {
        let entry = |at| self.table.client(index_of(tag), at).load(Relaxed);
        (entry(client::TAG) == tag).then(|| entry(client::PID) as u32).filter(|pid| *pid != 0)
    }

    /// Seconds that the service counted.
    pub(crate) fn epoch(&self) -> u32 {
        self.table.header(word::EPOCH).load(Relaxed) as u32
    }

    pub(crate) fn displaces(&self) -> bool {
        self.stamps()
    }

    /// Ends the use of the attachment; the attachment itself ends with the process. Views and reservations stay good.
    pub(super) fn give_over(&self) {
        if process::generation() == self.generation && !self.is_lost() {
            self.return_leases();
            self.lost.store(true, Release);
            self.wake_own();
        }
    }

    /// Ends the attachment of a process that ends.
    ///
    /// Only where this process hosts the service for nobody else is there anything to do: the service ends and removes its
    /// files, which is waited for, but not for long. Elsewhere the end of the process says all. Other threads may still run:
    /// what they have in hand must not become anybody else's, so nothing is given back.
    pub(super) fn leave(&self) {
        if process::generation() != self.generation || self.ended.load(Acquire) {
            return;
        }
        let hosts = || match LockFile::find(&self.directory.host_lock()) {
            Ok(Some(file)) => file.holder(0..1).is_ok_and(|holder| holder.is_some_and(|holder| holder.is_own)),
            _ => false,
        };
        let hosted = || match LockFile::find(&self.directory.host_lock()) {
            Ok(Some(file)) => !matches!(file.holder(0..1), Ok(None)),
            // Nobody can tell, or it was removed in order.
            _ => true,
        };
        // The host has just ended, and this process may be the only one that can succeed it: nobody would remove the files
        // if it ended in between. Its agent has no link while it looks for a successor, or becomes it.
        let settled = || hosted() && lock(&self.link).is_some();
        let begun = Instant::now();
        while self.may_host.load(Relaxed) && !self.is_lost() && !settled() && begun.elapsed() < SUCCESSION {
            std::thread::sleep(Duration::from_micros(200));
        }
        let others = || {
            let tags =
                (0..self.table.layout().clients).map(|index| self.table.client(index, client::TAG).load(Relaxed));
            tags.into_iter().any(|tag| tag != 0 && tag != self.tag)
        };
        let begun = Instant::now();
        // Those that ended a moment ago may not have been noticed yet.
        while hosts() && others() {
            if begun.elapsed() > NOTICE {
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        if !hosts() {
            return;
        }
        self.ended.store(true, Release);
        *lock(&self.member) = None;
        self.doorbell.ring();
        // The host's file goes before its directory.
        let is_going = || hosts() || self.directory.path().exists() && self.directory.is_abandoned().unwrap_or(false);
        while begun.elapsed() < FAREWELL && is_going() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// How long a process that leaves waits for somebody to host, itself perhaps. A takeover takes milliseconds.
const SUCCESSION: Duration = Duration::from_millis(200);

/// How long a process that leaves waits for the service that it hosts.
const FAREWELL: Duration = Duration::from_secs(1);

/// How soon the service knows of the end of a process.
const NOTICE: Duration = Duration::from_millis(20);
