//! Commits beyond one object: options on every way of putting, and batches that end early, late, in part or never.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BufMut;
use futures::executor::block_on;
use proxystore::codec;
use proxystore::connector::PutOptions;
use proxystore::connectors::MemoryConnector;
use proxystore::pending::Completer;
use proxystore::{Capabilities, Connector, ConnectorConfig, ConnectorExt, Error, ErrorKind, Format, Key, Pending};
use proxystore::{Proxy, Region, RegionMut, Result, Store};

/// A memory connector that takes options, and whose commits end as they are told.
struct Scripted {
    inner: Arc<MemoryConnector>,
    /// How the next commits end; by themselves when there is nothing left.
    script: Mutex<VecDeque<End>>,
    /// Commits that wait for [`Scripted::end`].
    open: Mutex<Vec<(Completer<Key>, Result<Key>)>>,
    made: Mutex<Vec<(Key, PutOptions)>>,
}

enum End {
    Fails,
    /// On the thread that waits, or in the pool.
    Blocking,
    FailsBlocking,
    /// When somebody else says so.
    Later,
    FailsLater,
}

impl Scripted {
    fn new(name: &str, script: impl IntoIterator<Item = End>) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::new(MemoryConnector::new(name)),
            script: Mutex::new(script.into_iter().collect()),
            open: Mutex::default(),
            made: Mutex::default(),
        })
    }

    /// Ends what waits.
    fn end(&self) {
        for (completer, result) in std::mem::take(&mut *self.open.lock().unwrap()) {
            completer.complete(result);
        }
    }

    fn keys(&self) -> Vec<Key> {
        self.made.lock().unwrap().iter().map(|(key, _)| *key).collect()
    }

    /// Objects that are there.
    fn left(&self) -> usize {
        self.keys().iter().filter(|key| self.inner.exists(key).wait().unwrap()).count()
    }

    fn regions(&self, n: u8) -> Vec<(RegionMut, Format)> {
        let region = |i| {
            let mut region = self.reserve(1).unwrap();
            region.put_u8(i);
            (region, Format::RAW)
        };
        (0..n).map(region).collect()
    }
}

impl Connector for Scripted {
    fn config(&self) -> &ConnectorConfig {
        self.inner.config()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities() | Capabilities::TIME_TO_LIVE | Capabilities::EVICT_WITH_PRODUCER
    }
    fn reserve(&self, len: usize) -> Result<RegionMut> {
        self.inner.reserve(len)
    }
    fn commit(&self, region: RegionMut, format: Format) -> Pending<Key> {
        self.commit_with(region, format, &PutOptions::new())
    }
    fn commit_with(&self, region: RegionMut, format: Format, options: &PutOptions) -> Pending<Key> {
        let fail = || Err(Error::new(ErrorKind::NoSpace, "commit", "as the script has it"));
        let end = self.script.lock().unwrap().pop_front();
        if matches!(end, Some(End::Fails)) {
            return Pending::ready(fail());
        }
        let result = match &end {
            Some(End::FailsBlocking | End::FailsLater) => fail(),
            _ => self.inner.commit(region, format).wait(),
        };
        if let Ok(key) = &result {
            self.made.lock().unwrap().push((*key, *options));
        }
        match end {
            Some(End::Blocking | End::FailsBlocking) => Pending::blocking(move || {
                thread::sleep(Duration::from_millis(5));
                result
            }),
            Some(End::Later | End::FailsLater) => {
                let (completer, pending) = Pending::channel();
                self.open.lock().unwrap().push((completer, result));
                pending
            }
            _ => Pending::ready(result),
        }
    }
    fn get(&self, key: &Key) -> Pending<Option<Region>> {
        self.inner.get(key)
    }
    fn exists(&self, key: &Key) -> Pending<bool> {
        self.inner.exists(key)
    }
    fn evict(&self, key: &Key) -> Pending<()> {
        // Later than it returns, so that who does not wait for it is found out.
        let (inner, key) = (Arc::clone(&self.inner), *key);
        Pending::blocking(move || {
            thread::sleep(Duration::from_millis(2));
            inner.evict(&key).wait()
        })
    }
    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        self.inner.take(key)
    }
    fn close(&self) -> Result<()> {
        self.inner.close()
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

type Wait = fn(Pending<Vec<Key>>) -> Result<Vec<Key>>;

/// Ways to end an operation.
const WAITS: [Wait; 3] = [
    |batch| batch.wait(),
    |batch| block_on(batch),
    // An explicit deadline moves blocking calls to the pool.
    |batch| batch.deadline(Duration::from_secs(10)).wait(),
];

// -- Batches ---------------------------------------------------------------------------------------------------------

#[test]
fn keys_in_order_however_commits_end() {
    for wait in WAITS {
        let connector = Scripted::new("order", [End::Later, End::Blocking, End::Later, End::Blocking]);
        let batch = Arc::clone(&connector).commit_batch(connector.regions(6));
        assert!(!batch.is_ready());
        let ender = Arc::clone(&connector);
        let ender = thread::spawn(move || {
            thread::sleep(Duration::from_millis(10));
            ender.end();
        });
        let keys = wait(batch).unwrap();
        ender.join().unwrap();
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(*connector.fetch(key).wait().unwrap(), [i as u8]);
        }
        assert_eq!(keys.len(), 6);
    }
}

#[test]
fn a_failure_takes_the_others_along_before_the_end() {
    let scripts: [fn() -> Vec<End>; 4] = [
        || vec![End::Blocking, End::Blocking, End::Fails],
        || vec![End::Blocking, End::FailsBlocking, End::Later],
        || vec![End::Later, End::FailsLater, End::Blocking],
        || vec![End::FailsLater],
    ];
    for wait in WAITS {
        for script in scripts {
            let connector = Scripted::new("failure", script());
            let batch = Arc::clone(&connector).commit_batch(connector.regions(6));
            connector.end();
            assert_eq!(wait(batch).unwrap_err().kind(), ErrorKind::NoSpace);
            assert_eq!(connector.left(), 0);
            assert!(!connector.keys().is_empty());
        }
    }
}

#[test]
fn a_failure_right_away_begins_no_more() {
    let connector = Scripted::new("at once", [End::Blocking, End::Fails]);
    let batch = Arc::clone(&connector).commit_batch(connector.regions(6));
    assert_eq!(connector.keys().len(), 1);
    assert_eq!(batch.wait().unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(connector.left(), 0);
}

#[test]
fn a_batch_returns_at_once_and_ends_in_time() {
    for asleep in [false, true] {
        let connector = Scripted::new("in time", [End::Blocking, End::Later]);
        let start = Instant::now();
        let batch = Arc::clone(&connector).commit_batch(connector.regions(4)).deadline(Duration::from_millis(30));
        let error = if asleep { block_on(batch) } else { batch.wait() }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        // Nobody has the keys. What ends at last goes, with all the others.
        assert!(connector.left() > 0);
        connector.end();
        eventually("objects of a batch that nobody waits for stay", || connector.left() == 0);
    }
}

#[test]
fn a_dropped_batch_leaves_nothing() {
    let connector = Scripted::new("dropped", [End::Later, End::Blocking]);
    drop(Arc::clone(&connector).commit_batch(connector.regions(4)));
    connector.end();
    eventually("objects of a dropped batch stay", || connector.left() == 0);

    let connector = Scripted::new("dropped half-way", [End::Later, End::Blocking]);
    let mut batch = Arc::clone(&connector).commit_batch(connector.regions(4));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::future::Future::poll(std::pin::Pin::new(&mut batch), &mut cx).is_pending());
    drop(batch);
    connector.end();
    eventually("objects of a batch dropped half-way stay", || connector.left() == 0);
}

#[test]
fn a_store_bounds_its_batches() {
    let connector = Scripted::new("bounded", [End::Later, End::Later]);
    let builder = Store::builder_on(Arc::clone(&connector) as Arc<dyn Connector>);
    let store = builder.deadline(Duration::from_secs(1)).build().unwrap();
    let error = store.put_batch(["one", "two", "three"]).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    connector.end();
    eventually("objects of a batch that timed out stay", || connector.left() == 0);
    assert_eq!(store.put_batch(["one", "two", "three"]).wait().unwrap().len(), 3);
}

#[cfg(feature = "file")]
#[test]
fn a_dropped_batch_of_files_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let connector = Arc::new(proxystore::connectors::FileConnector::new(place.path()).unwrap());
    let regions = |n: usize| (0..n).map(|_| (RegionMut::heap(10).unwrap(), Format::RAW)).collect::<Vec<_>>();
    let files = || std::fs::read_dir(place.path()).unwrap().flatten().filter(|entry| entry.path().is_file()).count();
    // So many that some are seen while they are there.
    drop(Arc::clone(&connector).commit_batch(regions(3000)));
    let end = Instant::now() + Duration::from_secs(60);
    while files() == 0 {
        assert!(Instant::now() < end, "a dropped batch does not go on");
    }
    eventually("files of a dropped batch stay", || files() == 0);
}

// -- Options ---------------------------------------------------------------------------------------------------------

const OPTIONS: PutOptions = PutOptions::new().time_to_live(Duration::from_secs(7)).evict_with_producer();

#[test]
fn every_way_of_putting_carries_the_options() {
    let connector = Scripted::new("options", []);
    let store = Store::builder_on(Arc::clone(&connector) as Arc<dyn Connector>).build().unwrap();
    let brief = store.with(OPTIONS);
    assert_eq!(brief, store);
    assert_eq!((*brief.options(), *store.options()), (OPTIONS, PutOptions::default()));
    let words: Vec<String> = (0..20_000).map(|i| i.to_string()).collect();
    let codec = codec::from_fns(
        0x8123,
        |value: &u64, out| out.write(&value.to_le_bytes()),
        |region| Ok(codec::Decoded::new(region.len() as u64)),
    );
    for handle in [&brief, &brief.clone(), &store] {
        connector.made.lock().unwrap().clear();
        // Bytes as they are; encoded small; encoded in place; by a codec.
        handle.put("text").wait().unwrap();
        handle.put(&(1u8, "text".to_owned())).wait().unwrap();
        handle.put(&words).wait().unwrap();
        handle.put_with(&5u64, &codec).wait().unwrap();
        handle.put_batch(["one", "two"]).wait().unwrap();
        let proxies: [Proxy<str>; 2] =
            [handle.proxy("text").wait().unwrap(), handle.proxy_once("text").wait().unwrap()];
        drop(handle.proxy_with(&5u64, &codec).wait().unwrap());
        drop(handle.proxy_owned(5u64).wait().unwrap());
        drop(handle.proxy_batch(["one", "two"]).wait().unwrap());
        assert_eq!(
            *Proxy::store(&proxies[0]).unwrap().options(),
            PutOptions::default(),
            "a proxy's store puts plainly"
        );
        handle.reserve(10).unwrap().commit_key().wait().unwrap();
        drop(handle.reserve(10).unwrap().commit().wait().unwrap());
        handle.reserve_slice::<u32>(10).unwrap().commit_key().wait().unwrap();
        drop(handle.reserve_slice::<u32>(10).unwrap().commit().wait().unwrap());
        drop(proxies);
        let made = connector.made.lock().unwrap();
        assert_eq!(made.len(), 16);
        assert!(made.iter().all(|(_, options)| options == handle.options()), "{made:?}");
    }
}

#[test]
fn a_batch_with_options_is_all_or_nothing_too() {
    let connector = Scripted::new("options batch", [End::Blocking, End::FailsBlocking]);
    let batch = Arc::clone(&connector).commit_batch_with(connector.regions(4), &OPTIONS);
    assert_eq!(batch.wait().unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!((connector.left(), connector.keys().len()), (0, 3));
}

#[test]
fn what_a_connector_lacks_is_named_before_anything_is_encoded() {
    struct Loud;
    impl serde::Serialize for Loud {
        fn serialize<S: serde::Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
            unreachable!("encoded in vain")
        }
    }
    impl<'de> serde::Deserialize<'de> for Loud {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
            <()>::deserialize(deserializer).map(|()| Self)
        }
    }
    let store = Store::open("memory://options-lacking").unwrap().with(OPTIONS);
    let errors = [
        store.put(&Loud).wait().unwrap_err(),
        store.put_batch([&Loud]).wait().unwrap_err(),
        store.proxy(&Loud).wait().unwrap_err(),
        store.reserve(5).unwrap().commit_key().wait().unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(text.contains("time to live") && text.contains("evict with producer"), "{text}");
    }
    let one = store.with(PutOptions::new().evict_with_producer()).put("x").wait().unwrap_err().to_string();
    assert!(!one.contains("time to live") && one.contains("evict with producer"), "{one}");
    store.with(PutOptions::new()).put("the default asks for nothing").wait().unwrap();
}
