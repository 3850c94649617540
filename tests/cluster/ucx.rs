//! What only `ucx://` can do wrong: leave things in a foreign library, be stopped with it, and lack it.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use crate::hosts::{Cluster, Host, Worker, missing};
use crate::needs;
use crate::pair::{
    ENVIRONMENT, LEAST_EPHEMERAL, Pair, SECOND, SILENCE, TCP, UCX, assert_error, assert_unpinned, await_answer,
    end_clean, get, is_error, node, node_with, put, sockets, split, timed,
};
use libtest_mimic::Trial;

pub(crate) fn trials() -> Vec<Trial> {
    let there = missing().and(UCX.missing());
    let other = match std::env::var(OTHER) {
        Ok(_) => there.clone(),
        Err(_) => there.clone().and(Err(format!("needs the directory of a second UCX in {OTHER}"))),
    };
    vec![
        needs(&there, "ucx_leaves_nothing", 60, leaves_nothing),
        needs(&there, "ucx_complains_of_nothing", 60, complains_of_nothing),
        needs(&there, "ucx_owner_stopped_during_a_get", 60, stopped),
        needs(&there, "ucx_processes_that_are_idle_sleep", 30, idle),
        needs(&there, "ucx_missing_where_objects_are", 30, missing_there),
        needs(&there, "ucx_missing_where_it_is_asked_for", 30, missing_here),
        needs(&there, "ucx_could_not_start_and_can", 60, can_start_later),
        needs(&there, "ucx_unused_connections_are_closed", 60, closed_when_unused),
        needs(&there, "ucx_without_locked_memory", 60, without_locked_memory),
        needs(&there, "ucx_beside_another_user", 60, beside_another_user),
        needs(&there, "ucx_hosts_that_proved_nothing_are_kept_out", 60, kept_out),
        needs(&other, "ucx_of_two_versions", 60, two_versions),
    ]
}

/// UCX's own ports are for hosts that have met the process, by whatever network they come.
fn kept_out() {
    let cluster = Cluster::new(3);
    let [one, two, three] = cluster.hosts();
    let (mut owner, mut requester, mut other) = (node(UCX, &one), node(UCX, &two), node(UCX, &three));
    let key = put(&mut owner, 1, 100_000);
    requester.expect(&format!("get {key} 1"), "same");
    let ports = |host: &Host| -> Vec<SocketAddrV4> {
        let all = sockets(host, "0A").into_iter().map(|(own, _)| own);
        all.filter(|own| own.port() >= LEAST_EPHEMERAL).collect()
    };
    let reaches = |host: &Host, port: &SocketAddrV4| {
        let connect = format!("exec 3<>/dev/tcp/{}/{}", port.ip(), port.port());
        host.run(&["timeout", "2", "bash", "-c", &connect]).status.success()
    };
    let (owners, requesters) = (ports(&one), ports(&two));
    assert!(!owners.is_empty() && !requesters.is_empty(), "UCX does not listen");
    assert!(owners.iter().all(|port| reaches(&two, port)) && requesters.iter().all(|port| reaches(&one, port)));
    assert!(!owners.iter().chain(&requesters).any(|port| reaches(&three, port)), "a host that has met nobody");
    other.expect(&format!("get {key} 1"), "same");
    assert!(owners.iter().all(|port| reaches(&three, port)) && !requesters.iter().any(|port| reaches(&three, port)));
    other.end();
    requester.expect(&format!("get {key} 1"), "same");
    let begun = Instant::now();
    while owners.iter().any(|port| reaches(&three, port)) {
        assert!(begun.elapsed() < SILENCE * 2, "the host of a process that has ended is still let in");
    }
}

/// Requesters come and go; owners do.
fn leaves_nothing() {
    let mut pair = Pair::new(UCX);
    let key = put(&mut pair.owner, 1, 3_000_000);
    pair.requester.expect(&format!("get {key} 1"), "same");
    let figures =
        |worker: &mut Worker| ["descriptors", "threads"].map(|order| worker.ask(order).parse::<i64>().unwrap());
    let owner_before = figures(&mut pair.owner);
    for round in 0..6 {
        let mut other = node_with(UCX, &pair.hosts[1], &[]);
        other.expect(&format!("get {key} 1"), "same");
        if round % 2 == 0 { other.end() } else { other.kill() }
    }
    settles("the owner", &mut pair.owner, owner_before);
    let before = figures(&mut pair.requester);
    for seed in 10..16 {
        // Hosted by nobody else: each ends with all that it has.
        let environment = [("PROXYSTORE_RUNTIME_DIR", "/run/another"), ("PROXYSTORE_PORT", "0")];
        let mut owner = node_with(UCX, &pair.hosts[0], &environment);
        let key = put(&mut owner, seed, 3_000_000);
        pair.requester.expect(&format!("get {key} {seed}"), "same");
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

/// Descriptors and threads go down to what they were, but for a few that are the process's.
#[track_caller]
fn settles(who: &str, worker: &mut Worker, before: [i64; 2]) {
    let begun = Instant::now();
    loop {
        let after = ["descriptors", "threads"].map(|order| worker.ask(order).parse::<i64>().unwrap());
        if after[0] <= before[0] + 2 && after[1] <= before[1] {
            return;
        }
        if begun.elapsed() > SILENCE * 2 {
            let open = worker.print(&["sh", "-c", &format!("ls -l /proc/{}/fd | sed 's/.*-> //' | sort", worker.id())]);
            panic!("left at {who}: descriptors and threads {before:?}, then {after:?}: {}", open.replace('\n', " "));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// All that UCX has to say while processes work and end in order is said by nobody; after a kill, it is about the peer.
fn complains_of_nothing() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let log = [("UCX_LOG_FILE", "/tmp/ucx.log"), ("UCX_LOG_LEVEL", "warn")];
    let said = |host: &Host| host.print(&["sh", "-c", "cat /tmp/ucx.log* 2>/dev/null || :"]);
    let (mut owner, mut requester) = (node_with(UCX, &one, &log), node_with(UCX, &two, &log));
    for (seed, len) in [(1, 8), (2, 5_000), (3, 100_000), (4, 9_000_000)] {
        let key = put(&mut owner, seed, len);
        requester.expect(&format!("get {key} {seed}"), "same");
        requester.expect(&format!("evict {key}"), "done");
        assert_eq!(get(&mut requester, &key, seed), "none");
    }
    requester.end();
    owner.end();
    assert_eq!((said(&one), said(&two)), (String::new(), String::new()));

    let (mut owner, mut requester) = (node_with(UCX, &one, &log), node_with(UCX, &two, &log));
    let key = put(&mut owner, 1, 40 << 20);
    one.shape(&["rate=200mbit"]);
    requester.tell(&format!("get {key} 1"));
    std::thread::sleep(SECOND / 2);
    owner.kill();
    assert_error(&requester.reply(), &["PeerDown"]);
    requester.end();
    let said = said(&two);
    let wrong = ["leak", "mpool", "not released", "rcache", "was not", "Assertion", "Fatal", "WARN"];
    assert!(wrong.iter().all(|word| !said.contains(word)), "{said}");
}

/// A process that is stopped, not killed: its sockets stay, and nobody answers.
fn stopped() {
    let mut pair = Pair::new(UCX);
    let large = put(&mut pair.owner, 1, 40 << 20);
    let small = put(&mut pair.owner, 2, 100);
    pair.requester.expect(&format!("get {small} 2"), "same");
    pair.hosts[0].shape(&["rate=200mbit"]);
    pair.requester.tell(&format!("timed get {large} 1"));
    std::thread::sleep(SECOND / 2);
    pair.owner.signal("STOP");
    let (took, answer) = split(&pair.requester.reply());
    assert_error(&answer, &["PeerDown", "Timeout"]);
    assert!(took < SILENCE + SECOND * 2, "{took:?} {answer}");
    let (took, answer) = timed(&mut pair.requester, &format!("get {small} 2"));
    assert_error(&answer, &["PeerDown", "Timeout"]);
    assert!(took < SILENCE + SECOND * 2, "{took:?} {answer}");
    pair.requester.expect("settled", "settled");
    pair.owner.signal("CONT");
    pair.hosts[0].unshape();
    await_answer(&mut pair.requester, &format!("get {small} 2"), "same", SILENCE + SECOND);
    await_answer(&mut pair.requester, &format!("get {large} 1"), "same", SILENCE + SECOND);
    assert_unpinned(&mut pair.owner, &large, SILENCE + SECOND);
    [pair.requester, pair.owner].iter_mut().for_each(end_clean);
}

/// Both sides of a connection sleep when there is nothing to do.
fn idle() {
    let mut pair = Pair::new(UCX);
    let key = put(&mut pair.owner, 1, 100_000);
    pair.requester.expect(&format!("get {key} 1"), "same");
    std::thread::sleep(SECOND);
    let ticks =
        |pair: &mut Pair| [&mut pair.owner, &mut pair.requester].map(|side| side.ask("ticks").parse::<u64>().unwrap());
    let before = ticks(&mut pair);
    std::thread::sleep(4 * SECOND);
    let after = ticks(&mut pair);
    // Of 400. What both say now and then, that they live, is less than one.
    assert!(before.iter().zip(after).all(|(before, after)| after - before <= 4), "{before:?} {after:?}");
}

/// The node service that has the objects runs in a process that finds no UCX.
fn missing_there() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut host = node_with(TCP, &one, &[("PROXYSTORE_UCX_LIB", "/nonexistent")]);
    let mut owner = node_with(UCX, &one, &[]);
    let mut requester = node_with(UCX, &two, &[]);
    assert_eq!(host.ask("host"), host.id(), "the wrong process hosts");
    let key = put(&mut owner, 1, 1000);
    owner.expect(&format!("get {key} 1"), "same");
    let (took, answer) = timed(&mut requester, &format!("get {key} 1"));
    assert_error(&answer, &["Unavailable", "PeerDown"]);
    assert!(answer.contains("/nonexistent"), "it does not say why: {answer}");
    assert!(took < SILENCE, "{took:?}");
    // TCP is not touched by that.
    let key = put(&mut host, 2, 1000);
    node_with(TCP, &two, &[]).expect(&format!("get {key} 2"), "same");
}

fn missing_here() {
    let cluster = Cluster::new(1);
    let [one] = cluster.hosts();
    let environment = [ENVIRONMENT, &[("PROXYSTORE_UCX_LIB", "/nonexistent")]].concat();
    let said = one.try_start(&["--node", &UCX.direct()], &environment).map(|_| ()).unwrap_err();
    assert_error(&said, &["Unavailable"]);
    assert!(said.contains("/nonexistent (PROXYSTORE_UCX_LIB): is neither a file nor a directory"), "{said}");
}

/// What the owner's UCX lacked at first is there later.
fn can_start_later() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut owner = node_with(UCX, &one, &[("UCX_TLS", "none_such")]);
    let mut requester = node_with(UCX, &two, &[]);
    let key = put(&mut owner, 1, 1000);
    let (took, answer) = timed(&mut requester, &format!("get {key} 1"));
    assert_error(&answer, &["Unavailable"]);
    assert!(answer.contains("the owner refuses: UCX could not begin") && took < SILENCE, "{took:?} {answer}");
    owner.expect("set UCX_TLS tcp", "done");
    await_answer(&mut requester, &format!("get {key} 1"), "same", SILENCE * 2);
}

/// The endpoints and their control connections, at both ends.
fn closed_when_unused() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut owner = node_with(UCX, &one, &[]);
    // Longer than the time after which it is looked for connections that ended, which is no use of the others.
    let mut requester = two.start(&["--node", &UCX.url("test?replicas=off&idle=1500ms")], ENVIRONMENT);
    let key = put(&mut owner, 1, 100_000);
    let established = |host: &Host| -> usize {
        let count = "awk '$4 == \"01\"' /proc/net/tcp | wc -l";
        host.print(&["sh", "-c", count]).parse().unwrap()
    };
    let await_established = |what: &str, is_enough: fn(usize) -> bool| {
        let begun = std::time::Instant::now();
        loop {
            let all = [established(&one), established(&two)];
            if all.into_iter().all(is_enough) {
                return;
            }
            assert!(begun.elapsed() < SILENCE * 2, "{what}: {all:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    for _ in 0..3 {
        requester.expect(&format!("get {key} 1"), "same");
        await_established("connections of a get", |count| count > 0);
        await_established("connections that nobody uses", |count| count == 0);
    }
    requester.expect("settled", "settled");
    assert_unpinned(&mut owner, &key, SILENCE);
}

/// Neither side may lock memory, which over TCP nothing needs.
fn without_locked_memory() {
    let mut pair = Pair::new(UCX);
    for worker in [&mut pair.owner, &mut pair.requester] {
        worker.expect("lock_at_most 4096", "true");
    }
    for (seed, len) in [(1, 8), (2, 100_000), (3, 20_000_000)] {
        let key = put(&mut pair.owner, seed, len);
        let (took, answer) = timed(&mut pair.requester, &format!("get {key} {seed}"));
        assert_eq!(answer, "same", "{len}");
        assert!(took < SILENCE, "{took:?}");
    }
}

/// Contexts of other features, made before, beside and after the library's, and ended before it is.
fn beside_another_user() {
    let mut pair = Pair::new(UCX);
    let bare = |pair: &mut Pair, turn: bool| {
        let (owner, asker) = match turn {
            true => (&mut pair.owner, &mut pair.requester),
            false => (&mut pair.requester, &mut pair.owner),
        };
        let contact = owner.ask("ucp_own 100000");
        assert!(!contact.starts_with("error"), "{contact}");
        let first = asker.ask(&format!("ucp_connect {contact} 100000"));
        assert!(first.parse::<u64>().is_ok(), "{first}");
        let fetched = asker.ask("ucp_fetch 100000 1 1 hybrid 20");
        assert!(!fetched.starts_with("error"), "{fetched}");
    };
    bare(&mut pair, true);
    let keys: Vec<(u64, String)> =
        [(1, 8), (2, 100_000), (3, 5_000_000)].map(|(seed, len)| (seed, put(&mut pair.owner, seed, len))).to_vec();
    for turn in [true, false] {
        for (seed, key) in &keys {
            pair.requester.expect(&format!("get {key} {seed}"), "same");
        }
        // The former endpoint of the bare loop ends.
        bare(&mut pair, turn);
        bare(&mut pair, !turn);
    }
    for (seed, key) in &keys {
        pair.requester.expect(&format!("get {key} {seed}"), "same");
    }
    pair.requester.end();
    pair.owner.end();
}

/// Nodes of a job need not have the same UCX.
fn two_versions() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let other = std::env::var(OTHER).unwrap();
    let environment = [("PROXYSTORE_UCX_LIB", other.as_str())];
    let (mut a, mut b) = (node_with(UCX, &one, &[]), node_with(UCX, &two, &environment));
    let versions = [&mut a, &mut b].map(|worker| worker.ask("ucp_version"));
    assert_ne!(versions[0], versions[1], "these are not two");
    // Others may refuse, as docs/ucx.md says.
    let is_known = versions.iter().all(|version| UNDERSTAND_EACH_OTHER.contains(&version.as_str()));
    for (seed, len) in [(1, 8), (2, 5_000), (3, 300_000), (4, 9_000_000)] {
        for turn in [true, false] {
            let (owner, requester) = if turn { (&mut a, &mut b) } else { (&mut b, &mut a) };
            let key = put(owner, seed, len);
            let (took, answer) = timed(requester, &format!("get {key} {seed}"));
            let is_refused = !is_known && is_error(&answer, &["PeerDown", "Incompatible"]);
            assert!(answer == "same" || is_refused, "{len} bytes between {versions:?}: {answer}");
            assert!(took < SILENCE, "{took:?} {answer}");
            println!("{len} bytes between {versions:?}: {answer}");
        }
    }
}

/// Versions that do, as docs/ucx.md says.
const UNDERSTAND_EACH_OTHER: &[&str] = &["1.13.1", "1.22.0"];

/// The directory of another UCX than the one that is tested.
const OTHER: &str = "CLUSTER_OTHER_UCX";
