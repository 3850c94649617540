//! Tests of the simulation itself, and of the fabric that it is.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;
use crate::error::{ErrorKind, Result};
use crate::fabric::conformance::{self, Ends};
use crate::fabric::{Call, Fabric, Head, Incoming, Land, Landing, Listener, Parts, Peer, Service};
use crate::region::RegionMut;

conformance::suite!(|| ends(&Net::new(Time::Auto, 7)));

/// A requester, an owner and a stranger.
pub(crate) fn ends(net: &Net) -> Ends {
    net.set_silence(Duration::from_millis(100));
    let (cutting, settling) = (net.clone(), net.clone());
    Ends {
        requester: Arc::new(net.node(REQUESTER).instance(11)),
        owner: Arc::new(net.node(OWNER).instance(22)),
        addresses: vec![SocketAddr::from((OWNER, 0))],
        from: 11,
        instance: 22,
        silence: Duration::from_millis(100),
        cut: Some(Box::new(move || {
            cutting.cut(REQUESTER, OWNER);
            cutting.cut(OWNER, REQUESTER);
        })),
        stranger: Some(Arc::new(net.node(OWNER).instance(33).secret(1))),
        settle: Box::new(move || settling.run()),
    }
}

const REQUESTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OWNER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// Answers a number with so many bytes, and counts.
#[derive(Default)]
struct Source(AtomicUsize);

impl Service for Source {
    fn answer(&self, call: Incoming<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        let len = call.head.try_into().map_or(0, u32::from_le_bytes) as usize;
        let parts = if len == 0 { Vec::new() } else { vec![Bytes::from(vec![5; len])] };
        call.responder.reply(b"here".to_vec(), parts);
    }
}

/// Lands in memory of its own, which it keeps an eye on.
struct Heap(std::sync::mpsc::Sender<(Parts, std::sync::Weak<()>)>);

impl Land for Heap {
    fn land(&mut self, _: &[u8], parts: &[u64]) -> Result<Vec<Landing>> {
        let (region, lent) = RegionMut::foreign(parts.iter().sum::<u64>() as usize)?;
        let (joined, landings) = Parts::of(region, &parts.iter().map(|len| *len as usize).collect::<Vec<_>>())?;
        let _ = self.0.send((joined, lent));
        Ok(landings)
    }
}

fn question(len: u32) -> Call {
    Call {
        head: Head::from_slice(&len.to_le_bytes()),
        land: Box::new(Heap(std::sync::mpsc::channel().0)).into(),
        lane: 0,
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

fn simulation(seed: u64) -> (Net, Box<dyn Listener>, Arc<dyn Peer>) {
    let net = Net::new(Time::Virtual, seed);
    net.set_default(Link { latency: MS, jitter: Duration::ZERO, bandwidth: 1_000_000_000 });
    let listener = net.node(OWNER).listen(&[(OWNER, 0).into()], Arc::new(Source::default())).unwrap();
    let peer = net.node(REQUESTER).connect(listener.contact(), far()).unwrap();
    (net, listener, peer)
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn bytes_take_their_time() {
    let (net, _listener, peer) = simulation(0);
    let begin = net.now();
    Arc::clone(&peer).request(question(0)).wait().unwrap();
    let round_trip = net.now() - begin;
    assert!(round_trip >= MS * 2 && round_trip < MS * 2 + MS / 10, "{round_trip:?}");

    let begin = net.now();
    let real = Instant::now();
    Arc::clone(&peer).request(question(50_000_000)).wait().unwrap();
    let took = net.now() - begin;
    assert!(took >= MS * 52 && took < MS * 53, "50 MB at 1 GB/s and a round trip: {took:?}");
    assert!(real.elapsed() < Duration::from_secs(10), "virtual time takes real time");
}

#[test]
fn links_differ_by_direction() {
    let (net, _listener, peer) = simulation(0);
    net.set_link(OWNER, REQUESTER, Link { latency: MS * 70, ..Link::default() });
    let begin = net.now();
    peer.request(question(0)).wait().unwrap();
    let took = net.now() - begin;
    assert!(took >= MS * 71 && took < MS * 72, "{took:?}");
}

#[test]
fn a_node_sends_one_byte_at_a_time() {
    let (net, listener, first) = simulation(0);
    let second = net.node(Ipv4Addr::new(10, 0, 0, 9)).connect(listener.contact(), far()).unwrap();
    let begin = net.now();
    let asked = [first, second].map(|peer| peer.request(question(10_000_000)));
    asked.into_iter().for_each(|one| drop(one.wait().unwrap()));
    let took = net.now() - begin;
    assert!(took >= MS * 22 && took < MS * 23, "twice 10 MB leave one node at 1 GB/s: {took:?}");
    assert!(net.traffic(OWNER).sent > 20_000_000 && net.traffic(OWNER).received < 1000);
    assert!(net.traffic(REQUESTER).received > 10_000_000 && net.traffic(REQUESTER).received < 10_001_000);
}

#[test]
fn deadlines_are_virtual() {
    let (net, _listener, peer) = simulation(0);
    let begin = net.now();
    let real = Instant::now();
    net.set_silence(Duration::from_secs(1000));
    net.cut(OWNER, REQUESTER);
    let error = peer.request(question(0)).deadline(Duration::from_secs(60)).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(net.now() - begin, Duration::from_secs(60));
    assert!(real.elapsed() < Duration::from_secs(30), "virtual time takes real time");
}

#[test]
fn silence_is_virtual() {
    let (net, _listener, peer) = simulation(0);
    net.set_silence(Duration::from_secs(7));
    let asked = Arc::clone(&peer).request(question(0));
    let begin = net.now();
    net.cut(REQUESTER, OWNER);
    assert_eq!(asked.wait().unwrap_err().kind(), ErrorKind::PeerDown);
    assert_eq!(net.now() - begin, Duration::from_secs(7));
    assert!(!peer.is_up());
}

#[test]
fn a_short_cut_only_delays() {
    let (net, _listener, peer) = simulation(0);
    let asked = Arc::clone(&peer).request(question(1000));
    net.cut(REQUESTER, OWNER);
    net.advance(Duration::from_secs(2));
    net.heal(REQUESTER, OWNER);
    net.advance(Duration::from_secs(9));
    assert!(peer.is_up());
    asked.wait().unwrap();
}

#[test]
fn what_nobody_can_end_is_told() {
    let (net, listener, peer) = simulation(0);
    struct Mute(Mutex<Vec<crate::fabric::Responder>>);
    impl Service for Mute {
        fn answer(&self, call: Incoming<'_>) {
            lock(&self.0).push(call.responder);
        }
    }
    let mute = net.node(OWNER).listen(&[(OWNER, 0).into()], Arc::new(Mute(Mutex::default()))).unwrap();
    assert_ne!(mute.contact(), listener.contact());
    let other = net.node(REQUESTER).connect(mute.contact(), far()).unwrap();
    assert_eq!(other.request(question(0)).wait().unwrap_err().kind(), ErrorKind::Timeout);
    drop(peer);
}

/// A cut in the middle of a transfer: some bytes are there, none is shown, and the memory comes back.
#[test]
fn a_cut_leaves_part_of_the_bytes() {
    let (net, _listener, peer) = simulation(0);
    let (sender, chosen) = std::sync::mpsc::channel();
    let call = Call { land: Box::new(Heap(sender)).into(), ..question(10_000_000) };
    let asked = peer.request(call);
    net.advance(MS * 2 + MS * 4);
    net.cut(OWNER, REQUESTER);
    assert_eq!(asked.wait().unwrap_err().kind(), ErrorKind::PeerDown);
    net.run();
    let (parts, lent) = chosen.recv().unwrap();
    assert_eq!(parts.join(Vec::new()).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(lent.strong_count(), 0);
}

#[test]
fn a_dead_node_is_down() {
    let (net, listener, peer) = simulation(0);
    net.kill(OWNER);
    assert_eq!(peer.request(question(0)).wait().unwrap_err().kind(), ErrorKind::PeerDown);
    let again = net.node(REQUESTER).connect(listener.contact(), far());
    assert_eq!(again.unwrap_err().kind(), ErrorKind::PeerDown);
}

/// The same seed gives the same run, and another one another.
#[test]
fn runs_are_reproducible() {
    let run = |seed| {
        let (net, _listener, peer) = simulation(seed);
        net.set_default(Link { jitter: MS, ..Link::default() });
        let asked: Vec<_> = (0..50).map(|i| Arc::clone(&peer).request(question(i % 3 * 100))).collect();
        for one in asked {
            one.deadline(Duration::from_secs(1)).wait().unwrap();
        }
        (net.now(), net.digest())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// Thousands of nodes, in little time: each asks the one that stands a binary digit before it.
#[test]
fn many_nodes() {
    let nodes: u32 = if cfg!(miri) { 64 } else { 4096 };
    let net = Net::new(Time::Virtual, 0);
    net.set_default(Link { latency: Duration::from_micros(2), jitter: Duration::ZERO, bandwidth: 1_000_000_000 });
    let host = |i: u32| Ipv4Addr::from_bits(0x0a00_0000 + i);
    let listen = |i| net.node(host(i)).listen(&[(host(i), 7000).into()], Arc::new(Source::default())).unwrap();
    let listeners: Vec<_> = (0..nodes).map(listen).collect();
    let begin = net.now();
    let mut width = 1;
    while width < nodes {
        let asked: Vec<_> = (width..(2 * width).min(nodes))
            .map(|i| {
                let peer = net.node(host(i)).connect(listeners[(i - width) as usize].contact(), far()).unwrap();
                peer.request(question(1000))
            })
            .collect();
        asked.into_iter().for_each(|one| drop(one.wait().unwrap()));
        width *= 2;
    }
    assert!(net.traffic(host(0)).sent < 20 * 1200, "the first node sends to 12 others: {:?}", net.traffic(host(0)));
    assert!(net.now() > begin);
}
