//! Answers that nobody takes, or that nobody wants any more.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ucx_sys::UCP_AM_SEND_FLAG_EAGER;

use super::hostile::{Heap, MESSAGE, Raw, soon};
use super::identity;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::handshake::Purpose;
use crate::fabric::tcp::{self, Tcp};
use crate::fabric::ucx::message::{ENDED, Encoded, Hello, Kind, Message, Welcome};
use crate::fabric::ucx::{Options, Ucx};
use crate::fabric::{Call, Fabric, Incoming, Land, Landing, Listener, Peer, Responder, Service};
use crate::launch::Secret;
use crate::sync::lock;

/// Answers `N` with a part of so many MiB, `N and M` with two, `late and N` after a while, any other question with a long head and 6 MiB.
#[derive(Default)]
struct Large {
    sent: AtomicUsize,
    released: Arc<AtomicUsize>,
    /// Parts that were not released yet, at most.
    most: AtomicUsize,
}

impl Service for Large {
    fn answer(&self, call: Incoming<'_>) {
        struct Counted(Vec<u8>, Arc<AtomicUsize>);
        impl AsRef<[u8]> for Counted {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        impl Drop for Counted {
            fn drop(&mut self) {
                self.1.fetch_add(1, SeqCst);
            }
        }
        let text = String::from_utf8_lossy(call.head).into_owned();
        if text.starts_with("late") {
            std::thread::sleep(Duration::from_millis(300));
        }
        let mut parts: Vec<Bytes> = Vec::new();
        for size in text.split(" and ").filter_map(|size| size.parse::<usize>().ok()) {
            let sent = self.sent.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(sent - self.released.load(SeqCst), SeqCst);
            parts.push(Bytes::from_owner(Counted(vec![size as u8; size << 20], Arc::clone(&self.released))));
        }
        match parts.is_empty() {
            true => call.responder.reply(vec![b'h'; 3000], vec![vec![6; 6 << 20].into()]),
            false => call.responder.reply(text.into_bytes(), parts),
        }
    }
}

struct Site {
    service: Arc<Large>,
    secret: Arc<Secret>,
    listener: Box<dyn Listener>,
    peer: Arc<dyn Peer>,
}

fn site(silence: Duration, held: usize) -> Site {
    site_of(Options { silence, held, ..Options::default() })
}

fn site_of(options: Options) -> Site {
    let secret = Arc::new(Secret::random());
    let options = Options { devices: vec!["lo".to_owned()], ..options };
    let ucx = |instance| Ucx::new(identity(&secret, instance), options.clone()).unwrap();
    let service = Arc::new(Large::default());
    let listener = ucx(2).listen(&["127.0.0.1:0".parse().unwrap()], Arc::clone(&service) as _).unwrap();
    let peer = ucx(1).connect(listener.contact(), soon()).unwrap();
    Site { service, secret, listener, peer }
}

impl Site {
    #[track_caller]
    fn assert_answers(&self, text: &str, head: &[u8], bytes: &[u8]) {
        let (sender, whole) = mpsc::channel();
        let call = Call { head: text.as_bytes().to_vec().into(), land: Box::new(Heap(sender)).into(), lane: 0 };
        let answer = Arc::clone(&self.peer).request(call).deadline(Duration::from_secs(10)).wait().unwrap();
        assert_eq!(&answer.head[..], head);
        assert!(whole.recv().unwrap().join(answer.parts).unwrap().as_slice() == bytes);
    }

    /// What was sent is released by what the requester does, well before the owner takes it for one that does not read.
    #[track_caller]
    fn assert_released(&self, limit: Duration) {
        let begun = Instant::now();
        while self.service.released.load(SeqCst) < self.service.sent.load(SeqCst) {
            assert!(begun.elapsed() < limit, "answers are not released within {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Refuses all answers.
struct Nowhere;

impl Land for Nowhere {
    fn land(&mut self, _: &[u8], _: &[u64]) -> Result<Vec<Landing>> {
        Err(Error::new(ErrorKind::NoSpace, "get", "there is no room"))
    }
}

#[test]
fn an_answer_that_nobody_wants_any_more_is_taken() {
    let site = site(Duration::from_secs(6), 100);
    site.assert_answers("1", b"1", &vec![1; 1 << 20]);
    for text in ["3", "2 and 3"] {
        let before = site.service.sent.load(SeqCst);
        let asked =
            Arc::clone(&site.peer).request(Call { land: Box::new(Nowhere).into(), ..Call::small(text.as_bytes()) });
        while site.service.sent.load(SeqCst) == before {
            std::thread::yield_now();
        }
        // It is on its way, and nobody has looked for it.
        std::thread::sleep(Duration::from_millis(100));
        drop(asked);
        site.assert_released(Duration::from_secs(4));
    }
    site.assert_answers("1", b"1", &vec![1; 1 << 20]);
}

#[test]
fn an_answer_for_which_there_is_no_room_is_taken() {
    let site = site(Duration::from_secs(6), 100);
    for text in ["3", "2 and 3", "1 and 9 and 9"] {
        let asked =
            Arc::clone(&site.peer).request(Call { land: Box::new(Nowhere).into(), ..Call::small(text.as_bytes()) });
        assert_eq!(asked.wait().unwrap_err().kind(), ErrorKind::NoSpace);
        site.assert_released(Duration::from_secs(4));
    }
    site.assert_answers("1", b"1", &vec![1; 1 << 20]);
}

#[test]
fn a_large_part_behind_a_long_head_arrives() {
    let site = site(Duration::from_secs(20), 100);
    site.assert_answers("a long head", &[b'h'; 3000], &vec![6; 6 << 20]);
}

#[test]
fn who_asks_and_takes_nothing_is_given_up() {
    let site = site(Duration::from_secs(60), 50);
    let mut slow = Slow::of(&site);
    let watch = Arc::clone(&slow.control).request(Call::small(Hello::Watch.encode()));
    slow.ask(1, "1");
    slow.raw.progress(Duration::from_secs(5));
    (2..150).for_each(|number| slow.ask(number, "1"));
    let end = watch.deadline(Duration::from_secs(15)).wait();
    assert_eq!(&end.unwrap().head[..], ENDED);
    drop(slow);
    site.assert_released(Duration::from_secs(10));
    site.assert_answers("1", b"1", &vec![1; 1 << 20]);
}

/// A requester that says what it likes, and fetches nothing until it is told to.
struct Slow {
    raw: Raw,
    token: u64,
    control: Arc<dyn Peer>,
}

impl Slow {
    fn of(site: &Site) -> Self {
        let mut raw = Raw::new();
        raw.taken.leaves.store(true, SeqCst);
        let control = Tcp::new(identity(&site.secret, 7), tcp::Options::default());
        let control = control.control(Purpose::Ucx, site.listener.contact(), soon()).unwrap();
        let hello = Hello::Meet { token: 9, address: raw.address() };
        let answer = Arc::clone(&control).request(Call::small(hello.encode())).wait().unwrap();
        let Welcome::Meet { token, address } = Welcome::decode(&answer.head).unwrap() else { panic!("refused") };
        raw.connect(&address);
        Self { raw, token, control }
    }

    fn say(&mut self, kind: Kind, number: u64, head: &str) {
        let Encoded { header, .. } = Message::new(kind, self.token, number).encode(head.as_bytes(), &[]).unwrap();
        self.raw.send(MESSAGE, &header, b"", UCP_AM_SEND_FLAG_EAGER);
    }

    fn ask(&mut self, number: u64, head: &str) {
        self.say(Kind::Ask, number, head);
    }

    /// So many answers came, or their bytes could be fetched, and no more do for a while.
    #[track_caller]
    fn assert_answers(&mut self, count: usize) {
        let mut last = (0, Instant::now());
        self.raw.until(Duration::from_secs(10), |raw| {
            let heard = raw.heard(Kind::Answer);
            if heard != last.0 {
                last = (heard, Instant::now());
            }
            heard >= count && last.1.elapsed() > Duration::from_millis(500)
        });
        assert_eq!(last.0, count);
    }
}

/// Options of an owner that lets a requester leave four answers of 1 MiB unread, and no fifth.
fn four() -> Options {
    Options { silence: Duration::from_secs(60), queued: (7 << 20) / 2, ..Options::default() }
}

#[test]
fn questions_wait_until_answers_are_read() {
    let site = site_of(four());
    let mut slow = Slow::of(&site);
    // Behind the first the owner finds all the others at once.
    slow.ask(1, "late and 1");
    (2..=20).for_each(|number| slow.ask(number, "1"));
    slow.assert_answers(4);
    assert_eq!(site.service.sent.load(SeqCst), 4, "questions that the service has seen");
    // Others are not in its way, nor it in theirs.
    site.assert_answers("5", b"5", &vec![5; 5 << 20]);
    slow.raw.take_all();
    slow.raw.until(Duration::from_secs(10), |raw| raw.heard(Kind::Answer) == 20);
    assert_eq!(site.service.sent.load(SeqCst), 21);
    assert!(site.service.most.load(SeqCst) <= 5, "{} answers at once", site.service.most.load(SeqCst));
    site.assert_released(Duration::from_secs(10));
    // Nor is what is larger than all that may wait left out.
    slow.ask(21, "9");
    slow.ask(22, "9");
    slow.raw.until(Duration::from_secs(10), |raw| raw.heard(Kind::Answer) == 22);
}

#[test]
fn a_question_that_waits_can_be_abandoned() {
    let site = site_of(four());
    let mut slow = Slow::of(&site);
    (1..=8).for_each(|number| slow.ask(number, "1"));
    slow.assert_answers(4);
    slow.say(Kind::Abandon, 5, "");
    slow.say(Kind::Abandon, 8, "");
    slow.raw.until(Duration::from_secs(10), |raw| raw.heard(Kind::Refusal) == 2);
    slow.raw.take_all();
    slow.assert_answers(6);
    assert_eq!(site.service.sent.load(SeqCst), 6, "questions that the service has seen");
}

#[test]
fn questions_that_wait_end_with_their_requester() {
    let site = site_of(four());
    let mut slow = Slow::of(&site);
    (1..=20).for_each(|number| slow.ask(number, "1"));
    slow.assert_answers(4);
    slow.control.close();
    slow.assert_answers(4);
    // What it fetches now ends, and makes no room.
    slow.raw.take_all();
    site.assert_released(Duration::from_secs(10));
    site.assert_answers("1", b"1", &vec![1; 1 << 20]);
    assert_eq!(site.service.sent.load(SeqCst), 5, "questions that the service has seen");
}

#[test]
fn questions_that_wait_are_so_many_at_most() {
    let site = site_of(Options { held: 6, ..four() });
    let mut slow = Slow::of(&site);
    (1..=4).for_each(|number| slow.ask(number, "1"));
    slow.assert_answers(4);
    (5..=12).for_each(|number| slow.ask(number, "1"));
    slow.raw.until(Duration::from_secs(10), |raw| raw.heard(Kind::Refusal) == 2);
    slow.raw.take_all();
    slow.assert_answers(10);
    assert_eq!(site.service.sent.load(SeqCst), 10);
}

#[test]
fn so_many_bytes_are_on_their_way_at_once() {
    let site = site_of(Options { silence: Duration::from_secs(60), flying: (5 << 20) / 2, ..Options::default() });
    let mut slow = Slow::of(&site);
    (1..=8).for_each(|number| slow.ask(number, "1"));
    slow.assert_answers(2);
    assert_eq!(site.service.sent.load(SeqCst), 8, "questions that the service has seen");
    slow.raw.take_all();
    slow.raw.until(Duration::from_secs(10), |raw| raw.heard(Kind::Answer) == 8);
    // The only one may be larger.
    slow.ask(9, "3");
    slow.raw.until(Duration::from_secs(10), |raw| raw.heard(Kind::Answer) == 9);
    site.assert_released(Duration::from_secs(10));
}

#[test]
fn a_service_that_holds_answers_ends_with_its_listener() {
    #[derive(Default)]
    struct Hold(Mutex<Vec<Responder>>);
    impl Service for Hold {
        fn answer(&self, call: Incoming<'_>) {
            lock(&self.0).push(call.responder);
        }
    }
    let secret = Arc::new(Secret::random());
    let options = Options { devices: vec!["lo".to_owned()], ..Options::default() };
    let ucx = |instance| Ucx::new(identity(&secret, instance), options.clone()).unwrap();
    let service = Arc::new(Hold::default());
    let listener = ucx(2).listen(&["127.0.0.1:0".parse().unwrap()], Arc::clone(&service) as _).unwrap();
    let peer = ucx(1).connect(listener.contact(), soon()).unwrap();
    let asked = Arc::clone(&peer).request(Call::small(b"x".to_vec()));
    while lock(&service.0).is_empty() {
        std::thread::yield_now();
    }
    let held = Arc::downgrade(&service);
    drop((service, listener));
    assert_eq!(asked.wait().unwrap_err().kind(), ErrorKind::PeerDown);
    assert_eq!(held.strong_count(), 0);
}
