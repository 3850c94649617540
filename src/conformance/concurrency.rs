//! Family `concurrency`: threads of one process.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, mpsc};
use std::thread;

use super::bytes::{holds, is_missing, pattern, same, store};
use super::case::{Case, Check, Fault, ensure, threads};
use super::lifetime::SOON;
use super::subject::Subject;
use crate::connector::Capabilities;
use crate::error::ErrorKind;
use crate::key::{Format, Key};
use crate::sync::lock;

pub(super) const CASES: &[Case] = &[
    Case::new("concurrency", "own_objects", "threads with objects of their own do not disturb each other", own_objects),
    Case::new(
        "concurrency",
        "shared_keys",
        "put, get, take and evict on shared keys: whole objects or none",
        shared_keys,
    ),
    Case::new(
        "concurrency",
        "visible_at_once",
        "an object is whole for other threads as soon as its key is known",
        visible_at_once,
    ),
    Case::new("concurrency", "one_taker", "of racing takers exactly one gets the object", one_taker),
    Case::new(
        "concurrency",
        "take_against_evict",
        "take, evict and get of one object race to an ordinary end",
        take_against_evict,
    ),
    Case::new("concurrency", "nobody_waits", "held reservations, regions and waiters stop nobody", nobody_waits),
    Case::new("concurrency", "first_use", "many threads open and use connectors at once", first_use),
];

fn own_objects(subject: &Subject) -> Check {
    let connector = subject.open()?;
    threads(THREADS, |thread| {
        let mut kept = Vec::new();
        for round in 0..ROUNDS {
            let (seed, len) = ((thread * ROUNDS + round) as u64, (round * 131) % 9000);
            let key = store(&*connector, seed, len, Format::RAW)?;
            holds(&*connector, &key, seed, len)?;
            if round % 3 == 0 {
                connector.evict(&key).wait()?;
                is_missing(&*connector, &key)?;
            } else {
                kept.push((key, seed, len));
            }
        }
        for (key, seed, len) in kept {
            same("take", &connector.take(&key).wait()?.unwrap_or_default(), seed, len)?;
        }
        Ok(())
    })
}

fn shared_keys(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let shared: [Mutex<Option<Key>>; 4] = Default::default();
    threads(THREADS, |thread| {
        for round in 0..4 * ROUNDS {
            let slot = &shared[(round * 7 + thread) % shared.len()];
            let known = *lock(slot);
            match (known, (thread + round) % 5) {
                (None, _) => {
                    // The fingerprint tells readers what the bytes must be.
                    let seed = (thread * 10_000 + round) as u64;
                    let format = Format { codec: 0x8000, fingerprint: seed };
                    let key = store(&*connector, seed, 1 + (round * 977) % 70_000, format)?;
                    *lock(slot) = Some(key);
                }
                (Some(key), 0) => {
                    connector.evict(&key).wait()?;
                    lock(slot).take_if(|known| *known == key);
                }
                (Some(key), 1) => {
                    whole(&key, connector.take(&key).wait()?.as_deref())?;
                    lock(slot).take_if(|known| *known == key);
                }
                (Some(key), 2) => drop(connector.exists(&key).wait()?),
                (Some(key), _) => whole(&key, connector.get(&key).wait()?.as_deref())?,
            }
        }
        Ok(())
    })
}

fn visible_at_once(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let (announce, keys) = mpsc::sync_channel::<(Key, u64, usize)>(0);
    let (announce, keys) = (Mutex::new(Some(announce)), Mutex::new(keys));
    threads(2, |thread| match thread {
        0 => {
            let announce = lock(&announce).take();
            for round in 0..ROUNDS {
                let (seed, len) = (round as u64, [64, 5000, 300_000][round % 3]);
                let key = store(&*connector, seed, len, Format::RAW)?;
                let Some(announce) = &announce else { return Ok(()) };
                if announce.send((key, seed, len)).is_err() {
                    break;
                }
            }
            Ok(())
        }
        _ => {
            // Gone at the end of this arm, also after a fault, so that the announcer never waits for nobody.
            let keys = std::mem::replace(&mut *lock(&keys), mpsc::channel().1);
            for (key, seed, len) in keys {
                holds(&*connector, &key, seed, len)?;
                ensure!(connector.exists(&key).wait()?, "exists is false for an object that get reads");
            }
            Ok(())
        }
    })
}

fn one_taker(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut keys = Vec::new();
    for round in 0..ROUNDS {
        keys.push(store(&*connector, round as u64, 1000, Format::RAW)?);
    }
    let winners: Vec<AtomicUsize> = keys.iter().map(|_| AtomicUsize::new(0)).collect();
    let start = Barrier::new(THREADS);
    threads(THREADS, |_| {
        let mut fault = Ok(());
        for (round, key) in keys.iter().enumerate() {
            // All threads reach every barrier, whatever they have seen.
            start.wait();
            match connector.take(key).wait() {
                Ok(Some(region)) => {
                    winners[round].fetch_add(1, Ordering::Relaxed);
                    fault = fault.and(same("take", &region, round as u64, 1000));
                }
                Ok(None) => {}
                Err(error) => fault = fault.and(Err(error.into())),
            }
        }
        fault
    })?;
    for (round, count) in winners.iter().enumerate() {
        let count = count.load(Ordering::Relaxed);
        ensure!(count == 1, "{count} of {THREADS} takers got object {round}");
        is_missing(&*connector, &keys[round])?;
    }
    Ok(())
}

fn take_against_evict(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for round in 0..ROUNDS as u64 {
        let key = store(&*connector, round, 3000, Format::RAW)?;
        let taken = AtomicUsize::new(0);
        let start = Barrier::new(4);
        threads(4, |thread| {
            start.wait();
            match thread {
                0 => connector.evict(&key).wait()?,
                1 => {
                    if let Some(region) = connector.get(&key).wait()? {
                        same("get", &region, round, 3000)?;
                    }
                }
                _ => {
                    if let Some(region) = connector.take(&key).wait()? {
                        same("take", &region, round, 3000)?;
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            Ok(())
        })?;
        ensure!(taken.into_inner() <= 1, "two takers got one object");
        is_missing(&*connector, &key)?;
    }
    Ok(())
}

fn nobody_waits(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = store(&*connector, 1, 1000, Format::RAW)?;
    let (region, reserved) = (holds(&*connector, &key, 1, 1000)?, connector.reserve(1 << 20)?);
    let waiting = AtomicBool::new(false);
    let declared = match connector.capabilities().contains(Capabilities::DEFERRED) {
        true => Some(connector.declare(Format::RAW)?),
        false => None,
    };
    thread::scope(|scope| {
        let waiter = declared.map(|declared| {
            let (connector, waiting) = (&connector, &waiting);
            scope.spawn(move || {
                let pending = connector.get_when_committed(&declared).deadline(SOON);
                waiting.store(true, Ordering::Release);
                pending.wait()
            })
        });
        while waiter.is_some() && !waiting.load(Ordering::Acquire) {
            thread::yield_now();
        }
        threads(THREADS, |thread| {
            for round in 0..20 {
                let seed = (thread * 100 + round) as u64;
                let key = store(&*connector, seed, 500, Format::RAW)?;
                holds(&*connector, &key, seed, 500)?;
                connector.evict(&key).wait()?;
            }
            Ok(())
        })?;
        if let (Some(declared), Some(waiter)) = (declared, waiter) {
            let mut late = connector.reserve(10)?;
            bytes::BufMut::put_slice(&mut late, &pattern(2, 10));
            connector.commit_at(&declared, late).wait()?;
            let found = waiter.join().map_err(|_| Fault::new("the waiter panicked"))??;
            same("get_when_committed", &found, 2, 10)?;
        }
        drop(reserved);
        same("the region", &region, 1, 1000)
    })
}

fn first_use(subject: &Subject) -> Check {
    threads(THREADS, |thread| {
        for round in 0..5 {
            let connector = subject.open()?;
            let (seed, len) = ((thread * 10 + round) as u64, 2000);
            let key = store(&*connector, seed, len, Format::RAW)?;
            holds(&*connector, &key, seed, len)?;
            connector.close()?;
            let late = connector.get(&key).wait();
            ensure!(late.is_err_and(|error| error.kind() == ErrorKind::Closed), "get after close is not Closed");
        }
        Ok(())
    })
}

/// Passes when `bytes`, if any, are those that the key promises.
fn whole(key: &Key, bytes: Option<&[u8]>) -> Check {
    bytes.map_or(Ok(()), |bytes| same("shared object", bytes, key.format().fingerprint, key.len() as usize))
}

const THREADS: usize = 8;
const ROUNDS: usize = 100;
