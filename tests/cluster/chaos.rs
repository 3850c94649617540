//! Random operations of processes on several hosts while these are cut off, lose packets, are stopped, and their processes
//! and services are killed; a ledger knows what was acknowledged.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::content::Random;
use crate::hosts::{Cluster, Host, Worker};
use crate::pair::{ENVIRONMENT, Fabric, is_error};

/// What all of them know.
#[derive(Default)]
struct Ledger {
    objects: Mutex<Vec<Object>>,
    violations: Mutex<Vec<String>>,
    counts: [AtomicU64; 5],
    over: AtomicBool,
}

struct Object {
    key: String,
    seed: u64,
    state: State,
    /// When it was known to be gone.
    ended: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Acknowledged: there, until somebody claims its end.
    Live,
    /// Somebody is ending it, or an end of it failed.
    Ending,
    Gone,
}

#[derive(Clone, Copy)]
enum Count {
    Puts,
    Gets,
    Ends,
    Errors,
    Faults,
}

impl Ledger {
    fn count(&self, count: Count) {
        self.counts[count as usize].fetch_add(1, Relaxed);
    }

    fn violate(&self, how: String) {
        self.violations.lock().unwrap().push(how);
    }

    fn look(&self, at: usize) -> (String, u64, State, Option<Instant>) {
        let object = &self.objects.lock().unwrap()[at];
        (object.key.clone(), object.seed, object.state, object.ended)
    }
}

pub(crate) fn chaos(fabric: Fabric) {
    let seconds = std::env::var("CLUSTER_CHAOS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let seed = std::env::var("CLUSTER_CHAOS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed);
    println!("chaos of {seconds} s, CLUSTER_CHAOS_SEED={seed}");
    let cluster = Cluster::new(3);
    let hosts: [Host; 3] = cluster.hosts();
    let environment = [ENVIRONMENT, &[("PROXYSTORE_TIMEOUT", "2s")]].concat();
    let servers: Vec<Worker> = hosts.iter().map(|host| host.start(&["--serve"], &environment)).collect();
    // They stay, so that there is somebody to ask at the end.
    let mut watches: Vec<Worker> =
        hosts.iter().map(|host| host.start(&["--node", &fabric.direct()], &environment)).collect();
    let ledger = Arc::new(Ledger::default());
    let threads: Vec<_> = (0..6)
        .map(|number| {
            let (ledger, host, environment) = (Arc::clone(&ledger), hosts[number % 3].clone(), environment.clone());
            let shares = number >= 3;
            let url = if shares { fabric.url("test?lease=1s") } else { fabric.direct() };
            std::thread::spawn(move || {
                work(&ledger, &host, (&url, shares), &environment, seed ^ (number as u64 + 1) << 32)
            })
        })
        .collect();
    disturb(&ledger, &hosts, &mut watches, seed, Duration::from_secs(seconds));
    ledger.over.store(true, Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("a thread that panicked says why"));

    // All is whole again: what was acknowledged and not ended is there, from everywhere.
    for watch in &mut watches {
        watch.expect("limit 8000", "done");
    }
    for (at, object) in ledger.objects.lock().unwrap().iter().enumerate() {
        let answer = watches[at % 3].ask(&format!("get {} {}", object.key, object.seed));
        let is_right = match object.state {
            State::Live => answer == "same",
            State::Ending => answer == "same" || answer == "none",
            State::Gone => answer == "none",
        };
        if !is_right {
            ledger.violate(format!("{:?} at the end: {answer}", object.state));
        }
    }
    for watch in &mut watches {
        let answer = watch.ask("settled");
        if answer != "settled" {
            ledger.violate(answer);
        }
    }
    let [puts, gets, ends, errors, faults] = ledger.counts.each_ref().map(|count| count.load(Relaxed));
    println!("{puts} puts, {gets} gets, {ends} ends, {errors} errors of unreachable nodes, {faults} faults");
    let violations = ledger.violations.lock().unwrap();
    assert!(violations.is_empty(), "{} violations: {:#?}", violations.len(), &violations[..violations.len().min(10)]);
    assert!(puts > 50 && gets > 200 && ends > 20 && faults > 5, "that was no load");
    drop(servers);
}

/// One process at a time, again when it was killed, and the orders it gets.
fn work(ledger: &Ledger, host: &Host, store: (&str, bool), environment: &[(&str, &str)], seed: u64) {
    let (url, shares) = store;
    let mut random = Random(seed | 1);
    let mut seeds = random.next() << 16;
    while !ledger.over.load(Relaxed) {
        let Ok(worker) = host.try_start(&["--node", url], environment) else {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let mut life = Life { ledger, worker, random: &mut random, shares, is_over: false };
        while !life.is_over && !ledger.over.load(Relaxed) {
            seeds += 1;
            life.step(seeds);
        }
        if !life.is_over {
            life.worker.end();
        }
    }
}

/// Of one process.
struct Life<'a> {
    ledger: &'a Ledger,
    worker: Worker,
    random: &'a mut Random,
    /// Whether it reads what others of its node fetched, for as long as the lease is.
    shares: bool,
    is_over: bool,
}

impl Life<'_> {
    fn step(&mut self, seed: u64) {
        let count = self.ledger.objects.lock().unwrap().len() as u64;
        let dice = self.random.below(100);
        if count == 0 || dice < 15 {
            return self.put(seed);
        }
        // Those of late more often.
        let at = (count - 1 - self.random.below(count.min(60))) as usize;
        match dice {
            85.. => self.end(at, if dice < 92 { "evict" } else { "take" }),
            _ => self.get(at),
        }
    }

    /// The answer; none when the process is killed before it can give one, or after it did.
    fn ask(&mut self, order: &str) -> Option<String> {
        if self.random.below(100) > 0 {
            return Some(self.worker.ask(order));
        }
        self.worker.tell(order);
        std::thread::sleep(Duration::from_micros(self.random.below(8000)));
        self.worker.kill();
        self.is_over = true;
        None
    }

    fn put(&mut self, seed: u64) {
        let len = [100, 5_000, 200_000, 3_000_000][self.random.below(4) as usize];
        let Some(answer) = self.ask(&format!("put {seed} {len}")) else { return };
        match answer.strip_prefix("key ") {
            Some(key) => {
                self.ledger.count(Count::Puts);
                let object = Object { key: key.to_owned(), seed, state: State::Live, ended: None };
                self.ledger.objects.lock().unwrap().push(object);
            }
            None => judge(self.ledger, "put", &answer, &[]),
        }
    }

    fn get(&mut self, at: usize) {
        let (key, seed, before, ended) = self.ledger.look(at);
        // When it is asked for, however late the answer is seen.
        let is_leased = self.shares && ended.is_some_and(|ended| ended.elapsed() < LEASE * 2 + TIMEOUT);
        let Some(answer) = self.ask(&format!("get {key} {seed}")) else { return };
        self.ledger.count(Count::Gets);
        let allowed: &[&str] = match (before, self.ledger.look(at).2) {
            (State::Live, State::Live) => &["same"],
            (State::Gone, _) if !is_leased => &["none"],
            _ => &["same", "none"],
        };
        judge(self.ledger, &format!("get, {before:?}"), &answer, allowed);
    }

    fn end(&mut self, at: usize, op: &str) {
        let (key, seed) = {
            let mut objects = self.ledger.objects.lock().unwrap();
            let object = &mut objects[at];
            if object.state != State::Live {
                return;
            }
            object.state = State::Ending;
            (object.key.clone(), object.seed)
        };
        let order = if op == "take" { format!("take {key} {seed}") } else { format!("evict {key}") };
        let Some(answer) = self.ask(&order) else { return };
        self.ledger.count(Count::Ends);
        match answer.as_str() {
            "done" | "same" => {
                let mut objects = self.ledger.objects.lock().unwrap();
                (objects[at].state, objects[at].ended) = (State::Gone, Some(Instant::now()));
            }
            // Nobody else ends it, so it cannot be missing.
            _ => judge(self.ledger, &format!("{op} of a live object"), &answer, &[]),
        }
    }
}

/// An answer is one of those, or says that a node could not be reached in time.
fn judge(ledger: &Ledger, what: &str, answer: &str, allowed: &[&str]) {
    if allowed.contains(&answer) {
        return;
    }
    match is_error(answer, &["PeerDown", "Timeout", "Unavailable"]) {
        true => ledger.count(Count::Errors),
        false => ledger.violate(format!("{what}: {answer}")),
    }
}

fn disturb(ledger: &Ledger, hosts: &[Host; 3], watches: &mut [Worker], seed: u64, time: Duration) {
    let mut random = Random(seed.wrapping_mul(77) | 1);
    let (begun, mut kills) = (Instant::now(), [0; 3]);
    while begun.elapsed() < time {
        std::thread::sleep(Duration::from_millis(50 + random.below(300)));
        let one = random.below(3) as usize;
        let other = (one + 1 + random.below(2) as usize) % 3;
        let pause = Duration::from_millis([200, 600, 3000][random.below(3) as usize] + random.below(300));
        ledger.count(Count::Faults);
        match random.below(7) {
            0 => {
                hosts[one].cut();
                std::thread::sleep(pause);
                hosts[one].heal();
            }
            1 => {
                hosts[one].part(&hosts[other]);
                std::thread::sleep(pause);
                hosts[one].join(&hosts[other]);
            }
            2 => {
                hosts[one].block(&hosts[other]);
                std::thread::sleep(pause);
                hosts[one].unblock(&hosts[other]);
            }
            3 => {
                hosts[one].shape(&["loss=5%", "delay=1ms"]);
                std::thread::sleep(pause);
                hosts[one].unshape();
            }
            4 => {
                hosts[one].freeze();
                std::thread::sleep(pause / 2);
                hosts[one].thaw();
            }
            // A supervisor gives up after three in a minute.
            5 if kills[one] < 3 => {
                kills[one] += 1;
                let service = watches[one].ask("host");
                hosts[one].print(&["sh", "-c", &format!("kill -KILL {service}")]);
            }
            _ => {
                hosts[one].shape(&["rate=50mbit"]);
                std::thread::sleep(pause);
                hosts[one].unshape();
            }
        }
    }
}

/// Of those that share: for so long an object that was ended may be read.
const LEASE: Duration = Duration::from_secs(1);

/// Of one operation.
const TIMEOUT: Duration = Duration::from_secs(2);
