//! An owner that is killed while it answers leaves nothing at who asked: no handle, no memory, no instance that cannot end.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::super::native::ENDING;
use super::*;
use crate::launch::Job;

#[test]
#[cfg(feature = "failpoints")]
#[ignore = "needs Margo with na+sm and ofi+tcp: --ignored"]
fn an_owner_that_is_killed_leaves_nothing() {
    for protocol in ["na+sm", "ofi+tcp"] {
        for place in ["margo.question", "margo.answer.half", "margo.answer.sent"] {
            let secret = "5ec2e7".repeat(11)[..64].to_owned();
            let output = child("bereaved")
                .env("PROXYSTORE_SECRET", secret)
                .env(PROTOCOL, protocol)
                .env(PLACE, place)
                .output()
                .unwrap();
            assert!(output.status.success(), "{protocol}, {place}: {output:?}");
        }
    }
}

/// This program, for one test.
fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", &format!("fabric::margo::tests::deaths::{test}")]);
    command
}

fn of_job() -> Margo {
    let secret = Arc::new(Secret::of_job(&Job::discover().unwrap()).unwrap());
    let protocol = Some(std::env::var(PROTOCOL).expect("a protocol"));
    Margo::new(identity(&secret, 5), Options { protocol, silence: LIMIT, ..Options::default() })
}

#[test]
#[ignore = "asks an owner that is killed: run by an_owner_that_is_killed_leaves_nothing"]
fn bereaved() {
    // Run among all, it is nobody's child.
    let Ok(place) = std::env::var(PLACE) else { return };
    let mut owner =
        child("owner").env("PROXYSTORE_FAILPOINT", format!("{place}:3")).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(std::result::Result::ok);
    let contact = lines.filter_map(|line| line.split_once("at ")?.1.parse().ok()).next().expect("where it listens");
    let sockets = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let name = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).ok();
        all.filter_map(name).filter(|name| name.to_string_lossy().starts_with("socket")).count()
    };
    // None, or those that it was started with.
    let before = sockets();
    let requester = of_job();
    let peer = requester.connect(contact, Instant::now() + LIMIT).unwrap();
    let instances: Vec<_> = lock(&requester.memories).iter().map(|(instance, _)| Arc::downgrade(instance)).collect();
    assert_eq!(instances.len(), 1);
    let ask = |len: usize| {
        let region = RegionMut::heap(4 << 20).unwrap();
        let call = Call {
            head: (len as u32).to_le_bytes().to_vec().into(),
            land: Box::new(Into(Some(region))).into(),
            lane: 0,
        };
        Arc::clone(&peer).request(call)
    };
    for len in [4 << 20, 10] {
        assert_eq!(ask(len).deadline(LIMIT).wait().unwrap().parts.len(), 1);
    }
    // It dies of the third; the others are on their way, or wait for theirs.
    let asked: Vec<_> = (0..50).map(|at| ask(if at % 2 == 0 { 4 << 20 } else { 10 })).collect();
    let begun = Instant::now();
    let failed = asked.into_iter().filter_map(|asked| asked.deadline(LIMIT).wait().err()).collect::<Vec<_>>();
    assert!(failed.iter().all(|error| error.kind() == ErrorKind::PeerDown), "{failed:?}");
    assert!(failed.len() > 40 && begun.elapsed() < LIMIT / 2, "{} after {:?}", failed.len(), begun.elapsed());
    owner.wait().unwrap();
    drop((peer, requester));
    // All that was made for it has an instance: handles, memory, addresses.
    await_that("something holds the instance", || instances[0].strong_count() == 0);
    await_that("its end does not end", || ENDING.load(SeqCst) == 0);
    await_that("there are sockets", || sockets() <= before);
}

fn await_that(not: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LIMIT * 2, "{not}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "is killed: run by bereaved"]
fn owner() {
    if std::env::var_os(PLACE).is_none() {
        return;
    }
    let sender = Sender { content: vec![1; 4 << 20].into(), asked: AtomicUsize::new(0) };
    let listener = of_job().listen(&[any()], Arc::new(sender)).unwrap();
    println!("at {}", listener.contact());
    std::thread::sleep(LIMIT * 10);
}

/// Variables of the children.
const PROTOCOL: &str = "TEST_MARGO_PROTOCOL";
const PLACE: &str = "TEST_MARGO_PLACE";
