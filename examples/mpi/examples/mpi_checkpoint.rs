//! Ranks leave their state in the memory of their nodes and end; those of another job step, as many or not, go on with it.
//!
//! ```text
//! mpi_checkpoint write FILE [MIB]     state of 16 MiB a rank unless given; FILE gets a token a rank
//! mpi_checkpoint read FILE            checks every state, and removes it
//! mpi_checkpoint                      both in one: each rank reads the state of the next
//! ```
//!
//! Between the two nobody of the job may run but `proxystore serve`, one a node, which keeps the memory; `slurm/checkpoint.sh`
//! is such a job. Nothing is copied when a state is written, and when it is read only to another node.

use std::process::ExitCode;
use std::time::Instant;
use std::{env, fs};

use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use proxystore::{Proxy, Store};
use proxystore_mpi::{Exchange, Failure, open_store, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    run(|world| {
        let store = open_store()?;
        match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => {
                let states = write(world, &store, 16)?;
                let next = (world.rank() as usize + 1) % states.len();
                check(&states[next], next)?;
                world.barrier();
                remove(&store, &states[next..][..1])?;
                report(world, &format!("wrote {} states of 16 MiB and read them", states.len()));
                Ok(())
            }
            ["write", file] => write_to(world, &store, file, 16),
            ["write", file, mib] => write_to(world, &store, file, mib.parse()?),
            ["read", file] => read_from(world, &store, file),
            _ => Err("usage: mpi_checkpoint [write FILE [MIB] | read FILE]".into()),
        }
    })
}

fn write_to(world: &SimpleCommunicator, store: &Store, file: &str, mib: usize) -> Result<(), Failure> {
    let begin = Instant::now();
    let states = write(world, store, mib)?;
    let took = begin.elapsed();
    if world.rank() == 0 {
        let tokens = states.iter().map(|state| Ok(state.to_token()? + "\n")).collect::<proxystore::Result<String>>()?;
        // Whole or not at all, should this step be killed.
        let draft = format!("{file}.new");
        fs::write(&draft, tokens)?;
        fs::rename(&draft, file)?;
    }
    report(world, &format!("wrote {} states of {mib} MiB in {:.1} ms", states.len(), took.as_secs_f64() * 1e3));
    Ok(())
}

/// Computes a state in the memory where it stays; all states' proxies.
fn write(world: &SimpleCommunicator, store: &Store, mib: usize) -> Result<Vec<Proxy<[f64]>>, Failure> {
    let mut state = store.reserve_slice::<f64>(mib << 17)?;
    state.iter_mut().enumerate().for_each(|(at, x)| *x = element(world.rank() as usize, at));
    Ok(world.all_gather_proxies(&state.commit().wait()?)?)
}

fn read_from(world: &SimpleCommunicator, store: &Store, file: &str) -> Result<(), Failure> {
    let tokens = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let states = tokens.lines().map(str::parse).collect::<proxystore::Result<Vec<Proxy<[f64]>>>>()?;
    let (rank, size) = (world.rank() as usize, world.size() as usize);
    world.barrier();
    let begin = Instant::now();
    for (of, state) in states.iter().enumerate().skip(rank).step_by(size) {
        check(state, of)?;
    }
    world.barrier();
    let took = begin.elapsed();
    if rank == 0 {
        remove(store, &states)?;
        fs::remove_file(file)?;
    }
    report(world, &format!("read {} states on {size} ranks in {:.1} ms", states.len(), took.as_secs_f64() * 1e3));
    Ok(())
}

fn check(state: &Proxy<[f64]>, rank: usize) -> Result<(), Failure> {
    let state = Proxy::try_get(state)?;
    match state.iter().enumerate().find(|(at, x)| **x != element(rank, *at)) {
        Some((at, x)) => Err(format!("state of rank {rank}: element {at} is {x}").into()),
        None => Ok(()),
    }
}

fn remove(store: &Store, states: &[Proxy<[f64]>]) -> Result<(), Failure> {
    let keys: Vec<_> = states.iter().filter_map(Proxy::key).copied().collect();
    Ok(store.evict_batch(&keys).wait()?)
}

fn report(world: &SimpleCommunicator, said: &str) {
    // Not before all are done: who reads this may go on.
    world.barrier();
    if world.rank() == 0 {
        println!("mpi_checkpoint: {said}, all as computed");
    }
}

fn element(rank: usize, at: usize) -> f64 {
    (rank * 1_000_003 + at % 4099) as f64
}
