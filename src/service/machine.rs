//! `Machine`: what this node leaves for shared memory, as `proxystore info` shows it.

use std::path::PathBuf;

use serde::Serialize;

use super::directory;
use crate::environment;
use crate::shm::preflight;

/// What this process may take of this node's memory, and what decides it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Machine {
    /// Most bytes of objects in a namespace whose first process is this one and asks for nothing else.
    pub budget: u64,
    /// Bytes that may be taken now, by the tightest limit.
    pub available: u64,
    /// The tightest limit, with its numbers.
    pub limit: String,
    /// `/sys/kernel/mm/transparent_hugepage/shmem_enabled`: whether shared memory gets huge pages (`advise`, `always`).
    pub shmem_enabled: String,
    /// Bytes of a page in the pool of huge pages; 0 where there is no pool.
    pub huge_page: u64,
    /// Pages of the pool that are free.
    pub huge_pages_free: u64,
    /// Bytes that this process may lock or register with a network card; `None` for all.
    pub memlock: Option<u64>,
    /// Where sockets and locks lie; `None` where that directory is not usable.
    pub runtime_directory: Option<PathBuf>,
}

impl Machine {
    /// Asks the kernel.
    ///
    /// # Cost
    /// Some small files of `/proc` and `/sys`, below a millisecond.
    pub fn ask() -> Self {
        let room = preflight::room();
        let pool = preflight::huge_pages();
        Self {
            budget: environment::shm_bytes().unwrap_or_else(preflight::default_budget),
            available: room.bytes,
            limit: room.limit,
            shmem_enabled: preflight::shmem_transparent().state,
            huge_page: pool.size,
            huge_pages_free: pool.free,
            memlock: preflight::lockable(),
            runtime_directory: directory::root(false).ok(),
        }
    }
}
