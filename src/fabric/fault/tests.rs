//! A small service under faults: every outcome is a right answer or a typed error, nothing stays behind, nothing hangs.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::fabric::Parts;
use crate::fabric::conformance;
use crate::fabric::fake::{self, Link, Net, Time};
use crate::region::RegionMut;
use crate::sync::lock;

// Without faults the wrapper changes nothing.
conformance::suite!(|| {
    let net = Net::new(Time::Auto, 3);
    let mut ends = fake::tests::ends(&net);
    let world = Arc::new(Between { net, requester: REQUESTER, owner: OWNER });
    let plan = Plan::default();
    ends.requester = Fault::new(ends.requester, plan.clone(), Arc::clone(&world) as Arc<dyn World>);
    ends.owner = Fault::new(ends.owner, plan, world);
    ends
});

const REQUESTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OWNER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// Two nodes of a net.
pub(crate) struct Between {
    pub(crate) net: Net,
    pub(crate) requester: Ipv4Addr,
    pub(crate) owner: Ipv4Addr,
}

impl World for Between {
    fn after(&self, delay: Duration, call: Box<dyn FnOnce() + Send>) {
        self.net.after(delay, call);
    }

    fn cut(&self, span: Option<Duration>) {
        let (net, requester, owner) = (self.net.clone(), self.requester, self.owner);
        net.cut(requester, owner);
        net.cut(owner, requester);
        if let Some(span) = span {
            let later = net.clone();
            net.after(span, move || {
                later.heal(requester, owner);
                later.heal(owner, requester);
            });
        }
    }

    fn kill(&self, side: Side) {
        match side {
            Side::Requester => self.net.kill(self.requester),
            Side::Owner => self.net.kill(self.owner),
        }
    }
}

/// Counts things that were made and are not yet gone.
#[derive(Clone, Default)]
struct Alive(Arc<AtomicUsize>);

struct Living<T>(T, Arc<AtomicUsize>);

impl Alive {
    fn with<T>(&self, value: T) -> Living<T> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Living(value, Arc::clone(&self.0))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl<T> Drop for Living<T> {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AsRef<[u8]> for Living<Vec<u8>> {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Answers `NUMBER` with parts that follow from it. Heads have a checksum, as any protocol's have.
#[derive(Default)]
struct Teller {
    alive: Alive,
    /// Questions that made sense, as often as they came, and those that were carried out: each number once.
    asked: AtomicUsize,
    done: Mutex<HashSet<u32>>,
}

impl Service for Teller {
    fn answer(&self, call: Incoming<'_>) {
        let Some(number) = opened(call.head) else { return };
        self.asked.fetch_add(1, Ordering::SeqCst);
        lock(&self.done).insert(number);
        let parts = told(number).into_iter().map(|part| Bytes::from_owner(self.alive.with(part))).collect();
        call.responder.reply(sealed(number), parts);
    }
}

fn told(number: u32) -> Vec<Vec<u8>> {
    (0..number % 4)
        .map(|part| vec![(number * 7 + part) as u8; (number as usize * 997 + part as usize) % 9000])
        .collect()
}

fn sealed(number: u32) -> Vec<u8> {
    let number = number.to_le_bytes();
    [number, crc32fast::hash(&number).to_le_bytes()].concat()
}

fn opened(head: &[u8]) -> Option<u32> {
    let (number, check) = head.split_at_checked(4)?;
    (crc32fast::hash(number).to_le_bytes() == check).then_some(u32::from_le_bytes(number.try_into().ok()?))
}

/// Memory for an answer.
struct Room {
    parts: Arc<Mutex<Option<Parts>>>,
    number: u32,
    _alive: Living<()>,
}

impl Land for Room {
    fn land(&mut self, head: &[u8], parts: &[u64]) -> Result<Vec<Landing>> {
        let expected = told(self.number).into_iter().map(|part| part.len() as u64);
        if opened(head) != Some(self.number) || !expected.eq(parts.iter().copied()) {
            return Err(Error::new(ErrorKind::Corrupt, "get", "an answer of another shape"));
        }
        let lens: Vec<usize> = parts.iter().map(|len| *len as usize).collect();
        let (joined, landings) = Parts::of(RegionMut::heap(lens.iter().sum())?, &lens)?;
        *lock(&self.parts) = Some(joined);
        Ok(landings)
    }
}

/// A requester that connects again when it has to.
struct Asker {
    fabric: Arc<dyn Fabric>,
    contact: SocketAddr,
    peer: Option<Arc<dyn Peer>>,
    alive: Alive,
}

type Started = (u32, Arc<Mutex<Option<Parts>>>, Pending<Answer>);

impl Asker {
    fn start(&mut self, number: u32) -> Result<Started> {
        let peer = match self.peer.take().filter(|peer| peer.is_up()) {
            Some(peer) => peer,
            None => self.fabric.connect(self.contact, Instant::now() + DEADLINE)?,
        };
        self.peer = Some(Arc::clone(&peer));
        let parts = Arc::new(Mutex::new(None));
        let land = Box::new(Room { parts: Arc::clone(&parts), number, _alive: self.alive.with(()) });
        let pending = peer.request(Call { head: sealed(number).into(), land: land.into(), lane: 0 }).deadline(DEADLINE);
        Ok((number, parts, pending))
    }

    fn end((number, parts, pending): Started) -> Result<u32> {
        let answer = pending.wait()?;
        let bytes = match lock(&parts).take() {
            Some(parts) => parts.join(answer.parts)?.as_slice().to_vec(),
            None => Vec::new(),
        };
        let damaged = || Err(Error::new(ErrorKind::Corrupt, "get", "an answer that makes no sense"));
        match opened(&answer.head) {
            None => damaged(),
            Some(other) if other != number => panic!("the answer to {other} for {number}"),
            Some(_) if bytes == told(number).concat() => Ok(number),
            // All of its parts were lost.
            Some(_) if bytes.is_empty() => damaged(),
            Some(_) => panic!("other bytes for {number}"),
        }
    }
}

/// How a plan went.
#[derive(Debug, PartialEq)]
struct Run {
    outcomes: Vec<std::result::Result<u32, ErrorKind>>,
    asked: usize,
    done: usize,
    took: Duration,
    digest: u64,
}

/// Asks by threes. Panics where something stays behind.
fn run(plan: &Plan, calls: u32, jitter: Duration) -> Run {
    let net = Net::new(Time::Virtual, 9);
    net.set_default(Link { latency: Duration::from_millis(1), jitter, bandwidth: 1_000_000 });
    net.set_silence(SILENCE);
    let world: Arc<dyn World> = Arc::new(Between { net: net.clone(), requester: REQUESTER, owner: OWNER });
    let owner = Fault::new(Arc::new(net.node(OWNER)), plan.clone(), Arc::clone(&world));
    let fabric = Fault::new(Arc::new(net.node(REQUESTER)), plan.clone(), world);
    let teller = Arc::new(Teller::default());
    let listener = owner.listen(&[(OWNER, 0).into()], Arc::clone(&teller) as Arc<dyn Service>).unwrap();
    let alive = Alive::default();
    let mut asker = Asker { fabric, contact: listener.contact(), peer: None, alive: alive.clone() };
    let mut outcomes = Vec::new();
    for round in 0..calls / 3 {
        let started: Vec<_> = (0..3).map(|i| asker.start(round * 3 + i)).collect();
        outcomes.extend(started.into_iter().map(|one| one.and_then(Asker::end).map_err(|error| error.kind())));
    }
    let took = net.now();
    plan.release();
    drop(asker);
    net.run();
    drop(listener);
    net.run();
    assert_eq!(alive.count(), 0, "something of a requester stayed behind: {plan:?}");
    assert_eq!(teller.alive.count(), 0, "parts stayed behind: {plan:?}");
    let run = Run {
        outcomes,
        asked: teller.asked.load(Ordering::SeqCst),
        done: lock(&teller.done).len(),
        took,
        digest: net.digest(),
    };
    assert_eq!(Arc::strong_count(&teller), 1, "the service stayed behind: {plan:?}");
    run
}

fn run_text(plan: &str) -> Run {
    let plan = plan.parse::<Plan>().unwrap();
    let run = run(&plan, 6, Duration::ZERO);
    assert!(!plan.did().is_empty(), "{plan} did nothing");
    run
}

const DEADLINE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(3);
const LONGEST: Duration = Duration::from_secs(8);
const JITTER: Duration = Duration::from_micros(300);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 3 } else { 400 }, ..ProptestConfig::default() })]

    #[test]
    fn right_answers_or_errors(plan in Plan::any(6, 12, LONGEST)) {
        let Run { outcomes, took, .. } = run(&plan, 12, JITTER);
        let known = [ErrorKind::PeerDown, ErrorKind::Timeout, ErrorKind::Cancelled, ErrorKind::Corrupt, ErrorKind::NoSpace];
        for (number, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Ok(found) => prop_assert_eq!(*found as usize, number, "{:?}", &plan),
                Err(kind) => prop_assert!(known.contains(kind), "{:?}: {:?}", kind, &plan),
            }
        }
        let limit = (DEADLINE * 2) * outcomes.len() as u32;
        prop_assert!(took < limit, "{:?} of virtual time: {:?}", took, &plan);
        // The first of a plan's steps that stops everything leaves nothing to fail before it.
        if plan.did().is_empty() {
            prop_assert!(outcomes.iter().all(|outcome| outcome.is_ok()));
        }
    }

    #[test]
    fn plans_can_be_run_again(plan in Plan::any(6, 12, LONGEST)) {
        let again: Plan = plan.to_string().parse().unwrap();
        prop_assert_eq!(run(&plan, 9, JITTER), run(&again, 9, JITTER));
        prop_assert_eq!(plan.did(), again.did());
    }
}

/// Every act at every place does what it says.
#[test]
fn each_fault_shows() {
    use ErrorKind::{Cancelled, Corrupt, NoSpace, PeerDown, Timeout};
    let all = Ok::<u32, ErrorKind>;
    let but = |broken: &[usize], kind| -> Vec<_> {
        (0..6).map(|i| if broken.contains(&i) { Err(kind) } else { all(i as u32) }).collect()
    };
    for (plan, expected) in [
        ("connect#1 drop", but(&[0], PeerDown)),
        ("question#2 drop", but(&[1], Timeout)),
        ("question#2 refuse", but(&[1], Cancelled)),
        ("question#2 delay 4000ms", but(&[], Timeout)),
        ("question#2 delay 6000ms", but(&[1], Timeout)),
        ("question#2 duplicate", but(&[], Timeout)),
        ("question#2 flip 13", but(&[1], Cancelled)),
        ("reply#4 drop", but(&[3], Timeout)),
        ("reply#4 delay 6000ms", but(&[3], Timeout)),
        ("reply#4 flip 40", but(&[3], Corrupt)),
        ("reply#4 truncate", but(&[3], Corrupt)),
        ("reply#4 shorten", but(&[3], Corrupt)),
        ("land#2 refuse", but(&[2], NoSpace)),
        ("sent#3 close", but(&[0, 1, 2], PeerDown)),
        ("request#4 close", but(&[3], PeerDown)),
        ("question#1 close", but(&[0, 1, 2], PeerDown)),
        ("sent#3 pause 1000ms", but(&[], PeerDown)),
        ("sent#3 pause 3500ms", but(&[0, 1, 2], PeerDown)),
        ("sent#3 cut", but(&[0, 1, 2, 3, 4, 5], PeerDown)),
        ("question#6 kill", but(&[3, 4, 5], PeerDown)),
        ("reply#4 kill", but(&[3, 4, 5], PeerDown)),
        ("sent#4 kill", but(&[3, 4, 5], PeerDown)),
    ] {
        assert_eq!(run_text(plan).outcomes, expected, "{plan}");
    }
}

/// A service must number what may be done once only: the fabric's promise does not hold beneath a fault.
#[test]
fn duplicates_need_numbers() {
    let run = run_text("question#2 duplicate; question#5 duplicate");
    assert_eq!((run.asked, run.done), (8, 6));
}

/// Lost while bytes were on the way: the room that they had is whole again for others.
#[test]
fn cut_while_bytes_arrive() {
    let run = run_text("land#1 cut");
    assert_eq!(run.outcomes[0], Ok(0));
    assert!(run.outcomes[1..].iter().all(|outcome| outcome.is_err()), "{:?}", run.outcomes);
}

/// A killed process ends at the step, and not before.
#[test]
#[cfg(not(miri))]
fn this_process_is_killed() {
    let program = std::env::current_exe().unwrap();
    let arguments = ["--ignored", "--exact", "--nocapture", "fabric::fault::tests::victim"];
    let output = std::process::Command::new(program).args(arguments).env(VICTIM, "land#2 kill").output().unwrap();
    assert_eq!(output.status.signal(), Some(9), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("answer 0") && text.contains("answer 1") && !text.contains("answer 2"), "{text}");
}

#[test]
#[ignore = "ends its process: run by this_process_is_killed"]
fn victim() {
    let plan: Plan = std::env::var(VICTIM).expect("a plan").parse().unwrap();
    let net = Net::new(Time::Auto, 0);
    let world: Arc<dyn World> = Arc::new(ThisProcess);
    let owner = net.node(OWNER);
    let listener = owner.listen(&[(OWNER, 0).into()], Arc::new(Teller::default())).unwrap();
    let fabric = Fault::new(Arc::new(net.node(REQUESTER)), plan, world);
    let mut asker = Asker { fabric, contact: listener.contact(), peer: None, alive: Alive::default() };
    for number in 0..4 {
        let ended = asker.start(number).and_then(Asker::end).unwrap();
        println!("answer {ended}");
    }
}

/// Tells the child what to do.
const VICTIM: &str = "FAULT_VICTIM_PLAN";
