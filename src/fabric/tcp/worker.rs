//! `Worker`: a thread of the owner that answers many connections.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use super::Options;
use super::connection::{Connection, State};
use super::door::{Door, LISTENER};
use super::frame::{Decoder, Kind};
use super::socket::{Moved, Socket};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::handshake::{Proven, Purpose};
use crate::fabric::{Answers, Asked, Incoming, Responder, Service};
use crate::failpoint::failpoint;
use crate::sync::lock;

/// A worker's desk, on which others put connections for it.
pub(super) struct Desk {
    pub(super) epoll: Arc<OwnedFd>,
    /// Wakes the worker.
    poke: OwnedFd,
    arrived: Mutex<Vec<Arc<Connection>>>,
    /// Connections that it has or will have.
    load: AtomicUsize,
    stop: AtomicBool,
    numbers: AtomicU64,
}

/// The thread's own.
pub(super) struct Worker {
    desk: Arc<Desk>,
    /// All of them, the own too.
    desks: Arc<Vec<Arc<Desk>>>,
    door: Option<Door>,
    services: Arc<Vec<(Purpose, Arc<dyn Service>)>>,
    options: Options,
    clients: HashMap<u64, Client>,
    /// How often to look at them.
    tick: Duration,
}

/// A connection, and what it is in the middle of saying.
struct Client {
    connection: Arc<Connection>,
    /// The one of its purpose.
    service: Arc<dyn Service>,
    decoder: Decoder,
    /// Received, but not looked at while too much waits to be sent.
    ahead: Vec<u8>,
    /// Number of its last question.
    last: u64,
}

impl Desk {
    /// The desk of that number among those of a listener.
    pub(super) fn new(number: usize) -> rustix::io::Result<Arc<Self>> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let poke = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&*epoll, &poke, EventData::new_u64(POKE), EventFlags::IN)?;
        Ok(Arc::new(Self {
            epoll,
            poke,
            arrived: Mutex::default(),
            load: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            numbers: AtomicU64::new(FIRST + ((number as u64) << 48)),
        }))
    }

    /// Makes the worker end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Release);
        self.poke();
    }

    fn poke(&self) {
        let _ = rustix::io::write(&self.poke, bytemuck::bytes_of(&1u64));
    }

    /// Hands a connection to the worker.
    fn put(&self, socket: Socket, proven: Proven, options: &Options) {
        let number = self.numbers.fetch_add(1, Relaxed);
        let connection = Connection::new(socket, proven, number, Arc::clone(&self.epoll), options);
        self.load.fetch_add(1, Relaxed);
        lock(&self.arrived).push(Arc::new(connection));
        self.poke();
    }
}

impl Worker {
    pub(super) fn new(
        desk: Arc<Desk>,
        desks: Arc<Vec<Arc<Desk>>>,
        door: Option<Door>,
        services: Arc<Vec<(Purpose, Arc<dyn Service>)>>,
        options: &Options,
    ) -> Self {
        Self { desk, desks, door, services, options: options.clone(), clients: HashMap::new(), tick: NEVER }
    }

    /// Serves until the desk is stopped.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        let mut looked = Instant::now();
        while !self.desk.stop.load(Acquire) {
            let timeout = self.next_look(looked).map(|at| {
                let left = at.saturating_duration_since(Instant::now());
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
            });
            events.clear();
            // Nothing but an interruption fails here; then the time is looked at, and that is all.
            let _ = epoll::wait(&*self.desk.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref());
            for event in &events {
                let event: &epoll::Event = event;
                // Copied out: the kernel's structure is packed.
                let (number, flags) = (event.data.u64(), event.flags);
                self.event(number, flags);
            }
            let now = Instant::now();
            if now.saturating_duration_since(looked) >= self.tick {
                looked = now;
                self.look(now);
            }
        }
        let open: Vec<u64> = self.clients.keys().copied().collect();
        open.into_iter().for_each(|number| self.forget(number));
        for connection in lock(&self.desk.arrived).drain(..) {
            connection.close();
        }
    }

    fn event(&mut self, number: u64, flags: EventFlags) {
        if number == POKE {
            let _ = rustix::io::read(&self.desk.poke, &mut [0u8; 8]);
            return self.welcome();
        }
        if Door::owns(number) {
            if let Some((socket, proven)) = self.door.as_mut().and_then(|door| door.event(number)) {
                // There is always one: the own.
                if let Some(desk) = self.desks.iter().min_by_key(|desk| desk.load.load(Relaxed)) {
                    desk.put(socket, proven, &self.options);
                }
            }
            return;
        }
        let Some(client) = self.clients.get_mut(&number) else { return };
        let over = EventFlags::ERR | EventFlags::HUP | EventFlags::RDHUP;
        let mut goes_on = !flags.intersects(over);
        if goes_on && flags.contains(EventFlags::OUT) {
            client.connection.flush();
            // What was received before there was no room.
            goes_on = client.process();
        }
        if goes_on && flags.contains(EventFlags::IN) {
            goes_on = client.receive();
        }
        if !goes_on || client.connection.state() == State::Closed {
            self.forget(number);
        }
    }

    /// Takes over the connections that were put on the desk.
    fn welcome(&mut self) {
        let arrived = std::mem::take(&mut *lock(&self.desk.arrived));
        for connection in arrived {
            let spoken = connection.proven.stream.purpose;
            let service = self.services.iter().find(|(purpose, _)| *purpose == spoken).map(|(_, service)| service);
            if let (Some(service), true) = (service, connection.watch().is_ok()) {
                let service = Arc::clone(service);
                let client = Client { connection, service, decoder: Decoder::default(), ahead: Vec::new(), last: 0 };
                self.tick = self.tick.min(client.connection.tick());
                self.clients.insert(client.connection.number, client);
            } else {
                self.desk.load.fetch_sub(1, Relaxed);
                connection.close();
            }
        }
    }

    fn forget(&mut self, number: u64) {
        if let Some(client) = self.clients.remove(&number) {
            self.desk.load.fetch_sub(1, Relaxed);
            client.connection.close();
            let _ = catch_unwind(AssertUnwindSafe(|| client.service.gone(number)));
        }
    }

    /// Beats of the own process, and ends of those who do not read.
    fn look(&mut self, now: Instant) {
        let ended: Vec<u64> =
            self.clients.iter().filter(|(_, client)| !client.connection.look(now)).map(|(number, _)| *number).collect();
        for number in ended {
            self.forget(number);
        }
        self.tick = self.clients.values().map(|client| client.connection.tick()).min().unwrap_or(NEVER);
    }

    fn next_look(&mut self, looked: Instant) -> Option<Instant> {
        let door = self.door.as_mut().and_then(|door| door.look(Instant::now()));
        let clients = (!self.clients.is_empty()).then(|| looked + self.tick);
        door.into_iter().chain(clients).min()
    }
}

impl Client {
    /// Receives once, and answers; `false` ends the connection.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; AHEAD];
        match self.connection.socket.recv(&mut buffer) {
            Ok(Moved::Bytes(bytes)) => {
                self.ahead.extend_from_slice(&buffer[..bytes]);
                self.process()
            }
            Ok(Moved::None) => true,
            Err(_) => false,
        }
    }

    /// Answers what was received, as long as its answers find room.
    fn process(&mut self) -> bool {
        let mut ahead = std::mem::take(&mut self.ahead);
        let mut input = &ahead[..];
        let outcome = loop {
            if self.connection.state() != State::Open {
                break Ok(());
            }
            match self.decoder.take(&mut input) {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) => {
                    if let Err(error) = self.hear(frame.kind, frame.number, &frame.head) {
                        break Err(error);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        let taken = ahead.len() - input.len();
        ahead.drain(..taken);
        // Of a requester that asks now and then this is as much as a question.
        self.ahead = if ahead.is_empty() && ahead.capacity() > KEPT { Vec::new() } else { ahead };
        if let Err(error) = &outcome {
            report(self.connection.address, error);
        }
        outcome.is_ok()
    }

    fn hear(&mut self, kind: Kind, number: u64, head: &[u8]) -> Result<()> {
        match kind {
            // Numbers only grow, so that no question is answered twice.
            Kind::Ask if number > self.last => {
                self.last = number;
                failpoint!("fabric.question");
                if self.connection.hold(number) {
                    let (from, connection) = (self.connection.proven.instance, self.connection.number);
                    let answers = Arc::clone(&self.connection) as Arc<dyn Answers>;
                    let responder = Responder::among(answers, Asked { connection, number });
                    let call = Incoming { head, from, connection, responder };
                    // Its responder refuses as the panic drops it; other connections of this thread go on.
                    let _ = catch_unwind(AssertUnwindSafe(|| self.service.answer(call)));
                }
                Ok(())
            }
            Kind::Abandon if number <= self.last => {
                self.connection.abandon(number);
                Ok(())
            }
            _ => {
                let context = format!("{kind:?} {number} after question {}", self.last);
                Err(Error::new(ErrorKind::Corrupt, "receive", context))
            }
        }
    }
}

/// Notes what a peer that has the secret should not have sent.
fn report(address: Option<SocketAddr>, error: &Error) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: "proxystore", ?address, %error, "a connection was closed");
    let _ = (address, error);
}

/// The number of `poke`.
const POKE: u64 = 0;

/// The number of the first connection.
const FIRST: u64 = LISTENER + 1;

/// How often to look at nothing.
const NEVER: Duration = Duration::from_secs(3600);

/// Bytes of memory for what is received that a connection keeps.
const KEPT: usize = 1 << 10;

/// Bytes received at once: many questions, or a part of the longest one.
const AHEAD: usize = 16 << 10;
