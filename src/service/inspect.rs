//! For tests: the figures of a running service, and where the words of the control segment lie.

use std::time::Duration;

use super::client::{Client, Options};
use super::directory::Directory;
use super::stats::ServiceStats;
use crate::error::Result;
use crate::shm::layout::{self, Layout};

/// The figures of the service of a namespace; the process attaches to it if it is not.
///
/// # Errors
/// When there is no service and none can be hosted, or it does not answer.
pub fn stats(namespace: &str) -> Result<ServiceStats> {
    client(namespace)?.stats()
}

/// Makes the service look at all slots and give free memory back.
///
/// # Errors
/// As [`stats`].
pub fn collect(namespace: &str) -> Result<u64> {
    client(namespace)?.collect()
}

/// Removes the files of a namespace that nobody holds; whether it did.
///
/// # Errors
/// When a file cannot be removed.
pub fn sweep(namespace: &str) -> Result<bool> {
    match Directory::find(namespace)? {
        Some(directory) => directory.remove(),
        None => Ok(true),
    }
}

/// Offset in bytes of the eight words of a slot: state, place, length, class, owner, fingerprint, meta, expiry.
pub fn slot_offset(slot: u32) -> usize {
    Layout::SHARED.slot(slot) * 8
}

/// Offset in bytes of the number of slots in use.
pub fn slots_offset() -> usize {
    layout::word::SLOTS * 8
}

fn client(namespace: &str) -> Result<std::sync::Arc<Client>> {
    let options = Options {
        namespace: namespace.to_owned(),
        budget: None,
        displace: None,
        timeout: Duration::from_secs(10),
        may_host: true,
    };
    Client::attach(&options)
}
