//! What is measured.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proxystore::codec::{Object, Slice};
use proxystore::{Key, Proxy};

use super::buffers::{Buffers, Ring};
use super::link::{Answer, How, Link, Reference, Request};
use super::partner::{Partner, gone};
use super::place::Place;
use super::references::References;
use super::timing::{Pair, Plan};
use crate::failure::Failure;

/// This process puts, into memory that it has used before.
pub(super) fn put(place: &Place, partner: &mut Partner, size: usize, plan: &Plan) -> Result<Pair, Failure> {
    let buffers = Buffers::new(size);
    verify(place, partner, &buffers)?;
    let connector = &**place.store.connector();
    let payload = buffers.payload.clone();
    let mut keys = Vec::new();
    let mut ours = |n: usize| {
        let took = store_and_evict(place, n, &mut keys, || Ok(connector.put(&payload, <[u8]>::format()).wait()?))?;
        pause(place);
        Ok(took)
    };
    let mut ring = Ring::new(&buffers.payload);
    let mut copy = |n| {
        // From the same state of the caches: whoever else uses the processor empties them in the pause.
        pause(place);
        Ok(ring.copy(n))
    };
    Pair::measure(plan, objects_at_once(size, IN_FLIGHT, 1024), &mut ours, &mut copy)
}

/// This process reserves memory and commits it as it is.
pub(super) fn reserve(place: &Place, partner: &mut Partner, size: usize, plan: &Plan) -> Result<Pair, Failure> {
    let mut buffers = Buffers::new(size);
    verify(place, partner, &buffers)?;
    let connector = &**place.store.connector();
    let store = |size: usize| {
        let mut region = connector.reserve(size)?;
        // Writes nothing where the memory holds values already, as shared memory does.
        region.initialize();
        Ok(connector.commit(region, <[u8]>::format()).wait()?)
    };
    let mut keys = Vec::new();
    let mut ours = |n: usize| {
        // The same calls, on small objects where there is no room for many of this size: the first after the copy costs 5 to
        // 15 us at any size, which is what it takes to get code and data back into the caches. To these belong the slots of
        // what is reserved, and the memory of the keys.
        let mut warming = Vec::with_capacity(plan.warming());
        for round in 0..plan.warming() {
            let at_once = if round < 2 { n } else { 1 };
            drop((0..at_once).map(|_| connector.reserve(size)).collect::<Result<Vec<_>, _>>()?);
            warming.push(store(SMALL)?);
        }
        keys.extend(warming.iter().cycle().take(n));
        keys.clear();
        let took = store_and_evict(place, n, &mut keys, || store(size))?;
        for key in warming {
            connector.evict(&key).wait()?;
        }
        pause(place);
        Ok(took)
    };
    // Its own warming is better than one that leaves a pause behind.
    let plan = Plan { cold: true, ..*plan };
    Pair::measure(&plan, objects_at_once(size, RESERVED, 1024), &mut ours, &mut |n| Ok(buffers.copy(n)))
}

/// Times `store`, and evicts outside the time: each batch, so that there is never more than one.
///
/// What reading the clock takes is taken off: a batch of large objects is one operation, and shorter than a microsecond.
fn store_and_evict(
    place: &Place,
    n: usize,
    keys: &mut Vec<Key>,
    mut store: impl FnMut() -> Result<Key, Failure>,
) -> Result<Duration, Failure> {
    static CLOCK: LazyLock<Duration> =
        LazyLock::new(|| (0..100).map(|_| Instant::now().elapsed()).min().unwrap_or_default());
    let clock = *CLOCK;
    keys.reserve(n);
    let begin = Instant::now();
    for _ in 0..n {
        keys.push(store()?);
    }
    let took = begin.elapsed().saturating_sub(clock);
    for key in keys.drain(..) {
        place.store.connector().evict(&key).wait()?;
    }
    Ok(took)
}

/// Lets evicted memory come back, which takes the service a moment: without it every put would be into fresh memory.
fn pause(place: &Place) {
    if place.recycles() {
        // Not asleep, which gives the caches away too; but the service may have this very processor.
        let begin = Instant::now();
        while begin.elapsed() < RECYCLING {
            std::thread::yield_now();
        }
    }
}

/// This process asks for objects that are there.
pub(super) fn exists(place: &Place, partner: &mut Partner, size: usize, plan: &Plan) -> Result<Pair, Failure> {
    let mut buffers = Buffers::new(size);
    verify(place, partner, &buffers)?;
    let connector = &**place.store.connector();
    let objects = objects_at_once(size, IN_FLIGHT / 4, 16);
    let put = |_| Ok(connector.put(&buffers.payload, <[u8]>::format()).wait()?);
    let keys = (0..objects).map(put).collect::<Result<Vec<Key>, Failure>>()?;
    let mut ours = |n: usize| {
        let begin = Instant::now();
        for key in keys.iter().cycle().take(n) {
            if !connector.exists(key).wait()? {
                return Err(Failure::not_found(format_args!("{key:?} is gone")));
            }
        }
        Ok(begin.elapsed())
    };
    let pair = Pair::measure(plan, usize::MAX, &mut ours, &mut |n| Ok(buffers.copy(n)))?;
    for key in &keys {
        connector.evict(key).wait()?;
    }
    Ok(pair)
}

/// The peer gets what this process has put.
pub(super) fn get(
    place: &Place,
    partner: &mut Partner,
    size: usize,
    plan: &Plan,
    how: How,
    together: Option<usize>,
) -> Result<Pair, Failure> {
    let buffers = Buffers::new(size);
    verify(place, partner, &buffers)?;
    let (bytes, most) = match how {
        How::Batch => (IN_FLIGHT / 16, together.unwrap_or(BATCH)),
        How::Window => (IN_FLIGHT / 4, together.unwrap_or(WINDOW)),
        How::Get | How::Resolve => (IN_FLIGHT / 4, 16),
    };
    let objects = objects_at_once(size, bytes, most);
    let proxies = (0..objects).map(|_| Ok(place.store.proxy(&buffers.payload[..]).wait()?));
    let proxies = proxies.collect::<Result<Vec<Proxy<[u8]>>, Failure>>()?;
    let tokens = proxies.iter().map(Proxy::to_token_bytes).collect::<Result<_, _>>()?;
    // They answer until they are dropped.
    let running = References::start(place, how, &buffers.payload)?;
    let references: Vec<Reference> = running.to_vec();
    let answer = partner.ask(&Request::Get { tokens, how, plan: *plan, references }, limit(plan, size))?;
    for key in proxies.iter().filter_map(Proxy::key) {
        place.store.evict(key).wait()?;
    }
    match answer {
        Answer::Measured(pair) => Ok(pair),
        _ => Err(unexpected()),
    }
}

/// An object there and an object back, by their tokens.
pub(super) fn rtt(place: &Place, partner: &mut Partner, size: usize, plan: &Plan) -> Result<Pair, Failure> {
    let mut buffers = Buffers::new(size);
    verify(place, partner, &buffers)?;
    let payload = buffers.payload.clone();
    partner.within(limit(plan, size), |link| {
        let back = round_trip(place, link, &payload)?.1;
        if *back != *payload {
            return Err(Failure::new(format_args!("the reply of {size} bytes is not what the peer put")));
        }
        drop(back);
        // Both closures need the link, one at a time.
        let link = std::cell::RefCell::new(link);
        let mut ours = |n: usize| {
            let mut link = link.borrow_mut();
            let mut took = Duration::ZERO;
            for _ in 0..n {
                took += round_trip(place, &mut link, &payload)?.0;
            }
            Ok(took)
        };
        let mut bare = |n: usize| bounce(&mut link.borrow_mut(), &mut buffers, n);
        Pair::measure(plan, usize::MAX, &mut ours, &mut bare)
    })
}

/// One round trip: its time, and the bytes that came back.
fn round_trip(place: &Place, link: &mut Link, payload: &[u8]) -> Result<(Duration, Slice<u8>), Failure> {
    let begin = Instant::now();
    let there: Proxy<[u8]> = place.store.proxy(payload).wait()?;
    let Answer::Token(token) = link.ask(&Request::Reply { token: there.to_token_bytes()? })? else {
        return Err(unexpected());
    };
    let back: Proxy<[u8]> = Proxy::from_token_bytes(&token)?;
    let view = Proxy::resolve(&back).wait()?;
    let took = begin.elapsed();
    for key in [&there, &back].into_iter().filter_map(Proxy::key) {
        place.store.evict(key).wait()?;
    }
    Ok((took, view))
}

/// The reference of `rtt`: the payload itself there and back, `n` times.
fn bounce(link: &mut Link, buffers: &mut Buffers, n: usize) -> Result<Duration, Failure> {
    match link.ask(&Request::Bounce { rounds: n as u64 })? {
        Answer::Done => {}
        _ => return Err(unexpected()),
    }
    let begin = Instant::now();
    for _ in 0..n {
        link.write(&buffers.payload).map_err(gone)?;
        link.read(&mut buffers.scratch).map_err(gone)?;
    }
    let took = begin.elapsed();
    match link.receive().map_err(gone)? {
        Answer::Done => Ok(took),
        _ => Err(unexpected()),
    }
}

/// Tells the peer the size, and lets it check that an object arrives as it was put.
fn verify(place: &Place, partner: &mut Partner, buffers: &Buffers) -> Result<(), Failure> {
    let size = buffers.payload.len();
    let proxy: Proxy<[u8]> = place.store.proxy(&buffers.payload[..]).wait()?;
    let begin = Request::Begin { size: size as u64, token: proxy.to_token_bytes()?, checksum: buffers.checksum() };
    let answer = partner.ask(&begin, PATIENCE + per_byte(size));
    if let Some(key) = Proxy::key(&proxy) {
        place.store.evict(key).wait()?;
    }
    answer.map(|_| ())
}

/// How many objects of `size` may lie in the store at once.
fn objects_at_once(size: usize, bytes: usize, most: usize) -> usize {
    (bytes / size).clamp(1, most)
}

/// Longer than any measurement that goes on, and no longer than somebody waits for one that does not.
fn limit(plan: &Plan, size: usize) -> Duration {
    match plan.samples {
        Some(samples) => PATIENCE + per_byte(size) * samples.saturating_add(10),
        None => PATIENCE + plan.budget * 4 + per_byte(size) * 32,
    }
}

/// 100 MB/s: a slow disk.
fn per_byte(size: usize) -> Duration {
    Duration::from_nanos(10).saturating_mul(u32::try_from(size).unwrap_or(u32::MAX))
}

fn unexpected() -> Failure {
    Failure::new("the peer answered something else")
}

/// Bytes that a batch may have in the store.
const IN_FLIGHT: usize = 256 << 20;

/// As much as a batch may reserve: what a process gets back of its own, see `service::client`.
const RESERVED: usize = 64 << 20;

/// Of any machine.
const SMALL: usize = 64;

/// Longer than a service takes to hear of what was evicted, to reclaim it and to lease it again.
const RECYCLING: Duration = Duration::from_millis(2);

/// Objects of one batch.
const BATCH: usize = 1000;

/// Gets on their way at a time.
const WINDOW: usize = 64;

const PATIENCE: Duration = Duration::from_secs(20);
