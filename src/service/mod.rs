//! The node service of the `shm` connector: who owns memory, death and eviction on a node, and how processes reach it.

pub(crate) mod arena;
#[expect(unsafe_code, reason = "objects lie in mapped memory")]
pub(crate) mod client;
pub(crate) mod directory;
pub(crate) mod keeper;
#[expect(unsafe_code, reason = "fcntl(2) on single bytes has no safe wrapper")]
pub(crate) mod lock;
pub(crate) mod message;
pub(crate) mod server;
pub(crate) mod stats;
#[expect(unsafe_code, reason = "SO_PEERCRED and SO_PEERPIDFD have no safe wrapper")]
pub(crate) mod wire;

#[doc(hidden)]
pub use message::check_packet;
#[doc(hidden)]
pub use server::memory::check::check_rebuild;
pub use stats::{ClientStats, Events, SegmentStats, ServiceStats, Usage};
