//! The soak: processes that use a namespace while they, and whoever hosts its service, are killed and stopped at random.
//!
//! The director is process 1 of a pid namespace of its own, has one thread, never opens the namespace itself, and signals
//! its own children only.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use proxystore::service::inspect;

use crate::audit;
use crate::content::Random;
use crate::ledger::{Count, Kind, Ledger, kind};
use crate::namespace;
use crate::worker::{REMOTES, Worker};

/// What the soak does and for how long.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seconds: u64,
    pub(crate) workers: usize,
    pub(crate) kill_every: Duration,
    pub(crate) host_kill_every: Duration,
    pub(crate) stop_every: Duration,
    pub(crate) seed: u64,
}

/// `chaos SECONDS`, `sweep [NAME]`: the whole program in its namespace; the exit status.
pub(crate) fn main(arguments: &[String]) -> i32 {
    if let Err(reason) = namespace::missing() {
        println!("ignored: {reason}");
        return 77;
    }
    let mut inside = vec!["--inside".to_owned()];
    inside.extend_from_slice(arguments);
    match namespace::command(&inside).status() {
        Ok(status) => status.code().unwrap_or(1),
        Err(error) => {
            eprintln!("unshare: {error}");
            1
        }
    }
}

/// The director.
pub(crate) fn inside(arguments: &[String]) -> i32 {
    namespace::prove();
    let seed = std::env::var("SOAK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let time =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
        time ^ u64::from(std::process::id()) << 32
    });
    let number = |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    match arguments.first().map(String::as_str) {
        Some("chaos") => soak(number(1, 20), seed),
        Some("sweep") => sweep(arguments.get(1).map(String::as_str), seed),
        other => panic!("no such part: {other:?}"),
    }
}

fn soak(seconds: u64, seed: u64) -> i32 {
    let plan = Plan {
        seconds,
        workers: number_of("SOAK_PROCESSES", 16) as usize,
        kill_every: Duration::from_millis(number_of("SOAK_KILL_MS", 10)),
        host_kill_every: Duration::from_millis(number_of("SOAK_HOST_KILL_MS", 250)),
        stop_every: Duration::from_millis(50),
        seed,
    };
    println!("soak: {seconds} s, {} processes, SOAK_SEED={seed}", plan.workers);
    let mut director = Director::new(plan);
    director.play(|director, _| {
        director.kill_sometimes();
        director.stop_sometimes();
        true
    });
    director.finish();
    let ledger = director.ledger;
    for (what, n) in
        [("kills", director.kills), ("of them of the host", director.host_kills), ("stops", director.stops)]
    {
        println!("{n:>14}  {what}");
    }
    for what in Count::ALL {
        println!("{:>14}  {what:?}", ledger.total(what));
    }
    let bad = ledger.violations();
    let numbers: BTreeMap<String, u64> =
        Count::ALL.iter().map(|what| (format!("{what:?}").to_lowercase(), ledger.total(*what))).collect();
    println!(
        "{}",
        serde_json::json!({
            "seconds": seconds, "operations": ledger.operations(), "kills": director.kills, "host_kills": director.host_kills,
            "stops": director.stops, "violations": bad, "counts": numbers, "seed": seed,
        })
    );
    i32::from(bad > 0 || ledger.operations() == 0 || director.kills == 0)
}

/// Every failpoint under light load.
fn sweep(only: Option<&str>, seed: u64) -> i32 {
    let mut failed = 0;
    println!("{:<28} {:>5} {:>9} {:>10} {:>7}", "failpoint", "hits", "ops", "violations", "ms");
    for (at, name) in proxystore::service::NAMES.iter().enumerate() {
        // One node passes none of the others.
        let is_ours = name.starts_with("client.") || name.starts_with("service.");
        if !is_ours || only.is_some_and(|only| only != *name) {
            continue;
        }
        let begun = Instant::now();
        let (mut hits, mut operations, mut bad) = (0, 0, 0);
        // Memory grows only when it is young.
        let seconds = if name.starts_with("service.segment") { 1 } else { 8 };
        // On a busy machine the first one takes its time.
        while hits < HITS && begun.elapsed() < if hits == 0 { 4 * PATIENCE } else { PATIENCE } {
            let plan = Plan {
                seconds,
                workers: 5,
                kill_every: Duration::from_millis(40),
                host_kill_every: Duration::from_millis(60),
                stop_every: Duration::MAX,
                seed: seed.wrapping_add((at as u64) << 32 | hits),
            };
            let mut director = Director::new(plan);
            director.armed = Some(name);
            director.play(|director, _| {
                director.kill_unarmed_host_sometimes();
                director.kill_for_deaths_sometimes();
                hits + director.hits < HITS
            });
            director.finish();
            hits += director.hits;
            operations += director.ledger.operations();
            bad += director.ledger.violations();
        }
        println!("{name:<28} {hits:>5} {operations:>9} {bad:>10} {:>7}", begun.elapsed().as_millis());
        failed += i32::from(bad > 0 || hits == 0);
    }
    i32::from(failed > 0)
}

/// One run with a namespace of its own.
struct Director {
    plan: Plan,
    ledger: &'static Ledger,
    random: Random,
    root: tempfile::TempDir,
    children: Vec<Child>,
    armed: Option<&'static str>,
    hits: u64,
    kills: u64,
    host_kills: u64,
    stops: u64,
    last_kill: Instant,
    last_host_kill: Instant,
    last_stop: Instant,
}

struct Child {
    pid: i32,
    /// We did it.
    killed: bool,
    armed: bool,
    /// When it goes on.
    stopped_until: Option<Instant>,
}

impl Director {
    fn new(plan: Plan) -> Self {
        let now = Instant::now();
        let mut builder = tempfile::Builder::new();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        LazyLock::force(&REMOTES);
        let root = builder.prefix("shm-soak-").permissions(private).tempdir().expect("a directory");
        Self {
            plan,
            ledger: Ledger::new(),
            random: Random(plan.seed | 1),
            root,
            children: Vec::new(),
            armed: None,
            hits: 0,
            kills: 0,
            host_kills: 0,
            stops: 0,
            last_kill: now,
            last_host_kill: now,
            last_stop: now,
        }
    }

    /// Runs the workers until time is up or `act` says no.
    fn play(&mut self, mut act: impl FnMut(&mut Self, Instant) -> bool) {
        let until = Instant::now() + Duration::from_secs(self.plan.seconds);
        // Those that a failpoint kills come last: memory that one process holds is gone with it.
        let armed = std::mem::take(&mut self.armed);
        for number in 0..self.plan.workers {
            let child = self.spawn(number);
            self.children.push(child);
        }
        let begun = Instant::now();
        while armed.is_some() && !self.may_lose_one(self.plan.workers) && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.armed = armed;
        if armed.is_some() {
            // Their successors are armed.
            (0..self.plan.workers / 2).for_each(|number| self.kill(number));
        }
        while Instant::now() < until {
            self.reap(true);
            self.go_on(false);
            if !act(self, until) || self.ledger.violations() > MOST_VIOLATIONS {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets everybody end but one, who looks at what is left.
    fn finish(&mut self) {
        self.go_on(true);
        let auditor = self.plan.workers;
        let child = self.fork(|director| audit::main(director.ledger, &director.url(), auditor));
        let begun = Instant::now();
        while self.ledger.workers[auditor].attached.load(Acquire) == 0 && begun.elapsed() < PATIENCE {
            self.reap(true);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.ledger.phase.store(1, Release);
        let begun = Instant::now();
        while !self.children.is_empty() && begun.elapsed() < PATIENCE {
            self.reap(false);
            std::thread::sleep(Duration::from_millis(1));
        }
        for child in std::mem::take(&mut self.children) {
            self.ledger.violate(Count::Died, format_args!("process {} hangs: {}", child.pid, stacks(child.pid)));
            signal(child.pid, libc::SIGKILL);
            wait(child.pid, true);
        }
        for number in 0..self.plan.workers {
            self.ledger.settle(number);
        }
        self.ledger.phase.store(2, Release);
        let begun = Instant::now();
        let status = loop {
            match wait(child, false) {
                Some(status) => break status,
                None if begun.elapsed() > 2 * PATIENCE => {
                    self.ledger.violate(Count::Died, format_args!("the auditor hangs: {}", stacks(child)));
                    signal(child, libc::SIGKILL);
                    break wait(child, true).unwrap_or(0);
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        if status != 0 {
            self.ledger.violate(Count::Died, format_args!("the auditor ended with status {status:#x}"));
        }
        self.check_directory();
    }

    /// All have ended: what they left is nobody's.
    fn check_directory(&self) {
        // SAFETY: one thread.
        unsafe { std::env::set_var("PROXYSTORE_RUNTIME_DIR", self.root.path()) };
        match inspect::sweep(NAMESPACE) {
            Ok(true) => {}
            other => {
                self.ledger.violate(Count::Leaked, format_args!("the directory is held by nobody, and is: {other:?}"))
            }
        }
        let left: Vec<PathBuf> =
            std::fs::read_dir(self.root.path()).expect("the directory").flatten().map(|entry| entry.path()).collect();
        if !left.is_empty() {
            self.ledger.violate(Count::Leaked, format_args!("left behind: {left:?}"));
        }
    }

    fn url(&self) -> String {
        format!("shm://{NAMESPACE}?bytes=268435456")
    }

    fn spawn(&mut self, number: usize) -> Child {
        let armed = self.armed.filter(|_| number < self.plan.workers / 2);
        let seed = self.random.next();
        let nth = match armed {
            // Few processes come there, and not often.
            Some(name) if RARE.iter().any(|prefix| name.starts_with(prefix)) => 1,
            Some(name) if name.starts_with("service") => 1 + self.random.below(4),
            _ => 1 + self.random.below(60),
        };
        self.ledger.workers[number].attached.store(0, Release);
        let pid = self.fork(|director| {
            if let Some(name) = armed {
                // SAFETY: one thread.
                unsafe { std::env::set_var("PROXYSTORE_FAILPOINT", format!("{name}:{nth}")) };
            }
            match Worker::start(director.ledger, number, seed, &director.url()) {
                Some(mut worker) => {
                    worker.run();
                    0
                }
                None => 4,
            }
        });
        Child { pid, killed: false, armed: armed.is_some(), stopped_until: None }
    }

    /// A child that runs `part` and ends with what it returns.
    fn fork(&self, part: impl FnOnce(&Self) -> i32) -> i32 {
        // SAFETY: this process has one thread, so the child may do everything.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: as above; it ends with its parent, whatever becomes of that.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    std::env::set_var("PROXYSTORE_RUNTIME_DIR", self.root.path());
                    // Few enough that they make room for each other.
                    std::env::set_var("PROXYSTORE_REPLICA_BYTES", "200KiB");
                }
                let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| part(self))).unwrap_or(101);
                std::process::exit(code)
            }
            -1 => panic!("fork: {}", io::Error::last_os_error()),
            pid => pid,
        }
    }

    /// Notes who has ended; others take their places, or not.
    fn reap(&mut self, respawn: bool) {
        let mut at = 0;
        while at < self.children.len() {
            let Some(status) = wait(self.children[at].pid, false) else {
                at += 1;
                continue;
            };
            let child = &self.children[at];
            let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
            match () {
                () if killed && child.killed => {}
                () if killed && child.armed => self.hits += 1,
                () if !respawn && status == 0 => {}
                () => self
                    .ledger
                    .violate(Count::Died, format_args!("process {} ended with status {status:#x}", child.pid)),
            }
            if respawn {
                self.ledger.settle(at);
                self.children[at] = self.spawn(at);
                at += 1;
            } else {
                // Their numbers do not matter any more: all are settled at the end.
                self.children.swap_remove(at);
            }
        }
    }

    fn go_on(&mut self, all: bool) {
        let now = Instant::now();
        for child in &mut self.children {
            if child.stopped_until.is_some_and(|until| all || until <= now) {
                signal(child.pid, libc::SIGCONT);
                child.stopped_until = None;
            }
        }
    }

    /// Enough processes hold the memory that it survives the loss of one.
    fn may_lose_one(&self, at_least: usize) -> bool {
        let holders = self.children.iter().enumerate().filter(|(number, child)| {
            !child.killed
                && !child.armed
                && child.stopped_until.is_none()
                && self.ledger.workers[*number].attached.load(Acquire) == 1
        });
        holders.count() >= at_least
    }

    fn kill_sometimes(&mut self) {
        if self.last_host_kill.elapsed() >= self.plan.host_kill_every && self.may_lose_one(4) {
            if let Some(at) = self.host() {
                self.kill(at);
                self.host_kills += 1;
                self.last_host_kill = Instant::now();
            }
        }
        if self.last_kill.elapsed() >= self.plan.kill_every && self.may_lose_one(4) {
            let at = self.random.below(self.children.len() as u64) as usize;
            self.kill(at);
            self.last_kill = Instant::now();
        }
    }

    fn kill_unarmed_host_sometimes(&mut self) {
        let wants_hosts = self
            .armed
            .is_some_and(|name| name.starts_with("service") || RARE.iter().any(|prefix| name.starts_with(prefix)));
        if wants_hosts && self.last_host_kill.elapsed() >= self.plan.host_kill_every && self.may_lose_one(3) {
            if let Some(at) = self.host() {
                let rebuilds = self.armed.is_some_and(|name| RARE.iter().any(|prefix| name.starts_with(prefix)));
                if !self.children[at].armed || rebuilds {
                    self.kill(at);
                    self.host_kills += 1;
                    self.last_host_kill = Instant::now();
                }
            }
        }
    }

    /// The service sees deaths only if somebody dies.
    fn kill_for_deaths_sometimes(&mut self) {
        let wants = self.armed.is_some_and(|name| name.starts_with("service"));
        if wants && self.last_kill.elapsed() >= self.plan.kill_every && self.may_lose_one(3) {
            let host = self.host();
            let at = self.random.below(self.children.len() as u64) as usize;
            if host != Some(at) {
                self.kill(at);
            }
            self.last_kill = Instant::now();
        }
    }

    fn kill(&mut self, at: usize) {
        let child = &mut self.children[at];
        if !child.killed {
            child.killed = true;
            signal(child.pid, libc::SIGKILL);
            self.kills += 1;
        }
    }

    fn stop_sometimes(&mut self) {
        if self.last_stop.elapsed() < self.plan.stop_every {
            return;
        }
        self.last_stop = Instant::now();
        let at = self.random.below(self.children.len() as u64) as usize;
        let millis = 1 + self.random.below(100);
        let child = &mut self.children[at];
        if child.stopped_until.is_none() && !child.killed {
            signal(child.pid, libc::SIGSTOP);
            child.stopped_until = Some(Instant::now() + Duration::from_millis(millis));
            self.stops += 1;
        }
    }

    /// Which child hosts the service.
    fn host(&self) -> Option<usize> {
        let pid = holder(&self.root.path().join(NAMESPACE).join("host"))?;
        self.children.iter().position(|child| child.pid == pid)
    }
}

/// A number that whoever runs the soak may set.
fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The process that has locked the first byte of a file.
fn holder(path: &Path) -> Option<i32> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).ok()?;
    // SAFETY: all fields are integers, of which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_whence, lock.l_len) = (libc::F_WRLCK as _, libc::SEEK_SET as _, 1);
    // SAFETY: the descriptor is open, and the command takes a pointer to a `flock`.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock) };
    (done == 0 && i32::from(lock.l_type) != libc::F_UNLCK && lock.l_pid > 1).then_some(lock.l_pid)
}

/// Signals a child of ours.
fn signal(pid: i32, signal: i32) {
    assert!(pid > 1, "a child's number");
    // SAFETY: a system call without memory. The process was not waited for, so the number is still its.
    unsafe { libc::kill(pid, signal) };
}

/// The status of a child that has ended.
fn wait(pid: i32, block: bool) -> Option<i32> {
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    let ended = unsafe { libc::waitpid(pid, &mut status, if block { 0 } else { libc::WNOHANG }) };
    (ended == pid).then_some(status)
}

/// Where the threads of a process are in the kernel.
fn stacks(pid: i32) -> String {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return String::new() };
    let text = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let describe = |task: std::fs::DirEntry| {
        format!("{} in {}", text(task.path().join("comm")), text(task.path().join("syscall")))
    };
    tasks.flatten().map(describe).collect::<Vec<_>>().join("; ")
}

/// What the ledger says that the namespace must hold at least and at most: slots.
pub(crate) fn expected_slots(ledger: &Ledger) -> (u64, u64) {
    let (mut least, mut most) = (0, 2 * ledger.total(Count::Unacknowledged));
    for entry in &ledger.entries {
        let deferred = entry.deferred.load(Relaxed);
        let (low, high) = match kind(entry.state.load(Acquire)) {
            Kind::Live => (1 + deferred, 1 + deferred),
            Kind::Declared => (1, 1),
            Kind::Maybe => (0, 1 + deferred),
            _ => (0, 0),
        };
        least += low;
        most += high;
    }
    (least, most)
}

/// The namespace of a run; its directory is the run's own.
pub(crate) const NAMESPACE: &str = "soak";

/// Longest time for anything to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is broken to this degree is not worth more time.
const MOST_VIOLATIONS: u64 = 100;

/// Hits of a failpoint that end its part of the sweep.
const HITS: u64 = 4;

/// Places that a process passes once in its life, if at all.
const RARE: &[&str] = &["client.reattach", "client.takeover", "service.rebuild", "service.segment"];
