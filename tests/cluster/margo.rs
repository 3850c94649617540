//! What only `margo://` can do wrong: leave things in a foreign library, be stopped with it, lack it, or be told of another protocol.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::hosts::{Cluster, Host, Worker, missing};
use crate::needs;
use crate::pair::{
    ENVIRONMENT, MARGO, Pair, SECOND, SILENCE, TCP, assert_error, assert_unpinned, await_answer, figures, get, node,
    node_with, put, settles, split, timed,
};

pub(crate) fn trials() -> Vec<Trial> {
    let there = missing().and(MARGO.missing());
    vec![
        needs(&there, "margo_leaves_nothing", 90, leaves_nothing),
        needs(&there, "margo_slow_links", 120, slow),
        needs(&there, "margo_owner_stopped_during_a_get", 90, stopped),
        needs(&there, "margo_owner_stopped_after_a_get_was_given_up", 90, given_up),
        needs(&there, "margo_owner_back_at_the_same_address", 60, back),
        needs(&there, "margo_missing_where_objects_are", 30, missing_there),
        needs(&there, "margo_missing_where_it_is_asked_for", 30, missing_here),
        needs(&there, "margo_protocol_that_is_not_there", 30, other_protocol),
    ]
}

/// Requesters come and go; owners do.
fn leaves_nothing() {
    let mut pair = Pair::new(MARGO);
    let key = put(&mut pair.owner, 1, 3_000_000);
    pair.requester.expect(&format!("get {key} 1"), "same");
    let owner_before = figures(&mut pair.owner);
    for round in 0..6 {
        let mut other = node_with(MARGO, &pair.hosts[1], &[]);
        await_answer(&mut other, &format!("get {key} 1"), "same", SILENCE * 3);
        if round % 2 == 0 { other.end() } else { other.kill() }
    }
    settles("the owner", &mut pair.owner, owner_before);
    let before = figures(&mut pair.requester);
    for seed in 10..16 {
        // Hosted by nobody else: each ends with all that it has.
        let environment = [("PROXYSTORE_RUNTIME_DIR", "/run/another"), ("PROXYSTORE_PORT", "0")];
        let mut owner = node_with(MARGO, &pair.hosts[0], &environment);
        let key = put(&mut owner, seed, 3_000_000);
        await_answer(&mut pair.requester, &format!("get {key} {seed}"), "same", SILENCE * 3);
        if seed % 2 == 0 {
            owner.end()
        } else {
            owner.kill()
        }
        assert_error(&get(&mut pair.requester, &key, seed), &["PeerDown", "Stale"]);
    }
    settles("the requester", &mut pair.requester, before);
    pair.requester.expect(&format!("get {key} 1"), "same");
}

/// An object that takes ten times the silence, each stretch of it longer than bytes stay pinned without a word: asked first, and
/// then pulled with the question, whose answer comes behind the bytes. And a small one meanwhile.
fn slow() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let patience = [("PROXYSTORE_TIMEOUT", "2s")];
    let (mut owner, mut requester) = (node_with(MARGO, &one, &patience), node_with(MARGO, &two, &patience));
    let (large, small) = (put(&mut owner, 1, 24 << 20), put(&mut owner, 2, 1000));
    requester.expect("limit 60000", "done");
    requester.expect(&format!("get {small} 2"), "same");
    one.shape(&["rate=10mbit"]);
    for way in ["asked first", "both at once"] {
        let (took, answer) = timed(&mut requester, &format!("get {large} 1"));
        assert_eq!(answer, "same", "{way}: {took:?}");
        assert!(took > SECOND * 15, "{way}: {took:?}");
        requester.expect(&format!("get {small} 2"), "same");
    }
    requester.expect("settled", "settled");
    assert_unpinned(&mut owner, &large, SILENCE);
}

/// A process that is stopped, not killed: its sockets stay, and nobody answers. Memory that its bytes would land in comes back.
fn stopped() {
    let mut site = Site::new();
    site.hosts[0].shape(&["rate=200mbit"]);
    site.requester.tell(&format!("timed get {} 1", site.large));
    std::thread::sleep(SECOND / 2);
    site.owner.signal("STOP");
    let (took, answer) = split(&site.requester.reply());
    assert_error(&answer, &["PeerDown", "Timeout"]);
    assert!(took < SILENCE + SECOND * 2, "{took:?} {answer}");
    let (took, answer) = timed(&mut site.requester, &format!("get {} 2", site.small));
    assert_error(&answer, &["PeerDown", "Timeout"]);
    assert!(took < SILENCE + SECOND * 2, "{took:?} {answer}");
    site.landing_comes_back();
    site.resumes();
}

/// The same, when nobody waits for the bytes any more as their owner stops.
fn given_up() {
    let mut site = Site::new();
    site.hosts[0].shape(&["rate=50mbit"]);
    site.requester.expect("limit 700", "done");
    assert_error(&get(&mut site.requester, &site.large, 1), &["Timeout"]);
    site.owner.signal("STOP");
    site.requester.expect("limit 0", "done");
    site.landing_comes_back();
    site.resumes();
}

/// A requester whose node has room for one large object.
struct Site {
    _cluster: Cluster,
    hosts: [Host; 2],
    owner: Worker,
    requester: Worker,
    large: String,
    small: String,
}

impl Site {
    fn new() -> Self {
        let cluster = Cluster::new(2);
        let hosts = cluster.hosts();
        let mut owner = node(MARGO, &hosts[0]);
        let url = MARGO.url(&format!("test?replicas=off&bytes={}", LARGE * 3 / 2));
        let mut requester = hosts[1].start(&["--node", &url], ENVIRONMENT);
        let (large, small) = (put(&mut owner, 1, LARGE), put(&mut owner, 2, 100));
        await_answer(&mut requester, &format!("get {small} 2"), "same", SILENCE * 3);
        let own = put(&mut requester, 3, LARGE);
        assert_error(&requester.ask(&format!("put 4 {LARGE}")), &["NoSpace"]);
        requester.expect(&format!("evict {own}"), "done");
        Self { _cluster: cluster, hosts, owner, requester, large, small }
    }

    /// Though its owner is still stopped.
    fn landing_comes_back(&mut self) {
        let begun = Instant::now();
        loop {
            let answer = self.requester.ask(&format!("put 5 {LARGE}"));
            if let Some(key) = answer.strip_prefix("key ") {
                self.requester.expect(&format!("evict {key}"), "done");
                return self.requester.expect("settled", "settled");
            }
            assert_error(&answer, &["NoSpace"]);
            let late = begun.elapsed() > SILENCE * 3;
            assert!(!late, "the landing is still taken: {answer}; {}", self.requester.ask("settled"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn resumes(mut self) {
        self.owner.signal("CONT");
        self.hosts[0].unshape();
        await_answer(&mut self.requester, &format!("get {} 2", self.small), "same", SILENCE + SECOND);
        await_answer(&mut self.requester, &format!("get {} 1", self.large), "same", SILENCE + SECOND);
        assert_unpinned(&mut self.owner, &self.large, SILENCE + SECOND);
    }
}

/// Another process listens where the first one did, with other objects: never the bytes of one for the other's.
fn back() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut requester = node_with(MARGO, &two, &[]);
    let mut former: Option<String> = None;
    for seed in 1..5 {
        let mut owner = node_with(MARGO, &one, &[]);
        let key = put(&mut owner, seed, 2_000_000);
        if let Some(former) = former.replace(key.clone()) {
            let (took, answer) = timed(&mut requester, &format!("get {former} {}", seed - 1));
            assert_error(&answer, &["Stale", "PeerDown"]);
            assert!(took < SILENCE, "{took:?} {answer}");
        }
        await_answer(&mut requester, &format!("get {key} {seed}"), "same", SILENCE * 3);
        owner.kill();
    }
    requester.expect("settled", "settled");
}

/// The node service that has the objects runs in a process that finds no Margo.
fn missing_there() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut host = node_with(TCP, &one, &[(LIBRARY, "/nonexistent")]);
    let mut owner = node_with(MARGO, &one, &[]);
    let mut requester = node_with(MARGO, &two, &[]);
    assert_eq!(host.ask("host"), host.id(), "the wrong process hosts");
    let key = put(&mut owner, 1, 1000);
    owner.expect(&format!("get {key} 1"), "same");
    let (took, answer) = timed(&mut requester, &format!("get {key} 1"));
    assert_error(&answer, &["Unavailable"]);
    assert!(answer.contains("/nonexistent"), "it does not say why: {answer}");
    assert!(took < SILENCE, "{took:?}");
    // TCP is not touched by that.
    let key = put(&mut host, 2, 1000);
    node_with(TCP, &two, &[]).expect(&format!("get {key} 2"), "same");
}

fn missing_here() {
    let cluster = Cluster::new(1);
    let [one] = cluster.hosts();
    let environment = [ENVIRONMENT, &[(LIBRARY, "/nonexistent")]].concat();
    let said = one.try_start(&["--node", &MARGO.direct()], &environment).map(|_| ()).unwrap_err();
    assert_error(&said, &["Unavailable"]);
    assert!(said.contains("/nonexistent (PROXYSTORE_MARGO_LIB): is neither a file nor a directory"), "{said}");
}

fn other_protocol() {
    let cluster = Cluster::new(1);
    let [one] = cluster.hosts();
    for protocol in ["ofi+nothing", "tcp"] {
        let url = MARGO.url(&format!("test?replicas=off&protocol={protocol}"));
        let said = one.try_start(&["--node", &url], ENVIRONMENT).map(|_| ()).unwrap_err();
        assert_error(&said, &["Config"]);
        assert!(said.contains(protocol), "{said}");
    }
    // What this Mercury has is named.
    let url = MARGO.url("test?replicas=off&protocol=ofi+nothing");
    let said = one.try_start(&["--node", &url], ENVIRONMENT).map(|_| ()).unwrap_err();
    assert!(said.contains("na+sm"), "{said}");
}

/// More bytes than are pulled at once over a slow link in the time that these tests take.
const LARGE: usize = 40 << 20;

const LIBRARY: &str = "PROXYSTORE_MARGO_LIB";
