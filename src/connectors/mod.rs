//! The connectors, and the one table of them.

use crate::connector::Registration;

#[cfg(all(feature = "tcp", not(loom)))]
pub mod dim;
#[cfg(feature = "file")]
pub mod file;
#[cfg(feature = "memory")]
pub mod memory;
mod registry;
#[cfg(all(feature = "shm", not(loom)))]
pub mod shm;
#[cfg(all(feature = "tcp", not(loom)))]
pub mod tcp;

#[cfg(all(feature = "tcp", not(loom)))]
pub use dim::DimConnector;
#[cfg(feature = "file")]
pub use file::FileConnector;
#[cfg(feature = "memory")]
pub use memory::MemoryConnector;
pub use registry::{open, register, registrations};
#[cfg(all(feature = "shm", not(loom)))]
pub use shm::ShmConnector;

/// The table: a connector is one file and one line here, under a feature of the scheme's name.
pub const TABLE: &[Registration] = &[
    #[cfg(feature = "memory")]
    memory::REGISTRATION,
    #[cfg(feature = "file")]
    file::REGISTRATION,
    #[cfg(all(feature = "shm", not(loom)))]
    shm::REGISTRATION,
    #[cfg(all(feature = "tcp", not(loom)))]
    tcp::REGISTRATION,
];

/// Schemes of the table with the feature that brings each, compiled in or not, for errors that help.
pub const FEATURES: &[&str] = &["memory", "file", "shm", "tcp"];
