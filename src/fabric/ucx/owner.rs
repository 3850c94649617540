//! `Owner`: the side that answers, on one thread of its own.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ucx_sys::UCS_OK;

use super::Options;
use super::context::Context;
use super::message::{ENDED, Hello, Kind, Message, Welcome};
use super::operation::{About, Body, Data, Event, Finished, Operation};
use super::worker::Worker;
use crate::error::Result;
use crate::fabric::{Incoming, Outgoing, Respond, Responder, Segments, Service};
use crate::failpoint::failpoint;
use crate::key::random_number;
use crate::sync::lock;

/// The service of the control connections; it begins to speak UCX when the first requester asks for that.
pub(crate) struct Owner {
    shared: Arc<Shared>,
    service: Arc<dyn Service>,
    thread: Mutex<Option<JoinHandle<()>>>,
    begun: AtomicBool,
    segments: Mutex<Vec<Arc<dyn Segments>>>,
}

/// What threads that answer have of it. Not the service: that may hold duties, which hold this.
struct Shared {
    options: Options,
    orders: Mutex<Vec<Order>>,
    /// Questions that are not answered yet, by connection and number.
    held: Mutex<HashSet<(u64, u64)>>,
    bell: OwnedFd,
    /// The thread's own: it need not wake itself.
    thread: Mutex<Option<ThreadId>>,
    generation: u32,
}

/// What the thread is to do.
enum Order {
    Meet { connection: u64, from: u64, token: u64, address: Vec<u8>, responder: Responder },
    Watch { connection: u64, responder: Responder },
    Segment { connection: u64, number: u16, responder: Responder },
    Gone { connection: u64 },
    Answer { token: u64, number: u64, reply: Option<Outgoing> },
    Stop,
}

impl Owner {
    pub(super) fn new(options: &Options, service: Arc<dyn Service>) -> Result<Arc<Self>> {
        let shared = Shared {
            options: options.clone(),
            orders: Mutex::default(),
            held: Mutex::default(),
            bell: super::event()?,
            thread: Mutex::default(),
            generation: crate::process::generation(),
        };
        let (shared, segments) = (Arc::new(shared), Mutex::default());
        Ok(Arc::new(Self { shared, service, thread: Mutex::default(), begun: AtomicBool::new(false), segments }))
    }

    /// Memory from which parts are sent.
    pub(crate) fn register(&self, segments: Arc<dyn Segments>) {
        lock(&self.segments).push(segments);
    }

    /// Starts the thread, with the first requester.
    fn begin(&self) -> std::io::Result<()> {
        if self.begun.load(Acquire) {
            return Ok(());
        }
        // Others wait until there is a thread that sees to their orders, or an error for them as well.
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let (service, segments) = (Arc::clone(&self.service), lock(&self.segments).clone());
            let run = move || serve(&shared, service, segments);
            *thread = Some(std::thread::Builder::new().name("proxystore-ucx-owner".to_owned()).spawn(run)?);
            self.begun.store(true, Release);
        }
        Ok(())
    }
}

impl Service for Owner {
    fn answer(&self, call: Incoming<'_>) {
        let Incoming { head, from, connection, responder } = call;
        if let Err(error) = self.begin() {
            return responder.reply(Welcome::Refused(error.to_string()).encode(), Vec::new());
        }
        match Hello::decode(head) {
            Ok(Hello::Meet { token, address }) => {
                self.shared.order(Order::Meet { connection, from, token, address, responder });
            }
            Ok(Hello::Watch) => self.shared.order(Order::Watch { connection, responder }),
            Ok(Hello::Segment(number)) => self.shared.order(Order::Segment { connection, number, responder }),
            Err(error) => responder.reply(Welcome::Refused(error.to_string()).encode(), Vec::new()),
        }
    }

    fn gone(&self, connection: u64) {
        if self.begun.load(Acquire) {
            self.shared.order(Order::Gone { connection });
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.shared.generation != crate::process::generation() {
            return;
        }
        if let Some(thread) = lock(&self.thread).take() {
            self.shared.order(Order::Stop);
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner(begun: {})", self.begun.load(Acquire))
    }
}

impl Shared {
    fn order(&self, order: Order) {
        if self.generation != crate::process::generation() {
            return;
        }
        lock(&self.orders).push(order);
        if *lock(&self.thread) != Some(std::thread::current().id()) {
            super::ring(&self.bell);
        }
    }
}

/// The duty to answer a question of a connection.
struct Duty {
    shared: Arc<Shared>,
    token: u64,
    number: u64,
}

impl Respond for Duty {
    fn respond(self: Box<Self>, reply: Option<Outgoing>) {
        let (token, number) = (self.token, self.number);
        // Whoever gave up meanwhile had a refusal by then.
        if lock(&self.shared.held).remove(&(token, number)) {
            self.shared.order(Order::Answer { token, number, reply });
        }
    }

    fn is_wanted(&self) -> bool {
        lock(&self.shared.held).contains(&(self.token, self.number))
    }
}

/// The thread: meets requesters, and answers until it is told to stop.
fn serve(shared: &Arc<Shared>, service: Arc<dyn Service>, segments: Vec<Arc<dyn Segments>>) {
    *lock(&shared.thread) = Some(std::thread::current().id());
    let begin = || -> Result<(Worker, Vec<u8>)> {
        let context = Arc::new(Context::new(&super::settings(&shared.options))?);
        segments.into_iter().for_each(|segments| context.memory.add(segments));
        let mut worker = Worker::new(&context)?;
        let address = worker.address()?;
        Ok((worker, address))
    };
    match begin() {
        Ok((worker, address)) => {
            let mut desk = Desk {
                shared: Arc::clone(shared),
                service,
                worker,
                address,
                clients: HashMap::new(),
                tokens: HashMap::new(),
            };
            desk.run();
        }
        Err(error) => refuse_all(shared, &error.to_string()),
    }
}

/// Tells everybody why there is no UCX here.
fn refuse_all(shared: &Shared, reason: &str) {
    loop {
        let orders = std::mem::take(&mut *lock(&shared.orders));
        for order in orders {
            match order {
                Order::Meet { responder, .. } | Order::Segment { responder, .. } => {
                    responder.reply(Welcome::Refused(reason.to_owned()).encode(), Vec::new());
                }
                Order::Stop => return,
                Order::Watch { .. } | Order::Gone { .. } | Order::Answer { .. } => {}
            }
        }
        let _ = poll(&mut [PollFd::new(&shared.bell, PollFlags::IN)], None);
        let _ = rustix::io::read(&shared.bell, &mut [0u8; 8]);
    }
}

/// The thread's own.
struct Desk {
    shared: Arc<Shared>,
    service: Arc<dyn Service>,
    worker: Worker,
    address: Vec<u8>,
    /// By our names of their connections.
    clients: HashMap<u64, Client>,
    /// Our names, by their control connections.
    tokens: HashMap<u64, u64>,
}

/// A requester.
struct Client {
    /// How it names the connection.
    theirs: u64,
    /// Number of its memory.
    from: u64,
    /// Held for as long as it wants to know that this process lives.
    watch: Option<Responder>,
    /// Answers, and refusals, that wait until those before them are sent.
    queue: VecDeque<(u64, Option<Outgoing>)>,
    /// Bytes on their way, those of the messages themselves too.
    flying: u64,
    /// When it last said something, or bytes arrived, or the first of those on their way began to.
    heard: Instant,
}

impl Desk {
    fn run(&mut self) {
        let spin = self.shared.options.spin;
        let mut spun = Instant::now();
        let mut looked = spun;
        loop {
            let orders = std::mem::take(&mut *lock(&self.shared.orders));
            let mut moved = !orders.is_empty();
            for order in orders {
                if !self.obey(order) {
                    return self.end();
                }
            }
            moved |= self.worker.progress(&mut |_, _| false);
            while let Some(event) = self.worker.event() {
                self.handle(event);
            }
            let now = Instant::now();
            if now.saturating_duration_since(looked) >= LOOK {
                looked = now;
                self.look(now);
            }
            if moved {
                spun = now;
            } else if now.saturating_duration_since(spun) < spin {
                std::hint::spin_loop();
            } else {
                self.sleep();
                spun = Instant::now();
            }
        }
    }

    fn end(&mut self) {
        let tokens: Vec<u64> = self.clients.keys().copied().collect();
        tokens.into_iter().for_each(|token| self.forget(token));
    }

    /// Waits for something to do; without an end where nobody is owed anything.
    fn sleep(&mut self) {
        if !matches!(self.worker.arm(), Ok(true)) {
            return;
        }
        if !lock(&self.shared.orders).is_empty() {
            // This thread's own, for which nobody rang.
            return;
        }
        let is_idle = !self.worker.is_busy() && self.clients.values().all(|client| client.flying == 0);
        let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
        let events = self.worker.events();
        let mut descriptors = [PollFd::new(&events, PollFlags::IN), PollFd::new(&self.shared.bell, PollFlags::IN)];
        if poll(&mut descriptors, (!is_idle).then_some(&timeout)).is_ok() && !descriptors[1].revents().is_empty() {
            let _ = rustix::io::read(&self.shared.bell, &mut [0u8; 8]);
        }
    }

    /// `false` for the end.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Stop => return false,
            Order::Gone { connection } => {
                if let Some(token) = self.tokens.remove(&connection) {
                    self.forget(token);
                }
            }
            Order::Watch { connection, responder } => {
                match self.tokens.get(&connection).and_then(|token| self.clients.get_mut(token)) {
                    Some(client) => client.watch = Some(responder),
                    None => responder.reply(ENDED.to_vec(), Vec::new()),
                }
            }
            Order::Segment { connection, number, responder } => {
                responder.reply(self.segment(connection, number).encode(), Vec::new());
            }
            Order::Meet { connection, from, token, address, responder } => {
                self.meet(connection, from, token, &address, responder);
            }
            Order::Answer { token, number, reply } => self.answer(token, number, reply),
        }
        true
    }

    fn meet(&mut self, connection: u64, from: u64, theirs: u64, address: &[u8], responder: Responder) {
        let token = random_number();
        if let Err(error) = self.worker.connect(token, address) {
            return responder.reply(Welcome::Refused(error.to_string()).encode(), Vec::new());
        }
        let (queue, heard) = (VecDeque::new(), Instant::now());
        self.clients.insert(token, Client { theirs, from, watch: None, queue, flying: 0, heard });
        if let Some(former) = self.tokens.insert(connection, token) {
            self.forget(former);
        }
        responder.reply(Welcome::Meet { token, address: self.address.clone() }.encode(), Vec::new());
        failpoint!("fabric.proved");
    }

    /// How a segment is read. No more is given than what UCX itself tells the peer with each answer that it fetches.
    fn segment(&self, connection: u64, number: u16) -> Welcome {
        if !self.tokens.contains_key(&connection) {
            return Welcome::Refused("the connection has not met this worker".to_owned());
        }
        let context = self.worker.context();
        match context.memory.packed(context.ucx(), context.raw(), number) {
            Ok(packed) => Welcome::Segment(packed),
            Err(error) => Welcome::Refused(error.to_string()),
        }
    }

    /// Ends a connection; what was on its way is released when UCX is done with it.
    fn forget(&mut self, token: u64) {
        if let Some(client) = self.clients.remove(&token) {
            lock(&self.shared.held).retain(|(held, _)| *held != token);
            self.worker.close(token);
            // Its end of the connection may have noticed nothing.
            if let Some(watch) = client.watch {
                watch.reply(ENDED.to_vec(), Vec::new());
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Message { header, data } => self.hear(&header, data),
            Event::Finished(finished) => self.finished(finished),
            Event::Broken { link, .. } => {
                // Its control connection stays, until the requester ends it.
                self.forget(link);
            }
            Event::Closed | Event::Met => {}
        }
    }

    fn hear(&mut self, header: &[u8], data: Data) {
        if let Some((message, head)) = self.read(header, &data) {
            if let Some(client) = self.clients.get_mut(&message.token) {
                client.heard = Instant::now();
            }
            match message.kind {
                Kind::Ask => self.asked(message.token, message.number, &head),
                Kind::Abandon => {
                    if lock(&self.shared.held).remove(&(message.token, message.number)) {
                        self.answer(message.token, message.number, None);
                    }
                }
                Kind::Alive | Kind::Answer | Kind::Apart | Kind::Part | Kind::Refusal => {}
            }
        }
        self.worker.release(data);
    }

    /// A message of a connection that there is; what is none is thrown away.
    fn read(&self, header: &[u8], data: &Data) -> Option<(Message, Vec<u8>)> {
        let message = Message::decode(header).ok().filter(|message| self.clients.contains_key(&message.token))?;
        // Questions come whole; there is nothing to fetch.
        let (described, _) = message.describe(header, data.bytes()?).ok()?;
        Some((message, described.head))
    }

    fn asked(&mut self, token: u64, number: u64, head: &[u8]) {
        let Some(client) = self.clients.get(&token) else { return };
        failpoint!("fabric.question");
        let from = client.from;
        {
            let mut held = lock(&self.shared.held);
            if held.len() >= self.shared.options.held {
                drop(held);
                return self.answer(token, number, None);
            }
            if !held.insert((token, number)) {
                return;
            }
        }
        let duty = Duty { shared: Arc::clone(&self.shared), token, number };
        let call = Incoming { head, from, connection: token, responder: Responder::new(Box::new(duty)) };
        // Its responder refuses as the panic drops it; others are answered on.
        let _ = catch_unwind(AssertUnwindSafe(|| self.service.answer(call)));
    }

    fn answer(&mut self, token: u64, number: u64, reply: Option<Outgoing>) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        client.queue.push_back((number, reply));
        if client.queue.len() > self.shared.options.held {
            // It asks, and does not take what it asked for.
            return self.forget(token);
        }
        self.send_queued(token);
    }

    /// Sends answers, as many as may be on their way to one requester.
    fn send_queued(&mut self, token: u64) {
        loop {
            let Some(client) = self.clients.get_mut(&token) else { return };
            let Some((_, next)) = client.queue.front() else { return };
            let bytes = next.as_ref().map_or(0, |next| next.parts.iter().map(|part| part.len() as u64).sum());
            if client.flying > 0 && client.flying + bytes > self.shared.options.flying {
                return;
            }
            match client.queue.pop_front() {
                Some((number, Some(outgoing))) => self.send(token, number, outgoing),
                Some((number, None)) => self.refuse(token, number),
                None => return,
            }
        }
    }

    fn send(&mut self, token: u64, number: u64, outgoing: Outgoing) {
        let Some(theirs) = self.clients.get(&token).map(|client| client.theirs) else { return };
        let Outgoing { head, mut parts } = outgoing;
        let lengths: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
        let total: u64 = lengths.iter().sum();
        // One part behind a short head needs no message of its own: it goes where it belongs as it is.
        let is_one = parts.len() == 1 && !Message::is_long_with(head.len(), 1);
        let comes_apart = total > self.shared.options.packed && !is_one;
        let kind = if comes_apart { Kind::Apart } else { Kind::Answer };
        // An answer that is too long is none: it is the service's mistake, and must not end all others.
        let Ok(encoded) = Message::new(kind, theirs, number).encode(&head, &lengths) else {
            return self.refuse(token, number);
        };
        let own = (encoded.header.len() + encoded.prefix.len()) as u64;
        let about = |bytes: u64| About::Answer { connection: token, bytes };
        let (header, prefix) = (encoded.header, encoded.prefix);
        if comes_apart {
            let body = if prefix.is_empty() { Body::None } else { Body::Own(prefix) };
            self.begin(token, Operation { about: about(own), header, body }, true);
            for (index, part) in parts.into_iter().enumerate() {
                let message = Message::part(theirs, number, index as u32);
                let Ok(encoded) = message.encode(&[], &[]) else { continue };
                let about = about((encoded.header.len() + part.len()) as u64);
                self.begin(token, Operation { about, header: encoded.header, body: Body::Shared(part) }, false);
            }
            return;
        }
        let body = match (prefix.is_empty(), parts.len()) {
            (true, 0) => Body::None,
            (true, 1) => Body::Shared(parts.remove(0)),
            // Many small pieces: one copy of all of them is quicker than a list.
            _ => {
                let mut packed = Vec::with_capacity(prefix.len() + total as usize);
                packed.extend_from_slice(&prefix);
                parts.iter().for_each(|part: &Bytes| packed.extend_from_slice(part));
                Body::Own(packed)
            }
        };
        failpoint!("fabric.answer.half");
        self.begin(token, Operation { about: about(own + total), header, body }, false);
    }

    fn refuse(&mut self, token: u64, number: u64) {
        let Some(theirs) = self.clients.get(&token).map(|client| client.theirs) else { return };
        if let Ok(encoded) = Message::new(Kind::Refusal, theirs, number).encode(&[], &[]) {
            let about = About::Answer { connection: token, bytes: encoded.header.len() as u64 };
            self.begin(token, Operation { about, header: encoded.header, body: Body::None }, true);
        }
    }

    fn begin(&mut self, token: u64, operation: Operation, whole: bool) {
        if let (About::Answer { bytes, .. }, Some(client)) = (operation.about, self.clients.get_mut(&token)) {
            if client.flying == 0 {
                client.heard = Instant::now();
            }
            client.flying += bytes;
        }
        if let Some(finished) = self.worker.send(token, operation, whole) {
            self.account(&finished);
        }
    }

    fn finished(&mut self, finished: Finished) {
        if let Some(token) = self.account(&finished) {
            // Pins end here.
            drop(finished);
            self.send_queued(token);
        }
    }

    /// Notes that an answer's bytes are no longer on their way; the connection that may go on.
    fn account(&mut self, finished: &Finished) -> Option<u64> {
        let About::Answer { connection, bytes } = finished.operation.about else { return None };
        let client = self.clients.get_mut(&connection)?;
        client.flying = client.flying.saturating_sub(bytes);
        client.heard = Instant::now();
        failpoint!("fabric.answer.sent");
        if finished.status != UCS_OK {
            // Its endpoint is broken, or will be: the requester is not left with half an answer.
            self.forget(connection);
            return None;
        }
        Some(connection)
    }

    /// Ends connections whose requesters do not take what they asked for, and say nothing.
    fn look(&mut self, now: Instant) {
        let silence = self.shared.options.silence;
        let stuck: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.flying > 0 && now.saturating_duration_since(client.heard) >= silence)
            .map(|(token, _)| *token)
            .collect();
        stuck.into_iter().for_each(|token| self.forget(token));
    }
}

/// How often requesters are looked at.
const LOOK: Duration = Duration::from_millis(100);
