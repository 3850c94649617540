//! One object for many hosts at the same time: who sends it how often, and what happens when some of them go.

use std::time::Duration;

use libtest_mimic::Trial;

use crate::hosts::{Cluster, Host, Worker, missing};
use crate::pair::{ENVIRONMENT, Fabric, Over, Row, SLACK, TCP, await_answer, put, split, trials as of_rows};

pub(crate) fn trials() -> Vec<Trial> {
    let rows: &[Row] = &[
        ("one_to_all", 40, Over::Asked, one_to_all),
        ("one_to_all_half_killed", 60, Over::Asked, half_killed),
        ("one_to_all_one_stopped", 60, Over::Asked, one_stopped),
    ];
    of_rows(rows, &Ok(()))
}

/// An owner and so many others, a process on each.
struct Crowd {
    _cluster: Cluster,
    hosts: Vec<Host>,
    owner: Worker,
    others: Vec<Worker>,
}

impl Crowd {
    fn new<const N: usize>(fabric: Fabric, options: &str, timeout: &'static str) -> Self {
        let cluster = Cluster::new(N);
        let hosts = cluster.hosts::<N>().to_vec();
        let url = fabric.url(&format!("test{options}"));
        let environment = [ENVIRONMENT, &[("PROXYSTORE_TIMEOUT", timeout)]].concat();
        let mut workers: Vec<Worker> = hosts.iter().map(|host| host.start(&["--node", &url], &environment)).collect();
        let owner = workers.remove(0);
        Self { _cluster: cluster, hosts, owner, others: workers }
    }

    fn limit(&self, rate: &str) {
        self.hosts.iter().for_each(|host| host.shape(&[rate]));
    }

    /// Bytes that a host sent since then.
    fn sent(&self, before: &[u64]) -> Vec<u64> {
        self.hosts.iter().zip(before).map(|(host, before)| host.traffic().sent - before).collect()
    }

    fn sent_so_far(&self) -> Vec<u64> {
        self.hosts.iter().map(|host| host.traffic().sent).collect()
    }
}

fn one_to_all(fabric: Fabric) {
    let mut crowd = Crowd::new::<5>(fabric, "", "60s");
    // Slow enough for all to come before the first has it.
    crowd.limit("rate=400mbit");
    let key = put(&mut crowd.owner, 1, LEN);
    let before = crowd.sent_so_far();
    crowd.others.iter_mut().for_each(|other| other.tell(&format!("get {key} 1")));
    crowd.others.iter_mut().for_each(|other| assert_eq!(other.reply(), "same"));
    let sent = crowd.sent(&before);
    let copies: Vec<f64> = sent.iter().map(|sent| *sent as f64 / LEN as f64).collect();
    // All of it four times, and nobody more than two and what is asked twice on a busy machine.
    assert!((4.0..5.2).contains(&copies.iter().sum()), "{copies:?}");
    assert!(copies.iter().all(|copies| *copies < 2.6), "{copies:?}");
    crowd.owner.expect(&format!("evict {key}"), "done");
    await_answer(&mut crowd.owner, "dying", "0", SLACK);
}

fn half_killed(fabric: Fabric) {
    let mut crowd = Crowd::new::<5>(fabric, "", "60s");
    crowd.limit("rate=100mbit");
    let key = put(&mut crowd.owner, 2, LEN);
    crowd.others.iter_mut().for_each(|other| other.tell(&format!("get {key} 2")));
    std::thread::sleep(Duration::from_millis(700));
    for victim in [1, 3] {
        crowd.hosts[victim].kill();
    }
    for survivor in [1, 3] {
        assert_eq!(crowd.others[survivor].reply(), "same");
    }
    crowd.owner.expect(&format!("evict {key}"), "done");
    await_answer(&mut crowd.owner, "dying", "0", 3 * SLACK);
}

/// Within the time that an operation has by default, and without all behind it going to the owner.
fn one_stopped(fabric: Fabric) {
    let mut crowd = Crowd::new::<6>(fabric, "", "20s");
    crowd.limit("rate=200mbit");
    let key = put(&mut crowd.owner, 3, LEN);
    let before = crowd.sent_so_far();
    crowd.others.iter_mut().for_each(|other| other.tell(&format!("get {key} 3")));
    std::thread::sleep(Duration::from_millis(500));
    crowd.hosts[1].freeze();
    for other in 1..5 {
        assert_eq!(crowd.others[other].reply(), "same");
    }
    let copies = crowd.sent(&before)[0] as f64 / LEN as f64;
    assert!(copies < 3.5, "the owner sent {copies} copies");
    crowd.hosts[1].thaw();
    // Its own time may be over.
    let said = crowd.others[0].reply();
    assert!(said == "same" || said.starts_with("error Timeout"), "{said}");
    crowd.owner.expect(&format!("evict {key}"), "done");
    await_answer(&mut crowd.owner, "dying", "0", 3 * SLACK);
}

/// Prints how long one host and eight take to get an object over links of 1 Gbit/s; the exit status.
pub(crate) fn bench() -> i32 {
    if let Err(reason) = missing() {
        println!("ignored: {reason}");
        return 77;
    }
    println!("64 MiB to hosts, ms until the last has it; medians of {ROUNDS} rounds");
    println!("load before: {}\n", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    println!("{:<10} {:<11} {:>10} {:>10} {:>8} {:>16}", "links", "", "one host", "8 hosts", "ratio", "owner's copies");
    let ways = [("passed on", ""), ("relays=off", "?relays=off")];
    for (link, (what, options)) in ["1 Gbit/s", "no limit"].into_iter().flat_map(|link| ways.map(|way| (link, way))) {
        let mut crowd = Crowd::new::<9>(TCP, options, "60s");
        if link == "1 Gbit/s" {
            crowd.limit("rate=1gbit");
        }
        let (mut singles, mut alls, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let key = put(&mut crowd.owner, round, 64 << 20);
            let (one, answer) = split(&crowd.others[0].ask(&format!("timed hold {key} {round}")));
            assert_eq!(answer, "held");
            crowd.others[0].expect("drop", "done");
            let key = put(&mut crowd.owner, round + 100, 64 << 20);
            let before = crowd.sent_so_far();
            crowd.others.iter_mut().for_each(|other| other.tell(&format!("timed hold {key} {}", round + 100)));
            let times: Vec<_> = crowd.others.iter_mut().map(|other| split(&other.reply())).collect();
            assert!(times.iter().all(|(_, answer)| answer == "held"), "{times:?}");
            let slowest = times.into_iter().map(|(time, _)| time).max();
            // Afterwards: it takes a processor longer than the transfer.
            for other in &mut crowd.others {
                other.expect("check", "same");
                other.expect("drop", "done");
            }
            singles.push(one.as_secs_f64() * 1e3);
            alls.push(slowest.unwrap_or_default().as_secs_f64() * 1e3);
            copies.push(crowd.sent(&before)[0] as f64 / f64::from(64 << 20));
        }
        let [single, all, copies] = [singles, alls, copies].map(median);
        println!("{link:<10} {what:<11} {single:>10.0} {all:>10.0} {:>8.2} {copies:>16.2}", all / single);
    }
    0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

const LEN: usize = 32 << 20;
const ROUNDS: u64 = 5;
