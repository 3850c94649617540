//! `tcp://[namespace]`: objects in the memory of all nodes of a job, over the network that every machine has.

use std::sync::Arc;

use super::dim::{CAPABILITIES, DimConnector};
use crate::connector::Registration;

/// The row of the connector table; see [`DimConnector`] for what a URL may say.
pub const REGISTRATION: Registration = Registration::new(
    SCHEME,
    "cluster",
    "objects in shared memory of all nodes of the job; other nodes' come over TCP, once a node",
    &["bytes", "evict", "lease", "replicas", "relays"],
    CAPABILITIES,
    |config| Ok(Arc::new(DimConnector::open(config)?)),
);

pub(super) const SCHEME: &str = "tcp";
