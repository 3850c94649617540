//! Codecs: encoding into warm memory and decoding from it, beside `memcpy` of as many bytes.
#![allow(missing_docs, reason = "criterion_group! makes public functions")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use proxystore::codec::Object;
use proxystore::{Connector, Store};
use serde::{Deserialize, Serialize};

mod warm;
use warm::Warm;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    codecs(&mut criterion);
    criterion.final_summary();
}

#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "rkyv", derive(rkyv::Archive, rkyv::Serialize))]
struct Particle {
    position: [f64; 3],
    velocity: [f32; 3],
    id: u64,
}

fn codecs(criterion: &mut Criterion) {
    for (name, size) in [("4KiB", 4 << 10), ("1MiB", 1 << 20), ("8MiB", 8 << 20)] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
        let numbers: Vec<f64> = (0..size / 8).map(|i| i as f64).collect();
        let particles: Vec<Particle> = (0..size as u64 / 44)
            .map(|id| Particle { position: [id as f64 / 7.0; 3], velocity: [id as f32; 3], id })
            .collect();
        memcpy(&mut group, size);
        both(&mut group, "[f64]", &numbers[..]);
        both(&mut group, "Vec<f64>", &numbers);
        both(&mut group, "Bytes", &Bytes::from(vec![7u8; size]));
        both(&mut group, "String", &"x".repeat(size));
        both(&mut group, "postcard", &particles);
        #[cfg(feature = "msgpack")]
        both(&mut group, "MessagePack", &proxystore::codec::MessagePack::new(particles.clone()));
        #[cfg(feature = "rkyv")]
        both(&mut group, "rkyv", &proxystore::codec::Archive(particles));
        group.finish();
    }
}

fn memcpy(group: &mut BenchmarkGroup<'_, WallTime>, size: usize) {
    let source = vec![1u8; size];
    // Memory of the same kind and alignment as what the codecs write into.
    let mut target = Warm::new("bench-memcpy", 64 << 20).reserve(size).expect("room");
    let target = target.initialize();
    group.throughput(Throughput::Bytes(size as u64));
    group.bench_function("memcpy", |bencher| {
        bencher.iter(|| {
            target.copy_from_slice(black_box(&source));
            black_box(&mut *target);
        });
    });
}

fn both<T: Object + ?Sized>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, value: &T) {
    let warm = Warm::new("bench-codec", 64 << 20);
    let connector: Arc<dyn Connector> = Arc::clone(&warm) as Arc<dyn Connector>;
    let store = Store::builder_on(connector).cache_bytes(0).build().expect("no store of that name");
    let key = store.put(value).wait().expect("room");
    let len = key.len();
    warm.keep(&warm.written(len as usize));
    group.throughput(Throughput::Bytes(len));
    group.bench_function(format!("encode {name}"), |bencher| {
        bencher.iter(|| store.put(black_box(value)).wait().expect("room"));
    });
    group.bench_function(format!("decode {name}"), |bencher| {
        bencher.iter(|| store.get::<T>(black_box(&key)).wait().expect("what was put"));
    });
    store.close().expect("nothing to fail");
}
