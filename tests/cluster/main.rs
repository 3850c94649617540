//! What happens between machines: several hosts on this one, made by the script `hosts` beside this file.
//!
//! `--bench` prints what gets between hosts cost beside a bare loop over sockets, `--bench ucx` what those of `ucx://` cost beside
//! a bare loop on UCX's own interface too, `--bench margo` the same of Margo; with `latency`, `bandwidth`, `many` or `contact` behind it one table.
//! `--bench one-to-all` prints how long an object takes to one host and to eight at the same time.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(unsafe_code, reason = "signals and sockets as tests need them have no safe wrapper")]
#![allow(clippy::disallowed_methods, reason = "workers end wherever they are")]

use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

mod allocations;
mod bare;
mod bench;
mod chaos;
mod crowd;
mod exits;
#[path = "../shm/content.rs"]
mod content;
mod count;
mod harness;
mod hosts;
mod interface;
mod margo;
#[cfg(feature = "margo")]
#[path = "../../src/bin/proxystore/margo.rs"]
mod margo_loop;
mod node;
mod objects;
mod pair;
mod proxy;
mod reads;
mod rows;
#[cfg(feature = "ucx")]
#[path = "../../src/bin/proxystore/ucp/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the program looks at devices with it, and runs its tests")]
mod ucp;
mod ucx;
mod worker;

#[global_allocator]
static ALLOCATOR: count::Counting = count::Counting;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--worker"] => std::process::exit(worker::run()),
        ["--bench", "one-to-all"] => std::process::exit(crowd::bench()),
        ["--bench", "ucx", ref only @ ..] => std::process::exit(bench::main(pair::UCX, only.first().copied())),
        ["--bench", "margo", ref only @ ..] => std::process::exit(bench::main(pair::MARGO, only.first().copied())),
        ["--bench", ref only @ ..] => std::process::exit(bench::main(pair::TCP, only.first().copied())),
        ["--node", url] => std::process::exit(node::run(url)),
        ["--serve", ref rest @ ..] => std::process::exit(node::serve(rest)),
        ["--proxy", own, peer] => std::process::exit(node::proxy(own, peer)),
        ["--maker"] => std::process::exit(harness::maker()),
        _ => {}
    }
    libtest_mimic::run(
        &Arguments::from_args(),
        harness::trials()
            .into_iter()
            .chain(rows::trials())
            .chain(crowd::trials())
            .chain(objects::trials())
            .chain(exits::trials())
            .chain(reads::trials())
            .chain(allocations::trials())
            .chain(ucx::trials())
            .chain(margo::trials())
            .chain(interface::trials())
            .collect(),
    )
    .exit();
}

/// A trial with a bound in seconds, which covers the start of its hosts; a busy machine may take three times as long.
pub(crate) fn row(name: &str, seconds: u64, run: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let begun = Instant::now();
        run();
        match begun.elapsed() {
            took if took > 3 * Duration::from_secs(seconds) => {
                Err(Failed::from(format!("took {took:?}, allowed are three times {seconds} s")))
            }
            _ => Ok(()),
        }
    })
}

/// [`row`], or a trial that is ignored for the reason; who asks for it all the same gets that as its failure.
pub(crate) fn needs(
    missing: &Result<(), String>,
    name: &str,
    seconds: u64,
    run: impl FnOnce() + Send + 'static,
) -> Trial {
    match missing {
        Ok(()) => row(name, seconds, run),
        Err(reason) => {
            let failure = Failed::from(reason);
            Trial::test(name, || Err(failure)).with_ignored_flag(true).with_kind(reason)
        }
    }
}
