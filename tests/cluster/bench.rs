//! Gets between two hosts beside a bare loop of requests and replies over sockets, in one run: `cluster --bench`.

use crate::hosts::{Cluster, Worker, missing};
use crate::pair::{ENVIRONMENT, URL};

/// Prints the table; the exit status.
pub(crate) fn main() -> i32 {
    if let Err(reason) = missing() {
        println!("ignored: {reason}");
        return 77;
    }
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut server = one.worker();
    let address = format!("{}:{}", one.address, server.ask("serve"));
    let mut bare = two.worker();
    let environment = [ENVIRONMENT, &[("PROXYSTORE_TIMEOUT", "60s")]].concat();
    let (mut owner, mut ours) = (one.start(&["--node", URL], &environment), two.start(&["--node", URL], &environment));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("medians of {ROUNDS} rounds, each the bare loop and then ours; a get crosses the network each time");
    println!("load before: {}\n", load.trim());
    println!("{:>10}  {:>12}  {:>12}  {:>6}", "bytes", "bare us", "get us", "ratio");
    for len in [8, 1024, 4096, 65536] {
        let key = put(&mut owner, len);
        let (mut times, mut bares) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bares.push(number(&bare.ask(&format!("latency {address} {len} 2000"))) / 1e3);
            times.push(number(&ours.ask(&format!("latency {key} 2000"))) / 1e3);
        }
        let (bare, ours) = (median(bares), median(times));
        println!("{len:>10}  {bare:>12.1}  {ours:>12.1}  {:>6.2}", ours / bare);
    }
    println!(
        "\n{:>10}  {:>12}  {:>12}  {:>6}  {:>15}  {:>6}",
        "bytes", "get MB/s", "bare MB/s", "ratio", "4 bare streams", "ratio"
    );
    for len in [1usize << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20] {
        let key = put(&mut owner, len);
        let count = ((512 << 20) / len).clamp(4, 64);
        let (mut rates, mut bares, mut wides) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bares.push(number(&bare.ask(&format!("bandwidth {address} {len} 1 {count}"))) / 1e6);
            wides.push(number(&bare.ask(&format!("bandwidth {address} {len} 4 {count}"))) / 1e6);
            rates.push(number(&ours.ask(&format!("bandwidth {key} {count}"))) / 1e6);
        }
        let (bare, wide, ours) = (median(bares), median(wides), median(rates));
        let ratios = [ours / bare, ours / wide];
        println!("{len:>10}  {ours:>12.0}  {bare:>12.0}  {:>6.2}  {wide:>15.0}  {:>6.2}", ratios[0], ratios[1]);
        owner.expect(&format!("evict {key}"), "done");
    }
    let answer = owner.ask("puts 1 4096 1000");
    let keys = answer.strip_prefix("keys ").expect("keys");
    let (mut singles, mut batches) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        singles.push(number(&ours.ask(&format!("singles {keys}"))) / 1e6);
        batches.push(number(&ours.ask(&format!("batch {keys}"))) / 1e6);
    }
    let (single, batch) = (median(singles), median(batches));
    println!(
        "\n1000 objects of 4096 bytes: {single:.2} ms one by one, {batch:.2} ms as a batch: {:.1} times",
        single / batch
    );
    0
}

fn put(owner: &mut Worker, len: usize) -> String {
    let answer = owner.ask(&format!("put 1 {len}"));
    answer.strip_prefix("key ").unwrap_or_else(|| panic!("put: {answer}")).to_owned()
}

fn number(answer: &str) -> f64 {
    answer.parse().unwrap_or_else(|_| panic!("{answer}"))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

const ROUNDS: usize = 5;
