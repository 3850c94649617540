//! Ends that are not deaths: of use, of patience, of descriptors.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use proxystore::service::{self, Namespace};

use crate::child::{Hand, open};
use crate::rows::row;
use crate::site::{Client, NAMESPACE, PATIENCE, Site};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        row("leaving_keeps_what_is_in_use", 20, leaving_keeps_what_is_in_use),
        row("who_looked_first_takes_over", 20, who_looked_first_takes_over),
        row("who_ends_in_a_takeover_leaves_nothing", 60, who_ends_in_a_takeover_leaves_nothing),
        row("failed_attaches_leave_no_client", 60, failed_attaches_leave_no_client),
        row("a_removed_lock_file_ends_nobody", 20, a_removed_lock_file_ends_nobody),
        row("a_stopped_client_is_waited_for_once", 20, a_stopped_client_is_waited_for_once),
    ]
}

/// A process that ends its use still has views and reservations, and nobody else gets their memory.
fn leaving_keeps_what_is_in_use() {
    let site = Site::new();
    let (mut host, mut leaver) = (site.client(), site.client());
    let key = host.put(1, 100_000);
    leaver.expect(&format!("hold {key} 1"), "held");
    leaver.expect("reserve 2 100000", "done");
    leaver.expect("part leave", "done");
    host.expect(&format!("evict {key}"), "done");
    let keys: Vec<String> = (0..300).map(|seed| host.put(1000 + seed, 100_000)).collect();
    leaver.expect("check", "same");
    // Fills the second half of what it reserved, and is refused.
    let answer = leaver.ask("commit 100000");
    assert!(answer.starts_with("error Stale"), "{answer}");
    for (seed, key) in keys.iter().enumerate() {
        host.expect(&format!("get {key} {}", 1000 + seed), "same");
    }
    leaver.end();
    site.check(vec![host], 300..=300);
}

/// A process that began by looking, and then uses the memory, is one that keeps it.
fn who_looked_first_takes_over() {
    let site = Site::new();
    let (mut host, mut user) = (site.client(), site.command(&["--looker", &site.url()]));
    host.put(1, 100);
    user.env("PROXYSTORE_TIMEOUT", "5s");
    let mut user = Client::start(user);
    let key = user.put(2, 5000);
    host.kill();
    user.expect(&format!("get {key} 2"), "same");
    user.put(3, 3_000_000);
    site.check(vec![user], 3..=3);
}

/// The host ends, and the last process of the namespace right behind it, while it takes over or before: as ranks of a job do.
fn who_ends_in_a_takeover_leaves_nothing() {
    let site = Site::new();
    for turn in 0..30 {
        let (mut host, mut last) = (site.client(), site.client());
        host.put(1, 100);
        last.put(2, 100);
        host.kill();
        std::thread::sleep(Duration::from_micros(150 * turn));
        last.end();
        let left: Vec<_> = std::fs::read_dir(site.path().join(NAMESPACE)).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "turn {turn}: {left:?}");
    }
}

/// Opens the namespace to look at it, and then as [`child::run`](crate::child::run) does.
pub(crate) fn looker(url: &str) -> i32 {
    let seen = Namespace::find(NAMESPACE);
    assert!(matches!(&seen, Ok(Some(_))), "{seen:?}");
    crate::child::run(url)
}

/// Attaching fails for want of descriptors, again and again until its deadline: one place at most is taken meanwhile.
fn failed_attaches_leave_no_client() {
    let site = Site::new();
    let mut host = site.client();
    host.expect("put_many 1 1000000 40", "done");
    let mut command = site.command(&["--few", &site.url()]);
    command.env("PROXYSTORE_TIMEOUT", "1s");
    let mut few = Client::spawn(command);
    let answer = few.reply_within(Duration::from_secs(20)).expect("an answer");
    assert!(answer.starts_with("error"), "{answer}");
    let clients: u64 = host.ask("clients").parse().unwrap();
    assert!(clients <= 2, "{clients} clients, of which one is real");
    few.kill();
    site.check(vec![host], 40..=40);
}

/// Somebody cleans the runtime directory up. Who takes over asks the file that the clients have open who lives.
fn a_removed_lock_file_ends_nobody() {
    let site = Site::new();
    let (mut host, mut second, mut third) = (site.client(), site.client(), site.client());
    let key = host.put(1, 400_000);
    second.expect(&format!("hold {key} 1"), "held");
    third.expect(&format!("hold {key} 1"), "held");
    std::fs::remove_file(site.path().join(NAMESPACE).join("members")).expect("the file that tells who lives");
    host.kill();
    for (seed, client) in [&mut second, &mut third].into_iter().enumerate() {
        let key = client.put(10 + seed as u64, 50_000);
        client.expect(&format!("get {key} {}", 10 + seed), "same");
    }
    second.await_answer("clients", "2");
    second.expect(&format!("evict {key}"), "done");
    // Both views count.
    second.expect("drop", "done");
    second.await_answer("dying", "1");
    third.expect("check", "same");
    third.expect("drop", "done");
    second.await_answer("dying", "0");
    site.check(vec![second, third], 2..=2);
}

/// Nothing is refused before all were asked for unused leases: who does not answer holds that up once, not each time.
fn a_stopped_client_is_waited_for_once() {
    let site = Site::new();
    let (mut host, mut stopped) = (site.client(), site.client());
    // Leases more than this one.
    stopped.put(1, 1_000_000);
    stopped.signal(libc::SIGSTOP);
    let mut live = 1;
    let mut put = |host: &mut Client| {
        let answer = host.ask("put 2 1000000");
        live += u64::from(answer.starts_with("key"));
        assert!(answer.starts_with("key") || answer.starts_with("error NoSpace"), "{answer}");
        answer.starts_with("key")
    };
    while put(&mut host) {}
    let begun = Instant::now();
    assert!((0..50).all(|_| !put(&mut host)));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?} for 50 refusals, at 200 ms a recall", begun.elapsed());
    stopped.signal(libc::SIGCONT);
    let begun = Instant::now();
    while !put(&mut host) {
        assert!(begun.elapsed() < PATIENCE, "it gives nothing back");
    }
    site.check(vec![host, stopped], live..=live);
}

/// Attaches with too few descriptors left for the memory, and says what became of that.
pub(crate) fn few(url: &str) -> i32 {
    let mut files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    files.truncate(files.len() - 6);
    let opened = open(url);
    drop(files);
    crate::child::say(&opened.map_or_else(|error| format!("error {error}"), |_| "opened".to_owned()));
    // The place must be given back by whoever notices, not by this process's end.
    std::thread::sleep(Duration::from_secs(30));
    0
}

/// What children do for these tests; `None` for what is not theirs.
pub(crate) fn part(_: &Hand, name: &str) -> Option<String> {
    (name == "leave").then(|| {
        service::leave();
        "done".to_owned()
    })
}
