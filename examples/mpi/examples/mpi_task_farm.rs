//! A farm of tasks: rank 0 gives them out, their inputs and outputs are proxies, and data moves between producer and consumer only.
//!
//! `mpi_task_farm [MIB [LEAVES]]`, blocks of 4 MiB and 16 leaves unless given. Tasks of the first kind make a block, those of the
//! second add two blocks that other workers made. Rank 0 sees tokens, and resolves only the last block, which it checks. An input
//! is a one-time proxy: who adds it removes it, so that nothing is left to clean up.

use std::env;
use std::process::ExitCode;
use std::time::Instant;

use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use proxystore::token::TokenBuffer;
use proxystore::{Proxy, Store};
use proxystore_mpi::{Failure, open_store, run};

fn main() -> ExitCode {
    run(|world| {
        let argument = |at| env::args().nth(at).map(|text| text.parse::<usize>()).transpose();
        let (mib, leaves) = (argument(1)?.unwrap_or(4), argument(2)?.unwrap_or(16));
        if world.size() < 2 || leaves == 0 {
            return Err("needs two ranks, one to give tasks out and one to do them, and a leaf".into());
        }
        let store = open_store()?;
        match world.rank() {
            0 => give_out(world, mib, leaves)?,
            _ => work(world, &store, mib << 17)?,
        }
        // Until here every worker's memory may be asked for.
        world.barrier();
        Ok(())
    })
}

/// What a worker is to do. 520 bytes, whatever the size of the blocks.
#[derive(Clone, Copy)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it becomes bytes of one length")]
enum Task {
    /// Make the block of this number.
    Make(u64),
    Add([TokenBuffer; 2]),
    Stop,
}

impl Task {
    const LEN: usize = 8 + 2 * 256;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        match self {
            Self::Make(number) => bytes[..8].copy_from_slice(&number.to_le_bytes()),
            Self::Add(inputs) => {
                bytes[..8].fill(0xff);
                inputs
                    .iter()
                    .zip(bytes[8..].chunks_mut(256))
                    .for_each(|(input, to)| to.copy_from_slice(input.as_bytes()));
            }
            Self::Stop => bytes[..8].copy_from_slice(&STOP.to_le_bytes()),
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, Failure> {
        let (number, inputs) = bytes.split_at(8);
        Ok(match u64::from_le_bytes(number.try_into()?) {
            u64::MAX => Self::Add([TokenBuffer::try_from(&inputs[..256])?, TokenBuffer::try_from(&inputs[256..])?]),
            STOP => Self::Stop,
            number => Self::Make(number),
        })
    }
}

/// No number of a block.
const STOP: u64 = u64::MAX - 1;

/// Rank 0: gives a task to whoever is idle, until one block is left.
fn give_out(world: &SimpleCommunicator, mib: usize, leaves: usize) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut idle: Vec<_> = (1..world.size()).rev().collect();
    let mut made: Vec<TokenBuffer> = Vec::new();
    let (mut next, mut running, mut tasks) = (0, 0, 0);
    let last = loop {
        while let Some(worker) = idle.pop() {
            let task = if next < leaves {
                next += 1;
                Task::Make(next as u64 - 1)
            } else if made.len() >= 2 {
                Task::Add([made.remove(0), made.remove(0)])
            } else {
                idle.push(worker);
                break;
            };
            world.process_at_rank(worker).send(&task.to_bytes()[..]);
            (running, tasks) = (running + 1, tasks + 1);
        }
        if running == 0 {
            break made.pop().ok_or("nothing was made")?;
        }
        let mut answer = TokenBuffer::<256>::EMPTY;
        let status = world.any_process().receive_into(&mut answer.as_mut_bytes()[..]);
        idle.push(status.source_rank());
        made.push(answer);
        running -= 1;
    };
    for worker in 1..world.size() {
        world.process_at_rank(worker).send(&Task::Stop.to_bytes()[..]);
    }
    let sum: Proxy<[f64]> = Proxy::once(Proxy::from_token_buffer(&last)?);
    let sum = Proxy::into_view(sum)?;
    let took = begin.elapsed();
    let expected = |at: usize| (0..leaves as u64).map(|number| element(number, at)).sum::<f64>();
    if let Some(at) = (0..sum.len()).find(|at| sum[*at] != expected(*at)) {
        return Err(format!("element {at} is {} and not {}", sum[at], expected(at)).into());
    }
    println!(
        "mpi_task_farm: {tasks} tasks on {} workers in {:.0} ms; they made {} MiB, through rank 0 went {:.1} KiB",
        world.size() - 1,
        took.as_secs_f64() * 1e3,
        tasks * mib,
        (tasks * (Task::LEN + 256)) as f64 / 1024.0,
    );
    Ok(())
}

fn work(world: &SimpleCommunicator, store: &Store, len: usize) -> Result<(), Failure> {
    loop {
        let mut task = [0; Task::LEN];
        world.process_at_rank(0).receive_into(&mut task[..]);
        let output = match Task::from_bytes(&task)? {
            Task::Stop => return Ok(()),
            Task::Make(number) => {
                let mut block = store.reserve_slice::<f64>(len)?;
                block.iter_mut().enumerate().for_each(|(at, x)| *x = element(number, at));
                block.commit().wait()?
            }
            Task::Add(inputs) => {
                let [a, b] = inputs.map(|input| Proxy::<[f64]>::from_token_buffer(&input).map(Proxy::once));
                let (a, b) = (a?, b?);
                // Both at once: they may come from two nodes.
                Proxy::resolve_all([&a, &b]).wait()?;
                let mut block = store.reserve_slice::<f64>(a.len())?;
                block.iter_mut().zip(a.iter().zip(b.iter())).for_each(|(x, (a, b))| *x = a + b);
                block.commit().wait()?
            }
        };
        world.process_at_rank(0).send(&output.to_token_buffer::<256>()?.as_bytes()[..]);
    }
}

/// Sums of few of these are exact in any order.
fn element(number: u64, at: usize) -> f64 {
    ((number + 1) * (at as u64 % 1000)) as f64
}
