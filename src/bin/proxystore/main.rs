//! The program `proxystore`: objects in and out of stores from a command line, what this machine can do, and how fast.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod completions;
mod evict;
mod exists;
mod failure;
mod gc;
mod get;
mod info;
mod ls;
#[cfg(feature = "margo")]
#[expect(unsafe_code, reason = "the interface of Margo")]
mod margo;
mod namespace;
mod object;
mod output;
mod progress;
mod put;
mod serve;
mod stat;
mod top;
#[cfg(feature = "ucx")]
#[expect(unsafe_code, reason = "the interface of UCX")]
#[allow(dead_code, reason = "tests/cluster measures other shapes with it")]
mod ucp;

/// Pass objects between processes by reference.
///
/// `put` stores bytes and prints a token of one word; whoever has the token, in any process that reaches the store, can
/// `get` them. What puts and gets is any program that uses the library, this one included.
#[derive(Parser)]
#[command(name = "proxystore", version = VERSION, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Put(put::Put),
    Get(get::Get),
    Exists(exists::Exists),
    Evict(evict::Evict),
    Serve(serve::Serve),
    Ls(ls::Ls),
    Stat(stat::Stat),
    Top(top::Top),
    Gc(gc::Gc),
    Info(info::Info),
    Bench(bench::Bench),
    Completions(completions::Completions),
    #[command(hide = true)]
    BenchPeer(bench::BenchPeer),
    #[command(hide = true)]
    RemoveAtEof(output::RemoveAtEof),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Put(put) => put.run(),
        Command::Get(get) => get.run(),
        Command::Exists(exists) => exists.run(),
        Command::Evict(evict) => evict.run(),
        Command::Serve(serve) => serve.run(),
        Command::Ls(ls) => ls.run(),
        Command::Stat(stat) => stat.run(),
        Command::Top(top) => top.run(),
        Command::Gc(gc) => gc.run(),
        Command::Info(info) => info.run(),
        Command::Bench(bench) => bench.run(),
        Command::Completions(completions) => completions.run(),
        Command::BenchPeer(peer) => peer.run(),
        Command::RemoveAtEof(remove) => remove.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The commit that was built, where the builder says so.
const COMMIT: Option<&str> = option_env!("GIT_COMMIT");

const VERSION: &str = env!("CARGO_PKG_VERSION");

const AFTER_HELP: &str = "\
Examples:
  token=$(proxystore put model.bin)        store a file; see put --help for where
  proxystore get \"$token\" -o copy.bin      read it, in another process or on another node
  tar c run42 | proxystore put -           store what a pipe brings
  proxystore evict \"$token\"                remove it
  proxystore serve &                       keep shared memory while the programs come and go
  proxystore ls                            what lies in shared memory; stat, top: who has it
  proxystore info                          limits, connectors, every PROXYSTORE_* variable
  proxystore bench --connector shm         latency and bandwidth beside memcpy

Exit status:
  0  done
  1  failed; one line on standard error says what and why
  2  wrong usage
  3  no such object
  4  the deadline passed";
