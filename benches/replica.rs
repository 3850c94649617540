//! Objects of other nodes in the memory of this one: what it costs to find one that is there, and to bring one in beyond the
//! copy.
//!
//! The places at which tests kill the process are compiled in, which costs a load and a comparison each.
#![allow(missing_docs, reason = "criterion_group! makes public functions")]

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use criterion::Criterion;
use proxystore::service::inspect::{Remote, Replicas, Shared};
use proxystore::service::{self, Namespace};
use proxystore::{Connector, Format, Store};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let name = format!("bench-{}", std::process::id());
    let store = Store::open(&format!("shm://{name}?cache_bytes=0")).expect("shared memory");
    let replicas = Replicas::of(&name).expect("the namespace");
    found(&mut criterion, &replicas, &**store.connector());
    fetched(&mut criterion, &replicas, &**store.connector());
    figures(&mut criterion, &replicas, &name);
    criterion.final_summary();
    drop((replicas, store));
    service::leave();
}

fn found(criterion: &mut Criterion, replicas: &Replicas, connector: &dyn Connector) {
    let mut group = criterion.benchmark_group("one that is there");
    land(replicas, remote(0), &[7; 4096]);
    group.bench_function("find, view and release", |bencher| {
        bencher.iter(|| match replicas.get(black_box(remote(0))).expect("cells") {
            Shared::Landed(region, fresh) => (region[0], fresh),
            other => panic!("{other:?}"),
        });
    });
    let key = connector.put(&[7; 4096], Format::RAW).wait().expect("room");
    group.bench_function("get and release of one's own", |bencher| {
        bencher.iter(|| connector.get(black_box(&key)).wait().expect("it"));
    });
    connector.evict(&key).wait().expect("it");
    group.finish();
}

/// What lands is forgotten outside the time, and the service given time to take it back.
fn fetched(criterion: &mut Criterion, replicas: &Replicas, connector: &dyn Connector) {
    let mut group = criterion.benchmark_group("one of 64 B that is not");
    group.bench_function("claim, fill and land", |bencher| {
        bencher.iter_custom(|n| {
            let mut took = Duration::ZERO;
            for round in rounds(n) {
                let begin = Instant::now();
                (0..round).for_each(|n| land(replicas, remote(n), &[7; 64]));
                took += begin.elapsed();
                (0..round).for_each(|n| replicas.forget(remote(n)).expect("cells"));
                thread::sleep(RECYCLING);
            }
            took
        });
    });
    group.bench_function("claim and give up", |bencher| {
        bencher.iter_custom(|n| {
            let mut took = Duration::ZERO;
            for round in rounds(n) {
                let begin = Instant::now();
                (0..round).for_each(|n| drop(replicas.get(remote(n)).expect("room")));
                took += begin.elapsed();
                thread::sleep(RECYCLING);
            }
            took
        });
    });
    group.bench_function("put of one's own", |bencher| {
        bencher.iter_custom(|n| {
            let mut took = Duration::ZERO;
            for round in rounds(n) {
                let begin = Instant::now();
                let put = |_| connector.put(&[7; 64], Format::RAW).wait().expect("room");
                let keys: Vec<_> = (0..round).map(put).collect();
                took += begin.elapsed();
                keys.iter().for_each(|key| connector.evict(key).wait().expect("it"));
                thread::sleep(RECYCLING);
            }
            took
        });
    });
    group.finish();
}

/// The service walks all slots for its figures, and once for the replicas; so it does for the budget, once a second.
fn figures(criterion: &mut Criterion, replicas: &Replicas, name: &str) {
    let namespace = Namespace::find(name).expect("it answers").expect("it is ours");
    let mut group = criterion.benchmark_group("figures of the service");
    group.sample_size(20);
    for count in [0, 10_000] {
        (0..count).for_each(|n| land(replicas, remote(n), &[7; 64]));
        group.bench_function(format!("with {count} replicas"), |bencher| bencher.iter(|| namespace.stats()));
    }
    group.finish();
}

fn land(replicas: &Replicas, remote: Remote, bytes: &[u8]) {
    match replicas.get(remote).expect("room") {
        Shared::Claimed(fetching) => drop(fetching.land(bytes, Duration::from_secs(9), None).expect("room")),
        Shared::Landed(..) => {}
        other => panic!("{other:?}"),
    }
}

fn remote(n: u32) -> Remote {
    (0x1234_5678, n, 9)
}

/// `n` in parts for which there are leases.
fn rounds(n: u64) -> impl Iterator<Item = u32> {
    (0..n.div_ceil(512)).map(move |round| (n - round * 512).min(512) as u32)
}

/// How long the service may take to have ended objects back.
const RECYCLING: Duration = Duration::from_millis(2);
