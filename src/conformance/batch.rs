//! Family `batch`: many objects in one call.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BufMut;

use super::bytes::{holds, is_missing, pattern, same, store};
use super::case::{Case, Check, ensure, refused};
use super::subject::Subject;
use crate::config::ConnectorConfig;
use crate::connector::{Capabilities, Connector, ConnectorExt};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::pending::Pending;
use crate::region::{Region, RegionMut};

pub(super) const CASES: &[Case] = &[
    Case::new("batch", "empty", "batches of nothing succeed", empty),
    Case::new("batch", "order", "results stand in the order of the keys", order),
    Case::new("batch", "missing_members", "missing members are None or false in their places", missing_members),
    Case::new("batch", "repeated_members", "a key may stand twice in a batch", repeated_members),
    Case::new("batch", "foreign_member", "a foreign key fails the batch", foreign_member),
    Case::new("batch", "evict", "evict_batch removes the members, and only them, missing ones silently", evict),
    Case::new(
        "batch",
        "all_or_nothing",
        "a commit that fails in the middle leaves none of the objects",
        all_or_nothing,
    ),
];

fn empty(subject: &Subject) -> Check {
    let connector = subject.open()?;
    ensure!(Arc::clone(&connector).commit_batch(Vec::new()).wait()?.is_empty(), "commit_batch");
    ensure!(connector.put_batch(&[]).wait()?.is_empty(), "put_batch");
    ensure!(connector.get_batch(&[]).wait()?.is_empty(), "get_batch");
    ensure!(connector.exists_batch(&[]).wait()?.is_empty(), "exists_batch");
    Ok(connector.evict_batch(&[]).wait()?)
}

fn order(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut keys = Arc::clone(&connector).commit_batch(regions(&*connector)?).wait()?;
    ensure!(keys.len() == COUNT, "{} keys for {COUNT} objects", keys.len());
    let wholes: Vec<_> = (0..COUNT).map(|i| pattern(i as u64, len(i))).collect();
    let objects: Vec<_> = wholes.iter().enumerate().map(|(i, whole)| (whole.as_slice(), format(i))).collect();
    keys.extend(connector.put_batch(&objects).wait()?);
    ensure!(keys.len() == 2 * COUNT, "{} keys for {} objects", keys.len(), 2 * COUNT);
    let found = connector.get_batch(&keys).wait()?;
    ensure!(found.len() == keys.len(), "{} results for {} keys", found.len(), keys.len());
    for (at, (key, region)) in keys.iter().zip(found).enumerate() {
        let i = at % COUNT;
        ensure!(key.len() == len(i) as u64 && key.format() == format(i), "{key:?} stands at {at}");
        let Some(region) = region else {
            ensure!(false, "member {at} is missing");
            continue;
        };
        same("get_batch", &region, i as u64, len(i))?;
        holds(&*connector, key, i as u64, len(i))?;
    }
    keys.reverse();
    let found = connector.get_batch(&keys).wait()?;
    for (at, region) in found.into_iter().rev().enumerate() {
        same("get_batch, backwards", &region.unwrap_or_default(), (at % COUNT) as u64, len(at % COUNT))?;
    }
    Ok(())
}

fn missing_members(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let keys = Arc::clone(&connector).commit_batch(regions(&*connector)?).wait()?;
    let gone = |i: usize| i % 3 == 1 || i == 0 || i == COUNT - 1;
    for (i, key) in keys.iter().enumerate().filter(|(i, _)| gone(*i)) {
        match i % 2 {
            0 => connector.evict(key).wait()?,
            _ => drop(connector.take(key).wait()?),
        }
    }
    let (found, exists) = (connector.get_batch(&keys).wait()?, connector.exists_batch(&keys).wait()?);
    ensure!(found.len() == COUNT && exists.len() == COUNT, "{} and {} results", found.len(), exists.len());
    for (i, (region, exists)) in found.into_iter().zip(exists).enumerate() {
        ensure!(exists != gone(i), "exists_batch: {exists} for member {i}");
        ensure!(region.is_some() != gone(i), "get_batch: {region:?} for member {i}");
        if let Some(region) = region {
            same("get_batch", &region, i as u64, len(i))?;
        }
    }
    Ok(())
}

fn repeated_members(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let (a, b) = (store(&*connector, 1, 100, Format::RAW)?, store(&*connector, 2, 200, Format::RAW)?);
    let found = connector.get_batch(&[a, b, a, a]).wait()?;
    for (region, (seed, len)) in found.into_iter().zip([(1, 100), (2, 200), (1, 100), (1, 100)]) {
        same("get_batch", &region.unwrap_or_default(), seed, len)?;
    }
    connector.evict_batch(&[a, a]).wait()?;
    ensure!(connector.exists_batch(&[a, b, a]).wait()? == [false, true, false], "exists_batch after evict_batch");
    Ok(())
}

fn foreign_member(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let own = store(&*connector, 1, 100, Format::RAW)?;
    let foreign = Key::new("x-foreign", own.locator(), own.len(), own.format())?;
    let keys = [own, foreign, own];
    refused("get_batch", connector.get_batch(&keys).wait(), &[ErrorKind::ForeignKey])?;
    refused("exists_batch", connector.exists_batch(&keys).wait(), &[ErrorKind::ForeignKey])?;
    refused("evict_batch", connector.evict_batch(&[foreign]).wait(), &[ErrorKind::ForeignKey])?;
    holds(&*connector, &own, 1, 100)?;
    Ok(())
}

fn evict(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let keys = Arc::clone(&connector).commit_batch(regions(&*connector)?).wait()?;
    connector.evict(&keys[1]).wait()?;
    connector.evict_batch(&keys[..COUNT / 2]).wait()?;
    connector.evict_batch(&keys[..COUNT / 2]).wait()?;
    for (i, key) in keys.iter().enumerate() {
        match i < COUNT / 2 {
            true => is_missing(&*connector, key)?,
            false => drop(holds(&*connector, key, i as u64, len(i))?),
        }
    }
    Ok(())
}

/// The default method over the subject's own commit and evict; what an override does on its own failures only its own
/// tests can provoke.
fn all_or_nothing(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let failing = Failing { connector: Arc::clone(&connector), commits: AtomicUsize::new(0), keys: Default::default() };
    let failing = Arc::new(failing);
    let result = Arc::clone(&failing).commit_batch(regions(&*connector)?).wait();
    refused("commit_batch", result, &[ErrorKind::NoSpace])?;
    let keys = std::mem::take(&mut *crate::sync::lock(&failing.keys));
    ensure!(keys.len() == COUNT / 2, "{} commits came before the failure", keys.len());
    keys.iter().try_for_each(|key| is_missing(&*connector, key))
}

/// The subject, with a commit that fails half way through a batch.
struct Failing {
    connector: Arc<dyn Connector>,
    commits: AtomicUsize,
    keys: std::sync::Mutex<Vec<Key>>,
}

impl Connector for Failing {
    fn config(&self) -> &ConnectorConfig {
        self.connector.config()
    }
    fn capabilities(&self) -> Capabilities {
        self.connector.capabilities()
    }
    fn reserve(&self, len: usize) -> Result<RegionMut> {
        self.connector.reserve(len)
    }
    fn commit(&self, region: RegionMut, format: Format) -> Pending<Key> {
        if self.commits.fetch_add(1, Ordering::Relaxed) == COUNT / 2 {
            return Pending::ready(Err(Error::new(ErrorKind::NoSpace, "commit", "as the case wants it")));
        }
        let result = self.connector.commit(region, format).wait();
        if let Ok(key) = &result {
            crate::sync::lock(&self.keys).push(*key);
        }
        Pending::ready(result)
    }
    fn get(&self, key: &Key) -> Pending<Option<Region>> {
        self.connector.get(key)
    }
    fn exists(&self, key: &Key) -> Pending<bool> {
        self.connector.exists(key)
    }
    fn evict(&self, key: &Key) -> Pending<()> {
        self.connector.evict(key)
    }
    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        self.connector.take(key)
    }
    fn close(&self) -> Result<()> {
        self.connector.close()
    }
}

/// The regions of `COUNT` objects, filled.
fn regions(connector: &dyn Connector) -> Check<Vec<(RegionMut, Format)>> {
    let fill = |i: usize| {
        let mut region = connector.reserve(len(i))?;
        region.put_slice(&pattern(i as u64, len(i)));
        Ok((region, format(i)))
    };
    (0..COUNT).map(fill).collect()
}

fn len(i: usize) -> usize {
    i * 97
}

fn format(i: usize) -> Format {
    Format { codec: 0x8000 + i as u16, fingerprint: i as u64 + 1 }
}

const COUNT: usize = 40;
