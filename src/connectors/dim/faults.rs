//! The engine on a fabric with faults: two nodes, a model of what is true, and plans of what goes wrong.
//!
//! What is promised: never other bytes; nothing acknowledged is lost; what ended stays ended; a take that reports success
//! happened once; everything ends in time, in an answer or a typed error; and nothing stays pinned.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::fabric::fake::{Link, Net, Time};
use crate::fabric::fault::{Between, Fault, Plan, World};
use crate::fabric::{Listener, Service};
use crate::service::client::Options;
use crate::service::export::Export;
use crate::sync::lock;

const OWNER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// A node: its memory, its answers and its store.
struct Node {
    client: Arc<Client>,
    connector: DimConnector,
    _listener: Box<dyn Listener>,
}

/// Two nodes with faults between them.
struct Site {
    net: Net,
    owner: Node,
    other: Node,
}

impl Site {
    fn new(plan: &Plan, replicas: &str) -> Self {
        Self::of(["faults-owner", "faults-other"], plan, &[("replicas", replicas)])
    }

    /// On memories of its own, which no other test has objects in.
    fn of(names: [&'static str; 2], plan: &Plan, options: &[(&str, &str)]) -> Self {
        let net = Net::new(Time::Auto, 5);
        net.set_silence(SILENCE);
        net.set_default(Link { latency: Duration::from_micros(50), ..Link::default() });
        let world: Arc<dyn World> = Arc::new(Between { net: net.clone(), requester: OTHER, owner: OWNER });
        let node = |host: Ipv4Addr, name: &'static str| {
            let client = memory(name);
            let inner = Arc::new(net.node(host).instance(client.instance()));
            let fabric: Arc<dyn Fabric> = Fault::new(inner, plan.clone(), Arc::clone(&world));
            let export = Export::new(Arc::clone(&client));
            let service: Arc<dyn Service> = Arc::new(Arc::clone(&export));
            let listener = fabric.listen(&[(host, 0).into()], service).unwrap();
            export.set_contact(listener.contact());
            let config = ConnectorConfig::new("fake", name);
            let config = options.iter().fold(config, |config, (name, value)| config.with_option(*name, *value));
            let own = Arc::clone(&client);
            let connector = DimConnector::new(config, own, listener.contact(), &[7; 16], fabric).unwrap();
            Node { client, connector, _listener: listener }
        };
        let (owner, other) = (node(OWNER, names[0]), node(OTHER, names[1]));
        Self { net, owner, other }
    }

    /// Nothing goes wrong any more.
    fn heal(&self) {
        self.net.run();
        self.net.heal(OWNER, OTHER);
        self.net.heal(OTHER, OWNER);
        self.net.run();
    }
}

/// The memory of a node, which all cases of this process share.
fn memory(name: &'static str) -> Arc<Client> {
    static CLIENTS: OnceLock<Mutex<HashMap<&'static str, Arc<Client>>>> = OnceLock::new();
    let mut clients = lock(CLIENTS.get_or_init(Mutex::default));
    let attach = || {
        let options = Options {
            namespace: format!("test-{name}-{}", std::process::id()),
            budget: Some(64 << 20),
            displace: None,
            timeout: Duration::from_secs(20),
            may_host: true,
        };
        Client::attach(&options).unwrap()
    };
    Arc::clone(clients.entry(name).or_insert_with(attach))
}

/// What a program does, at the node that does not have the objects unless it says so.
#[derive(Clone, Debug)]
enum Op {
    Put(usize),
    Get(usize),
    GetAll,
    Exists(usize),
    Evict(usize),
    EvictAtOwner(usize),
    Take(usize),
    TakeAtOwner(usize),
    /// Declares at the owner, waits at the other node, and commits at one of them.
    Promise {
        len: usize,
        commits_at_owner: bool,
        arrives_first: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let len = || prop_oneof![Just(0), 1usize..100, 4000usize..9000, 100_000usize..200_000];
    let at = || 0usize..100;
    prop_oneof![
        4 => len().prop_map(Op::Put),
        4 => at().prop_map(Op::Get),
        1 => Just(Op::GetAll),
        2 => at().prop_map(Op::Exists),
        2 => at().prop_map(Op::Evict),
        1 => at().prop_map(Op::EvictAtOwner),
        3 => at().prop_map(Op::Take),
        1 => at().prop_map(Op::TakeAtOwner),
        2 => (len(), any::<bool>(), any::<bool>()).prop_map(|(len, commits_at_owner, arrives_first)| {
            Op::Promise { len, commits_at_owner, arrives_first }
        }),
    ]
}

/// What is known of an object.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Truth {
    Live,
    /// An operation that would have ended it failed: it may have, or may yet.
    Unsure,
    Gone,
}

/// What the model holds the engine to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Promise {
    All,
    /// Where copies are shared, what ended may be read for the length of a lease.
    ButCopies,
    /// Where heads are damaged, objects may be said to be missing, or be ended by what was another question.
    BytesOnly,
}

struct Known {
    promise: Promise,
    key: Key,
    bytes: Vec<u8>,
    truth: Truth,
    takes: usize,
}

impl Known {
    fn saw(&mut self, found: Result<Option<Region>>) {
        match found {
            Ok(Some(region)) => {
                assert!(*region == *self.bytes, "other bytes");
                assert!(self.truth != Truth::Gone || self.promise != Promise::All, "what ended is back");
            }
            Ok(None) => self.is_missing(),
            Err(error) => self.promise.typed(&error),
        }
    }

    fn is_missing(&mut self) {
        match self.promise {
            Promise::BytesOnly => self.is_unsure(),
            _ => {
                assert_ne!(self.truth, Truth::Live, "an object is lost");
                self.truth = Truth::Gone;
            }
        }
    }

    fn took(&mut self, found: Result<Option<Region>>) {
        match found {
            Ok(Some(region)) => {
                assert!(*region == *self.bytes, "other bytes");
                self.takes += 1;
                if self.promise != Promise::BytesOnly {
                    assert_ne!(self.truth, Truth::Gone, "taken after its end");
                    assert_eq!(self.takes, 1, "taken twice");
                }
                self.truth = Truth::Gone;
            }
            Ok(None) => self.is_missing(),
            Err(error) => {
                self.promise.typed(&error);
                self.is_unsure();
            }
        }
    }

    fn evicted(&mut self, ended: Result<()>) {
        match ended {
            Ok(()) => self.truth = Truth::Gone,
            Err(error) => {
                self.promise.typed(&error);
                self.is_unsure();
            }
        }
    }

    fn is_unsure(&mut self) {
        if self.truth == Truth::Live {
            self.truth = Truth::Unsure;
        }
    }
}

impl Promise {
    fn typed(self, error: &Error) {
        use ErrorKind::{Cancelled, Corrupt, Invalid, NoSpace, PeerDown, Timeout};
        let known = [PeerDown, Timeout, Cancelled, Corrupt, NoSpace, Invalid];
        assert!(known.contains(&error.kind()) || self == Self::BytesOnly, "{error:?}");
    }

    fn kept(self, holds: bool, text: &str) {
        assert!(holds || self == Self::BytesOnly, "{text}");
    }
}

/// Bytes that belong to one object of one run.
fn content(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ seed.wrapping_mul(101)) as u8).collect()
}

/// Runs a program under a plan. Panics where a promise is broken.
fn run(plan: &Plan, ops: &[Op], promise: Promise) {
    let site = Site::new(plan, if promise == Promise::ButCopies { "on" } else { "off" });
    let (owner, other) = (&site.owner.connector, &site.other.connector);
    let mut known: Vec<Known> = Vec::new();
    for (number, op) in ops.iter().enumerate() {
        let begin = Instant::now();
        let at = |at: &usize, known: &[Known]| (!known.is_empty()).then(|| at % known.len());
        match op {
            Op::Put(len) => {
                let bytes = content(number, *len);
                let key = owner.put(&bytes, Format::RAW).wait().expect("a put is local");
                known.push(Known { promise, key, bytes, truth: Truth::Live, takes: 0 });
            }
            Op::Get(i) => at(i, &known).into_iter().for_each(|i| {
                let found = other.get(&known[i].key).deadline(LIMIT).wait();
                known[i].saw(found);
            }),
            Op::GetAll => {
                let keys: Vec<Key> = known.iter().map(|one| one.key).collect();
                match other.get_batch(&keys).deadline(LIMIT).wait() {
                    Ok(all) => known.iter_mut().zip(all).for_each(|(one, found)| one.saw(Ok(found))),
                    Err(error) => promise.typed(&error),
                }
            }
            Op::Exists(i) => {
                at(i, &known).into_iter().for_each(|i| match other.exists(&known[i].key).deadline(LIMIT).wait() {
                    Ok(true) => promise.kept(known[i].truth != Truth::Gone, "what ended exists"),
                    Ok(false) => known[i].is_missing(),
                    Err(error) => promise.typed(&error),
                })
            }
            Op::Evict(i) => at(i, &known).into_iter().for_each(|i| {
                let ended = other.evict(&known[i].key).deadline(LIMIT).wait();
                known[i].evicted(ended);
            }),
            Op::EvictAtOwner(i) => at(i, &known).into_iter().for_each(|i| {
                let ended = owner.evict(&known[i].key).deadline(LIMIT).wait();
                known[i].evicted(ended);
            }),
            Op::Take(i) => at(i, &known).into_iter().for_each(|i| {
                let found = other.take(&known[i].key).deadline(LIMIT).wait();
                known[i].took(found);
            }),
            Op::TakeAtOwner(i) => at(i, &known).into_iter().for_each(|i| {
                let found = owner.take(&known[i].key).deadline(LIMIT).wait();
                known[i].took(found);
            }),
            Op::Promise { len, commits_at_owner, arrives_first } => {
                let bytes = content(number, *len);
                declared(&site, bytes, *commits_at_owner, *arrives_first, promise);
            }
        }
        assert!(begin.elapsed() < LIMIT * 2 + SLACK, "{op:?} took {:?}", begin.elapsed());
    }
    plan.release();
    site.heal();
    known.iter_mut().for_each(|one| still_there(&site, one));
    end(site, known);
}

/// A declared object that is waited for elsewhere.
fn declared(site: &Site, bytes: Vec<u8>, commits_at_owner: bool, arrives_first: bool, promise: Promise) {
    let (owner, other) = (&site.owner.connector, &site.other.connector);
    let key = owner.declare(Format::RAW).expect("a declaration is local");
    let waiting = other.get_when_committed(&key).deadline(LIMIT).start();
    if arrives_first {
        site.net.run();
    }
    let committer = if commits_at_owner { owner } else { other };
    let region = || {
        let mut region = committer.reserve(bytes.len()).expect("room");
        bytes::BufMut::put_slice(&mut region, &bytes);
        region
    };
    let committed = committer.commit_at(&key, region()).deadline(LIMIT).wait();
    if let Err(error) = &committed {
        promise.typed(error);
        assert!(!commits_at_owner, "{error}: a commit at the owner is local");
    }
    match waiting.wait() {
        Ok(region) => assert!(*region == *bytes, "other bytes"),
        Err(error) => promise.typed(&error),
    }
    if committed.is_ok() {
        let again = committer.commit_at(&key, region()).deadline(LIMIT).wait();
        match again {
            Ok(()) => promise.kept(false, "committed twice"),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => promise.typed(&error),
        }
        match owner.get(&key).deadline(LIMIT).wait() {
            Ok(Some(region)) => assert!(*region == *bytes, "other bytes"),
            Ok(None) => promise.kept(false, "an object that was committed is lost"),
            Err(error) => promise.typed(&error),
        }
    }
    let _ = owner.evict(&key).deadline(LIMIT).wait();
}

/// What was acknowledged is there once nothing goes wrong any more.
fn still_there(site: &Site, one: &mut Known) {
    let begin = Instant::now();
    loop {
        match site.other.connector.get(&one.key).deadline(LIMIT).wait() {
            // Steps that are left of the plan strike here, and a peer that was down is left alone for a while.
            Err(error) => assert!(begin.elapsed() < Duration::from_secs(10), "{error:?}"),
            found => return one.saw(found),
        }
        site.heal();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Evicts what is left; nothing of either node's memory may be taken then.
fn end(site: Site, known: Vec<Known>) {
    known.iter().for_each(|one| site.owner.connector.evict(&one.key).wait().expect("an evict is local"));
    let clients = [Arc::clone(&site.owner.client), Arc::clone(&site.other.client)];
    site.net.run();
    drop((known, site));
    let begin = Instant::now();
    for client in clients {
        loop {
            let stats = client.stats().expect("the node service answers");
            if stats.dying.count == 0 {
                break;
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "something stays pinned: {stats:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(), 1..30)
}

/// Deadline of every operation that may cross the fabric.
const LIMIT: Duration = Duration::from_millis(250);

/// What a busy machine adds to it.
const SLACK: Duration = Duration::from_secs(10);

/// Shorter than the deadline, so that a cut shows in `PeerDown` too.
const SILENCE: Duration = Duration::from_millis(150);

const LONGEST: Duration = Duration::from_millis(400);

#[test]
fn nothing_goes_wrong_without_faults() {
    let ops: Vec<Op> = (0..12)
        .flat_map(|i| {
            let promise = Op::Promise { len: 5000, commits_at_owner: i % 2 == 0, arrives_first: i % 3 == 0 };
            [Op::Put(i * 700), Op::Get(i), Op::Exists(i), Op::GetAll, promise, Op::Take(i * 2), Op::Evict(i)]
        })
        .collect();
    run(&Plan::default(), &ops, Promise::All);
    run(&Plan::default(), &ops, Promise::ButCopies);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, max_shrink_time: 60_000, ..ProptestConfig::default() })]

    #[test]
    fn promises_hold(plan in Plan::whole(6, 20, LONGEST), ops in ops()) {
        run(&plan, &ops, Promise::All);
    }

    #[test]
    fn promises_hold_with_copies(plan in Plan::whole(6, 20, LONGEST), ops in ops()) {
        run(&plan, &ops, Promise::ButCopies);
    }

    /// A fabric has to check heads; where it does not, there still are no other bytes, no panics and no hangs.
    #[test]
    fn damaged_heads_give_no_other_bytes(plan in Plan::any(10, 20, LONGEST), ops in ops()) {
        run(&plan, &ops, Promise::BytesOnly);
    }
}

/// The answer to a take is lost, and the connection with it: it is asked again by its number, and has happened once.
#[test]
fn a_take_whose_answer_is_lost_happened_once() {
    for plan in [
        "replied#2 close",
        "reply#2 close",
        "sent#2 close",
        "question#2 duplicate",
        "question#2 duplicate; replied#2 close",
    ] {
        let plan: Plan = plan.parse().unwrap();
        let site = Site::new(&plan, "off");
        let bytes = content(1, 5000);
        let key = site.owner.connector.put(&bytes, Format::RAW).wait().unwrap();
        let taken = site.other.connector.take(&key).deadline(LIMIT * 8).wait().unwrap();
        assert!(taken.is_some_and(|region| *region == *bytes), "{plan:?}");
        assert!(!plan.did().is_empty());
        assert!(site.other.connector.take(&key).deadline(LIMIT * 8).wait().unwrap().is_none(), "{plan:?}");
        assert!(site.owner.connector.get(&key).wait().unwrap().is_none(), "{plan:?}");
    }
}

/// What is known of an original counts from when it was asked about, not from when somebody looked at the answer.
#[test]
fn an_answer_that_lay_about_refreshes_nothing() {
    let site = Site::of(["late-owner", "late-other"], &Plan::default(), &[("lease", "200ms")]);
    let (owner, other) = (&site.owner.connector, &site.other.connector);
    let key = owner.put(b"once", Format::RAW).wait().unwrap();
    assert!(other.get(&key).wait().unwrap().is_some());
    let exists = other.exists(&key);
    site.net.run();
    owner.evict(&key).wait().unwrap();
    std::thread::sleep(Duration::from_millis(400));
    assert!(exists.wait().unwrap(), "it was there when it was asked about");
    assert!(other.get(&key).wait().unwrap().is_none(), "an evicted object is shown after its lease");
}

/// Copies whose leases are over are asked about together.
#[test]
fn a_batch_of_stale_copies_is_one_question() {
    let site = Site::of(["stale-owner", "stale-other"], &Plan::default(), &[("lease", "0s")]);
    let (owner, other) = (&site.owner.connector, &site.other.connector);
    let keys: Vec<Key> = (0..50).map(|i| owner.put(&content(i, 100), Format::RAW).wait().unwrap()).collect();
    assert!(other.get_batch(&keys).wait().unwrap().iter().all(Option::is_some));
    owner.evict(&keys[7]).wait().unwrap();
    let before = site.net.traffic(OTHER).messages;
    let found = other.get_batch(&keys).wait().unwrap();
    assert!(found.iter().enumerate().all(|(i, found)| found.is_some() == (i != 7)));
    // The question, and the news that nobody waits for its answer any more.
    assert_eq!(site.net.traffic(OTHER).messages - before, 2);
}

/// A commit that was never asked for leaves nothing behind.
#[test]
fn a_commit_that_reaches_nobody_keeps_no_object() {
    let site = Site::of(["unasked-owner", "unasked-other"], &"connect#1 drop".parse().unwrap(), &[]);
    let key = site.owner.connector.declare(Format::RAW).unwrap();
    let live = || site.other.client.stats().unwrap().live.count;
    let before = live();
    let region = site.other.connector.reserve(100).unwrap();
    let committed = site.other.connector.commit_at(&key, region).deadline(LIMIT).wait();
    assert_eq!(committed.unwrap_err().kind(), ErrorKind::PeerDown);
    assert_eq!(live(), before);
}

#[test]
fn what_may_be_bound_stays() {
    for kind in [ErrorKind::PeerDown, ErrorKind::Timeout, ErrorKind::Cancelled, ErrorKind::Corrupt, ErrorKind::Io] {
        assert!(!may_be_bound(0, kind) && may_be_bound(1, kind) && may_be_bound(2, kind));
    }
    assert!(!may_be_bound(1, ErrorKind::NoSpace) && may_be_bound(2, ErrorKind::NoSpace));
    assert!(!may_be_bound(2, ErrorKind::TypeMismatch));
}

/// A service that took over and found its predecessor's port in use is reached at another.
#[test]
fn keys_name_the_service_that_is_there_now() {
    let site = Site::of(["moved-owner", "moved-other"], &Plan::default(), &[]);
    let contact_of = |key: &Key| site.owner.connector.objects.signer.address("get", key).unwrap().contact;
    let before = site.owner.connector.put(b"before", Format::RAW).wait().unwrap();
    assert_eq!(contact_of(&before), site.owner.connector.contact);
    let moved: SocketAddr = (OWNER, 12345).into();
    crate::service::contact::write(site.owner.client.table(), moved);
    let after = site.owner.connector.put(b"after", Format::RAW).wait().unwrap();
    let declared = site.owner.connector.declare(Format::RAW).unwrap();
    assert_eq!((contact_of(&after), contact_of(&declared)), (moved, moved));
}
