//! `Owner`: the side that answers, on one thread of its own.

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smallvec::SmallVec;
use ucx_sys::UCS_OK;

use super::Options;
use super::admission;
use super::context::Context;
use super::exit::EXIT;
use super::message::{ENDED, Encoded, HEADER, Hello, Kind, Message, Welcome};
use super::numbered::Numbered;
use super::operation::{About, Body, Data, Event, Finished, Operation, Way};
use super::spin::Spin;
use super::worker::Worker;
use crate::error::Result;
use crate::fabric::{Answers, Asked, Incoming, Outgoing, Piece, Responder, Segments, Service};
use crate::failpoint::failpoint;
use crate::key::random_number;
use crate::mutant::mutant;
use crate::sync::lock;

mod backlog;
mod dying;

use backlog::{Backlog, Open};
use dying::Dying;

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
    /// Questions that the service has and has not answered yet.
    open: Mutex<Open>,
    bell: OwnedFd,
    /// The thread's own: it need not wake itself.
    thread: OnceLock<ThreadId>,
    generation: u32,
}

/// What the thread is to do.
enum Order {
    Hosts { connection: u64, hosts: Vec<IpAddr>, responder: Responder },
    Meet { connection: u64, from: u64, token: u64, address: Vec<u8>, responder: Responder },
    Watch { connection: u64, responder: Responder },
    Segment { connection: u64, number: u16, responder: Responder },
    Gone { connection: u64 },
    Answer { asked: Asked, reply: Option<Outgoing> },
    Stop,
}

impl Owner {
    pub(super) fn new(options: &Options, service: Arc<dyn Service>) -> Result<Arc<Self>> {
        let shared = Shared {
            options: options.clone(),
            orders: Mutex::default(),
            open: Mutex::default(),
            bell: super::event()?,
            thread: OnceLock::new(),
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
            Ok(Hello::Hosts(hosts)) => self.shared.order(Order::Hosts { connection, hosts, responder }),
            Ok(Hello::Watch) => self.shared.order(Order::Watch { connection, responder }),
            Ok(Hello::Segment(number)) => self.shared.order(Order::Segment { connection, number, responder }),
            Err(error) => responder.reply(Welcome::Refused(error.context().to_owned()).encode(), Vec::new()),
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
        if self.thread.get() != Some(&std::thread::current().id()) {
            super::ring(&self.bell);
        }
    }
}

impl Answers for Shared {
    fn respond(&self, asked: Asked, reply: Option<Outgoing>) {
        // Whoever gave up meanwhile had a refusal by then.
        if lock(&self.open).answer(asked, reply.as_ref()) {
            self.order(Order::Answer { asked, reply });
        }
    }

    fn is_wanted(&self, asked: Asked) -> bool {
        lock(&self.open).contains(asked)
    }
}

/// The thread: meets requesters, and answers until it is told to stop.
fn serve(shared: &Arc<Shared>, service: Arc<dyn Service>, segments: Vec<Arc<dyn Segments>>) {
    let _ = shared.thread.set(std::thread::current().id());
    let begin = || -> Result<(Worker, Vec<u8>)> {
        let context = Arc::new(Context::new(&super::settings(&shared.options))?);
        segments.iter().for_each(|segments| context.memory.add(Arc::clone(segments)));
        let mut worker = Worker::new(&context)?;
        let address = worker.address()?;
        Ok((worker, address))
    };
    let mut pause = FIRST_PAUSE;
    loop {
        match begin() {
            Ok((worker, address)) => {
                let (hosts, spare) = (Numbered::default(), Vec::new());
                let (clients, tokens, now) = (Numbered::default(), Numbered::default(), Instant::now());
                let (dying, backlog) = (Vec::new(), Backlog::default());
                let mine = Arc::clone(shared);
                let mut desk =
                    Desk { shared: mine, service, worker, address, clients, tokens, hosts, dying, backlog, spare, now };
                let is_stopped = desk.run();
                drop(desk);
                // Or the process exits, which may take a while.
                while !is_stopped && refuse(shared, "the process exits", Instant::now() + LAST_PAUSE) {}
                return;
            }
            // What was missing may be there by now: memory, descriptors, a device.
            Err(error) if !refuse(shared, error.context(), Instant::now() + pause) => return,
            Err(_) => pause = (pause * 2).min(LAST_PAUSE),
        }
    }
}

/// Tells everybody why there is no UCX here, until that time and until somebody asks after it, whose order is left; `false` for
/// the end.
fn refuse(shared: &Shared, reason: &str, until: Instant) -> bool {
    loop {
        let is_over = Instant::now() >= until;
        let (mut kept, mut is_asked) = (Vec::new(), false);
        for order in std::mem::take(&mut *lock(&shared.orders)) {
            match order {
                Order::Stop => return false,
                Order::Hosts { .. } | Order::Meet { .. } if is_over => {
                    kept.push(order);
                    is_asked = true;
                }
                // Perhaps of one that has just asked.
                Order::Gone { .. } if is_over => kept.push(order),
                Order::Hosts { responder, .. } | Order::Meet { responder, .. } | Order::Segment { responder, .. } => {
                    responder.reply(Welcome::Refused(reason.to_owned()).encode(), Vec::new());
                }
                // Of requesters that were refused.
                Order::Watch { .. } | Order::Gone { .. } | Order::Answer { .. } => {}
            }
        }
        if is_asked {
            lock(&shared.orders).splice(0..0, kept);
            return true;
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
    clients: Numbered<Client>,
    /// Our names, by the numbers of their control connections.
    tokens: Numbered<u64>,
    /// From where UCX of their requesters connects, by the same.
    hosts: Numbered<Vec<IpAddr>>,
    /// Requesters that were given up with something on its way.
    dying: Vec<Dying>,
    backlog: Backlog,
    /// Memory for orders.
    spare: Vec<Order>,
    /// When this turn began: by less than [`LOOK`] ago for what is judged by it.
    now: Instant,
}

/// Takes a question from where UCX has it; `false` leaves another message for later.
///
/// It runs within a step of UCX. Services do not block, and what they answer is an order for after it.
fn take(
    shared: &Arc<Shared>,
    service: &Arc<dyn Service>,
    clients: &mut Numbered<Client>,
    backlog: &mut Backlog,
    now: Instant,
    header: &[u8],
    bytes: &[u8],
) -> bool {
    // What is no message, or of no connection, is thrown away.
    let Ok(message) = Message::decode(header) else { return true };
    let Some(client) = clients.get_mut(&message.token) else { return true };
    if message.kind != Kind::Ask {
        return false;
    }
    client.heard = now;
    let Ok((described, _)) = message.describe(header, bytes) else { return true };
    failpoint!("ucx.question");
    let asked = Asked { connection: message.token, number: message.number };
    // Behind those that wait it waits, too.
    let is_handed = !backlog.has(asked.connection) && backlog::hand(shared, service, client, asked, described.head);
    if !is_handed && !backlog.keep(asked, described.head, &shared.options) {
        shared.order(Order::Answer { asked, reply: None });
    }
    true
}

/// A requester.
struct Client {
    /// Its control connection.
    connection: u64,
    /// How it names the connection.
    theirs: u64,
    /// Number of its memory.
    from: u64,
    /// Held for as long as it wants to know that this process lives.
    watch: Option<Responder>,
    /// Answers, and refusals, that wait until those before them are sent.
    queue: VecDeque<(u64, Option<Outgoing>)>,
    /// Bytes in it.
    queued: u64,
    /// Bytes of all answers that came to it, or went past it, so far.
    ordered: u64,
    /// Bytes on their way, those of the messages themselves too.
    flying: u64,
    /// When it last said something, or bytes arrived, or the first of those on their way began to.
    heard: Instant,
}

impl Client {
    /// Whether a reply of so many bytes may go on its way now, when `most` may be on theirs.
    fn has_room(&self, bytes: u64, most: u64) -> bool {
        self.flying == 0 || self.flying + bytes <= most || mutant!("flying_limit")
    }

    /// Bytes that it has asked for and not taken, when so many were answered in all.
    fn unread(&self, answered: u64) -> u64 {
        answered.saturating_sub(self.ordered) + self.queued + self.flying
    }
}

impl Desk {
    /// Until it is told to stop, or, `false`, the process exits.
    fn run(&mut self) -> bool {
        let mut spin = Spin::new(self.shared.options.spin);
        let mut looked = self.now;
        loop {
            let Self { shared, service, worker, clients, backlog, now, .. } = self;
            let mut moved =
                worker.progress(&mut |header, bytes| take(shared, service, clients, backlog, *now, header, bytes));
            while let Some(event) = self.worker.event() {
                self.handle(event);
            }
            // Answers to what has just come are among them.
            let mut orders = std::mem::take(&mut self.spare);
            std::mem::swap(&mut *lock(&self.shared.orders), &mut orders);
            moved |= !orders.is_empty();
            for order in orders.drain(..) {
                if !self.obey(order) {
                    self.end();
                    return true;
                }
            }
            self.spare = orders;
            moved |= self.catch_up();
            if EXIT.has_begun() {
                return false;
            }
            let before = std::mem::replace(&mut self.now, Instant::now());
            if self.now.saturating_duration_since(before) >= LOOK {
                // It was held up, by a stop of the process or by UCX, and what requesters said meanwhile is still to be read.
                self.clients.values_mut().for_each(|client| client.heard = self.now);
            }
            if self.now.saturating_duration_since(looked) >= LOOK {
                looked = self.now;
                self.look(self.now);
            }
            if moved {
                spin.begin(self.now);
            } else if spin.goes_on(self.now, false) {
                std::hint::spin_loop();
            } else {
                self.sleep(&mut spin);
            }
        }
    }

    fn end(&mut self) {
        let tokens: Vec<u64> = self.clients.keys().copied().collect();
        tokens.into_iter().for_each(|token| self.forget(token));
    }

    /// Waits for something to do; without an end where nobody is owed anything.
    fn sleep(&mut self, spin: &mut Spin) {
        let begun = Instant::now();
        // An order may be this thread's own, for which nobody rang.
        if !matches!(self.worker.arm(), Ok(true)) || !lock(&self.shared.orders).is_empty() {
            return spin.begin(begun);
        }
        let is_idle =
            !self.worker.is_busy() && self.dying.is_empty() && self.clients.values().all(|client| client.flying == 0);
        let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
        let events = self.worker.events();
        let mut descriptors = [PollFd::new(&events, PollFlags::IN), PollFd::new(&self.shared.bell, PollFlags::IN)];
        if poll(&mut descriptors, (!is_idle).then_some(&timeout)).is_ok() && !descriptors[1].revents().is_empty() {
            let _ = rustix::io::read(&self.shared.bell, &mut [0u8; 8]);
        }
        self.now = Instant::now();
        spin.slept(begun, self.now);
    }

    /// `false` for the end.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Stop => return false,
            Order::Gone { connection } => {
                if let Some(token) = self.tokens.remove(&connection) {
                    self.forget(token);
                }
                if let Some(hosts) = self.hosts.remove(&connection) {
                    self.worker.dismiss(&hosts);
                }
            }
            Order::Hosts { connection, hosts, responder } => {
                // Who asks knows whether it is on this host; of addresses that many hosts have, such as those of bridges, nothing follows.
                let is_here = hosts.iter().copied().find(IpAddr::is_loopback);
                let welcome = match admission::of_this_host(is_here.as_slice()) {
                    Ok(own) => Welcome::Hosts(own),
                    Err(error) => Welcome::Refused(format!("the addresses of the owner's host: {error}")),
                };
                self.worker.admit(&hosts);
                if let Some(former) = self.hosts.insert(connection, hosts) {
                    self.worker.dismiss(&former);
                }
                responder.reply(welcome.encode(), Vec::new());
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
            Order::Answer { asked, reply } => self.answer(asked, reply),
        }
        true
    }

    fn meet(&mut self, connection: u64, from: u64, theirs: u64, address: &[u8], responder: Responder) {
        let token = random_number();
        let first = Message::new(Kind::Alive, theirs, 0).encode(&[], &[]).map(|encoded| encoded.header);
        if let Err(error) = first.and_then(|first| self.worker.connect(token, address, first)) {
            return responder.reply(Welcome::Refused(error.context().to_owned()).encode(), Vec::new());
        }
        let (queue, heard) = (VecDeque::new(), Instant::now());
        let (watch, queued, ordered, flying) = (None, 0, 0, 0);
        let client = Client { connection, theirs, from, watch, queue, queued, ordered, flying, heard };
        self.clients.insert(token, client);
        if let Some(former) = self.tokens.insert(connection, token) {
            self.forget(former);
        }
        responder.reply(Welcome::Meet { token, address: self.address.clone() }.encode(), Vec::new());
        failpoint!("ucx.met");
    }

    /// How a segment is read. No more is given than what UCX itself tells the peer with each answer that it fetches.
    fn segment(&self, connection: u64, number: u16) -> Welcome {
        if !self.tokens.contains_key(&connection) {
            return Welcome::Refused("the connection has not met this worker".to_owned());
        }
        let context = self.worker.context();
        match context.memory.packed(context.ucx(), context.raw(), number) {
            Ok(packed) => Welcome::Segment(packed),
            Err(error) => Welcome::Refused(error.context().to_owned()),
        }
    }

    /// Ends a connection; what was on its way is released when UCX is done with it.
    fn forget(&mut self, token: u64) {
        if let Some(client) = self.clients.remove(&token) {
            lock(&self.shared.open).forget(token);
            match self.hosts.get(&client.connection) {
                Some(hosts) if client.flying > 0 => self.dying.push(Dying::new(token, hosts)),
                _ => self.worker.close(token),
            }
            // Its end of the connection may have noticed nothing.
            if let Some(watch) = client.watch {
                watch.reply(ENDED.to_vec(), Vec::new());
            }
            self.service.gone(token);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Message { header, data } => self.hear(&header, data),
            Event::Finished(finished) => self.finished(finished),
            Event::Broken { link, .. } => {
                // Its control connection stays, until the requester ends it.
                self.broke(link);
            }
            Event::Closed | Event::Met => {}
        }
    }

    fn hear(&mut self, header: &[u8], data: Data) {
        // Questions come whole, and were taken by then; of what is to be fetched there is nothing that is wanted.
        if let (Ok(message), Some(_)) = (Message::decode(header), data.bytes()) {
            if let Some(client) = self.clients.get_mut(&message.token) {
                client.heard = self.now;
                let asked = Asked { connection: message.token, number: message.number };
                let is_abandoned = message.kind == Kind::Abandon
                    && (self.backlog.remove(asked) || lock(&self.shared.open).remove(asked));
                if is_abandoned {
                    self.answer(asked, None);
                }
            }
        }
        self.worker.release(data);
    }

    fn answer(&mut self, asked: Asked, reply: Option<Outgoing>) {
        let Asked { connection: token, number } = asked;
        let Some(client) = self.clients.get_mut(&token) else { return };
        let bytes = backlog::bytes(reply.as_ref());
        client.ordered += bytes;
        if client.queue.is_empty() && client.has_room(bytes, self.shared.options.flying) {
            return self.say(token, number, reply);
        }
        client.queued += bytes;
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
            let bytes = backlog::bytes(next.as_ref());
            if !client.has_room(bytes, self.shared.options.flying) {
                return;
            }
            client.queued -= bytes;
            if let Some((number, reply)) = client.queue.pop_front() {
                self.say(token, number, reply);
            }
        }
    }

    /// Sends an answer, or a refusal.
    fn say(&mut self, token: u64, number: u64, reply: Option<Outgoing>) {
        match reply {
            Some(outgoing) => self.send(token, number, outgoing),
            None => self.refuse(token, number),
        }
    }

    /// Sends an answer, in as many messages as it needs.
    ///
    /// One part goes where it belongs as it is. Several small ones go together: one copy of all of them is quicker than a list,
    /// and one message than a rendezvous, whose receiver would copy them as well. While it does that with those of a message, the
    /// next is on its way.
    fn send(&mut self, token: u64, number: u64, outgoing: Outgoing) {
        let Some(theirs) = self.clients.get(&token).map(|client| client.theirs) else { return };
        let Outgoing { head, parts } = outgoing;
        let lengths: SmallVec<[u64; 4]> = parts.iter().map(|part| part.len() as u64).collect();
        let is_one = parts.len() == 1 && !Message::is_long_with(head.len(), 1);
        let described = HEADER + head.len() + lengths.len() * 8;
        let here = if is_one { 1 } else { self.together(&lengths, described) };
        let message = match here == parts.len() {
            true => Message::new(Kind::Answer, theirs, number),
            false => Message::apart(theirs, number, here as u32),
        };
        // An answer that is too long is none: it is the service's mistake, and must not end all others.
        let Ok(encoded) = message.encode_in(&head, &lengths, self.worker.header()) else {
            return self.refuse(token, number);
        };
        let mut parts = parts.into_iter();
        // With others behind it, it comes whole.
        let bytes = lengths[..here].iter().sum();
        let way = if here == lengths.len() { self.way(bytes) } else { Way::Whole };
        self.send_parts(token, encoded, parts.by_ref().take(here), bytes, way);
        let mut at = here;
        while at < lengths.len() {
            let here = self.together(&lengths[at..], HEADER).max(1);
            let message = Message::part(theirs, number, at as u32, here as u32);
            let Ok(encoded) = message.encode_in(&[], &[], self.worker.header()) else { return };
            let bytes = lengths[at..at + here].iter().sum();
            self.send_parts(token, encoded, parts.by_ref().take(here), bytes, self.way(bytes));
            at += here;
        }
    }

    /// How many of the first parts go into one message, behind so many bytes.
    fn together(&self, lengths: &[u64], behind: usize) -> usize {
        let mut bytes = behind as u64;
        let fit = lengths.iter().take_while(|len| {
            bytes = bytes.saturating_add(**len);
            bytes <= self.shared.options.packed
        });
        fit.count()
    }

    /// Sends parts of so many bytes in one message; one alone goes by `way`.
    fn send_parts(
        &mut self,
        token: u64,
        message: Encoded,
        mut parts: impl ExactSizeIterator<Item = Piece>,
        bytes: u64,
        way: Way,
    ) {
        let Encoded { header, prefix } = message;
        let own = (header.len() + prefix.len()) as u64;
        let (body, way) = match (prefix.is_empty(), parts.len()) {
            (true, 0) => (Body::None, Way::Whole),
            (false, 0) => (Body::Own(prefix), Way::Whole),
            (true, 1) => (parts.next().map_or(Body::None, Body::Shared), way),
            _ => {
                let mut packed = self.worker.packed();
                packed.reserve(prefix.len() + bytes as usize);
                packed.extend_from_slice(&prefix);
                parts.for_each(|part| packed.extend_from_slice(&part));
                (Body::Own(packed), Way::Whole)
            }
        };
        let about = About::Answer { connection: token, bytes: own + bytes };
        self.begin(token, Operation { about, header, body }, way);
    }

    /// How so many bytes of one part are sent.
    fn way(&self, len: u64) -> Way {
        match self.shared.options.fetched {
            Some(least) if len >= least => Way::Fetched,
            _ => Way::Any,
        }
    }

    fn refuse(&mut self, token: u64, number: u64) {
        let Some(theirs) = self.clients.get(&token).map(|client| client.theirs) else { return };
        if let Ok(encoded) = Message::new(Kind::Refusal, theirs, number).encode_in(&[], &[], self.worker.header()) {
            let about = About::Answer { connection: token, bytes: encoded.header.len() as u64 };
            self.begin(token, Operation { about, header: encoded.header, body: Body::None }, Way::Whole);
        }
    }

    fn begin(&mut self, token: u64, operation: Operation, way: Way) {
        if let (About::Answer { bytes, .. }, Some(client)) = (operation.about, self.clients.get_mut(&token)) {
            if client.flying == 0 {
                client.heard = self.now;
            }
            client.flying += bytes;
        }
        let Some(finished) = self.worker.send(token, operation, way) else {
            failpoint!("ucx.answer.half");
            return;
        };
        self.account(&finished);
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
        client.heard = self.now;
        failpoint!("ucx.answer.sent");
        if finished.status != UCS_OK {
            // Its endpoint is broken, or will be: the requester is not left with half an answer.
            self.broke(connection);
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
        self.end_dying();
    }
}

/// How often requesters are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How long it is left alone that UCX could not start, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
