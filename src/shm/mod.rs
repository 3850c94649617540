//! Node-local shared memory: segments, and the protocol of slots and pins in them.
//!
//! No sockets and no threads here: what runs on mapped memory in production runs on the heap under loom, shuttle and Miri.

pub(crate) mod awake;
pub(crate) mod class;
#[cfg(not(any(loom, shuttle)))]
pub(crate) mod clock;
#[cfg_attr(not(any(loom, shuttle)), expect(unsafe_code, reason = "the kernel wants the address of half a word"))]
pub(crate) mod futex;
pub(crate) mod layout;
#[cfg(not(any(loom, shuttle)))]
#[expect(unsafe_code, reason = "mapped memory is reached through pointers")]
pub(crate) mod mapped;
pub(crate) mod mem;
#[cfg(not(any(loom, shuttle)))]
pub(crate) mod preflight;
#[cfg(not(any(loom, shuttle)))]
#[expect(unsafe_code, reason = "memory maps")]
pub(crate) mod segment;
pub(crate) mod table;
