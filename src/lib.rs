//! WIP
#![cfg_attr(docsrs, feature(doc_cfg))]
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod connectors;
pub mod connector;
pub mod config;
pub mod pending;
#[expect(unsafe_code, reason = "memory lent by others is reached through pointers")]
pub mod region;
pub mod key;
pub mod environment;
mod sync;
pub mod error;

pub use config::{ConnectorConfig, StoreConfig};
pub use connector::{Capabilities, Connector, ConnectorExt};
pub use error::{Error, ErrorKind, Result};
pub use key::{Format, Key};
pub use pending::Pending;
pub use region::{Region, RegionMut};
/// x
pub struct Store;
