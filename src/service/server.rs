//! The node service: one thread that owns memory, death and eviction.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::directory::Directory;
use super::link::{Link, Order};
use super::lock::{Held, LockFile};
use super::message::{Reply, Request};
use super::wire::{Received, Socket};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::mutant::mutant;
use crate::shm::class::Class;
use crate::shm::layout::{Layout, client, word};
use crate::shm::segment::Segment;

mod connection;
#[cfg(feature = "tcp")]
mod exporting;
mod leases;
mod members;
pub(crate) mod memory;
mod stats;

use connection::Connection;
use leases::Starved;
use members::Members;
use memory::Memory;

/// What a service begins with.
pub(crate) struct Setup {
    pub(crate) directory: Directory,
    pub(crate) host: Held,
    /// Most bytes of data segments.
    pub(crate) budget: u64,
    /// Bytes of data segments to make at once.
    pub(crate) prefault: u64,
    /// Whether objects that were not used for long make room for new ones.
    pub(crate) displace: bool,
    /// Memory that exists already.
    pub(crate) inherited: Option<Inherited>,
    /// The file in which the clients of that memory hold their locks, should its name lead to another one by now.
    pub(crate) members: Option<Arc<LockFile>>,
    /// The supervisor that holds the memory too.
    pub(crate) keeper: Option<Link>,
}

/// The memory of a namespace, in the hands of a client or a supervisor.
pub(crate) struct Inherited {
    pub(crate) ctl: Segment,
    pub(crate) segments: BTreeMap<u16, Segment>,
}

/// The service of one namespace.
pub(crate) struct Server {
    directory: Directory,
    listener: Socket,
    members: Members,
    memory: Memory,
    keeper: Option<Link>,
    epoll: OwnedFd,
    connections: HashMap<u32, Connection>,
    clients: HashMap<u32, Client>,
    next_connection: u32,
    next_tag: u64,
    /// Requests that wait for clients to give back what they do not use.
    starved: VecDeque<Starved>,
    /// Who leased cells of which class lately: what becomes free of theirs goes back to them without being asked for.
    standing: HashSet<(u64, Class)>,
    draining: Option<Instant>,
    /// The process that hosts said that it ends.
    is_left: bool,
    /// Until when nobody new is let in.
    paused: Option<Instant>,
    grace: Duration,
    begun: Instant,
    ages: stats::Ages,
    deaths: u64,
    recalls: u64,
    refused: u64,
    #[cfg(feature = "tcp")]
    exporting: exporting::Exporting,
    /// Last, so that it is released after all else is gone.
    host: Held,
}

struct Client {
    tag: u64,
    connection: Option<u32>,
    pidfd: Option<OwnedFd>,
    /// Its record lock was seen.
    locked: bool,
    /// It was asked for unused leases and has not answered.
    recalled: bool,
    /// Nor has it in time: it is stopped, and nobody waits for it again until it answers or comes back.
    silent: bool,
}

impl Server {
    /// Makes or takes over the memory of a namespace and begins to listen.
    ///
    /// # Errors
    /// `NoSpace` with the numbers, `Incompatible` for memory of another version, `Io`.
    pub(crate) fn new(setup: Setup) -> Result<Self> {
        let Setup { directory, host, budget, prefault, displace, inherited, members: former, keeper } = setup;
        let members = Members::open(&directory, former)?;
        let (mut survivors, mut claims) = (HashSet::new(), Vec::new());
        let is_fresh = inherited.is_none();
        let mut memory = match inherited {
            Some(Inherited { ctl, segments }) => {
                survivors = members.survivors(&ctl, &mut claims)?;
                Memory::rebuild(ctl, segments, budget, |tag| survivors.contains(&tag))?
            }
            None => Memory::create(budget, displace)?,
        };
        memory.table.header(word::SUPERVISED).store(u64::from(keeper.is_some()), Relaxed);
        // Never of memory that the supervisor has: it forgets the segments of what it had before.
        if let (Some(keeper), true) = (&keeper, is_fresh || mutant!("keep_rebuilt")) {
            let ctl = memory.ctl();
            keeper.keep_ctl(ctl.as_fd(), memory.instance(), ctl.len() as u64)?;
        }
        memory.prefault(prefault)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("serve"))?;
        let listener = Socket::listen(&directory)?;
        let mut server = Self {
            directory,
            listener,
            members,
            memory,
            keeper,
            epoll,
            connections: HashMap::new(),
            clients: HashMap::new(),
            next_connection: 0,
            // Numbers of another memory must not be numbers of this one: somebody may come back with such a one.
            next_tag: crate::key::random_number() >> (INDEX_BITS + 1),
            starved: VecDeque::new(),
            standing: HashSet::new(),
            draining: None,
            is_left: false,
            paused: None,
            grace: GRACE,
            begun: Instant::now(),
            ages: stats::Ages::default(),
            deaths: 0,
            recalls: 0,
            refused: 0,
            #[cfg(feature = "tcp")]
            exporting: exporting::Exporting::new()?,
            host,
        };
        server.watch(&server.listener, Event::Listener)?;
        if let Some(keeper) = &server.keeper {
            server.watch(keeper, Event::Keeper)?;
        }
        server.keep_all()?;
        server.adopt_clients(&survivors);
        drop(claims);
        #[cfg(feature = "tcp")]
        server.export_again()?;
        Ok(server)
    }

    pub(crate) fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Clients of a former service: they are there until their lock says otherwise, and come back by themselves.
    fn adopt_clients(&mut self, survivors: &HashSet<u64>) {
        for index in 0..Layout::SHARED.clients {
            let tag = self.memory.table.client(index, client::TAG).load(Acquire);
            if tag == 0 {
                continue;
            }
            if !survivors.contains(&tag) || index_of(tag) != index {
                self.memory.bury(tag);
                self.memory.table.client(index, client::TAG).store(0, Release);
                self.deaths += 1;
            } else {
                self.clients.insert(
                    index,
                    Client { tag, connection: None, pidfd: None, locked: true, recalled: false, silent: false },
                );
            }
        }
    }

    /// Serves until it is told to stop; a service that is hosted by a client also when no client is left.
    pub(crate) fn run(mut self, hosted: bool) -> Result<()> {
        let mut events = Vec::with_capacity(256);
        let mut last_second = Instant::now();
        let mut had_clients = !self.clients.is_empty();
        loop {
            events.clear();
            let timeout = self.patience();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed("serve")(error)),
            }
            for event in &events {
                match Event::of(event.data.u64()) {
                    Event::Listener => self.accept(),
                    Event::Keeper => match self.keeper.as_mut().map(Link::next) {
                        Some(Ok(Some(Order::Drain))) => self.drain(),
                        Some(Ok(None)) | None => {}
                        // Also when the supervisor is gone: clients go on with the memory that they hold.
                        Some(Ok(Some(Order::End)) | Err(_)) => return self.end(),
                    },
                    #[cfg(feature = "tcp")]
                    Event::Exported => self.exported(),
                    Event::Connection(connection) => self.serve(connection),
                    // Its place may be another's by now.
                    Event::Death(tag) if self.clients.get(&index_of(tag)).is_some_and(|client| client.tag == tag) => {
                        self.bury(index_of(tag));
                    }
                    Event::Death(_) => {}
                }
            }
            had_clients |= !self.clients.is_empty();
            if self.memory.may_have_too_many_replicas() {
                self.memory.trim_replicas();
            }
            self.memory.reclaim();
            self.feed();
            if self.starved.is_empty() {
                self.memory.give_growth_up();
            }
            self.recycle();
            if last_second.elapsed() >= Duration::from_secs(1) {
                last_second = Instant::now();
                self.memory.table.header(word::EPOCH).fetch_add(1, Relaxed);
                self.memory.expire();
                self.memory.trim_replicas();
                #[cfg(feature = "tcp")]
                self.retry_export();
                self.ages.look(&self.memory);
            }
            self.poll_locks();
            if self.clients.values().all(|client| client.connection.is_some()) && self.memory.misses_segments() {
                self.memory.forget_missing_segments();
            }
            if self.paused.is_some_and(|until| Instant::now() >= until) {
                self.paused = None;
                self.watch(&self.listener, Event::Listener)?;
            }
            let drained = self.draining.is_some_and(|until| !self.has_others() || Instant::now() >= until);
            let is_over = self.is_left && self.clients.len() <= 1;
            if is_over || drained || (hosted && had_clients && self.clients.is_empty()) {
                return self.end();
            }
        }
    }

    /// How long there is nothing to do without an event.
    fn patience(&self) -> Option<Timespec> {
        let mut patience = Duration::from_secs(1);
        if !self.memory.dying().is_empty() {
            // Views of evicted objects end without a word.
            patience = patience.min(Duration::from_millis(100));
        }
        if self.draining.is_some()
            || self.paused.is_some()
            || self.clients.values().any(|client| client.pidfd.is_none())
        {
            patience = patience.min(LOCK_POLL);
        }
        if !self.starved.is_empty() {
            patience = patience.min(Duration::from_millis(5));
        }
        patience.try_into().ok()
    }

    fn watch(&self, fd: &impl AsFd, event: Event) -> Result<()> {
        let data = epoll::EventData::new_u64(event.number());
        epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN).map_err(failed("serve"))
    }

    fn accept(&mut self) {
        loop {
            let socket = match self.listener.accept() {
                Ok(Some(socket)) => socket,
                Ok(None) => return,
                Err(_) => {
                    // Out of descriptors: those who are here go on, and the others wait for a moment instead of keeping this
                    // thread busy.
                    let _ = epoll::delete(&self.epoll, &self.listener);
                    self.paused = Some(Instant::now() + PAUSE);
                    return;
                }
            };
            let Ok(peer) = socket.check_user() else {
                self.refused += 1;
                continue;
            };
            failpoint!("service.accepted");
            let connection = self.next_connection;
            self.next_connection = self.next_connection.wrapping_add(1) & (u32::MAX >> 2);
            if self.watch(&socket, Event::Connection(connection)).is_ok() {
                self.connections.insert(connection, Connection { socket, peer, client: None, outbox: VecDeque::new() });
            }
        }
    }

    /// Reads all that a connection has to say.
    fn serve(&mut self, number: u32) {
        let mut buffer = Vec::new();
        self.flush(number);
        for _ in 0..FAIR {
            let Some(connection) = self.connections.get(&number) else { return };
            match connection.socket.recv(&mut buffer) {
                Ok(Received::Packet { fds }) => {
                    let done = Request::decode(&buffer).and_then(|request| self.answer(number, request, fds));
                    if let Err(error) = done {
                        // Whoever talks nonsense is cut off; what it holds stays until its process ends.
                        self.send(number, &Reply::refuse(0, &error), &[]);
                        return self.disconnect(number);
                    }
                }
                Ok(Received::WouldBlock) => return,
                Ok(Received::Closed) | Err(_) => return self.hung_up(number),
            }
        }
    }

    fn answer(&mut self, number: u32, request: Request, fds: Vec<OwnedFd>) -> Result<()> {
        let client = self.connections.get(&number).and_then(|connection| connection.client);
        let request = match request {
            Request::Hello { layout, reattach, segments } => {
                return self.hello(number, layout, reattach, &segments, fds);
            }
            other => other,
        };
        let Some(index) = client else {
            return Err(Error::new(ErrorKind::Invalid, "serve", "no greeting"));
        };
        let Some(tag) = self.clients.get(&index).map(|client| client.tag) else { return Ok(()) };
        match request {
            Request::Lease { id, class, count, urgent, again } => {
                let Some(class) = Class::from_index(class) else {
                    return Err(Error::new(ErrorKind::Invalid, "reserve", "no such size class"));
                };
                if let Some(slots) = again.then(|| self.memory.granted(tag, id)).filter(|slots| !slots.is_empty()) {
                    // Granted before, by this service or a former one, and never heard of.
                    self.send(number, &Reply::Leased { id, class: class.index() as u16, slots }, &[]);
                } else {
                    self.lease(index, id, class, count.clamp(1, MOST_LEASES), urgent);
                }
            }
            Request::Return { slots } => {
                if slots.is_empty() {
                    // The end of what it has to give.
                    if let Some(client) = self.clients.get_mut(&index) {
                        (client.recalled, client.silent) = (false, false);
                    }
                }
                for slot in slots {
                    self.memory.give_back(tag, slot);
                }
            }
            Request::Dying { slots } => {
                for slot in slots {
                    self.memory.evicted(slot);
                }
            }
            Request::Pins { id } => match self.memory.page(tag) {
                Ok(page) => self.send(number, &Reply::Page { id, page }, &[]),
                Err(error) => self.send(number, &Reply::refuse(id, &error), &[]),
            },
            Request::Stats { id } => match self.stats_fd() {
                Ok(fd) => self.send_owned(number, &Reply::Stats { id }, vec![fd]),
                Err(error) => self.send(number, &Reply::refuse(id, &error), &[]),
            },
            Request::Collect { id } => {
                let bytes = self.memory.collect();
                self.send(number, &Reply::Collected { id, bytes }, &[]);
            }
            // Of the process that hosts this service for itself alone, as its last act: its memory must not become anybody
            // else's while other threads of it may still write to it. All others are noticed by their end, also one that
            // has come since it looked. Who could not attach says so, too, which is of no concern to others.
            Request::Bye => {
                let peer = self.connections.get(&number).and_then(|connection| connection.peer.pid);
                self.is_left |= self.keeper.is_none() && peer == Some(std::process::id());
            }
            #[cfg(feature = "tcp")]
            Request::Export { id } => self.export(number, id),
            #[cfg(not(feature = "tcp"))]
            Request::Export { id } => {
                let context = "the program that hosts the node service was built without the feature tcp";
                let error = Error::new(ErrorKind::Unsupported, "open", context);
                self.send(number, &Reply::refuse(id, &error), &[]);
            }
            Request::Hello { .. } => {}
        }
        Ok(())
    }

    fn keep_all(&mut self) -> Result<()> {
        if let Some(keeper) = &self.keeper {
            for (index, segment) in self.memory.segments() {
                keeper.keep_segment(*index, segment.as_fd(), segment.len() as u64)?;
            }
            keeper.ready()?;
        }
        Ok(())
    }

    /// The one place where a client ends.
    fn bury(&mut self, index: u32) {
        let Some(client) = self.clients.remove(&index) else { return };
        if let Some(pidfd) = &client.pidfd {
            let _ = epoll::delete(&self.epoll, pidfd);
        }
        self.starved.retain(|request| request.client != index);
        self.standing.retain(|(tag, _)| *tag != client.tag);
        self.memory.bury(client.tag);
        self.memory.table.client(index, client::TAG).store(0, Release);
        self.deaths += 1;
        if let Some(connection) = client.connection {
            self.disconnect(connection);
        }
    }

    /// A connection ended. One whose client never came to its lock, or lost it by exec(2), has nobody who would come back.
    fn hung_up(&mut self, number: u32) {
        let client = self.connections.get(&number).and_then(|connection| connection.client);
        self.disconnect(number);
        if let Some(index) = client {
            if let Some(claim) = self.members.claim(index) {
                self.bury(index);
                drop(claim);
            }
        }
    }

    /// For clients whose end no descriptor tells: their record lock does.
    fn poll_locks(&mut self) {
        let mut gone = Vec::new();
        for (index, client) in self.clients.iter_mut().filter(|(_, client)| client.pidfd.is_none()) {
            if self.members.has(*index) {
                client.locked = true;
            } else if client.locked || client.connection.is_none() {
                // A new one may not have come to it, and must not while it is struck off.
                gone.extend(self.members.claim(*index).map(|claim| (*index, claim)));
            }
        }
        for (index, claim) in gone {
            self.bury(index);
            drop(claim);
        }
    }

    /// Whether another process than this one is a client.
    fn has_others(&self) -> bool {
        let pid = |index| self.memory.table.client(index, client::PID).load(Relaxed) as u32;
        self.clients.keys().any(|index| pid(*index) != std::process::id())
    }

    fn drain(&mut self) {
        self.draining = Some(Instant::now() + self.grace);
        // Not to those who wait for a welcome.
        let connections: Vec<u32> = self.clients.values().filter_map(|client| client.connection).collect();
        for connection in connections {
            self.send(connection, &Reply::Draining, &[]);
        }
    }

    /// Leaves no name behind; the memory goes with its last holder.
    fn end(self) -> Result<()> {
        // Before anybody else can host: who does answers other nodes at the same port, which their keys name.
        #[cfg(feature = "tcp")]
        drop(self.exporting);
        let Self { directory, listener, host, memory, connections, .. } = self;
        drop((listener, connections, memory));
        // Nobody else has the name while the lock is held.
        let _ = std::fs::remove_file(directory.socket());
        directory.remove_held(host).map(|_| ())
    }
}

/// What an event of the loop is about.
enum Event {
    Listener,
    Keeper,
    /// Other nodes are answered from now on, or cannot be.
    #[cfg(feature = "tcp")]
    Exported,
    Connection(u32),
    /// Of the client with this tag.
    Death(u64),
}

impl Event {
    fn number(&self) -> u64 {
        match self {
            Self::Listener => 0,
            Self::Keeper => 1,
            #[cfg(feature = "tcp")]
            Self::Exported => 2,
            Self::Connection(connection) => 2 << 32 | u64::from(*connection),
            Self::Death(tag) => DEATH | tag,
        }
    }

    fn of(number: u64) -> Self {
        if number & DEATH != 0 {
            return Self::Death(number & !DEATH);
        }
        match (number >> 32, number as u32) {
            (0, 0) => Self::Listener,
            #[cfg(feature = "tcp")]
            (0, 2) => Self::Exported,
            (2, connection) => Self::Connection(connection),
            _ => Self::Keeper,
        }
    }
}

fn failed(op: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |errno| Error::io(op, "the node service", errno.into())
}

/// The entry of a client in the table, by its tag.
pub(crate) fn index_of(tag: u64) -> u32 {
    (tag & ((1 << INDEX_BITS) - 1)) as u32
}

/// The byte of the members file that a client locks.
pub(crate) fn lock_byte(index: u32) -> std::ops::Range<u64> {
    u64::from(index)..u64::from(index) + 1
}

const INDEX_BITS: u32 = 12;

/// Tells the death of a client, whose tag has a bit less, from other events.
const DEATH: u64 = 1 << 63;

/// Packets of one connection before the others have their turn.
const FAIR: usize = 64;

/// Leases in one reply: its packet has 64 KiB.
const MOST_LEASES: u32 = 8192;

/// The number of a request that nobody made.
pub(super) const UNASKED: u64 = 0;

/// How long clients have to leave when the service is told to end.
const GRACE: Duration = Duration::from_secs(10);

/// How long nobody new is let in when descriptors ran out.
const PAUSE: Duration = Duration::from_millis(100);

/// How often record locks are looked at, where nothing better tells of a client's end.
const LOCK_POLL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;
