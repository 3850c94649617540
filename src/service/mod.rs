//! The node service of the `shm` connector: who owns memory, death and eviction on a node, and how processes reach it.

#[cfg(feature = "tcp")]
pub(crate) mod address;
pub(crate) mod arena;
#[expect(unsafe_code, reason = "objects lie in mapped memory")]
pub(crate) mod client;
#[cfg(feature = "tcp")]
pub(crate) mod contact;
pub(crate) mod directory;
#[cfg(feature = "tcp")]
pub(crate) mod export;
#[cfg(feature = "tcp")]
pub(crate) mod exported;
#[cfg(feature = "failpoints")]
#[doc(hidden)]
pub mod inspect;
#[expect(unsafe_code, reason = "what a child does between fork and exec")]
pub(crate) mod keeper;
#[expect(unsafe_code, reason = "a descriptor inherited by its number")]
pub(crate) mod link;
#[expect(unsafe_code, reason = "fcntl(2) on single bytes has no safe wrapper")]
pub(crate) mod lock;
pub(crate) mod locator;
pub(crate) mod machine;
pub(crate) mod message;
pub(crate) mod namespace;
#[cfg(feature = "tcp")]
pub(crate) mod question;
#[cfg(feature = "tcp")]
pub(crate) mod relays;
pub(crate) mod server;
mod served;
#[expect(unsafe_code, reason = "signalfd(2) and signal masks have no safe wrapper")]
mod signals;
pub(crate) mod stats;
#[expect(unsafe_code, reason = "SO_PEERCRED and SO_PEERPIDFD have no safe wrapper")]
pub(crate) mod wire;

#[cfg(feature = "margo")]
#[doc(hidden)]
pub use crate::fabric::check_margo;
#[cfg(feature = "ucx")]
#[doc(hidden)]
pub use crate::fabric::check_messages;
#[cfg(feature = "tcp")]
#[doc(hidden)]
pub use crate::fabric::{check_frames, check_handshake};
#[cfg(feature = "failpoints")]
#[doc(hidden)]
pub use crate::failpoint::NAMES;
pub use keeper::{ServeOptions, serve};
pub use link::FLAG as KEEPER_FLAG;
pub use machine::Machine;
#[doc(hidden)]
pub use message::check_packet;
pub use namespace::{Namespace, ObjectStats, default_namespace, leave, namespaces};
#[cfg(feature = "tcp")]
#[doc(hidden)]
pub use question::check_question;
pub use served::serve_supervised;
#[doc(hidden)]
pub use server::memory::check::check_rebuild;
pub use stats::{ClientStats, Events, SegmentStats, ServiceStats, Usage};
