//! Ends, silence and stops: who notices what, and when.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::fabric::handshake::{Handshake, Purpose};
use crate::fabric::tcp::frame::{Decoder, Frame, Kind, encode};

const SILENCE: Duration = Duration::from_millis(400);

/// What a busy machine adds to it.
const SLACK: Duration = Duration::from_secs(5);

/// For owners that are silent.
fn strict() -> Options {
    Options { silence: SILENCE, ..options() }
}

/// For those that live, whose threads get their turn late on a busy machine.
fn patient() -> Options {
    Options { silence: Duration::from_secs(1), ..options() }
}

/// For ends that are told: silence would tell them much later.
fn long() -> Options {
    Options { silence: SLACK * 4, ..options() }
}

/// An owner that proves itself and then does what a test wants.
pub(super) fn puppet(site: &Site, behave: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let contact = listener.local_addr().unwrap();
    let identity = identity(&site.secret, 7);
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut handshake = Handshake::answer(&identity, &[Purpose::Tcp]);
        while handshake.proven().is_none() {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            handshake.input(&byte).unwrap();
            stream.write_all(&handshake.output()).unwrap();
        }
        behave(stream);
    });
    contact
}

/// The next frame that a requester sent.
pub(super) fn next_frame(stream: &mut TcpStream, decoder: &mut Decoder) -> Frame {
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        if let Some(frame) = decoder.take(&mut &byte[..]).unwrap() {
            return frame;
        }
    }
}

pub(super) fn reach(site: &Site, contact: SocketAddr) -> Arc<dyn Peer> {
    site.requester.connect(contact, soon()).unwrap()
}

#[test]
fn a_silent_owner_is_down_for_threads() {
    let site = Site::new(strict());
    let contact = puppet(&site, |stream| {
        std::thread::sleep(Duration::from_secs(30));
        drop(stream);
    });
    let peer = reach(&site, contact);
    let begun = Instant::now();
    let others = ask(&peer, "echo others");
    assert_eq!(kind(ask(&peer, "echo x").wait()), ErrorKind::PeerDown);
    let took = begun.elapsed();
    assert!(took >= SILENCE && took < SILENCE + SLACK, "{took:?}");
    assert_eq!(kind(others.wait()), ErrorKind::PeerDown);
    assert!(!peer.is_up());
}

#[test]
fn a_silent_owner_is_down_for_tasks() {
    let site = Site::new(strict());
    let contact = puppet(&site, |stream| {
        std::thread::sleep(Duration::from_secs(30));
        drop(stream);
    });
    let peer = reach(&site, contact);
    let begun = Instant::now();
    assert_eq!(kind(futures::executor::block_on(ask(&peer, "echo x"))), ErrorKind::PeerDown);
    let took = begun.elapsed();
    assert!(took >= SILENCE && took < SILENCE + SLACK, "{took:?}");
}

#[test]
fn an_owner_that_stops_in_the_middle_is_down() {
    let site = Site::new(strict());
    let contact = puppet(&site, |mut stream| {
        let asked = next_frame(&mut stream, &mut Decoder::default());
        stream.write_all(&encode(Kind::Answer, asked.number, b"", &[100_000], None).unwrap()).unwrap();
        stream.write_all(&[0; 50_000]).unwrap();
        std::thread::sleep(Duration::from_secs(30));
    });
    let peer = reach(&site, contact);
    assert_eq!(kind(ask(&peer, "send 100000").wait()), ErrorKind::PeerDown);
}

#[test]
fn an_answer_may_be_held_for_long() {
    std::thread::scope(|scope| {
        for by_task in [false, true] {
            scope.spawn(move || {
                let site = Site::new(patient());
                let asked = ask(&site.peer(), "hold it");
                let waiter =
                    std::thread::spawn(move || if by_task { futures::executor::block_on(asked) } else { asked.wait() });
                let held = site.echo.release("it");
                std::thread::sleep(site.options.silence * 3);
                assert!(held.is_wanted());
                held.reply(b"at last".to_vec(), Vec::new());
                assert_eq!(waiter.join().unwrap().unwrap().0, b"at last");
            });
        }
    });
}

#[test]
fn an_idle_connection_stays() {
    let site = Site::new(patient());
    let peer = site.peer();
    assert_eq!(echo(&peer, "first").unwrap(), "first");
    std::thread::sleep(site.options.silence * 3);
    assert!(peer.is_up());
    assert_eq!(echo(&peer, "second").unwrap(), "second");
}

#[test]
fn the_end_of_an_idle_connection_is_noticed() {
    let mut site = Site::new(long());
    let peer = site.peer();
    site.listener = None;
    eventually("the peer is down", || !peer.is_up());
    assert_eq!(kind(echo(&peer, "x")), ErrorKind::PeerDown);
}

#[test]
fn a_listener_that_ends_ends_held_answers() {
    let mut site = Site::new(long());
    let peer = site.peer();
    let asked = ask(&peer, "hold it");
    let held = site.echo.release("it");
    site.listener = None;
    let begun = Instant::now();
    assert_eq!(kind(asked.wait()), ErrorKind::PeerDown);
    assert!(begun.elapsed() < SLACK);
    assert!(!held.is_wanted());
    held.reply(b"too late".to_vec(), vec![pattern(100)]);
    let late = site.requester.connect(site.contact, soon());
    assert_eq!(kind(late), ErrorKind::PeerDown);
}

/// A service may be killed while it accepts, long after somebody began to connect, and is back in a moment.
#[test]
fn an_owner_that_ends_in_a_long_handshake_is_met_when_it_is_back() {
    let mut site = Site::new(options());
    site.listener = None;
    let contact = site.contact;
    let (secret, service) = (Arc::clone(&site.secret), Arc::clone(&site.echo));
    let slow = TcpListener::bind(contact).unwrap();
    let back = std::thread::spawn(move || {
        let (stream, _) = slow.accept().unwrap();
        std::thread::sleep(Duration::from_secs(2));
        drop((slow, stream));
        std::thread::sleep(Duration::from_millis(100));
        Tcp::new(identity(&secret, 2), options()).listen(&[contact], service).unwrap()
    });
    let peer = reach(&site, contact);
    assert_eq!(echo(&peer, "x").unwrap(), "x");
    drop(back.join().unwrap());
}

#[test]
fn closing_ends_what_is_open() {
    let site = Site::new(long());
    let peer = site.peer();
    let asked = ask(&peer, "hold it");
    let held = site.echo.release("it");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| asked.wait());
        std::thread::sleep(Duration::from_millis(20));
        peer.close();
        assert_eq!(kind(waiter.join().unwrap()), ErrorKind::PeerDown);
    });
    assert!(!peer.is_up());
    eventually("the owner knows", || !held.is_wanted());
}

#[test]
fn a_reset_in_the_middle_is_down() {
    for sent in [0, 20, 60, 10_000] {
        let site = Site::new(long());
        let contact = puppet(&site, move |mut stream| {
            let asked = next_frame(&mut stream, &mut Decoder::default());
            let mut answer = encode(Kind::Answer, asked.number, b"head", &[100_000], None).unwrap();
            answer.resize(100_000, 1);
            stream.write_all(&answer[..sent]).unwrap();
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        });
        let begun = Instant::now();
        assert_eq!(kind(ask(&reach(&site, contact), "send 100000").wait()), ErrorKind::PeerDown);
        assert!(begun.elapsed() < SLACK, "{sent}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_requester_that_does_not_read_is_closed_and_others_are_served() {
    let site = Site::new(Options { queued: 4 << 20, ..patient() });
    let stuck = proved(&site);
    *lock(&site.echo.content) = pattern(16 << 20);
    for number in 1..=20 {
        (&stuck).write_all(&encode(Kind::Ask, number, b"send 16777216", &[], None).unwrap()).unwrap();
    }
    eventually("the first question is read", || site.echo.asked.load(SeqCst) > 0);
    // One answer is beyond the cap, so that the others are not even looked at.
    let peer = site.peer();
    assert_eq!(echo(&peer, "others").unwrap(), "others");
    assert_eq!(site.echo.asked.load(SeqCst), 2);
    let content = site.echo.content.lock().unwrap().clone();
    eventually("the connection is closed", || established(site.contact) == 1);
    *lock(&site.echo.content) = Bytes::new();
    // Unique again: no answer holds it any more.
    eventually("what it pinned is released", || content.is_unique());
    drop(stuck);
}

#[test]
fn a_slow_requester_is_served_to_the_end() {
    let silence = Duration::from_millis(1500);
    let site = Site::new(Options { queued: 1 << 20, silence, ..options() });
    let mut slow = proved(&site);
    *lock(&site.echo.content) = pattern(4 << 20);
    for number in 1..=3 {
        slow.write_all(&encode(Kind::Ask, number, b"send 4194304", &[], None).unwrap()).unwrap();
    }
    let mut left = 3 * ((4 << 20) + encode(Kind::Answer, 1, b"send 4194304", &[1], None).unwrap().len());
    let begun = Instant::now();
    while left > 0 {
        std::thread::sleep(Duration::from_millis(12));
        let got = slow.read(&mut vec![0; 64 << 10]).unwrap();
        assert!(got > 0, "it was closed with {left} bytes to come");
        left -= got;
    }
    assert!(begun.elapsed() > silence, "it was slower than the limit of silence");
    assert_eq!(site.echo.asked.load(SeqCst), 3);
}

/// A requester's connection, proved, in the hands of a test.
pub(super) fn proved(site: &Site) -> TcpStream {
    use crate::fabric::handshake::Stream;
    let mut stream = TcpStream::connect(site.contact).unwrap();
    let lane = Stream { purpose: Purpose::Tcp, lane: 0, silence: site.options.silence };
    let mut handshake = Handshake::request(&identity(&site.secret, 9), lane);
    stream.write_all(&handshake.output()).unwrap();
    while handshake.proven().is_none() {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        handshake.input(&byte).unwrap();
        stream.write_all(&handshake.output()).unwrap();
    }
    stream
}
