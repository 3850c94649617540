//! The node service of the `shm` connector: who owns memory, death and eviction on a node, and how processes reach it.

pub(crate) mod arena;
pub(crate) mod client;
#[allow(dead_code, reason = "used by the service, which comes next")]
pub(crate) mod directory;
#[allow(dead_code, reason = "used by the service, which comes next")]
#[expect(unsafe_code, reason = "what a child does between fork and exec")]
pub(crate) mod keeper;
#[allow(dead_code, reason = "used by the service, which comes next")]
#[expect(unsafe_code, reason = "a descriptor inherited by its number")]
pub(crate) mod link;
#[allow(dead_code, reason = "used by the service, which comes next")]
#[expect(unsafe_code, reason = "fcntl(2) on single bytes has no safe wrapper")]
pub(crate) mod lock;
#[allow(dead_code, reason = "used by the service, which comes next")]
pub(crate) mod message;
pub(crate) mod server;
#[expect(unsafe_code, reason = "signalfd(2) and signal masks have no safe wrapper")]
mod signals;
#[allow(dead_code, reason = "used by the service, which comes next")]
pub(crate) mod stats;
#[allow(dead_code, reason = "used by the service, which comes next")]
#[expect(unsafe_code, reason = "SO_PEERCRED and SO_PEERPIDFD have no safe wrapper")]
pub(crate) mod wire;

pub use keeper::{ServeOptions, serve};
pub use link::FLAG as KEEPER_FLAG;
#[doc(hidden)]
pub use message::check_packet;
pub use stats::{ClientStats, Events, SegmentStats, ServiceStats, Usage};
