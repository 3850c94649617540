//! The fabric over the Margo of this machine: `PROXYSTORE_MARGO_LIB=... cargo test --all-features --lib -- --ignored margo`.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::channel;
use std::time::Duration;

use bytes::Bytes;

use super::native::Token;
use super::wire::{Answered, Description, KEPT, Numbers, Said};
use super::*;
use crate::error::ErrorKind;
use crate::fabric::conformance::{Ends, own_network};
use crate::fabric::{Incoming, Land, Landing, Responder, Segment, Spot};
use crate::launch::Secret;
use crate::region::RegionMut;

mod deaths;

fn identity(secret: &Arc<Secret>, instance: u64) -> Identity {
    Identity { secret: Arc::clone(secret), job: "test".to_owned(), instance }
}

/// Two nodes whose bytes move over a protocol.
fn ends(protocol: &str) -> Ends {
    let is = |text: &str| std::thread::current().name().is_some_and(|name| name.contains(text));
    let is_cut = is("silent");
    let secret = Arc::new(Secret::random());
    let silence = Duration::from_secs(if is_cut || is("held_answer") { 1 } else { 20 });
    let options = Options { protocol: Some(protocol.to_owned()), silence, ..Options::default() };
    Ends {
        requester: Arc::new(Margo::new(identity(&secret, 1), options.clone())),
        owner: Arc::new(Margo::new(identity(&secret, 2), options.clone())),
        addresses: vec!["127.0.0.1:0".parse().unwrap()],
        from: 1,
        instance: 2,
        silence,
        cut: is_cut.then(own_network),
        stranger: Some(Arc::new(Margo::new(identity(&Arc::new(Secret::random()), 3), options))),
        settle: Box::new(|| {}),
    }
}

mod sm {
    fn ends() -> super::Ends {
        super::ends("na+sm")
    }

    crate::fabric::conformance::suite!(
        ends,
        always: [ignore = "needs Margo with na+sm: --ignored"],
        cut: [ignore = "needs Margo with na+sm, and root for a network namespace of its own: --ignored"],
        stranger: [ignore = "needs Margo with na+sm: --ignored"]
    );
}

mod tcp_by_ofi {
    fn ends() -> super::Ends {
        super::ends("ofi+tcp")
    }

    crate::fabric::conformance::suite!(
        ends,
        always: [ignore = "needs Margo with ofi+tcp: --ignored"],
        cut: [ignore = "needs Margo with ofi+tcp, and root for a network namespace of its own: --ignored"],
        stranger: [ignore = "needs Margo with ofi+tcp: --ignored"]
    );
}

/// Answers each question with a part of that many bytes, from memory that it was given.
struct Sender {
    content: Bytes,
    asked: AtomicUsize,
}

impl Service for Sender {
    fn answer(&self, call: Incoming<'_>) {
        self.asked.fetch_add(1, SeqCst);
        let len = call.head.try_into().map_or(0, u32::from_le_bytes) as usize;
        call.responder.reply(b"here".to_vec(), vec![self.content.slice(..len)]);
    }
}

/// A session, as a requester that is not ours could use it.
struct Intruder {
    control: Arc<dyn Peer>,
    instance: Arc<Instance>,
    address: Arc<Address>,
    token: Token,
}

impl Intruder {
    fn enter(fabric: &Margo, contact: SocketAddr) -> Self {
        let control = fabric.tcp.control(Purpose::Margo, contact, Instant::now() + LIMIT).unwrap();
        let silence_ms = fabric.options.silence.as_millis() as u32;
        let hello = Control::Hello { silence_ms, wanted: "na+sm".to_owned() }.encode();
        let answer = Arc::clone(&control).request(Call::small(hello)).deadline(LIMIT).wait().unwrap();
        let Ok(Welcome::Here { token, address }) = Welcome::decode(&answer.head) else { panic!("{:?}", answer.head) };
        let instance = Instance::shared("na+sm", false).unwrap();
        let address = Address::lookup(&instance, &address).unwrap();
        Self { control, instance, address, token }
    }

    fn say(&self, token: &Token, said: &Said<'_>) -> Vec<u8> {
        let head: &[u8] = if let Said::Question { head, .. } = said { head } else { &[] };
        let (tell, told) = channel();
        let done = move |answer: Result<&[u8]>| drop(tell.send(answer.map(<[u8]>::to_vec)));
        self.instance.ask(&self.address, &[&said.prefix(token), head], Some(LIMIT), done).unwrap();
        told.recv_timeout(LIMIT).unwrap().unwrap()
    }
}

#[test]
#[ignore = "needs Margo with na+sm: --ignored"]
fn who_was_not_let_in_is_not_heard() {
    let fabric = fabric("na+sm", Duration::from_secs(20));
    let sender = Arc::new(Sender { content: vec![1; 100].into(), asked: AtomicUsize::new(0) });
    let listener = fabric.listen(&[any()], Arc::new(Shared(Arc::clone(&sender)))).unwrap();
    let intruder = Intruder::enter(&fabric, listener.contact());
    let question = Said::Question { number: 1, released: Numbers::default(), head: &[10, 0, 0, 0] };
    assert_eq!(intruder.say(&[7; 16], &question), b"", "another token");
    assert_eq!(intruder.say(&[0; 16], &question), b"");
    assert_eq!(sender.asked.load(SeqCst), 0);
    let answer = intruder.say(&intruder.token, &question);
    assert!(matches!(Answered::decode(&answer), Ok(Answered::Described(_))), "{answer:?}");
    assert_eq!(sender.asked.load(SeqCst), 1);
    // Nor is who was let in, and has gone.
    intruder.control.close();
    let end = Instant::now() + LIMIT;
    while !intruder.say(&intruder.token, &question).is_empty() {
        assert!(Instant::now() < end, "the session is still open");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "needs Margo with na+sm: --ignored"]
fn parts_that_nobody_releases_expire_unless_they_are_wanted() {
    let silence = Duration::from_millis(500);
    let fabric = fabric("na+sm", silence);
    let sender = Sender { content: vec![1; 1 << 20].into(), asked: AtomicUsize::new(0) };
    let listener = fabric.listen(&[any()], Arc::new(sender)).unwrap();
    let intruder = Intruder::enter(&fabric, listener.contact());
    let answer = intruder.say(
        &intruder.token,
        &Said::Question { number: 1, released: Numbers::default(), head: &(1u32 << 20).to_le_bytes() },
    );
    let Ok(Answered::Described(description)) = Answered::decode(&answer) else { panic!("{answer:?}") };
    assert!(Description::decode(description).unwrap().0.is_pinned);
    let keep = |number| intruder.say(&intruder.token, &Said::Keep { number });
    let begin = Instant::now();
    while begin.elapsed() < silence * 6 {
        assert_eq!(keep(1), KEPT[1], "after {:?}", begin.elapsed());
        std::thread::sleep(silence / 4);
    }
    assert_eq!(keep(2), KEPT[0], "what was never pinned");
    std::thread::sleep(silence * 4);
    assert_eq!(keep(1), KEPT[0], "nobody has said a word for twice the time");
    // What is released is gone at once.
    intruder.say(
        &intruder.token,
        &Said::Question { number: 3, released: Numbers::default(), head: &(1u32 << 20).to_le_bytes() },
    );
    assert_eq!(keep(3), KEPT[1]);
    intruder
        .instance
        .tell(&intruder.address, &[&Said::Release { released: Numbers(&3_u64.to_le_bytes()) }.prefix(&intruder.token)]);
    let end = Instant::now() + silence;
    while keep(3) != KEPT[0] {
        assert!(Instant::now() < end, "it was released");
    }
}

#[test]
#[ignore = "needs Margo with na+sm: --ignored"]
fn segments_are_registered_once() {
    let (owner, requester) = (fabric("na+sm", Duration::from_secs(20)), fabric("na+sm", Duration::from_secs(20)));
    let content: &'static [u8] = (0..4 << 20).map(|i: u32| (i >> 7) as u8).collect::<Vec<_>>().leak();
    let theirs = Arc::new(One::of(content.as_ptr().addr(), 4 << 20));
    owner.register(Arc::clone(&theirs) as _);
    let sender = Sender { content: Bytes::from_static(content), asked: AtomicUsize::new(0) };
    let listener = owner.listen(&[any()], Arc::new(sender)).unwrap();
    let peer = requester.connect(listener.contact(), Instant::now() + LIMIT).unwrap();
    for len in [100_000_u32, 1 << 20, 4 << 20, 70_000] {
        let region = RegionMut::heap(4 << 20).unwrap();
        let call = Call { head: len.to_le_bytes().to_vec().into(), land: Box::new(Into(Some(region))).into(), lane: 0 };
        let answer = Arc::clone(&peer).request(call).deadline(LIMIT).wait().unwrap();
        assert_eq!(answer.parts.iter().map(Landing::len).collect::<Vec<_>>(), [len as usize]);
    }
    assert_eq!(theirs.asked.load(SeqCst), 1, "the owner's segment was looked up once");
}

#[test]
#[ignore = "needs Margo: --ignored"]
fn other_protocols_are_named() {
    for (protocol, kind) in [("ofi+psm9", ErrorKind::Config), ("tcp", ErrorKind::Config)] {
        let config = ConnectorConfig::new("margo", "").with_option("protocol", protocol);
        let error = Options::of(&config).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    let config = ConnectorConfig::new("margo", "").with_option("protocol", "ofi+psm9");
    let text = Options::of(&config).unwrap_err().to_string();
    assert!(text.contains("ofi+psm9") && text.contains("na+sm"), "{text}");
    // An owner that does not have it says so, too.
    let (owner, requester) = (fabric("na+sm", LIMIT), fabric("ofi+psm9", LIMIT));
    let sender = Sender { content: Bytes::new(), asked: AtomicUsize::new(0) };
    let listener = owner.listen(&[any()], Arc::new(sender)).unwrap();
    let error = requester.connect(listener.contact(), Instant::now() + LIMIT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("does not offer \"ofi+psm9\""), "{error}");
}

#[test]
#[ignore = "needs Margo with na+sm and ofi+tcp: --ignored"]
fn instances_end_in_any_order() {
    let begin = Instant::now();
    for (protocol, order) in [("na+sm", 0), ("na+sm", 1), ("ofi+tcp", 0), ("ofi+tcp", 1)] {
        let [owner, requester] = [(); 2].map(|()| fabric(protocol, Duration::from_secs(20)));
        let sender = Sender { content: vec![5; 1 << 20].into(), asked: AtomicUsize::new(0) };
        let listener = owner.listen(&[any()], Arc::new(sender)).unwrap();
        let peer = requester.connect(listener.contact(), Instant::now() + LIMIT).unwrap();
        let region = RegionMut::heap(1 << 20).unwrap();
        let call = Call {
            head: (1u32 << 20).to_le_bytes().to_vec().into(),
            land: Box::new(Into(Some(region))).into(),
            lane: 0,
        };
        let asked = Arc::clone(&peer).request(call);
        match order {
            0 => {
                drop((requester, peer, listener, owner));
                drop(asked.deadline(LIMIT).wait());
            }
            _ => {
                drop((listener, owner));
                drop((asked, peer));
                drop(requester);
            }
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "it took {:?}", begin.elapsed());
    // Those of tests beside this one end, too.
    while native::ENDING.load(SeqCst) > 0 {
        assert!(begin.elapsed() < Duration::from_secs(30), "the end of an instance does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lands in a region, whose bytes it says are at a place of the first segment.
struct Expecting {
    landing: Option<Landing>,
    spot: Spot,
    /// How often it was lent, and how often it came back full.
    early: Arc<[AtomicUsize; 2]>,
}

impl Expecting {
    fn call(question: [u32; 2], len: usize, offset: u64, early: &Arc<[AtomicUsize; 2]>) -> Call {
        let landing = Landing::whole(RegionMut::heap(len).unwrap(), len).unwrap();
        let head = question.map(u32::to_le_bytes).concat();
        let spot = Spot { segment: 0, offset };
        let land = Box::new(Self { landing: Some(landing), spot, early: Arc::clone(early) });
        Call { head: head.into(), land: land.into(), lane: 0 }
    }
}

impl Land for Expecting {
    fn land(&mut self, _: &[u8], lens: &[u64]) -> Result<Vec<Landing>> {
        match lens {
            [] => Ok(Vec::new()),
            _ => Ok(self.landing.take().into_iter().collect()),
        }
    }

    fn likely(&self) -> Option<Spot> {
        Some(self.spot)
    }

    fn lend(&mut self) -> Option<Landing> {
        self.early[0].fetch_add(1, SeqCst);
        self.landing.take()
    }

    fn give_back(&mut self, landing: Landing) {
        assert!(landing.is_full());
        self.early[1].fetch_add(1, SeqCst);
        self.landing = Some(landing);
    }
}

/// Answers with that many bytes from that offset on, or with none.
struct At(&'static [u8]);

impl Service for At {
    fn answer(&self, call: Incoming<'_>) {
        let number = |at: usize| call.head[at..at + 4].try_into().map_or(0, u32::from_le_bytes) as usize;
        let (from, len) = (number(0), number(4));
        let parts = if len == 0 { Vec::new() } else { vec![Bytes::from_static(&self.0[from..from + len])] };
        call.responder.reply(b"here".to_vec(), parts);
    }
}

#[test]
#[ignore = "needs Margo with na+sm: --ignored"]
fn bytes_whose_place_is_known_are_pulled_while_they_are_asked_for() {
    let (owner, requester) = (fabric("na+sm", Duration::from_secs(20)), fabric("na+sm", Duration::from_secs(20)));
    let content: &'static [u8] = (0..4 << 20).map(|i: u32| (i >> 7) as u8).collect::<Vec<_>>().leak();
    owner.register(Arc::new(One::of(content.as_ptr().addr(), 4 << 20)));
    let listener = owner.listen(&[any()], Arc::new(At(content))).unwrap();
    let peer = requester.connect(listener.contact(), Instant::now() + LIMIT).unwrap();
    let early = Arc::<[AtomicUsize; 2]>::default();
    let counts = || [early[0].load(SeqCst), early[1].load(SeqCst)];
    let get = |from: u32, len: u32, expected: u64| {
        let call = Expecting::call([from, len], LEN, expected, &early);
        let answer = Arc::clone(&peer).request(call).deadline(LIMIT).wait()?;
        answer.parts.into_iter().next().map(Landing::into_room).transpose()
    };
    const LEN: usize = 100_000;
    let bytes = |from: usize| &content[from..from + LEN];
    assert_eq!(get(640, LEN as u32, 640).unwrap().unwrap().as_slice(), bytes(640));
    assert_eq!(counts(), [0, 0], "nobody knows where its segment is");
    for from in [0_u32, 64, 1 << 20, (4 << 20) - LEN as u32] {
        assert_eq!(get(from, LEN as u32, from.into()).unwrap().unwrap().as_slice(), bytes(from as usize));
    }
    assert_eq!(counts(), [4, 4]);
    // What has ended has no bytes, though they are read.
    assert!(get(64, 0, 64).unwrap().is_none());
    assert_eq!(counts(), [5, 4]);
    // Elsewhere than the key said: never the bytes from there, and the next question is asked as at first.
    assert_eq!(get(64, LEN as u32, 1 << 20).unwrap_err().kind(), ErrorKind::PeerDown);
    assert!(peer.is_up());
    assert_eq!(get(64, LEN as u32, 1 << 20).unwrap().unwrap().as_slice(), bytes(64));
    assert_eq!(counts(), [6, 4]);
}

#[test]
#[ignore = "needs Margo with na+sm: --ignored"]
fn places_beyond_the_memory_of_an_owner_are_refused() {
    let (owner, requester) = (fabric("na+sm", Duration::from_secs(20)), fabric("na+sm", Duration::from_secs(20)));
    let content: &'static [u8] = vec![7; 1 << 20].leak();
    owner.register(Arc::new(One::of(content.as_ptr().addr(), 1 << 20)));
    let listener = owner.listen(&[any()], Arc::new(At(content))).unwrap();
    let peer = requester.connect(listener.contact(), Instant::now() + LIMIT).unwrap();
    let get = |expected: u64| {
        let call = Expecting::call([0, 100_000], 100_000, expected, &Arc::default());
        Arc::clone(&peer).request(call).deadline(LIMIT).wait().map(|answer| answer.parts.len())
    };
    assert_eq!(get(0).unwrap(), 1);
    assert_eq!(get(1 << 40).unwrap_err().kind(), ErrorKind::PeerDown);
    assert_eq!(get(1 << 40).unwrap(), 1, "the second time it is asked first");
    for offset in [u64::MAX, u64::MAX - 100_000, (1 << 63) - 1] {
        let peer = requester.connect(listener.contact(), Instant::now() + LIMIT).unwrap();
        let get = |expected: u64| {
            let call = Expecting::call([0, 100_000], 100_000, expected, &Arc::default());
            Arc::clone(&peer).request(call).deadline(LIMIT).wait().map(|answer| answer.parts.len())
        };
        assert_eq!(get(0).unwrap(), 1);
        assert_eq!(get(offset).unwrap_err().kind(), ErrorKind::PeerDown, "{offset}");
        assert_eq!(get(0).unwrap(), 1);
    }
}

/// Is told hello, and says nothing.
#[derive(Default)]
struct Silent(Mutex<Vec<Responder>>);

impl Service for Silent {
    fn answer(&self, call: Incoming<'_>) {
        lock(&self.0).push(call.responder);
    }
}

/// A service may be killed while its Margo is being started, which takes long on a busy machine, and is back in a moment.
#[test]
#[ignore = "needs Margo with na+sm: --ignored"]
fn an_owner_that_ends_before_it_greets_is_met_when_it_is_back() {
    let (owner, requester) = (fabric("na+sm", Duration::from_secs(2)), fabric("na+sm", Duration::from_secs(2)));
    let silent = owner.tcp.listen_for(&[any()], vec![(Purpose::Margo, Arc::new(Silent::default()))]).unwrap();
    let contact = silent.contact();
    let back = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        drop(silent);
        let sender = Sender { content: vec![5; 10].into(), asked: AtomicUsize::new(0) };
        owner.listen(&[contact], Arc::new(sender)).unwrap()
    });
    let peer = requester.connect(contact, Instant::now() + LIMIT).unwrap();
    assert!(peer.is_up());
    drop(back.join().unwrap());
    // Nobody is back, and that is said in time.
    let begun = Instant::now();
    assert_eq!(requester.connect(contact, Instant::now() + LIMIT).unwrap_err().kind(), ErrorKind::PeerDown);
    assert!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
}

/// Lands in a region, which it keeps.
struct Into(Option<RegionMut>);

impl Land for Into {
    fn land(&mut self, _: &[u8], lens: &[u64]) -> Result<Vec<Landing>> {
        let (Some(region), [len]) = (self.0.take(), lens) else { panic!("{lens:?}") };
        Ok(vec![Landing::whole(region, *len as usize)?])
    }
}

struct Shared(Arc<Sender>);

impl Service for Shared {
    fn answer(&self, call: Incoming<'_>) {
        self.0.answer(call);
    }
}

/// One segment, that counts how often it is asked for.
struct One {
    addresses: Range<usize>,
    asked: AtomicUsize,
}

impl One {
    fn of(start: usize, len: usize) -> Self {
        Self { addresses: start..start + len, asked: AtomicUsize::new(0) }
    }
}

impl Segments for One {
    fn segment_of(&self, address: usize) -> Option<Segment> {
        self.asked.fetch_add(1, SeqCst);
        self.addresses.contains(&address).then(|| Segment { addresses: self.addresses.clone(), views: None })
    }
}

fn fabric(protocol: &str, silence: Duration) -> Margo {
    static SECRET: OnceLock<Arc<Secret>> = OnceLock::new();
    let secret = SECRET.get_or_init(|| Arc::new(Secret::random()));
    Margo::new(identity(secret, 5), Options { protocol: Some(protocol.to_owned()), silence, ..Options::default() })
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

const LIMIT: Duration = Duration::from_secs(10);
