//! Processes that exit with a store in use, as all do that have theirs in a static: a native library ends before the threads that use it.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::FromRawFd as _;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use proxystore::connectors::DimConnector;
use proxystore::{Connector, Key};

use crate::hosts::{Host, Worker};
use crate::pair::{self, Fabric, Over, Pair, Row, SILENCE, SLACK, end_clean, is_error, node_with, put};

pub(crate) fn trials() -> Vec<Trial> {
    pair::trials(ROWS, &Ok(()))
}

const ROWS: &[Row] =
    &[("exit_of_who_asks", 60, Over::Always, who_asks), ("exit_of_who_is_asked", 60, Over::Always, who_is_asked)];

/// Whom it asks is killed meanwhile, and another one is there.
fn who_asks(fabric: Fabric) {
    let mut pair = perturbed_pair(fabric);
    for (seed, how) in (1..).zip(WAYS) {
        let key = put(&mut pair.owner, seed, 3_000_000);
        pair.requester.expect(&format!("busy 3 {key}"), "done");
        let begun = exit(&mut pair.requester, how, &key);
        pair.owner.kill();
        pair.owner = perturbed(fabric, &pair.hosts[0]);
        exited(&mut pair.requester, begun);
        pair.requester = perturbed(fabric, &pair.hosts[1]);
    }
}

/// Who asks is killed meanwhile, and another one asks.
fn who_is_asked(fabric: Fabric) {
    let mut pair = perturbed_pair(fabric);
    for (seed, how) in (1..).zip(WAYS) {
        let key = put(&mut pair.owner, seed, 3_000_000);
        pair.requester.expect(&format!("busy 3 {key}"), "done");
        let mut other = perturbed(fabric, &pair.hosts[1]);
        let begun = exit(&mut pair.owner, how, &key);
        pair.requester.kill();
        other.tell(&format!("get {key} {seed}"));
        exited(&mut pair.owner, begun);
        let answer = other.reply();
        assert!(answer == "same" || is_error(&answer, &["PeerDown", "Stale", "Timeout", "Unavailable"]), "{answer}");
        (pair.owner, pair.requester) = (perturbed(fabric, &pair.hosts[0]), other);
    }
}

/// What the process does with its stores when it exits: nothing; it closes one before its libraries end; a thread drops one after that.
const WAYS: [&str; 3] = ["at_once", "closing", "dropping"];

/// A process in which memory that was freed is no more what it was.
fn perturbed(fabric: Fabric, host: &Host) -> Worker {
    node_with(fabric, host, &[("MALLOC_PERTURB_", "165")])
}

fn perturbed_pair(fabric: Fabric) -> Pair {
    let mut pair = Pair::new(fabric);
    pair.owner = perturbed(fabric, &pair.hosts[0]);
    pair.requester = perturbed(fabric, &pair.hosts[1]);
    pair
}

/// Has a process begin to exit.
fn exit(worker: &mut Worker, how: &str, key: &str) -> Instant {
    let begun = Instant::now();
    worker.tell(&format!("exit {how} {key}"));
    std::thread::sleep(LINGERING / 4);
    begun
}

/// With status 0, in time and without complaints.
#[track_caller]
fn exited(worker: &mut Worker, begun: Instant) {
    end_clean(worker);
    let took = begun.elapsed();
    assert!(took >= LINGERING && took < SLACK + SILENCE, "it took {took:?}");
}

// ---------------------------------------------------------------------------------------------------------------------
// In the process.

/// What is still used by who exits, behind the ends that came to be since this was registered: the library's is one of them.
static LEFT: Mutex<Option<(Arc<DimConnector>, Key)>> = Mutex::new(None);

/// The last handler of the exit is over: the ends of the libraries come next.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// Has the process close, when it exits, what [`exit_slowly`] leaves; to be called before there is a store.
pub(crate) fn prepare() {
    extern "C" fn close() {
        if let Some((store, key)) = LEFT.lock().unwrap().take() {
            // An answer or an error, and in time.
            let _ = store.get(&key).wait();
            let _ = store.close();
        }
        IS_ENDING.store(true, SeqCst);
    }
    // SAFETY: a function that stays.
    assert_eq!(unsafe { libc::atexit(close) }, 0);
}

fn await_ending() {
    while !IS_ENDING.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// When each thread had its last answer, or error, or dropped a store.
static TURNS: LazyLock<Mutex<HashMap<ThreadId, Instant>>> = LazyLock::new(Mutex::default);

fn turn() {
    TURNS.lock().unwrap().insert(std::thread::current().id(), Instant::now());
}

/// Status of a process in which a thread hangs.
const HANGING: i32 = 3;

/// Has so many threads get an object until the process ends; returns when each has it, or was told why not.
pub(crate) fn busy(store: &Arc<DimConnector>, threads: usize, key: &Key) {
    let (sender, begun) = std::sync::mpsc::channel();
    for _ in 0..threads {
        let (store, key, sender) = (Arc::clone(store), *key, sender.clone());
        std::thread::spawn(move || {
            loop {
                let found = store.get(&key).wait();
                turn();
                let _ = sender.send(());
                if found.is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
    }
    (0..threads).for_each(|_| begun.recv().expect("a thread that asks"));
}

/// Exits, slowly: after the ends of its libraries what the C library has still to write waits for somebody who reads it.
pub(crate) fn exit_slowly(store: &Arc<DimConnector>, url: &str, how: &str, key: Key) -> ! {
    match how {
        "closing" => *LEFT.lock().unwrap() = Some((Arc::clone(store), key)),
        "dropping" => {
            let other = url.parse().and_then(|config| DimConnector::open(&config)).expect("another store");
            other.get(&key).wait().expect("the object");
            std::thread::spawn(move || {
                turn();
                await_ending();
                std::thread::sleep(LINGERING / 4);
                drop(other);
                turn();
            });
        }
        _ => {}
    }
    let mut ends = [0; 2];
    // SAFETY: descriptors that are nobody else's, and text that ends in a zero. The stream stays.
    let mut reader = unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        let [reader, descriptor] = ends;
        let size = libc::fcntl(descriptor, libc::F_SETPIPE_SZ, 1);
        let stream = libc::fdopen(descriptor, c"w".as_ptr());
        assert!(size > 0 && !stream.is_null());
        let full = vec![0u8; size as usize];
        assert_eq!(libc::write(descriptor, full.as_ptr().cast(), full.len()), full.len() as isize);
        assert!(libc::fputs(c"the end".as_ptr(), stream) >= 0);
        File::from_raw_fd(reader)
    };
    std::thread::spawn(move || {
        await_ending();
        let ended = Instant::now();
        let have_turned = || TURNS.lock().unwrap().values().all(|turn| *turn > ended);
        while ended.elapsed() < LINGERING || !have_turned() {
            if ended.elapsed() > SLACK {
                // Somebody who waits for such a thread would wait for ever.
                // SAFETY: nothing is left to be done.
                unsafe { libc::_exit(HANGING) };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        std::io::copy(&mut reader, &mut std::io::sink())
    });
    std::process::exit(0)
}

/// How long the process is there yet when its libraries have ended, at least.
const LINGERING: Duration = Duration::from_secs(1);
