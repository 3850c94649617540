//! Reading an owner's memory, which needs a UCX that can be told not to emulate it, and something that does it here: cma.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hostile::soon;
use super::identity;
use crate::error::{ErrorKind, Result};
use crate::fabric::handshake::Purpose;
use crate::fabric::tcp::{self, Tcp};
use crate::fabric::ucx::greeting;
use crate::fabric::ucx::message::{Hello, Welcome};
use crate::fabric::ucx::reader::{Reader, Reading};
use crate::fabric::ucx::{OneSided, Options, Ucx};
use crate::fabric::{Fabric, Incoming, Landing, Listener, Peer, Segment, Segments, Service, Spot};
use crate::launch::Secret;
use crate::region::RegionMut;

/// Segment 3 of an owner.
struct Memory(Vec<u8>);

impl Segments for Memory {
    fn segment_of(&self, address: usize) -> Option<Segment> {
        self.numbered(NUMBER).filter(|segment| segment.addresses.contains(&address))
    }

    fn numbered(&self, number: u16) -> Option<Segment> {
        let start = self.0.as_ptr().expose_provenance();
        (number == NUMBER).then(|| Segment { addresses: start..start + self.0.len(), views: None })
    }
}

const NUMBER: u16 = 3;

/// Is never asked.
struct Nobody;

impl Service for Nobody {
    fn answer(&self, _: Incoming<'_>) {
        panic!("a question");
    }
}

/// What is in that segment.
fn content() -> Vec<u8> {
    (0..4 << 20).map(|i: usize| (i.wrapping_mul(31) ^ (i >> 9)) as u8).collect()
}

fn options(transports: &str, one_sided: OneSided) -> Options {
    let transports = Some(transports.to_owned());
    Options { devices: vec!["lo".to_owned()], transports, one_sided, ..Options::default() }
}

/// An owner of memory, which listens.
fn owner(secret: &Arc<Secret>) -> Box<dyn Listener> {
    let owner = Ucx::new(identity(secret, 2), options(ALL, OneSided::Off)).unwrap();
    owner.register(Arc::new(Memory(content())));
    owner.listen(&["127.0.0.1:0".parse().unwrap()], Arc::new(Nobody)).unwrap()
}

struct Site {
    peer: Arc<dyn Peer>,
    _requester: Ucx,
    _listener: Box<dyn Listener>,
}

impl Site {
    fn new(one_sided: OneSided) -> Self {
        let secret = Arc::new(Secret::random());
        let listener = owner(&secret);
        let requester = Ucx::new(identity(&secret, 1), options(ALL, one_sided)).unwrap();
        let peer = requester.connect(listener.contact(), soon()).unwrap();
        Self { peer, _requester: requester, _listener: listener }
    }

    fn read(&self, segment: u16, offset: u64, len: usize) -> Result<Vec<u8>> {
        read(len, |into| self.peer.read(Spot { segment, offset }, into, soon()))
    }
}

fn read(len: usize, by: impl FnOnce(Landing) -> Result<Landing>) -> Result<Vec<u8>> {
    Ok(by(Landing::whole(RegionMut::heap(len)?, len)?)?.into_room()?.as_slice().to_vec())
}

const ALL: &str = "tcp,sysv,cma";

#[test]
fn what_would_be_emulated_is_not_used() {
    // Each for its own reason: the version, or the transports.
    let secret = Arc::new(Secret::random());
    let error = Ucx::new(identity(&secret, 1), options("tcp,sysv", OneSided::On)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.context().contains("1.21") || error.context().contains("tcp,sysv"), "{error}");
    let listener = owner(&secret);
    for one_sided in [OneSided::Auto, OneSided::Off] {
        let requester = Ucx::new(identity(&secret, 1), options("tcp,sysv", one_sided)).unwrap();
        let peer = requester.connect(listener.contact(), soon()).unwrap();
        assert!(!peer.reads());
        let refused = read(8, |into| peer.read(Spot { segment: NUMBER, offset: 0 }, into, soon())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
    }
}

#[test]
#[ignore = "needs UCX 1.21: scripts/test ucx"]
fn memory_is_read_without_its_owner() {
    for one_sided in [OneSided::On, OneSided::Auto] {
        let (site, content) = (Site::new(one_sided), content());
        assert!(site.peer.reads());
        for (offset, len) in [(0, 1), (64, 100), (4096, 65536), (1 << 20, 3 << 20), ((4 << 20) - 8, 8)] {
            let bytes = site.read(NUMBER, offset as u64, len).unwrap();
            assert!(bytes == content[offset..offset + len], "{offset} {len}");
        }
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (site, content) = (&site, &content);
                scope.spawn(move || {
                    for round in 0..200 {
                        let offset = (thread * 131_072 + round * 64) % (3 << 20);
                        let bytes = site.read(NUMBER, offset as u64, 70_000).unwrap();
                        assert!(bytes == content[offset..offset + 70_000]);
                    }
                });
            }
        });
    }
}

#[test]
#[ignore = "needs UCX 1.21: scripts/test ucx"]
fn places_that_there_are_not_are_not_read() {
    let len = 4 << 20;
    for (segment, offset, count) in [(NUMBER, len - 7, 8), (NUMBER, u64::MAX - 3, 8), (NUMBER + 1, 0, 8)] {
        let site = Site::new(OneSided::On);
        assert!(site.read(NUMBER, 0, 8).is_ok());
        assert_eq!(site.read(segment, offset, count).unwrap_err().kind(), ErrorKind::Unavailable);
        // The connection is one on which nothing is read any more.
        assert!(!site.peer.reads() && site.peer.is_up());
        assert_eq!(site.read(NUMBER, 0, 8).unwrap_err().kind(), ErrorKind::Unavailable);
    }
}

/// UCX would do it by a message that the owner's process answers, and checks nothing: it has to say that it cannot.
#[test]
#[ignore = "needs UCX 1.21: scripts/test ucx"]
fn nothing_is_emulated() {
    for transports in ["sysv", "tcp"] {
        let secret = Arc::new(Secret::random());
        let listener = owner(&secret);
        let requester = Ucx::new(identity(&secret, 1), options(ALL, OneSided::Off)).unwrap();
        let control = requester.control.control(Purpose::Ucx, listener.contact(), soon()).unwrap();
        let hosts = greeting::hosts(&control, listener.contact(), soon()).unwrap();
        let (link, address) = requester.driver().unwrap().meet(Arc::clone(&control), hosts, soon()).unwrap();
        let reader = Reader::over_these(&options(ALL, OneSided::On), &[transports]).unwrap();
        let reading = Reading::new(reader, link, address, control);
        let begun = Instant::now();
        let refused = read(8, |into| reading.read(Spot { segment: NUMBER, offset: 0 }, into, soon())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{transports}: {refused}");
        assert!(begun.elapsed() < Duration::from_secs(4) && !reading.is_possible(), "{transports}");
    }
}

/// An owner that has the secret, and says of its memory what it likes.
#[test]
#[ignore = "needs UCX 1.21: scripts/test ucx"]
fn owners_that_describe_nothing_are_asked_by_questions() {
    struct Liar(Vec<u8>);
    impl Service for Liar {
        fn answer(&self, call: Incoming<'_>) {
            match Hello::decode(call.head).unwrap() {
                Hello::Segment(_) => call.responder.reply(self.0.clone(), Vec::new()),
                hello => panic!("{hello:?}"),
            }
        }
    }
    let meet = Welcome::Meet { token: 1, address: vec![1; 100] }.encode();
    for answer in [Vec::new(), vec![3; 10], vec![3; 200], meet, Welcome::Refused("no".to_owned()).encode()] {
        let secret = Arc::new(Secret::random());
        let listening = Tcp::new(identity(&secret, 7), tcp::Options::default());
        let services: Vec<(Purpose, Arc<dyn Service>)> = vec![(Purpose::Ucx, Arc::new(Liar(answer)))];
        let listener = listening.listen_for(&["127.0.0.1:0".parse().unwrap()], services).unwrap();
        let control = Tcp::new(identity(&secret, 1), tcp::Options::default());
        let control = control.control(Purpose::Ucx, listener.contact(), soon()).unwrap();
        let reader = Reader::new(&options(ALL, OneSided::On)).unwrap();
        let reading = Reading::new(reader, 1, vec![1; 100], control);
        let refused = read(8, |into| reading.read(Spot { segment: 0, offset: 0 }, into, soon()));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(!reading.is_possible());
    }
}
