//! WIP
#![cfg_attr(docsrs, feature(doc_cfg))]
pub mod config;
pub mod connector;
pub mod connectors;
pub mod environment;
pub mod error;
pub mod key;
pub mod pending;
#[expect(unsafe_code, reason = "memory lent by others is reached through pointers")]
pub mod region;
mod sync;

pub use config::{ConnectorConfig, StoreConfig};
pub use connector::{Capabilities, Connector, ConnectorExt};
pub use error::{Error, ErrorKind, Result};
pub use key::{Format, Key};
pub use pending::Pending;
pub use region::{Region, RegionMut};
/// x
pub struct Store;
