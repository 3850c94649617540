#![cfg_attr(feature = "shm", doc = include_str!("../README.md"))]
#![cfg_attr(not(feature = "shm"), doc = "Objects by reference for HPC jobs; see the README.")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(any(loom, shuttle), allow(dead_code, reason = "models run a part of the crate"))]

// The modules, in the order of the bytes' way. A module depends on those below it only; `tests/layering.rs` checks that.
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod proxy;
pub mod factory;
pub mod store;
pub mod cache;
mod flight;
pub mod telemetry;
pub mod codec;
pub mod connectors;
#[cfg(all(feature = "shm", not(any(loom, shuttle))))]
pub mod service;
#[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
pub(crate) mod fabric;
#[cfg(feature = "shm")]
pub(crate) mod shm;
pub mod connector;
pub mod pending;
#[expect(unsafe_code, reason = "memory lent by others is reached through pointers")]
pub mod region;
pub mod token;
pub mod config;
#[cfg(all(feature = "shm", not(any(loom, shuttle))))]
pub mod launch;
pub mod key;
#[cfg(all(feature = "shm", not(any(loom, shuttle))))]
mod failpoint;
pub mod environment;
#[cfg(feature = "shm")]
mod mutant;
mod sync;
#[expect(
    unsafe_code,
    reason = "fork is noticed by a page that the kernel empties, and values live until the process ends"
)]
mod process;
pub mod error;

pub use bytes;

pub use config::{ConnectorConfig, StoreConfig};
pub use connector::{Capabilities, Connector, ConnectorExt};
pub use error::{Error, ErrorKind, Result};
pub use factory::Factory;
pub use key::{Format, Key};
pub use pending::Pending;
pub use proxy::Proxy;
pub use region::{Region, RegionMut};
pub use store::Store;
pub use token::Token;
