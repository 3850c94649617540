//! Family `deferred`: keys that are declared before their object exists.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BufMut;

use super::bytes::{holds, is_missing, lengths, pattern, same, store};
use super::case::{Case, Check, Fault, ensure, refused, threads};
use super::lifetime::SOON;
use super::subject::Subject;
use crate::connector::{Capabilities, Connector};
use crate::error::{ErrorKind, Result};
use crate::key::{Format, Key};
use crate::region::{Region, RegionMut};

pub(super) const CASES: &[Case] = &[
    case("commit_at", "a declared key is missing until its object is committed, then ordinary", commit_at),
    case("lengths", "every length can be committed under a declared key", all_lengths),
    case("format", "the declared format is in the key, and commit_at under another is TypeMismatch", format),
    case("twice", "a second commit_at is AlreadyExists and changes nothing", twice),
    case("one_committer", "of racing commit_at exactly one succeeds", one_committer),
    case("ordinary_key", "commit_at of an ordinary object is AlreadyExists; waiting for one returns it", ordinary_key),
    case("wakes", "get_when_committed wakes in every waiting thread", wakes),
    case("times_out", "get_when_committed of a key that nobody commits ends in Timeout, on time", times_out),
    case("abandoned_waiters", "waiters that gave up hold up neither commit_at nor later ones", abandoned_waiters),
    case("evicted", "an evicted declaration is gone: get is None, commit_at and waiting are NotFound", evicted),
    case("take_before_commit", "take of a declared key gives None and leaves the declaration", take_before_commit),
    case("never_partial", "a reader that polls sees nothing or the whole object", never_partial),
    case("evict_ends_waiters", "evict of a declared key ends its waiters before their deadline", evict_ends_waiters)
        .needs(NOTIFIED),
    case("close_ends_waiters", "close ends the waiters of its handle before their deadline", close_ends_waiters)
        .needs(NOTIFIED),
    Case::new("deferred", "unsupported", "without deferred keys, their methods are Unsupported", unsupported)
        .lacks(Capabilities::DEFERRED),
];

const fn case(name: &'static str, checks: &'static str, check: fn(&Subject) -> Check) -> Case {
    Case::new("deferred", name, checks, check).needs(Capabilities::DEFERRED)
}

const NOTIFIED: Capabilities = Capabilities::DEFERRED.union(Capabilities::NOTIFY);

fn commit_at(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = connector.declare(Format::RAW)?;
    ensure!(!key.is_len_known() && key.len() == Key::UNKNOWN_LEN, "a declared key says {} bytes", key.len());
    is_missing(&*connector, &key)?;
    ensure!(connector.get_batch(&[key]).wait()? == [None], "get_batch finds a declared key");
    ensure!(connector.exists_batch(&[key]).wait()? == [false], "exists_batch finds a declared key");
    let other = connector.declare(Format::RAW)?;
    ensure!(other != key, "two declarations share a key");
    connector.commit_at(&key, region(&*connector, 1, 1000)?).wait()?;
    holds(&*connector, &key, 1, 1000)?;
    ensure!(connector.exists(&key).wait()?, "exists is false after commit_at");
    same("get_when_committed", &connector.get_when_committed(&key).deadline(SOON).wait()?, 1, 1000)?;
    is_missing(&*connector, &other)?;
    let read: Key = key.to_string().parse()?;
    holds(&*connector, &read, 1, 1000)?;
    same("take", &connector.take(&key).wait()?.unwrap_or_default(), 1, 1000)?;
    is_missing(&*connector, &key)?;
    connector.evict(&key).wait()?;
    Ok(())
}

fn all_lengths(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for (i, len) in lengths().enumerate() {
        let key = connector.declare(Format::RAW)?;
        let region = match i % 2 {
            0 => region(&*connector, 2, len)?,
            _ => {
                let mut region = RegionMut::heap(len + 7)?;
                region.put_slice(&pattern(2, len));
                region
            }
        };
        connector.commit_at(&key, region).wait()?;
        holds(&*connector, &key, 2, len)?;
    }
    Ok(())
}

fn format(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let format = Format { codec: 0x8005, fingerprint: 0xfeed };
    let key = connector.declare(format)?;
    ensure!(key.format() == format, "declared with {format:?}, the key says {:?}", key.format());
    for wrong in [Format::RAW, Format { codec: 0x8005, fingerprint: 1 }, Format { codec: 1, fingerprint: 0xfeed }] {
        let result = connector.commit_at(&key.with_format(wrong), region(&*connector, 1, 10)?).wait();
        refused("commit_at under another format", result, &[ErrorKind::TypeMismatch])?;
    }
    is_missing(&*connector, &key)?;
    connector.commit_at(&key, region(&*connector, 1, 10)?).wait()?;
    holds(&*connector, &key, 1, 10)?;
    Ok(())
}

fn twice(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = connector.declare(Format::RAW)?;
    connector.commit_at(&key, region(&*connector, 1, 100)?).wait()?;
    let again = connector.commit_at(&key, region(&*connector, 2, 200)?).wait();
    refused("a second commit_at", again, &[ErrorKind::AlreadyExists])?;
    holds(&*connector, &key, 1, 100)?;
    Ok(())
}

fn one_committer(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for _ in 0..20 {
        let key = connector.declare(Format::RAW)?;
        let (start, winner) = (Barrier::new(THREADS), AtomicUsize::new(0));
        threads(THREADS, |thread| {
            let region = region(&*connector, thread as u64 + 1, 500);
            start.wait();
            match connector.commit_at(&key, region?).wait() {
                Ok(()) => ensure!(winner.swap(thread + 1, Ordering::Relaxed) == 0, "two commits succeeded"),
                Err(error) => refused("commit_at", Err::<(), _>(error), &[ErrorKind::AlreadyExists])?,
            }
            Ok(())
        })?;
        holds(&*connector, &key, winner.into_inner() as u64, 500)?;
    }
    Ok(())
}

fn ordinary_key(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = store(&*connector, 1, 100, Format::RAW)?;
    let again = connector.commit_at(&key, region(&*connector, 2, 100)?).wait();
    refused("commit_at of an ordinary object", again, &[ErrorKind::AlreadyExists])?;
    same("get_when_committed", &connector.get_when_committed(&key).deadline(SOON).wait()?, 1, 100)
}

fn wakes(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for round in 0..10 {
        let key = connector.declare(Format::RAW)?;
        threads(THREADS, |thread| {
            if thread == 0 {
                // Rounds differ in how many wait already.
                thread::sleep(Duration::from_millis(round));
                return Ok(connector.commit_at(&key, region(&*connector, round, 5000)?).wait()?);
            }
            let found = connector.get_when_committed(&key).deadline(SOON).wait()?;
            same("get_when_committed", &found, round, 5000)
        })?;
    }
    Ok(())
}

fn times_out(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = connector.declare(Format::RAW)?;
    for limit in [Duration::ZERO, Duration::from_millis(50)] {
        let begin = Instant::now();
        let result = connector.get_when_committed(&key).deadline(limit).wait();
        let waited = begin.elapsed();
        refused("get_when_committed", result, &[ErrorKind::Timeout])?;
        ensure!(waited >= limit && waited < limit + SOON / 2, "a deadline of {limit:?} ended after {waited:?}");
    }
    connector.commit_at(&key, region(&*connector, 1, 10)?).wait()?;
    holds(&*connector, &key, 1, 10)?;
    Ok(())
}

fn abandoned_waiters(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = connector.declare(Format::RAW)?;
    for _ in 0..200 {
        drop(connector.get_when_committed(&key).deadline(Duration::from_millis(100)));
    }
    let patient = connector.get_when_committed(&key).deadline(SOON);
    connector.commit_at(&key, region(&*connector, 1, 100)?).wait()?;
    same("get_when_committed", &patient.wait()?, 1, 100)
}

fn evicted(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = connector.declare(Format::RAW)?;
    connector.evict(&key).wait()?;
    connector.evict(&key).wait()?;
    is_missing(&*connector, &key)?;
    let late = connector.commit_at(&key, region(&*connector, 1, 10)?).wait();
    refused("commit_at of an evicted declaration", late, &[ErrorKind::NotFound])?;
    is_missing(&*connector, &key)?;
    let late = connector.get_when_committed(&key).deadline(SOON).wait();
    refused("get_when_committed of an evicted declaration", late, &[ErrorKind::NotFound])?;
    let key = connector.declare(Format::RAW)?;
    connector.commit_at(&key, region(&*connector, 1, 10)?).wait()?;
    connector.evict(&key).wait()?;
    is_missing(&*connector, &key)
}

fn take_before_commit(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = connector.declare(Format::RAW)?;
    ensure!(connector.take(&key).wait()?.is_none(), "take of a declared key gives an object");
    connector.commit_at(&key, region(&*connector, 1, 10)?).wait()?;
    same("take", &connector.take(&key).wait()?.unwrap_or_default(), 1, 10)?;
    is_missing(&*connector, &key)
}

fn never_partial(subject: &Subject) -> Check {
    const LEN: usize = 200_000;
    let connector = subject.open()?;
    for round in 0..20 {
        let key = connector.declare(Format::RAW)?;
        threads(3, |thread| {
            if thread == 0 {
                return Ok(connector.commit_at(&key, region(&*connector, round, LEN)?).wait()?);
            }
            let end = Instant::now() + SOON;
            while Instant::now() < end {
                let there = connector.exists(&key).wait()?;
                match connector.get(&key).wait()? {
                    Some(region) => return same("get beside commit_at", &region, round, LEN),
                    None => ensure!(!there, "exists said true, get then found nothing"),
                }
            }
            Err(Fault::new("the committed object never appeared"))
        })?;
    }
    Ok(())
}

fn evict_ends_waiters(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = connector.declare(Format::RAW)?;
    ends_waiters(&*connector, &key, || connector.evict(&key).wait())
}

fn close_ends_waiters(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = connector.declare(Format::RAW)?;
    ends_waiters(&*connector, &key, || connector.close())
}

/// Passes when `end` makes those who wait for `key` fail long before their deadline.
fn ends_waiters(connector: &dyn Connector, key: &Key, end: impl FnOnce() -> Result<()> + Send) -> Check {
    let limit = 4 * SOON;
    let early = connector.get_when_committed(key).deadline(limit);
    let (began, ready) = (Instant::now(), Barrier::new(2));
    let late: Result<Region> = thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let pending = connector.get_when_committed(key).deadline(limit);
            ready.wait();
            pending.wait()
        });
        ready.wait();
        end()?;
        waiter.join().map_err(|_| Fault::new("the waiter panicked"))
    })?;
    for result in [early.wait(), late] {
        refused("get_when_committed", result, &[ErrorKind::Cancelled, ErrorKind::NotFound, ErrorKind::Closed])?;
    }
    ensure!(began.elapsed() < SOON, "the waiters stayed for {:?}", began.elapsed());
    Ok(())
}

fn unsupported(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = store(&*connector, 1, 10, Format::RAW)?;
    let kinds = &[ErrorKind::Unsupported];
    refused("declare", connector.declare(Format::RAW), kinds)?;
    refused("commit_at", connector.commit_at(&key, RegionMut::heap(1)?).wait(), kinds)?;
    refused("get_when_committed", connector.get_when_committed(&key).deadline(SOON).wait(), kinds)?;
    holds(&*connector, &key, 1, 10)?;
    Ok(())
}

fn region(connector: &dyn Connector, seed: u64, len: usize) -> Check<RegionMut> {
    let mut region = connector.reserve(len)?;
    region.put_slice(&pattern(seed, len));
    Ok(region)
}

const THREADS: usize = 6;
