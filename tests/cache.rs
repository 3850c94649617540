//! The cache of resolved objects: single flight, limits, staleness, figures.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use proxystore::{Connector, ErrorKind, Key, Proxy, Region, Store};

mod probe;
use probe::{Gate, Mode, Probe, eventually};

#[test]
fn threads_that_miss_the_same_key_cause_one_get() {
    let (probe, store) = Probe::store("cache-flight");
    probe.set(Mode::Slow(Duration::from_millis(50)));
    let key = store.put("shared").wait().unwrap();
    let barrier = Barrier::new(64);
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                barrier.wait();
                assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "shared");
            });
        }
    });
    assert_eq!(probe.gets(), 1);
    let stats = store.cache_stats();
    assert_eq!((stats.hits + stats.misses, stats.objects, stats.bytes), (64, 1, 6));
}

#[test]
fn a_slow_miss_holds_up_nobody_else() {
    let (probe, store) = Probe::store("cache-slow-miss");
    let slow = store.put("slow").wait().unwrap();
    // Enough keys to meet the slow one's shard, whichever that is.
    let others: Vec<Key> = (0..200).map(|i| store.put(&format!("other {i}")).wait().unwrap()).collect();
    for key in &others[..100] {
        store.get::<String>(key).wait().unwrap();
    }
    let gate = Arc::new(Gate::default());
    probe.set(Mode::Behind(Arc::clone(&gate)));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| store.get::<str>(&slow).wait().unwrap().is_some());
        eventually("the slow get began", || gate.waiting.load(Ordering::SeqCst) == 1);
        probe.set(Mode::Ready);
        let start = Instant::now();
        for (i, key) in others.iter().enumerate() {
            assert_eq!(store.is_cached(key), i < 100);
            assert_eq!(*store.get::<String>(key).wait().unwrap().unwrap(), format!("other {i}"));
        }
        assert!(!store.is_cached(&slow));
        store.evict(&others[0]).wait().unwrap();
        store.put("another").wait().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(!waiter.is_finished());
        gate.open();
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn an_operation_that_nobody_drives_holds_up_nobody() {
    let (probe, store) = Probe::store("cache-idle-leader");
    probe.set(Mode::Slow(Duration::from_millis(5)));
    let key = store.put("x").wait().unwrap();
    let first = store.get::<str>(&key);
    // Same thread: waiting for the second must not wait for somebody to wait for the first.
    let second = store.get::<str>(&key);
    assert_eq!(&*second.wait().unwrap().unwrap(), "x");
    assert_eq!(&*first.wait().unwrap().unwrap(), "x");
    let proxy = Proxy::<str>::clone(&store.proxy("y").wait().unwrap());
    let idle = Proxy::resolve(&proxy);
    assert_eq!(&*proxy, "y");
    drop(idle);
    assert_eq!(probe.gets(), 2);
}

#[test]
fn an_evicted_object_does_not_come_back_by_a_get_in_flight() {
    let (probe, store) = Probe::store("cache-evict-in-flight");
    let key = store.put("doomed").wait().unwrap();
    let other = store.clone();
    // Evicted after the bytes were read, before they arrive.
    probe.after_get(move |key| other.evict(key).wait().unwrap());
    probe.set(Mode::Slow(Duration::ZERO));
    assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "doomed");
    assert!(!store.is_cached(&key));
    assert!(store.get::<str>(&key).wait().unwrap().is_none());
}

#[test]
fn nor_by_a_batch_in_flight() {
    let (probe, store) = Probe::store("cache-evict-in-batch");
    let keys = store.put_batch(["doomed", "stays"]).wait().unwrap();
    let other = store.clone();
    probe.after_get(move |key| other.evict(key).wait().unwrap());
    probe.set(Mode::Slow(Duration::ZERO));
    let views = store.get_batch::<str>(&keys).wait().unwrap();
    assert_eq!(views[0].as_deref(), Some("doomed"));
    assert!(!store.is_cached(&keys[0]));
    assert!(store.is_cached(&keys[1]));
    assert!(store.get::<str>(&keys[0]).wait().unwrap().is_none());
}

#[test]
fn nor_by_a_get_between_the_two_halves_of_a_removal() {
    for what in ["evict", "evict_batch", "take"] {
        let (probe, store) = Probe::store(&format!("cache-{what}-halves"));
        let keys = store.put_batch(["doomed", "too"]).wait().unwrap();
        let other = store.clone();
        // Another thread reads it when the cache has forgotten it and the connector has not.
        probe.before_removal(move |key| {
            let view = other.get::<str>(key).wait().unwrap();
            assert_eq!(view.as_deref(), Some("doomed"));
        });
        match what {
            "evict" => store.evict(&keys[0]).wait().unwrap(),
            "evict_batch" => store.evict_batch(&keys).wait().unwrap(),
            _ => drop(store.take::<str>(&keys[0]).wait().unwrap()),
        }
        assert!(!store.is_cached(&keys[0]), "{what}");
        assert!(store.get::<str>(&keys[0]).wait().unwrap().is_none(), "{what}");
    }
}

#[test]
fn racing_gets_and_evictions_leave_nothing_stale() {
    let store = Store::open("memory://cache-race").unwrap();
    for _ in 0..300 {
        let key = store.put("short-lived").wait().unwrap();
        let barrier = Barrier::new(3);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    barrier.wait();
                    for _ in 0..3 {
                        store.get::<str>(&key).wait().unwrap();
                        store.get_batch::<str>(&[key]).wait().unwrap();
                    }
                });
            }
            scope.spawn(|| {
                barrier.wait();
                store.evict(&key).wait().unwrap();
            });
        });
        assert!(!store.is_cached(&key));
    }
}

#[test]
fn the_count_limit_holds_and_the_newest_stays() {
    for limit in [1, 2, 16] {
        let store = Store::builder(&format!("memory://cache-count-{limit}")).cache_objects(limit).build().unwrap();
        let keys: Vec<Key> = (0..200).map(|i| store.put(&format!("{i}")).wait().unwrap()).collect();
        for (i, key) in keys.iter().enumerate() {
            store.get::<String>(key).wait().unwrap();
            let stats = store.cache_stats();
            assert_eq!(stats.objects, limit.min(i as u64 + 1));
            assert!(store.is_cached(key), "object {i} of {limit} was thrown out by its own arrival");
        }
        let cached = keys.iter().filter(|key| store.is_cached(key)).count() as u64;
        assert_eq!(cached, limit);
        assert_eq!(store.cache_stats().max_objects, limit);
    }
}

#[test]
fn what_is_used_stays() {
    let store = Store::builder("memory://cache-clock").cache_objects(8).build().unwrap();
    let hot = store.put("hot").wait().unwrap();
    store.get::<str>(&hot).wait().unwrap();
    let misses = store.cache_stats().misses;
    let mut kept = 0;
    for i in 0..100 {
        let cold = store.put(&format!("cold {i}")).wait().unwrap();
        store.get::<String>(&cold).wait().unwrap();
        kept += usize::from(store.is_cached(&hot));
        store.get::<str>(&hot).wait().unwrap();
    }
    let hot_misses = store.cache_stats().misses - misses - 100;
    assert!(hot_misses < 5, "an object used between any two others was missed {hot_misses} times of 100 ({kept} kept)");
}

#[test]
fn the_byte_budget_holds() {
    let store = Store::builder("memory://cache-bytes").cache_bytes(1000).build().unwrap();
    let put = |n: usize| store.put(&vec![0u8; n]).wait().unwrap();
    let get = |key: &Key| store.get::<[u8]>(key).wait().unwrap().unwrap().len();
    let large = put(1001);
    assert_eq!(get(&large), 1001);
    assert!(!store.is_cached(&large), "heavier than the budget");
    let exact = put(1000);
    get(&exact);
    assert!(store.is_cached(&exact));
    assert_eq!(store.cache_stats().bytes, 1000);
    let small = put(1);
    get(&small);
    assert!(store.is_cached(&small) && !store.is_cached(&exact));
    assert_eq!((store.cache_stats().bytes, store.cache_stats().objects), (1, 1));
    // An empty object weighs something, or a million of them would weigh nothing.
    let empty = put(0);
    get(&empty);
    assert_eq!((store.cache_stats().bytes, store.cache_stats().objects), (2, 2));
    store.evict_batch(&[small, empty]).wait().unwrap();
    assert_eq!((store.cache_stats().bytes, store.cache_stats().objects), (0, 0));
}

#[test]
fn an_object_of_unknown_length_does_not_slip_past_the_budget() {
    let store = Store::builder("memory://cache-deferred").cache_bytes(1000).build().unwrap();
    let (promise, proxy) = store.promise::<[u8]>().unwrap();
    let key = *promise.key();
    promise.set(&[7; 100_000]).wait().unwrap();
    assert_eq!(proxy.len(), 100_000);
    assert_eq!(store.get::<[u8]>(&key).wait().unwrap().unwrap().len(), 100_000);
    assert_eq!(store.cache_stats().bytes, 0);
    assert!(!store.is_cached(&key));
}

#[test]
fn limits_are_exact_after_any_load() {
    let store = Store::builder("memory://cache-load").cache_bytes(10_000).cache_objects(20).build().unwrap();
    let keys: Vec<Key> = (0..400).map(|i| store.put(&vec![0u8; 1 + (i * 37) % 3000]).wait().unwrap()).collect();
    let (done, worst) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let (store, keys) = (&store, &keys);
                scope.spawn(move || {
                    for i in 0..2000usize {
                        let key = &keys[(i * (2 * thread + 1) * 7919 + thread * 131) % keys.len()];
                        match i % 17 {
                            0 => drop(store.get_batch::<[u8]>(&[*key, keys[i % 400]]).wait().unwrap()),
                            _ => assert_eq!(store.get::<[u8]>(key).wait().unwrap().unwrap().len() as u64, key.len()),
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                worst.fetch_max(store.cache_stats().bytes as usize, Ordering::SeqCst);
                thread::yield_now();
            }
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::SeqCst);
    });
    let stats = store.cache_stats();
    assert!(stats.bytes <= 10_000 && stats.objects <= 20, "{stats:?}");
    // What is counted is what is there.
    let cached: Vec<&Key> = keys.iter().filter(|key| store.is_cached(key)).collect();
    assert_eq!(cached.len() as u64, stats.objects);
    assert_eq!(cached.iter().map(|key| key.len()).sum::<u64>(), stats.bytes);
    // On the way each thread may be over by what it is bringing in.
    let worst = worst.into_inner();
    assert!(worst <= 10_000 + 8 * 2 * 3000, "{worst}");
}

#[test]
fn hits_and_misses_are_counted() {
    let (probe, store) = Probe::store("cache-figures");
    let keys = store.put_batch(["a", "b", "c"]).wait().unwrap();
    let figures = || (store.cache_stats().hits, store.cache_stats().misses);
    assert_eq!(figures(), (0, 0), "putting reads nothing");
    store.get::<str>(&keys[0]).wait().unwrap();
    assert_eq!(figures(), (0, 1));
    store.get::<str>(&keys[0]).wait().unwrap();
    assert_eq!(figures(), (1, 1));
    store.get_batch::<str>(&keys).wait().unwrap();
    assert_eq!(figures(), (2, 3));
    assert!(store.is_cached(&keys[2]));
    assert_eq!(figures(), (2, 3), "asking whether is no use");
    store.evict(&keys[0]).wait().unwrap();
    assert!(store.get::<str>(&keys[0]).wait().unwrap().is_none());
    assert_eq!(figures(), (2, 4));
    // That nothing is there is not remembered.
    assert!(store.get::<str>(&keys[0]).wait().unwrap().is_none());
    assert_eq!(probe.gets(), 3);
}

#[test]
fn one_object_seen_as_two_types() {
    let (probe, store) = Probe::store("cache-two-types");
    let key = store.put(&vec![1.0f64, 2.0]).wait().unwrap();
    for _ in 0..3 {
        assert_eq!(&*store.get::<[f64]>(&key).wait().unwrap().unwrap(), [1.0, 2.0]);
        assert_eq!(*store.get::<Vec<f64>>(&key).wait().unwrap().unwrap(), [1.0, 2.0]);
        assert_eq!(store.cache_stats().objects, 1);
        assert_eq!(store.cache_stats().bytes, 16);
    }
    assert!(probe.gets() >= 2);
    // A wrong type finds nothing, cached or not.
    let error = store.get::<[u64]>(&key).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TypeMismatch);
}

#[test]
fn a_disabled_cache_keeps_nothing() {
    for (i, builder) in [
        Store::builder("memory://cache-off-bytes").cache_bytes(0),
        Store::builder("memory://cache-off-objects").cache_objects(0),
    ]
    .into_iter()
    .enumerate()
    {
        let store = builder.build().unwrap();
        let keys = store.put_batch(["a", "b"]).wait().unwrap();
        store.get::<str>(&keys[0]).wait().unwrap();
        store.get_batch::<str>(&keys).wait().unwrap();
        assert_eq!(store.cache_stats().objects, 0, "{i}");
        assert!(!store.is_cached(&keys[0]) && !store.is_cached(&keys[1]), "{i}");
    }
}

#[test]
fn failures_are_not_cached() {
    let (probe, store) = Probe::store("cache-failures");
    let key = store.put("x").wait().unwrap();
    probe.set(Mode::Fail(ErrorKind::Io));
    for _ in 0..2 {
        assert_eq!(store.get::<str>(&key).wait().unwrap_err().kind(), ErrorKind::Io);
    }
    assert_eq!(probe.gets(), 2);
    // Nor is a missing object that appears later, as a deferred one does.
    probe.set(Mode::Ready);
    let (promise, _proxy) = store.promise::<str>().unwrap();
    let deferred = *promise.key();
    assert!(store.get::<str>(&deferred).wait().unwrap().is_none());
    promise.set("now").wait().unwrap();
    assert_eq!(store.get::<str>(&deferred).wait().unwrap().as_deref(), Some("now"));
}

#[test]
fn a_closed_store_keeps_nothing_that_arrives_late() {
    let (probe, store) = Probe::store("cache-close");
    let key = store.put("x").wait().unwrap();
    let other = store.clone();
    probe.set(Mode::Slow(Duration::ZERO));
    probe.after_get(move |_| other.close().unwrap());
    assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "x");
    assert_eq!(store.cache_stats().objects, 0);
    assert_eq!(store.cache_stats().bytes, 0);
}

#[test]
fn a_view_in_use_survives_its_eviction() {
    let (probe, builder) = Probe::builder("cache-view-lives");
    let store = builder.cache_objects(1).build().unwrap();
    let keys = store.put_batch([&[1u64, 2][..], &[3, 4]]).wait().unwrap();
    let view = store.get::<[u64]>(&keys[0]).wait().unwrap().unwrap();
    store.get::<[u64]>(&keys[1]).wait().unwrap();
    store.evict_batch(&keys).wait().unwrap();
    assert_eq!(probe.blocks(), 1);
    assert_eq!(&*view, [1, 2]);
    drop(view);
    assert_eq!(probe.blocks(), 0, "the last view releases the memory");
}

#[test]
fn foreign_memory_is_released_by_eviction() {
    struct Owner(Arc<AtomicUsize>, Region);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.1
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (probe, store) = Probe::store("cache-foreign");
    let key = store.put("12345678").wait().unwrap();
    let drops = Arc::new(AtomicUsize::new(0));
    let owner = Owner(Arc::clone(&drops), Region::copy_from_slice(b"abcdefgh").unwrap());
    probe.set(Mode::Instead(Region::from_owner(owner).unwrap()));
    assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "abcdefgh");
    probe.set(Mode::Ready);
    assert_eq!(drops.load(Ordering::SeqCst), 0);
    store.evict(&key).wait().unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    assert!(!probe.exists(&key).wait().unwrap());
}
