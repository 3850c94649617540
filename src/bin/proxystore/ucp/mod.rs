//! UCX's own interface: the bare loop that connectors over UCX are measured beside, and what it has on this machine.
//!
//! ```text
//!   Requester                                     Owner
//!   ── active message: Request, 24 bytes ───────> handler
//!   <── active message of `len` bytes, eager or by rendezvous, from registered into registered memory
//! ```
//!
//! What a program does that knows nothing but UCX and trusts whoever connects: no proof, no checks, no objects, one thread on
//! either side, buffers that are warm and registered. Nothing else may use the workers of a process that it runs in.

mod contact;
mod look;
mod owner;
mod requester;
mod settings;
mod worker;

pub(crate) use contact::Contact;
pub(crate) use look::look;
pub(crate) use owner::Owner;
pub(crate) use requester::{Progress, Requester, Shape};
pub(crate) use settings::Settings;
