//! The connectors, and the one table of them.

use crate::connector::Registration;

#[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
pub mod dim;
#[cfg(feature = "file")]
pub mod file;
#[cfg(all(feature = "margo", not(any(loom, shuttle))))]
pub mod margo;
#[cfg(feature = "memory")]
pub mod memory;
mod registry;
#[cfg(all(feature = "shm", not(any(loom, shuttle))))]
pub mod shm;
#[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
pub mod tcp;
#[cfg(all(feature = "ucx", not(any(loom, shuttle))))]
pub mod ucx;

#[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
pub use dim::DimConnector;
#[cfg(feature = "file")]
pub use file::FileConnector;
#[cfg(feature = "memory")]
pub use memory::MemoryConnector;
pub use registry::{open, register, registrations};
#[cfg(all(feature = "shm", not(any(loom, shuttle))))]
pub use shm::ShmConnector;

/// The table: a connector is one file and one line here, under a feature of the scheme's name.
pub const TABLE: &[Registration] = &[
    #[cfg(feature = "memory")]
    memory::REGISTRATION,
    #[cfg(feature = "file")]
    file::REGISTRATION,
    #[cfg(all(feature = "shm", not(any(loom, shuttle))))]
    shm::REGISTRATION,
    #[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
    tcp::REGISTRATION,
    #[cfg(all(feature = "ucx", not(any(loom, shuttle))))]
    ucx::REGISTRATION,
    #[cfg(all(feature = "margo", not(any(loom, shuttle))))]
    margo::REGISTRATION,
];

/// Schemes of the table with the feature that brings each, compiled in or not, for errors that help.
pub const FEATURES: &[&str] = &["memory", "file", "shm", "tcp", "ucx", "margo"];
