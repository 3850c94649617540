//! Node-local shared memory: segments, and the protocol of slots and pins in them.
//!
//! No sockets and no threads here: what runs on mapped memory in production runs on the heap under loom and Miri.

pub(crate) mod class;
pub(crate) mod layout;
pub(crate) mod mem;
#[allow(dead_code, reason = "used by the service, which comes next")]
pub(crate) mod preflight;
#[allow(dead_code, reason = "used by the service, which comes next")]
#[expect(unsafe_code, reason = "memory maps")]
pub(crate) mod segment;
pub(crate) mod table;
