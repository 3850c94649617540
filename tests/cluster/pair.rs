//! Two hosts with a process of the job each, and what is asked of them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::hosts::{self, Cluster, Host, Worker};
use crate::needs;

/// What the hosts' stores meet over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fabric {
    scheme: &'static str,
}

pub(crate) const TCP: Fabric = Fabric { scheme: "tcp" };
pub(crate) const UCX: Fabric = Fabric { scheme: "ucx" };
pub(crate) const MARGO: Fabric = Fabric { scheme: "margo" };

impl Fabric {
    /// Of a namespace and options.
    pub(crate) fn url(self, rest: &str) -> String {
        format!("{}://{rest}", self.scheme)
    }

    /// Where a get crosses the network each time.
    pub(crate) fn direct(self) -> String {
        self.url("test?replicas=off")
    }

    /// Why a row cannot end well, with the library that is here or at all, if it cannot.
    fn survives(self, row: &str) -> Result<(), String> {
        #[cfg(feature = "ucx")]
        if self == UCX && matches!(row, "row_32_owner_killed_at_every_step" | "chaos_between_hosts") {
            let minor = ucx_sys::load().map_or(0, |ucx| ucx.version().minor);
            if minor < 14 {
                return Err(format!("UCX 1.{minor} ends a process at times whose peer is gone by then; docs/ucx.md"));
            }
        }
        let _ = row;
        Ok(())
    }

    /// Where processes are killed: in all fabrics, where over others than TCP it is the control connection that passes, with
    /// answers that are too short to go in two; and in this one beside it.
    pub(crate) fn places(self, all: &[&str], beside: &[&str]) -> Vec<String> {
        if self == TCP {
            return all.iter().map(|place| (*place).to_owned()).collect();
        }
        let all = all.iter().filter(|place| **place != "fabric.answer.half").map(|place| (*place).to_owned());
        all.chain(beside.iter().map(|place| format!("{}.{place}", self.scheme))).collect()
    }

    /// Why there is none here, if there is none.
    pub(crate) fn missing(self) -> Result<(), String> {
        match self.scheme {
            #[cfg(feature = "ucx")]
            "ucx" => ucx_sys::load().map(|_| ()).map_err(|error| error.to_string()),
            #[cfg(feature = "margo")]
            "margo" => margo_sys::load().map(|_| ()).map_err(|error| error.to_string()),
            "tcp" => Ok(()),
            feature => Err(format!("needs the cargo feature {feature:?}")),
        }
    }
}

/// Name, bound in seconds, fabrics, and the test.
pub(crate) type Row = (&'static str, u64, Over, fn(Fabric));

/// Which fabrics a row runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// Nothing but TCP: what is disturbed there is a TCP connection of ours, which the others have for control.
    Tcp,
    /// TCP always; the others when asked to, since most of it is the connector's, which is the same over all.
    Asked,
    /// All.
    Always,
}

/// The trials of rows: by the row's name over TCP, by `SCHEME_` and that over others.
pub(crate) fn trials(rows: &[Row], missing: &Result<(), String>) -> Vec<Trial> {
    let hosts = hosts::missing().and(missing.clone());
    let mut trials = Vec::new();
    for &(name, seconds, _, run) in rows {
        trials.push(needs(&hosts, name, seconds, move || run(TCP)));
    }
    for fabric in [UCX, MARGO] {
        let missing = hosts.clone().and(fabric.missing());
        for &(name, seconds, over, run) in rows.iter().filter(|(_, _, over, _)| *over != Over::Tcp) {
            let theirs = format!("{}_{name}", fabric.scheme);
            let missing = missing.clone().and(fabric.survives(name));
            let trial = needs(&missing, &theirs, seconds, move || run(fabric));
            trials.push(match over {
                Over::Asked if missing.is_ok() => {
                    trial.with_ignored_flag(true).with_kind("when asked to, by --ignored")
                }
                _ => trial,
            });
        }
    }
    trials
}

/// Two hosts; a process on each.
pub(crate) struct Pair {
    pub(crate) fabric: Fabric,
    _cluster: Cluster,
    pub(crate) hosts: [Host; 2],
    pub(crate) owner: Worker,
    pub(crate) requester: Worker,
}

impl Pair {
    pub(crate) fn new(fabric: Fabric) -> Self {
        let cluster = Cluster::new(2);
        let hosts = cluster.hosts();
        let (mut owner, mut requester) = (node(fabric, &hosts[0]), node(fabric, &hosts[1]));
        if fabric == MARGO {
            // Its start takes some tenths of a second of processor time on either side, which a busy machine gives it late.
            let key = put(&mut owner, 1, 1);
            requester.expect(&format!("limit {}", hosts::PATIENCE.as_millis()), "done");
            requester.expect(&format!("get {key} 1"), "same");
            requester.expect("limit 0", "done");
            owner.expect(&format!("evict {key}"), "done");
        }
        Self { fabric, _cluster: cluster, hosts, owner, requester }
    }
}

pub(crate) fn node(fabric: Fabric, host: &Host) -> Worker {
    node_with(fabric, host, &[])
}

/// A process that opens a store where each get crosses the network.
pub(crate) fn node_with(fabric: Fabric, host: &Host, environment: &[(&str, &str)]) -> Worker {
    // Each process has a file of its own: UCX begins it anew.
    let log: &[(&str, &str)] = if fabric == UCX { &[("UCX_LOG_FILE", "/tmp/ucx.%p.log")] } else { &[] };
    host.start(&["--node", &fabric.direct()], &[ENVIRONMENT, log, environment].concat())
}

/// Has a process end by itself, which leaves nothing: UCX, which is cleaned up last, finds nothing of its own that was not given back.
pub(crate) fn end_clean(worker: &mut Worker) {
    worker.end();
    let said = worker.host().print(&["sh", "-c", "cat /tmp/ucx.*.log 2>/dev/null || :"]);
    let wrong = ["leak", "mpool", "not released", "rcache", "was not", "Assertion", "Fatal"];
    assert!(
        said.lines().all(|line| !wrong.iter().any(|word| line.contains(word)) || line.contains(UNCONNECTED)),
        "{said}"
    );
}

/// What UCX says of a connection that failed, at either side.
const UNCONNECTED: &str = "connection establishment";

pub(crate) fn put(owner: &mut Worker, seed: u64, len: usize) -> String {
    let answer = owner.ask(&format!("put {seed} {len}"));
    answer.strip_prefix("key ").unwrap_or_else(|| panic!("put: {answer}")).to_owned()
}

pub(crate) fn get(requester: &mut Worker, key: &str, seed: u64) -> String {
    requester.ask(&format!("get {key} {seed}"))
}

/// The answer, and how long it took there.
pub(crate) fn timed(requester: &mut Worker, order: &str) -> (Duration, String) {
    split(&requester.ask(&format!("timed {order}")))
}

pub(crate) fn split(answer: &str) -> (Duration, String) {
    let (millis, answer) = answer.split_once(' ').unwrap_or_else(|| panic!("no time in {answer:?}"));
    (Duration::from_millis(millis.parse().unwrap()), answer.to_owned())
}

/// Whether an answer is an error of one of these kinds.
pub(crate) fn is_error(answer: &str, kinds: &[&str]) -> bool {
    kinds.iter().any(|kind| answer.strip_prefix("error ").is_some_and(|rest| rest.split(' ').next() == Some(kind)))
}

#[track_caller]
pub(crate) fn assert_error(answer: &str, kinds: &[&str]) {
    assert!(is_error(answer, kinds), "{answer}; one of {kinds:?} was expected");
}

/// Waits until an order has a certain answer.
#[track_caller]
pub(crate) fn await_answer(worker: &mut Worker, order: &str, wanted: &str, limit: Duration) {
    let begun = Instant::now();
    loop {
        let answer = worker.ask(order);
        if answer == wanted {
            return;
        }
        assert!(begun.elapsed() < limit, "{order}: {answer}, and not {wanted} within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The node service of a process, once it is another one than `former`.
#[track_caller]
pub(crate) fn successor(worker: &mut Worker, former: &str) -> String {
    let begun = Instant::now();
    loop {
        let service = worker.ask("host");
        if service != former {
            return service;
        }
        assert!(begun.elapsed() < 3 * SLACK, "no service after {former}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The owner's object can go: nobody who is gone pins it.
#[track_caller]
pub(crate) fn assert_unpinned(owner: &mut Worker, key: &str, limit: Duration) {
    owner.expect(&format!("evict {key}"), "done");
    await_answer(owner, "dying", "0", limit);
}

/// Descriptors and threads of a process.
pub(crate) fn figures(worker: &mut Worker) -> [i64; 2] {
    ["descriptors", "threads"].map(|order| worker.ask(order).parse().unwrap())
}

/// The same, once they do not change any more: what is being ended has ended.
pub(crate) fn settled(worker: &mut Worker) -> [i64; 2] {
    let mut last = [figures(worker); 4];
    loop {
        std::thread::sleep(SECOND / 2);
        last.rotate_left(1);
        last[3] = figures(worker);
        if last.iter().all(|figures| *figures == last[0]) {
            return last[0];
        }
    }
}

/// Descriptors and threads go down to what they were, but for a few that are the process's.
#[track_caller]
pub(crate) fn settles(who: &str, worker: &mut Worker, before: [i64; 2]) {
    let begun = Instant::now();
    loop {
        let after = figures(worker);
        if after[0] <= before[0] + 2 && after[1] <= before[1] {
            return;
        }
        if begun.elapsed() > SILENCE * 2 + SLACK {
            let open = worker.print(&["sh", "-c", &format!("ls -l /proc/{}/fd | sed 's/.*-> //' | sort", worker.id())]);
            panic!("left at {who}: descriptors and threads {before:?}, then {after:?}: {}", open.replace('\n', " "));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A proxy on a host between its processes and those of `peer`, whose objects are at `key`'s port.
pub(crate) fn proxy(host: &Host, peer: &Host) -> Worker {
    let address = listening(peer);
    host.start(&["--proxy", &host.address, &address], &[])
}

/// Where the node service of a host answers others.
pub(crate) fn listening(host: &Host) -> String {
    let mut all = sockets(host, "0A");
    all.retain(|(own, _)| own.port() < LEAST_EPHEMERAL);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0).0.to_string()
}

/// The connections of a host that nodes of the job made, and not a native library: its own end and the other.
pub(crate) fn connections(host: &Host) -> Vec<(SocketAddrV4, SocketAddrV4)> {
    let mut all = sockets(host, "01");
    all.retain(|(own, other)| own.port().min(other.port()) < LEAST_EPHEMERAL);
    all
}

/// How many connections of a host stand and have bytes that the other end has not taken.
pub(crate) fn stuck(host: &Host) -> usize {
    let text = host.print(&["cat", "/proc/net/tcp"]);
    tcp_sockets(&text, "01").filter(|words| !words[4].starts_with("00000000:")).count()
}

/// Both ends of the TCP sockets of a host in one state, as proc(5) spells it.
pub(crate) fn sockets(host: &Host, state: &str) -> Vec<(SocketAddrV4, SocketAddrV4)> {
    let end = |word: &str| {
        let (ip, port) = word.split_once(':').unwrap();
        let ip = u32::from_str_radix(ip, 16).unwrap();
        SocketAddrV4::new(Ipv4Addr::from(ip.to_le_bytes()), u16::from_str_radix(port, 16).unwrap())
    };
    let text = host.print(&["cat", "/proc/net/tcp"]);
    let mut ends: Vec<_> = tcp_sockets(&text, state).map(|words| (end(words[1]), end(words[2]))).collect();
    ends.sort_unstable();
    ends
}

/// What the kernel says of each socket in a state.
fn tcp_sockets<'a>(text: &'a str, state: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
    let sockets = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    sockets.filter(move |words| words[3] == state)
}

pub(crate) const SECRET: &str = "5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2";
pub(crate) const OTHER_SECRET: &str = "0000e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2";

/// A peer that shows no sign of life for so long is dead: PROXYSTORE_TIMEOUT.
pub(crate) const SILENCE: Duration = Duration::from_secs(4);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// What a busy machine may add to a bound.
pub(crate) const SLACK: Duration = Duration::from_secs(6);

pub(crate) const ENVIRONMENT: &[(&str, &str)] =
    &[("PROXYSTORE_SECRET", SECRET), ("PROXYSTORE_RUNTIME_DIR", "/run/proxystore"), ("PROXYSTORE_TIMEOUT", "4s")];

/// Native libraries listen at ports that the kernel chooses, from here on; a node's port follows from the job, below.
pub(crate) const LEAST_EPHEMERAL: u16 = 32768;
