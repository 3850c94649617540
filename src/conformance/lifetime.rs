//! Family `lifetime`: the ends of objects, handles and operations.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::BufMut;

use super::bytes::{holds, is_missing, pattern, same, store};
use super::case::{Case, Check, Fault, ensure, refused, threads};
use super::subject::Subject;
use crate::connector::{Capabilities, Connector, ConnectorExt};
use crate::error::ErrorKind;
use crate::key::Format;
use crate::region::RegionMut;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "lifetime",
        "evict_is_idempotent",
        "evict of a missing object is silent, however it went away",
        evict_is_idempotent,
    ),
    Case::new(
        "lifetime",
        "close_is_idempotent",
        "close succeeds any number of times, from any thread",
        close_is_idempotent,
    ),
    Case::new("lifetime", "use_after_close", "every method of a closed connector is Closed", use_after_close),
    Case::new(
        "lifetime",
        "close_in_the_middle",
        "an operation beside close ends as usual or in Closed",
        close_in_the_middle,
    ),
    Case::new(
        "lifetime",
        "reservation_outlives_connector",
        "a reservation may be dropped last of all",
        reservation_last,
    ),
    Case::new(
        "lifetime",
        "operation_outlives_handle",
        "a started operation ends after its handle is dropped",
        operation_last,
    ),
    Case::new("lifetime", "detached_evict", "an evict that nobody waits for happens", detached_evict),
    Case::new(
        "lifetime",
        "second_handle",
        "two handles opened by one configuration see the same objects",
        second_handle,
    )
    .needs(Capabilities::CROSS_PROCESS),
    Case::new(
        "lifetime",
        "close_is_not_delete",
        "closing one handle leaves objects to the others",
        close_is_not_delete,
    )
    .needs(Capabilities::CROSS_PROCESS),
    Case::new("lifetime", "reopened", "objects are there after all handles were closed and dropped", reopened)
        .needs(Capabilities::OUTLIVES_PRODUCER),
];

fn evict_is_idempotent(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let other = store(&*connector, 2, 50, Format::RAW)?;
    for len in [0, 1, 5000] {
        let key = store(&*connector, 1, len, Format::RAW)?;
        for _ in 0..3 {
            connector.evict(&key).wait()?;
        }
        is_missing(&*connector, &key)?;
        let key = store(&*connector, 1, len, Format::RAW)?;
        ensure!(connector.take(&key).wait()?.is_some(), "take: the object is missing");
        connector.evict(&key).wait()?;
        is_missing(&*connector, &key)?;
    }
    holds(&*connector, &other, 2, 50)?;
    Ok(())
}

fn close_is_idempotent(subject: &Subject) -> Check {
    let connector = subject.open()?;
    store(&*connector, 1, 100, Format::RAW)?;
    threads(4, |_| Ok(connector.close()?))?;
    connector.close()?;
    subject.open()?.close()?;
    Ok(())
}

fn use_after_close(subject: &Subject) -> Check {
    let closed = &[ErrorKind::Closed];
    let connector = subject.open()?;
    let key = store(&*connector, 1, 100, Format::RAW)?;
    let deferred = connector.capabilities().contains(Capabilities::DEFERRED);
    let declared = if deferred { Some(connector.declare(Format::RAW)?) } else { None };
    let mut reserved = connector.reserve(100)?;
    reserved.put_slice(&pattern(2, 100));
    connector.close()?;

    refused("reserve", connector.reserve(10), closed)?;
    refused("commit of an earlier reservation", connector.commit(reserved, Format::RAW).wait(), closed)?;
    refused("commit", connector.commit(RegionMut::heap(10)?, Format::RAW).wait(), closed)?;
    refused("put", connector.put(b"late", Format::RAW).wait(), closed)?;
    refused("get", connector.get(&key).wait(), closed)?;
    refused("exists", connector.exists(&key).wait(), closed)?;
    refused("evict", connector.evict(&key).wait(), closed)?;
    refused("take", connector.take(&key).wait(), closed)?;
    refused("fetch", connector.fetch(&key).wait(), closed)?;
    refused("put_batch", connector.put_batch(&[(b"late", Format::RAW)]).wait(), closed)?;
    let regions = vec![(RegionMut::heap(10)?, Format::RAW)];
    refused("commit_batch", Arc::clone(&connector).commit_batch(regions).wait(), closed)?;
    refused("get_batch", connector.get_batch(&[key]).wait(), closed)?;
    refused("exists_batch", connector.exists_batch(&[key]).wait(), closed)?;
    refused("evict_batch", connector.evict_batch(&[key]).wait(), closed)?;
    if let Some(declared) = declared {
        refused("declare", connector.declare(Format::RAW), closed)?;
        refused("commit_at", connector.commit_at(&declared, RegionMut::heap(1)?).wait(), closed)?;
        let waiting = connector.get_when_committed(&declared).deadline(SOON);
        refused("get_when_committed", waiting.wait(), closed)?;
    }
    ensure!(connector.config().scheme() == key.scheme(), "config() is another one after close");
    Ok(())
}

fn close_in_the_middle(subject: &Subject) -> Check {
    for round in 0..10 {
        let connector = subject.open()?;
        let key = store(&*connector, 1, 1000, Format::RAW)?;
        threads(4, |i| {
            if i == 0 {
                thread::sleep(Duration::from_micros(100 * round));
                return Ok(connector.close()?);
            }
            let end = Instant::now() + SOON;
            loop {
                let step = connector.get(&key).wait().and_then(|found| {
                    let made = connector.put(&pattern(2, 500), Format::RAW).wait()?;
                    connector.evict(&made).wait()?;
                    Ok(found)
                });
                match step {
                    Ok(Some(region)) => same("get beside close", &region, 1, 1000)?,
                    // An object that lives in its process ends with the handle; the next operation must say Closed.
                    Ok(None) => {}
                    Err(error) if error.kind() == ErrorKind::Closed => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
                ensure!(Instant::now() < end, "operations go on after close");
            }
        })?;
    }
    Ok(())
}

fn reservation_last(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut first = connector.reserve(5000)?;
    let second = connector.reserve(1 << 20)?;
    connector.close()?;
    first.put_slice(&pattern(1, 2000));
    drop(second);
    drop(connector);
    first.put_slice(&pattern(1, 5000)[2000..]);
    same("the reservation", first.as_slice(), 1, 5000)?;
    let other = subject.open()?;
    let key = other.commit(first, Format::RAW).wait()?;
    holds(&*other, &key, 1, 5000)?;
    Ok(())
}

fn operation_last(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = store(&*connector, 1, 10_000, Format::RAW)?;
    let (get, exists, keys) = (connector.get(&key), connector.exists(&key), vec![key]);
    let batch = connector.get_batch(&keys);
    drop((connector, keys));
    same("get", &get.wait()?.unwrap_or_default(), 1, 10_000)?;
    ensure!(exists.wait()?, "exists is false");
    ensure!(batch.wait()?.iter().flatten().count() == 1, "get_batch misses its member");
    Ok(())
}

fn detached_evict(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = store(&*connector, 1, 1000, Format::RAW)?;
    drop(connector.evict(&key));
    soon(|| Ok(!connector.exists(&key).wait()?), "an evict whose Pending was dropped never happened")?;
    is_missing(&*connector, &key)
}

fn second_handle(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let before = store(&*connector, 1, 1000, Format::RAW)?;
    let other = subject.open_again(&*connector)?;
    let after = store(&*connector, 2, 2000, Format::RAW)?;
    let theirs = store(&*other, 3, 3000, Format::RAW)?;
    for handle in [&connector, &other] {
        holds(&**handle, &before, 1, 1000)?;
        holds(&**handle, &after, 2, 2000)?;
        holds(&**handle, &theirs, 3, 3000)?;
    }
    other.evict(&before).wait()?;
    ensure!(connector.take(&theirs).wait()?.is_some(), "take: the other handle's object is missing");
    for handle in [&connector, &other] {
        is_missing(&**handle, &before)?;
        is_missing(&**handle, &theirs)?;
    }
    Ok(())
}

fn close_is_not_delete(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let other = subject.open_again(&*connector)?;
    let (ours, theirs) = (store(&*connector, 1, 1000, Format::RAW)?, store(&*other, 2, 2000, Format::RAW)?);
    other.close()?;
    drop(other);
    holds(&*connector, &ours, 1, 1000)?;
    if connector.capabilities().contains(Capabilities::OUTLIVES_PRODUCER) {
        holds(&*connector, &theirs, 2, 2000)?;
    }
    Ok(())
}

fn reopened(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut keys = Vec::new();
    for len in [0, 1, 64, 4097, 1 << 20] {
        keys.push((store(&*connector, len as u64, len, Format::RAW)?, len));
    }
    let gone = store(&*connector, 9, 99, Format::RAW)?;
    connector.evict(&gone).wait()?;
    let config = connector.config().clone();
    connector.close()?;
    drop(connector);
    let connector: Arc<dyn Connector> = (subject.registration().open)(&config)?;
    for (key, len) in keys {
        holds(&*connector, &key, len as u64, len)?;
    }
    is_missing(&*connector, &gone)
}

/// Passes when `holds` does before long.
#[track_caller]
pub(super) fn soon(holds: impl Fn() -> Check<bool>, otherwise: &str) -> Check {
    let end = Instant::now() + SOON;
    while !holds()? {
        if Instant::now() > end {
            return Err(Fault::new(otherwise));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// More than any healthy operation takes, less than a person waits.
pub(super) const SOON: Duration = Duration::from_secs(5);
