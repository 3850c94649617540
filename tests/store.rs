//! `Store`: objects in and out, batches, the registry, limits in time, what is counted.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proxystore::codec::{self, Encoder};
use proxystore::connectors::MemoryConnector;
use proxystore::store::ReservedSlice;
use proxystore::telemetry::Op;
use proxystore::{Connector, Error, ErrorKind, Key, Pending, Proxy, Region, RegionMut, Result, Store, StoreConfig};
use serde::{Deserialize, Serialize, Serializer};

mod probe;
use probe::{Mode, Probe};

#[test]
fn everything_is_send_and_sync() {
    fn both<T: Send + Sync>() {}
    fn send<T: Send>() {}
    both::<Store>();
    both::<Proxy<Vec<f64>>>();
    both::<Proxy<[f64]>>();
    both::<Proxy<str>>();
    both::<Key>();
    both::<Error>();
    both::<Region>();
    both::<RegionMut>();
    both::<StoreConfig>();
    both::<ReservedSlice<f64>>();
    send::<Pending<Key>>();
    send::<Pending<Proxy<str>>>();
}

#[test]
fn put_get_exists_evict() {
    let store = Store::open("memory://store-basics").unwrap();
    let key = store.put("hello").wait().unwrap();
    assert_eq!(key.len(), 5);
    assert!(store.exists(&key).wait().unwrap());
    assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "hello");
    assert_eq!(&*store.get_region(&key).wait().unwrap().unwrap(), b"hello");
    let view = store.get::<str>(&key).wait().unwrap().unwrap();
    store.evict(&key).wait().unwrap();
    store.evict(&key).wait().unwrap();
    assert!(!store.exists(&key).wait().unwrap());
    assert!(!store.is_cached(&key));
    assert!(store.get::<str>(&key).wait().unwrap().is_none());
    assert!(store.get_region(&key).wait().unwrap().is_none());
    assert_eq!(&*view, "hello", "a view outlives its object");
}

#[test]
fn exists_asks_the_connector_and_not_the_cache() {
    let (probe, store) = Probe::store("store-exists");
    let key = store.put("here").wait().unwrap();
    store.get::<str>(&key).wait().unwrap();
    assert!(store.is_cached(&key));
    // As another process would.
    probe.evict(&key).wait().unwrap();
    assert!(!store.exists(&key).wait().unwrap());
    assert_eq!(store.exists_batch(&[key, key]).wait().unwrap(), [false, false]);
}

#[test]
fn batches_keep_their_order_and_their_holes() {
    let (probe, store) = Probe::store("store-batches");
    let keys = store.put_batch(["zero", "one", "two", "three"]).wait().unwrap();
    store.evict(&keys[2]).wait().unwrap();
    // One of them is cached already.
    assert_eq!(&*store.get::<str>(&keys[1]).wait().unwrap().unwrap(), "one");
    assert_eq!(probe.gets(), 1);
    let views = store.get_batch::<str>(&keys).wait().unwrap();
    let texts: Vec<Option<&str>> = views.iter().map(|view| view.as_deref()).collect();
    assert_eq!(texts, [Some("zero"), Some("one"), None, Some("three")]);
    let asked = || (probe.gets(), probe.batches.load(std::sync::atomic::Ordering::SeqCst));
    assert_eq!(asked(), (1, 1));
    // All that exist are cached now; a batch of them asks nobody.
    store.get_batch::<str>(&[keys[3], keys[0]]).wait().unwrap();
    assert_eq!(asked(), (1, 1));
    assert_eq!(store.exists_batch(&keys).wait().unwrap(), [true, true, false, true]);
    store.evict_batch(&keys).wait().unwrap();
    assert_eq!(store.exists_batch(&keys).wait().unwrap(), [false; 4]);
    assert!(keys.iter().all(|key| !store.is_cached(key)));
    assert!(store.get_batch::<str>(&[]).wait().unwrap().is_empty());
    assert!(store.put_batch::<str>([]).wait().unwrap().is_empty());
}

#[test]
fn a_batch_of_the_wrong_type_fetches_nothing() {
    let (probe, store) = Probe::store("store-batch-type");
    let text = store.put("text").wait().unwrap();
    let other = store.put(&[1.0f64][..]).wait().unwrap();
    assert_eq!(store.get_batch::<str>(&[text, other]).wait().unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(probe.batches.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[test]
fn put_batch_is_all_or_nothing() {
    let (probe, store) = Probe::store("store-all-or-nothing");
    probe.commits_left(2);
    let error = store.put_batch(["a", "b", "c", "d"]).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(probe.blocks(), 0, "neither objects nor reservations stay");
    // The codec of the last one fails: nothing is committed at all.
    probe.commits_left(100);
    let before = probe.commits.load(std::sync::atomic::Ordering::SeqCst);
    let error = store.put_batch(&[Moody::Fine, Moody::Fine, Moody::Refuses]).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Codec);
    assert_eq!(probe.commits.load(std::sync::atomic::Ordering::SeqCst), before);
    assert_eq!(probe.blocks(), 0);
}

/// A value whose encoding goes wrong when told so, after some of it was written.
#[derive(Deserialize)]
enum Moody {
    Fine,
    Refuses,
    Panics,
    RefusesLate,
    PanicsLate,
    Changes,
}

impl Serialize for Moody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::{Error, SerializeSeq};
        // Well over the size that is gathered in a buffer, so that "late" is after the reservation.
        let len = match self {
            Self::Fine => 10,
            _ => 30_000,
        };
        thread_local!(static PASS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
        let pass = PASS.replace(PASS.get() + 1);
        let late = pass % 2 == 1;
        let mut seq = serializer.serialize_seq(Some(len))?;
        for i in 0..len {
            let value = u64::MAX - i as u64;
            let value = if matches!(self, Self::Changes) && !late { 1 << 40 } else { value };
            if i == len / 2 {
                match self {
                    Self::Refuses => return Err(S::Error::custom("on purpose")),
                    Self::Panics => panic!("on purpose"),
                    Self::RefusesLate if late => return Err(S::Error::custom("on purpose")),
                    Self::PanicsLate if late => panic!("on purpose"),
                    _ => {}
                }
            }
            seq.serialize_element(&value)?;
        }
        seq.end()
    }
}

#[test]
fn a_codec_that_fails_in_the_middle_of_a_put_leaves_nothing() {
    let (probe, store) = Probe::store("store-moody");
    // Each test thread has its own pass counter; the first two passes per value are even and odd.
    for value in [Moody::RefusesLate, Moody::PanicsLate, Moody::Changes] {
        for _ in 0..2 {
            let error = store.put(&value).wait().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Codec, "{error}");
            assert_eq!(probe.blocks(), 0, "{error}");
        }
    }
    for value in [Moody::Refuses, Moody::Panics] {
        let error = store.put(&value).wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Codec, "{error}");
        assert_eq!(probe.blocks(), 0);
    }
    assert_eq!(probe.commits.load(std::sync::atomic::Ordering::SeqCst), 0);
    // The thread's buffer has nothing left over for the next.
    let key = store.put(&(7u8, "next".to_owned())).wait().unwrap();
    assert_eq!(*store.get::<(u8, String)>(&key).wait().unwrap().unwrap(), (7, "next".to_owned()));
}

#[test]
fn a_custom_codec_that_fails_leaves_nothing_either() {
    let (probe, store) = Probe::store("store-moody-codec");
    let failing = |how: fn(&mut Encoder<'_>) -> Result<()>| {
        codec::from_fns::<str>(
            0x9001,
            move |_, out| {
                out.reserve(100)?;
                out.write(b"some of it")?;
                how(out)
            },
            <str as codec::Object>::view,
        )
    };
    let refuses = failing(|_| Err(Error::new(ErrorKind::Codec, "put", "on purpose")));
    let panics = failing(|_| panic!("on purpose"));
    let overflows = failing(|out| out.write(&[0; 100]));
    for _ in 0..3 {
        for error in [
            store.put_with("x", &refuses).wait().unwrap_err(),
            store.put_with("x", &panics).wait().unwrap_err(),
            store.put_with("x", &overflows).wait().unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Codec, "{error}");
        }
    }
    assert_eq!(probe.blocks(), 0);
    assert_eq!(probe.commits.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert!(store.put_with("x", &overflows).wait().unwrap_err().to_string().contains("announced 100 bytes"));
    assert!(store.put_with("x", &panics).wait().unwrap_err().to_string().contains("on purpose"));
}

#[test]
fn a_dropped_reservation_is_given_back() {
    let (probe, store) = Probe::store("store-reserve");
    drop(store.reserve(1000).unwrap());
    drop(store.reserve_slice::<f64>(1000).unwrap());
    assert_eq!(probe.blocks(), 0);
    let mut slice = store.reserve_slice::<u32>(3).unwrap();
    slice.copy_from_slice(&[1, 2, 3]);
    let key = slice.commit_key().wait().unwrap();
    assert_eq!(&*store.get::<[u32]>(&key).wait().unwrap().unwrap(), &[1, 2, 3]);
    assert_eq!(store.reserve_slice::<u64>(usize::MAX / 4).unwrap_err().kind(), ErrorKind::TooLarge);
    store.close().unwrap();
    assert_eq!(store.reserve(1).unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn stores_are_one_per_content_of_their_configuration() {
    let store = Store::open("memory://intern?cache_bytes=1MiB&deadline=2000ms").unwrap();
    for same in [
        Store::open("memory://intern?deadline=2s&cache_bytes=1048576").unwrap(),
        Store::from_config(store.config()).unwrap(),
        Store::from_config(&StoreConfig::from_toml(&store.config().to_toml()).unwrap()).unwrap(),
        Store::builder("memory://intern").deadline(Duration::from_secs(2)).cache_bytes(1 << 20).build().unwrap(),
        store.clone(),
    ] {
        assert_eq!(same, store);
    }
    for other in
        ["memory://intern", "memory://intern?cache_bytes=1MiB", "memory://intern2?cache_bytes=1MiB&deadline=2s"]
    {
        assert_ne!(Store::open(other).unwrap(), store, "{other}");
    }
}

#[test]
fn threads_that_open_at_once_get_one_store() {
    let stores: Vec<Store> = thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| Store::open("memory://open-at-once").unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(stores.iter().all(|store| *store == stores[0]));
}

#[test]
fn close_and_open_again() {
    let first = Store::open("memory://reopen").unwrap();
    let key = first.put("gone with its store").wait().unwrap();
    first.get::<str>(&key).wait().unwrap();
    let proxy: Proxy<str> = first.proxy_from_key(&key).unwrap();
    first.close().unwrap();
    first.close().unwrap();
    assert!(first.is_closed() && first.clone().is_closed());
    assert!(!first.is_cached(&key));
    for error in [
        first.put("x").wait().unwrap_err(),
        first.put_batch(["x"]).wait().unwrap_err(),
        first.get::<str>(&key).wait().unwrap_err(),
        first.get_region(&key).wait().unwrap_err(),
        first.get_batch::<str>(&[key]).wait().unwrap_err(),
        first.take::<str>(&key).wait().unwrap_err(),
        first.exists(&key).wait().unwrap_err(),
        first.exists_batch(&[key]).wait().unwrap_err(),
        first.evict(&key).wait().unwrap_err(),
        Proxy::try_get(&proxy).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    }
    let second = Store::open("memory://reopen").unwrap();
    assert_ne!(second, first);
    assert!(second.put("x").wait().is_ok());
    // A key of the former life is another store's.
    assert_eq!(second.get::<str>(&key).wait().unwrap_err().kind(), ErrorKind::ForeignKey);
    first.close().unwrap();
    assert_eq!(Store::open("memory://reopen").unwrap(), second, "closing the former does not unregister the latter");
}

#[test]
fn a_closed_store_is_let_go() {
    let (probe, store) = Probe::store("store-let-go");
    store.put("x").wait().unwrap();
    let connector = Arc::downgrade(&probe);
    drop(probe);
    store.close().unwrap();
    drop(store);
    assert!(connector.upgrade().is_none(), "something still holds the connector");
}

#[test]
fn a_reservation_that_outlives_its_store_cannot_be_committed() {
    let (probe, store) = Probe::store("store-late-commit");
    let reserved = store.reserve(10).unwrap();
    store.close().unwrap();
    assert_eq!(reserved.commit_key().wait().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(probe.blocks(), 0);
    assert_eq!(probe.closes.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn a_builder_with_code_needs_a_place_of_its_own() {
    let open = Store::open("memory://conflict").unwrap();
    let codec = codec::from_fns::<str>(0x9002, |text, out| out.write(text.as_bytes()), <str as codec::Object>::view);
    let error = Store::builder("memory://conflict").codec::<str>(codec.clone()).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    let connector: Arc<dyn Connector> = Arc::new(MemoryConnector::new("conflict"));
    assert_eq!(Store::builder_on(connector).build().unwrap_err().kind(), ErrorKind::AlreadyExists);
    // The plain builder brings nothing that the open one lacks.
    assert_eq!(Store::builder("memory://conflict").build().unwrap(), open);
    open.close().unwrap();
    let store = Store::builder("memory://conflict").codec::<str>(codec.clone()).build().unwrap();
    assert_eq!(Store::open("memory://conflict").unwrap(), store);
    let twice = Store::builder("memory://conflict-2").codec::<str>(codec.clone()).codec::<str>(codec).build();
    assert_eq!(twice.unwrap_err().kind(), ErrorKind::AlreadyExists);
    let reserved = codec::from_fns::<str>(7, |_, _| Ok(()), <str as codec::Object>::view);
    assert_eq!(Store::builder("memory://c3").codec::<str>(reserved).build().unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(Store::builder("memory://c4").deadline(Duration::ZERO).build().unwrap_err().kind(), ErrorKind::Config);
}

#[test]
fn wrong_urls_say_what_is_wrong() {
    for (url, kind, hint) in [
        ("memry://x", ErrorKind::UnknownScheme, "did you mean memory://?"),
        ("redis://x", ErrorKind::UnknownScheme, "connectors::register"),
        ("memory://x?cache_byte=1", ErrorKind::Config, "cache_bytes"),
        ("memory://x?cache_bytes=many", ErrorKind::Config, "64MiB"),
        ("memory://x?deadline=0s", ErrorKind::Config, "duration"),
        ("memory://x?deadline=soon", ErrorKind::Config, "duration"),
        ("memory://x?metrics=perhaps", ErrorKind::Config, "on or off"),
        ("memory://x?fsync=data", ErrorKind::Config, "fsync"),
        ("no scheme", ErrorKind::Invalid, "scheme"),
        ("", ErrorKind::Invalid, "scheme"),
    ] {
        let error = Store::open(url).unwrap_err();
        assert_eq!(error.kind(), kind, "{url}: {error}");
        assert!(error.to_string().contains(hint), "{url}: {error}");
        assert!(!error.to_string().contains('\n'), "{url}: {error}");
    }
}

#[test]
fn the_default_deadline_ends_what_hangs() {
    let (probe, builder) = Probe::builder("store-deadline");
    let limit = Duration::from_millis(50);
    let store = builder.deadline(limit).build().unwrap();
    let key = store.put("x").wait().unwrap();
    probe.set(Mode::Hang);
    fn ends<T>(limit: Duration, what: &str, f: impl FnOnce() -> Result<T>) {
        let start = Instant::now();
        let error = f().err().unwrap_or_else(|| panic!("{what} ended well"));
        let took = start.elapsed();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{what}: {error}");
        assert!(took >= limit && took < Duration::from_secs(10), "{what} took {took:?}");
    }
    let block_on = |pending: Pending<_>| futures::executor::block_on(pending);
    ends(limit, "get, waited", || store.get::<str>(&key).wait().map(drop));
    ends(limit, "get, awaited", || block_on(store.get::<str>(&key).and_then(|_| Ok(()))));
    ends(limit, "get_batch", || store.get_batch::<str>(&[key]).wait().map(drop));
    ends(limit, "get_batch, awaited", || block_on(store.get_batch::<str>(&[key]).and_then(|_| Ok(()))));
    ends(limit, "get_region", || store.get_region(&key).wait().map(drop));
    ends(limit, "take", || store.take::<str>(&key).wait().map(drop));
    ends(limit, "take, awaited", || block_on(store.take::<str>(&key).and_then(|_| Ok(()))));
    // A deadline of the caller's holds before the store's.
    ends(limit * 4, "get, own deadline", || store.get::<str>(&key).deadline(limit * 4).wait().map(drop));
    let (promise, proxy) = store.promise::<str>().unwrap();
    ends(limit, "a promise that nobody keeps", || Proxy::try_get(&proxy).map(drop));
    ends(limit, "the same, awaited", || block_on(Proxy::resolve(&proxy).and_then(|_| Ok(()))));
    drop(promise);
    // Nothing of that stays behind.
    probe.set(Mode::Ready);
    assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "x");
}

#[test]
fn a_deadline_frees_the_caller_of_a_call_that_cannot_be_interrupted() {
    let (probe, store) = Probe::store("store-uninterruptible");
    let key = store.put("x").wait().unwrap();
    let gate = Arc::new(probe::Gate::default());
    probe.set(Mode::Behind(Arc::clone(&gate)));
    let error = store.get::<str>(&key).deadline(Duration::from_millis(30)).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    gate.open();
    assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "x");
}

#[test]
fn metrics_count_what_happened() {
    let (probe, builder) = Probe::builder("store-metrics");
    let store = builder.metrics(true).build().unwrap();
    let stats = |op: Op| store.metrics().unwrap().into_iter().find(|stats| stats.op == op).unwrap();
    let key = store.put(&[0u8; 1000][..]).wait().unwrap();
    store.put("four").wait().unwrap();
    assert_eq!((stats(Op::Put).count, stats(Op::Put).bytes, stats(Op::Put).errors), (2, 1004, 0));
    // A miss is a get, a hit is none.
    store.get::<[u8]>(&key).wait().unwrap();
    store.get::<[u8]>(&key).wait().unwrap();
    assert_eq!((stats(Op::Get).count, stats(Op::Get).bytes), (1, 1000));
    store.get_batch::<[u8]>(&[key, store.put(&[0u8; 10][..]).wait().unwrap()]).wait().unwrap();
    assert_eq!((stats(Op::GetBatch).count, stats(Op::GetBatch).bytes), (1, 10));
    store.exists(&key).wait().unwrap();
    assert_eq!(stats(Op::Exists).count, 1);
    let proxy: Proxy<[u8]> = store.proxy_from_key(&key).unwrap();
    assert_eq!(proxy.len(), 1000);
    assert_eq!(stats(Op::Resolve).count, 1);
    probe.set(Mode::Slow(Duration::from_millis(20)));
    store.take::<[u8]>(&key).wait().unwrap();
    let take = stats(Op::Take);
    assert_eq!((take.count, take.bytes), (1, 1000));
    assert!(take.p50 >= Duration::from_millis(20) && take.p50 <= take.p99 && take.p99 <= take.max);
    assert!(take.mean >= Duration::from_millis(20) && take.max < Duration::from_secs(30));
    probe.set(Mode::Fail(ErrorKind::Io));
    let other = store.put("other").wait().unwrap();
    store.get::<str>(&other).wait().unwrap_err();
    assert_eq!((stats(Op::Get).count, stats(Op::Get).errors), (2, 1));
    store.evict(&key).wait().unwrap();
    assert_eq!(stats(Op::Evict).count, 1);
    store.put_batch(["a", "bc"]).wait().unwrap();
    assert_eq!((stats(Op::PutBatch).count, stats(Op::PutBatch).bytes), (1, 3));
    assert!(Store::open("memory://no-metrics").unwrap().metrics().is_none());
}

#[test]
fn a_timeout_is_counted_however_it_was_waited_for() {
    let (probe, builder) = Probe::builder("store-metrics-timeout");
    let store = builder.metrics(true).deadline(Duration::from_millis(20)).build().unwrap();
    let key = store.put("x").wait().unwrap();
    probe.set(Mode::Hang);
    store.get::<str>(&key).wait().unwrap_err();
    futures::executor::block_on(store.get::<str>(&key)).map(drop).unwrap_err();
    probe::eventually("both timeouts counted", || {
        let get = store.metrics().unwrap().into_iter().find(|stats| stats.op == Op::Get).unwrap();
        (get.count, get.errors) == (2, 2)
    });
}

#[test]
fn take_has_one_winner() {
    for slow in [false, true] {
        let (probe, store) = Probe::store(&format!("store-take-{slow}"));
        if slow {
            probe.set(Mode::Slow(Duration::from_millis(2)));
        }
        for _ in 0..20 {
            let key = store.put("once").wait().unwrap();
            let winners: usize = thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| scope.spawn(|| usize::from(store.take::<str>(&key).wait().unwrap().is_some())))
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(winners, 1);
        }
    }
}

#[test]
fn a_take_of_the_wrong_type_removes_nothing() {
    let (probe, store) = Probe::store("store-take-type");
    let key = store.put("text").wait().unwrap();
    assert_eq!(store.take::<[f64]>(&key).wait().unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(probe.takes.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert_eq!(&*store.take::<str>(&key).wait().unwrap().unwrap(), "text");
}

#[test]
fn a_key_of_another_store_is_refused() {
    let here = Store::open("memory://foreign-here").unwrap();
    let there = Store::open("memory://foreign-there").unwrap();
    let key = there.put("x").wait().unwrap();
    assert_eq!(here.get::<str>(&key).wait().unwrap_err().kind(), ErrorKind::ForeignKey);
    assert_eq!(here.evict(&key).wait().unwrap_err().kind(), ErrorKind::ForeignKey);
    assert!(there.exists(&key).wait().unwrap());
    let other = Key::new("file", &[1; 16], 5, key.format()).unwrap();
    assert_eq!(here.get::<str>(&other).wait().unwrap_err().kind(), ErrorKind::ForeignKey);
    assert_eq!(here.proxy_from_key::<str>(&other).unwrap_err().kind(), ErrorKind::ForeignKey);
    // A forged length is noticed.
    let mine = here.put("x").wait().unwrap();
    let forged = Key::new("memory", mine.locator(), 1 << 40, mine.format()).unwrap();
    assert_eq!(here.get::<str>(&forged).wait().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn the_futures_of_a_store_run_everywhere() {
    let (probe, store) = Probe::store("store-executors");
    probe.set(Mode::Slow(Duration::from_millis(5)));
    let work = || async {
        let key = store.put("async").await?;
        assert_eq!(&*store.get::<str>(&key).await?.unwrap(), "async");
        let keys = store.put_batch(["a", "b"]).await?;
        assert_eq!(store.get_batch::<str>(&keys).await?.len(), 2);
        store.evict_batch(&keys).await?;
        assert!(!store.exists(&keys[0]).await?);
        Ok::<_, Error>(())
    };
    futures::executor::block_on(work()).unwrap();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work()).unwrap();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap().block_on(work()).unwrap();
}
