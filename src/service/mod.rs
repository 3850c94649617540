//! The node service of the `shm` connector: who owns memory, death and eviction on a node, and how processes reach it.

#[allow(dead_code, reason = "used by the service, which comes next")]
pub(crate) mod arena;
pub(crate) mod client;
pub(crate) mod directory;
pub(crate) mod keeper;
pub(crate) mod lock;
pub(crate) mod message;
pub(crate) mod server;
pub(crate) mod wire;
