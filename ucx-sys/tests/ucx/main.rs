//! The library itself: how it is found, what it does to the process, and messages between two workers.
//!
//! UCX is one a process, so tests start children, which are this program with `--child NAME`. Which UCX is tested is said as
//! always: `PROXYSTORE_UCX_LIB` and the like.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::disallowed_methods, reason = "children end wherever they are")]
#![allow(unsafe_code, reason = "calls into UCX and the C library")]

use libtest_mimic::{Arguments, Trial};

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
    let no_ucx = child::start("look", &[]).err().map(|error| error.replace(" (exit status: 1)", ""));
    let no_compiler =
        std::process::Command::new("cc").arg("--version").output().err().map(|_| "no C compiler".to_owned());
    let linked = ucx_sys::LINKED.then(|| "nothing is looked for: linked".to_owned());
    let rows = [
        (messages::TESTS, no_ucx.clone()),
        (process::TESTS, no_ucx.clone()),
        (process::LOADED, no_ucx.clone().or(linked.clone())),
        (found::TESTS, no_ucx.clone()),
        (found::LOADED, no_ucx.or(linked.clone())),
        (refused::TESTS, no_compiler.or(linked)),
    ];
    let trials = rows.into_iter().flat_map(|(rows, ignored)| {
        rows.iter().map(move |&(name, run)| match &ignored {
            None => Trial::test(name, move || {
                run();
                Ok(())
            }),
            Some(reason) => Trial::test(name, || Ok(())).with_ignored_flag(true).with_kind(reason.trim()),
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
