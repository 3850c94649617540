//! The `shm` connector: what each operation costs a process, alone and beside others of its threads; how soon a process is
//! attached, and a waiter awake.
#![allow(missing_docs, reason = "criterion_group! makes public functions")]

use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use bytes::BufMut;
use criterion::{Criterion, Throughput};
use proxystore::{Connector, Format, Key, Proxy, Store, service};

fn main() {
    if let Some(url) = std::env::args().skip_while(|word| word != ATTACH).nth(1) {
        return attached(&url);
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let url = format!("shm://bench-{}?cache_bytes=0", std::process::id());
    let store = Store::open(&url).expect("shared memory");
    connector(&mut criterion, &store);
    threads(&mut criterion, &store);
    typed(&mut criterion, &store);
    attach(&mut criterion, &url);
    wake(&mut criterion, &store);
    criterion.final_summary();
    drop(store);
    service::leave();
}

/// Puts, and whatever else ends with an object, are timed alone; what they leave is evicted outside the time, and the
/// service given time to take it back.
fn connector(criterion: &mut Criterion, store: &Store) {
    let connector = &**store.connector();
    for len in [64, 4 << 10, 64 << 10, 1 << 20] {
        let bytes = vec![7; len];
        let mut group = criterion.benchmark_group(format!("{len} B"));
        group.throughput(Throughput::Bytes(len as u64));
        let mut target = vec![1; len];
        group.bench_function("memcpy", |bencher| {
            bencher.iter(|| black_box(&mut target).copy_from_slice(black_box(&bytes)));
        });
        group.bench_function("put", |bencher| {
            bencher.iter_custom(|n| {
                timed(connector, n, len, || connector.put(black_box(&bytes), FORMAT).wait().expect("room"))
            });
        });
        group.bench_function("reserve and commit", |bencher| {
            bencher.iter_custom(|n| timed(connector, n, len, || reserved(connector, len)));
        });
        let key = connector.put(&bytes, FORMAT).wait().expect("room");
        group.bench_function("get and release", |bencher| {
            bencher.iter(|| connector.get(black_box(&key)).wait().expect("it"));
        });
        group.bench_function("exists", |bencher| {
            bencher.iter(|| connector.exists(black_box(&key)).wait().expect("an answer"))
        });
        connector.evict(&key).wait().expect("it");
        group.bench_function("take", |bencher| {
            bencher.iter_custom(|n| {
                let mut took = Duration::ZERO;
                for round in rounds(n, len) {
                    let put = |_| connector.put(&bytes, FORMAT).wait().expect("room");
                    let keys: Vec<Key> = (0..round).map(put).collect();
                    let begin = Instant::now();
                    for key in &keys {
                        black_box(connector.take(key).wait().expect("it"));
                    }
                    took += begin.elapsed();
                    thread::sleep(RECYCLING);
                }
                took
            });
        });
        group.finish();
    }
}

/// Wall time of as many operations in each thread: equal to that of one if they do not disturb each other.
fn threads(criterion: &mut Criterion, store: &Store) {
    let most = thread::available_parallelism().map_or(2, usize::from);
    let connector = &**store.connector();
    let bytes = [7; 64];
    let mut group = criterion.benchmark_group("64 B, a key each");
    for count in [1, 2, 4, 8].into_iter().filter(|count| *count <= most) {
        let keys: Vec<Key> = (0..count).map(|_| connector.put(&bytes, FORMAT).wait().expect("room")).collect();
        group.bench_function(format!("get, {count} threads"), |bencher| {
            bencher.iter_custom(|n| {
                in_threads(count, |thread| {
                    for _ in 0..n {
                        black_box(connector.get(black_box(&keys[thread])).wait().expect("it"));
                    }
                })
            });
        });
        group.bench_function(format!("put and evict, {count} threads"), |bencher| {
            bencher.iter_custom(|n| {
                in_threads(count, |_| {
                    for _ in 0..n {
                        let key = connector.put(black_box(&bytes), FORMAT).wait().expect("room");
                        connector.evict(&key).wait().expect("it");
                    }
                })
            });
        });
        keys.iter().for_each(|key| connector.evict(key).wait().expect("it"));
    }
    group.finish();
}

/// What the typed layers add.
fn typed(criterion: &mut Criterion, store: &Store) {
    let mut group = criterion.benchmark_group("[f64] of 1 MiB");
    let proxy: Proxy<[f64]> = store.proxy(&vec![1.5; 1 << 17][..]).wait().expect("room");
    let key = *Proxy::key(&proxy).expect("it comes from a store");
    let token = proxy.to_token_bytes().expect("a token");
    group.bench_function("Store::get", |bencher| {
        bencher.iter(|| store.get::<[f64]>(black_box(&key)).wait().expect("it"))
    });
    group.bench_function("resolve a proxy made of token bytes", |bencher| {
        bencher.iter(|| {
            let proxy: Proxy<[f64]> = Proxy::from_token_bytes(black_box(&token)).expect("a token");
            Proxy::try_get(&proxy).expect("it").len()
        });
    });
    store.evict(&key).wait().expect("it");
    group.finish();
}

/// The first opening of a store in a process, and a get of 1 byte, which maps the segment.
fn attach(criterion: &mut Criterion, url: &str) {
    let store = Store::open(url).expect("shared memory");
    let key = store.put(&[7u8][..]).wait().expect("room");
    let program = std::env::current_exe().expect("this program");
    let mut group = criterion.benchmark_group("a process of its own");
    group.sample_size(10);
    group.bench_function("attach and get 1 B", |bencher| {
        bencher.iter_custom(|n| {
            (0..n)
                .map(|_| {
                    let output =
                        Command::new(&program).args([ATTACH, url, &key.to_string()]).output().expect("a process");
                    let nanoseconds = String::from_utf8_lossy(&output.stdout).trim().parse();
                    Duration::from_nanos(nanoseconds.expect("a number"))
                })
                .sum()
        });
    });
    group.finish();
    store.evict(&key).wait().expect("it");
}

/// The other process of [`attach`].
fn attached(url: &str) {
    let key: Key = std::env::args().next_back().expect("a key").parse().expect("a key");
    let begin = Instant::now();
    let store = Store::open(url).expect("shared memory");
    let region = store.get_region(&key).wait().expect("it");
    let took = begin.elapsed();
    assert_eq!(region.expect("it")[..], [7]);
    println!("{}", took.as_nanos());
}

/// From the commit to a declared key until the thread that waits for it has the object.
fn wake(criterion: &mut Criterion, store: &Store) {
    let connector = Arc::clone(store.connector());
    let mut group = criterion.benchmark_group("deferred key");
    group.sample_size(10);
    group.bench_function("commit until the waiter has it", |bencher| {
        bencher.iter_custom(|n| {
            (0..n)
                .map(|_| {
                    let key = connector.declare(FORMAT).expect("room");
                    let (sender, receiver) = channel();
                    let waiter = Arc::clone(&connector);
                    let waiting = thread::spawn(move || {
                        let region = waiter.get_when_committed(&key).deadline(Duration::from_secs(10)).wait();
                        let awake = Instant::now();
                        sender.send(awake).expect("somebody listens");
                        region.expect("it").len()
                    });
                    // It is asleep by then.
                    thread::sleep(Duration::from_millis(2));
                    let mut region = connector.reserve(8).expect("room");
                    region.put_slice(&[7; 8]);
                    let begin = Instant::now();
                    connector.commit_at(&key, region).wait().expect("declared");
                    let awake = receiver.recv().expect("an answer");
                    assert_eq!(waiting.join().expect("no panic"), 8);
                    connector.evict(&key).wait().expect("it");
                    awake.saturating_duration_since(begin)
                })
                .sum()
        });
    });
    group.finish();
}

/// The time of `n` times `store`, whose objects are evicted outside of it.
fn timed(connector: &dyn Connector, n: u64, len: usize, mut store: impl FnMut() -> Key) -> Duration {
    let mut took = Duration::ZERO;
    let mut keys = Vec::new();
    for round in rounds(n, len) {
        keys.reserve(round as usize);
        let begin = Instant::now();
        for _ in 0..round {
            keys.push(store());
        }
        took += begin.elapsed();
        keys.drain(..).for_each(|key| connector.evict(&key).wait().expect("it"));
        thread::sleep(RECYCLING);
    }
    took
}

/// `n` in parts whose objects find room in memory that was used before.
fn rounds(n: u64, len: usize) -> impl Iterator<Item = u64> {
    let most = ((4 << 20) / len as u64).clamp(1, 1024);
    (0..n.div_ceil(most)).map(move |round| most.min(n - round * most))
}

fn reserved(connector: &dyn Connector, len: usize) -> Key {
    let mut region = connector.reserve(len).expect("room");
    region.initialize();
    connector.commit(region, FORMAT).wait().expect("room")
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

const FORMAT: Format = Format::RAW;

/// First argument of the process that [`attach`] starts.
const ATTACH: &str = "--attach";

/// How long the service may take to have evicted memory back.
const RECYCLING: Duration = Duration::from_millis(2);
