//! How much memory gets between nodes ask the allocator for: nothing, once they are under way.

use libtest_mimic::Trial;

use crate::hosts::Worker;
use crate::pair::{self, ENVIRONMENT, Fabric, MARGO, Over, Pair, Row, put};

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
            let most = if fabric == MARGO { [16.0, 13.0] } else { [0.1, 0.1] };
            each(&mut pair, how, 2000, &key).at_most(most, &format!("a get of {len} bytes, {how}"));
        }
    }
}

fn batches(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let keys = puts(&mut pair.owner, 4096, 64);
    let most = if fabric == MARGO { [2.0, 1.5] } else { [0.4, 0.8] };
    each(&mut pair, "batch", 64 * 100, &keys).at_most(most, "an object of a batch of 64");
}

/// Objects that all processes of a node get: each crosses the network once. Memory for so many is leased now and then.
fn shared(fabric: Fabric) {
    let mut pair = Pair::new(fabric);
    let keys = puts(&mut pair.owner, 1024, 2000);
    pair.requester = pair.hosts[1].start(&["--node", &fabric.url("test")], ENVIRONMENT);
    let most = if fabric == MARGO { [16.0, 13.0] } else { [0.1, 0.1] };
    each(&mut pair, "wait", 1000, &keys).at_most(most, "a first get of an object");
}

/// Allocations for each object.
struct Each {
    owner: f64,
    requester: f64,
}

impl Each {
    #[track_caller]
    fn at_most(&self, [owner, requester]: [f64; 2], what: &str) {
        println!("{what}: {:.3} at the owner, {:.3} at the requester", self.owner, self.requester);
        assert!(self.owner <= owner, "{what}: {} at the owner, of at most {owner}", self.owner);
        assert!(self.requester <= requester, "{what}: {} at the requester, of at most {requester}", self.requester);
    }
}

/// Those of so many objects, after as many to warm up; what beats and ticks take in that time is counted, too.
fn each(pair: &mut Pair, how: &str, count: u64, keys: &str) -> Each {
    let number = |answer: String| answer.parse::<u64>().unwrap_or_else(|_| panic!("{answer}"));
    let order = format!("allocations_of {how} {count} {keys}");
    // The first contact is another matter.
    let first = put(&mut pair.owner, 7, 8);
    pair.requester.expect(&format!("get {first} 7"), "same");
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
    // The owner's first half is counted as well.
    Each { owner: owner as f64 / (2 * count) as f64, requester: requester as f64 / count as f64 }
}

fn puts(owner: &mut Worker, len: usize, count: usize) -> String {
    let answer = owner.ask(&format!("puts 1 {len} {count}"));
    answer.strip_prefix("keys ").unwrap_or_else(|| panic!("puts: {answer}")).to_owned()
}

/// When set, workers say on standard error who asks for memory, in some gets after those that are counted.
const TRACE: &str = "CLUSTER_TRACE";
