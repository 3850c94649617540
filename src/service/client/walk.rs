//! Looking at objects without reading them, and leaving in order: what tools need of a client.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use super::{Client, pins};
use crate::error::Result;
use crate::process;
use crate::service::directory::Directory;
use crate::service::locator;
use crate::service::lock::LockFile;
use crate::service::server::index_of;
use crate::shm::clock;
use crate::shm::layout::{client, word};
use crate::shm::table::{BOUND, Found, Id, Object, Others, REPLICA, State};
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
    ///
    /// Ranks of a job end at the same time, and one of them has to be the last. Who leaves says so and looks whether the host
    /// leaves as well, in which case it waits to succeed it; a host that leaves while others are there says so and looks
    /// whether they leave as well, in which case it waits for their end. At least one of two sees the other.
    pub(super) fn leave(&self) {
        if process::generation() != self.generation || self.ended.load(Acquire) || self.is_lost() {
            return;
        }
        let begun = Instant::now();
        // The agent has no link while it looks for a successor of the host, or becomes it.
        let is_settled = || self.is_hosted() && lock(&self.link).is_some();
        while self.may_host.load(Relaxed) {
            if is_settled() {
                // Not before, because a new host enters its clients anew.
                if self.is_host() {
                    break;
                }
                self.say_leaving(true);
                if !self.host_leaves() {
                    return;
                }
            }
            if self.is_lost() || begun.elapsed() > SUCCESSION {
                return;
            }
            std::thread::sleep(POLL);
        }
        if !self.is_host() {
            return;
        }
        // Others need not wait for a host that waits for them.
        self.say_leaving(false);
        let begun = Instant::now();
        let mut given_up = false;
        while self.is_host() {
            let others = self.table.others(index_of(self.tag));
            if others == Others::None {
                break;
            }
            // Those that ended a moment ago may not have been noticed yet, and those that leave are waited for.
            let stay = others == Others::Stay && (begun.elapsed() <= NOTICE || self.others_live());
            if begun.elapsed() > if stay { NOTICE } else { FAREWELL } {
                if given_up {
                    return;
                }
                self.say_leaving(true);
                given_up = true;
                // Looks once more.
                continue;
            }
            if given_up {
                // They do leave, and wait for this one no longer than it says that it goes.
                self.say_leaving(false);
                given_up = false;
            }
            std::thread::sleep(POLL);
        }
        if !self.is_host() {
            return;
        }
        self.ended.store(true, Release);
        *lock(&self.member) = None;
        self.doorbell.ring();
        // The host's file goes before its directory.
        let is_going =
            || self.is_host() || self.directory.path().exists() && self.directory.is_abandoned().unwrap_or(false);
        while begun.elapsed() < FAREWELL && is_going() {
            std::thread::sleep(POLL);
        }
    }

    /// A host that leaves says so only when it has waited for the others long enough.
    fn say_leaving(&self, leaving: bool) {
        self.table.say_leaving(index_of(self.tag), leaving);
    }

    /// Whether the process that hosts said that it leaves.
    fn host_leaves(&self) -> bool {
        self.table.leaves(index_of(self.tag), self.host())
    }

    fn is_host(&self) -> bool {
        match LockFile::find(&self.directory.host_lock()) {
            Ok(Some(file)) => file.holder(0..1).is_ok_and(|holder| holder.is_some_and(|holder| holder.is_own)),
            _ => false,
        }
    }

    /// Whether the process of any other client lives; also where nobody can tell.
    fn others_live(&self) -> bool {
        let own = u64::from(index_of(self.tag));
        match LockFile::find(&self.directory.members()) {
            Ok(Some(file)) => [0..own, own + 1..Directory::SUPERVISOR]
                .into_iter()
                .any(|others| !others.is_empty() && !matches!(file.holder(others), Ok(None))),
            _ => true,
        }
    }

    /// Whether somebody hosts; also where nobody can tell, or the files were removed in order.
    fn is_hosted(&self) -> bool {
        match LockFile::find(&self.directory.host_lock()) {
            Ok(Some(file)) => !matches!(file.holder(0..1), Ok(None)),
            _ => true,
        }
    }
}

/// How often a process that leaves looks.
const POLL: Duration = Duration::from_micros(200);

/// How long a process that leaves waits for a successor of the host that left before it, itself perhaps. It takes milliseconds, but
/// for tens of processes that come back at once on a busy machine.
const SUCCESSION: Duration = Duration::from_secs(4);

/// How long a process that leaves waits for the service that it hosts, and for others that leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// How soon the service knows of the end of a process.
const NOTICE: Duration = Duration::from_millis(20);
