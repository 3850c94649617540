//! A sound connector behind methods with one defect, named in the configuration.

use std::collections::{HashMap, HashSet};
use std::mem::{forget, take};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BufMut;
use proxystore::connector::{PutOptions, Registration};
use proxystore::connectors;
use proxystore::region::Memory;
use proxystore::{Capabilities, Connector, ConnectorConfig, Error, ErrorKind, Format, Key, Pending};
use proxystore::{Region, RegionMut, Result};

/// Over `memory`; the location is the defect.
pub(crate) const MUTANT: Registration =
    Registration::new("mutant", "process", "defective", &[], CAPABILITIES, |config| {
        let inner = connectors::open(&ConnectorConfig::new("memory", ""))?;
        Ok(Mutant::open(config, inner, config.location()))
    });

/// Over the connector of the example; the option `defect` is the defect.
pub(crate) const MUTANT_LOG: Registration =
    Registration::new("mutant-log", "shared directory", "defective", &["defect"], LOG_CAPABILITIES, |config| {
        let inner = connectors::open(&ConnectorConfig::new("log", config.location()))?;
        Ok(Mutant::open(config, inner, config.option("defect").unwrap_or("none")))
    });

const CAPABILITIES: Capabilities = Capabilities::ZERO_COPY_GET
    .union(Capabilities::ZERO_COPY_PUT)
    .union(Capabilities::DEFERRED)
    .union(Capabilities::NOTIFY);

const LOG_CAPABILITIES: Capabilities = Capabilities::CROSS_PROCESS
    .union(Capabilities::OUTLIVES_PRODUCER)
    .union(Capabilities::TIME_TO_LIVE)
    .union(Capabilities::EVICT_WITH_PRODUCER);

/// A sound connector, reached through methods with a defect.
struct Mutant {
    inner: Arc<dyn Connector>,
    config: ConnectorConfig,
    defect: String,
    closed: AtomicBool,
    notes: Mutex<Notes>,
    lock: Mutex<()>,
    /// Over the connector of the example, which has no options itself.
    ends: Option<Ends>,
}

/// What the objects with options have in store: a file each, beside the log.
struct Ends {
    directory: std::path::PathBuf,
    defect: String,
    /// Of the defect whose expiry only its own process knows.
    own: Mutex<HashMap<Vec<u8>, Instant>>,
}

impl Ends {
    fn new(location: &str, defect: &str) -> Self {
        let directory = std::path::Path::new(location).join("ends");
        std::fs::create_dir_all(&directory).expect("a directory");
        Self { directory, defect: defect.to_owned(), own: Mutex::default() }
    }

    fn is(&self, defect: &str) -> bool {
        self.defect == defect
    }

    /// `END PRODUCER`: milliseconds of the epoch and a process id, each 0 for none.
    fn note(&self, key: &Key, options: &PutOptions) {
        let end = options.lifetime().map_or(0, |limit| match self.defect.as_str() {
            "expires_early" => now() + limit.as_millis() / 4,
            "expires_late" => now() + limit.as_millis() * 4,
            _ => now() + limit.as_millis(),
        });
        if let (true, Some(limit)) = (self.is("expiry_is_private"), options.lifetime()) {
            let end = Instant::now().checked_add(limit);
            self.own
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(end.map(|end| (key.locator().to_vec(), end)));
            return;
        }
        let ends = options.ends_with_producer() || self.is("ephemeral_takes_all");
        let producer = if ends { std::process::id() } else { 0 };
        if end > 0 || producer > 0 {
            std::fs::write(self.file(key), format!("{end} {producer}")).expect("a file");
        }
    }

    fn has_come(&self, key: &Key) -> bool {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.get(key.locator()).is_some_and(|end| *end <= Instant::now()) {
            return true;
        }
        if self.is("expires_all") {
            return self.files().any(|file| self.is_over(&file));
        }
        self.is_over(&self.file(key))
    }

    fn is_over(&self, file: &std::path::Path) -> bool {
        let Ok(text) = std::fs::read_to_string(file) else { return false };
        let Some((end, producer)) = text.split_once(' ') else { return false };
        let is_dead = || match self.defect.as_str() {
            "ephemeral_at_once" => true,
            "ephemeral_waits_for_close" => producer == "1",
            _ => !std::path::Path::new("/proc").join(producer).exists(),
        };
        end.parse().is_ok_and(|end: u128| end > 0 && end <= now()) || producer != "0" && is_dead()
    }

    /// What the defects do that rely on an orderly end.
    fn close(&self) {
        for file in self.files() {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let own = format!(" {}", std::process::id());
            if let Some(end) = text.strip_suffix(&own) {
                // Process 1 stands for one that has ended.
                let producer = if self.is("ephemeral_waits_for_close") { 1 } else { 0 };
                std::fs::write(file, format!("{end} {producer}")).expect("a file");
            }
        }
    }

    fn file(&self, key: &Key) -> std::path::PathBuf {
        self.directory.join(key.locator().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    fn files(&self) -> impl Iterator<Item = std::path::PathBuf> {
        std::fs::read_dir(&self.directory).into_iter().flatten().flatten().map(|entry| entry.path())
    }
}

fn now() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// What defects need to remember.
#[derive(Default)]
struct Notes {
    /// Inner keys by the locator that was given out instead of theirs.
    aliases: HashMap<Vec<u8>, Key>,
    committed: Vec<Key>,
    free: Vec<Key>,
    by_content: HashMap<Vec<u8>, Key>,
    unseen: HashSet<Vec<u8>>,
    evicted: HashSet<Vec<u8>>,
    halves: HashMap<Vec<u8>, Region>,
    regions: HashMap<Vec<u8>, Region>,
    formats: HashMap<Vec<u8>, Format>,
    kept: Vec<Region>,
    ballast: Vec<Vec<u8>>,
    shared: HashMap<usize, &'static [AtomicU8]>,
    waiters: usize,
}

impl Mutant {
    fn open(config: &ConnectorConfig, inner: Arc<dyn Connector>, defect: &str) -> Arc<dyn Connector> {
        let (closed, lock) = (AtomicBool::new(false), Mutex::new(()));
        let is_log = config.scheme() == MUTANT_LOG.scheme;
        Arc::new(Self {
            ends: is_log.then(|| Ends::new(config.location(), defect)),
            inner,
            config: config.clone(),
            defect: defect.to_owned(),
            closed,
            notes: Mutex::default(),
            lock,
        })
    }

    fn is(&self, defect: &str) -> bool {
        self.defect == defect
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evicts the object if its end has come.
    fn end(&self, inner: &Key, key: &Key) -> Result<()> {
        if self.ends.as_ref().is_some_and(|ends| ends.has_come(key)) {
            if self.is("expiry_scribbles") {
                self.scribble();
            }
            self.inner.evict(inner).wait()?;
        }
        Ok(())
    }

    fn outward(&self, key: Key) -> Result<Key> {
        Key::new(self.config.scheme(), key.locator(), key.len(), key.format())
    }

    fn inward(&self, op: &'static str, key: &Key) -> Result<Key> {
        let notes = self.notes();
        if key.scheme() != self.config.scheme() && !self.is("any_scheme") {
            return Err(Error::new(ErrorKind::ForeignKey, op, "scheme"));
        }
        if let Some(alias) = notes.aliases.get(key.locator()) {
            return Ok(*alias);
        }
        let format = notes.formats.get(key.locator());
        if self.is("key_checks_format") && format.is_some_and(|format| *format != key.format()) {
            return Err(Error::new(ErrorKind::TypeMismatch, op, ""));
        }
        let len = if self.is("length_ignored") { Key::UNKNOWN_LEN } else { key.len() };
        let mut inner = Key::new(self.inner.config().scheme(), key.locator(), len, key.format())?;
        let last = notes.committed.last().filter(|last| match self.defect.as_str() {
            "locator_prefix" => last.locator().iter().zip(key.locator()).take(3).all(|(a, b)| a == b),
            "locator_any" => true,
            _ => false,
        });
        if let Some(last) = last {
            inner = *last;
        }
        Ok(inner)
    }

    /// Memory that regions show while somebody else writes it: what no sound connector has.
    fn shared(&self, len: usize) -> &'static [AtomicU8] {
        let mut notes = self.notes();
        let made = || &*Vec::leak((0..len + 64).map(|_| AtomicU8::new(0)).collect::<Vec<_>>());
        let bytes = *notes.shared.entry(len).or_insert_with(made);
        let skew = bytes.as_ptr().align_offset(64);
        &bytes[skew..skew + len]
    }

    fn scribble(&self) {
        for bytes in self.notes().shared.values() {
            bytes.iter().for_each(|byte| byte.store(0xdb, Ordering::Relaxed));
        }
    }

    fn show(&self, region: &Region) -> Region {
        let bytes = self.shared(region.len());
        bytes.iter().zip(region.iter()).for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
        // SAFETY: leaked, initialised bytes. That they change later is the defect under test.
        let view: &'static [u8] = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) };
        Region::from_owner(view).expect("aligned above")
    }

    fn mutate_found(&self, key: &Key, found: Option<Region>) -> Result<Option<Region>> {
        let Some(region) = found else {
            return match self.is("get_missing_errors") {
                true => Err(Error::new(ErrorKind::NotFound, "get", "")),
                false => Ok(None),
            };
        };
        Ok(Some(match self.defect.as_str() {
            "get_last_byte_lost" => Region::copy_from_slice(&region[..region.len().saturating_sub(1)])?,
            "get_hides_empty" if region.is_empty() => return Ok(None),
            "get_bounces" | "evict_scribbles" | "close_scribbles" | "drop_scribbles" | "expiry_scribbles" => {
                self.show(&region)
            }
            "get_copies" => Region::copy_from_slice(&region)?,
            "get_leaks" => {
                forget(Region::copy_from_slice(&region)?);
                region
            }
            "get_torn" => {
                let mut torn = RegionMut::heap(region.len())?;
                torn.put_slice(&region[..region.len() / 2]);
                torn.initialize();
                torn.freeze()
            }
            "commit_late" if self.notes().unseen.remove(key.locator()) => return Ok(None),
            _ => region,
        }))
    }

    fn mutate_region(&self, mut region: RegionMut) -> Result<RegionMut> {
        let keep = match (self.defect.as_str(), region.len()) {
            ("commit_whole_capacity", _) => {
                region.initialize();
                return Ok(region);
            }
            ("commit_refuses_empty", 0) => return Err(Error::new(ErrorKind::Invalid, "commit", "empty")),
            ("commit_last_byte_lost", len) => len.saturating_sub(1),
            ("page_loses_a_byte", 4096) => 4095,
            ("commit_drops_what_initialize_wrote", len) if len == region.capacity() && len == 1000 => 100,
            ("commit_own_only", _) if !region.is_memory::<Lent>() => {
                return Err(Error::new(ErrorKind::Invalid, "commit", "not a region of mine"));
            }
            ("commit_garbles_foreign", len) => {
                let own = region.into_memory::<Lent>().is_ok_and(|(memory, _)| memory.owner == self.tag());
                let mut copy = RegionMut::heap(len)?;
                // Which bytes they were does not matter to this defect's case.
                return Ok(if own {
                    copy
                } else {
                    copy.put_bytes(0, len);
                    copy
                });
            }
            ("commit_keeps_foreign", len) => len,
            _ => return Ok(region),
        };
        let mut copy = RegionMut::heap(keep)?;
        copy.put_slice(&region.as_slice()[..keep]);
        if self.is("commit_keeps_foreign") {
            self.notes().kept.push(region.freeze());
        }
        Ok(copy)
    }

    fn tag(&self) -> usize {
        Arc::as_ptr(&self.inner).cast::<u8>().addr()
    }

    fn check_open(&self, op: &'static str) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(Error::new(ErrorKind::Closed, op, "")),
            false => Ok(()),
        }
    }

    fn other_error<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(error) if error.kind() == ErrorKind::ForeignKey && self.is("foreign_fails") => {
                Err(Error::new(ErrorKind::Io, "get", "no such instance"))
            }
            Err(error) if error.kind() == ErrorKind::Closed && self.is("close_fails_others") => {
                Err(Error::new(ErrorKind::Io, "get", "bad file descriptor"))
            }
            other => other,
        }
    }
}

impl Connector for Mutant {
    fn config(&self) -> &ConnectorConfig {
        if self.is("config_of_another") { self.inner.config() } else { &self.config }
    }

    fn capabilities(&self) -> Capabilities {
        match self.is("capabilities_lie") {
            true => Capabilities::CROSS_NODE,
            false if self.ends.is_some() => LOG_CAPABILITIES,
            false => self.inner.capabilities(),
        }
    }

    fn reserve(&self, len: usize) -> Result<RegionMut> {
        let lent = |skew, owner| Ok(RegionMut::new(Box::new(Lent::new(len, skew, owner)?)));
        match self.defect.as_str() {
            "reserve_misaligned" => return lent(8, 0),
            "commit_own_only" => return lent(0, 0),
            "commit_garbles_foreign" => return lent(0, self.tag()),
            "reserve_short" => return self.inner.reserve(len.saturating_sub(1)),
            "reserve_same_twice" if len > 0 && len < 1 << 20 => {
                let bytes = self.shared(len);
                let ptr = NonNull::from(bytes).cast();
                return Ok(RegionMut::new(Box::new(Lent { block: Vec::new(), ptr, len, owner: 0 })));
            }
            "reserve_born_full" => {
                let mut region = self.inner.reserve(len)?;
                region.put_u8(0);
                return Ok(region);
            }
            "reserve_panics" => assert!(isize::try_from(len).is_ok(), "capacity overflow"),
            "reserve_touches" if (1 << 30..1 << 40).contains(&len) => self.notes().ballast.push(vec![1; len / 4]),
            "reserve_leaks" => self.notes().ballast.push(vec![1; len]),
            "drop_fails_reservations" => {
                return Ok(RegionMut::new(Box::new(Tied(self.inner.reserve(len)?, Arc::downgrade(&self.inner)))));
            }
            _ => {}
        }
        self.inner.reserve(len)
    }

    fn commit(&self, region: RegionMut, format: Format) -> Pending<Key> {
        let commit = || {
            if self.is("close_spares_commit") && self.closed.load(Ordering::Acquire) {
                return Key::new(self.config.scheme(), &[1; 16], region.len() as u64, format);
            }
            let _lock = self.is("wait_locks").then(|| self.lock.lock());
            let content = region.as_slice().to_vec();
            if let Some(key) = self.notes().by_content.get(&content).filter(|_| self.is("commit_shares_equal")) {
                return Ok(*key);
            }
            let format = if self.is("commit_drops_format") { Format::RAW } else { format };
            let inner = self.inner.commit(self.mutate_region(region)?, format).wait()?;
            let mut key = self.outward(inner)?;
            let mut notes = self.notes();
            notes.committed.push(inner);
            while self.is("few_objects") && notes.committed.len() > 50 {
                // Each commit pushes out what other threads put before.
                self.inner.evict(&notes.committed.remove(0)).wait()?;
            }
            notes.by_content.insert(content, key);
            notes.unseen.insert(key.locator().to_vec());
            notes.formats.insert(key.locator().to_vec(), format);
            let renamed = match self.defect.as_str() {
                "commit_reuses_key" => notes.free.pop(),
                "commit_wraps_around" => {
                    let n = (notes.committed.len() % 1000) as u64;
                    Some(Key::new(self.config.scheme(), &n.to_le_bytes(), 0, format)?)
                }
                "private_names" => {
                    let n = std::process::id() as u64 * 1_000_000 + notes.committed.len() as u64;
                    let locator = [&key.locator()[..8], &n.to_le_bytes()].concat();
                    Some(Key::new(self.config.scheme(), &locator, 0, format)?)
                }
                _ => None,
            };
            if let Some(name) = renamed {
                key = Key::new(self.config.scheme(), name.locator(), key.len(), format)?;
                notes.aliases.insert(name.locator().to_vec(), inner);
            }
            if self.is("key_text_loses_format") {
                notes.formats.remove(key.locator());
                key = Key::new(&key.scheme()[..1], key.locator(), key.len(), key.format())?;
            }
            Ok(key)
        };
        Pending::ready(commit())
    }

    fn commit_with(&self, region: RegionMut, format: Format, options: &PutOptions) -> Pending<Key> {
        let lacking = options.needs().without(self.capabilities()) != Capabilities::NONE;
        if self.is("options_refused") || lacking && !self.is("options_ignored") {
            return Pending::ready(Err(self.unsupported_options("commit", options)));
        }
        let committed = self.commit(region, format).wait();
        if let (Ok(key), Some(ends)) = (&committed, &self.ends) {
            ends.note(key, options);
        }
        Pending::ready(committed)
    }

    fn commit_batch_with(
        self: Arc<Self>,
        regions: Vec<(RegionMut, Format)>,
        options: &PutOptions,
    ) -> Pending<Vec<Key>> {
        if self.is("batch_drops_options") {
            return self.commit_batch(regions);
        }
        let commits = regions.into_iter().map(|(region, format)| self.commit_with(region, format, options).wait());
        Pending::ready(commits.collect())
    }

    fn put(&self, bytes: &[u8], format: Format) -> Pending<Key> {
        let mut region = match self.reserve(bytes.len()) {
            Ok(region) => region,
            Err(error) => return Pending::ready(Err(error)),
        };
        match self.is("put_zeroes") {
            true => region.put_bytes(0, bytes.len()),
            false => region.put_slice(bytes),
        }
        self.commit(region, format)
    }

    fn get(&self, key: &Key) -> Pending<Option<Region>> {
        if self.is("get_blocks") || self.is("await_never_wakes") && key.len() == 5000 {
            let (completer, pending) = Pending::channel();
            forget(completer);
            return pending;
        }
        let inner = match self.inward("get", key) {
            Ok(inner) => inner,
            Err(error) => return Pending::ready(self.other_error(Err(error))),
        };
        if self.is("get_needs_handle") {
            let connector = Arc::downgrade(&self.inner);
            return Pending::blocking(move || match connector.upgrade() {
                Some(connector) => connector.get(&inner).wait(),
                None => Err(Error::new(ErrorKind::Closed, "get", "")),
            });
        }
        if let Err(error) = self.end(&inner, key) {
            return Pending::ready(Err(error));
        }
        let notes = self.notes();
        if self.closed.load(Ordering::Acquire) && self.is("close_spares_get") {
            return Pending::ready(Ok(None));
        }
        if let Some(half) = notes.halves.get(key.locator()) {
            return Pending::ready(Ok(Some(half.clone())));
        }
        if let Some(region) = notes.regions.get(key.locator()) {
            return Pending::ready(Ok(Some(region.clone())));
        }
        drop(notes);
        let result = self.inner.get(&inner).wait();
        let result = self.other_error(result).and_then(|found| self.mutate_found(key, found));
        if self.is("declare_visible") && !key.is_len_known() && matches!(result, Ok(None)) {
            return Pending::ready(Ok(Some(Region::default())));
        }
        if let (true, Ok(Some(region))) = (self.is("get_remembers"), &result) {
            self.notes().regions.insert(key.locator().to_vec(), region.clone());
        }
        Pending::ready(result)
    }

    fn exists(&self, key: &Key) -> Pending<bool> {
        let inner = match self.inward("exists", key) {
            Ok(inner) => inner,
            Err(error) => return Pending::ready(Err(error)),
        };
        let ended = if self.is("exists_ignores_expiry") { Ok(()) } else { self.end(&inner, key) };
        let result = self.other_error(ended.and_then(|()| self.inner.exists(&inner).wait()));
        Pending::ready(result.map(|exists| match self.defect.as_str() {
            "exists_always" => true,
            "exists_never" => false,
            _ => exists,
        }))
    }

    fn evict(&self, key: &Key) -> Pending<()> {
        let inner = match self.inward("evict", key) {
            Ok(inner) => inner,
            Err(error) => return Pending::ready(Err(error)),
        };
        match self.defect.as_str() {
            "evict_nothing" => return Pending::ready(Ok(())),
            "evict_missing_errors" => {
                if let Ok(false) = self.inner.exists(&inner).wait() {
                    return Pending::ready(Err(Error::new(ErrorKind::NotFound, "evict", "")));
                }
            }
            "evict_keeps_memory" => self.notes().kept.extend(self.inner.get(&inner).wait().ok().flatten()),
            "evict_lazy" => return Pending::from_source(Lazy(Arc::clone(&self.inner), inner)),
            "evict_scribbles" => self.scribble(),
            "evict_strands" | "evict_keeps_declared" if !key.is_len_known() => {
                self.notes().evicted.insert(key.locator().to_vec());
                return Pending::ready(Ok(()));
            }
            "commit_reuses_key" => self.notes().free.push(*key),
            _ => {}
        }
        Pending::ready(self.other_error(self.inner.evict(&inner).wait()))
    }

    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        let inner = match self.inward("take", key) {
            Ok(inner) => inner,
            Err(error) => return Pending::ready(Err(error)),
        };
        if let Err(error) = self.end(&inner, key) {
            return Pending::ready(Err(error));
        }
        Pending::ready(match self.defect.as_str() {
            "take_keeps" => self.inner.get(&inner).wait(),
            "take_not_atomic" => self.inner.get(&inner).wait().and_then(|found| {
                thread::sleep(Duration::from_micros(200));
                self.inner.evict(&inner).wait()?;
                Ok(found)
            }),
            "take_removes_first" => self.inner.take(&inner).wait().inspect_err(|_| {
                let whole = self.notes().committed.iter().find(|key| key.locator() == inner.locator()).copied();
                drop(whole.map(|whole| self.inner.evict(&whole).wait()));
            }),
            "take_undeclares" if !key.is_len_known() => {
                let taken = self.inner.take(&inner).wait();
                self.inner.evict(&inner).wait().and(taken)
            }
            "evict_scribbles" => {
                self.scribble();
                self.inner.take(&inner).wait()
            }
            "get_bounces" => self.inner.take(&inner).wait().map(|found| found.map(|region| self.show(&region))),
            _ => self.other_error(self.inner.take(&inner).wait()),
        })
    }

    fn close(&self) -> Result<()> {
        let again = self.closed.swap(true, Ordering::AcqRel);
        match self.defect.as_str() {
            "close_nothing" | "close_strands" => return Ok(()),
            "close_twice_errors" if again => return self.check_open("close"),
            "close_scribbles" => self.scribble(),
            "ephemeral_waits_for_close" | "ephemeral_kept_by_close" => self.ends.iter().for_each(Ends::close),
            "close_deletes" => {
                let committed = take(&mut self.notes().committed);
                committed.iter().for_each(|key| drop(self.inner.evict(key).wait()));
            }
            "open_shares_close" => {
                static CLOSED: AtomicBool = AtomicBool::new(false);
                if CLOSED.swap(true, Ordering::AcqRel) {
                    return self.check_open("close");
                }
            }
            _ => {}
        }
        self.inner.close()
    }

    fn commit_batch(self: Arc<Self>, mut regions: Vec<(RegionMut, Format)>) -> Pending<Vec<Key>> {
        if self.is("batch_empty_refused") && regions.is_empty() {
            return Pending::ready(Err(Error::new(ErrorKind::Invalid, "commit", "empty")));
        }
        if self.is("commit_batch_reversed") {
            regions.reverse();
        }
        Pending::ready(regions.into_iter().map(|(region, format)| self.commit(region, format).wait()).collect())
    }

    fn get_batch(&self, keys: &[Key]) -> Pending<Vec<Option<Region>>> {
        let mut found = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            match self.get(key).wait() {
                Ok(None) if self.is("batch_skips_missing") => {}
                Ok(None) if self.is("batch_missing_errors") => {
                    return Pending::ready(Err(Error::new(ErrorKind::NotFound, "get", "")));
                }
                Ok(_) if self.is("batch_repeats_once") && keys[..i].contains(key) => found.push(None),
                Ok(region) => found.push(region),
                Err(_) if self.is("batch_skips_foreign") => found.push(None),
                Err(error) => return Pending::ready(Err(error)),
            }
        }
        if self.is("batch_reversed") {
            found.reverse();
        }
        Pending::ready(Ok(found))
    }

    fn evict_batch(&self, keys: &[Key]) -> Pending<()> {
        let all = if self.is("evict_batch_first_only") { 1 } else { keys.len() };
        Pending::ready(keys.iter().take(all).try_for_each(|key| self.evict(key).wait()))
    }

    fn declare(&self, format: Format) -> Result<Key> {
        if self.is("declares_nothing") {
            return Key::new(self.config.scheme(), &[1; 16], Key::UNKNOWN_LEN, format);
        }
        let format = if self.is("declare_drops_format") { Format::RAW } else { format };
        let key = self.inner.declare(format)?;
        if self.is("declare_len_zero") {
            return Key::new(self.config.scheme(), key.locator(), 0, format);
        }
        self.notes().formats.insert(key.locator().to_vec(), format);
        self.outward(key)
    }

    fn commit_at(&self, key: &Key, region: RegionMut) -> Pending<()> {
        let commit = || {
            let mut inner = self.inward("commit_at", key)?;
            let region = self.mutate_region(RegionMut::heap(0)?).and(self.mutate_region(region))?;
            if self.notes().evicted.contains(key.locator()) && self.is("evict_strands") {
                return Err(Error::new(ErrorKind::NotFound, "commit_at", ""));
            }
            if self.is("commit_at_any_format") {
                inner = inner.with_format(self.notes().formats.get(key.locator()).copied().unwrap_or(Format::RAW));
            }
            if self.is("commit_at_in_halves") {
                let half = Region::copy_from_slice(&region.as_slice()[..region.len() / 2])?;
                self.notes().halves.insert(key.locator().to_vec(), half);
                thread::sleep(Duration::from_millis(1));
                let result = self.inner.commit_at(&inner, region).wait();
                self.notes().halves.clear();
                return result;
            }
            let result = self.inner.commit_at(&inner, region).wait();
            if self.is("commit_at_twice") { Ok(()) } else { result }
        };
        Pending::ready(commit())
    }

    fn get_when_committed(&self, key: &Key) -> Pending<Region> {
        let inner = match self.inward("get", key) {
            Ok(inner) => inner,
            Err(error) => return Pending::ready(Err(error)),
        };
        let wakes = match self.defect.as_str() {
            "wait_never_wakes" => false,
            "wait_wakes_one" => {
                self.notes().waiters += 1;
                self.notes().waiters % 4 == 0
            }
            "wait_ignores_deadline" => {
                return Pending::blocking_until(|_| {
                    thread::sleep(Duration::from_secs(4));
                    Err(Error::new(ErrorKind::Timeout, "wait", ""))
                });
            }
            "wait_locks" => {
                let _lock = self.lock.lock();
                return Pending::ready(self.inner.get_when_committed(&inner).deadline(Duration::from_secs(2)).wait());
            }
            _ => true,
        };
        if !wakes {
            let (completer, pending) = Pending::channel();
            forget(completer);
            return pending;
        }
        self.inner.get_when_committed(&inner)
    }
}

impl Drop for Mutant {
    fn drop(&mut self) {
        if self.is("drop_scribbles") {
            self.scribble();
        }
    }
}

/// Memory that is off its alignment by `skew`, or somebody's in particular.
struct Lent {
    block: Vec<u8>,
    ptr: NonNull<u8>,
    len: usize,
    owner: usize,
}

impl Lent {
    fn new(len: usize, skew: usize, owner: usize) -> Result<Self> {
        let mut block = Vec::new();
        let room = len.checked_add(128).ok_or_else(|| Error::new(ErrorKind::TooLarge, "reserve", ""))?;
        block.try_reserve_exact(room).map_err(|_| Error::new(ErrorKind::NoSpace, "reserve", ""))?;
        block.resize(room, 0);
        let start = block.as_ptr().align_offset(64) + skew;
        let ptr = NonNull::from(&mut block[start..]).cast();
        Ok(Self { block, ptr, len, owner })
    }
}

// SAFETY: valid but for what the defects are about.
unsafe impl Memory for Lent {
    fn as_ptr(&self) -> NonNull<u8> {
        debug_assert!(self.block.is_empty() || self.block.len() > self.len);
        self.ptr
    }
    fn capacity(&self) -> usize {
        self.len
    }
}
// SAFETY: the pointer is into the block, or into leaked memory.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

/// A reservation that is unusable when its connector is gone.
struct Tied(RegionMut, std::sync::Weak<dyn Connector>);

// SAFETY: delegates to the reservation inside, which stays where it is.
unsafe impl Memory for Tied {
    fn as_ptr(&self) -> NonNull<u8> {
        assert!(self.1.upgrade().is_some(), "the connector is gone");
        NonNull::new(self.0.as_slice().as_ptr().cast_mut()).expect("slices are not null")
    }
    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

/// An evict that happens only when somebody waits.
struct Lazy(Arc<dyn Connector>, Key);

impl proxystore::pending::Source<()> for Lazy {
    fn wait(&mut self, _: Option<Instant>) -> Result<()> {
        self.0.evict(&self.1).wait()
    }
    fn poll(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<()>> {
        std::task::Poll::Ready(self.0.evict(&self.1).wait())
    }
}
