//! Family `process`: other processes of the node, well-behaved and killed.

use std::thread;
use std::time::Duration;

use super::bytes::{holds, is_missing, pattern, same, store};
use super::case::{Case, Check, ensure};
use super::child::{Child, bytes_answer, key_of};
use super::lifetime::SOON;
use super::subject::Subject;
use crate::connector::Capabilities;
use crate::key::{Format, Key};

pub(super) const CASES: &[Case] = &[
    case("read_there", "another process reads by the key's text and the configuration's URL", read_there),
    case("read_here", "what another process put is readable here while that one lives", read_here),
    case("evict_there", "evict and take by another process are seen here, and regions stay", evict_there),
    case("one_taker", "of racing takers in several processes exactly one gets the object", one_taker),
    case("producer_ends", "objects are there after their producer ended", producer_ends)
        .needs(CROSS.union(Capabilities::OUTLIVES_PRODUCER)),
    case(
        "producer_killed",
        "objects whose key was given out are there after their producer was killed",
        producer_killed,
    )
    .needs(CROSS.union(Capabilities::OUTLIVES_PRODUCER)),
    case("killed_in_put", "a producer killed at any moment leaves no broken object and harms nobody", killed_in_put),
    case("killed_with_loans", "a killed process that held reservations and regions harms nobody", killed_with_loans),
    case("region_outlives_producer", "a region stays readable when its producer is killed", region_outlives_producer),
    case(
        "deferred_there",
        "an object committed by another process wakes a waiter here, and the reverse",
        deferred_there,
    )
    .needs(CROSS.union(Capabilities::DEFERRED)),
    case("killed_in_commit_at", "commit_at of a killed process: the whole object or none", killed_in_commit_at)
        .needs(CROSS.union(Capabilities::DEFERRED)),
];

const fn case(name: &'static str, checks: &'static str, check: fn(&Subject) -> Check) -> Case {
    Case::new("process", name, checks, check).needs(CROSS)
}

const CROSS: Capabilities = Capabilities::CROSS_PROCESS;

fn read_there(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let before = store(&*connector, 1, 5000, Format::RAW)?;
    let mut child = Child::start(subject, connector.config())?;
    let after = store(&*connector, 2, 1 << 20, Format { codec: 0x8001, fingerprint: 5 })?;
    let empty = store(&*connector, 3, 0, Format::RAW)?;
    for (key, seed, len) in [(before, 1, 5000), (after, 2, 1 << 20), (empty, 3, 0)] {
        let answer = child.ask(format_args!("get {key}"))?;
        ensure!(answer == bytes_answer(seed, len), "the child's get says {answer:?}");
        let answer = child.ask(format_args!("exists {key}"))?;
        ensure!(answer == "true", "the child's exists says {answer:?}");
    }
    connector.evict(&before).wait()?;
    for order in ["get", "take", "exists"] {
        let answer = child.ask(format_args!("{order} {before}"))?;
        ensure!(answer == "none" || answer == "false", "{order} of an evicted object says {answer:?} in the child");
    }
    holds(&*connector, &after, 2, 1 << 20)?;
    child.end()
}

fn read_here(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut child = Child::start(subject, connector.config())?;
    for len in [0, 1, 64, 5000, 1 << 20] {
        let key = child.ask_key(format_args!("put {len} {len}"))?;
        ensure!(key.len() == len as u64, "the key of {len} bytes says {}", key.len());
        holds(&*connector, &key, len as u64, len)?;
        connector.evict(&key).wait()?;
        is_missing(&*connector, &key)?;
    }
    let keys = [child.ask_key(format_args!("put 1 5000"))?, child.ask_key(format_args!("put 2 6000"))?];
    holds(&*connector, &keys[0], 1, 5000)?;
    holds(&*connector, &keys[1], 2, 6000)?;
    connector.evict_batch(&keys).wait()?;
    keys.iter().try_for_each(|key| is_missing(&*connector, key))?;
    child.end()
}

fn evict_there(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut child = Child::start(subject, connector.config())?;
    let (evicted, taken) = (store(&*connector, 1, 10_000, Format::RAW)?, store(&*connector, 2, 20_000, Format::RAW)?);
    let region = holds(&*connector, &evicted, 1, 10_000)?;
    let other = holds(&*connector, &taken, 2, 20_000)?;
    let answer = child.ask(format_args!("evict {evicted}"))?;
    ensure!(answer == "done", "the child's evict says {answer:?}");
    let answer = child.ask(format_args!("take {taken}"))?;
    ensure!(answer == bytes_answer(2, 20_000), "the child's take says {answer:?}");
    is_missing(&*connector, &evicted)?;
    is_missing(&*connector, &taken)?;
    for seed in 0..8 {
        child.ask_key(format_args!("put {seed} 10000"))?;
        child.ask_key(format_args!("put {seed} 20000"))?;
    }
    same("got before evict", &region, 1, 10_000)?;
    same("got before take", &other, 2, 20_000)?;
    let answer = child.ask(format_args!("evict {evicted}"))?;
    ensure!(answer == "done", "a second evict in the child says {answer:?}");
    child.end()
}

fn one_taker(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut children = (0..4).map(|_| Child::start(subject, connector.config())).collect::<Check<Vec<_>>>()?;
    for round in 0..50 {
        let key = store(&*connector, round, 5000, Format::RAW)?;
        for child in &mut children {
            child.tell(format_args!("take {key}"))?;
        }
        let here = connector.take(&key).wait()?;
        if let Some(region) = &here {
            same("take", region, round, 5000)?;
        }
        let mut winners = usize::from(here.is_some());
        for child in &children {
            let answer = child.reply()?;
            let won = answer == bytes_answer(round, 5000);
            ensure!(won || answer == "none", "the child's take says {answer:?}");
            winners += usize::from(won);
        }
        ensure!(winners == 1, "{winners} processes got object {round}");
        is_missing(&*connector, &key)?;
    }
    children.into_iter().try_for_each(Child::end)
}

fn producer_ends(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut child = Child::start(subject, connector.config())?;
    let keys = (0..10).map(|i| child.ask_key(format_args!("put {i} {}", i * 1000))).collect::<Check<Vec<_>>>()?;
    child.end()?;
    for (i, key) in keys.iter().enumerate() {
        holds(&*connector, key, i as u64, i * 1000)?;
    }
    Ok(())
}

fn producer_killed(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut child = Child::start(subject, connector.config())?;
    let keys = (0..10).map(|i| child.ask_key(format_args!("put {i} {}", i * 1000))).collect::<Check<Vec<_>>>()?;
    child.kill()?;
    for (i, key) in keys.iter().enumerate() {
        holds(&*connector, key, i as u64, i * 1000)?;
    }
    let mut late = Child::start(subject, connector.config())?;
    let answer = late.ask(format_args!("get {}", keys[9]))?;
    ensure!(answer == bytes_answer(9, 9000), "a later process finds {answer:?}");
    late.end()
}

fn killed_in_put(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut live: Vec<(Key, u64)> = Vec::new();
    for round in 0..ROUNDS {
        let len = if round % 2 == 0 { 300_000 } else { 64 };
        let mut child = Child::start(subject, connector.config())?;
        child.tell(format_args!("put_for_ever {len}"))?;
        let mut answers = vec![child.reply()?];
        thread::sleep(Duration::from_micros(1700 * round % 11_000));
        answers.extend(child.kill()?);
        for answer in answers.iter().rev().take(20) {
            // The pipe may end in the middle of the last line, which then is no answer.
            let Some((seed, key)) = answer.split_once(' ') else { continue };
            let (Ok(seed), Ok(key)) = (seed.parse::<u64>(), key_of(key)) else { continue };
            match connector.get(&key).wait()? {
                Some(region) => same("put by the killed", &region, seed, len)?,
                None => ensure!(!outlives(subject), "object {seed} of the killed process is lost"),
            }
        }
        for answer in answers {
            if let Some(Ok(key)) = answer.split_once(' ').map(|(_, key)| key_of(key)) {
                connector.evict(&key).wait()?;
            }
        }
        live.push((store(&*connector, round, 5000, Format::RAW)?, round));
    }
    live.iter().try_for_each(|(key, seed)| holds(&*connector, key, *seed, 5000).map(drop))
}

fn killed_with_loans(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = store(&*connector, 1, 100_000, Format::RAW)?;
    for _ in 0..ROUNDS / 2 {
        let mut child = Child::start(subject, connector.config())?;
        for _ in 0..4 {
            let answer = child.ask("reserve 1000000")?;
            ensure!(answer == "done", "the child's reserve says {answer:?}");
        }
        let answer = child.ask(format_args!("get {key}"))?;
        ensure!(answer == bytes_answer(1, 100_000), "the child's get says {answer:?}");
        child.kill()?;
        holds(&*connector, &key, 1, 100_000)?;
        let made = store(&*connector, 2, 1_000_000, Format::RAW)?;
        holds(&*connector, &made, 2, 1_000_000)?;
        connector.evict(&made).wait()?;
    }
    connector.evict(&key).wait()?;
    is_missing(&*connector, &key)
}

fn region_outlives_producer(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut child = Child::start(subject, connector.config())?;
    let mut held = Vec::new();
    for len in [1, 64, 5000, 1 << 20] {
        let key = child.ask_key(format_args!("put {len} {len}"))?;
        held.push((holds(&*connector, &key, len as u64, len)?, len));
    }
    child.kill()?;
    for round in 0..4 {
        for len in [1, 64, 5000, 1 << 20] {
            let key = store(&*connector, round, len, Format::RAW)?;
            connector.evict(&key).wait()?;
        }
    }
    held.iter().try_for_each(|(region, len)| same("after the kill", region, *len as u64, *len))
}

fn deferred_there(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut child = Child::start(subject, connector.config())?;
    for round in 0..10 {
        let key = connector.declare(Format::RAW)?;
        let waiting = connector.get_when_committed(&key).deadline(SOON);
        let answer = child.ask(format_args!("get {key}"))?;
        ensure!(answer == "none", "get of a declared key says {answer:?} in the child");
        let answer = child.ask(format_args!("commit_at {key} {round} 5000"))?;
        ensure!(answer == "done", "the child's commit_at says {answer:?}");
        same("get_when_committed", &waiting.wait()?, round, 5000)?;
        let answer = child.ask(format_args!("commit_at {key} {round} 5000"))?;
        ensure!(answer.starts_with("error AlreadyExists"), "a second commit_at says {answer:?} in the child");
        holds(&*connector, &key, round, 5000)?;

        let key = child.ask_key("declare")?;
        ensure!(child.ask(format_args!("await {key}"))? == "waiting", "the child does not wait");
        let mut region = connector.reserve(100)?;
        bytes::BufMut::put_slice(&mut region, &pattern(round, 100));
        connector.commit_at(&key, region).wait()?;
        let answer = child.reply()?;
        ensure!(answer == bytes_answer(round, 100), "the child was woken with {answer:?}");
    }
    child.end()
}

fn killed_in_commit_at(subject: &Subject) -> Check {
    const LEN: usize = 2_000_000;
    let connector = subject.open()?;
    for round in 0..ROUNDS {
        let mut child = Child::start(subject, connector.config())?;
        let key = connector.declare(Format::RAW)?;
        child.tell(format_args!("commit_at {key} {round} {LEN}"))?;
        thread::sleep(Duration::from_micros(4100 * round % 40_000));
        let done = child.kill()?.contains(&"done".to_owned());
        match connector.get(&key).wait()? {
            Some(region) => same("committed by the killed", &region, round, LEN)?,
            None => ensure!(!(done && outlives(subject)), "an object of the killed process is lost"),
        }
        connector.evict(&key).wait()?;
        is_missing(&*connector, &key)?;
    }
    Ok(())
}

fn outlives(subject: &Subject) -> bool {
    subject.capabilities().contains(Capabilities::OUTLIVES_PRODUCER)
}

const ROUNDS: u64 = 20;
