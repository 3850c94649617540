#![doc = include_str!("../README.md")]
#![allow(unsafe_code, reason = "a binding of a C library")]

#[allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    non_upper_case_globals,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "generated; what each item means stands in the header"
)]
mod bindings {
    use libc::{sockaddr, sockaddr_storage, socklen_t};

    #[cfg(not(regenerated))]
    include!("bindings.rs");
    #[cfg(regenerated)]
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}
#[cfg(not(linked))]
mod environment;
mod inline;
mod library;
#[cfg(linked)]
mod linked;
mod load;
pub mod newer;
mod oversize;
#[cfg(not(linked))]
mod package;
#[cfg(not(linked))]
mod search;
mod symbols;

pub use bindings::*;
pub use inline::*;
pub use library::{Origin, Ucx, Version};
pub use load::{Attempt, LoadError, MINIMUM_VERSION, load};
pub use oversize::Oversize;

/// Whether UCX was bound at link time (feature `link`) rather than at run time.
pub const LINKED: bool = cfg!(linked);
