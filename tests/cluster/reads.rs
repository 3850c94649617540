//! Reading an owner's memory without its process, over `ucx://`: between two nodes on one host, by cma, which no two hosts share.

use std::time::Duration;

use libtest_mimic::Trial;

use crate::hosts::{Cluster, Host, Worker, missing};
use crate::needs;
use crate::pair::{ENVIRONMENT, SECOND, SILENCE, UCX, assert_error, await_answer, get, put, split, timed};

pub(crate) fn trials() -> Vec<Trial> {
    let there = missing().and(UCX.missing()).and(reads());
    vec![
        needs(&there, "ucx_reads_memory_of_a_stopped_owner", 60, stopped),
        needs(&there, "ucx_reads_memory_of_an_owner_that_is_killed", 60, killed),
        needs(&there, "ucx_reads_no_memory_that_was_used_again", 120, used_again),
        needs(&there, "ucx_reads_what_was_not_evicted", 60, evicted),
    ]
}

/// Why this UCX would not read, if it would not.
fn reads() -> Result<(), String> {
    #[cfg(feature = "ucx")]
    {
        let version = ucx_sys::load().map(|ucx| ucx.version()).map_err(|error| error.to_string())?;
        if version.minor < 21 {
            return Err(format!("UCX {version} cannot be told not to emulate: needs 1.21 in PROXYSTORE_UCX_LIB"));
        }
    }
    Ok(())
}

/// Two nodes that reach each other's memory.
struct Site {
    _cluster: Cluster,
    host: Host,
    owner: Worker,
    requester: Worker,
}

impl Site {
    fn new(rest: &str) -> Self {
        let cluster = Cluster::new(1);
        let [host] = cluster.hosts();
        let (owner, requester) = (node(&host, "/run/owner", rest), node(&host, "/run/requester", rest));
        Self { _cluster: cluster, host, owner, requester }
    }
}

/// A process that is a node: it has a service of its own.
fn node(host: &Host, directory: &str, rest: &str) -> Worker {
    let own = [("PROXYSTORE_RUNTIME_DIR", directory), ("PROXYSTORE_PORT", "0"), ("UCX_TLS", "tcp,sysv,cma")];
    let url = UCX.url(&format!("test?replicas=off&one_sided=on{rest}"));
    host.start(&["--node", &url], &[ENVIRONMENT, &own].concat())
}

/// Gets an object until it would be known again.
#[track_caller]
fn learn(requester: &mut Worker, key: &str, seed: u64) {
    for _ in 0..2 {
        assert_eq!(get(requester, key, seed), "same");
    }
}

/// Nothing else shows as well that its process does nothing.
fn stopped() {
    let mut site = Site::new("&lease=1h");
    let keys = [(1, 1), (2, 5_000), (3, 300_000), (4, 4_000_000)].map(|(seed, len)| {
        let key = put(&mut site.owner, seed, len);
        learn(&mut site.requester, &key, seed);
        // Its segment is described with the first read there.
        assert_eq!(get(&mut site.requester, &key, seed), "same");
        (key, seed)
    });
    let unknown = put(&mut site.owner, 9, 5_000);
    site.owner.signal("STOP");
    for (key, seed) in &keys {
        let (took, answer) = timed(&mut site.requester, &format!("get {key} {seed}"));
        assert!(answer == "same" && took < SECOND, "{seed}: {answer} after {took:?}");
    }
    let (_, answer) = timed(&mut site.requester, &format!("get {unknown} 9"));
    assert_error(&answer, &["PeerDown", "Timeout"]);
    site.owner.signal("CONT");
    await_answer(&mut site.requester, &format!("get {unknown} 9"), "same", SILENCE + SECOND);
    for (key, seed) in &keys {
        assert_eq!(get(&mut site.requester, key, *seed), "same");
    }
}

fn killed() {
    let mut site = Site::new("&lease=1h");
    for round in 0..4 {
        let keys: Vec<String> = (0..8).map(|seed| put(&mut site.owner, seed, 20_000)).collect();
        keys.iter().zip(0..).for_each(|(key, seed)| learn(&mut site.requester, key, seed));
        site.requester.tell(&format!("timed load 0 8000 {}", keys.join(",")));
        std::thread::sleep(Duration::from_millis(300 + 37 * round));
        site.owner.kill();
        let (took, answer) = split(&site.requester.reply());
        let (count, end) =
            answer.strip_prefix("after ").and_then(|rest| rest.split_once(": ")).unwrap_or_else(|| panic!("{answer}"));
        assert_error(end, &["PeerDown", "Stale", "Timeout"]);
        assert!(took < SECOND + SILENCE * 2, "{took:?}");
        assert!(count.parse::<u64>().unwrap() > 100, "{answer}: that is no reading");
        site.owner = node(&site.host, "/run/owner", "&lease=1h");
    }
    let key = put(&mut site.owner, 1, 1000);
    (0..4).for_each(|_| await_answer(&mut site.requester, &format!("get {key} 1"), "same", SILENCE + SECOND));
}

/// The owner ends objects, and puts others into their memory, while they are read.
fn used_again() {
    let mut site = Site::new("&lease=1h");
    let mut gone = 0;
    for round in 0..12 {
        let len = [300, 9_000, 70_000, 700_000][round % 4];
        let first = round as u64 * 1000;
        let keys: Vec<String> = (first..first + 40).map(|seed| put(&mut site.owner, seed, len)).collect();
        keys.iter().zip(first..).for_each(|(key, seed)| learn(&mut site.requester, key, seed));
        site.requester.tell(&format!("whole {first} 1500 {}", keys.join(",")));
        std::thread::sleep(Duration::from_millis(100));
        site.owner.expect(&format!("recycle {} {len} {}", first + 500, keys.join(",")), "done");
        let answer = site.requester.reply();
        let counts: Vec<u64> = answer.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(answer.starts_with("same ") && counts.len() == 2 && counts[0] > 0, "{answer}");
        gone += counts[1];
    }
    assert!(gone > 0, "nothing was read of what had gone");
}

/// Without leave, an object that was evicted is not read, though its bytes are there.
fn evicted() {
    let mut site = Site::new("");
    for round in 0..20 {
        let key = put(&mut site.owner, round, 50_000);
        learn(&mut site.requester, &key, round);
        assert_eq!(get(&mut site.requester, &key, round), "same");
        if round % 2 == 0 {
            site.owner.expect(&format!("evict {key}"), "done");
        } else {
            site.requester.expect(&format!("evict {key}"), "done");
        }
        assert_eq!(get(&mut site.requester, &key, round), "none");
    }
}
