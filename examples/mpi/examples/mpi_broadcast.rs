//! A large array as a proxy in one broadcast of 256 bytes, beside MPI_Bcast of the array, when none, half or all of the ranks use it.
//!
//! `mpi_broadcast [MIB [ROUNDS]]`, 64 MiB and 3 rounds unless given. With MPI_Bcast everybody gets the bytes; with a proxy who uses it
//! does. Time is that of the slowest rank, until its users have the array; bytes are what all nodes together sent, none on one node.
//! Medians of the rounds; every user checks what it got in each.

use std::env;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use proxystore::{Proxy, Store};
use proxystore_mpi::{Exchange, Failure, Traffic, open_store, run};

fn main() -> ExitCode {
    run(|world| {
        let argument = |at| env::args().nth(at).map(|text| text.parse::<usize>()).transpose();
        let len = argument(1)?.unwrap_or(64) << 17;
        let rounds = argument(2)?.unwrap_or(3).max(1);
        let begin = Instant::now();
        let store = open_store()?;
        let opening = max(world, begin.elapsed().as_secs_f64());
        let size = world.size();
        let nodes = count_nodes(world);
        if world.rank() == 0 {
            println!("# {size} ranks on {nodes} nodes, {} MiB, medians of {rounds}", len >> 17);
            println!("# store {} opened in {:.1} ms by the slowest rank", store.config().connector, opening * 1e3);
            println!(
                "# {:<22} {:>12} {:>12} {:>14} {:>14} {:>7} {:>7}",
                "", "proxy", "MPI_Bcast", "proxy", "MPI_Bcast", "", ""
            );
            println!(
                "# {:<22} {:>12} {:>12} {:>14} {:>14} {:>7} {:>7}",
                "Who uses it", "ms", "ms", "MiB sent", "MiB sent", "time", "bytes"
            );
        }
        let mut buffer = vec![0.0; len];
        for (name, uses) in USES {
            let uses = uses(world.rank(), size);
            // The first touches memory for the first time.
            let mut samples = [Vec::new(), Vec::new()];
            for round in 0..=rounds as u64 {
                let pair = [by_proxy(world, &store, len, round, uses)?, by_mpi(world, &mut buffer, round, uses)?];
                if round > 0 {
                    samples.iter_mut().zip(pair).for_each(|(samples, sample)| samples.push(sample));
                }
            }
            let [(ours, our_bytes), (theirs, their_bytes)] = samples.map(median);
            if world.rank() == 0 {
                let ratio = |a: f64, b: f64| if b > 0.0 { format!("{:.3}x", a / b) } else { "-".to_owned() };
                println!(
                    "  {name:<22} {:>12.1} {:>12.1} {:>14.1} {:>14.1} {:>7} {:>7}",
                    ours * 1e3,
                    theirs * 1e3,
                    our_bytes as f64 / MIB,
                    their_bytes as f64 / MIB,
                    ratio(ours, theirs),
                    if nodes > 1 { ratio(our_bytes as f64, their_bytes as f64) } else { "-".to_owned() },
                );
            }
        }
        if world.rank() == 0 {
            println!("mpi_broadcast: {} broadcasts, every element as it was filled", USES.len() * 2 * (rounds + 1));
        }
        Ok(())
    })
}

/// Whether a rank uses the array. Half of the ranks can be half of the nodes, or on all of them.
const USES: [(&str, Uses); 4] = [
    ("nobody", |_, _| false),
    ("the first half", |rank, size| rank < size / 2),
    ("every second rank", |rank, _| rank % 2 == 0),
    ("everybody", |_, _| true),
];

/// Of a rank among so many.
type Uses = fn(i32, i32) -> bool;

const MIB: f64 = (1 << 20) as f64;

type Sample = (f64, u64);

fn by_proxy(world: &SimpleCommunicator, store: &Store, len: usize, round: u64, uses: bool) -> Result<Sample, Failure> {
    // Written where it stays, as a simulation would do.
    let mut array = None;
    if world.rank() == 0 {
        let mut lent = store.reserve_slice::<f64>(len)?;
        fill(&mut lent, round);
        array = Some(lent);
    }
    let traffic = Traffic::begin(world);
    let begin = Instant::now();
    let root = array.map(|array| array.commit().wait()).transpose()?;
    let array: Proxy<[f64]> = world.broadcast_proxy(0, root.as_ref())?;
    if uses {
        // Here the bytes move, once a node.
        Proxy::try_get(&array)?;
    }
    let sample = end(world, begin, &traffic);
    if uses {
        check(&array, round, world.rank())?;
    }
    let key = Proxy::key(&array).copied();
    drop((array, root));
    world.barrier();
    // Where it was put, and where it was used: that node's copy makes room for the next one now, not when memory is short.
    if let Some(key) = key.filter(|_| uses || world.rank() == 0) {
        store.evict(&key).wait()?;
    }
    Ok(sample)
}

fn by_mpi(world: &SimpleCommunicator, buffer: &mut [f64], round: u64, uses: bool) -> Result<Sample, Failure> {
    match world.rank() {
        0 => fill(buffer, round),
        _ => buffer.fill(-1.0),
    }
    let traffic = Traffic::begin(world);
    let begin = Instant::now();
    world.process_at_rank(0).broadcast_into(buffer);
    let sample = end(world, begin, &traffic);
    if uses {
        check(buffer, round, world.rank())?;
    }
    Ok(sample)
}

/// The time of the slowest, and what all have sent.
fn end(world: &SimpleCommunicator, begin: Instant, traffic: &Traffic) -> Sample {
    let slowest = max(world, begin.elapsed().as_secs_f64());
    // What is on its way: acknowledgements.
    std::thread::sleep(Duration::from_millis(2));
    (slowest, traffic.end(world))
}

fn max(world: &SimpleCommunicator, own: f64) -> f64 {
    let mut most = 0.0;
    world.all_reduce_into(&own, &mut most, SystemOperation::max());
    most
}

fn count_nodes(world: &SimpleCommunicator) -> i32 {
    let first = i32::from(world.split_shared(world.rank()).rank() == 0);
    let mut nodes = 0;
    world.all_reduce_into(&first, &mut nodes, SystemOperation::sum());
    nodes
}

fn fill(array: &mut [f64], round: u64) {
    array.iter_mut().enumerate().for_each(|(at, x)| *x = element(at, round));
}

fn check(array: &[f64], round: u64, rank: i32) -> Result<(), Failure> {
    match array.iter().enumerate().find(|(at, x)| **x != element(*at, round)) {
        Some((at, x)) => Err(format!("rank {rank}: element {at} of round {round} is {x}").into()),
        None => Ok(()),
    }
}

fn element(at: usize, round: u64) -> f64 {
    (at as u64 % 65_521 * 31 + round) as f64
}

fn median(mut samples: Vec<Sample>) -> Sample {
    let middle = samples.len() / 2;
    samples.sort_by(|a, b| a.0.total_cmp(&b.0));
    let time = samples[middle].0;
    samples.sort_by_key(|sample| sample.1);
    (time, samples[middle].1)
}
