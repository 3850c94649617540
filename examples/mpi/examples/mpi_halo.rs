//! Heat in a square plate, cut into rows of ranks: the rows at the cuts are computed where the neighbours read them.
//!
//! `mpi_halo [N [STEPS]]`, 512 points a side and 100 steps unless given. A rank computes its first and last row straight into memory
//! that the store lends, and sends the token. A neighbour on the same node reads the row in place; on another node the bytes move
//! once. At the end rank 0 compares every bit with a computation of its own.

use std::env;
use std::process::ExitCode;
use std::time::Instant;

use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use proxystore::{Proxy, Store};
use proxystore_mpi::{Exchange, Failure, open_store, run};

fn main() -> ExitCode {
    run(|world| {
        let argument = |at| env::args().nth(at).map(|text| text.parse::<usize>()).transpose();
        let (n, steps) = (argument(1)?.unwrap_or(512), argument(2)?.unwrap_or(100));
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        if n < 2 * size {
            return Err(format!("{n} rows are too few for {size} ranks, which have two at least").into());
        }
        let store = open_store()?;
        let (first, end) = (n * rank / size, n * (rank + 1) / size);
        let mut block = Block::start(&store, n, first, end)?;
        world.barrier();
        let begin = Instant::now();
        for _ in 0..steps {
            let halo = Halo::exchange(world, &block)?;
            let next = block.step(&store, &halo)?;
            // Whoever reads these rows holds them, and its own token of the next step is not out before it has them. So
            // nobody asks for those of the step before.
            world.barrier();
            std::mem::replace(&mut block, next).evict(&store)?;
        }
        world.barrier();
        let took = begin.elapsed();
        let whole = block.gather(&store)?;
        let blocks = world.all_gather_proxies(&whole)?;
        if rank == 0 {
            let expected = alone(n, steps);
            let mut rows = expected.chunks(n);
            for (rank, block) in blocks.iter().enumerate() {
                for (row, expected) in Proxy::try_get(block)?.chunks(n).zip(rows.by_ref()) {
                    if row.iter().zip(expected).any(|(a, b)| a.to_bits() != b.to_bits()) {
                        return Err(format!("rank {rank} computed something else").into());
                    }
                }
            }
            let each = took.as_secs_f64() * 1e6 / steps.max(1) as f64;
            println!(
                "mpi_halo: {n} x {n} points on {size} ranks, {steps} steps of {each:.0} us, every bit as computed alone"
            );
        }
        world.barrier();
        block.evict(&store)?;
        Ok(store.evict(Proxy::key(&whole).ok_or("it comes from a store")?).wait()?)
    })
}

/// The rows of a rank. The first and the last are objects; nobody else reads the others.
struct Block {
    n: usize,
    /// Numbers of its rows in the plate.
    first: usize,
    end: usize,
    top: Proxy<[f64]>,
    inner: Vec<f64>,
    bottom: Proxy<[f64]>,
}

/// The rows beside a block, where there are any: the neighbours' own memory, or this node's copy of it.
struct Halo {
    above: Option<Proxy<[f64]>>,
    below: Option<Proxy<[f64]>>,
}

impl Halo {
    /// Collective.
    fn exchange(world: &SimpleCommunicator, block: &Block) -> Result<Self, Failure> {
        let (rank, size) = (world.rank(), world.size());
        let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
        let above = world.shift_proxy(&block.bottom, next, previous)?;
        let below = world.shift_proxy(&block.top, previous, next)?;
        // The plate is no ring.
        Ok(Self { above: (rank > 0).then_some(above), below: (rank + 1 < size).then_some(below) })
    }
}

impl Block {
    fn start(store: &Store, n: usize, first: usize, end: usize) -> Result<Self, Failure> {
        Self::make(store, n, first, end, |y, row| row.fill(initial(y)))
    }

    fn step(&self, store: &Store, halo: &Halo) -> Result<Self, Failure> {
        // Here rows of other nodes move.
        let above = halo.above.as_ref().map(Proxy::try_get).transpose()?;
        let below = halo.below.as_ref().map(Proxy::try_get).transpose()?;
        let row = |y: usize| match y {
            y if y < self.first => above,
            y if y == self.end => below,
            y => Some(self.row(y)),
        };
        Self::make(store, self.n, self.first, self.end, |y, out| {
            let up = y.checked_sub(1).and_then(row);
            relax(up, self.row(y), row(y + 1), out);
        })
    }

    /// Rows as `write` makes them, those at the cuts in the store's memory from the start.
    fn make(
        store: &Store,
        n: usize,
        first: usize,
        end: usize,
        write: impl Fn(usize, &mut [f64]),
    ) -> Result<Self, Failure> {
        let lent = |y: usize| -> Result<Proxy<[f64]>, Failure> {
            let mut row = store.reserve_slice::<f64>(n)?;
            write(y, &mut row);
            Ok(row.commit().wait()?)
        };
        let (top, bottom) = (lent(first)?, lent(end - 1)?);
        let mut inner = vec![0.0; (end - first - 2) * n];
        inner.chunks_mut(n).enumerate().for_each(|(at, row)| write(first + 1 + at, row));
        Ok(Self { n, first, end, top, inner, bottom })
    }

    fn row(&self, y: usize) -> &[f64] {
        match y {
            y if y == self.first => &self.top,
            y if y + 1 == self.end => &self.bottom,
            y => &self.inner[(y - self.first - 1) * self.n..][..self.n],
        }
    }

    fn gather(&self, store: &Store) -> Result<Proxy<[f64]>, Failure> {
        let mut whole = store.reserve_slice::<f64>((self.end - self.first) * self.n)?;
        for (y, out) in (self.first..self.end).zip(whole.chunks_mut(self.n)) {
            out.copy_from_slice(self.row(y));
        }
        Ok(whole.commit().wait()?)
    }

    fn evict(self, store: &Store) -> Result<(), Failure> {
        let keys: Vec<_> = [&self.top, &self.bottom].into_iter().filter_map(Proxy::key).copied().collect();
        Ok(store.evict_batch(&keys).wait()?)
    }
}

/// The upper edge is hot.
fn initial(y: usize) -> f64 {
    if y == 0 { 1.0 } else { 0.0 }
}

/// One row of the next step. Edges of the plate stay as they are.
fn relax(up: Option<&[f64]>, row: &[f64], down: Option<&[f64]>, out: &mut [f64]) {
    out.copy_from_slice(row);
    let (Some(up), Some(down)) = (up, down) else { return };
    for x in 1..row.len() - 1 {
        out[x] = row[x] + 0.2 * (up[x] + down[x] + row[x - 1] + row[x + 1] - 4.0 * row[x]);
    }
}

/// The plate after `steps`, in one process.
fn alone(n: usize, steps: usize) -> Vec<f64> {
    let mut plate: Vec<f64> = (0..n * n).map(|at| initial(at / n)).collect();
    for _ in 0..steps {
        let before = plate.clone();
        let row = |y: usize| before.get(y * n..(y + 1) * n);
        for (y, out) in plate.chunks_mut(n).enumerate() {
            relax(y.checked_sub(1).and_then(row), row(y).unwrap_or_default(), row(y + 1), out);
        }
    }
    plate
}
