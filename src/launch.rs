//! What this process is part of: job, node and rank, and what nodes of a job derive from it without asking each other.
//!
//! Nothing here talks to a launcher; all is read from the environment that launchers leave, so that every process of a job comes
//! to the same answer by itself. Processes that launchers tell nothing belong to the user's session.
//!
//! # Examples
//! ```
//! use proxystore::launch::Job;
//!
//! # fn main() -> proxystore::Result<()> {
//! let job = Job::discover()?;
//! println!("job {}, rank {:?} of {:?}", job.id, job.rank, job.size);
//! # Ok(())
//! # }
//! ```

mod hostlist;
#[cfg(feature = "tcp")]
mod interface;
mod job;
#[cfg(feature = "tcp")]
mod port;
mod ranks;
#[cfg(feature = "tcp")]
mod secret;

pub use hostlist::expand;
#[cfg(feature = "tcp")]
pub use interface::{Choice, Interface, interfaces};
pub use job::{Job, Launcher};
#[cfg(feature = "tcp")]
pub use port::{PORTS, port_candidates};
#[cfg(feature = "tcp")]
pub use secret::{Secret, SecretSource};

pub(crate) use job::{MAX_ID, is_id};
