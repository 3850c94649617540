//! A client process of the soak: random operations, each checked against the truth table.

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::BufMut;
use proxystore::connectors::ShmConnector;
use proxystore::service::inspect::{self, Fetching, Remote, Replicas, Shared};
use proxystore::{Connector, ConnectorConfig, Error, ErrorKind, Format, Key, Region};

use crate::chaos::NAMESPACE;
use crate::content::{Random, content, verify};
use crate::ledger::{Count, ENTRIES, Entry, Kind, Ledger, kind};

/// A worker, until the ledger says that the soak is over or somebody kills the process.
pub(crate) struct Worker {
    ledger: &'static Ledger,
    number: usize,
    random: Random,
    store: Arc<ShmConnector>,
    views: Vec<(Region, u64)>,
    /// Keys of objects that this process ended, and was told so.
    gone: Vec<Key>,
    next_seed: u64,
}

impl Worker {
    /// Opens the namespace; `None` when it cannot be, which is counted.
    pub(crate) fn start(ledger: &'static Ledger, number: usize, seed: u64, url: &str) -> Option<Self> {
        let config: ConnectorConfig = url.parse().expect("a URL of ours");
        match ShmConnector::open(&config) {
            Ok(store) => {
                ledger.workers[number].attached.store(1, Relaxed);
                let mut random = Random(seed | 1);
                let next_seed = random.next() << 8;
                Some(Self {
                    ledger,
                    number,
                    random,
                    store: Arc::new(store),
                    views: Vec::new(),
                    gone: Vec::new(),
                    next_seed,
                })
            }
            Err(error) => {
                let what = if error.kind() == ErrorKind::Unavailable { Count::Unavailable } else { Count::OtherErrors };
                ledger.violate(what, format_args!("open: {error}"));
                None
            }
        }
    }

    pub(crate) fn run(&mut self) {
        while self.ledger.phase.load(Acquire) == 0 {
            self.step();
        }
        while !self.views.is_empty() {
            self.drop_view(0);
        }
    }

    fn step(&mut self) {
        let index = self.random.below(ENTRIES as u64) as usize;
        let entry = &self.ledger.entries[index];
        let state = entry.state.load(Acquire);
        let dice = self.random.below(100);
        if self.random.below(8) == 0 {
            self.replicate();
        }
        match kind(state) {
            Kind::Empty if dice < 70 => self.put(entry, state),
            Kind::Empty if dice < 85 => self.declare(entry, state),
            Kind::Live if dice < 60 => self.get(entry, state),
            Kind::Live if dice < 80 => self.exists(entry, state),
            Kind::Live if dice < 92 => self.end(entry, state, false),
            Kind::Live => self.end(entry, state, true),
            Kind::Declared if dice < 50 => self.bind(entry, state),
            Kind::Declared if dice < 55 => self.wait(entry, state),
            Kind::Declared if dice < 65 => self.end(entry, state, false),
            Kind::Maybe if dice < 50 => self.get(entry, state),
            Kind::Maybe => self.end(entry, state, false),
            _ => self.look_at_gone(),
        }
        if self.views.len() > 24 || (!self.views.is_empty() && self.random.below(4) == 0) {
            let which = self.random.below(self.views.len() as u64) as usize;
            self.drop_view(which);
        }
    }

    fn put(&mut self, entry: &Entry, state: u64) {
        let Some(state) = entry.claim(state, self.number, Kind::Putting) else { return };
        let (seed, len) = (self.seed(), self.len());
        entry.seed.store(seed, Relaxed);
        entry.len.store(len as u64, Relaxed);
        entry.deferred.store(0, Relaxed);
        let key = if seed & 1 == 0 {
            self.store.put(&content(seed, len), Format::RAW).wait()
        } else {
            self.store.reserve(len).and_then(|mut region| {
                region.put_slice(&content(seed, len));
                self.store.commit(region, Format::RAW).wait()
            })
        };
        match key {
            Ok(key) => {
                entry.write_key(&key.to_string());
                entry.set(state, Kind::Live);
                self.ledger.count(Count::Puts);
            }
            Err(error) => {
                self.failed("put", &error);
                entry.clear(state);
            }
        }
    }

    fn get(&mut self, entry: &Entry, state: u64) {
        let Some((key, seed, len)) = self.read(entry, state) else { return };
        match self.store.get(&key).wait() {
            Ok(Some(region)) => {
                self.ledger.count(Count::Gets);
                self.check(&region, seed, len, "get");
                if self.views.len() < 32 {
                    self.views.push((region, seed));
                }
            }
            Ok(None) => {
                self.ledger.count(Count::Gets);
                self.lost_if_unchanged(entry, state, "get");
            }
            Err(error) => self.failed("get", &error),
        }
    }

    fn exists(&mut self, entry: &Entry, state: u64) {
        let Some((key, ..)) = self.read(entry, state) else { return };
        match self.store.exists(&key).wait() {
            Ok(found) => {
                self.ledger.count(Count::Exists);
                if !found {
                    self.lost_if_unchanged(entry, state, "exists");
                }
            }
            Err(error) => self.failed("exists", &error),
        }
    }

    /// Evicts or takes.
    fn end(&mut self, entry: &Entry, state: u64, take: bool) {
        let Some((key, seed, len)) = self.read(entry, state) else { return };
        let Some(claimed) = entry.claim(state, self.number, Kind::Ending) else { return };
        let done = match take {
            false => self.store.evict(&key).wait(),
            true => self.store.take(&key).wait().map(|region| match region {
                Some(region) => {
                    self.check(&region, seed, len, "take");
                    self.views.push((region, seed));
                }
                None => self.ledger.violate(Count::Lost, format_args!("take of {key:?}")),
            }),
        };
        match done {
            Ok(()) => {
                self.ledger.count(if take { Count::Takes } else { Count::Evicts });
                entry.clear(claimed);
                if self.gone.len() == 64 {
                    let which = self.random.below(64) as usize;
                    self.gone.swap_remove(which);
                }
                self.gone.push(key);
            }
            Err(error) => {
                self.failed("evict", &error);
                entry.set(claimed, Kind::Maybe);
            }
        }
    }

    fn declare(&mut self, entry: &Entry, state: u64) {
        let Some(state) = entry.claim(state, self.number, Kind::Putting) else { return };
        match self.store.declare(Format::RAW) {
            Ok(key) => {
                entry.seed.store(self.seed(), Relaxed);
                entry.len.store(self.len() as u64, Relaxed);
                entry.deferred.store(1, Relaxed);
                entry.write_key(&key.to_string());
                entry.set(state, Kind::Declared);
                self.ledger.count(Count::Declares);
            }
            Err(error) => {
                self.failed("declare", &error);
                entry.clear(state);
            }
        }
    }

    fn bind(&mut self, entry: &Entry, state: u64) {
        let Some((key, seed, len)) = self.read(entry, state) else { return };
        let Some(claimed) = entry.claim(state, self.number, Kind::Binding) else { return };
        let bound = self.store.reserve(len).and_then(|mut region| {
            region.put_slice(&content(seed, len));
            self.store.commit_at(&key, region).wait()
        });
        match bound {
            Ok(()) => {
                self.ledger.count(Count::Binds);
                entry.set(claimed, Kind::Live);
            }
            Err(error) => {
                self.failed("commit_at", &error);
                entry.set(claimed, Kind::Maybe);
            }
        }
    }

    fn wait(&mut self, entry: &Entry, state: u64) {
        let Some((key, seed, len)) = self.read(entry, state) else { return };
        let patience = Duration::from_millis(self.random.below(20));
        match self.store.get_when_committed(&key).deadline(patience).wait() {
            Ok(region) => self.check(&region, seed, len, "get_when_committed"),
            Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::NotFound) => {}
            Err(error) => return self.failed("get_when_committed", &error),
        }
        self.ledger.count(Count::Waits);
    }

    /// Gets an object of another node: looks, waits for whoever fetches it, fetches it, gives up, or ends it for all.
    fn replicate(&mut self) {
        let which = self.random.below(REMOTES.len() as u64) as usize;
        let (remote, seed, len) = (REMOTES[which], which as u64 + 1, which * 1500);
        if self.random.below(16) == 0 {
            if let Err(error) = Replicas::of(NAMESPACE).and_then(|replicas| replicas.forget(remote)) {
                self.failed("forget", &error);
            }
            return;
        }
        let found = match Replicas::of(NAMESPACE).and_then(|replicas| replicas.get(remote)) {
            Ok(Shared::Landed(region, _)) => Ok(Some(region)),
            Ok(Shared::InFlight(awaited)) => {
                for _ in 0..4 {
                    self.pass(remote, seed, len);
                }
                awaited.wait(Duration::from_millis(self.random.below(20)))
            }
            Ok(Shared::Claimed(_)) if self.random.below(8) == 0 => Ok(None),
            Ok(Shared::Claimed(fetching)) if self.random.below(2) == 0 => self.arrive(fetching, &content(seed, len)),
            Ok(Shared::Claimed(fetching)) => fetching.land(&content(seed, len), Duration::ZERO, None).map(Some),
            Ok(Shared::Unshared) => Ok(None),
            Err(error) => Err(error),
        };
        match found {
            Ok(Some(region)) => {
                self.check(&region, seed, len, "replica");
                if self.views.len() < 32 {
                    self.views.push((region, seed));
                }
            }
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Timeout => {}
            Err(error) => return self.failed("replica", &error),
        }
        self.ledger.count(Count::Replicas);
    }

    /// Lets an object of another node come in pieces, now and then not to the end.
    fn arrive(&mut self, fetching: Fetching, bytes: &[u8]) -> Result<Option<Region>, Error> {
        let mut arriving = fetching.open(bytes.len() as u64)?;
        for piece in bytes.chunks(1 + bytes.len() / 4) {
            match self.random.below(16) {
                0..4 => return Ok(None),
                // Time for the others to want of it what is there.
                4..10 => std::thread::sleep(Duration::from_micros(500)),
                _ => {}
            }
            arriving.write(piece);
        }
        arriving.land(Duration::ZERO, None).map(Some)
    }

    /// Reads of what arrives as much as is there.
    fn pass(&mut self, remote: Remote, seed: u64, len: usize) {
        let end = self.random.below(len as u64 + 1) as usize;
        match Replicas::of(NAMESPACE).and_then(|replicas| replicas.pass(remote, end as u64)) {
            Ok(Some(region)) if region[..end] != content(seed, len)[..end] => {
                self.ledger.violate(Count::Corrupt, format_args!("the first {end} bytes of {remote:?} are other ones"));
            }
            Ok(_) => {}
            Err(error) => self.failed("pass", &error),
        }
    }

    /// What was evicted stays evicted.
    fn look_at_gone(&mut self) {
        if self.gone.is_empty() {
            return;
        }
        let key = self.gone[self.random.below(self.gone.len() as u64) as usize];
        match self.store.get(&key).wait() {
            Ok(None) => self.ledger.count(Count::GoneKeys),
            Ok(Some(_)) => self.ledger.violate(Count::Resurrected, format_args!("{key:?} was evicted")),
            Err(error) => self.failed("get", &error),
        }
    }

    fn drop_view(&mut self, which: usize) {
        let (region, seed) = self.views.swap_remove(which);
        if let Err(how) = verify(&region, seed) {
            self.ledger.violate(Count::Torn, format_args!("a view of {} bytes changed: {how}", region.len()));
        }
    }

    fn check(&self, region: &Region, seed: u64, len: usize, op: &str) {
        if region.len() != len {
            self.ledger.violate(Count::Corrupt, format_args!("{op}: {} bytes instead of {len}", region.len()));
        } else if let Err(how) = verify(region, seed) {
            self.ledger.violate(Count::Corrupt, format_args!("{op}: {how}"));
        }
    }

    fn lost_if_unchanged(&self, entry: &Entry, state: u64, op: &str) {
        if kind(state) == Kind::Live && entry.state.load(Acquire) == state {
            let deferred = entry.deferred.load(Relaxed);
            self.ledger.violate(Count::Lost, format_args!("{op} of an object that was put (deferred: {deferred})"));
        }
    }

    fn failed(&self, op: &str, error: &Error) {
        match error.kind() {
            ErrorKind::Unavailable => {
                self.ledger.count(Count::Unavailable);
                eprintln!("process {}: {op}: {error}", std::process::id());
            }
            ErrorKind::NoSpace => self.ledger.count(Count::NoSpace),
            _ => self.ledger.violate(Count::OtherErrors, format_args!("{op}: {:?} {error}", error.kind())),
        }
        if error.kind() == ErrorKind::Stale {
            std::process::exit(0);
        }
    }

    fn read(&self, entry: &Entry, state: u64) -> Option<(Key, u64, usize)> {
        let (key, seed, len) = entry.read(state)?;
        match key.parse() {
            Ok(key) => Some((key, seed, len)),
            Err(error) => panic!("the truth table has no key: {key:?}: {error}"),
        }
    }

    fn seed(&mut self) -> u64 {
        self.next_seed += 1;
        self.next_seed
    }

    fn len(&mut self) -> usize {
        let most = match self.random.below(100) {
            0..15 => 32,
            15..75 => 512,
            75..92 => 8 << 10,
            92..98 => 64 << 10,
            98 => 400 << 10,
            _ => 2 << 20,
        };
        self.random.below(most) as usize
    }
}

/// Objects of another node that all workers want: more than one line of the index has room for, and some elsewhere.
///
/// The director makes them before it forks.
pub(crate) static REMOTES: LazyLock<Vec<Remote>> = LazyLock::new(|| {
    let all = (0..).map(|slot| (0x1234_5678, slot, 9));
    all.clone().filter(|remote| inspect::index_line(*remote) == 0).take(11).chain(all.take(11)).collect()
});
