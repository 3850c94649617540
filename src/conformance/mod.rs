//! The executable contract of a [`Connector`](crate::Connector): cases that every connector passes, and yours too.
//!
//! A test file with `harness = false` and six lines runs all of it:
//!
//! ```no_run
//! use proxystore::conformance::{self, Subject};
//! # mod mine { pub const REGISTRATION: proxystore::connector::Registration = proxystore::connectors::memory::REGISTRATION; }
//!
//! fn main() -> std::process::ExitCode {
//!     proxystore::connectors::register(mine::REGISTRATION).expect("the scheme is free");
//!     conformance::main([Subject::in_directories(mine::REGISTRATION)])
//! }
//! ```
//!
//! The program understands `FILTER`, `--exact`, `--skip`, `--list`, `--include-slow` and what `cargo test` and `cargo
//! nextest` pass; see [`main`]. A case that the connector's [`Capabilities`](crate::Capabilities) exclude is reported as
//! ignored, with the reason; none passes without having run.
//!
//! | family | what it checks |
//! |---|---|
//! | `object` | bytes in, same bytes out: lengths, formats, put against reserve and commit, missing objects |
//! | `region` | alignment, lifetime and cost of the memory that is lent in both directions |
//! | `batch` | order, missing members, all or nothing |
//! | `key` | foreign, damaged, forged and stale keys |
//! | `lifetime` | evict, take, close, drop, operations that nobody waits for |
//! | `concurrency` | threads on own and on shared keys, races for one object |
//! | `process` | other processes: reading, racing, being killed |
//! | `deferred` | keys declared before their object |
//! | `options` | times to live, objects that end with their producer |
//!
//! Every case is bounded in time, so a connector that hangs fails. Cases of the families `process` and `options` start this program
//! again as their child, which [`main`] recognises; a harness of another kind calls [`child_main`] first.

mod batch;
mod bytes;
mod case;
mod child;
mod concurrency;
mod deferred;
mod footprint;
mod key;
mod lifetime;
mod object;
mod options;
mod process;
mod region;
mod runner;
mod subject;

pub use case::{Case, Fault, Verdict};
pub use child::child_main;
pub use runner::main;
pub use subject::Subject;

/// All cases, family by family.
pub fn cases() -> Vec<Case> {
    [
        object::CASES,
        region::CASES,
        batch::CASES,
        key::CASES,
        lifetime::CASES,
        concurrency::CASES,
        process::CASES,
        deferred::CASES,
        options::CASES,
    ]
    .concat()
}
