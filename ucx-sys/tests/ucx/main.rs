//! The library itself: how it is found, what it does to the process, and messages between two workers.
//!
//! UCX is one a process, so tests start children, which are this program with `--child NAME`. Which UCX is tested is said as
//! always: `PROXYSTORE_UCX_LIB` and the like.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::disallowed_methods, reason = "children end wherever they are")]
#![allow(unsafe_code, reason = "calls into UCX and the C library")]

use std::path::Path;
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};

mod child;
mod found;
mod messages;
mod process;
mod refused;

/// A name, and what it runs.
type Row = (&'static str, fn());

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let ["--child", name] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        let mut children = [found::CHILDREN, messages::CHILDREN, process::CHILDREN].into_iter().flatten();
        return children.find(|(child, _)| *child == name).unwrap().1();
    }
    // A child looks, so that this process stays as it is.
    let ignored = |reason: String| Missing { reason, is_failure: false };
    let no_ucx = child::start("look", &[]).err().map(|error| match installed() {
        None => ignored(error.replace(" (exit status: 1)", "").trim().to_owned()),
        Some(proof) => Missing { reason: format!("by {proof} there is a UCX, but {error}"), is_failure: true },
    });
    let no_compiler = Command::new("cc").arg("--version").output().err();
    let no_compiler = no_compiler.map(|_| ignored("no C compiler".to_owned()));
    let linked = ucx_sys::LINKED.then(|| ignored("nothing is looked for: linked".to_owned()));
    let rows = [
        (messages::TESTS, no_ucx.clone()),
        (process::TESTS, no_ucx.clone()),
        (process::LOADED, no_ucx.clone().or(linked.clone())),
        (found::TESTS, no_ucx.clone()),
        (found::LOADED, no_ucx.or(linked.clone())),
        (refused::TESTS, no_compiler.or(linked)),
    ];
    let trials = rows.into_iter().flat_map(|(rows, missing)| {
        rows.iter().map(move |&(name, run)| match missing.clone() {
            None => Trial::test(name, move || {
                run();
                Ok(())
            }),
            // Who asks for one that is ignored gets the reason as its failure.
            Some(Missing { reason, is_failure }) => {
                let failure = Failed::from(&reason);
                let kind = if is_failure { "" } else { &reason };
                Trial::test(name, || Err(failure)).with_ignored_flag(!is_failure).with_kind(kind)
            }
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Why some tests cannot run.
#[derive(Clone)]
struct Missing {
    reason: String,
    /// They fail, and are not ignored.
    is_failure: bool,
}

/// By what it is known, without this crate, that the machine has a UCX which is to be loaded.
fn installed() -> Option<String> {
    let named = ["PROXYSTORE_UCX_LIB", "UCX_HOME"].into_iter();
    let named = named.filter(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    let header = [HEADER].into_iter().filter(|header| Path::new(header).exists());
    let package = Command::new("pkg-config").args(["--exists", "ucx >= 1.12"]).status();
    let package = package.is_ok_and(|status| status.success()).then_some("pkg-config");
    named.chain(header).chain(package).next().map(str::to_owned)
}

const HEADER: &str = "/usr/include/ucp/api/ucp.h";
