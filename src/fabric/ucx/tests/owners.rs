//! Owners that have the secret and speak UCX as they like.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use ucx_sys::{UCP_AM_SEND_FLAG_EAGER, UCP_AM_SEND_FLAG_RNDV};

use super::hostile::{Heap, MESSAGE, Raw, soon};
use super::identity;
use crate::error::{ErrorKind, Result};
use crate::fabric::handshake::Purpose;
use crate::fabric::tcp::{self, Tcp};
use crate::fabric::ucx::context::Context;
use crate::fabric::ucx::message::{Encoded, Hello, Kind, Message, Welcome};
use crate::fabric::ucx::worker::Worker;
use crate::fabric::ucx::{Options, Ucx, settings};
use crate::fabric::{Answer, Call, Fabric, Incoming, Listener, Parts, Peer, Responder, Service};
use crate::launch::Secret;
use crate::pending::Pending;
use crate::sync::lock;

/// A requester, and an owner that does what a test says.
struct Stage {
    requester: Ucx,
    secret: Arc<Secret>,
    raw: Raw,
    /// The requester's name for the puppet.
    token: u64,
    peer: Arc<dyn Peer>,
    _listener: Box<dyn Listener>,
}

/// How requesters name their connections, and where their workers are.
type Meets = mpsc::Receiver<(u64, Vec<u8>)>;

/// The control connection of a puppet.
struct Door {
    address: Vec<u8>,
    met: mpsc::Sender<(u64, Vec<u8>)>,
    watches: Option<Arc<Mutex<Vec<Responder>>>>,
}

impl Door {
    /// Leads to a worker; who comes in is told behind it.
    fn open(secret: &Arc<Secret>, address: Vec<u8>, lives: bool) -> (Box<dyn Listener>, Meets) {
        let (met, meets) = mpsc::channel();
        let door = Self { address, met, watches: lives.then(Arc::default) };
        let control = Tcp::new(identity(secret, 7), tcp::Options::default());
        let services: Vec<(Purpose, Arc<dyn Service>)> = vec![(Purpose::Ucx, Arc::new(door))];
        (control.listen_for(&["127.0.0.1:0".parse().unwrap()], services).unwrap(), meets)
    }
}

impl Service for Door {
    fn answer(&self, call: Incoming<'_>) {
        match Hello::decode(call.head).unwrap() {
            Hello::Meet { token, address } => {
                self.met.send((token, address)).unwrap();
                let welcome = Welcome::Meet { token: 5, address: self.address.clone() };
                call.responder.reply(welcome.encode(), Vec::new());
            }
            Hello::Hosts(_) => {
                let welcome = Welcome::Hosts(vec!["127.0.0.1".parse().unwrap()]);
                call.responder.reply(welcome.encode(), Vec::new());
            }
            Hello::Watch => {
                if let Some(watches) = &self.watches {
                    lock(watches).push(call.responder);
                }
            }
            hello @ Hello::Segment(_) => panic!("{hello:?}"),
        }
    }
}

impl Stage {
    /// An owner that shows that it lives, or gives up who asks for that.
    fn new(silence: Duration, lives: bool) -> Self {
        let secret = Arc::new(Secret::random());
        let options = Options { silence, devices: vec!["lo".to_owned()], ..Options::default() };
        let requester = Ucx::new(identity(&secret, 1), options).unwrap();
        let mut raw = Raw::new();
        let (listener, meets) = Door::open(&secret, raw.address(), lives);
        let peer = requester.connect(listener.contact(), soon()).unwrap();
        let (token, address) = meets.recv().unwrap();
        raw.connect(&address);
        Self { requester, secret, raw, token, peer, _listener: listener }
    }

    fn ask(&self) -> (Pending<Answer>, mpsc::Receiver<Parts>) {
        ask(&self.peer)
    }

    /// Sends what says this of an answer, before these bytes.
    fn send(&mut self, message: Message, head: &[u8], lengths: &[u64], bytes: &[u8], flags: u32) {
        let Encoded { header, prefix } = message.encode(head, lengths).unwrap();
        self.raw.send(MESSAGE, &header, &[&prefix[..], bytes].concat(), flags);
    }

    /// All that was sent is taken or refused.
    #[track_caller]
    fn all_taken(&mut self) {
        self.raw.progress(Duration::from_secs(10));
        assert_eq!(self.raw.open.len(), 0, "messages that are not taken");
    }
}

fn ask(peer: &Arc<dyn Peer>) -> (Pending<Answer>, mpsc::Receiver<Parts>) {
    let (sender, whole) = mpsc::channel();
    let call = Call { head: b"x".to_vec().into(), land: Box::new(Heap(sender)).into(), lane: 0 };
    (Arc::clone(peer).request(call).deadline(Duration::from_secs(10)), whole)
}

/// Waits on a thread, while this one is the owner.
fn waiting(asked: Pending<Answer>) -> std::thread::JoinHandle<Result<Answer>> {
    std::thread::spawn(|| asked.wait())
}

/// The number of a process's first call.
const FIRST: u64 = 1;

#[test]
fn an_owner_that_has_forgotten_a_connection_is_not_waited_for() {
    let stage = Stage::new(Duration::from_secs(2), false);
    let begun = Instant::now();
    let (asked, _) = stage.ask();
    assert_eq!(asked.wait().unwrap_err().kind(), ErrorKind::PeerDown);
    assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
    assert!(!stage.peer.is_up());
}

#[test]
fn an_owner_that_never_sends_what_it_announced_is_given_up_when_nobody_waits_for_it() {
    let mut stage = Stage::new(Duration::from_secs(2), true);
    let begun = Instant::now();
    let (asked, whole) = stage.ask();
    let asked = waiting(asked.deadline(Duration::from_secs(4)));
    stage.send(Message::apart(stage.token, FIRST, 1), b"", &[3, 1000], &[7; 3], UCP_AM_SEND_FLAG_EAGER);
    stage.all_taken();
    // It has come, and is waited for: longer than the owner may be silent.
    drop(whole.recv_timeout(Duration::from_secs(10)).unwrap());
    assert_eq!(asked.join().unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    assert!(stage.peer.is_up(), "given up while a call waited for it: {:?}", stage.ask().0.wait());
    while stage.peer.is_up() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is still waited for");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(begun.elapsed() >= Duration::from_secs(6), "given up after {:?}", begun.elapsed());
}

#[test]
#[ignore = "needs UCX 1.14: scripts/test ucx"]
fn an_owner_whose_ucx_does_not_answer_holds_nobody_up() {
    struct Echo;
    impl Service for Echo {
        fn answer(&self, call: Incoming<'_>) {
            call.responder.reply(call.head.to_vec(), Vec::new());
        }
    }
    let secret = Arc::new(Secret::random());
    let options = Options { devices: vec!["lo".to_owned()], ..Options::default() };
    let ucx = |instance| Ucx::new(identity(&secret, instance), options.clone()).unwrap();
    let (requester, honest) = (ucx(1), ucx(2));
    let listener = honest.listen(&["127.0.0.1:0".parse().unwrap()], Arc::new(Echo)).unwrap();
    // Nobody is let in, and nobody hears of it.
    let context = Arc::new(Context::new(&settings(&options)).unwrap());
    let mut deaf = Worker::new(&context).unwrap();
    let address = deaf.address().unwrap();
    let (door, _meets) = Door::open(&secret, address, true);
    let begun = Instant::now();
    let silent = requester.connect(door.contact(), soon()).unwrap();
    let asked = waiting(ask(&silent).0.deadline(Duration::from_secs(2)));
    let peer = requester.connect(listener.contact(), soon()).unwrap();
    assert_eq!(&ask(&peer).0.wait().unwrap().head[..], b"x");
    assert!(matches!(asked.join().unwrap().unwrap_err().kind(), ErrorKind::Timeout | ErrorKind::PeerDown));
    drop((silent, peer, requester));
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
}

#[test]
fn an_owner_does_not_end_the_calls_of_another() {
    struct Hold(Arc<Mutex<Vec<Responder>>>);
    impl Service for Hold {
        fn answer(&self, call: Incoming<'_>) {
            lock(&self.0).push(call.responder);
        }
    }
    let mut stage = Stage::new(Duration::from_secs(20), true);
    let options = Options { devices: vec!["lo".to_owned()], ..Options::default() };
    let honest = Ucx::new(identity(&stage.secret, 2), options).unwrap();
    let held: Arc<Mutex<Vec<Responder>>> = Arc::default();
    let listener = honest.listen(&["127.0.0.1:0".parse().unwrap()], Arc::new(Hold(Arc::clone(&held)))).unwrap();
    let peer = stage.requester.connect(listener.contact(), soon()).unwrap();
    let asked = waiting(ask(&peer).0);
    while lock(&held).is_empty() {
        std::thread::yield_now();
    }
    let message = |kind| Message::new(kind, stage.token, FIRST);
    let (answer, apart, refusal) = (message(Kind::Answer), message(Kind::Apart), message(Kind::Refusal));
    stage.send(answer, b"", &[5 << 20, 1], &vec![0; (5 << 20) + 1], UCP_AM_SEND_FLAG_RNDV);
    stage.send(answer, b"", &[2 << 20, 1], &vec![0; (2 << 20) + 1], UCP_AM_SEND_FLAG_RNDV);
    stage.send(refusal, b"", &[], b"", UCP_AM_SEND_FLAG_EAGER);
    stage.send(apart, b"", &[], b"", UCP_AM_SEND_FLAG_EAGER);
    // Its head is missing.
    let Encoded { header, prefix } = apart.encode(&[7; 1000], &[]).unwrap();
    stage.raw.send(MESSAGE, &header, &prefix[..500], UCP_AM_SEND_FLAG_EAGER);
    stage.send(Message::part(stage.token, FIRST, 0, 1), b"", &[], b"part", UCP_AM_SEND_FLAG_EAGER);
    stage.all_taken();
    std::thread::sleep(Duration::from_millis(100));
    assert!(!asked.is_finished(), "{:?}", asked.join());
    lock(&held).drain(..).for_each(|responder| responder.reply(b"mine".to_vec(), Vec::new()));
    assert_eq!(&asked.join().unwrap().unwrap().head[..], b"mine");
}

#[test]
fn parts_before_an_answer_that_has_none_are_refused() {
    let mut stage = Stage::new(Duration::from_secs(20), true);
    let (asked, whole) = stage.ask();
    let asked = waiting(asked);
    let bytes: Vec<u8> = (0..2 << 20).map(|i: usize| (i >> 4) as u8).collect();
    stage.send(Message::part(stage.token, FIRST, 3, 1), b"", &[], &vec![1; 1 << 20], UCP_AM_SEND_FLAG_RNDV);
    stage.send(Message::part(stage.token, FIRST, 0, 1), b"", &[], b"short", UCP_AM_SEND_FLAG_EAGER);
    let answer = Message::new(Kind::Answer, stage.token, FIRST);
    stage.send(answer, b"head", &[bytes.len() as u64], &bytes, UCP_AM_SEND_FLAG_RNDV);
    stage.all_taken();
    let answer = asked.join().unwrap().unwrap();
    assert_eq!(&answer.head[..], b"head");
    assert_eq!(whole.recv().unwrap().join(answer.parts).unwrap().as_slice(), bytes);
}

#[test]
fn parts_come_with_their_answer_and_together_before_it_and_behind_it() {
    let lengths = [3, 0, 1000, 5];
    let bytes: Vec<u8> = (0..1008usize).map(|i| i as u8).collect();
    let apart = |stage: &Stage| Message::apart(stage.token, FIRST, 2);
    let behind = |stage: &Stage| Message::part(stage.token, FIRST, 2, 2);
    let whole = |order: &[bool]| {
        let mut stage = Stage::new(Duration::from_secs(20), true);
        let (asked, whole) = stage.ask();
        let asked = waiting(asked);
        for is_answer in order {
            match is_answer {
                true => stage.send(apart(&stage), b"head", &lengths, &bytes[..3], UCP_AM_SEND_FLAG_EAGER),
                false => stage.send(behind(&stage), b"", &[], &bytes[3..], UCP_AM_SEND_FLAG_EAGER),
            }
        }
        stage.all_taken();
        let answer = asked.join().unwrap().unwrap();
        assert_eq!(&answer.head[..], b"head");
        assert_eq!(whole.recv().unwrap().join(answer.parts).unwrap().as_slice(), bytes);
    };
    whole(&[true, false]);
    whole(&[false, true]);
}

#[test]
fn parts_that_do_not_fit_their_answer_are_corrupt() {
    let lengths = [3, 0, 1000, 5];
    let bytes = [7; 1020];
    for (index, here, len) in [(2, 2, 1004), (2, 2, 1006), (1, 2, 1003), (2, 3, 1005), (2, 1, 1005)] {
        let mut stage = Stage::new(Duration::from_secs(20), true);
        let asked = waiting(stage.ask().0);
        stage.send(Message::apart(stage.token, FIRST, 2), b"", &lengths, &bytes[..3], UCP_AM_SEND_FLAG_EAGER);
        let message = Message::part(stage.token, FIRST, index, here);
        stage.send(message, b"", &[], &bytes[..len], UCP_AM_SEND_FLAG_EAGER);
        stage.all_taken();
        assert_eq!(asked.join().unwrap().unwrap_err().kind(), ErrorKind::Corrupt, "{here} from {index}: {len}");
    }
    for len in [2, 4] {
        let mut stage = Stage::new(Duration::from_secs(20), true);
        let asked = waiting(stage.ask().0);
        stage.send(Message::apart(stage.token, FIRST, 2), b"", &lengths, &bytes[..len], UCP_AM_SEND_FLAG_EAGER);
        stage.all_taken();
        assert_eq!(asked.join().unwrap().unwrap_err().kind(), ErrorKind::Corrupt, "with the answer: {len}");
    }
}

#[test]
fn answers_of_other_lengths_than_they_say_are_corrupt() {
    // Fetched, by itself and apart, and copied.
    for (announced, apart, flag) in [
        (1 << 20, false, UCP_AM_SEND_FLAG_RNDV),
        (1 << 20, true, UCP_AM_SEND_FLAG_RNDV),
        (100, false, UCP_AM_SEND_FLAG_EAGER),
        (100, true, UCP_AM_SEND_FLAG_EAGER),
    ] {
        let mut stage = Stage::new(Duration::from_secs(20), true);
        let asked = waiting(stage.ask().0);
        let bytes = vec![0; announced as usize + 1];
        let kind = if apart { Kind::Apart } else { Kind::Answer };
        let answer = Message::new(kind, stage.token, FIRST);
        if apart {
            stage.send(answer, b"", &[announced], b"", UCP_AM_SEND_FLAG_EAGER);
            stage.send(Message::part(stage.token, FIRST, 0, 1), b"", &[], &bytes, flag);
        } else {
            stage.send(answer, b"", &[announced], &bytes, flag);
        }
        stage.all_taken();
        assert_eq!(asked.join().unwrap().unwrap_err().kind(), ErrorKind::Corrupt, "{announced}, apart: {apart}");
    }
}
