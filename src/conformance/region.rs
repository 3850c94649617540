//! Family `region`: the memory that is lent, to writers and to readers.

use bytes::BufMut;

use super::bytes::{holds, is_missing, lengths, pattern, same, store};
use super::case::{Case, Check, ensure};
use super::footprint::Footprint;
use super::lifetime::soon;
use super::subject::Subject;
use crate::connector::{Capabilities, Connector};
use crate::key::Format;
use crate::region::{ALIGNMENT, Region, RegionMut};

pub(super) const CASES: &[Case] = &[
    Case::new("region", "aligned", "regions begin at a multiple of 64, for writers and readers", aligned),
    Case::new("region", "outlives_evict", "a region is readable and unchanged after evict", outlives_evict),
    Case::new("region", "outlives_take", "the region of take and of an earlier get stay readable", outlives_take),
    Case::new("region", "outlives_close", "a region is readable and unchanged after close", outlives_close),
    Case::new("region", "outlives_drop", "a region is readable after the last handle is dropped", outlives_drop),
    Case::new("region", "clones", "each region, clone and slice stands for itself", clones),
    Case::new(
        "region",
        "get_copies_nothing",
        "with zero-copy get, many gets of a large object need no memory",
        get_copies_nothing,
    )
    .needs(Capabilities::ZERO_COPY_GET),
    Case::new(
        "region",
        "dropped_reservation",
        "a reservation that is dropped gives its memory back",
        dropped_reservation,
    ),
    Case::new("region", "evict_frees", "an evicted object's memory comes back", evict_frees),
    Case::new("region", "dropped_regions", "gets that are dropped leave nothing behind", dropped_regions),
    Case::new("region", "side_by_side", "reservations are apart from each other, in any order of commit", side_by_side),
    Case::new("region", "heap_memory", "process memory may be committed, and is copied", heap_memory),
    Case::new(
        "region",
        "foreign_memory_returned",
        "committed memory of another lender is copied and given back",
        returned,
    ),
    Case::new("region", "foreign_memory", "a reservation of another connector may be committed", foreign_memory),
];

fn aligned(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for len in lengths().filter(|len| *len > 0) {
        let mut region = connector.reserve(len)?;
        let address = region.as_slice().as_ptr().addr();
        ensure!(address % ALIGNMENT == 0, "reserve({len}) lends memory at {address:#x}");
        region.put_slice(&pattern(1, len));
        let key = connector.commit(region, Format::RAW).wait()?;
        holds(&*connector, &key, 1, len)?;
        let batch = connector.get_batch(&[key, key]).wait()?;
        let taken = connector.take(&key).wait()?;
        for region in batch.iter().chain([&taken]).flatten() {
            ensure!(region.as_ptr().addr() % ALIGNMENT == 0, "{len} bytes at {:p}", region.as_ptr());
        }
    }
    Ok(())
}

fn outlives_evict(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let held = hold(&*connector)?;
    for (key, ..) in &held {
        connector.evict(key).wait()?;
    }
    churn(&*connector)?;
    held.iter().try_for_each(|(_, region, seed, len)| same("after evict", region, *seed, *len))
}

fn outlives_take(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let held = hold(&*connector)?;
    let mut taken = Vec::new();
    for (key, _, seed, len) in &held {
        let Some(region) = connector.take(key).wait()? else {
            ensure!(false, "take: {key:?} is missing");
            continue;
        };
        taken.push((region, *seed, *len));
    }
    churn(&*connector)?;
    held.iter().try_for_each(|(_, region, seed, len)| same("got before take", region, *seed, *len))?;
    drop(held);
    churn(&*connector)?;
    drop(connector);
    taken.iter().try_for_each(|(region, seed, len)| same("taken", region, *seed, *len))
}

fn outlives_close(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let held = hold(&*connector)?;
    connector.close()?;
    held.iter().try_for_each(|(_, region, seed, len)| same("after close", region, *seed, *len))
}

fn outlives_drop(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let held = hold(&*connector)?;
    drop(connector);
    churn(&*subject.open()?)?;
    held.iter().try_for_each(|(_, region, seed, len)| same("after drop", region, *seed, *len))
}

fn clones(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = store(&*connector, 2, 10_000, Format::RAW)?;
    let other = store(&*connector, 3, 10_000, Format::RAW)?;
    let first = holds(&*connector, &key, 2, 10_000)?;
    let second = holds(&*connector, &key, 2, 10_000)?;
    holds(&*connector, &other, 3, 10_000)?;
    let (clone, part) = (first.clone(), first.slice(8..4096));
    ensure!(clone.as_ptr() == first.as_ptr(), "a clone lies elsewhere");
    drop(first);
    connector.evict(&key).wait()?;
    drop(clone);
    churn(&*connector)?;
    ensure!(part == pattern(2, 4096)[8..], "the slice changed");
    drop(part);
    same("the other get", &second, 2, 10_000)
}

fn get_copies_nothing(subject: &Subject) -> Check {
    const LEN: usize = 32 << 20;
    let connector = subject.open()?;
    let mut region = connector.reserve(LEN)?;
    region.initialize()[LEN - 1] = 1;
    let key = connector.commit(region, Format::RAW).wait()?;
    let before = Footprint::now(subject);
    let mut held = Vec::new();
    for _ in 0..4 {
        let region = connector.get(&key).wait()?.unwrap_or_default();
        ensure!(region.last() == Some(&1), "get gives other bytes");
        // Whoever copies has touched the copy already; a mapping is touched here.
        ensure!(region.iter().step_by(4096).all(|byte| *byte == 0), "get gives other bytes");
        held.push(region);
    }
    before.check("four gets of 32 MiB", LEN as u64, subject)
}

fn dropped_reservation(subject: &Subject) -> Check {
    const LEN: usize = 1 << 20;
    let connector = subject.open()?;
    let lend = |written: usize| -> Check {
        let mut region = connector.reserve(LEN)?;
        region.put_bytes(0x5a, written);
        Ok(())
    };
    lend(LEN)?;
    let before = Footprint::now(subject);
    for i in 0..ROUNDS {
        lend(if i % 2 == 0 { LEN } else { LEN / 2 })?;
    }
    before.check("reservations dropped", GROWTH, subject)
}

fn evict_frees(subject: &Subject) -> Check {
    const LEN: usize = 1 << 20;
    let connector = subject.open()?;
    let bytes = pattern(4, LEN);
    let before = Footprint::now(subject);
    for i in 0..ROUNDS {
        let key = connector.put(&bytes, Format::RAW).wait()?;
        match i % 2 {
            0 => connector.evict(&key).wait()?,
            _ => drop(connector.take(&key).wait()?),
        }
    }
    before.check("objects put and evicted", GROWTH, subject)
}

fn dropped_regions(subject: &Subject) -> Check {
    const LEN: usize = 1 << 20;
    let connector = subject.open()?;
    let key = store(&*connector, 5, LEN, Format::RAW)?;
    let before = Footprint::now(subject);
    for _ in 0..ROUNDS {
        ensure!(connector.get(&key).wait()?.is_some_and(|region| region.len() == LEN), "get lost the object");
        ensure!(connector.exists(&key).wait()?, "exists is false");
    }
    before.check("regions dropped", GROWTH, subject)
}

fn side_by_side(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let wholes: Vec<_> = (0..8).map(|seed| pattern(seed, 5000)).collect();
    let mut regions = Vec::new();
    for _ in &wholes {
        regions.push(connector.reserve(5000)?);
    }
    for at in (0..5000).step_by(500) {
        for (region, whole) in regions.iter_mut().zip(&wholes) {
            region.put_slice(&whole[at..at + 500]);
        }
    }
    // One is given back in the middle of it.
    drop(regions.remove(3));
    let mut seeds: Vec<u64> = (0..8).filter(|seed| *seed != 3).collect();
    let mut keys = Vec::new();
    while let (Some(region), Some(seed)) = (regions.pop(), seeds.pop()) {
        keys.push((connector.commit(region, Format::RAW).wait()?, seed));
    }
    for (key, seed) in keys {
        holds(&*connector, &key, seed, 5000)?;
    }
    Ok(())
}

fn heap_memory(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for len in lengths() {
        let mut region = RegionMut::heap(len + 10)?;
        region.put_slice(&pattern(6, len));
        let key = connector.commit(region, Format::RAW).wait()?;
        ensure!(key.len() == len as u64, "the key of {len} bytes says {}", key.len());
        holds(&*connector, &key, 6, len)?;
    }
    Ok(())
}

fn foreign_memory(subject: &Subject) -> Check {
    let (connector, other) = (subject.open()?, subject.open()?);
    for len in [0, 1, 64, 4096, 1 << 20] {
        let mut region = other.reserve(len + 1)?;
        region.put_slice(&pattern(7, len));
        let key = connector.commit(region, Format::RAW).wait()?;
        holds(&*connector, &key, 7, len)?;
        churn(&*other)?;
        holds(&*connector, &key, 7, len)?;
    }
    let key = {
        let mut region = other.reserve(500)?;
        region.put_slice(&pattern(8, 500));
        drop(other);
        connector.commit(region, Format::RAW).wait()?
    };
    holds(&*connector, &key, 8, 500)?;
    connector.evict(&key).wait()?;
    is_missing(&*connector, &key)
}

fn returned(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for len in [1, 64, 5000, 1 << 20] {
        let (mut region, lent) = RegionMut::foreign(len)?;
        region.put_slice(&pattern(9, len));
        let key = connector.commit(region, Format::RAW).wait()?;
        soon(|| Ok(lent.upgrade().is_none()), "the lender has not got its memory back after commit")?;
        holds(&*connector, &key, 9, len)?;
    }
    Ok(())
}

/// Objects of several lengths and a region of each.
fn hold(connector: &dyn Connector) -> Check<Vec<(crate::key::Key, Region, u64, usize)>> {
    let mut held = Vec::new();
    for (seed, len) in [1, 64, 4096, 100_000, 1 << 20].into_iter().enumerate() {
        let seed = seed as u64 + 100;
        let key = store(connector, seed, len, Format::RAW)?;
        held.push((key, holds(connector, &key, seed, len)?, seed, len));
    }
    Ok(held)
}

/// Uses memory of all those lengths again, so that what was given back too early is overwritten.
fn churn(connector: &dyn Connector) -> Check {
    for round in 0..4 {
        for len in [1, 64, 4096, 100_000, 1 << 20] {
            let first = store(connector, 1000 + round, len, Format::RAW)?;
            let second = store(connector, 2000 + round, len, Format::RAW)?;
            holds(connector, &first, 1000 + round, len)?;
            connector.evict(&first).wait()?;
            connector.evict(&second).wait()?;
        }
    }
    Ok(())
}

/// Times the object of 1 MiB: four times what may leak unnoticed.
const ROUNDS: usize = 256;
const GROWTH: u64 = 64 << 20;
