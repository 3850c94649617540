//! Many nodes that want the same object at the same time, in virtual time on the fake fabric: how long it takes until all have
//! it, and how often each sends it.
//!
//! Only the decisions are those of the library; a piece is 4 KiB here and stands for a 256th of the object.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Node, Relays};
use crate::error::Result;
use crate::fabric::fake::{Link, Net, Time};
use crate::fabric::{Call, Fabric as _, Head, Incoming, Land, Landing, Listener, Peer, Responder, Service};
use crate::pending::Pending;
use crate::region::RegionMut;
use crate::shm::table::Id;
use crate::sync::lock;

const OBJECT: Id = Id { slot: 1, generation: 1 };
const PIECES: u32 = 256;
const PIECE: usize = 4096;
const WINDOW: usize = 4;

/// 100 Gbit/s, with pieces that stand for 1 MiB.
const BANDWIDTH: u64 = 12_500_000_000 / 256;

/// A node that serves the pieces that it has, in the order in which they come.
struct Host {
    pieces: Mutex<Pieces>,
    /// Sent by it, in pieces.
    sent: AtomicU32,
}

#[derive(Default)]
struct Pieces {
    there: u32,
    waiting: Vec<(u32, Responder)>,
}

impl Host {
    fn new(there: u32) -> Arc<Self> {
        Arc::new(Self { pieces: Mutex::new(Pieces { there, ..Pieces::default() }), sent: AtomicU32::new(0) })
    }

    fn send(&self, responder: Responder) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        responder.reply(Vec::new(), vec![Bytes::from_static(&[0; PIECE])]);
    }

    fn advance(&self, there: u32) {
        let ready = {
            let mut pieces = lock(&self.pieces);
            pieces.there = there;
            let (ready, waiting) =
                std::mem::take(&mut pieces.waiting).into_iter().partition(|(piece, _)| *piece < there);
            pieces.waiting = waiting;
            let ready: Vec<(u32, Responder)> = ready;
            ready
        };
        ready.into_iter().for_each(|(_, responder)| self.send(responder));
    }
}

impl Service for Arc<Host> {
    fn answer(&self, call: Incoming<'_>) {
        let piece = u32::from_le_bytes(call.head.try_into().expect("a number"));
        let mut pieces = lock(&self.pieces);
        if piece < pieces.there {
            drop(pieces);
            return self.send(call.responder);
        }
        pieces.waiting.push((piece, call.responder));
    }
}

struct Anywhere;

impl Land for Anywhere {
    fn land(&mut self, _: &[u8], parts: &[u64]) -> Result<Vec<Landing>> {
        parts.iter().map(|len| Landing::whole(RegionMut::heap(*len as usize)?, *len as usize)).collect()
    }
}

/// A fetch, polled by whoever wakes it.
struct Fetch {
    host: Arc<Host>,
    source: Arc<dyn Peer>,
    net: Net,
    state: Mutex<Flight>,
}

#[derive(Default)]
struct Flight {
    next: u32,
    flying: VecDeque<Pending<crate::fabric::Answer>>,
    there: u32,
    done: Option<Duration>,
}

impl Fetch {
    fn poll(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        let mut flight = lock(&self.state);
        loop {
            while flight.flying.len() < WINDOW && flight.next < PIECES {
                let call = Call {
                    head: Head::from_slice(&flight.next.to_le_bytes()),
                    land: Box::new(Anywhere).into(),
                    lane: 0,
                };
                flight.flying.push_back(Arc::clone(&self.source).request(call));
                flight.next += 1;
            }
            let Some(first) = flight.flying.front_mut() else { return };
            match Pin::new(first).poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => return,
                Poll::Ready(answer) => drop(answer.expect("nobody fails")),
            }
            flight.flying.pop_front();
            flight.there += 1;
            if flight.there == PIECES {
                flight.done = Some(self.net.now());
            }
            self.host.advance(flight.there);
        }
    }
}

impl Wake for Fetch {
    fn wake(self: Arc<Self>) {
        self.poll();
    }
}

/// What came of it.
struct Outcome {
    took: Duration,
    /// Copies that the owner sent, and the most that any other node did.
    owner: f64,
    most: f64,
}

fn run(nodes: u32) -> Outcome {
    let net = Net::new(Time::Virtual, 1);
    net.set_default(Link { latency: Duration::from_micros(2), bandwidth: BANDWIDTH, ..Link::default() });
    let address = |number: u32| Ipv4Addr::from(0x0a00_0000 + number);
    let listen = |number: u32, there: u32| -> (Arc<Host>, Box<dyn Listener>) {
        let host = Host::new(there);
        let fabric = net.node(address(number)).instance(number.into());
        let listener = fabric.listen(&[(address(number), 0).into()], Arc::new(Arc::clone(&host))).expect("a port");
        (host, listener)
    };
    let hosts: Vec<_> = (0..=nodes).map(|number| listen(number, if number == 0 { PIECES } else { 0 })).collect();
    let mut relays = Relays::default();
    let later = Instant::now() + Duration::from_secs(3600);
    let fetches: Vec<Arc<Fetch>> = (1..=nodes)
        .map(|number| {
            let contact: SocketAddr = hosts[number as usize].1.contact();
            let node = Node { contact, instance: number.into() };
            let source = relays.join(OBJECT, PIECES.into(), node, number.into(), &[]);
            let source = source.map_or(hosts[0].1.contact(), |source| source.contact);
            let fabric = net.node(address(number)).instance(number.into());
            let source = fabric.connect(source, later).expect("it listens");
            let host = Arc::clone(&hosts[number as usize].0);
            Arc::new(Fetch { host, source, net: net.clone(), state: Mutex::default() })
        })
        .collect();
    let begin = net.now();
    for fetch in &fetches {
        let fetch = Arc::clone(fetch);
        // As an event: who polls outside of one delivers what is due to others first.
        net.after(Duration::ZERO, move || fetch.poll());
    }
    net.run();
    let took = fetches.iter().map(|fetch| lock(&fetch.state).done.expect("all of it came") - begin).max();
    let copies = |host: &Arc<Host>| f64::from(host.sent.load(Ordering::Relaxed)) / f64::from(PIECES);
    let most = hosts[1..].iter().map(|(host, _)| copies(host)).fold(0.0, f64::max);
    Outcome { took: took.unwrap_or_default(), owner: copies(&hosts[0].0), most }
}

/// The time of a tree in which a node that has the object whole sends it to one after another.
fn binomial(nodes: u32, single: Duration) -> Duration {
    single * (nodes + 1).next_power_of_two().ilog2()
}

fn curve(sizes: &[u32]) {
    let single = run(1).took;
    println!(
        "{:>6} {:>10} {:>8} {:>14} {:>14} {:>12}",
        "nodes", "ms", "single", "binomial tree", "owner's copies", "most copies"
    );
    for nodes in sizes {
        let Outcome { took, owner, most } = run(*nodes);
        let times = took.as_secs_f64() / single.as_secs_f64();
        let tree = binomial(*nodes, single).as_secs_f64() / single.as_secs_f64();
        println!("{nodes:>6} {:>10.2} {times:>8.2} {tree:>14.2} {owner:>14.2} {most:>12.2}", took.as_secs_f64() * 1e3);
        assert!(*nodes < 8 || times < tree, "slower than a tree without pieces");
        assert!(owner <= 3.0 && most <= 3.0, "{owner} and {most} copies");
    }
}

#[test]
fn many_get_it_sooner_than_by_a_binomial_tree() {
    curve(&[2, 8, 64]);
}

#[test]
#[ignore = "some minutes without optimisation: --release --ignored"]
fn up_to_4096_nodes() {
    curve(&[2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]);
}
