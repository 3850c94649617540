//! Family `options`: objects with a time to live, and objects that end with their producer.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::BufMut;

use super::bytes::{holds, is_missing, pattern, same, store};
use super::case::{Case, Check, ensure, refused};
use super::child::{Child, bytes_answer};
use super::lifetime::soon;
use super::subject::Subject;
use crate::connector::{Capabilities, Connector, ConnectorExt, PutOptions};
use crate::error::{Error, ErrorKind};
use crate::key::{Format, Key};

pub(super) const CASES: &[Case] = &[
    Case::new("options", "default_is_commit", "the default options change nothing", default_is_commit),
    Case::new(
        "options",
        "no_time_to_live",
        "a connector without times to live says so, and stores nothing",
        no_time_to_live,
    )
    .lacks(TIME),
    Case::new(
        "options",
        "no_evict_with_producer",
        "a connector that cannot tell when producers end says so, and stores nothing",
        no_evict_with_producer,
    )
    .lacks(PRODUCER),
    Case::new("options", "there_before", "an object with a time to live is there until that has passed", there_before)
        .needs(TIME),
    Case::new("options", "missing_after", "past its time to live an object is missing for every method", missing_after)
        .needs(TIME),
    Case::new("options", "regions_stay", "a region that was got before stays readable past the time", regions_stay)
        .needs(TIME),
    Case::new("options", "others_stay", "objects with more time or without a limit stay", others_stay).needs(TIME),
    Case::new("options", "batch", "all members of a batch have its options", batch).needs(TIME),
    Case::new("options", "missing_there", "an object that expired is missing in every process", missing_there)
        .needs(TIME.union(CROSS)),
    Case::new("options", "producer_lives", "an object that ends with its producer is there before", producer_lives)
        .needs(PRODUCER.union(CROSS)),
    Case::new(
        "options",
        "producer_killed",
        "such an object is gone soon after its producer was killed",
        producer_killed,
    )
    .needs(PRODUCER.union(CROSS)),
    Case::new("options", "producer_ended", "such an object is gone soon after its producer ended", producer_ended)
        .needs(PRODUCER.union(CROSS)),
    Case::new("options", "ordinary_stays", "other objects of the same producer stay when it ends", ordinary_stays)
        .needs(PRODUCER.union(CROSS).union(Capabilities::OUTLIVES_PRODUCER)),
];

const TIME: Capabilities = Capabilities::TIME_TO_LIVE;
const PRODUCER: Capabilities = Capabilities::EVICT_WITH_PRODUCER;
const CROSS: Capabilities = Capabilities::CROSS_PROCESS;

fn default_is_commit(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let options = PutOptions::new();
    for len in [0, 1, 5000] {
        let key = store_with(&*connector, 1, len, &options)?;
        holds(&*connector, &key, 1, len)?;
        let key = connector.put_with(&pattern(2, len), Format::RAW, &options).wait()?;
        holds(&*connector, &key, 2, len)?;
        for key in store_batch(&connector, len, &options)? {
            holds(&*connector, &key, 3, len)?;
        }
    }
    Ok(())
}

fn no_time_to_live(subject: &Subject) -> Check {
    is_refused(subject, PutOptions::new().time_to_live(LONG), "time to live")
}

fn no_evict_with_producer(subject: &Subject) -> Check {
    is_refused(subject, PutOptions::new().evict_with_producer(), "evict with producer")
}

fn is_refused(subject: &Subject, options: PutOptions, name: &str) -> Check {
    let connector = subject.open()?;
    let unsupported = &[ErrorKind::Unsupported];
    let committed = connector.commit_with(filled(&*connector, 1, 100)?, Format::RAW, &options).wait();
    if let Err(error) = &committed {
        ensure!(error.context().contains(name), "the error does not name the option {name:?}: {error}");
    }
    refused("commit_with", committed, unsupported)?;
    refused("put_with", connector.put_with(b"bytes", Format::RAW, &options).wait(), unsupported)?;
    let regions = vec![(filled(&*connector, 1, 100)?, Format::RAW), (filled(&*connector, 2, 100)?, Format::RAW)];
    let committed = Arc::clone(&connector).commit_batch_with(regions, &options).wait();
    refused("commit_batch_with", committed, unsupported)
}

fn there_before(subject: &Subject) -> Check {
    let connector = subject.open()?;
    // A busy machine may need more time for one look than an idle one needs for all.
    for limit in [Duration::from_millis(500), Duration::from_secs(5)] {
        if looks_before(&connector, limit)? > 0 {
            return Ok(());
        }
    }
    ensure!(false, "one look took longer than five seconds");
    Ok(())
}

/// How often an object was seen before its time was over.
fn looks_before(connector: &Arc<dyn Connector>, limit: Duration) -> Check<u32> {
    let options = PutOptions::new().time_to_live(limit);
    let begin = Instant::now();
    let keys = LENGTHS.iter().map(|len| store_with(&**connector, 1, *len, &options)).collect::<Check<Vec<_>>>()?;
    let taken = store_with(&**connector, 2, 100, &options)?;
    let early = || begin.elapsed() < limit;
    let region = connector.take(&taken).wait()?;
    ensure!(region.is_some() || !early(), "take finds nothing before the time");
    let mut looks = 0;
    while early() {
        for (key, len) in keys.iter().zip(LENGTHS) {
            let (found, exists) = (connector.get(key).wait()?, connector.exists(key).wait()?);
            if !early() {
                break;
            }
            ensure!(exists, "exists is false after {:?} of {limit:?}", begin.elapsed());
            let Some(region) = found else {
                ensure!(false, "get finds nothing after {:?} of {limit:?}", begin.elapsed());
                continue;
            };
            same("get", &region, 1, len)?;
            looks += 1;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(looks)
}

fn missing_after(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let options = PutOptions::new().time_to_live(SHORT);
    let keys = LENGTHS.iter().map(|len| store_with(&*connector, 1, *len, &options)).collect::<Check<Vec<_>>>()?;
    let put = connector.put_with(&pattern(2, 300), Format::RAW, &options).wait()?;
    // Those are asked for first by one method each, in case a method finds out for the others.
    let [exists, taken, batch] = [(); 3].map(|()| store_with(&*connector, 3, 100, &options));
    let [exists, taken, batch] = [exists?, taken?, batch?];
    thread::sleep(SHORT + SLACK);
    ensure!(!connector.exists(&exists).wait()?, "exists is true past the time");
    ensure!(connector.take(&taken).wait()?.is_none(), "take finds an object past its time");
    ensure!(connector.get_batch(&[batch]).wait()? == [None], "get_batch finds an object past its time");
    for key in keys.iter().chain([&put, &exists, &taken, &batch]) {
        is_missing(&*connector, key)?;
        ensure!(connector.exists_batch(&[*key]).wait()? == [false], "exists_batch is true past the time");
        connector.evict(key).wait()?;
    }
    let never = store_with(&*connector, 4, 100, &PutOptions::new().time_to_live(Duration::ZERO))?;
    is_missing(&*connector, &never)
}

fn regions_stay(subject: &Subject) -> Check {
    const LIMIT: Duration = Duration::from_secs(1);
    let connector = subject.open()?;
    let options = PutOptions::new().time_to_live(LIMIT);
    let mut held = Vec::new();
    for len in LENGTHS {
        let key = store_with(&*connector, len as u64, len, &options)?;
        held.push((holds(&*connector, &key, len as u64, len)?, key, len));
    }
    thread::sleep(LIMIT + SLACK);
    for (_, key, _) in &held {
        is_missing(&*connector, key)?;
    }
    for round in 0..4 {
        for len in LENGTHS {
            let key = store(&*connector, 1000 + round, len, Format::RAW)?;
            holds(&*connector, &key, 1000 + round, len)?;
            connector.evict(&key).wait()?;
        }
    }
    held.iter().try_for_each(|(region, _, len)| same("past the time", region, *len as u64, *len))
}

fn others_stay(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let live = |limit| store_with(&*connector, 1, 1000, &PutOptions::new().time_to_live(limit));
    let before = store(&*connector, 1, 1000, Format::RAW)?;
    let brief = live(SHORT)?;
    let others = [before, live(LONG)?, live(Duration::MAX)?, store(&*connector, 1, 1000, Format::RAW)?];
    thread::sleep(SHORT + SLACK);
    is_missing(&*connector, &brief)?;
    others.iter().try_for_each(|key| holds(&*connector, key, 1, 1000).map(drop))?;
    connector.evict(&others[1]).wait()?;
    is_missing(&*connector, &others[1])
}

fn batch(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let long = store_batch(&connector, 100, &PutOptions::new().time_to_live(LONG))?;
    let brief = store_batch(&connector, 100, &PutOptions::new().time_to_live(SHORT))?;
    thread::sleep(SHORT + SLACK);
    brief.iter().try_for_each(|key| is_missing(&*connector, key))?;
    long.iter().try_for_each(|key| holds(&*connector, key, 3, 100).map(drop))
}

fn missing_there(subject: &Subject) -> Check {
    const LIMIT: Duration = Duration::from_millis(400);
    let connector = subject.open()?;
    let mut child = Child::start(subject, connector.config())?;
    let ours = store_with(&*connector, 1, 5000, &PutOptions::new().time_to_live(LIMIT))?;
    let theirs = child.ask_key(format_args!("put_ttl 2 5000 {}", LIMIT.as_millis()))?;
    thread::sleep(LIMIT + SLACK);
    is_missing(&*connector, &theirs)?;
    for order in ["get", "exists", "take"] {
        let answer = child.ask(format_args!("{order} {ours}"))?;
        ensure!(answer == "none" || answer == "false", "{order} says {answer:?} in the child, past the time");
    }
    // Nor does it take a living producer.
    let orphan = child.ask_key(format_args!("put_ttl 3 5000 {}", LIMIT.as_millis()))?;
    child.kill()?;
    thread::sleep(LIMIT + SLACK);
    is_missing(&*connector, &orphan)
}

fn producer_lives(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut child = Child::start(subject, connector.config())?;
    let theirs = child.ask_key("put_ephemeral 1 5000")?;
    let ours = store_with(&*connector, 2, 5000, &PutOptions::new().evict_with_producer())?;
    for _ in 0..20 {
        holds(&*connector, &theirs, 1, 5000)?;
        holds(&*connector, &ours, 2, 5000)?;
        thread::sleep(Duration::from_millis(10));
    }
    let answer = child.ask(format_args!("get {ours}"))?;
    ensure!(answer == bytes_answer(2, 5000), "the child's get says {answer:?}");
    // The end of somebody who is not the producer changes nothing.
    Child::start(subject, connector.config())?.kill()?;
    thread::sleep(SLACK);
    holds(&*connector, &theirs, 1, 5000)?;
    let answer = child.ask(format_args!("take {theirs}"))?;
    ensure!(answer == bytes_answer(1, 5000), "the child's take says {answer:?}");
    child.kill()?;
    holds(&*connector, &ours, 2, 5000)?;
    Ok(())
}

fn producer_killed(subject: &Subject) -> Check {
    let connector = subject.open()?;
    gone_with(subject, &connector, |child| child.kill().map(drop))
}

fn producer_ended(subject: &Subject) -> Check {
    let connector = subject.open()?;
    gone_with(subject, &connector, Child::end)
}

fn gone_with(subject: &Subject, connector: &Arc<dyn Connector>, end: fn(Child) -> Check) -> Check {
    let mut child = Child::start(subject, connector.config())?;
    let mut held = Vec::new();
    for len in LENGTHS {
        let key = child.ask_key(format_args!("put_ephemeral {len} {len}"))?;
        held.push((holds(&**connector, &key, len as u64, len)?, key, len));
    }
    end(child)?;
    for (_, key, _) in &held {
        soon(|| Ok(!connector.exists(key).wait()?), "an object is there 5 s after its producer ended")?;
        is_missing(&**connector, key)?;
    }
    for len in LENGTHS {
        store(&**connector, 1000, len, Format::RAW)?;
    }
    held.iter().try_for_each(|(region, _, len)| same("got before the producer ended", region, *len as u64, *len))
}

fn ordinary_stays(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut child = Child::start(subject, connector.config())?;
    let before = child.ask_key("put 1 5000")?;
    let ephemeral = child.ask_key("put_ephemeral 2 5000")?;
    let after = child.ask_key("put 3 5000")?;
    child.kill()?;
    soon(|| Ok(!connector.exists(&ephemeral).wait()?), "an object is there 5 s after its producer was killed")?;
    thread::sleep(SLACK);
    holds(&*connector, &before, 1, 5000)?;
    holds(&*connector, &after, 3, 5000)?;
    Ok(())
}

fn filled(connector: &dyn Connector, seed: u64, len: usize) -> Result<crate::region::RegionMut, Error> {
    let mut region = connector.reserve(len)?;
    region.put_slice(&pattern(seed, len));
    Ok(region)
}

fn store_with(connector: &dyn Connector, seed: u64, len: usize, options: &PutOptions) -> Check<Key> {
    Ok(connector.commit_with(filled(connector, seed, len)?, Format::RAW, options).wait()?)
}

/// A batch of three with the bytes of seed 3.
fn store_batch(connector: &Arc<dyn Connector>, len: usize, options: &PutOptions) -> Check<Vec<Key>> {
    let regions = (0..3).map(|_| Ok((filled(&**connector, 3, len)?, Format::RAW))).collect::<Check<Vec<_>>>()?;
    let keys = Arc::clone(connector).commit_batch_with(regions, options).wait()?;
    ensure!(keys.len() == 3, "{} keys for 3 objects", keys.len());
    Ok(keys)
}

/// One for each way of storing that a connector may have.
const LENGTHS: [usize; 4] = [0, 1, 5000, 1 << 20];

/// A time to live that a case waits for.
const SHORT: Duration = Duration::from_millis(100);

/// A time to live that no case sees the end of.
const LONG: Duration = Duration::from_secs(3600);

/// Between the end of a time to live and the look: clocks tick in steps.
const SLACK: Duration = Duration::from_millis(30);
