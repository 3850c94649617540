//! What is particular to shared memory: killed clients and services, hostile ones, limits, forks, containers.
//!
//! `--soak chaos SECONDS` and `--soak sweep [NAME]` are the long parts; `scripts/soak` runs them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(unsafe_code, reason = "forks, signals and limits have no safe wrapper")]
#![allow(clippy::disallowed_methods, reason = "children end wherever they are, as killed processes do")]

use std::time::Duration;

use libtest_mimic::Arguments;
use proxystore::service::{self, ServeOptions};

mod audit;
mod chaos;
mod child;
mod content;
mod ends;
mod ledger;
mod namespace;
mod parts;
mod replica;
mod rows;
mod scale;
mod site;
mod worker;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--soak", ..] => std::process::exit(chaos::main(&arguments[1..])),
        ["--inside", ..] => std::process::exit(chaos::inside(&arguments[1..])),
        ["--looker", url] => std::process::exit(ends::looker(url)),
        ["--few", url] => std::process::exit(ends::few(url)),
        ["--child", url] => std::process::exit(child::run(url)),
        ["--limited", what, most, url] => {
            parts::limit(what, most.parse().unwrap()).unwrap();
            std::process::exit(child::run(url))
        }
        ["--sweep", namespace] => {
            let swept = proxystore::service::inspect::sweep(namespace);
            assert!(matches!(swept, Ok(true)), "{swept:?}");
            std::process::exit(0)
        }
        ["--serve", namespace, ref rest @ ..] => std::process::exit(serve(namespace, rest)),
        _ => {}
    }
    libtest_mimic::run(
        &Arguments::from_args(),
        rows::trials().into_iter().chain(ends::trials()).chain(replica::trials()).chain(scale::trials()).collect(),
    )
    .exit();
}

/// Supervises a namespace, or is the service of one that does.
fn serve(namespace: &str, rest: &[&str]) -> i32 {
    let options = ServeOptions {
        namespace: namespace.to_owned(),
        budget: Some(64 << 20),
        displace: false,
        prefault: false,
        grace: Duration::from_secs(2),
    };
    // SAFETY: a system call; a supervisor ends with the test, whatever becomes of that, and its service with it.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let done = match rest {
        [] => service::serve(&options),
        [flag, fd] if *flag == service::KEEPER_FLAG => service::serve_supervised(&options, fd.parse().unwrap()),
        other => panic!("no such arguments: {other:?}"),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            child::say(&format!("error {:?} {error}", error.kind()));
            1
        }
    }
}
