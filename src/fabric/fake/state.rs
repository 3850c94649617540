//! `State`: what is on its way, who is connected, what is cut.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::Duration;

use super::Link;
use super::event::{Event, Posted, Route};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Lander, Service};

/// Everything that the threads of a `Net` share.
pub(super) struct State {
    /// Virtual time since the beginning.
    pub(super) now: Duration,
    /// Whether a thread delivers an event now.
    pub(super) running: bool,
    /// Threads that sleep until something changes.
    pub(super) waiting: usize,
    pub(super) digest: u64,
    pub(super) usual: Link,
    pub(super) links: HashMap<(IpAddr, IpAddr), Link>,
    pub(super) silence: Duration,
    pub(super) listeners: BTreeMap<u64, Listening>,
    pub(super) contacts: BTreeMap<SocketAddr, u64>,
    pub(super) connections: BTreeMap<u64, Connection>,
    /// Connections that somebody waits for, and how it went.
    pub(super) tickets: BTreeMap<u64, Option<Result<u64>>>,
    /// Questions at their requesters.
    pub(super) questions: BTreeMap<u64, Question>,
    /// Questions at their owners, and whether anybody still waits for the answer.
    pub(super) owed: BTreeMap<u64, (u64, Arc<AtomicBool>)>,
    /// What to drop once the lock is released: it runs foreign code.
    pub(super) dropped: Vec<Box<dyn Any + Send>>,
    queue: BTreeMap<(Duration, u64), Posted>,
    /// What reached a cut, in the order in which it did.
    stalled: Vec<Posted>,
    /// Directions in which nothing arrives, and since when.
    cuts: BTreeMap<(IpAddr, IpAddr), Duration>,
    hosts: BTreeMap<IpAddr, Host>,
    woken: Vec<Waker>,
    last: u64,
    random: u64,
}

/// Who answers at a contact.
pub(super) struct Listening {
    pub(super) service: Arc<dyn Service>,
    pub(super) instance: u64,
    pub(super) secret: u64,
}

pub(super) struct Connection {
    pub(super) requester: IpAddr,
    pub(super) owner: IpAddr,
    pub(super) listener: u64,
    /// Numbers of the memory on either side.
    pub(super) from: u64,
    pub(super) instance: u64,
    /// When it ended, once it did.
    pub(super) ended: Option<Duration>,
}

pub(super) struct Question {
    pub(super) connection: u64,
    pub(super) land: Option<Lander>,
    pub(super) result: Option<Result<Answer>>,
    pub(super) waker: Option<Waker>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Host {
    is_dead: bool,
    /// When the last byte that is to leave has left, and the last one on its way has come in.
    leaves: Duration,
    enters: Duration,
    pub(super) traffic: Traffic,
}

/// What went through a node, in messages and bytes of heads and parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) messages: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Duration::ZERO,
            running: false,
            waiting: 0,
            digest: 0,
            usual: Link::default(),
            links: HashMap::new(),
            silence: Duration::from_secs(3),
            listeners: BTreeMap::new(),
            contacts: BTreeMap::new(),
            connections: BTreeMap::new(),
            tickets: BTreeMap::new(),
            questions: BTreeMap::new(),
            owed: BTreeMap::new(),
            dropped: Vec::new(),
            queue: BTreeMap::new(),
            stalled: Vec::new(),
            cuts: BTreeMap::new(),
            hosts: BTreeMap::new(),
            woken: Vec::new(),
            last: 0,
            random: seed,
        }
    }

    /// A number that was not given before.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The next of the seed's numbers (SplitMix64, Steele et al. 2014).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random)
    }

    pub(super) fn post(&mut self, at: Duration, route: Option<Route>, event: Event) {
        let number = self.number();
        self.queue.insert((at.max(self.now), number), Posted { route, event });
    }

    /// When the next event is due.
    pub(super) fn next(&self) -> Option<Duration> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next event, at whose time the clock then stands.
    pub(super) fn take_next(&mut self) -> Option<Posted> {
        let ((at, number), posted) = self.queue.pop_first()?;
        self.now = at;
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.digest = mix(self.digest ^ mix(nanos) ^ number ^ posted.event.code());
        Some(posted)
    }

    /// Tasks to wake: those whose answers came, and, where events are left that nobody delivers, all others.
    pub(super) fn take_woken(&mut self) -> Vec<Waker> {
        let mut woken = std::mem::take(&mut self.woken);
        if !self.running && !self.queue.is_empty() {
            woken.extend(self.questions.values_mut().filter_map(|question| question.waker.take()));
        }
        woken
    }

    pub(super) fn host(&mut self, host: IpAddr) -> &mut Host {
        self.hosts.entry(host).or_default()
    }

    fn link(&self, from: IpAddr, to: IpAddr) -> Link {
        self.links.get(&(from, to)).copied().unwrap_or(self.usual)
    }

    /// When a message of `len` bytes that leaves now arrives. Heads pass between the bytes of parts.
    pub(super) fn travel(&mut self, from: IpAddr, to: IpAddr, len: usize) -> Duration {
        let link = self.link(from, to);
        let jitter = match u64::try_from(link.jitter.as_nanos()) {
            Ok(0) | Err(_) => 0,
            Ok(jitter) => self.random() % jitter,
        };
        self.count(from, to, len as u64);
        self.now + link.latency + Duration::from_nanos(jitter) + takes(len as u64, link.bandwidth)
    }

    /// When the first and the last of `len` bytes of parts that are ready now arrive.
    pub(super) fn stream(&mut self, from: IpAddr, to: IpAddr, len: u64) -> (Duration, Duration) {
        let link = self.link(from, to);
        let free = self.host(to).enters.saturating_sub(link.latency);
        let begins = self.now.max(self.host(from).leaves).max(free);
        let ends = begins + takes(len, link.bandwidth);
        self.host(from).leaves = ends;
        self.host(to).enters = ends + link.latency;
        self.count(from, to, len);
        (begins + link.latency, ends + link.latency)
    }

    fn count(&mut self, from: IpAddr, to: IpAddr, len: u64) {
        self.host(from).traffic.sent += len;
        self.host(from).traffic.messages += 1;
        self.host(to).traffic.received += len;
    }

    pub(super) fn is_dead(&mut self, host: IpAddr) -> bool {
        self.host(host).is_dead
    }

    /// Whether nothing arrives there from here, and since when.
    pub(super) fn cut_since(&self, from: IpAddr, to: IpAddr) -> Option<Duration> {
        self.cuts.get(&(from, to)).copied()
    }

    pub(super) fn stall(&mut self, posted: Posted) {
        self.stalled.push(posted);
    }

    pub(super) fn cut(&mut self, from: IpAddr, to: IpAddr) {
        let since = self.now;
        if self.cuts.contains_key(&(from, to)) {
            return;
        }
        self.cuts.insert((from, to), since);
        self.post(since + self.silence, None, Event::Silence { from, to, since });
    }

    pub(super) fn heal(&mut self, from: IpAddr, to: IpAddr) {
        if self.is_dead(from) || self.is_dead(to) {
            return;
        }
        self.cuts.remove(&(from, to));
        let latency = self.link(from, to).latency;
        for posted in std::mem::take(&mut self.stalled) {
            match posted.route {
                Some(route) if (route.from, route.to) == (from, to) => {
                    self.post(self.now + latency, posted.route, posted.event);
                }
                _ => self.stalled.push(posted),
            }
        }
    }

    pub(super) fn kill(&mut self, host: IpAddr) {
        self.host(host).is_dead = true;
        let others: Vec<IpAddr> = self.hosts.keys().copied().collect();
        for other in others {
            self.cut(host, other);
            self.cut(other, host);
        }
    }

    /// Both sides know now that the connection is no more.
    pub(super) fn end(&mut self, connection: u64, why: &'static str) {
        let now = self.now;
        let Some(ended) = self.connections.get_mut(&connection).filter(|one| one.ended.is_none()) else { return };
        ended.ended = Some(now);
        let asked = |question: &Question| question.connection == connection;
        let open: Vec<u64> = self.questions.iter().filter(|(_, one)| asked(one)).map(|(id, _)| *id).collect();
        for question in open {
            self.finish(question, Err(Error::new(ErrorKind::PeerDown, "get", why)));
        }
        for (_, wanted) in self.owed.values().filter(|(one, _)| *one == connection) {
            wanted.store(false, Ordering::Relaxed);
        }
        for posted in std::mem::take(&mut self.stalled) {
            match posted.route {
                Some(route) if route.connection == connection => self.tear(posted),
                _ => self.stalled.push(posted),
            }
        }
    }

    /// Throws a message away that no longer arrives: of its bytes, those that came before the end are there.
    pub(super) fn tear(&mut self, mut posted: Posted) {
        if let (Event::Land(transfer), Some(route)) = (&mut posted.event, posted.route) {
            let ended = self.connections.get(&route.connection).and_then(|one| one.ended).unwrap_or(self.now);
            let since = self.cut_since(route.from, route.to).map_or(ended, |since| since.min(ended));
            transfer.write_until(since);
        }
        self.dropped.push(Box::new(posted));
    }

    /// Ends a question at its requester, if it is still open.
    pub(super) fn finish(&mut self, question: u64, result: Result<Answer>) {
        match self.questions.get_mut(&question) {
            Some(open) if open.result.is_none() => {
                open.result = Some(result);
                self.woken.extend(open.waker.take());
                self.dropped.extend(open.land.take().map(|land| Box::new(land) as Box<dyn Any + Send>));
            }
            _ => self.dropped.push(Box::new(result)),
        }
    }
}

/// How long so many bytes take.
fn takes(len: u64, bandwidth: u64) -> Duration {
    let nanos = u128::from(len) * 1_000_000_000 / u128::from(bandwidth.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Spreads the bits of a number.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
