//! The executable contract of a [`Fabric`]: cases that every fabric passes.
//!
//! A fabric's test module has one line, `conformance::suite!(ends);`, where `ends` is a function that makes [`Ends`] of its
//! own for each case. What cannot be tried there is left out aloud:
//! `conformance::suite!(ends, cut: [ignore = "needs network namespaces"], stranger: []);`
//!
//! Every case is bounded in time, so a fabric that hangs fails. `mutants` proves that each case can fail.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Answer, Call, Fabric, Head, Incoming, Land, Landing, Listener, MAX_HEAD, Parts, Peer, Responder, Service};
use crate::error::{Error, ErrorKind, Result};
use crate::pending::Pending;
use crate::region::RegionMut;
use crate::sync::lock;

mod concurrency;
mod end;
mod head;
mod mutants;
mod part;

/// All cases, by what a fabric's surroundings must be able to do for them.
macro_rules! for_each_case {
    ($call:ident, $with:tt) => {
        $crate::fabric::conformance::$call! {
            $with
            always {
                head::round_trip head::empty head::longest head::too_long head::answer_too_long head::identity
                head::nobody_answers head::lanes
                part::counts part::too_many part::lengths part::large part::of_no_bytes part::scattered part::land_refuses
                part::landings_unfit part::land_once part::uncalled_for part::held_until_sent
                concurrency::out_of_order concurrency::many concurrency::threads_and_tasks concurrency::nobody_waits
                concurrency::at_most_once concurrency::connections
                end::held_answer end::gave_up end::gave_up_on_parts end::dropped end::peer_dropped end::closed
                end::closed_then_answered end::listener_dropped end::contact_free_again end::contact_taken end::nobody
                end::deadline_passed
            }
            cut { end::silent_owner end::silent_before end::silent_connect }
            stranger { end::stranger }
        }
    };
}
pub(crate) use for_each_case;

/// Makes a test of each case, for a function that makes [`Ends`].
macro_rules! suite {
    ($ends:expr) => { $crate::fabric::conformance::suite!($ends, cut: [], stranger: []); };
    ($ends:expr, cut: $cut:tt, stranger: $stranger:tt) => {
        $crate::fabric::conformance::suite!($ends, always: [], cut: $cut, stranger: $stranger);
    };
    ($ends:expr, always: $always:tt, cut: $cut:tt, stranger: $stranger:tt) => {
        mod contract {
            use super::*;

            $crate::fabric::conformance::for_each_case!(tests, ($ends, $always, $cut, $stranger));
        }
    };
}
pub(crate) use suite;

macro_rules! tests {
    (($ends:expr, $always:tt, $cut:tt, $stranger:tt)
     always { $($af:ident::$an:ident)* } cut { $($cf:ident::$cn:ident)* } stranger { $($sf:ident::$sn:ident)* }) => {
        $($crate::fabric::conformance::test!($ends, $always, $af, $an);)*
        $($crate::fabric::conformance::test!($ends, $cut, $cf, $cn);)*
        $($crate::fabric::conformance::test!($ends, $stranger, $sf, $sn);)*
    };
}
pub(crate) use tests;

macro_rules! test {
    ($ends:expr, [$($attribute:meta)?], $family:ident, $name:ident) => {
        #[test]
        $(#[$attribute])?
        fn $name() {
            $crate::fabric::conformance::pass(concat!(stringify!($family), "::", stringify!($name)), $ends);
        }
    };
}
pub(crate) use test;

macro_rules! table {
    (() $($group:ident { $($family:ident::$name:ident)* })*) => {
        &[$($((concat!(stringify!($family), "::", stringify!($name)), $family::$name as Check),)*)*]
    };
}
use table;

/// One property of the contract, as a program that panics where it does not hold.
type Check = fn(&Ends);

const CASES: &[(&str, Check)] = for_each_case!(table, ());

/// Two nodes, and what can be done to them.
pub(crate) struct Ends {
    pub(crate) requester: Arc<dyn Fabric>,
    pub(crate) owner: Arc<dyn Fabric>,
    /// Where the owner may listen, at ports that the fabric chooses.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Numbers of the memory of requester and owner.
    pub(crate) from: u64,
    pub(crate) instance: u64,
    /// How long the fabric waits for a sign of life.
    pub(crate) silence: Duration,
    /// Stops all messages between the two, without a word to either.
    pub(crate) cut: Option<Box<dyn Fn() + Send + Sync>>,
    /// A node that can reach the owner, but has another secret.
    pub(crate) stranger: Option<Arc<dyn Fabric>>,
    /// Does what nobody does while nobody waits; nothing in a fabric with threads of its own.
    pub(crate) settle: Box<dyn Fn() + Send + Sync>,
}

/// Runs a case, which must pass.
pub(crate) fn pass(name: &str, ends: impl FnOnce() -> Ends) {
    let ends = ends();
    let limit = LIMIT * 2 + ends.silence * 10;
    if let Err(text) = run(name, ends, limit) {
        panic!("{name}: {text}");
    }
}

/// Runs a case on a thread of its own; a panic or a missed deadline is a failure. A case that hangs leaves its thread behind.
fn run(name: &str, ends: Ends, limit: Duration) -> Result<(), String> {
    let (_, check) = *CASES.iter().find(|(known, _)| *known == name).ok_or("there is no such case")?;
    let (report, outcome) = mpsc::channel();
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&ends)));
        drop(ends);
        let text = |payload: Box<dyn std::any::Any + Send>| match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => payload.downcast_ref::<&str>().copied().unwrap_or("panicked").to_owned(),
        };
        let _ = report.send(outcome.map_err(text));
    });
    spawned.map_err(|error| error.to_string())?;
    outcome.recv_timeout(limit).unwrap_or_else(|_| Err(format!("did not end within {limit:?}")))
}

/// Moves this thread, and those that it starts, into a network of their own; what cuts it.
#[expect(deprecated, reason = "only the network changes, and this thread has no socket yet")]
pub(crate) fn own_network() -> Box<dyn Fn() + Send + Sync> {
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("the right to make a network namespace");
    let loopback = |state: &str| {
        let status =
            std::process::Command::new("ip").args(["link", "set", "lo", state]).status().expect("the program ip");
        assert!(status.success(), "ip link set lo {state}: {status}");
    };
    loopback("up");
    // Called on a thread that was started by this one, so that it is the same network.
    Box::new(move || loopback("down"))
}

impl Ends {
    /// The owner answers by `answer`, and the requester is connected.
    #[track_caller]
    fn serve(&self, answer: impl Fn(Incoming<'_>) + Send + Sync + 'static) -> (Box<dyn Listener>, Arc<dyn Peer>) {
        let listener = self.listen(answer);
        let peer = self.connect(&*listener);
        (listener, peer)
    }

    #[track_caller]
    fn listen(&self, answer: impl Fn(Incoming<'_>) + Send + Sync + 'static) -> Box<dyn Listener> {
        content();
        self.owner.listen(&self.addresses, Arc::new(Answering(answer))).expect("a free address")
    }

    #[track_caller]
    fn connect(&self, listener: &dyn Listener) -> Arc<dyn Peer> {
        self.requester.connect(listener.contact(), Instant::now() + LIMIT).expect("a connection")
    }

    /// Waits for what happens soon, though at no particular time.
    #[track_caller]
    fn soon(&self, what: &str, happened: impl Fn() -> bool) {
        let begin = Instant::now();
        while !happened() {
            assert!(begin.elapsed() < SOON, "{what}: not within {SOON:?}");
            (self.settle)();
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A service that is a function.
struct Answering<F>(F);

impl<F: Fn(Incoming<'_>) + Send + Sync + 'static> Service for Answering<F> {
    fn answer(&self, call: Incoming<'_>) {
        (self.0)(call);
    }
}

/// Answers with the question.
fn echo(call: Incoming<'_>) {
    let head = call.head.to_vec();
    call.responder.reply(head, Vec::new());
}

/// Responders that wait for a case to use them.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<Vec<Asked>>>);

/// Head of a question, and the duty to answer it.
type Asked = (Vec<u8>, Responder);

impl Held {
    fn hold(&self, call: Incoming<'_>) {
        lock(&self.0).push((call.head.to_vec(), call.responder));
    }

    fn len(&self) -> usize {
        lock(&self.0).len()
    }

    fn heads(&self) -> Vec<Vec<u8>> {
        lock(&self.0).iter().map(|(head, _)| head.clone()).collect()
    }

    /// Heads of the questions that somebody still waits for.
    fn wanted(&self) -> Vec<Vec<u8>> {
        lock(&self.0).iter().filter(|(_, responder)| responder.is_wanted()).map(|(head, _)| head.clone()).collect()
    }

    fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut *lock(&self.0))
    }
}

/// Bytes that count how often they are released.
#[derive(Clone, Default)]
struct Released(Arc<AtomicUsize>);

impl Released {
    fn part(&self, bytes: Vec<u8>) -> Bytes {
        struct Owner(Vec<u8>, Arc<AtomicUsize>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        impl Drop for Owner {
            fn drop(&mut self) {
                // Whoever still reads them after the release reads this.
                self.0.fill(0xdd);
                self.1.fetch_add(1, Ordering::SeqCst);
            }
        }
        Bytes::from_owner(Owner(bytes, Arc::clone(&self.0)))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Memory for an answer, each landing between two stretches that nobody else may write to.
struct Room {
    parts: Parts,
    canaries: Vec<Landing>,
    lens: Vec<usize>,
}

impl Room {
    fn new(lens: &[usize]) -> Result<(Self, Vec<Landing>)> {
        Self::between(0xca, lens)
    }

    fn between(canary: u8, lens: &[usize]) -> Result<(Self, Vec<Landing>)> {
        let mut all = vec![CANARY];
        lens.iter().for_each(|len| all.extend([*len, CANARY]));
        let (parts, landings) = Parts::of(RegionMut::heap(all.iter().sum())?, &all)?;
        let (mut canaries, mut lands) = (Vec::new(), Vec::new());
        for (i, mut landing) in landings.into_iter().enumerate() {
            match i % 2 {
                0 => {
                    landing.write(&[canary; CANARY]);
                    canaries.push(landing);
                }
                _ => lands.push(landing),
            }
        }
        Ok((Self { parts, canaries, lens: lens.to_vec() }, lands))
    }

    /// The bytes that landed.
    #[track_caller]
    fn bytes(self, landed: Vec<Landing>) -> Vec<Vec<u8>> {
        assert_eq!(landed.len(), self.lens.len(), "as many landings as parts");
        let mut landed = landed.into_iter();
        let mut all = Vec::new();
        for canary in self.canaries {
            all.push(canary);
            all.extend(landed.next());
        }
        let region = self.parts.join(all).expect("landings are whole, and those that were chosen");
        let mut rest = region.as_slice();
        let mut found = Vec::new();
        for len in self.lens {
            assert_eq!(rest[..CANARY], [0xca; CANARY], "a byte before the landing was written");
            found.push(rest[CANARY..CANARY + len].to_vec());
            rest = &rest[CANARY + len..];
        }
        assert_eq!(rest, [0xca; CANARY], "a byte behind the landing was written");
        found
    }
}

/// Chooses landings by a function.
struct Choose<F>(F);

impl<F: FnMut(&[u8], &[u64]) -> Result<Vec<Landing>> + Send + 'static> Land for Choose<F> {
    fn land(&mut self, head: &[u8], parts: &[u64]) -> Result<Vec<Landing>> {
        (self.0)(head, parts)
    }
}

fn choose(head: impl Into<Vec<u8>>, land: impl FnMut(&[u8], &[u64]) -> Result<Vec<Landing>> + Send + 'static) -> Call {
    Call { head: Head::from_vec(head.into()), land: Box::new(Choose(land)).into(), lane: 0 }
}

/// A question whose parts land in a room that appears in the cell when it is made.
fn roomy(head: impl Into<Vec<u8>>) -> (Call, Arc<Mutex<Option<Room>>>) {
    let cell = Arc::new(Mutex::new(None));
    let made = Arc::clone(&cell);
    let call = choose(head, move |_, lens| {
        let (room, landings) = Room::new(&lens.iter().map(|len| *len as usize).collect::<Vec<_>>())?;
        *lock(&made) = Some(room);
        Ok(landings)
    });
    (call, cell)
}

/// Asks for parts and gives head and bytes.
#[track_caller]
fn fetch(peer: &Arc<dyn Peer>, head: impl Into<Vec<u8>>) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (call, room) = roomy(head);
    let answer = ask(peer, call).wait().expect("an answer");
    let bytes = match lock(&room).take() {
        Some(room) => room.bytes(answer.parts.into_vec()),
        None => Vec::new(),
    };
    (answer.head.into_vec(), bytes)
}

fn ask(peer: &Arc<dyn Peer>, call: Call) -> Pending<Answer> {
    Arc::clone(peer).request(call).deadline(LIMIT)
}

/// The connection is as good as new.
#[track_caller]
fn still_good(peer: &Arc<dyn Peer>) {
    let answer = ask(peer, Call::small(ECHO.to_vec())).wait().expect("the connection is still good");
    assert_eq!(&answer.head[..], ECHO);
    assert!(peer.is_up(), "is_up is false, yet the connection is good");
}

/// A question, and a sign that what chooses its landings still exists.
fn watched(head: impl Into<Vec<u8>>) -> (Call, Weak<()>) {
    let alive = Arc::new(());
    let sign = Arc::downgrade(&alive);
    let call = choose(head, move |_, lens| {
        let _ = &alive;
        Room::new(&lens.iter().map(|len| *len as usize).collect::<Vec<_>>()).map(|(_, landings)| landings)
    });
    (call, sign)
}

/// Bytes that differ from place to place and from `seed` to `seed`.
fn pattern(seed: usize, len: usize) -> Vec<u8> {
    let start = seed % 4093;
    content()[start..start + len].to_vec()
}

/// Made before a service begins to answer: it must not take its time.
fn content() -> &'static [u8] {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENT.get_or_init(|| {
        let block: Vec<u8> =
            (0..1 << 16).map(|i: usize| (i.wrapping_mul(31) ^ (i >> 8).wrapping_mul(7)) as u8).collect();
        let mut all = Vec::with_capacity(LARGE + (1 << 17));
        for i in 0.. {
            if all.len() > LARGE + 4096 {
                break;
            }
            all.extend_from_slice(&block[i % 251..]);
        }
        all
    })
}

#[track_caller]
fn refused<T>(what: &str, result: Result<T>, kinds: &[ErrorKind]) -> Error {
    match result {
        Err(error) if kinds.contains(&error.kind()) => error,
        Err(error) => panic!("{what}: expected {kinds:?}, got {error:?}"),
        Ok(_) => panic!("{what}: succeeded, expected {kinds:?}"),
    }
}

/// Head of questions that services answer by themselves, whatever they do with others.
const ECHO: &[u8] = b"echo";

/// Stretches of memory around landings, in bytes: they keep landings apart and out of line.
const CANARY: usize = 61;

/// Bytes of a large part; Miri takes a second for each few thousand.
const LARGE: usize = if cfg!(miri) { 1 << 18 } else { 64 << 20 };

/// Deadline of operations that should end.
const LIMIT: Duration = Duration::from_secs(20);

/// What has no deadline of its own happens within.
const SOON: Duration = Duration::from_secs(5);

/// What the cases look at is there to be seen.
#[test]
#[should_panic(expected = "a byte before the landing was written")]
fn bytes_beside_a_landing_are_noticed() {
    let (room, mut landings) = Room::between(0xcb, &[3]).unwrap();
    landings[0].write(b"abc");
    room.bytes(landings);
}
