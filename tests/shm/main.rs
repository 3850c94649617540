//! What is particular to shared memory: killed clients and services, hostile ones, limits, forks, containers.
//!
//! `--soak chaos SECONDS` and `--soak sweep [NAME]` are the long parts; `scripts/soak` runs them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(unsafe_code, reason = "forks, signals and limits have no safe wrapper")]
#![allow(clippy::disallowed_methods, reason = "children end wherever they are, as killed processes do")]

use libtest_mimic::Arguments;

mod audit;
mod chaos;
mod ledger;
mod namespace;
mod worker;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--soak") => std::process::exit(chaos::main(&arguments[1..])),
        Some("--inside") => std::process::exit(chaos::inside(&arguments[1..])),
        _ => {}
    }
    libtest_mimic::run(&Arguments::from_args(), Vec::new()).exit();
}
