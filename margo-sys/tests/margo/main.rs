//! The library itself: how it is found, what it does to the process, and RPCs and bulk transfers between two instances.
//!
//! Margo is one a process, so tests start children, which are this program with `--child NAME`. Which Margo is tested is said
//! as always: `PROXYSTORE_MARGO_LIB` and the like.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::disallowed_methods, reason = "children end wherever they are")]
#![allow(unsafe_code, reason = "calls into Margo and the C library")]

use libtest_mimic::{Arguments, Failed, Trial};

mod child;
mod found;
mod process;
mod refused;
mod transfers;

/// A name, and what it runs.
type Row = (&'static str, fn());

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let ["--child", name] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        let mut children =
            [found::CHILDREN, process::CHILDREN, refused::CHILDREN, transfers::CHILDREN].into_iter().flatten();
        return children.find(|(child, _)| *child == name).unwrap().1();
    }
    // A child looks, so that this process stays as it is.
    let look = child::start("look", &[]).map_err(|error| error.replace(" (exit status: 1)", ""));
    let no_margo = look.clone().err();
    let lacks = |address: &str| match &look {
        Ok(said) if !said.lines().any(|line| line == address) => Some(format!("this Mercury does not offer {address}")),
        _ => no_margo.clone(),
    };
    let no_compiler =
        std::process::Command::new("cc").arg("--version").output().err().map(|_| "no C compiler".to_owned());
    let rows = [
        (found::TESTS, no_margo.clone()),
        (process::TESTS, lacks("na+sm")),
        (transfers::SM, lacks("na+sm")),
        (transfers::TCP, lacks("ofi+tcp")),
        (refused::TESTS, no_compiler),
    ];
    let trials = rows.into_iter().flat_map(|(rows, ignored)| {
        rows.iter().map(move |&(name, run)| match &ignored {
            None => Trial::test(name, move || {
                run();
                Ok(())
            }),
            Some(reason) => {
                let failure = Failed::from(reason.trim());
                Trial::test(name, || Err(failure)).with_ignored_flag(true).with_kind(reason.trim())
            }
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
