//! What the MPI programs of this package share: how they begin and end, proxies through collectives, traffic.
//!
//! Without the feature `mpi` there is nothing here, so that the workspace builds on machines that have no MPI.

#[cfg(feature = "mpi")]
mod exchange;
#[cfg(feature = "mpi")]
mod program;
#[cfg(feature = "mpi")]
mod traffic;

#[cfg(feature = "mpi")]
pub use exchange::Exchange;
#[cfg(feature = "mpi")]
pub use program::{Failure, open_store, run};
#[cfg(feature = "mpi")]
pub use traffic::Traffic;
