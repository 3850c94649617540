//! A connector for tests of the layers above: objects in memory, with counts, delays, failures and hooks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "every test binary uses another part of it")]

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use proxystore::connectors::MemoryConnector;
use proxystore::region::{ALIGNMENT, Memory};
use proxystore::store::StoreBuilder;
use proxystore::{
    Capabilities, Connector, ConnectorConfig, Error, ErrorKind, Format, Key, Pending, Region, RegionMut, Result, Store,
};

/// Behaves as a memory connector until told otherwise.
pub(crate) struct Probe {
    objects: Arc<Objects>,
    mode: Mutex<Mode>,
    after_get: Mutex<Option<Hook>>,
    before_removal: Mutex<Option<Hook>>,
    /// Reservations in being: lent, or kept by an object.
    blocks: Arc<AtomicUsize>,
    commits_left: AtomicUsize,
    pub(crate) gets: AtomicUsize,
    pub(crate) batches: AtomicUsize,
    pub(crate) takes: AtomicUsize,
    /// Calls of `get_when_committed`.
    pub(crate) waits: AtomicUsize,
    pub(crate) commits: AtomicUsize,
    pub(crate) closes: AtomicUsize,
}

/// How `get`, `take` and their kin behave.
#[derive(Clone)]
pub(crate) enum Mode {
    /// Ends before it returns.
    Ready,
    /// A blocking call of that duration.
    Slow(Duration),
    /// A blocking call that waits for the gate.
    Behind(Arc<Gate>),
    /// Never ends.
    Hang,
    /// Fails.
    Fail(ErrorKind),
    /// Returns other memory than what was stored.
    Instead(Region),
}

type Hook = Box<dyn FnOnce(&Key) + Send>;

/// Holds back who passes until it is opened.
#[derive(Default)]
pub(crate) struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    pub(crate) waiting: AtomicUsize,
}

impl Gate {
    pub(crate) fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    pub(crate) fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
    }
}

impl Probe {
    /// `name` must differ between tests: stores are one per URL and process.
    pub(crate) fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            objects: Arc::new(Objects { live: Mutex::default(), inner: MemoryConnector::new(name) }),
            mode: Mutex::new(Mode::Ready),
            after_get: Mutex::default(),
            before_removal: Mutex::default(),
            blocks: Arc::default(),
            commits_left: AtomicUsize::new(usize::MAX),
            gets: AtomicUsize::new(0),
            batches: AtomicUsize::new(0),
            takes: AtomicUsize::new(0),
            waits: AtomicUsize::new(0),
            commits: AtomicUsize::new(0),
            closes: AtomicUsize::new(0),
        })
    }

    /// A probe and a store on it.
    pub(crate) fn store(name: &str) -> (Arc<Self>, Store) {
        let (probe, builder) = Self::builder(name);
        (probe, builder.build().unwrap())
    }

    pub(crate) fn builder(name: &str) -> (Arc<Self>, StoreBuilder) {
        let probe = Self::new(name);
        let builder = Store::builder_on(Arc::clone(&probe) as Arc<dyn Connector>);
        (probe, builder)
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// Runs `hook` once, in a get that has read its bytes and not returned them.
    pub(crate) fn after_get(&self, hook: impl FnOnce(&Key) + Send + 'static) {
        *self.after_get.lock().unwrap() = Some(Box::new(hook));
    }

    /// Runs `hook` once, in an evict or take that has not removed anything yet.
    pub(crate) fn before_removal(&self, hook: impl FnOnce(&Key) + Send + 'static) {
        *self.before_removal.lock().unwrap() = Some(Box::new(hook));
    }

    /// Lets `n` more commits succeed.
    pub(crate) fn commits_left(&self, n: usize) {
        self.commits_left.store(n, Ordering::SeqCst);
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks.load(Ordering::SeqCst)
    }

    pub(crate) fn gets(&self) -> usize {
        self.gets.load(Ordering::SeqCst)
    }

    fn serve<T: Send + 'static>(&self, call: impl FnOnce() -> Result<T> + Send + 'static) -> Pending<T> {
        match self.mode.lock().unwrap().clone() {
            Mode::Ready | Mode::Instead(_) => Pending::ready(call()),
            Mode::Slow(time) => Pending::blocking(move || {
                std::thread::sleep(time);
                call()
            }),
            Mode::Behind(gate) => Pending::blocking(move || {
                gate.pass();
                call()
            }),
            Mode::Hang => {
                let (completer, pending) = Pending::channel();
                std::mem::forget(completer);
                pending
            }
            Mode::Fail(kind) => Pending::ready(Err(Error::new(kind, "get", "the probe was told to fail"))),
        }
    }

    fn may_commit(&self) -> bool {
        self.commits_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    fn removal(&self, key: &Key) {
        let hook = self.before_removal.lock().unwrap().take();
        if let Some(hook) = hook {
            hook(key);
        }
    }
}

impl Connector for Probe {
    fn config(&self) -> &ConnectorConfig {
        self.objects.inner.config()
    }

    fn capabilities(&self) -> Capabilities {
        self.objects.inner.capabilities()
    }

    fn reserve(&self, len: usize) -> Result<RegionMut> {
        Ok(RegionMut::new(Box::new(Block::new(len, &self.blocks))))
    }

    fn commit(&self, region: RegionMut, format: Format) -> Pending<Key> {
        if !self.may_commit() {
            return Pending::ready(Err(Error::new(ErrorKind::NoSpace, "commit", "the probe was told to fail")));
        }
        self.commits.fetch_add(1, Ordering::SeqCst);
        Pending::ready(self.objects.insert(region.freeze(), format))
    }

    fn get(&self, key: &Key) -> Pending<Option<Region>> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        let (objects, key, hook) = (Arc::clone(&self.objects), *key, self.after_get.lock().unwrap().take());
        let instead = match &*self.mode.lock().unwrap() {
            Mode::Instead(region) => Some(region.clone()),
            _ => None,
        };
        self.serve(move || {
            let found = objects.get(&key);
            if let Some(hook) = hook {
                hook(&key);
            }
            found.map(|region| instead.or(region))
        })
    }

    fn get_batch(&self, keys: &[Key]) -> Pending<Vec<Option<Region>>> {
        self.batches.fetch_add(1, Ordering::SeqCst);
        let (objects, keys, hook) = (Arc::clone(&self.objects), keys.to_vec(), self.after_get.lock().unwrap().take());
        self.serve(move || {
            let found = keys.iter().map(|key| objects.get(key)).collect();
            if let Some(hook) = hook {
                hook(&keys[0]);
            }
            found
        })
    }

    fn exists(&self, key: &Key) -> Pending<bool> {
        Pending::ready(self.objects.get(key).map(|found| found.is_some()))
    }

    fn evict(&self, key: &Key) -> Pending<()> {
        self.removal(key);
        drop(self.objects.remove(key));
        self.objects.inner.evict(key)
    }

    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        self.takes.fetch_add(1, Ordering::SeqCst);
        self.removal(key);
        let (objects, key) = (Arc::clone(&self.objects), *key);
        self.serve(move || Ok(objects.remove(&key)))
    }

    fn declare(&self, format: Format) -> Result<Key> {
        self.objects.inner.declare(format)
    }

    fn commit_at(&self, key: &Key, region: RegionMut) -> Pending<()> {
        if !self.may_commit() {
            return Pending::ready(Err(Error::new(ErrorKind::NoSpace, "commit_at", "the probe was told to fail")));
        }
        self.objects.inner.commit_at(key, region)
    }

    fn get_when_committed(&self, key: &Key) -> Pending<Region> {
        self.waits.fetch_add(1, Ordering::SeqCst);
        self.objects.inner.get_when_committed(key)
    }

    fn close(&self) -> Result<()> {
        self.closes.fetch_add(1, Ordering::SeqCst);
        self.objects.live.lock().unwrap().clear();
        self.objects.inner.close()
    }
}

struct Objects {
    /// By locator. Not in the memory connector, which copies memory that others lent.
    live: Mutex<HashMap<Vec<u8>, Region>>,
    /// Keys, and deferred objects.
    inner: MemoryConnector,
}

impl Objects {
    fn insert(&self, region: Region, format: Format) -> Result<Key> {
        let place = self.inner.declare(format)?;
        let key = Key::new(place.scheme(), place.locator(), region.len() as u64, format)?;
        self.live.lock().unwrap().insert(key.locator().to_vec(), region);
        Ok(key)
    }

    fn get(&self, key: &Key) -> Result<Option<Region>> {
        let found = self.live.lock().unwrap().get(key.locator()).cloned();
        if found.is_some() { Ok(found) } else { self.inner.get(key).wait() }
    }

    fn remove(&self, key: &Key) -> Option<Region> {
        self.live.lock().unwrap().remove(key.locator())
    }
}

/// A reservation that is counted while it is in being.
struct Block {
    first: NonNull<u8>,
    capacity: usize,
    blocks: Arc<AtomicUsize>,
    /// Owns what `first` points to, and is not touched again.
    _lines: Vec<Line>,
}

#[repr(align(64))]
#[derive(Clone)]
struct Line(#[expect(dead_code, reason = "written through `Block::first`")] [u8; ALIGNMENT]);

impl Block {
    fn new(capacity: usize, blocks: &Arc<AtomicUsize>) -> Self {
        blocks.fetch_add(1, Ordering::SeqCst);
        let mut lines = vec![Line([0; ALIGNMENT]); capacity.div_ceil(ALIGNMENT).max(1)];
        let first = NonNull::new(lines.as_mut_ptr()).expect("a vector's pointer").cast();
        Self { first, capacity, blocks: Arc::clone(blocks), _lines: lines }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.blocks.fetch_sub(1, Ordering::SeqCst);
    }
}

#[expect(unsafe_code, reason = "lending memory is a promise")]
// SAFETY: the vector is never resized, so its elements stay where they are, aligned to 64 bytes by `Line`; only the value
// knows them; `capacity` is at most their size; none is promised to be initialised.
unsafe impl Memory for Block {
    fn as_ptr(&self) -> NonNull<u8> {
        self.first
    }

    fn capacity(&self) -> usize {
        self.capacity
    }
}

#[expect(unsafe_code, reason = "`NonNull` forgets that its memory is owned")]
// SAFETY: an owned heap block has no thread affinity.
unsafe impl Send for Block {}
#[expect(unsafe_code, reason = "`NonNull` forgets that its memory is owned")]
// SAFETY: shared references only read pointer and capacity.
unsafe impl Sync for Block {}

/// Waits until `condition` holds; panics with `what` if it does not.
#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(in_time(condition), "{what} never came true");
}

/// Whether `condition` holds within twenty seconds.
pub(crate) fn in_time(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}
