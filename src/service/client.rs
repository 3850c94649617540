//! `Client`: this process's attachment to a namespace.
//!
//! Puts and gets are loads and stores on shared memory, by whatever thread wants them. All that needs the service goes through
//! one thread of the process, the agent: leases ahead of need, words of what was evicted, and coming back after the
//! service's death.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;

use super::directory::Directory;
use super::lock;
use super::message::Request;
use super::server::{Inherited, index_of};
use super::stats::ServiceStats;
use super::wire::Socket;
use crate::connector::PutOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::key::Format;
use crate::mutant::mutant;
use crate::process::{self, PerProcess};
use crate::region::{self, Region};
use crate::shm::class::{Class, Place};
use crate::shm::clock;
use crate::shm::layout::{policy, word};
use crate::shm::mapped::Mapped;
use crate::shm::segment::{Access, Mapping, Segment};
use crate::shm::table::{EPHEMERAL, Found, Id, Label, Object, State, Table};
use crate::sync::lock as locked;

mod agent;
mod arrival;
#[cfg_attr(
    not(feature = "tcp"),
    allow(dead_code, reason = "only who fetches from other nodes has something that arrives")
)]
mod arriving;
mod attach;
mod cell;
mod deferred;
#[cfg(feature = "tcp")]
mod find;
mod lease;
mod pins;
#[cfg_attr(not(feature = "tcp"), allow(dead_code, reason = "only who fetches from other nodes has replicas"))]
mod replica;
mod view;
mod walk;

pub(crate) use arrival::Arrival;
#[cfg(any(feature = "tcp", feature = "failpoints"))]
pub(crate) use arriving::Advance;
#[cfg(feature = "tcp")]
pub(crate) use arriving::Passage;
#[cfg(feature = "failpoints")]
pub(crate) use arriving::Passing;
#[cfg(feature = "tcp")]
pub(crate) use find::Sight;
pub(crate) use lease::Lease;
#[cfg(any(feature = "tcp", feature = "failpoints"))]
pub(crate) use replica::{Claim, Replica};
pub(crate) use walk::Seen;

use agent::{Doorbell, Requests};
use lease::Pool;
use pins::Pinned;

/// How a process wants to attach; what only the first one can decide is checked by the others.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) namespace: String,
    /// Most bytes of objects, if this process comes to host the service.
    pub(crate) budget: Option<u64>,
    /// Whether objects that were not used for long make room for new ones.
    pub(crate) displace: Option<bool>,
    /// How long an operation waits for the service.
    pub(crate) timeout: Duration,
    /// Whether this process may host the service.
    pub(crate) may_host: bool,
}

/// One attachment of this process; shared by all its connectors of the namespace, their reservations and their views.
pub(crate) struct Client {
    /// Of the process that attached: a child of fork has no business here.
    generation: u32,
    options: Options,
    directory: Directory,
    table: Table<Mapped>,
    ctl: Segment,
    instance: u64,
    tag: u64,
    /// Slots that are known to be reserved.
    slots: AtomicU32,
    segments: Box<[OnceLock<Held>]>,
    /// Goes up with each segment that comes, for those who wait for one.
    arrivals: (Mutex<u64>, Condvar),
    pools: Box<[OnceLock<Pool>]>,
    /// Holders of reservations that ended, for those to come.
    #[cfg(feature = "tcp")]
    cells: Mutex<Vec<Arc<cell::Again>>>,
    /// Pages of pin cells that no thread has.
    pages: Mutex<Vec<u32>>,
    requests: Requests,
    retired: SegQueue<u32>,
    doorbell: Doorbell,
    link: Mutex<Option<Arc<Socket>>>,
    host: AtomicU32,
    /// The service knows us no more: what is mapped stays readable, all else fails.
    lost: AtomicBool,
    /// Whether this process may come to host the service: somebody here does more than look.
    may_host: AtomicBool,
    /// The agent is told to end.
    ended: AtomicBool,
    waiting: arrival::Waiting,
    /// Tells everybody that this process lives.
    member: Mutex<Option<lock::Held>>,
}

/// Where a namespace's attachment is, or is being made.
type Attached = Arc<Mutex<Option<Arc<Client>>>>;

/// A data segment; mapped when first needed, once for life, for each of two purposes.
struct Held {
    segment: Segment,
    write: OnceLock<Mapping>,
    read: OnceLock<Mapping>,
    /// Pieces of [`PIECE`] bytes whose pages the writing mapping has.
    populated: Box<[AtomicU64]>,
}

impl Client {
    /// The attachment of this process to a namespace; made when there is none.
    ///
    /// # Cost
    /// The first time some hundred microseconds: a socket, a mapping, a thread. Then a look-up.
    ///
    /// # Errors
    /// `Unavailable` when the service does not answer, `Config` for options that differ from the first process's,
    /// `Permission`, `Incompatible`, `NoSpace`.
    pub(crate) fn attach(options: &Options) -> Result<Arc<Self>> {
        let directory = Directory::open(&options.namespace)?;
        let path = directory.path().to_string_lossy().into_owned();
        // Attaching to one namespace holds up no other.
        let place = Arc::clone(Self::all().entry(path).or_default());
        let mut attached = locked(&place);
        let client = match attached.as_ref().filter(|client| !client.is_lost()) {
            Some(client) => Arc::clone(client),
            None => Arc::clone(attached.insert(attach::attach(options, directory)?)),
        };
        drop(attached);
        Self::leave_at_exit();
        client.may_host.fetch_or(options.may_host, Relaxed);
        client.check_options(options)?;
        Ok(client)
    }

    /// The attachments of this process, by directory.
    fn all() -> MutexGuard<'static, HashMap<String, Attached>> {
        static CLIENTS: PerProcess<Mutex<HashMap<String, Attached>>> = PerProcess::new();
        locked(CLIENTS.get(Mutex::default))
    }

    /// Ends the use of all attachments of this process.
    pub(crate) fn give_over_all() {
        Self::attached().iter().for_each(|client| client.give_over());
    }

    /// All attachments of this process, but for those that are being made.
    fn attached() -> Vec<Arc<Self>> {
        let attached = |place: &Attached| place.try_lock().ok()?.clone();
        Self::all().values().filter_map(attached).collect()
    }

    /// Leaves in order when the process ends by itself, so that a service that it hosts removes its files.
    fn leave_at_exit() {
        extern "C" fn at_exit() {
            // Nobody is left to tell; a panic must not reach the C library.
            let _ = std::panic::catch_unwind(|| Client::attached().iter().for_each(|client| client.leave()));
        }
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // SAFETY: the handler is a function of this program that takes nothing and never unwinds. Where it cannot be
            // registered, empty files stay behind.
            let _ = unsafe { libc::atexit(at_exit) };
        });
    }

    fn check_options(&self, options: &Options) -> Result<()> {
        let displaces = self.stamps();
        match options.displace {
            Some(wanted) if wanted != displaces => {
                let name = |displaces| if displaces { "lru" } else { "refuse" };
                let context = format!(
                    "evict={}: the process that opened this namespace first chose evict={}",
                    name(wanted),
                    name(displaces)
                );
                Err(Error::new(ErrorKind::Config, "open", context))
            }
            _ => Ok(()),
        }
    }

    /// Random number of the memory; keys of another one name nothing here.
    pub(crate) fn instance(&self) -> u64 {
        self.instance
    }

    pub(crate) fn table(&self) -> &Table<Mapped> {
        &self.table
    }

    /// The process that hosts the service.
    pub(crate) fn host(&self) -> u32 {
        self.host.load(Relaxed)
    }

    #[inline]
    fn stamps(&self) -> bool {
        self.table.header(word::POLICY).load(Relaxed) & policy::STAMP != 0
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Acquire) || process::generation() != self.generation
    }

    /// Refuses a handle that came through fork, or whose service is gone for good.
    #[inline(always)]
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        if process::generation() != self.generation {
            let context = "this handle was opened before fork; open the store again in the child";
            return Err(Error::new(ErrorKind::Forked, op, context).with_connector("shm"));
        }
        if self.lost.load(Relaxed) {
            let context = "the memory of this namespace was given up; open the store again";
            return Err(Error::new(ErrorKind::Stale, op, context).with_connector("shm"));
        }
        Ok(())
    }

    /// The data segment in which an address of this process lies: where it is written, and where it is viewed.
    ///
    /// Whoever asks registers it: from now on, its pages stay what they are.
    #[cfg(feature = "tcp")]
    pub(crate) fn mappings_of(&self, address: usize) -> Option<(std::ops::Range<usize>, Option<usize>)> {
        self.table.header(word::REGISTERED).store(1, Relaxed);
        let contains = |mapping: &Mapping| {
            let start = mapping.as_ptr().addr().get();
            (start..start + mapping.len()).contains(&address)
        };
        let (_, held) = self
            .held_segments()
            .find(|(_, held)| held.write.get().is_some_and(contains) || held.read.get().is_some_and(contains))?;
        held.mappings()
    }

    /// The same of a data segment that has come to this process.
    #[cfg(feature = "tcp")]
    pub(crate) fn mappings_of_segment(&self, index: u16) -> Option<(std::ops::Range<usize>, Option<usize>)> {
        self.table.header(word::REGISTERED).store(1, Relaxed);
        self.segments.get(usize::from(index))?.get()?.mappings()
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Objects.

    /// Stores a copy of `bytes`.
    #[inline]
    pub(crate) fn put(&self, bytes: &[u8], mut label: Label) -> Result<(Id, u64)> {
        let (id, place, ptr, _) = self.pop(bytes.len() as u64)?;
        failpoint!("client.put.begin");
        label.len = bytes.len() as u64;
        if mutant!("publish_first") {
            self.table.publish(id, &label, 0);
        }
        // SAFETY: the lease's cell has at least `bytes.len()` bytes, nobody else has it, and it is no part of `bytes`: views lie
        // in other mappings, and in cells that are not leased.
        unsafe { ptr.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        failpoint!("client.put.copied");
        self.publish(id, &label);
        Ok((id, place))
    }

    #[inline]
    fn publish(&self, id: Id, label: &Label) {
        self.table.publish(id, label, self.table.header(word::EPOCH).load(Relaxed) as u32);
        failpoint!("client.put.published");
    }

    /// Finds an object of `len` bytes, if that is known, and views it in place.
    ///
    /// # Errors
    /// `Corrupt` for one of another length, or whose slot makes no sense; `NoSpace` without pin cells.
    #[inline(always)]
    pub(crate) fn get(self: &Arc<Self>, id: Id, expected: Expected) -> Result<Look> {
        if !self.knows(id.slot) {
            return Ok(Look::Missing);
        }
        let cell = pins::cell(self)?;
        match self.table.pin(cell, id) {
            Found::Object(object) => {
                failpoint!("client.pinned");
                // From here on the pin is given up when `pinned` is dropped.
                let pinned = Pinned::new(self, cell);
                self.view(&object, expected, pinned)
            }
            Found::Declared => Ok(Look::Declared),
            Found::Missing => Ok(Look::Missing),
        }
    }

    /// As [`get`](Self::get), for the one caller who ends the object by that.
    pub(crate) fn take(self: &Arc<Self>, id: Id, expected: Expected) -> Result<Look> {
        if !self.knows(id.slot) {
            return Ok(Look::Missing);
        }
        let cell = pins::cell(self)?;
        let object = match self.table.pin(cell, id) {
            Found::Object(object) => object,
            Found::Declared => return Ok(Look::Declared),
            Found::Missing => return Ok(Look::Missing),
        };
        let look = self.view(&object, expected, Pinned::new(self, cell))?;
        if !matches!(look, Look::Object(_)) || !self.table.retire_object(object.id) {
            return Ok(Look::Missing);
        }
        failpoint!("client.taken");
        self.tell_retired(object.id.slot);
        if object.id != id && self.table.retire(id) {
            self.tell_retired(id.slot);
        }
        Ok(look)
    }

    /// Whether the object can be read now.
    #[inline]
    pub(crate) fn exists(self: &Arc<Self>, id: Id, expected: Expected) -> Result<bool> {
        if !self.knows(id.slot) {
            return Ok(false);
        }
        let object = match self.table.peek(id) {
            Some(object) => object,
            None if self.table.state(id.slot) == Some((id.generation, State::Declared)) => {
                let cell = pins::cell(self)?;
                let Found::Object(object) = self.table.pin(cell, id) else { return Ok(false) };
                self.table.unpin(cell);
                object
            }
            None => return Ok(false),
        };
        expected.check(&object)?;
        let expires = object.label.expires;
        Ok(expires == 0 || expires > clock::boot_millis())
    }

    /// Ends an object or a declaration.
    ///
    /// # Errors
    /// `Corrupt` for one of another length than the key says.
    pub(crate) fn evict(&self, id: Id, expected: Expected) -> Result<bool> {
        if self.knows(id.slot) {
            self.table.peek(id).map_or(Ok(()), |object| expected.check(&object))?;
        }
        let evicted = self.knows(id.slot) && self.table.retire(id);
        if evicted {
            failpoint!("client.retired");
            self.tell_retired(id.slot);
        }
        Ok(evicted)
    }

    /// A label without options.
    pub(crate) fn label(format: Format) -> Label {
        Label { len: 0, format, flags: 0, expires: 0 }
    }

    /// A label with what the options say.
    pub(crate) fn label_with(&self, len: u64, format: Format, options: &PutOptions) -> Label {
        let flags = if options.ends_with_producer() { EPHEMERAL } else { 0 };
        let expires = options.lifetime().map_or(0, |limit| self.expiry(limit));
        Label { len, format, flags, expires }
    }

    /// When an object that is put now expires.
    pub(crate) fn expiry(&self, time_to_live: Duration) -> u64 {
        self.table.header(word::EXPIRES).store(1, Relaxed);
        clock::boot_millis().saturating_add(u64::try_from(time_to_live.as_millis()).unwrap_or(u64::MAX)).max(1)
    }

    /// Whether a slot of this number may be touched.
    #[inline]
    fn knows(&self, slot: u32) -> bool {
        slot < self.slots.load(Relaxed) || self.learns(slot)
    }

    #[cold]
    fn learns(&self, slot: u32) -> bool {
        let slots = self.table.slots();
        self.slots.fetch_max(slots, Relaxed);
        slot < slots
    }

    /// Tells the service, soon, of memory that it may take back.
    #[inline]
    fn tell_retired(&self, slot: u32) {
        self.retired.push(slot);
        self.doorbell.ring_unless_awake();
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Segments.

    /// A segment, which may be on its way to us.
    #[inline]
    fn segment(&self, index: u16) -> Result<&Held> {
        match self.segments.get(usize::from(index)).and_then(OnceLock::get) {
            Some(held) => Ok(held),
            None => self.wait_for_segment(index),
        }
    }

    #[cold]
    fn wait_for_segment(&self, index: u16) -> Result<&Held> {
        let Some(place) = self.segments.get(usize::from(index)) else {
            return Err(corrupt("it lies in no segment"));
        };
        if self.table.segment(index, 0).load(Acquire) == 0 {
            return Err(corrupt("it lies in a segment that does not exist"));
        }
        let deadline = Instant::now() + self.options.timeout;
        let mut count = locked(&self.arrivals.0);
        loop {
            if let Some(held) = place.get() {
                return Ok(held);
            }
            if self.table.segment(index, 0).load(Acquire) == 0 {
                return Err(corrupt("its segment is gone with all who held it"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.unanswered("get"));
            }
            let left = left.min(SEGMENT_POLL);
            count = self.arrivals.1.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn add_segment(&self, index: u16, segment: Segment) {
        let pieces = segment.len().div_ceil(PIECE).div_ceil(64);
        let populated = (0..pieces).map(|_| AtomicU64::new(0)).collect();
        if let Some(place) = self.segments.get(usize::from(index)) {
            let _ = place.set(Held { segment, write: OnceLock::new(), read: OnceLock::new(), populated });
        }
        *locked(&self.arrivals.0) += 1;
        self.arrivals.1.notify_all();
    }

    /// Where the cell of a slot of ours lies for writing.
    fn cell_of(&self, object: &Object, class: Class) -> Result<NonNull<u8>> {
        if class == Class::EMPTY {
            return Ok(region::nowhere());
        }
        let place = Place::from_bits(object.place);
        let held = self.segment(place.segment())?;
        let end = place.offset().checked_add(class.capacity());
        if end.is_none_or(|end| end > held.segment.len() as u64) {
            return Err(corrupt("a leased cell lies outside its segment"));
        }
        let base = held.mapping(Access::Write)?.as_ptr();
        // SAFETY: `offset + capacity` lies within the mapping, by the comparison above.
        Ok(unsafe { base.add(place.offset() as usize) })
    }

    /// The file in which this process and all others of the memory hold their locks, whatever its name leads to by now.
    fn members(&self) -> Option<Arc<lock::LockFile>> {
        locked(&self.member).as_ref().map(|held| Arc::clone(held.file()))
    }

    /// All memory that this process holds, for a service that it comes to host.
    fn inherit(&self) -> Result<Inherited> {
        let mut segments = BTreeMap::new();
        for (index, held) in self.held_segments() {
            segments.insert(index, held.segment.try_clone()?);
        }
        Ok(Inherited { ctl: self.ctl.try_clone()?, segments })
    }

    fn held_segments(&self) -> impl Iterator<Item = (u16, &Held)> {
        self.segments.iter().enumerate().filter_map(|(index, held)| Some((index as u16, held.get()?)))
    }

    // ------------------------------------------------------------------------------------------------------------------
    // The service.

    /// What the service says of itself.
    pub(crate) fn stats(&self) -> Result<ServiceStats> {
        self.check("stat")?;
        match self.ask(|id| Request::Stats { id }, "stat")? {
            agent::Answer::Stats(stats) => Ok(*stats),
            _ => Err(corrupt("the service answered something else")),
        }
    }

    /// Makes the service give free memory back; in bytes.
    pub(crate) fn collect(&self) -> Result<u64> {
        self.check("gc")?;
        match self.ask(|id| Request::Collect { id }, "gc")? {
            agent::Answer::Collected(bytes) => Ok(bytes),
            _ => Err(corrupt("the service answered something else")),
        }
    }

    /// Where other nodes reach the objects of this one; from now on they do.
    ///
    /// # Errors
    /// What keeps the service from listening; `Unsupported` when it was built without.
    #[cfg(feature = "tcp")]
    pub(crate) fn export(&self) -> Result<std::net::SocketAddr> {
        self.check("open")?;
        match self.ask(|id| Request::Export { id }, "open")? {
            agent::Answer::Exported(contact) => Ok(contact),
            _ => Err(corrupt("the service answered something else")),
        }
    }

    fn unanswered(&self, op: &'static str) -> Error {
        let context = format!(
            "the node service of {:?} (process {}) did not answer within {:?}",
            self.options.namespace,
            self.host(),
            self.options.timeout
        );
        Error::new(ErrorKind::Unavailable, op, context).with_connector("shm")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Views hold cells, not the client: as long as there may be one, all memory stays mapped, for good. It happens when a
        // namespace was given up under them, and then others may have cleared the cells.
        if process::generation() != self.generation
            || self.lost.load(Acquire)
            || self.ended.load(Acquire)
            || self.is_viewed()
        {
            self.table.mem().leak();
            self.segments.iter_mut().filter_map(OnceLock::take).for_each(Held::leak);
        }
    }
}

impl Held {
    /// Keeps the mappings for the rest of the process's life.
    fn leak(self) {
        std::mem::forget(self.write);
        std::mem::forget(self.read);
    }

    #[inline]
    /// Addresses at which it is written, and the first at which it is viewed.
    #[cfg(feature = "tcp")]
    fn mappings(&self) -> Option<(std::ops::Range<usize>, Option<usize>)> {
        let write = self.mapping(Access::Write).ok()?;
        let start = write.as_ptr().addr().get();
        Some((start..start + write.len(), self.read.get().map(|read| read.as_ptr().addr().get())))
    }

    fn mapping(&self, access: Access) -> Result<&Mapping> {
        let place = match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        };
        match place.get() {
            Some(mapping) => Ok(mapping),
            None => self.map(place, access),
        }
    }

    #[cold]
    fn map<'a>(&self, place: &'a OnceLock<Mapping>, access: Access) -> Result<&'a Mapping> {
        let mapping = self.segment.map(access)?;
        // Of two threads the second drops its own.
        Ok(place.get_or_init(|| mapping))
    }

    /// Takes the page faults of a piece of memory ahead of its use.
    fn populate(&self, offset: u64, len: u64) {
        let Ok(mapping) = self.mapping(Access::Write) else { return };
        let (first, last) = (offset as usize / PIECE, (offset + len).div_ceil(PIECE as u64) as usize);
        for piece in first..last.min(self.segment.len().div_ceil(PIECE)) {
            let bit = 1 << (piece % 64);
            if self.populated[piece / 64].fetch_or(bit, Relaxed) & bit == 0 {
                let start = piece * PIECE;
                // Without it the first writer takes the faults.
                let _ = mapping.populate(start, PIECE.min(self.segment.len() - start));
            }
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({} of {:?})", index_of(self.tag), self.options.namespace)
    }
}

/// What a look-up came to.
#[derive(Debug)]
pub(crate) enum Look {
    Object(Region),
    Declared,
    Missing,
}

/// What a key says of its object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// `None` for a declared key, which was made before its object.
    pub(crate) object: Option<(u64, u64)>,
}

impl Expected {
    /// Nothing.
    pub(crate) const ANY: Self = Self { object: None };

    /// An object of this length at this place.
    pub(crate) fn new(len: u64, place: u64) -> Self {
        Self { object: Some((len, place)) }
    }

    #[inline(always)]
    fn check(self, object: &Object) -> Result<()> {
        match self.object {
            Some((len, _)) if len != object.label.len => Err(wrong_len(object.label.len)),
            Some((_, place)) if place != object.place => Err(corrupt("it lies elsewhere than the key says")),
            _ => Ok(()),
        }
    }
}

#[cold]
fn wrong_len(len: u64) -> Error {
    let context = format!("the key names an object of {len} bytes, and says another length");
    Error::new(ErrorKind::Corrupt, "get", context).with_connector("shm")
}

#[cold]
fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "get", format!("the slot of the object makes no sense: {what}"))
        .with_connector("shm")
}

/// How often who waits for a segment looks whether it still exists.
const SEGMENT_POLL: Duration = Duration::from_millis(100);

/// Memory is populated in pieces of this size.
const PIECE: usize = 2 << 20;
