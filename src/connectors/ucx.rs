//! `ucx://[namespace]`: objects in the memory of all nodes of a job, over RDMA adapters or what else UCX finds.

use std::sync::Arc;

use super::dim::{CAPABILITIES, DimConnector};
use crate::connector::Registration;
use crate::error::Result;

/// The row of the connector table; see [`DimConnector`] for what a URL may say.
pub const REGISTRATION: Registration = Registration::new(
    SCHEME,
    "cluster",
    "objects in shared memory of all nodes of the job; other nodes' come over RDMA or TCP by UCX, once a node",
    &["bytes", "evict", "lease", "replicas", "relays", "devices", "tls", "rndv", "spin", "idle", "one_sided"],
    CAPABILITIES,
    |config| Ok(Arc::new(DimConnector::open(config)?)),
);

/// By which transports `one_sided=on` would read memory of other nodes from this one, after doing so from itself.
///
/// # Errors
/// `Unavailable` where nothing does, or it would be emulated, with the reason.
#[doc(hidden)]
pub fn one_sided() -> Result<String> {
    crate::fabric::ucx::one_sided()
}

/// Whether hosts without the job's secret are kept out of UCX's ports: its sockets were found, and the kernel took a filter.
///
/// # Cost
/// Some ten milliseconds: UCX is begun for it.
#[doc(hidden)]
pub fn is_guarded() -> bool {
    crate::fabric::ucx::is_guarded()
}

pub(super) const SCHEME: &str = "ucx";
