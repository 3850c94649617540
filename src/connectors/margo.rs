//! `margo://[namespace]`: objects in the memory of all nodes of a job, over Mochi Margo: Slingshot, InfiniBand, TCP.

use std::sync::Arc;

use super::dim::{CAPABILITIES, DimConnector};
use crate::connector::Registration;

/// The row of the connector table; see [`DimConnector`] for what a URL may say.
pub const REGISTRATION: Registration = Registration::new(
    SCHEME,
    "cluster",
    "objects in shared memory of all nodes of the job; other nodes' come over Slingshot, InfiniBand or TCP by Margo, once a node",
    &["bytes", "evict", "lease", "replicas", "relays", "protocol", "spin"],
    CAPABILITIES,
    |config| Ok(Arc::new(DimConnector::open(config)?)),
);

pub(super) const SCHEME: &str = "margo";
