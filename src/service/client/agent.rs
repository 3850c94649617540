//! The agent: the thread of a process that talks to the node service, so that others need not.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::{Client, attach};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::mutant::mutant;
use crate::pending::{Completer, Pending};
use crate::service::message::{Reply, Request, kind_of};
use crate::service::server::UNASKED;
use crate::service::stats::ServiceStats;
use crate::service::wire::{Received, Sent, Socket};
use crate::shm::awake::Awake;
use crate::shm::class::Class;
use crate::shm::segment::Segment;
use crate::sync::lock;

/// What the service answered.
pub(super) enum Answer {
    Leased,
    Page(u32),
    Stats(Box<ServiceStats>),
    Collected(u64),
    #[cfg(feature = "tcp")]
    Exported(std::net::SocketAddr),
}

/// Requests that have no answer yet. They are made again when the service comes back.
#[derive(Default)]
pub(super) struct Requests {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
    /// What could not be sent at once.
    outbox: Mutex<Vec<Waiting>>,
}

struct Waiting {
    packet: Vec<u8>,
    /// Has no answer, and is still true after the service came back.
    lasting: bool,
}

struct Open {
    request: Request,
    waiter: Option<Completer<Answer>>,
}

/// Wakes the agent.
pub(super) struct Doorbell {
    fd: OwnedFd,
    awake: Awake,
}

impl Doorbell {
    pub(super) fn new() -> Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::io("open", "an eventfd", errno.into()))?;
        Ok(Self { fd, awake: Awake::default() })
    }

    pub(super) fn ring(&self) {
        let _ = rustix::io::write(&self.fd, &1u64.to_le_bytes());
    }

    #[inline]
    pub(super) fn ring_unless_awake(&self) {
        if self.awake.must_wake() {
            self.ring();
        }
    }
}

impl Client {
    /// Asks the service and waits for its answer.
    pub(super) fn ask(&self, request: impl FnOnce(u64) -> Request, op: &'static str) -> Result<Answer> {
        self.ask_within(self.options.timeout, request, op)
    }

    /// As [`ask`](Self::ask), for what may take another time.
    pub(super) fn ask_within(
        &self,
        limit: Duration,
        request: impl FnOnce(u64) -> Request,
        op: &'static str,
    ) -> Result<Answer> {
        let (waiter, answer) = Pending::channel();
        let id = self.begin(request, Some(waiter));
        let result = answer.deadline(limit).wait();
        match result {
            Err(error) if error.kind() == ErrorKind::Timeout => {
                lock(&self.requests.open).remove(&id);
                Err(self.unanswered(op))
            }
            other => other,
        }
    }

    pub(super) fn ask_for_page(&self) -> Result<u32> {
        match self.ask(|id| Request::Pins { id }, "get")? {
            Answer::Page(page) if page < self.table.pages() => Ok(page),
            _ => Err(super::corrupt("the service answered something else")),
        }
    }

    /// Sends a request; whoever waits is told the answer.
    pub(super) fn begin(&self, request: impl FnOnce(u64) -> Request, waiter: Option<Completer<Answer>>) -> u64 {
        let id = self.requests.next.fetch_add(1, Relaxed) + 1;
        let request = request(id);
        let packet = packet_of(&request);
        lock(&self.requests.open).insert(id, Open { request, waiter });
        if self.lost.load(Acquire) || self.ended.load(Acquire) {
            // Perhaps all were refused before this one was there.
            self.answer(id, Err(gone()));
            return id;
        }
        self.send(packet, false);
        id
    }

    #[cfg(all(test, not(miri)))]
    pub(super) fn has_no_requests(&self) -> bool {
        lock(&self.requests.open).is_empty()
    }

    /// Goes up with each request.
    #[cfg(all(test, not(miri)))]
    pub(super) fn next_request(&self) -> u64 {
        self.requests.next.load(Relaxed)
    }

    /// Tells the service something that has no answer.
    pub(super) fn tell(&self, request: Request) {
        self.send(packet_of(&request), true);
    }

    fn send(&self, packet: Vec<u8>, lasting: bool) {
        // In this order everywhere: the outbox, then the link.
        let mut outbox = lock(&self.requests.outbox);
        let link = lock(&self.link).clone();
        // In order: nothing overtakes what waits.
        if outbox.is_empty() {
            match link.map(|link| link.send(&packet, &[])) {
                Some(Ok(Sent::Done)) => return,
                // Without a connection: requests are made again when there is one.
                None | Some(Err(_)) if !lasting => return,
                _ => {}
            }
        }
        outbox.push(Waiting { packet, lasting });
        drop(outbox);
        self.doorbell.ring();
    }

    /// Sends what waits; whether all is sent.
    fn flush(&self, link: &Socket) -> bool {
        let mut outbox = lock(&self.requests.outbox);
        let mut sent = 0;
        while let Some(waiting) = outbox.get(sent) {
            match link.send(&waiting.packet, &[]) {
                Ok(Sent::Done) => sent += 1,
                // A connection that is gone tells so when it is read.
                Ok(Sent::WouldBlock) | Err(_) => break,
            }
        }
        outbox.drain(..sent);
        outbox.is_empty()
    }

    /// The life of the agent.
    pub(super) fn serve_agent(self: Arc<Self>) {
        let mut buffer = Vec::new();
        loop {
            let Some(link) = lock(&self.link).clone() else { return self.refuse_open() };
            // The socket's end is not the host's: a child that the host forked keeps it open.
            let host = link.peer().ok().and_then(|peer| peer.pidfd);
            let ended = self.talk(&link, host.as_ref(), &mut buffer);
            *lock(&self.link) = None;
            drop(link);
            if ended || self.ended.load(Acquire) {
                return self.refuse_open();
            }
            if let Err(error) = self.come_back() {
                return self.give_up(&error);
            }
        }
    }

    /// Talks until the connection ends (false) or the client does (true).
    fn talk(&self, link: &Socket, host: Option<&OwnedFd>, buffer: &mut Vec<u8>) -> bool {
        loop {
            let all_sent = self.flush(link);
            self.tell_of_retired();
            let events = self.sleep(link, host, all_sent);
            if self.ended.load(Acquire) {
                let _ = link.send(&packet_of(&Request::Bye), &[]);
                return true;
            }
            if events == Events::None {
                continue;
            }
            loop {
                match link.recv(buffer) {
                    Ok(Received::Packet { fds }) => match Reply::decode(buffer) {
                        Ok(reply) => self.hear(reply, fds),
                        Err(_) => return false,
                    },
                    Ok(Received::WouldBlock) if events == Events::HostDied => return false,
                    Ok(Received::WouldBlock) => break,
                    Ok(Received::Closed) | Err(_) => return false,
                }
            }
        }
    }

    /// Waits for something to do.
    fn sleep(&self, link: &Socket, host: Option<&OwnedFd>, all_sent: bool) -> Events {
        let mut flags = PollFlags::IN;
        if !all_sent {
            flags |= PollFlags::OUT;
        }
        let host = host.map_or(self.doorbell.fd.as_fd(), AsFd::as_fd);
        let mut fds = [
            PollFd::from_borrowed_fd(link.as_fd(), flags),
            PollFd::from_borrowed_fd(self.doorbell.fd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(host, PollFlags::IN),
        ];
        // While objects are evicted all the time it looks every millisecond, and nobody has to ring.
        if self.doorbell.awake.is_awake() {
            let soon = LINGER.try_into().ok();
            if let Ok(0) = poll(&mut fds, soon.as_ref()) {
                self.doorbell.awake.falls_asleep(|| !self.retired.is_empty());
                return Events::None;
            }
        } else if poll(&mut fds, None).is_err() {
            return Events::None;
        }
        let (said, rang, died) =
            (!fds[0].revents().is_empty(), !fds[1].revents().is_empty(), !fds[2].revents().is_empty());
        if rang {
            let _ = rustix::io::read(&self.doorbell.fd, &mut [0; 8]);
        }
        match (said, died && host.as_raw_fd() != self.doorbell.fd.as_raw_fd()) {
            (_, true) => Events::HostDied,
            (true, false) => Events::Said,
            (false, false) => Events::None,
        }
    }

    fn tell_of_retired(&self) {
        while !self.retired.is_empty() {
            let mut slots = Vec::with_capacity(self.retired.len().min(8192));
            while slots.len() < 8192 {
                let Some(slot) = self.retired.pop() else { break };
                slots.push(slot);
            }
            self.tell(Request::Dying { slots });
            failpoint!("client.retired.told");
        }
    }

    fn hear(&self, reply: Reply, mut fds: Vec<OwnedFd>) {
        match reply {
            Reply::Segment { index, len } => {
                if let Some(Ok(segment)) = fds.pop().map(|fd| Segment::adopt(fd, len as usize)) {
                    self.add_segment(index, segment);
                }
            }
            Reply::Leased { id, class, slots } => {
                if id == UNASKED {
                    return match Class::from_index(class) {
                        Some(class) => self.recycled(class, slots),
                        None => self.tell(Request::Return { slots }),
                    };
                }
                let Some(open) = lock(&self.requests.open).remove(&id) else {
                    // Nobody waits any more.
                    return self.tell(Request::Return { slots });
                };
                if let Some(class) = Class::from_index(class) {
                    self.leased(class, slots);
                }
                self.finish(open, Ok(Answer::Leased));
            }
            Reply::Page { id, page } => self.answer(id, Ok(Answer::Page(page))),
            #[cfg(feature = "tcp")]
            Reply::Exported { id, contact } => self.answer(id, Ok(Answer::Exported(contact))),
            #[cfg(not(feature = "tcp"))]
            Reply::Exported { .. } => {}
            Reply::Collected { id, bytes } => self.answer(id, Ok(Answer::Collected(bytes))),
            Reply::Stats { id } => {
                let stats =
                    fds.pop().ok_or_else(|| super::corrupt("no statistics")).and_then(ServiceStats::from_descriptor);
                self.answer(id, stats.map(|stats| Answer::Stats(Box::new(stats))));
            }
            Reply::Refused { id, kind, text } => {
                if let Some(open) = lock(&self.requests.open).remove(&id) {
                    let op = open.request.op();
                    self.finish(open, Err(Error::new(kind_of(kind), op, text).with_connector("shm")));
                }
            }
            Reply::Recall => self.return_leases(),
            // It ends soon; the connection's end is the sign to take over.
            Reply::Draining => {}
            Reply::Welcome { .. } => {}
        }
    }

    fn answer(&self, id: u64, result: Result<Answer>) {
        if let Some(open) = lock(&self.requests.open).remove(&id) {
            self.finish(open, result);
        }
    }

    fn finish(&self, open: Open, result: Result<Answer>) {
        if let (Request::Lease { class, .. }, Ok(_)) = (&open.request, &result) {
            Class::from_index(*class).into_iter().for_each(|class| self.prefetched(class));
        }
        if let Some(waiter) = open.waiter {
            waiter.complete(result);
        }
    }

    /// After the service's death: finds its successor, or becomes it.
    fn come_back(self: &Arc<Self>) -> Result<()> {
        failpoint!("client.reattach");
        let until = Instant::now() + PATIENCE;
        loop {
            if self.ended.load(Acquire) {
                return Ok(());
            }
            match attach::reattach(self) {
                Ok(link) => {
                    self.ask_again(link);
                    return Ok(());
                }
                Err(error) if is_final(error.kind()) || Instant::now() >= until => return Err(error),
                // Who only looks must not hold the memory back from others.
                Err(error) if !self.may_host.load(Relaxed) => return Err(error),
                // Out of descriptors, of processes, of memory: it may pass.
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Makes all open requests again, before anybody else can send anything over `link`: one that a thread sends itself is
    /// behind the same one made again, which the service would otherwise answer with the same leases twice.
    fn ask_again(&self, link: Socket) {
        let link = Arc::new(link);
        if mutant!("ask_again_late") {
            *lock(&self.link) = Some(Arc::clone(&link));
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut open = lock(&self.requests.open);
        let mut outbox = lock(&self.requests.outbox);
        outbox.retain(|waiting| waiting.lasting);
        for request in open.values_mut().map(|open| &mut open.request) {
            if let Request::Lease { again, .. } = request {
                *again = true;
            }
            outbox.push(Waiting { packet: packet_of(request), lasting: false });
        }
        // Last, while the outbox is locked: what others send comes behind.
        *lock(&self.link) = Some(link);
    }

    /// There is no service for this memory any more.
    fn give_up(&self, error: &Error) {
        self.lost.store(true, Release);
        if !self.may_host.load(Relaxed) {
            // Who only looked has neither views nor reservations; of others the lock says that theirs are in use.
            *lock(&self.member) = None;
        }
        self.refuse_all(error);
    }

    /// Nobody asks the service any more: the process exits. What needs no service goes on.
    fn refuse_open(&self) {
        self.refuse_all(&gone());
    }

    fn refuse_all(&self, error: &Error) {
        let open: Vec<Open> = lock(&self.requests.open).drain().map(|(_, open)| open).collect();
        for open in open {
            self.finish(open, Err(error.clone()));
        }
        self.wake_own();
    }
}

/// What woke the agent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Events {
    None,
    /// The service said something.
    Said,
    HostDied,
}

fn gone() -> Error {
    let context = "this process has left the namespace: it exits, or gave the memory up";
    Error::new(ErrorKind::Unavailable, "ask", context).with_connector("shm")
}

fn packet_of(request: &Request) -> Vec<u8> {
    let mut packet = Vec::new();
    // Only lists can be too long, and ours are cut to fit.
    let encoded = request.encode(&mut packet);
    debug_assert!(encoded.is_ok());
    packet
}

/// Whether trying again does not help.
fn is_final(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Stale | ErrorKind::Permission | ErrorKind::Incompatible | ErrorKind::Config)
}

/// Between two attempts to find a service again.
const PAUSE: Duration = Duration::from_millis(20);

/// How long the agent stays awake after objects were evicted.
const LINGER: Duration = Duration::from_millis(1);

/// How long a client tries to find a service again.
const PATIENCE: Duration = Duration::from_secs(600);

#[cfg(all(test, not(miri)))]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::AtomicBool;

    use super::super::Options;
    use super::*;

    /// A client whose agent has ended, so that a test can be that.
    fn without_agent() -> Arc<Client> {
        let options = Options {
            namespace: format!("test-agent-{}", std::process::id()),
            budget: Some(64 << 20),
            displace: None,
            timeout: Duration::from_secs(20),
            may_host: true,
        };
        let client = Client::attach(&options).expect("a service of its own");
        client.ended.store(true, Release);
        client.doorbell.ring();
        while lock(&client.link).is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // As one that may still ask.
        client.ended.store(false, Release);
        client
    }

    #[test]
    fn what_is_asked_again_is_never_behind_itself() {
        let client = without_agent();
        for _ in 0..8 {
            lock(&client.requests.open).clear();
            lock(&client.requests.outbox).clear();
            let (ours, service) = Socket::pair().unwrap();
            let is_back = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_back.load(Acquire) {
                        client.begin(|id| Request::Lease { id, class: 1, count: 1, urgent: true, again: false }, None);
                    }
                });
                while lock(&client.requests.open).len() < 10 {
                    std::thread::yield_now();
                }
                client.ask_again(ours);
                is_back.store(true, Release);
            });
            let link = lock(&client.link).take().unwrap();
            let (mut first, mut packet) = (HashSet::new(), Vec::new());
            let mut is_all = false;
            while !is_all {
                is_all = client.flush(&link);
                while let Received::Packet { .. } = service.recv(&mut packet).unwrap() {
                    match Request::decode(&packet).unwrap() {
                        // The service gives leases for this one, and the same leases again for the other.
                        Request::Lease { id, again: true, .. } => assert!(!first.contains(&id), "request {id}"),
                        Request::Lease { id, again: false, .. } => drop(first.insert(id)),
                        _ => {}
                    }
                }
            }
        }
        // What its agent would have left to the service, which ended with it.
        *lock(&client.member) = None;
        let _ = client.directory.remove();
    }
}
