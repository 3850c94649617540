//! `Proxy`: what using one costs beside a `Box`, and what making, sending and resolving one costs.
#![allow(missing_docs, reason = "criterion_group! makes public functions")]

use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use proxystore::codec::Object;
use proxystore::{Proxy, Store, Token};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    deref(&mut criterion);
    create(&mut criterion);
    travel(&mut criterion);
    criterion.final_summary();
}

fn deref(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("1000 derefs");
    let store = Store::open("memory://bench-deref").expect("a store");
    let number = store.proxy(&15u64).wait().expect("room");
    let slice: Proxy<[u64]> = store.proxy(&[15; 16][..]).wait().expect("room");
    let boxes: (Box<u64>, Box<[u64]>) = (Box::new(*number), slice.to_vec().into());
    let shared = std::sync::Arc::new(15u64);
    // The reference goes through `black_box` each time, so that each deref is one.
    group.bench_function("Box<u64>", |bencher| bencher.iter(|| sum(|| **black_box(&boxes.0))));
    group.bench_function("Arc<u64>", |bencher| bencher.iter(|| sum(|| **black_box(&shared))));
    group.bench_function("Proxy<u64>", |bencher| bencher.iter(|| sum(|| **black_box(&number))));
    group.bench_function("Box<[u64]>", |bencher| bencher.iter(|| sum(|| black_box(&boxes.1)[3])));
    group.bench_function("Proxy<[u64]>", |bencher| bencher.iter(|| sum(|| black_box(&slice)[3])));
    group.finish();
}

fn sum(read: impl Fn() -> u64) -> u64 {
    (0..1000).map(|_| read()).sum()
}

fn create(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("create and evict, 64 B");
    let store = Store::open("memory://bench-create").expect("a store");
    let connector = store.connector();
    let value = [7u8; 64];
    group.bench_function("connector put", |bencher| {
        bencher.iter(|| {
            let key = connector.put(black_box(&value), <[u8]>::format()).wait().expect("room");
            connector.evict(&key).wait().expect("it");
        });
    });
    group.bench_function("proxy of a slice", |bencher| {
        bencher.iter(|| {
            let proxy = store.proxy(black_box(&value[..])).wait().expect("room");
            connector.evict(Proxy::key(&proxy).expect("a stored object")).wait().expect("it");
        });
    });
    let value = (1u64, 2.5f64, "sixty-four bytes of text, more or less, by postcard".to_owned());
    group.bench_function("proxy of a serde type", |bencher| {
        bencher.iter(|| {
            let proxy = store.proxy(black_box(&value)).wait().expect("room");
            connector.evict(Proxy::key(&proxy).expect("a stored object")).wait().expect("it");
        });
    });
    group.finish();
}

fn travel(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("token");
    let store = Store::open("memory://bench-token-of-a-typical-length").expect("a store");
    let proxy: Proxy<[f64]> = store.proxy(&[1.5; 16][..]).wait().expect("room");
    let (text, bytes) = (proxy.to_token().expect("stored"), proxy.to_token_bytes().expect("stored"));
    println!("token: {} characters, {} bytes", text.len(), bytes.len());
    group.bench_function("print", |bencher| bencher.iter(|| black_box(&proxy).to_token()));
    group.bench_function("parse", |bencher| bencher.iter(|| black_box(&text).parse::<Token>()));
    group.bench_function("to bytes", |bencher| bencher.iter(|| black_box(&proxy).to_token_bytes()));
    group.bench_function("from bytes", |bencher| bencher.iter(|| Token::from_bytes(black_box(&bytes))));
    assert_eq!(proxy[0], 1.5);
    group.bench_function("parse and use, cached", |bencher| {
        bencher.iter(|| {
            let proxy: Proxy<[f64]> = black_box(&text).parse().expect("a token");
            proxy[3]
        });
    });
    let token = Proxy::token(&proxy).expect("stored");
    group.bench_function("use, cached", |bencher| {
        bencher.iter(|| {
            let proxy: Proxy<[f64]> = black_box(&token).clone().into();
            proxy[3]
        });
    });
    group.finish();
}
