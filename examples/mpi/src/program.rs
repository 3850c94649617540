//! How a program begins and ends.

use std::env;
use std::process::ExitCode;

use mpi::Threading;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use proxystore::Store;

/// Whatever went wrong in a rank.
pub type Failure = Box<dyn std::error::Error>;

/// Runs `program` in every rank of MPI_COMM_WORLD. A rank that fails says so and ends all of them: the others may wait for it in a
/// collective.
pub fn run(program: impl FnOnce(&SimpleCommunicator) -> Result<(), Failure>) -> ExitCode {
    // The library has threads of its own; they make no call of MPI.
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
        eprintln!("MPI was initialised before");
        return ExitCode::FAILURE;
    };
    let world = universe.world();
    if let Err(failure) = program(&world) {
        eprintln!("rank {} of {}: {failure}", world.rank(), world.size());
        world.abort(1);
    }
    ExitCode::SUCCESS
}

/// The store of `PROXYSTORE_STORE`, else that of all nodes of the job.
///
/// # Errors
/// As [`Store::open`].
pub fn open_store() -> proxystore::Result<Store> {
    match env::var_os("PROXYSTORE_STORE") {
        Some(url) if !url.is_empty() => Store::open_default(),
        _ => Store::open("tcp://"),
    }
}
