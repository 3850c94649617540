//! The rows of the fault matrix that concern one node, a test each, with its bound in time.

use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};

use crate::namespace;
use crate::site::{Client, NAMESPACE, PATIENCE, Site};

/// All of them; what this machine cannot do is ignored, with the reason.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        row("row_01_killed_before_the_lease_is_read", 5, row_01),
        row("row_02_killed_while_filling", 5, row_02),
        row("row_03_killed_before_publishing", 5, row_03),
        row("row_04_killed_after_publishing", 5, row_04),
        row("row_05_killed_after_an_acknowledged_put", 10, row_05),
        row("row_06_killed_with_pins", 10, row_06),
        row("row_07_killed_while_evicting", 10, row_07),
        row("row_08_service_killed_at_every_step", 60, row_08),
        row("row_08_successor_makes_memory_before_others_are_back", 20, row_08_successor),
        needs(namespace::missing(), "row_09_service_killed_every_100_ms", 60, row_09),
        row("row_10_service_stopped", 20, row_10),
        row("row_11_supervisor_killed", 20, row_11),
        row("row_12_two_supervisors", 20, row_12),
        row("row_13_client_stopped_with_pins", 10, row_13),
        row("row_14_forked_child_holds_descriptors", 10, row_14),
        row("row_15_living_client_closes_its_socket", 10, row_15),
        row("row_16_fork", 10, row_16),
        row("row_17_places_of_clients_are_reused", 60, row_17),
        row("row_18_memory_exhausted", 20, row_18),
        row("row_18_least_recently_used_are_evicted", 20, row_18_lru),
        needs(is_root(), "row_19_tmpfs_full", 20, row_19),
        ignored("row_20_others_fill_dev_shm", "memory is memfds, fully reserved: no file system holds it"),
        needs(has_memory_cgroup(), "row_21_memory_cgroup", 30, row_21),
        row("row_22_no_huge_pages", 10, row_22),
        row("row_23_limits", 30, row_23),
        row("row_24_service_without_descriptors", 30, row_24),
        row("row_26_scribbled_slots", 30, row_26),
        row("row_26_scribbled_everywhere", 30, row_26_everywhere),
        row("row_26_scribbled_place_is_noticed", 10, row_26_place),
        row("row_27_stale_keys", 20, row_27),
        row("row_28_damaged_keys", 20, row_28),
        ignored("row_40_clock_jumps", "the clock is the machine's; expiry uses CLOCK_BOOTTIME"),
        ignored("row_41_failing_allocations", "needs an allocator that fails on demand, which no test has yet"),
        row("row_42_panic_while_filling", 10, row_42),
        row("row_43_views_outlive_store_and_host", 20, row_43),
        row("row_44_dropped_futures", 10, row_44),
        row("row_45_signal_storm", 20, row_45),
        ignored("row_46_versions_differ", "needs two builds; src/service/message.rs tests the refusal"),
        needs(namespace::missing(), "row_47_containers", 20, row_47),
        row("row_48_64_processes_start_at_once", 60, row_48),
        row("row_48_a_thousand_connections_a_second", 30, row_48_storm),
        row("row_49_supervised_service_killed_and_ended", 60, row_49),
        row("two_namespaces_at_once", 10, two_namespaces),
        needs(is_root(), "another_user_is_refused", 10, another_user),
    ]
}

/// A trial with a bound in seconds; a busy machine may take three times as long.
pub(crate) fn row(name: &str, seconds: u64, run: fn()) -> Trial {
    Trial::test(name, move || {
        let begun = Instant::now();
        run();
        match begun.elapsed() {
            took if took > 3 * Duration::from_secs(seconds) => {
                Err(Failed::from(format!("took {took:?}, allowed are three times {seconds} s")))
            }
            _ => Ok(()),
        }
    })
}

pub(crate) fn needs(missing: Result<(), String>, name: &str, seconds: u64, run: fn()) -> Trial {
    match missing {
        Ok(()) => row(name, seconds, run),
        Err(reason) => ignored(name, &reason),
    }
}

/// Who asks for it all the same gets the reason as its failure.
fn ignored(name: &str, reason: &str) -> Trial {
    let failure = Failed::from(reason);
    Trial::test(name, || Err(failure)).with_ignored_flag(true).with_kind(reason)
}

fn is_root() -> Result<(), String> {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } == 0 { Ok(()) } else { Err("needs root".to_owned()) }
}

fn has_memory_cgroup() -> Result<(), String> {
    is_root()?;
    match std::fs::metadata(format!("{CGROUPS}/memory.limit_in_bytes")) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("needs a memory cgroup (version 1) at {CGROUPS}")),
    }
}

fn row_01() {
    let site = Site::new();
    let (mut host, mut victim) = (site.client(), site.client());
    host.put(1, 100);
    host.signal(libc::SIGSTOP);
    victim.tell("put 2 3000");
    assert_eq!(victim.reply_within(Duration::from_millis(200)), None, "the lease waits for the service");
    victim.kill();
    host.signal(libc::SIGCONT);
    host.await_answer("clients", "1");
    site.check(vec![host], 1..=1);
}

fn dies_in_put(failpoint: &str, live: std::ops::RangeInclusive<u64>) {
    for len in [0, 100, 100_000] {
        let site = Site::new();
        let host = site.client();
        let mut victim = site.doomed(failpoint, 1);
        victim.tell(&format!("put 1 {len}"));
        victim.dies();
        site.check(vec![host], live.clone());
    }
}

fn row_02() {
    dies_in_put("client.put.begin", 0..=0);
    let site = Site::new();
    let host = site.client();
    let mut victim = site.client();
    victim.expect("reserve 1 5000000", "done");
    victim.kill();
    site.check(vec![host], 0..=0);
}

fn row_03() {
    dies_in_put("client.put.copied", 0..=0);
}

fn row_04() {
    dies_in_put("client.put.published", 1..=1);
}

fn row_05() {
    let site = Site::new();
    let (mut host, mut victim) = (site.client(), site.client());
    let keys: Vec<String> = (0..200).map(|seed| victim.put(seed, seed as usize * 97)).collect();
    victim.kill();
    for (seed, key) in keys.iter().enumerate() {
        host.expect(&format!("get {key} {seed}"), "same");
    }
    site.check(vec![host], 200..=200);
}

fn row_06() {
    for failpoint in ["client.pinned", "client.viewing"] {
        let site = Site::new();
        let mut host = site.client();
        let key = host.put(1, 5000);
        let mut victim = site.doomed(failpoint, 1);
        victim.tell(&format!("hold {key} 1"));
        victim.dies();
        host.expect(&format!("evict {key}"), "done");
        site.check(vec![host], 0..=0);
    }
    let site = Site::new();
    let (mut host, mut victim) = (site.client(), site.client());
    let key = host.put(1, 500_000);
    victim.expect(&format!("hold {key} 1"), "held");
    host.expect(&format!("evict {key}"), "done");
    std::thread::sleep(Duration::from_millis(300));
    host.expect("dying", "1");
    for seed in 2..40 {
        host.put(seed, 500_000);
    }
    victim.expect("check", "same");
    victim.kill();
    host.await_answer("dying", "0");
    site.check(vec![host], 38..=38);
}

fn row_07() {
    for (failpoint, order) in [
        ("client.retired", "evict"),
        ("client.retired.told", "evict"),
        ("client.taken", "take"),
        ("client.unpinned", "get"),
    ] {
        let site = Site::new();
        let mut host = site.client();
        let key = host.put(1, 5000);
        let mut victim = site.doomed(failpoint, 1);
        victim.tell(&if order == "evict" { format!("evict {key}") } else { format!("{order} {key} 1") });
        victim.dies();
        let live = if order == "get" { 1 } else { 0 };
        host.expect(&format!("exists {key}"), if live == 1 { "true" } else { "false" });
        site.check(vec![host], live..=live);
    }
    for failpoint in ["client.bind.published", "client.bind.bound"] {
        let site = Site::new();
        let mut host = site.client();
        let key = host.ask("declare").replace("key ", "");
        let mut victim = site.doomed(failpoint, 1);
        victim.tell(&format!("commit_at {key} 1 5000"));
        victim.dies();
        let bound = host.ask(&format!("get {key} 1"));
        let live = if bound == "same" { 2 } else { 1 };
        assert_eq!(bound == "same", failpoint == "client.bind.bound", "{bound}");
        site.check(vec![host], live..=live);
    }
}

fn row_08() {
    // Where replicas end is passed in `replica.rs`.
    let is_passed = |name: &&&str| name.starts_with("service") && !name.starts_with("service.replica");
    for name in proxystore::service::NAMES.iter().filter(is_passed) {
        service_killed_at(name);
    }
}

/// Uses a namespace until its service dies at that place.
fn service_killed_at(name: &str) {
    let site = Site::with_options("bytes=268435456");
    // Who rebuilds is the second host; all others die as the first.
    let rebuilds = name.starts_with("service.rebuild");
    let nth = if name.starts_with("service.segment") { 1 } else { 3 };
    let mut first = if rebuilds { site.client() } else { site.doomed(name, nth) };
    let mut second = if rebuilds { site.doomed(name, 1) } else { site.client() };
    let mut third = site.client();
    let mut keys = Vec::new();
    let begun = Instant::now();
    for seed in 0.. {
        // Deaths, growth, evictions and leases of all sizes make the host pass every step.
        keys.push((third.put(seed, 1000 + seed as usize * 5000), seed));
        if seed % 3 == 0 {
            let (key, _) = keys.swap_remove(0);
            third.expect(&format!("evict {key}"), "done");
        }
        if seed % 2 == 0 {
            site.client().kill();
        }
        if rebuilds && seed == 5 {
            third.signal(libc::SIGSTOP);
            first.kill();
            second.dies();
            third.signal(libc::SIGCONT);
        }
        let dead = if rebuilds { !second.is_alive() } else { !first.is_alive() };
        if dead || begun.elapsed() > PATIENCE || seed > if rebuilds { 12 } else { 200 } {
            break;
        }
    }
    assert!(if rebuilds { !second.is_alive() } else { !first.is_alive() }, "{name} was not passed");
    for (key, seed) in &keys {
        third.expect(&format!("get {key} {seed}"), "same");
    }
    let live = keys.len() as u64;
    site.check(vec![first, second, third], live..=live);
}

/// What was put after the death of a service outlives its successor: no memory is made that only the successor has.
fn row_08_successor() {
    let site = Site::with_options("bytes=268435456");
    let mut first = site.client();
    let (mut second, mut third) = (site.client(), site.client());
    let old = first.put(1, 1000);
    third.signal(libc::SIGSTOP);
    first.kill();
    second.await_answer("host", &second.id().to_string());
    // More than there is.
    second.tell("put 2 20000000");
    let early = second.reply_within(Duration::from_millis(300));
    if early.is_none() {
        third.signal(libc::SIGCONT);
    }
    let answer = early.or_else(|| second.reply_within(PATIENCE)).unwrap();
    let new = answer.strip_prefix("key ").unwrap_or_else(|| panic!("put: {answer}")).to_owned();
    second.kill();
    third.signal(libc::SIGCONT);
    third.expect(&format!("get {old} 1"), "same");
    third.expect(&format!("get {new} 2"), "same");
    // One that stays away does not keep the others from memory for ever.
    let (mut fourth, mut fifth) = (site.client(), site.client());
    fourth.signal(libc::SIGSTOP);
    third.kill();
    let newest = fifth.put(3, 40_000_000);
    fourth.signal(libc::SIGCONT);
    fourth.expect(&format!("get {newest} 3"), "same");
    fourth.expect(&format!("get {new} 2"), "same");
    site.check(vec![fourth, fifth], 3..=3);
}

fn row_09() {
    let mut soak = Command::new(std::env::current_exe().unwrap());
    soak.args(["--soak", "chaos", "4"]).env("SOAK_HOST_KILL_MS", "100").env("SOAK_KILL_MS", "50");
    let output = soak.output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn row_10() {
    let site = Site::new();
    let mut host = site.client();
    let mut command = site.command(&["--child", &site.url()]);
    command.env("PROXYSTORE_TIMEOUT", "1s");
    let mut client = Client::start(command);
    let key = host.put(1, 5000);
    let own = client.put(2, 100);
    host.signal(libc::SIGSTOP);
    // What needs no lease does not need the service: it would fail.
    client.expect(&format!("get {key} 1"), "same");
    client.expect(&format!("get {own} 2"), "same");
    client.put(3, 100);
    let answer = client.ask("timed put 4 3000000");
    assert!(answer.contains("error Unavailable"), "{answer}");
    let millis: u64 = answer.split(' ').next().unwrap().parse().unwrap();
    assert!((900..6000).contains(&millis), "at its deadline of a second: {answer}");
    host.signal(libc::SIGCONT);
    client.put(5, 3_000_000);
    client.expect(&format!("evict {key}"), "done");
    host.await_answer("dying", "0");
    site.check(vec![host, client], 3..=3);
}

/// A supervisor and its service, serving.
fn serve(site: &Site) -> Client {
    let server = Client::spawn(site.command(&["--serve", NAMESPACE]));
    let socket = site.path().join(NAMESPACE).join("sock");
    let begun = Instant::now();
    while !socket.exists() {
        assert!(begun.elapsed() < PATIENCE, "the service does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    server
}

fn row_11() {
    let site = Site::new();
    let mut server = serve(&site);
    let (mut client, mut other) = (site.client(), site.client());
    let key = client.put(1, 50_000);
    let service: u32 = client.ask("host").parse().unwrap();
    assert_ne!(service, server.id(), "the service is a process of its own");
    other.expect(&format!("hold {key} 1"), "held");
    server.kill();
    let begun = Instant::now();
    while std::path::Path::new(&format!("/proc/{service}/stat")).exists() && begun.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(5));
    }
    other.expect("check", "same");
    client.expect(&format!("get {key} 1"), "same");
    client.put(2, 3_000_000);
    other.expect("check", "same");
    site.check(vec![client, other], 2..=2);
}

fn row_12() {
    let site = Site::new();
    let server = serve(&site);
    let mut client = site.client();
    let key = client.put(1, 1000);
    let second = site.command(&["--serve", NAMESPACE]).output().unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stdout);
    assert!(text.contains("AlreadyExists"), "{text}");
    client.expect(&format!("get {key} 1"), "same");
    drop(server);
    site.check(vec![client], 1..=1);
}

fn row_13() {
    let site = Site::new();
    let (mut host, mut stopped, mut third) = (site.client(), site.client(), site.client());
    let key = host.put(1, 400_000);
    stopped.expect(&format!("hold {key} 1"), "held");
    stopped.signal(libc::SIGSTOP);
    host.expect(&format!("evict {key}"), "done");
    for seed in 2..100 {
        let key = third.put(seed, 100_000);
        host.expect(&format!("take {key} {seed}"), "same");
    }
    host.await_answer("dying", "1");
    stopped.signal(libc::SIGCONT);
    stopped.expect("check", "same");
    stopped.expect("drop", "done");
    host.await_answer("dying", "0");
    site.check(vec![host, stopped, third], 0..=0);
}

fn row_14() {
    let site = Site::new();
    let (mut host, mut victim) = (site.client(), site.client());
    let key = host.put(1, 10_000);
    victim.expect(&format!("hold {key} 1"), "held");
    victim.expect("reserve 2 100000", "done");
    victim.expect("part fork_sleeper 4000", "done");
    victim.kill();
    host.expect(&format!("evict {key}"), "done");
    // The descriptors, and with them the socket, stay open for longer.
    host.await_answer_within("dying", "0", Duration::from_secs(3));
    host.await_answer_within("clients", "1", Duration::from_secs(3));
    // The same with the host: its forked child keeps the listening socket.
    let mut second = site.client();
    host.expect("part fork_sleeper 4000", "done");
    host.kill();
    let begun = Instant::now();
    second.put(3, 2_000_000);
    assert!(begun.elapsed() < Duration::from_millis(3500), "taken over after {:?}", begun.elapsed());
    std::thread::sleep(Duration::from_secs(4).saturating_sub(begun.elapsed()));
    site.check(vec![second], 1..=1);
}

fn row_15() {
    let site = Site::new();
    let (mut host, mut client) = (site.client(), site.client());
    let key = host.put(1, 400_000);
    client.expect(&format!("hold {key} 1"), "held");
    client.expect("reserve 2 400000", "done");
    client.expect("part shut_sockets", "done");
    host.expect(&format!("evict {key}"), "done");
    for seed in 10..50 {
        let key = host.put(seed, 400_000);
        host.expect(&format!("evict {key}"), "done");
    }
    client.expect("check", "same");
    let own = client.ask("commit 400000").replace("key ", "");
    host.expect(&format!("get {own} 2"), "same");
    client.put(3, 3_000_000);
    client.expect("drop", "done");
    host.await_answer("dying", "0");
    site.check(vec![host, client], 2..=2);
}

fn row_16() {
    let site = Site::new();
    // Once as the host, once as another.
    let (mut host, mut client) = (site.client(), site.client());
    client.expect("part forked_child_has_its_own_client", "done");
    host.expect("part forked_child_has_its_own_client", "done");
    let key = host.put(1, 100);
    client.expect(&format!("get {key} 1"), "same");
    site.check(vec![host, client], 1..=1);
}

fn row_17() {
    let site = Site::new();
    let mut host = site.client();
    let mut reader = site.client();
    let kept = host.put(0, 20_000);
    reader.expect(&format!("hold {kept} 0"), "held");
    for seed in 1..60 {
        let mut short = site.client();
        let key = short.put(seed, 20_000);
        short.expect(&format!("hold {key} {seed}"), "held");
        short.expect("reserve 9 20000", "done");
        short.kill();
        // The next one gets its place, before or after the service notices.
        let mut next = site.client();
        next.expect(&format!("hold {kept} 0"), "held");
        next.expect(&format!("take {key} {seed}"), "same");
        host.put(1000 + seed, 20_000);
        next.expect("check", "same");
        reader.expect("check", "same");
        if seed % 2 == 0 {
            next.end();
        }
    }
    site.check(vec![host, reader], 60..=60);
}

fn row_18() {
    let site = Site::with_options("bytes=8388608");
    let (mut host, mut other) = (site.client(), site.client());
    let mut keys = Vec::new();
    let answer = loop {
        let answer = other.ask(&format!("put {} 500000", keys.len()));
        match answer.strip_prefix("key ") {
            Some(key) => keys.push(key.to_owned()),
            None => break answer,
        }
    };
    assert!(answer.starts_with("error NoSpace"), "{answer}");
    assert!(answer.contains(&format!("process {}", other.id())), "the largest holder is named: {answer}");
    assert!(answer.contains("budget of 8"), "the budget is named: {answer}");
    assert!(keys.len() >= 10, "{} objects of 500 kB in 8 MiB", keys.len());
    for (seed, key) in keys.iter().enumerate() {
        host.expect(&format!("get {key} {seed}"), "same");
    }
    host.expect(&format!("hold {} 0", keys[0]), "held");
    host.expect(&format!("evict {}", keys[0]), "done");
    let answer = other.ask("put 1 500000");
    assert!(answer.starts_with("error NoSpace"), "what is pinned is not given away: {answer}");
    host.expect("check", "same");
    host.expect("drop", "done");
    // The service notices the end of a view by itself.
    host.await_answer("dying", "0");
    other.put(1, 500_000);
    let live = keys.len() as u64;
    site.check(vec![host, other], live..=live);
}

fn row_18_lru() {
    let site = Site::with_options("bytes=8388608&evict=lru");
    let (mut host, mut other) = (site.client(), site.client());
    let held = host.put(0, 500_000);
    host.expect(&format!("hold {held} 0"), "held");
    let keys: Vec<String> = (1..60).map(|seed| other.put(seed, 500_000)).collect();
    host.expect("check", "same");
    host.expect(&format!("get {held} 0"), "same");
    let left = (1..60).filter(|seed| other.ask(&format!("get {} {seed}", keys[seed - 1])) == "same").count();
    assert!((5..20).contains(&left), "{left} of 59 are left");
    other.expect(&format!("get {} 59", keys[58]), "same");
    drop(keys);
    site.check(vec![host, other], 5..=20);
}

fn row_19() {
    // The directory of locks and sockets lies on a full tmpfs; objects do not.
    let site = Site::new();
    let script = format!(
        "mount -t tmpfs -o size=64k,mode=0700 none {0} && (dd if=/dev/zero of={0}/fill bs=1k count=100 2>/dev/null; exec \"$0\" \"$@\")",
        site.path().display()
    );
    let mut client =
        Client::spawn(site.command_under(&["unshare", "--mount", "sh", "-c", &script], &["--child", &site.url()]));
    let answer = client.reply();
    if answer == "ready" {
        let key = client.put(1, 3_000_000);
        client.expect(&format!("get {key} 1"), "same");
        client.end();
    } else {
        assert!(answer.starts_with("error NoSpace"), "{answer}");
    }
}

fn row_21() {
    let group = Cgroup::new(64 << 20);
    let site = Site::with_options("bytes=1073741824");
    let script = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", group.0);
    let mut client = Client::spawn(site.command_under(&["sh", "-c", &script], &["--child", &site.url()]));
    assert_eq!(client.reply(), "ready");
    let mut objects = 0;
    let answer = loop {
        let answer = client.ask(&format!("put {objects} 4000000"));
        if !answer.starts_with("key ") {
            break answer;
        }
        objects += 1;
        assert!(objects < 100, "400 MB within a limit of 64 MiB");
    };
    assert!(answer.starts_with("error NoSpace"), "{answer}");
    assert!(answer.contains("limit_in_bytes") || answer.contains("cgroup") || answer.contains("memory"), "{answer}");
    eprintln!("after {objects} objects: {answer}");
    assert!(client.is_alive());
    client.end();
}

/// A memory cgroup, removed when dropped.
struct Cgroup(String);

impl Cgroup {
    fn new(limit: u64) -> Self {
        let path = format!("{CGROUPS}/proxystore-test-{}", std::process::id());
        std::fs::create_dir(&path).unwrap();
        std::fs::write(format!("{path}/memory.limit_in_bytes"), limit.to_string()).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn row_22() {
    let site = Site::new();
    let mut client = site.client();
    client.put(1, 1_000_000);
    let pages = client.ask("pages");
    assert!(pages.contains("KiB") || pages.contains("MiB"), "{pages}");
    let free: u64 = std::fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap().trim().parse().unwrap();
    let thp = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    if free == 0 && thp.contains("[never]") {
        assert!(pages.starts_with("4"), "there are no huge pages here: {pages}");
    }
    site.check(vec![client], 1..=1);
}

fn row_23() {
    // Not enough addresses for the control segment, not enough descriptors: an error that says so, and nothing left.
    for (limit, most) in [("addresses", 300 << 20), ("descriptors", 8), ("descriptors", 10), ("descriptors", 12)] {
        let site = Site::new();
        let mut host = site.client();
        let mut limited = Client::spawn(site.command(&["--limited", limit, &most.to_string(), &site.url()]));
        let answer = limited.reply();
        if answer == "ready" {
            let answer = limited.ask("put 1 100");
            assert!(answer.starts_with("key ") || answer.starts_with("error"), "{answer}");
        } else {
            assert!(answer.starts_with("error"), "{limit} {most}: {answer}");
            eprintln!("{limit} {most}: {answer}");
        }
        limited.kill();
        host.await_answer("clients", "1");
        host.put(2, 100_000);
        site.check(vec![host], 1..=2);
    }
    let site = Site::new();
    let mut alone = Client::spawn(site.command(&["--limited", "locked", "0", &site.url()]));
    assert_eq!(alone.reply(), "ready", "nothing is locked into memory");
    alone.put(1, 1_000_000);
    site.check(vec![alone], 1..=1);
}

fn row_24() {
    let site = Site::new();
    let (mut host, mut friend) = (site.client(), site.client());
    let key = host.put(1, 1000);
    // Nearly all of the host's places are in use; some it may have taken since, for memory ahead of need.
    let limit = host.descriptors() + 6;
    host.expect(&format!("part limit descriptors {limit}"), "done");
    let crowd: Vec<Client> = (0..8)
        .map(|_| {
            let mut command = site.command(&["--child", &site.url()]);
            command.env("PROXYSTORE_TIMEOUT", "500ms");
            Client::spawn(command)
        })
        .collect();
    let answers: Vec<String> = crowd.iter().map(Client::reply).collect();
    assert!(answers.iter().any(|answer| answer.starts_with("error")), "{answers:?}");
    friend.expect(&format!("get {key} 1"), "same");
    friend.put(2, 100);
    drop(crowd);
    host.await_answer("clients", "2");
    let mut late = site.client();
    late.expect(&format!("get {key} 1"), "same");
    drop(late);
    host.kill();
    site.check(vec![friend], 2..=2);
}

fn row_26() {
    let site = Site::new();
    let (mut host, mut hostile, mut reader) = (site.client(), site.client(), site.client());
    let bystander = host.put(1, 5000);
    // Words: state, place, length, class, owner, fingerprint, meta, expiry.
    for word in [0, 1, 2, 3, 4, 6, 7] {
        for value in [0, 1, 7, 0xffff, 1 << 40, 1 << 56, u64::MAX >> 1, u64::MAX] {
            let key = host.put(2, 5000);
            hostile.expect(&format!("part scribble {key} {word} {value}"), "done");
            let answer = reader.ask(&format!("get {key} 2"));
            let fine = answer == "same" || answer == "none" || answer.starts_with("error");
            assert!(fine, "word {word} := {value:#x}: {answer}");
            let evicted = reader.ask(&format!("evict {key}"));
            assert!(evicted == "done" || evicted.starts_with("error"), "{evicted}");
            reader.expect(&format!("get {bystander} 1"), "same");
        }
    }
    host.put(3, 100_000);
    assert!(host.is_alive() && hostile.is_alive() && reader.is_alive());
    // What was scribbled on is mended when somebody ends, or lost to the scribbler: the service lives.
    hostile.kill();
    host.expect(&format!("get {bystander} 1"), "same");
}

/// A slot that says that its bytes are those of another object of the same size.
fn row_26_place() {
    let site = Site::new();
    let (mut host, mut hostile, mut reader) = (site.client(), site.client(), site.client());
    let (key, other) = (host.put(1, 5000), host.put(2, 5000));
    hostile.expect(&format!("part copy_word {other} {key} 1"), "done");
    for order in ["get", "take"] {
        let answer = reader.ask(&format!("{order} {key} 1"));
        assert!(answer.starts_with("error Corrupt"), "{order}: {answer}");
    }
    let answer = reader.ask(&format!("exists {key}"));
    assert!(answer.starts_with("error Corrupt"), "exists: {answer}");
    reader.expect(&format!("get {other} 2"), "same");
}

fn row_26_everywhere() {
    let site = Site::new();
    let (mut host, mut hostile, mut reader) = (site.client(), site.client(), site.client());
    for round in 0..30 {
        // A put may meet what was scribbled on, too.
        let puts: Vec<String> = (0..10).map(|seed| host.ask(&format!("put {seed} 3000"))).collect();
        let keys: Vec<&str> = puts.iter().filter_map(|answer| answer.strip_prefix("key ")).collect();
        hostile.expect(&format!("part scribble_everywhere {round} 3000"), "done");
        for (seed, key) in keys.iter().enumerate() {
            // Whatever it says: no signal, no panic, no hang.
            let _ = reader.ask(&format!("get {key} {seed}"));
            let _ = reader.ask(&format!("evict {key}"));
        }
        if round % 10 == 9 {
            // The host, too, may have lost its way through the scribbled table; its successor rebuilds from it.
            host.kill();
            host = std::mem::replace(&mut reader, site.client());
        }
        let answer = reader.ask("clients");
        assert!(answer.parse::<u32>().is_ok(), "the service lives: {answer}");
        assert!(host.is_alive() && reader.is_alive() && hostile.is_alive(), "round {round}");
    }
}

fn row_27() {
    let site = Site::new();
    let (mut host, mut other) = (site.client(), site.client());
    let mut gone = Vec::new();
    for seed in 0..300 {
        let key = host.put(seed, 1000);
        other.expect(&format!("evict {key}"), "done");
        gone.push(key);
    }
    for seed in 0..300 {
        host.put(1000 + seed, 1000);
    }
    for (seed, key) in gone.iter().enumerate() {
        other.expect(&format!("get {key} {seed}"), "none");
        other.expect(&format!("take {key} {seed}"), "none");
        other.expect(&format!("exists {key}"), "false");
        other.expect(&format!("evict {key}"), "done");
    }
    let old = host.put(1, 1000);
    site.check(vec![host, other], 301..=301);
    // All have ended, and the memory with them.
    let mut next = site.client();
    let answer = next.ask(&format!("get {old} 1"));
    assert!(answer.starts_with("error ForeignKey"), "{answer}");
    site.check(vec![next], 0..=0);
}

fn row_28() {
    let site = Site::new();
    let mut client = site.client();
    let key = client.put(1, 1000);
    for seed in 2..50 {
        client.put(seed, 1000);
    }
    client.expect(&format!("part flip_key {key} 50000"), "done");
    client.expect(&format!("get {key} 1"), "same");
    site.check(vec![client], 49..=49);
}

fn row_42() {
    let site = Site::new();
    let mut client = site.client();
    client.expect("part panic_while_filling", "done");
    site.check(vec![client], 0..=0);
}

fn row_43() {
    let site = Site::new();
    let (mut host, mut client) = (site.client(), site.client());
    client.expect("part views_outlive_the_store", "done");
    host.expect("part views_outlive_the_store", "done");
    let key = host.put(1, 2_000_000);
    client.expect(&format!("hold {key} 1"), "held");
    host.kill();
    client.expect("check", "same");
    client.expect(&format!("evict {key}"), "done");
    for seed in 2..20 {
        client.put(seed, 2_000_000);
    }
    client.expect("check", "same");
    client.expect("drop", "done");
    client.await_answer("dying", "0");
    site.check(vec![client], 18..=18);
}

fn row_44() {
    let site = Site::new();
    let mut client = site.client();
    client.expect("part dropped_futures", "done");
    site.check(vec![client], 50..=50);
}

fn row_45() {
    let site = Site::new();
    let (mut host, mut client) = (site.client(), site.client());
    client.tell("part signal_storm 1500");
    host.expect("part signal_storm 1500", "done");
    assert_eq!(client.reply(), "done");
    host.signal(libc::SIGPIPE);
    host.put(1, 100);
    site.check(vec![host, client], 1..=1);
}

fn row_47() {
    let site = Site::new();
    let mut host = site.client();
    let key = host.put(1, 50_000);
    for how in [
        &["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"][..],
        &["unshare", "--ipc", "--mount", "--uts"],
        &["unshare", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--net"],
    ] {
        let mut inside = Client::start(site.command_under(how, &["--child", &site.url()]));
        inside.expect(&format!("get {key} 1"), "same");
        let theirs = inside.put(2, 50_000);
        host.expect(&format!("take {theirs} 2"), "same");
        inside.expect("reserve 3 50000", "done");
        inside.kill();
        host.await_answer("clients", "1");
    }
    site.check(vec![host], 1..=1);
}

fn row_48() {
    let site = Site::new();
    let mut crowd: Vec<Client> = (0..64).map(|_| Client::spawn(site.command(&["--child", &site.url()]))).collect();
    for client in &crowd {
        assert_eq!(client.reply(), "ready");
    }
    let instance = crowd[0].ask("instance");
    for client in &mut crowd {
        client.expect("instance", &instance);
    }
    crowd[0].expect("clients", "64");
    let keys: Vec<String> = crowd.iter_mut().enumerate().map(|(seed, client)| client.put(seed as u64, 1000)).collect();
    for (seed, key) in keys.iter().enumerate() {
        crowd[(seed + 1) % 64].expect(&format!("get {key} {seed}"), "same");
    }
    let rest = crowd.split_off(32);
    drop(rest);
    crowd[0].await_answer("clients", "32");
    site.check(crowd, 64..=64);
}

fn row_48_storm() {
    let site = Site::new();
    let (mut host, mut client) = (site.client(), site.client());
    let key = host.put(1, 1000);
    host.expect("clients", "2");
    let before = host.descriptors();
    client.tell("part connect_storm 3000");
    let mut worst = 0;
    while client.reply_within(Duration::from_millis(20)).is_none_or(|answer| {
        assert_eq!(answer, "done");
        false
    }) {
        let answer = host.ask(&format!("timed get {key} 1"));
        worst = worst.max(answer.split(' ').next().unwrap().parse::<u64>().unwrap());
        host.expect("clients", "2");
    }
    std::thread::sleep(Duration::from_millis(200));
    host.expect("clients", "2");
    let begun = Instant::now();
    while host.descriptors() > before + 1 {
        assert!(begun.elapsed() < PATIENCE, "{} descriptors, {before} before", host.descriptors());
        std::thread::sleep(Duration::from_millis(10));
    }
    // Of a storm of three seconds.
    assert!(worst < 2000, "a get took {worst} ms");
    site.check(vec![host, client], 1..=1);
}

fn row_49() {
    let site = Site::new();
    let server = serve(&site);
    let (mut client, mut other) = (site.client(), site.client());
    let mut keys = Vec::new();
    for round in 0..3u64 {
        for seed in round * 20..round * 20 + 20 {
            keys.push(client.put(seed, 30_000));
        }
        other.expect(&format!("hold {} {}", keys[0], 0), "held");
        if round < 2 {
            let service: i32 = client.ask("host").parse().unwrap();
            let parent = std::fs::read_to_string(format!("/proc/{service}/stat")).unwrap();
            let parent = parent.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().to_owned();
            assert_eq!(parent, server.id().to_string(), "the service is the child of our supervisor");
            // SAFETY: a system call; the process is the child of our own child, as was just checked.
            unsafe { libc::kill(service, libc::SIGKILL) };
        }
        for (seed, key) in keys.iter().enumerate() {
            other.expect(&format!("get {key} {seed}"), "same");
        }
        client.put(1000 + round, 3_000_000);
    }
    other.expect("check", "same");
    // In order: clients go on with the memory.
    server.signal(libc::SIGTERM);
    client.put(2000, 100);
    client.end();
    other.expect(&format!("get {} 5", keys[5]), "same");
    drop(server);
    site.check(vec![other], 64..=64);
}

fn two_namespaces() {
    let (one, two) = (Site::new(), Site::new());
    let (mut a, mut b) = (one.client(), two.client());
    let (key_a, key_b) = (a.put(1, 1000), b.put(2, 1000));
    let mut both = one.client();
    both.expect(&format!("get {key_a} 1"), "same");
    let answer = both.ask(&format!("get {key_b} 2"));
    assert!(answer.starts_with("error ForeignKey"), "{answer}");
    // In one runtime directory, too.
    let url = one.url().replace(NAMESPACE, "another");
    let mut third = Client::start(one.command(&["--child", &url]));
    let answer = third.ask(&format!("get {key_a} 1"));
    assert!(answer.starts_with("error ForeignKey"), "{answer}");
    third.put(3, 1000);
    third.end();
    let swept = one.command(&["--sweep", "another"]).output().unwrap();
    assert!(swept.status.success());
    one.check(vec![a, both], 1..=1);
    two.check(vec![b], 1..=1);
}

fn another_user() {
    let site = Site::new();
    let host = site.client();
    // May look into the directory: the socket's and the locks' own checks are what is tested.
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    let program = std::env::current_exe().unwrap();
    let copy = site.path().join("program");
    std::fs::copy(&program, &copy).unwrap();
    std::fs::set_permissions(&copy, mode(0o755)).unwrap();
    std::fs::set_permissions(site.path(), mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).args(["--child", &site.url()]);
    command.env("PROXYSTORE_RUNTIME_DIR", site.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("error Permission"), "{text} {}", String::from_utf8_lossy(&output.stderr));
    std::fs::set_permissions(site.path(), mode(0o700)).unwrap();
    std::fs::remove_file(&copy).unwrap();
    site.check(vec![host], 0..=0);
}

const CGROUPS: &str = "/sys/fs/cgroup/memory";
