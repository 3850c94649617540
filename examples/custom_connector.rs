//! A connector of your own, in one file: objects in an append-only log that any number of processes share without locks.
//!
//! ```text
//! cargo run --example custom_connector --features conformance
//! ```
//!
//! Two files. `bytes` holds the objects; `events` holds records of 32 bytes, each appended by one `write` with O_APPEND,
//! which the file system orders. Every process replays the events and so computes the same state: where an object lies
//! is the sum of what was allocated before it, and who took it is who appended the first `GONE`. A process killed
//! between `ALLOC` and `LIVE` leaves an object that never was.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use proxystore::connector::Registration;
use proxystore::{Capabilities, Connector, ConnectorConfig, ConnectorExt, Error, ErrorKind, Format, Key, Pending};
use proxystore::{Region, RegionMut, Result, conformance, connectors};

fn main() -> ExitCode {
    connectors::register(REGISTRATION).expect("the scheme is free");
    conformance::child_main();
    if let Err(error) = tour() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    conformance::main([conformance::Subject::in_directories(REGISTRATION)])
}

/// Uses the connector through its URL, as any store does.
fn tour() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("custom_connector-{}", std::process::id()));
    let config: ConnectorConfig = format!("log://{}", directory.display()).parse()?;
    let connector = connectors::open(&config)?;
    let key = connector.put(b"bytes that outlive the handle", Format::RAW).wait()?;
    connector.close()?;
    println!("put    {key}");
    let again = connectors::open(&config)?;
    println!("get    {:?}", again.fetch(&key).wait()?.escape_ascii().to_string());
    println!("take   {}, then {:?}", again.take(&key).wait()?.is_some(), again.get(&key).wait()?);
    std::fs::remove_dir_all(&directory).map_err(|error| Error::io("remove", "the directory of the tour", error))
}

/// What makes the scheme known, and all that the library needs.
pub(crate) const REGISTRATION: Registration =
    Registration::new(SCHEME, "shared directory", "objects in an append-only log", &[], CAPABILITIES, |config| {
        Ok(Arc::new(LogConnector {
            config: config.clone(),
            log: RwLock::new(Some(Arc::new(Log::open(Path::new(config.location()))?))),
        }))
    });

const SCHEME: &str = "log";

const CAPABILITIES: Capabilities = Capabilities::CROSS_PROCESS.union(Capabilities::OUTLIVES_PRODUCER);

/// A handle; `close` takes the log out of it, and operations under way keep it.
struct LogConnector {
    config: ConnectorConfig,
    log: RwLock<Option<Arc<Log>>>,
}

impl LogConnector {
    fn log(&self, op: &'static str) -> Result<Arc<Log>> {
        let log = self.log.read().unwrap_or_else(PoisonError::into_inner);
        log.clone().ok_or_else(|| Error::new(ErrorKind::Closed, op, "").with_connector(SCHEME))
    }

    /// Checks the key, and runs `call` when somebody waits for it.
    fn start<T: Send + 'static>(
        &self,
        op: &'static str,
        key: &Key,
        call: impl FnOnce(&Log, u64, Key) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let key = *key;
        match self.check_scheme(op, &key).and_then(|()| self.log(op)).and_then(|log| Ok((log.id(op, &key)?, log))) {
            Ok((id, log)) => Pending::blocking(move || call(&log, id, key)),
            Err(error) => Pending::ready(Err(error)),
        }
    }
}

impl Connector for LogConnector {
    fn config(&self) -> &ConnectorConfig {
        &self.config
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn reserve(&self, len: usize) -> Result<RegionMut> {
        self.log("reserve")?;
        RegionMut::heap(len)
    }

    fn commit(&self, region: RegionMut, format: Format) -> Pending<Key> {
        match self.log("commit") {
            Ok(log) => Pending::blocking(move || {
                let id = log.put(region.as_slice())?;
                let locator = [log.instance.to_le_bytes(), id.to_le_bytes()].concat();
                Key::new(SCHEME, &locator, region.len() as u64, format)
            }),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn get(&self, key: &Key) -> Pending<Option<Region>> {
        self.start("get", key, |log, id, key| {
            let region = log.read(id, &key)?;
            // Who evicts writes that down before it frees the bytes: still there now means intact when read.
            Ok(region.filter(|_| log.find(id, &key).is_ok_and(|found| found.is_some())))
        })
    }

    fn exists(&self, key: &Key) -> Pending<bool> {
        self.start("exists", key, |log, id, key| Ok(log.find(id, &key)?.is_some()))
    }

    fn evict(&self, key: &Key) -> Pending<()> {
        self.start("evict", key, |log, id, key| log.remove(id, &key).map(drop))
    }

    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        self.start("take", key, |log, id, key| {
            let region = log.read(id, &key)?;
            Ok(region.filter(|_| log.remove(id, &key).is_ok_and(|first| first)))
        })
    }

    fn close(&self) -> Result<()> {
        self.log.write().unwrap_or_else(PoisonError::into_inner).take();
        Ok(())
    }
}

/// The two files, and the state replayed so far.
struct Log {
    bytes: File,
    events: File,
    /// Told by the first event; tells keys of other directories apart.
    instance: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes of `events` replayed.
    seen: u64,
    /// End of what is allocated in `bytes`.
    end: u64,
    instance: Option<u64>,
    objects: BTreeMap<u64, Object>,
}

#[derive(Clone, Copy)]
struct Object {
    offset: u64,
    len: u64,
    live: bool,
    /// Token of the first that removed it.
    gone: Option<u64>,
}

impl Log {
    fn open(directory: &Path) -> Result<Self> {
        let open = |name: &str, append: bool| {
            OpenOptions::new().read(true).write(true).append(append).create(true).open(directory.join(name))
        };
        let files =
            std::fs::create_dir_all(directory).and_then(|()| Ok((open("bytes", false)?, open("events", true)?)));
        let (bytes, events) = files.map_err(|error| failed("open", error))?;
        let mut log = Self { bytes, events, instance: 0, state: Mutex::default() };
        if log.replay()?.instance.is_none() {
            log.append([BORN, random(), 0, 0])?;
        }
        let instance = log.replay()?.instance;
        log.instance = instance.ok_or_else(|| Error::new(ErrorKind::Corrupt, "open", "no first event"))?;
        Ok(log)
    }

    fn id(&self, op: &'static str, key: &Key) -> Result<u64> {
        let Ok([instance, id]) = <[u8; 16]>::try_from(key.locator()).map(|locator| words(&locator)) else {
            return Err(Error::new(ErrorKind::Invalid, op, "not a locator of a log").with_connector(SCHEME));
        };
        if instance != self.instance {
            return Err(Error::new(ErrorKind::ForeignKey, op, "the key belongs to another log").with_connector(SCHEME));
        }
        Ok(id)
    }

    fn put(&self, bytes: &[u8]) -> Result<u64> {
        let id = random();
        self.append([ALLOC, id, bytes.len() as u64, 0])?;
        let place = self.replay()?.objects.get(&id).copied();
        let place = place.ok_or_else(|| Error::new(ErrorKind::Corrupt, "commit", "the log lost an event"))?;
        self.bytes.write_all_at(bytes, place.offset).map_err(|error| failed("commit", error))?;
        self.append([LIVE, id, 0, 0])?;
        Ok(id)
    }

    /// The object, if it is there now.
    fn find(&self, id: u64, key: &Key) -> Result<Option<Object>> {
        let found = self.replay()?.objects.get(&id).copied().filter(|object| object.live && object.gone.is_none());
        match found {
            Some(object) if object.len != key.len() => {
                let context = format!("{key:?} names an object of {} bytes", object.len);
                Err(Error::new(ErrorKind::Corrupt, "find", context).with_connector(SCHEME))
            }
            found => Ok(found),
        }
    }

    /// The object's bytes, if it was there before they were read.
    fn read(&self, id: u64, key: &Key) -> Result<Option<Region>> {
        let Some(object) = self.find(id, key)? else { return Ok(None) };
        let mut region = RegionMut::heap(object.len as usize)?;
        self.bytes.read_exact_at(region.initialize(), object.offset).map_err(|error| failed("get", error))?;
        Ok(Some(region.freeze()))
    }

    /// Removes the object; whether this call was the one that did.
    fn remove(&self, id: u64, key: &Key) -> Result<bool> {
        let Some(object) = self.find(id, key)? else { return Ok(false) };
        let token = random();
        self.append([GONE, id, token, 0])?;
        let first = self.replay()?.objects.get(&id).is_some_and(|object| object.gone == Some(token));
        if first && object.len > 0 {
            use rustix::fs::{FallocateFlags, fallocate};
            // Where holes cannot be made, the disk space comes back with the directory.
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(&self.bytes, hole, object.offset, object.len);
        }
        Ok(first)
    }

    fn append(&self, event: [u64; 4]) -> Result<()> {
        let record: Vec<u8> = event.into_iter().flat_map(u64::to_le_bytes).collect();
        match (&self.events).write(&record) {
            Ok(EVENT) => Ok(()),
            Ok(_) => Err(Error::new(ErrorKind::NoSpace, "append", "an event was cut off")),
            Err(error) => Err(failed("append", error)),
        }
    }

    /// Takes in what all processes have appended since.
    fn replay(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut block = [0; 128 * EVENT];
        loop {
            let n = self.events.read_at(&mut block, state.seen).map_err(|error| failed("replay", error))?;
            for record in block[..n].chunks_exact(EVENT) {
                state.apply(words(record));
            }
            if n < EVENT {
                return Ok(state);
            }
        }
    }
}

impl State {
    fn apply(&mut self, [kind, id, value, _]: [u64; 4]) {
        self.seen += EVENT as u64;
        match kind {
            BORN => drop(self.instance.get_or_insert(id)),
            ALLOC => {
                self.objects.insert(id, Object { offset: self.end, len: value, live: false, gone: None });
                // Whole blocks, so that a hole never touches a neighbour.
                self.end += value.next_multiple_of(4096);
            }
            LIVE => drop(self.objects.get_mut(&id).map(|object| object.live = true)),
            GONE => drop(self.objects.get_mut(&id).map(|object| object.gone.get_or_insert(value))),
            _ => {}
        }
    }
}

/// The little-endian words of a record or locator.
fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    std::array::from_fn(|i| bytes[8 * i..8 * i + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}

/// A number that no other call has given, nor will.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

fn failed(op: &'static str, error: std::io::Error) -> Error {
    Error::io(op, "the log", error).with_connector(SCHEME)
}

const BORN: u64 = 1;
const ALLOC: u64 = 2;
const LIVE: u64 = 3;
const GONE: u64 = 4;

/// Bytes of an event; a power of two, so that none lies across a page.
const EVENT: usize = 32;
