//! Does the suite see anything? Fabrics with one defect each, and the case that must fail for it.

use std::collections::{HashSet, VecDeque};
use std::mem::forget;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::fabric::fake::{Net, Time};
use crate::fabric::{Lander, Landings, MAX_PARTS, Outgoing, Respond};
use crate::pending::Source;

/// Defect, and a case that it fails.
const DEFECTS: &[(&str, &str)] = &[
    ("head_last_byte_lost", "head::round_trip"),
    ("empty_head_closes", "head::empty"),
    ("head_of_a_page", "head::longest"),
    ("question_cut", "head::too_long"),
    ("answer_cut", "head::answer_too_long"),
    ("instance_of_nobody", "head::identity"),
    ("from_nobody", "head::identity"),
    ("contact_of_nobody", "head::identity"),
    ("dropped_is_empty", "head::nobody_answers"),
    ("dropped_is_nothing", "head::nobody_answers"),
    ("lanes_bounded", "head::lanes"),
    ("parts_thousand", "part::counts"),
    ("parts_cut", "part::too_many"),
    ("bytes_of_a_mebibyte", "part::lengths"),
    ("last_byte_flipped", "part::lengths"),
    ("bytes_of_less", "part::large"),
    ("empty_parts_lost", "part::of_no_bytes"),
    ("landings_reversed", "part::scattered"),
    ("landings_elsewhere", "part::scattered"),
    ("refusal_changed", "part::land_refuses"),
    ("refusal_closes", "part::land_refuses"),
    ("landings_mended", "part::landings_unfit"),
    ("refusal_closes", "part::landings_unfit"),
    ("land_again", "part::land_once"),
    ("landings_mended", "part::uncalled_for"),
    ("parts_copied", "part::held_until_sent"),
    ("parts_leaked", "part::held_until_sent"),
    ("first_come", "concurrency::out_of_order"),
    ("parts_leaked", "concurrency::many"),
    ("poll_never_wakes", "concurrency::threads_and_tasks"),
    ("one_at_a_time", "concurrency::nobody_waits"),
    ("asked_twice", "concurrency::at_most_once"),
    ("close_closes_all", "concurrency::connections"),
    ("held_expires", "end::held_answer"),
    ("deadline_ignored", "end::gave_up"),
    ("wanted_always", "end::gave_up"),
    ("unwanted_kept", "end::gave_up"),
    ("land_leaked", "end::gave_up"),
    ("parts_leaked", "end::gave_up_on_parts"),
    ("land_leaked", "end::dropped"),
    ("wanted_always", "end::dropped"),
    ("peer_closes", "end::peer_dropped"),
    ("up_for_ever", "end::closed"),
    ("close_strands", "end::closed"),
    ("wanted_always", "end::closed_then_answered"),
    ("unwanted_kept", "end::closed_then_answered"),
    ("listener_lingers", "end::listener_dropped"),
    ("up_for_ever", "end::listener_dropped"),
    ("listener_lingers", "end::contact_free_again"),
    ("listens_elsewhere", "end::contact_taken"),
    ("listens_once", "end::contact_taken"),
    ("nobody_is_timeout", "end::nobody"),
    ("deadline_ignored", "end::deadline_passed"),
    ("deaf", "end::silent_owner"),
    ("up_for_ever", "end::silent_owner"),
    ("deaf", "end::silent_before"),
    ("land_leaked", "end::silent_before"),
    ("connects_for_ever", "end::silent_connect"),
    ("all_welcome", "end::stranger"),
];

/// Defects that only the clock reveals.
const HANGS: &[&str] = &[
    "dropped_is_nothing",
    "poll_never_wakes",
    "one_at_a_time",
    "deadline_ignored",
    "close_strands",
    "listener_lingers",
    "deaf",
    "connects_for_ever",
];

#[test]
fn wrappers_without_a_defect_pass() {
    for (case, _) in CASES {
        if let Err(text) = run(case, defective("none"), LIMIT * 2) {
            panic!("{case}: {text}");
        }
    }
}

#[test]
fn defects_are_seen() {
    let mut unseen = Vec::new();
    thread::scope(|scope| {
        let tried: Vec<_> = DEFECTS
            .iter()
            .map(|(defect, case)| {
                let limit = if HANGS.contains(defect) { Duration::from_secs(3) } else { LIMIT };
                scope.spawn(move || match run(case, defective(defect), limit) {
                    Ok(()) => Some(format!("{defect}: {case} passes")),
                    Err(text) if text.contains("did not end") && !HANGS.contains(defect) => {
                        Some(format!("{defect}: {case} {text}"))
                    }
                    Err(_) => None,
                })
            })
            .collect();
        unseen = tried.into_iter().filter_map(|one| one.join().unwrap()).collect();
    });
    assert!(unseen.is_empty(), "{unseen:#?}");
}

/// A case that no defect fails proves nothing.
#[test]
fn every_case_can_fail() {
    let known: HashSet<_> = DEFECTS.iter().map(|(_, case)| *case).collect();
    let unproved: Vec<_> = CASES.iter().map(|(case, _)| *case).filter(|case| !known.contains(case)).collect();
    assert!(unproved.is_empty(), "no defect fails {unproved:?}");
    let cases: HashSet<_> = CASES.iter().map(|(case, _)| *case).collect();
    assert!(known.is_subset(&cases), "defects of cases that do not exist");
}

/// A sound pair behind wrappers with that defect.
fn defective(defect: &'static str) -> Ends {
    let Ends { requester, owner, addresses, from, instance, silence, cut, stranger, settle } =
        crate::fabric::fake::tests::ends(&Net::new(Time::Auto, 1));
    let bad = |inner| Arc::new(Bad { inner, defect, silence, peers: Arc::default() }) as Arc<dyn Fabric>;
    let cut = if defect == "deaf" { Some(Box::new(|| {}) as Box<dyn Fn() + Send + Sync>) } else { cut };
    let stranger = if defect == "all_welcome" { Some(Arc::clone(&requester)) } else { stranger };
    Ends { requester: bad(requester), owner: bad(owner), addresses, from, instance, silence, cut, stranger, settle }
}

#[derive(Debug)]
struct Bad {
    inner: Arc<dyn Fabric>,
    defect: &'static str,
    silence: Duration,
    peers: Arc<Mutex<Vec<Weak<dyn Peer>>>>,
}

impl Fabric for Bad {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn listen(&self, addresses: &[SocketAddr], service: Arc<dyn Service>) -> Result<Box<dyn Listener>> {
        let defect = self.defect;
        let service = Arc::new(BadService { inner: service, defect, silence: self.silence, queue: Arc::default() });
        let addresses = if defect == "listens_once" { &addresses[..1] } else { addresses };
        let inner = match self.inner.listen(addresses, Arc::clone(&service) as Arc<dyn Service>) {
            Err(_) if defect == "listens_elsewhere" => {
                self.inner.listen(&[SocketAddr::new(addresses[0].ip(), 0)], service)?
            }
            listener => listener?,
        };
        Ok(Box::new(BadListener { inner: Some(inner), defect }))
    }

    fn connect(&self, contact: SocketAddr, deadline: Instant) -> Result<Arc<dyn Peer>> {
        let inner = match self.inner.connect(contact, deadline) {
            Err(_) if self.defect == "nobody_is_timeout" => {
                return Err(Error::new(ErrorKind::Timeout, "open", "nobody came"));
            }
            Err(_) if self.defect == "connects_for_ever" => loop {
                thread::park_timeout(LIMIT);
            },
            made => made?,
        };
        lock(&self.peers).push(Arc::downgrade(&inner));
        let others = Arc::clone(&self.peers);
        Ok(Arc::new(BadPeer { inner, defect: self.defect, others, turn: Arc::default(), closed: Mutex::new(false) }))
    }
}

#[derive(Debug)]
struct BadListener {
    inner: Option<Box<dyn Listener>>,
    defect: &'static str,
}

impl Listener for BadListener {
    fn contact(&self) -> SocketAddr {
        let contact = self.inner.as_ref().map(|inner| inner.contact()).expect("it is taken at the end only");
        SocketAddr::new(contact.ip(), if self.defect == "contact_of_nobody" { 0 } else { contact.port() })
    }
}

impl Drop for BadListener {
    fn drop(&mut self) {
        if self.defect == "listener_lingers" {
            forget(self.inner.take());
        }
    }
}

#[derive(Debug)]
struct BadPeer {
    inner: Arc<dyn Peer>,
    defect: &'static str,
    others: Arc<Mutex<Vec<Weak<dyn Peer>>>>,
    turn: Arc<Mutex<()>>,
    closed: Mutex<bool>,
}

impl Peer for BadPeer {
    fn instance(&self) -> u64 {
        if self.defect == "instance_of_nobody" { 0 } else { self.inner.instance() }
    }

    fn is_up(&self) -> bool {
        self.defect == "up_for_ever" || (self.inner.is_up() && !*lock(&self.closed))
    }

    fn lanes(&self) -> usize {
        self.inner.lanes()
    }

    fn request(self: Arc<Self>, mut call: Call) -> Pending<Answer> {
        let failed = |kind| Pending::ready(Err(Error::new(kind, "get", "a defect")));
        match self.defect {
            "empty_head_closes" if call.head.is_empty() => self.inner.close(),
            "head_of_a_page" => call.head.truncate(4096),
            "question_cut" => call.head.truncate(MAX_HEAD),
            "lanes_bounded" if call.lane >= self.lanes() => return failed(ErrorKind::Invalid),
            "close_strands" if *lock(&self.closed) => return failed(ErrorKind::PeerDown),
            _ => {}
        }
        let land = BadLand { inner: Some(call.land), defect: self.defect, peer: Arc::clone(&self.inner) };
        call.land = Box::new(land).into();
        if self.defect == "one_at_a_time" {
            let (inner, turn) = (Arc::clone(&self.inner), Arc::clone(&self.turn));
            return Pending::blocking(move || {
                let _turn = lock(&turn);
                inner.request(call).wait()
            });
        }
        let pending = Arc::clone(&self.inner).request(call);
        match self.defect {
            "deadline_ignored" => Pending::from_source(Stubborn(Some(pending))),
            "poll_never_wakes" => Pending::from_source(Sleepy(pending)),
            _ => pending,
        }
    }

    fn close(&self) {
        match self.defect {
            "close_strands" => *lock(&self.closed) = true,
            "close_closes_all" => {
                let all: Vec<_> = lock(&self.others).iter().filter_map(Weak::upgrade).collect();
                all.iter().for_each(|other| other.close());
            }
            _ => {}
        }
        if self.defect != "close_strands" {
            self.inner.close();
        }
    }
}

impl Drop for BadPeer {
    fn drop(&mut self) {
        if self.defect == "peer_closes" {
            self.inner.close();
        }
    }
}

/// Does not look at the clock.
struct Stubborn(Option<Pending<Answer>>);

impl Source<Answer> for Stubborn {
    fn wait(&mut self, _: Option<Instant>) -> Result<Answer> {
        self.0.take().map_or_else(|| Err(Error::new(ErrorKind::Cancelled, "wait", "taken")), Pending::wait)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer>> {
        self.0.as_mut().map_or(Poll::Pending, |pending| std::pin::Pin::new(pending).poll(cx))
    }
}

/// Forgets its tasks.
struct Sleepy(Pending<Answer>);

impl Source<Answer> for Sleepy {
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Answer> {
        let left = deadline.map_or(LIMIT, |deadline| deadline.saturating_duration_since(Instant::now()));
        std::mem::replace(&mut self.0, Pending::channel().1).deadline(left).wait()
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<Result<Answer>> {
        std::pin::Pin::new(&mut self.0).poll(&mut Context::from_waker(Waker::noop()))
    }
}

struct BadLand {
    inner: Option<Lander>,
    defect: &'static str,
    peer: Arc<dyn Peer>,
}

impl Land for BadLand {
    fn land(&mut self, head: &[u8], parts: &[u64]) -> Result<Vec<Landing>> {
        let elsewhere = || Room::new(&parts.iter().map(|len| *len as usize).collect::<Vec<_>>()).map(|(_, own)| own);
        let inner = self.inner.as_mut().expect("it is taken at the end only");
        let mut chosen = inner.land(head, parts).map(Landings::into_vec);
        let fit = |chosen: &Vec<Landing>| chosen.iter().map(|one| one.len() as u64).eq(parts.iter().copied());
        match self.defect {
            "land_again" => chosen = inner.land(head, parts).map(Landings::into_vec),
            "landings_elsewhere" => chosen = elsewhere(),
            "landings_reversed" => chosen.iter_mut().for_each(|chosen| chosen.reverse()),
            "landings_mended" if !chosen.as_ref().is_ok_and(fit) => chosen = elsewhere(),
            "refusal_changed" => chosen = chosen.map_err(|_| Error::new(ErrorKind::Corrupt, "get", "refused")),
            "refusal_closes" if !chosen.as_ref().is_ok_and(fit) => self.peer.close(),
            _ => {}
        }
        chosen
    }
}

impl Drop for BadLand {
    fn drop(&mut self) {
        if self.defect == "land_leaked" {
            forget(self.inner.take());
        }
    }
}

struct BadService {
    inner: Arc<dyn Service>,
    defect: &'static str,
    silence: Duration,
    queue: Arc<Mutex<VecDeque<Responder>>>,
}

impl Service for BadService {
    fn answer(&self, call: Incoming<'_>) {
        let Incoming { head, from, connection, responder } = call;
        let from = if self.defect == "from_nobody" { 0 } else { from };
        let respond = |inner| {
            let queue = Arc::clone(&self.queue);
            Responder::new(Box::new(BadRespond { inner: Arc::new(Mutex::new(inner)), defect: self.defect, queue }))
        };
        let mut inner = Some(responder);
        if self.defect == "first_come" {
            lock(&self.queue).extend(inner.take());
        }
        let inner = Arc::new(Mutex::new(inner));
        if self.defect == "held_expires" && head != ECHO {
            let (inner, silence) = (Arc::clone(&inner), self.silence);
            thread::spawn(move || {
                thread::sleep(silence);
                drop(lock(&inner).take());
            });
        }
        let queue = Arc::clone(&self.queue);
        let responder = Responder::new(Box::new(BadRespond { inner, defect: self.defect, queue }));
        self.inner.answer(Incoming { head, from, connection, responder });
        if self.defect == "asked_twice" {
            self.inner.answer(Incoming { head, from, connection, responder: respond(None) });
        }
    }
}

struct BadRespond {
    inner: Arc<Mutex<Option<Responder>>>,
    defect: &'static str,
    queue: Arc<Mutex<VecDeque<Responder>>>,
}

impl Respond for BadRespond {
    fn respond(self: Box<Self>, reply: Option<Outgoing>) {
        let responder = match self.defect {
            "first_come" => lock(&self.queue).pop_front(),
            _ => lock(&self.inner).take(),
        };
        let Some(responder) = responder else { return };
        let Some((mut head, mut parts)) = reply.map(Outgoing::into_bytes) else {
            return match self.defect {
                "dropped_is_empty" => responder.reply(Vec::new(), Vec::new()),
                "dropped_is_nothing" => forget(responder),
                _ => drop(responder),
            };
        };
        let shorten = |parts: &mut Vec<Bytes>, len| parts.iter_mut().for_each(|part| part.truncate(len));
        match self.defect {
            "head_last_byte_lost" => drop(head.pop()),
            "answer_cut" => head.truncate(MAX_HEAD),
            "parts_thousand" => parts.truncate(1000),
            "parts_cut" => parts.truncate(MAX_PARTS),
            "bytes_of_a_mebibyte" => shorten(&mut parts, 1 << 20),
            "bytes_of_less" => shorten(&mut parts, if cfg!(miri) { 1 << 17 } else { 32 << 20 }),
            "last_byte_flipped" => {
                if let Some(last) = parts.pop() {
                    let mut bytes = last.to_vec();
                    bytes.iter_mut().next_back().into_iter().for_each(|byte| *byte ^= 1);
                    parts.push(bytes.into());
                }
            }
            "empty_parts_lost" => parts.retain(|part| !part.is_empty()),
            "parts_copied" => parts.iter_mut().for_each(|part| *part = Bytes::copy_from_slice(part)),
            "parts_leaked" => parts.iter().for_each(|part| forget(part.clone())),
            "unwanted_kept" if !responder.is_wanted() => forget(std::mem::take(&mut parts)),
            _ => {}
        }
        responder.reply(head, parts);
    }

    fn is_wanted(&self) -> bool {
        self.defect == "wanted_always" || lock(&self.inner).as_ref().is_some_and(Responder::is_wanted)
    }
}
