//! Deferred keys: objects that come after their key.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BufMut;
use futures::executor::block_on;
use libtest_mimic::Trial;
use proxystore::connectors::FileConnector;
use proxystore::{Connector, ErrorKind, Format, Key, RegionMut};

use crate::{children, files_of, store, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("deferred_life", life),
        trial("deferred_commits_once", commits_once),
        trial("deferred_wait_ends_at_the_deadline", wait_ends_at_the_deadline),
        trial("deferred_wait_ends_when_evicted", wait_ends_when_evicted),
        trial("deferred_wait_across_processes", wait_across_processes),
        trial("deferred_many_waiters", many_waiters),
        trial("deferred_wakes_after_a_producer_died_half_way", wakes_after_a_producer_died_half_way),
        trial("deferred_wake_up_latency", wake_up_latency),
    ]
}

fn region(bytes: &[u8]) -> RegionMut {
    let mut region = RegionMut::heap(bytes.len()).unwrap();
    region.put_slice(bytes);
    region
}

fn life() {
    let (_directory, store) = store();
    let format = Format { codec: 3, fingerprint: 4 };
    let key = store.declare(format).unwrap();
    assert!(!key.is_len_known() && key.format() == format);
    assert!(store.get(&key).wait().unwrap().is_none() && !store.exists(&key).wait().unwrap());
    assert!(store.take(&key).wait().unwrap().is_none());
    store.commit_at(&key, region(b"late")).wait().unwrap();
    assert_eq!(&*store.get(&key).wait().unwrap().unwrap(), b"late");
    assert_eq!(&*store.get_when_committed(&key).wait().unwrap(), b"late");
    assert_eq!(&*store.take(&key).wait().unwrap().unwrap(), b"late");
    assert_eq!(store.get_when_committed(&key).wait().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(files_of(&store), [] as [PathBuf; 0]);

    // Empty and large ones.
    let keys = [store.declare(format).unwrap(), store.declare(format).unwrap()];
    let mut large = store.reserve(1 << 20).unwrap();
    large.initialize().fill(9);
    store.commit_at(&keys[0], large).wait().unwrap();
    store.commit_at(&keys[1], store.reserve(0).unwrap()).wait().unwrap();
    let lens = store.get_batch(&keys).wait().unwrap().into_iter().map(|region| region.unwrap().len());
    assert_eq!(lens.collect::<Vec<_>>(), [1 << 20, 0]);
    store.evict_batch(&keys).wait().unwrap();

    // An ordinary key is there already, or never will be.
    let ordinary = store.put(b"ordinary", format).wait().unwrap();
    assert_eq!(&*store.get_when_committed(&ordinary).wait().unwrap(), b"ordinary");
    assert_eq!(store.commit_at(&ordinary, region(b"x")).wait().unwrap_err().kind(), ErrorKind::AlreadyExists);
    store.evict(&ordinary).wait().unwrap();
    assert_eq!(store.get_when_committed(&ordinary).wait().unwrap_err().kind(), ErrorKind::NotFound);
}

fn commits_once() {
    let (_directory, store) = store();
    let key = store.declare(Format::RAW).unwrap();
    let other = key.with_format(Format { codec: 1, fingerprint: 0 });
    assert_eq!(store.commit_at(&other, region(b"x")).wait().unwrap_err().kind(), ErrorKind::TypeMismatch);
    store.commit_at(&key, region(b"first")).wait().unwrap();
    assert_eq!(store.commit_at(&key, region(b"second")).wait().unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(&*store.get(&key).wait().unwrap().unwrap(), b"first");
    store.evict(&key).wait().unwrap();
    assert_eq!(store.commit_at(&key, region(b"third")).wait().unwrap_err().kind(), ErrorKind::NotFound);

    // Whoever wins, the object is the winner's.
    for _ in 0..100 {
        let key = store.declare(Format::RAW).unwrap();
        let outcomes = std::thread::scope(|scope| {
            let store = &store;
            let threads: Vec<_> =
                (0u8..4).map(|i| scope.spawn(move || (i, store.commit_at(&key, region(&[i; 100])).wait()))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let winners: Vec<u8> = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(i, _)| *i).collect();
        assert_eq!(winners.len(), 1);
        for (_, outcome) in outcomes {
            assert!(outcome.err().is_none_or(|error| error.kind() == ErrorKind::AlreadyExists));
        }
        assert_eq!(*store.take(&key).wait().unwrap().unwrap(), [winners[0]; 100]);
    }
    assert_eq!(files_of(&store), [] as [PathBuf; 0]);
}

fn wait_ends_at_the_deadline() {
    let (_directory, store) = store();
    let key = store.declare(Format::RAW).unwrap();
    let start = Instant::now();
    let limit = Duration::from_millis(100);
    let error = store.get_when_committed(&key).deadline(limit).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let error = block_on(store.get_when_committed(&key).deadline(limit)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let took = start.elapsed();
    assert!(took >= 2 * limit && took < Duration::from_secs(5), "{took:?}");
    // Nothing was spoilt by that.
    store.commit_at(&key, region(b"x")).wait().unwrap();
    assert_eq!(&*store.get_when_committed(&key).deadline(limit).wait().unwrap(), b"x");
}

fn wait_ends_when_evicted() {
    let (_directory, store) = store();
    woken(|| {
        let key = store.declare(Format::RAW).unwrap();
        let pending = store.get_when_committed(&key);
        std::thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        store.evict(&key).wait().unwrap();
        assert_eq!(pending.deadline(Duration::from_secs(10)).wait().unwrap_err().kind(), ErrorKind::NotFound);
        start.elapsed()
    });
}

fn wait_across_processes() {
    let (_directory, store) = store();
    woken(|| {
        let key = store.declare(Format::RAW).unwrap();
        let pending = store.get_when_committed(&key);
        let arguments = ["commits_at", &store.config().to_string(), &key.to_string(), "from afar"];
        children::succeed(&arguments, std::path::Path::new("/"));
        let start = Instant::now();
        assert_eq!(&*pending.deadline(Duration::from_secs(10)).wait().unwrap(), b"from afar");
        start.elapsed()
    });
}

/// Waiters are looked at once a second; those who are told know sooner, most of the times even on a busy machine.
fn woken(wait: impl Fn() -> Duration) {
    let mut times: Vec<Duration> = (0..7).map(|_| wait()).collect();
    times.sort();
    assert!(times[2] < Duration::from_millis(200), "woken by looking: {times:?}");
}

/// More waiters than the pool has threads: they must not keep the producers from running.
fn many_waiters() {
    let (_directory, store) = store();
    let store = Arc::new(store);
    let keys: Vec<Key> = (0..500).map(|_| store.declare(Format::RAW).unwrap()).collect();
    let producer = {
        let (store, keys) = (Arc::clone(&store), keys.clone());
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            for (index, key) in keys.iter().enumerate().rev() {
                block_on(store.commit_at(key, region(&(index as u64).to_le_bytes()))).unwrap();
            }
        })
    };
    let limit = Duration::from_secs(20);
    let waits = keys.iter().flat_map(|key| [key, key]).map(|key| store.get_when_committed(key).deadline(limit));
    let regions = block_on(futures::future::join_all(waits));
    for (index, region) in regions.into_iter().enumerate() {
        assert_eq!(*region.unwrap(), (index as u64 / 2).to_le_bytes());
    }
    producer.join().unwrap();
}

/// A declaration that stands beside its object: the producer was killed between the two.
fn wakes_after_a_producer_died_half_way() {
    let (_directory, store) = store();
    let key = store.declare(Format::RAW).unwrap();
    let declaration = files_of(&store).pop().unwrap();
    let pending = store.get_when_committed(&key);
    // What the producer did: only the last step is missing.
    std::fs::write(declaration.with_extension(""), b"half").unwrap();
    let again = FileConnector::new(store.config().location()).unwrap();
    assert_eq!(&*again.get_when_committed(&key).wait().unwrap(), b"half");
    assert_eq!(&*pending.deadline(Duration::from_secs(10)).wait().unwrap(), b"half");
    assert_eq!(store.commit_at(&key, region(b"x")).wait().unwrap_err().kind(), ErrorKind::AlreadyExists);
    store.evict(&key).wait().unwrap();
    assert_eq!(files_of(&store), [] as [PathBuf; 0]);
}

fn wake_up_latency() {
    let (_directory, store) = store();
    let store = Arc::new(store);
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let key = store.declare(Format::RAW).unwrap();
            let pending = store.get_when_committed(&key);
            let waiter = std::thread::spawn(move || {
                pending.wait().unwrap();
                Instant::now()
            });
            std::thread::sleep(Duration::from_millis(1));
            store.commit_at(&key, region(b"x")).wait().unwrap();
            let committed = Instant::now();
            waiter.join().unwrap().saturating_duration_since(committed)
        })
        .collect();
    times.sort();
    println!("deferred_wake_up_latency: p50 {:?}, p99 {:?}", times[100], times[198]);
    assert!(times[100] < Duration::from_millis(200), "woken by looking, not by the commit");
}
