//! fork(2): a child that inherits warm pools, timers, watchers and stores opens its own, and never hangs.
//!
//! Every case runs in a process of its own, which this program starts from itself: a test harness has threads that a
//! child must not miss.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and a child by its status"
)]
#![allow(unsafe_code, reason = "fork has no safe form")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use libtest_mimic::{Arguments, Failed, Trial};
use proxystore::{ErrorKind, Format, Pending, Proxy, Store};

const CASES: &[(&str, fn())] = &[
    ("a_child_opens_stores_waits_and_meets_deadlines", warm),
    ("a_child_of_busy_threads_never_hangs", busy),
    ("a_grandchild_too", grandchild),
    ("inherited_file_store", inherited_file),
    ("inherited_memory_store", inherited_memory),
    ("operations_and_alarms_of_the_parent_may_be_dropped", inherited_operations),
    ("a_pool_thread_may_fork", fork_in_the_pool),
];

const FLAG: &str = "--fork-case";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(FLAG) {
        let name = arguments.next().unwrap();
        CASES.iter().find(|(case, _)| *case == name).unwrap().1();
        return ExitCode::SUCCESS;
    }
    let trials = CASES.iter().map(|(name, _)| Trial::test(*name, || in_own_process(name))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn in_own_process(name: &str) -> Result<(), Failed> {
    let output = Command::new(std::env::current_exe()?).args([FLAG, name]).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Runs `body` in a forked child; a panic there, and a child that does not end, fail here.
#[track_caller]
fn in_child(body: impl FnOnce()) {
    // SAFETY: what the child does after it is what these tests are about; it ends by `_exit`, so that nothing of the
    // parent's is run down a second time.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        let status = catch_unwind(AssertUnwindSafe(body)).map_or(1, |()| 0);
        // SAFETY: ends the process.
        unsafe { libc::_exit(status) };
    }
    let end = Instant::now() + Duration::from_secs(20);
    let mut status = 0;
    loop {
        // SAFETY: waits for the child made above.
        let ended = unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) };
        if ended == child {
            assert_eq!(status, 0, "the child's status");
            return;
        }
        if Instant::now() > end {
            // SAFETY: kills the child made above, which nobody has waited for.
            unsafe { libc::kill(child, libc::SIGKILL) };
            panic!("the child hangs");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Everything that has a thread or a table of its own.
fn use_everything(file: &str) {
    let memory = Store::open("memory://fork").unwrap();
    let key = memory.put("in memory").wait().unwrap();
    assert_eq!(&*memory.get::<str>(&key).wait().unwrap().unwrap(), "in memory");
    assert_eq!(Store::open("memory://fork").unwrap(), memory);

    let store = Store::open(file).unwrap();
    // Under `.await` file operations run in the pool.
    let key = block_on(store.put(&vec![1u64, 2, 3])).unwrap();
    assert_eq!(*block_on(store.get::<Vec<u64>>(&key)).unwrap().unwrap(), vec![1, 2, 3]);
    block_on(store.evict(&key)).unwrap();

    // A deadline under `.await` is the timer's; one of a blocking call is the pool's.
    let (_completer, never) = Pending::<()>::channel();
    let error = block_on(never.deadline(Duration::from_millis(5))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let asleep = Pending::blocking(|| {
        thread::sleep(Duration::from_millis(200));
        Ok(())
    });
    assert_eq!(asleep.deadline(Duration::from_millis(5)).wait().unwrap_err().kind(), ErrorKind::Timeout);

    // Waiters for a promise are the watching thread's.
    let (promise, proxy) = store.promise::<str>().unwrap();
    let consumer: thread::JoinHandle<Proxy<str>> = thread::spawn(move || {
        assert_eq!(&*proxy, "kept");
        proxy
    });
    thread::sleep(Duration::from_millis(2));
    promise.set("kept").wait().unwrap();
    let proxy = consumer.join().unwrap();
    store.evict(Proxy::key(&proxy).unwrap()).wait().unwrap();
}

/// A directory for one case, and its URL.
fn place() -> (tempfile::TempDir, String) {
    let place = tempfile::tempdir().unwrap();
    let url = format!("file://{}", place.path().display());
    (place, url)
}

fn warm() {
    let (_place, url) = place();
    use_everything(&url);
    let parents = Store::open(&url).unwrap();
    for _ in 0..10 {
        in_child(|| {
            let own = Store::open(&url).unwrap();
            assert_ne!(own, parents, "the child got its parent's store");
            assert_eq!(Store::open(&url).unwrap(), own);
            use_everything(&url);
        });
    }
    assert_eq!(Store::open(&url).unwrap(), parents);
    use_everything(&url);
}

/// Other threads hold the locks of pool, timer and registry all the time, so some forks come while they do.
fn busy() {
    let (_place, url) = place();
    use_everything(&url);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for n in 0..4 {
            let (over, url) = (&over, &url);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    match n {
                        0 => drop(Pending::blocking(|| Ok(()))),
                        1 => {
                            let (_completer, never) = Pending::<()>::channel();
                            let _ = block_on(never.deadline(Duration::from_micros(50)));
                        }
                        2 => drop(Store::open(url)),
                        _ => Store::open("memory://busy").unwrap().close().unwrap(),
                    }
                }
            });
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| (0..100).for_each(|_| in_child(|| use_everything(&url)))));
        over.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
}

fn grandchild() {
    let (_place, url) = place();
    use_everything(&url);
    in_child(|| {
        use_everything(&url);
        let parents = Store::open(&url).unwrap();
        in_child(|| {
            assert_ne!(Store::open(&url).unwrap(), parents);
            use_everything(&url);
        });
        assert_eq!(Store::open(&url).unwrap(), parents);
    });
}

fn inherited_file() {
    let (_place, url) = place();
    use_everything(&url);
    let store = Store::open(&url).unwrap();
    let before = store.put("by the parent").wait().unwrap();
    in_child(|| {
        assert_eq!(&*block_on(store.get::<str>(&before)).unwrap().unwrap(), "by the parent");
        let own = store.put("by the child").wait().unwrap();
        assert_eq!(&*Store::open(&url).unwrap().get::<str>(&own).wait().unwrap().unwrap(), "by the child");
        // Closing the inherited handle ends it here alone.
        store.close().unwrap();
        use_everything(&url);
    });
    assert!(!store.is_closed());
    assert_eq!(&*store.get::<str>(&before).wait().unwrap().unwrap(), "by the parent");
}

fn inherited_memory() {
    let store = Store::open("memory://inherited").unwrap();
    let before = store.put("by the parent").wait().unwrap();
    in_child(|| {
        // What it holds is a copy; keys given out from it would be the parent's too.
        assert_eq!(&*store.get::<str>(&before).wait().unwrap().unwrap(), "by the parent");
        assert_eq!(store.put("by the child").wait().unwrap_err().kind(), ErrorKind::Forked);
        assert_eq!(store.connector().declare(Format::RAW).unwrap_err().kind(), ErrorKind::Forked);
        let own = Store::open("memory://inherited").unwrap();
        let key = own.put("by the child").wait().unwrap();
        assert_eq!(&*own.get::<str>(&key).wait().unwrap().unwrap(), "by the child");
        assert_eq!(own.get::<str>(&before).wait().unwrap_err().kind(), ErrorKind::ForeignKey);
        store.evict(&before).wait().unwrap();
    });
    assert_eq!(&*store.get::<str>(&before).wait().unwrap().unwrap(), "by the parent");
}

fn inherited_operations() {
    let (_place, url) = place();
    use_everything(&url);
    let (_completer, never) = Pending::<()>::channel();
    let mut never = never.deadline(Duration::from_secs(60));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::future::Future::poll(std::pin::Pin::new(&mut never), &mut cx).is_pending());
    in_child(|| {
        drop(never);
        use_everything(&url);
    });
}

fn fork_in_the_pool() {
    let (_place, url) = place();
    let inner = url.clone();
    let forked = Pending::blocking(move || {
        in_child(|| use_everything(&inner));
        Ok(())
    });
    forked.start().wait().unwrap();
    use_everything(&url);
}
