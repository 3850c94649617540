//! `Store` on the memory connector: what it adds to the connector's own get and put, and what a cache hit costs.
#![allow(missing_docs, reason = "criterion_group! makes public functions")]

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use criterion::Criterion;
use proxystore::codec::Object;
use proxystore::{Key, Store};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    get(&mut criterion);
    hit(&mut criterion);
    put(&mut criterion);
    criterion.final_summary();
}

fn get(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("get 64 B");
    let store = Store::open("memory://bench-get?cache_bytes=0").expect("a store");
    let key = store.put(&[7u8; 64][..]).wait().expect("room");
    let connector = store.connector();
    group.bench_function("connector", |bencher| bencher.iter(|| connector.get(black_box(&key)).wait().expect("it")));
    group.bench_function("store, bytes as they are", |bencher| {
        bencher.iter(|| store.get_region(black_box(&key)).wait().expect("it"));
    });
    group.bench_function("store, no cache", |bencher| {
        bencher.iter(|| store.get::<[u8]>(black_box(&key)).wait().expect("it"));
    });
    group.finish();
}

fn hit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cache hit");
    let store = Store::open("memory://bench-hit").expect("a store");
    let keys: Vec<Key> = (0..64).map(|i| store.put(&[i as u8; 64][..]).wait().expect("room")).collect();
    for key in &keys {
        store.get::<[u8]>(key).wait().expect("it");
    }
    group.bench_function("1 thread", |bencher| {
        bencher.iter(|| store.get::<[u8]>(black_box(&keys[0])).wait().expect("it"));
    });
    group.bench_function("1 thread, 64 keys", |bencher| {
        let mut i = 0;
        bencher.iter(|| {
            i = (i + 1) % 64;
            store.get::<[u8]>(black_box(&keys[i])).wait().expect("it")
        });
    });
    // Wall time of as many hits in each thread: equal to that of one thread if they do not disturb each other.
    let apart: Vec<(Store, Key)> = (0..2)
        .map(|i| {
            let store = Store::open(&format!("memory://bench-hit-{i}")).expect("a store");
            let key = store.put(&[7u8; 64][..]).wait().expect("room");
            store.get::<[u8]>(&key).wait().expect("it");
            (store, key)
        })
        .collect();
    group.bench_function("2 threads, nothing shared", |bencher| {
        bencher.iter_custom(|n| {
            in_threads(2, |thread| {
                let (store, key) = &apart[thread];
                for _ in 0..n {
                    black_box(store.get::<[u8]>(black_box(key)).wait().expect("it"));
                }
            })
        });
    });
    for (name, stride) in [("2 threads, own keys", 32), ("2 threads, same key", 0)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|n| {
                in_threads(2, |thread| {
                    let key = &keys[thread * stride];
                    for _ in 0..n {
                        black_box(store.get::<[u8]>(black_box(key)).wait().expect("it"));
                    }
                })
            });
        });
    }
    group.finish();
}

fn put(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("put and evict 64 B");
    let store = Store::open("memory://bench-put").expect("a store");
    let connector = store.connector();
    let value = [7u8; 64];
    group.bench_function("connector", |bencher| {
        bencher.iter(|| {
            let key = connector.put(black_box(&value), <[u8]>::format()).wait().expect("room");
            connector.evict(&key).wait().expect("it");
        });
    });
    group.bench_function("store", |bencher| {
        bencher.iter(|| {
            let key = store.put(black_box(&value[..])).wait().expect("room");
            connector.evict(&key).wait().expect("it");
        });
    });
    group.bench_function("store, and evicted by it", |bencher| {
        bencher.iter(|| {
            let key = store.put(black_box(&value[..])).wait().expect("room");
            store.evict(&key).wait().expect("it");
        });
    });
    group.finish();
}

/// Wall time from the first start to the last end.
fn in_threads(threads: usize, f: impl Fn(usize) + Sync) -> Duration {
    let start = Instant::now();
    thread::scope(|scope| {
        let f = &f;
        (0..threads).for_each(|thread| drop(scope.spawn(move || f(thread))));
    });
    start.elapsed()
}
