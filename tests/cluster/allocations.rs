//! How much memory gets between nodes ask the allocator for: nothing, once they are under way.

use libtest_mimic::Trial;

use crate::hosts::Worker;
use crate::pair::{self, ENVIRONMENT, Fabric, Over, Pair, Row, put};

pub(crate) fn trials() -> Vec<Trial> {
    pair::trials(ROWS, &Ok(()))
}

const ROWS: &[Row] = &[
    ("allocations_of_gets", 60, Over::Always, gets),
    ("allocations_of_batches", 60, Over::Always, batches),
    ("allocations_of_shared_gets", 60, Over::Always, shared),
];

fn gets(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    for len in [8, 1024, 4096] {
        let key = put(&mut pair.owner, 1, len);
        for how in ["wait", "await"] {
            let [owner, requester] = each(&mut pair, how, 2000, &key);
            println!("{len} bytes, {how}: {owner:.3} at the owner, {requester:.3} at the requester");
        }
    }
}

fn batches(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let keys = puts(&mut pair.owner, 4096, 64);
    let [owner, requester] = each(&mut pair, "batch", 64 * 100, &keys);
    println!("64 of 4096 bytes: {owner:.3} at the owner, {requester:.3} at the requester for each object");
}

/// Objects that all processes of a node get: each crosses the network once.
fn shared(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let keys = puts(&mut pair.owner, 1024, 2000);
    pair.requester = pair.hosts[1].start(&["--node", &fabric.url("test")], ENVIRONMENT);
    let [owner, requester] = each(&mut pair, "wait", 1000, &keys);
    println!("each of 1000 once: {owner:.3} at the owner, {requester:.3} at the requester");
}

/// Allocations for each of so many objects, at the owner and at the requester.
fn each(pair: &mut Pair, how: &str, count: u64, keys: &str) -> [f64; 2] {
    let number = |answer: String| answer.parse::<u64>().unwrap_or_else(|_| panic!("{answer}"));
    let order = format!("allocations_of {how} {count} {keys}");
    let before = number(pair.owner.ask("allocations"));
    let requester = number(pair.requester.ask(&order));
    let owner = number(pair.owner.ask("allocations")) - before;
    if std::env::var_os(TRACE).is_some() {
        let few = 4 * keys.split(',').count();
        pair.owner.expect("trace on", "done");
        pair.requester.expect("trace on", "done");
        pair.requester.ask(&format!("allocations_of {how} {few} {keys}"));
        pair.requester.expect("trace off", "done");
        pair.owner.expect("trace off", "done");
    }
    // The owner is asked as often to warm up.
    [owner as f64 / (2 * count) as f64, requester as f64 / count as f64]
}

fn puts(owner: &mut Worker, len: usize, count: usize) -> String {
    let answer = owner.ask(&format!("puts 1 {len} {count}"));
    answer.strip_prefix("keys ").unwrap_or_else(|| panic!("puts: {answer}")).to_owned()
}

/// When set, workers say on standard error who asks for memory, in some gets after those that are counted.
const TRACE: &str = "CLUSTER_TRACE";
