//! Objects between hosts: how long they live, who gets them, and how often their bytes are moved.

use std::time::Duration;

use libtest_mimic::Trial;

use crate::chaos::chaos;
use crate::hosts::{Cluster, Host, Worker};
use crate::pair::{
    self, ENVIRONMENT, Fabric, Over, Pair, Row, SECOND, SILENCE, SLACK, assert_error, await_answer, connections, get,
    is_error, listening, node, put, sockets, split, timed,
};

pub(crate) fn trials() -> Vec<Trial> {
    pair::trials(ROWS, &Ok(()))
}

const ROWS: &[Row] = &[
    ("stale_keys", 40, Over::Always, stale_keys),
    ("objects_outlive_their_producer_and_their_service", 40, Over::Asked, outlive),
    ("deferred_keys_across_hosts", 40, Over::Always, deferred),
    ("one_interface_is_listened_at", 20, Over::Asked, one_interface),
    ("ports_that_are_taken", 40, Over::Asked, ports),
    ("objects_expire_everywhere", 30, Over::Asked, expiry),
    ("batches_of_thousands", 40, Over::Always, batches),
    ("no_room_to_land", 40, Over::Always, no_room),
    ("leases_bound_what_is_stale", 30, Over::Asked, leases),
    ("one_of_many_takes_an_object", 40, Over::Asked, takes),
    ("who_fetches_for_all_is_killed", 40, Over::Asked, fetcher_killed),
    ("who_fetches_for_all_is_stopped", 40, Over::Tcp, fetcher_stopped),
    ("forked_children_open_their_own", 40, Over::Always, forked),
    ("chaos_between_hosts", 120, Over::Asked, chaos),
    ("sixteen_processes_one_transfer", 60, Over::Always, sixteen),
    ("peak_memory_of_a_get", 120, Over::Asked, peak),
];

fn stale_keys(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let key = put(&mut pair.owner, 1, 1000);
    let address = listening_after(&mut pair, &key);
    // The node service goes with its last process, and its memory with it; another takes its place.
    pair.owner.end();
    pair.owner = node(fabric, &pair.hosts[0]);
    let fresh = put(&mut pair.owner, 2, 1000);
    assert_eq!(listening(&pair.hosts[0]), address, "another port: nothing would be stale");
    await_answer(&mut pair.requester, &format!("get {fresh} 2"), "same", SLACK);
    for order in [format!("get {key} 1"), format!("exists {key}"), format!("take {key} 1")] {
        let (took, answer) = timed(&mut pair.requester, &order);
        assert_error(&answer, &["Stale"]);
        assert!(took < SILENCE, "{order}: {took:?}");
    }
    // On the node itself too.
    assert_error(&get(&mut pair.owner, &key, 1), &["Stale"]);
    // And where nobody had a connection.
    let mut late = node(fabric, &pair.hosts[1]);
    assert_error(&get(&mut late, &key, 1), &["Stale"]);
}

fn listening_after(pair: &mut Pair, key: &str) -> String {
    pair.requester.expect(&format!("get {key} 1"), "same");
    listening(&pair.hosts[0])
}

fn outlive(fabric: Fabric) {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut server = one.start(&["--serve"], ENVIRONMENT);
    let (mut producer, mut watch, mut requester) = (node(fabric, &one), node(fabric, &one), node(fabric, &two));
    let keys = [put(&mut producer, 1, 5 << 20), put(&mut producer, 2, 100)];
    producer.end();
    let check = |requester: &mut Worker| {
        for (at, key) in keys.iter().enumerate() {
            requester.expect(&format!("get {key} {}", at + 1), "same");
        }
    };
    check(&mut requester);
    let service = watch.ask("host");
    one.print(&["sh", "-c", &format!("kill -KILL {service}")]);
    check(&mut requester);
    check(&mut node(fabric, &two));
    assert_ne!(watch.ask("host"), service);
    // Nobody but the service is left there.
    watch.end();
    check(&mut requester);
    check(&mut node(fabric, &two));
    server.signal("TERM");
    server.end();
}

fn deferred(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let answer = pair.owner.ask("declare");
    let key = answer.strip_prefix("key ").unwrap().to_owned();
    pair.requester.tell(&format!("timed await {key} 5"));
    std::thread::sleep(Duration::from_millis(500));
    pair.owner.expect(&format!("commit_at {key} 5 3000000"), "done");
    let (took, answer) = split(&pair.requester.reply());
    assert!(answer == "same" && took < SILENCE, "{took:?} {answer}");
    // Committed from the other node.
    let answer = pair.owner.ask("declare");
    let key = answer.strip_prefix("key ").unwrap().to_owned();
    pair.owner.tell(&format!("timed await {key} 6"));
    std::thread::sleep(Duration::from_millis(300));
    pair.requester.expect(&format!("commit_at {key} 6 3000000"), "done");
    let (took, answer) = split(&pair.owner.reply());
    assert!(answer == "same" && took < SILENCE, "{took:?} {answer}");
    assert_error(&pair.requester.ask(&format!("commit_at {key} 7 30")), &["AlreadyExists"]);
    // For longer than the silence, from a living node; and one whose node is cut off meanwhile.
    let answer = pair.owner.ask("declare");
    let key = answer.strip_prefix("key ").unwrap().to_owned();
    pair.requester.expect(&format!("limit {}", (SILENCE * 2).as_millis()), "done");
    let before = connections(&pair.hosts[1]);
    pair.requester.tell(&format!("timed await {key} 8"));
    std::thread::sleep(SILENCE + SECOND);
    // It lives, and says so: nobody had to ask again on another connection.
    assert_eq!(connections(&pair.hosts[1]), before);
    pair.owner.expect(&format!("commit_at {key} 8 30"), "done");
    let (_, answer) = split(&pair.requester.reply());
    assert_eq!(answer, "same");
    let answer = pair.owner.ask("declare");
    let key = answer.strip_prefix("key ").unwrap().to_owned();
    pair.requester.tell(&format!("timed await {key} 9"));
    std::thread::sleep(Duration::from_millis(300));
    pair.hosts[0].cut();
    let (took, answer) = split(&pair.requester.reply());
    assert_error(&answer, &["Timeout", "PeerDown"]);
    assert!(took < SILENCE * 2 + SLACK, "{took:?}");
}

fn one_interface(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let key = put(&mut pair.owner, 1, 1000);
    pair.requester.expect(&format!("get {key} 1"), "same");
    let [one, two] = pair.hosts.clone();
    for host in [&one, &two] {
        let all = sockets(host, "0A");
        assert!(all.iter().all(|(own, _)| own.ip().to_string() == host.address), "{all:?}");
        let wide = host.print(&["sh", "-c", "grep -c ' 0A ' /proc/net/tcp6 || :"]);
        assert_eq!(wide, "0", "listeners for IPv6");
    }
    // Another namespace, as it is told.
    let environment = [ENVIRONMENT, &[("PROXYSTORE_NET_DEVICES", "lo")]].concat();
    let mut local = one.start(&["--node", &fabric.url("other?replicas=off")], &environment);
    let key = put(&mut local, 2, 1000);
    let mut addresses: Vec<String> = sockets(&one, "0A").iter().map(|(own, _)| own.ip().to_string()).collect();
    // UCX has listeners of its own, on the same interfaces.
    addresses.dedup();
    assert_eq!(addresses, [&one.address, "127.0.0.1"]);
    let mut elsewhere = two.start(&["--node", &fabric.url("other?replicas=off")], ENVIRONMENT);
    let (took, answer) = timed(&mut elsewhere, &format!("get {key} 2"));
    assert_error(&answer, &["PeerDown"]);
    assert!(took < SILENCE, "{took:?}");
}

/// Two namespaces, a stranger where one of them would be, and a stranger who comes when the service is away.
fn ports(fabric: Fabric) {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut server = one.start(&["--serve"], ENVIRONMENT);
    let (mut owner, mut requester) = (node(fabric, &one), node(fabric, &two));
    let key = put(&mut owner, 1, 1000);
    requester.expect(&format!("get {key} 1"), "same");
    let (_, port) = listening(&one).split_once(':').map(|(ip, port)| (ip.to_owned(), port.to_owned())).unwrap();

    let service = owner.ask("host");
    server.signal("STOP");
    one.print(&["sh", "-c", &format!("kill -KILL {service}")]);
    let mut stranger = one.worker();
    while stranger.ask(&format!("occupy {port}")) != "done" {
        std::thread::sleep(Duration::from_millis(10));
    }
    server.signal("CONT");
    let (took, answer) = timed(&mut requester, &format!("get {key} 1"));
    assert_error(&answer, &["PeerDown", "Timeout"]);
    assert!(took < SILENCE * 2 + SLACK, "{took:?} {answer}");
    // Keys that are made now name another port.
    let fresh = put(&mut owner, 2, 1000);
    owner.expect(&format!("get {key} 1"), "same");
    requester.expect(&format!("get {fresh} 2"), "same");
    server.signal("TERM");
    server.end();
}

fn expiry(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let mut sharing = pair.hosts[1].start(&["--node", &fabric.url("test?lease=60s")], ENVIRONMENT);
    let answer = pair.owner.ask("put_for 1 50000 4000");
    let key = answer.strip_prefix("key ").unwrap().to_owned();
    for worker in [&mut pair.owner, &mut pair.requester, &mut sharing] {
        worker.expect(&format!("get {key} 1"), "same");
    }
    std::thread::sleep(Duration::from_millis(4500));
    // The copy of a node expires with the object, whatever the lease.
    for worker in [&mut pair.owner, &mut pair.requester, &mut sharing] {
        worker.expect(&format!("get {key} 1"), "none");
        worker.expect(&format!("exists {key}"), "false");
        worker.expect("settled", "settled");
    }
}

/// More than one question holds, from two nodes, some of them gone.
fn batches(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let [theirs, ours] = [&mut pair.owner, &mut pair.requester].map(|worker| {
        let answer = worker.ask("puts 1000 300 3000");
        answer.strip_prefix("keys ").unwrap().split(',').map(str::to_owned).collect::<Vec<_>>()
    });
    pair.requester.expect(&format!("gets 1000 {}", theirs.join(",")), "same");
    pair.owner.expect(&format!("gets 1000 {}", ours.join(",")), "same");
    // In the order of the seeds, every other from the other node.
    let mixed: Vec<&str> =
        (0..3000).map(|at| if at % 2 == 0 { theirs[at].as_str() } else { ours[at].as_str() }).collect();
    let mixed = mixed.join(",");
    pair.requester.expect(&format!("gets 1000 {mixed}"), "same");
    pair.owner.expect(&format!("evict {}", theirs[0]), "done");
    pair.owner.expect(&format!("evict {}", theirs[2998]), "done");
    pair.requester.expect(&format!("gets 1000 {mixed}"), "none; none");
    pair.owner.expect("settled", "settled");
    pair.requester.expect("settled", "settled");
}

fn no_room(fabric: Fabric) {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let (mut owner, mut small) =
        (node(fabric, &one), two.start(&["--node", &fabric.url("test?replicas=off&bytes=64MiB")], ENVIRONMENT));
    let large = put(&mut owner, 1, 80 << 20);
    let keys: Vec<String> = (10..16).map(|seed| put(&mut owner, seed, 15 << 20)).collect();
    let (took, answer) = timed(&mut small, &format!("get {large} 1"));
    assert_error(&answer, &["NoSpace", "TooLarge"]);
    assert!(took < SILENCE + SLACK, "{took:?} {answer}");
    let held = |small: &mut Worker| {
        let hold = |(at, key): (usize, &String)| small.ask(&format!("hold {key} {}", at + 10));
        keys.iter().enumerate().map(hold).take_while(|answer| answer == "held").count()
    };
    let first = held(&mut small);
    assert!((1..6).contains(&first), "{first} objects of 15 MiB fit into 64 MiB");
    let answer = small.ask(&format!("get {} 15", keys[5]));
    assert_error(&answer, &["NoSpace"]);
    small.expect("check", "same");
    // What was refused is not lost, and what was held is not kept.
    small.expect("drop", "done");
    small.expect("settled", "settled");
    assert_eq!(held(&mut small), first);
    small.expect("check", "same");
}

/// Where a node shares what it fetched, an evicted object is read for one lease at most, whoever can be asked.
fn leases(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let mut sharing = pair.hosts[1].start(&["--node", &fabric.url("test?lease=3s")], ENVIRONMENT);
    let keys = [put(&mut pair.owner, 1, 100_000), put(&mut pair.owner, 2, 100_000)];
    for (at, key) in keys.iter().enumerate() {
        sharing.expect(&format!("get {key} {}", at + 1), "same");
    }
    // Without the network, while the lease lasts; asked again, when it is over.
    let before = pair.hosts[1].traffic();
    sharing.expect(&format!("get {} 1", keys[0]), "same");
    // What is said of earlier bytes may still come.
    let asked = pair.hosts[1].traffic().received - before.received;
    assert!(asked < 10_000, "it was fetched again");
    pair.owner.expect(&format!("evict {}", keys[0]), "done");
    await_answer(&mut sharing, &format!("get {} 1", keys[0]), "none", 3 * SECOND + SLACK);
    let before = pair.hosts[1].traffic();
    sharing.expect(&format!("get {} 2", keys[1]), "same");
    let asked = pair.hosts[1].traffic().received - before.received;
    assert!(asked < 10_000, "{asked} bytes to hear that an object is still there");
    // Nobody can be asked.
    pair.hosts[0].part(&pair.hosts[1]);
    std::thread::sleep(3 * SECOND + SECOND / 10);
    sharing.expect("limit 1500", "done");
    assert_error(&get(&mut sharing, &keys[1], 2), &["Timeout", "PeerDown"]);
}

fn takes(fabric: Fabric) {
    let cluster = Cluster::new(3);
    let hosts: [Host; 3] = cluster.hosts();
    let mut owner = node(fabric, &hosts[0]);
    let mut crowd: Vec<Worker> = (0..6).map(|at| node(fabric, &hosts[at % 3])).collect();
    for seed in 0..40 {
        let key = put(&mut owner, seed, if seed % 2 == 0 { 500 } else { 300_000 });
        for worker in &mut crowd {
            worker.tell(&format!("take {key} {seed}"));
        }
        let answers: Vec<String> = crowd.iter().map(Worker::reply).collect();
        assert_eq!(answers.iter().filter(|answer| *answer == "same").count(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| *answer == "none").count(), 5, "{answers:?}");
    }
    owner.expect("settled", "settled");
}

/// One process fetches and the others of its node wait; it is killed: another one fetches.
fn fetcher_killed(fabric: Fabric) {
    const LEN: u64 = 24 << 20;
    let mut pair = Pair::new(fabric);
    let key = put(&mut pair.owner, 1, LEN as usize);
    let mut crowd: Vec<Worker> = (0..5)
        .map(|_| {
            pair.hosts[1]
                .start(&["--node", &fabric.url("test")], &[ENVIRONMENT, &[("PROXYSTORE_TIMEOUT", "20s")]].concat())
        })
        .collect();
    pair.hosts[0].shape(&["rate=100mbit"]);
    let before = pair.hosts[1].traffic();
    let mut first = crowd.remove(0);
    first.tell(&format!("hold {key} 1"));
    std::thread::sleep(Duration::from_millis(500));
    for worker in &mut crowd {
        worker.tell(&format!("hold {key} 1"));
    }
    std::thread::sleep(Duration::from_millis(500));
    first.kill();
    for worker in &mut crowd {
        worker.expect_reply("held");
        worker.expect("check", "same");
    }
    let received = pair.hosts[1].traffic().received - before.received;
    // One whole transfer and what came until the kill, with what was on its way.
    assert!(received < 2 * LEN, "{received} bytes for {LEN} and a broken transfer");
    pair.requester.expect("settled", "settled");
}

/// At the owner and at the requester, while others go on.
fn forked(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let keys = [put(&mut pair.owner, 1, 100), put(&mut pair.owner, 2, 3_000_000)];
    for round in 0..3 {
        for (at, key) in keys.iter().enumerate() {
            let seed = at + 1;
            pair.requester.expect(&format!("get {key} {seed}"), "same");
            pair.requester.expect(&format!("fork {key} {seed}"), "done");
            pair.requester.expect(&format!("get {key} {seed}"), "same");
            if round == 0 {
                pair.owner.expect(&format!("fork {key} {seed}"), "done");
            }
        }
    }
    pair.requester.expect("settled", "settled");
    pair.owner.expect("settled", "settled");
}

/// The same, stopped: who waits does so for half of its time and then fetches for itself.
fn fetcher_stopped(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let key = put(&mut pair.owner, 1, 24 << 20);
    let start = || pair.hosts[1].start(&["--node", &fabric.url("test")], ENVIRONMENT);
    let (mut first, mut second) = (start(), start());
    pair.hosts[0].shape(&["rate=50mbit"]);
    first.expect("limit 30000", "done");
    first.tell(&format!("get {key} 1"));
    std::thread::sleep(SECOND);
    first.signal("STOP");
    pair.hosts[0].unshape();
    let limit = 3 * SILENCE;
    second.expect(&format!("limit {}", limit.as_millis()), "done");
    let (took, answer) = timed(&mut second, &format!("get {key} 1"));
    assert_eq!(answer, "same", "after {took:?}");
    assert!(took >= limit / 2, "{took:?}: it did not wait for the one that fetches");
    // Who was stopped gives up, or asks again: its connection is over.
    first.signal("CONT");
    let answer = first.reply();
    assert!(answer == "same" || is_error(&answer, &["PeerDown", "Timeout"]), "{answer}");
    for worker in [&mut first, &mut second, &mut pair.requester] {
        await_answer(worker, &format!("get {key} 1"), "same", SLACK);
        worker.expect("settled", "settled");
    }
}

fn sixteen(fabric: Fabric) {
    const LEN: usize = 256 << 20;
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut owner = node(fabric, &one);
    let key = put(&mut owner, 1, LEN);
    let environment = [ENVIRONMENT, &[("PROXYSTORE_TIMEOUT", "30s")]].concat();
    let mut crowd: Vec<Worker> = (0..16).map(|_| two.start(&["--node", &fabric.url("test")], &environment)).collect();
    let before = two.traffic();
    for worker in &mut crowd {
        worker.tell(&format!("hold {key} 1"));
    }
    for worker in &crowd {
        assert_eq!(worker.reply(), "held");
    }
    let received = two.traffic().received - before.received;
    let ratio = received as f64 / LEN as f64;
    println!("16 processes, {LEN} bytes: {received} on the wire, {ratio:.4} of one transfer");
    assert!((1.0..1.05).contains(&ratio), "{received} bytes on the wire for {LEN}, {ratio:.3}");
    crowd[3].expect("check", "same");
    crowd[15].expect("check", "same");
}

fn peak(fabric: Fabric) {
    const LEN: usize = 1 << 30;
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut owner = node(fabric, &one);
    let (key, small) = (put(&mut owner, 1, LEN), put(&mut owner, 2, 1000));
    for url in [fabric.direct(), fabric.url("test")] {
        let mut requester = two.start(&["--node", &url], &[ENVIRONMENT, &[("PROXYSTORE_TIMEOUT", "30s")]].concat());
        // What the process has without any object, and native libraries once they are at work.
        requester.expect(&format!("get {small} 2"), "same");
        requester.expect("reset_peak", "done");
        let before: u64 = requester.ask("status VmHWM").parse().unwrap();
        requester.expect(&format!("hold {key} 1"), "held");
        let peak: u64 = requester.ask("status VmHWM").parse().unwrap();
        let ratio = (peak - before) as f64 / LEN as f64;
        println!("{url}: {peak} bytes at most, {before} before: {ratio:.4} of the object");
        assert!(ratio <= 1.05, "{peak} bytes at most, {before} before");
        requester.expect("check", "same");
        requester.end();
    }
}
