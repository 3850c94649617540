//! `Members`: which clients live, as their record locks say.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;

use super::{index_of, lock_byte};
use crate::error::Result;
use crate::service::directory::Directory;
use crate::service::lock::{Held, LockFile};
use crate::shm::layout::{Layout, client};
use crate::shm::mapped::Mapped;
use crate::shm::segment::{Access, Segment};
use crate::shm::table::Table;

/// The file in which clients hold a byte each, by its name; and the one in which those of a former service do, should the
/// name lead to another file by now: somebody may have removed it.
pub(super) struct Members(Vec<Arc<LockFile>>);

impl Members {
    pub(super) fn open(directory: &Directory, former: Option<Arc<LockFile>>) -> Result<Self> {
        let mut files = vec![LockFile::open(&directory.members())?];
        files.extend(former.filter(|former| !Arc::ptr_eq(former, &files[0])));
        Ok(Self(files))
    }

    /// Whether a client holds its byte. What cannot be asked is held.
    pub(super) fn has(&self, index: u32) -> bool {
        self.0.iter().any(|file| !matches!(file.holder(lock_byte(index)), Ok(None)))
    }

    /// The byte of a client, if nobody holds it: whoever got that place and has not come to its lock cannot take it
    /// meanwhile, and then finds that it was struck off.
    pub(super) fn claim(&self, index: u32) -> Option<Vec<Held>> {
        let mut claims = Vec::new();
        for file in &self.0 {
            match file.is_current() {
                Ok(true) => claims.push(file.try_hold_range(lock_byte(index)).ok()??),
                // Nobody takes a lock of a file that was removed.
                Ok(false) if matches!(file.holder(lock_byte(index)), Ok(None)) => {}
                _ => return None,
            }
        }
        Some(claims)
    }

    /// The tags of clients that live. Places of others are claimed.
    pub(super) fn survivors(&self, ctl: &Segment, claims: &mut Vec<Vec<Held>>) -> Result<HashSet<u64>> {
        let table = Table::new(Mapped::new(ctl.map(Access::Write)?), Layout::SHARED);
        let mut survivors = HashSet::new();
        for index in 0..Layout::SHARED.clients {
            let tag = table.client(index, client::TAG).load(Acquire);
            if tag == 0 || index_of(tag) != index {
                continue;
            }
            match self.claim(index) {
                Some(claim) => claims.push(claim),
                // Held by another. What cannot be asked is not dead.
                None => drop(survivors.insert(tag)),
            }
        }
        Ok(survivors)
    }
}
