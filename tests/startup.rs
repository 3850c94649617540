//! All ranks of a node starting at the same time, as a launcher starts them.
//!
//! `cargo test --release --test startup -- --measure` prints how long opening a store takes, alone and for 64 at once.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use proxystore::{Proxy, Store};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--rank", url] => rank(url),
        ["--measure"] => measure(),
        _ => {
            let trials = vec![Trial::test("sixty_four_ranks_start_at_once", || {
                let ranks = Ranks::start("tcp://", 64);
                // Two seconds is what a quiet machine must reach; this one may have other things to do.
                assert!(ranks.all_there < Duration::from_secs(20), "{:?}", ranks.all_there);
                ranks.end();
                Ok(())
            })];
            libtest_mimic::run(&Arguments::from_args(), trials).exit();
        }
    }
}

/// Opens the store of the job, puts an object, says how long that took, and ends with its input.
fn rank(url: &str) {
    let begin = Instant::now();
    let store = Store::open(url).unwrap();
    let took = begin.elapsed();
    let proxy: Proxy<[u8]> = store.proxy(&[7; 1000][..]).wait().unwrap();
    println!("{} {}", took.as_micros(), proxy.to_token().unwrap());
    let mut line = String::new();
    while std::io::stdin().lock().read_line(&mut line).is_ok_and(|len| len > 0) {
        // Another rank's object.
        let proxy: Proxy<[u8]> = line.trim().parse().unwrap();
        println!("{}", Proxy::try_get(&proxy).is_ok_and(|bytes| *bytes == [7; 1000]));
        line.clear();
    }
}

/// Processes of one job on this node, in a runtime directory of their own.
struct Ranks {
    processes: Vec<(Child, BufReader<std::process::ChildStdout>)>,
    directory: PathBuf,
    /// From the start of the first until the last had put its object.
    all_there: Duration,
    /// Time to open the store, of each.
    opening: Vec<Duration>,
}

impl Ranks {
    fn start(url: &str, count: usize) -> Self {
        let job = format!("startup-{}-{}", std::process::id(), url.split(':').next().unwrap());
        let directory = env::temp_dir().join(&job);
        let secret = "5a".repeat(32);
        let begin = Instant::now();
        let mut processes: Vec<_> = (0..count)
            .map(|rank| {
                let mut command = Command::new(env::current_exe().unwrap());
                command.args(["--rank", url]).env("PROXYSTORE_JOB", &job).env("PROXYSTORE_RUNTIME_DIR", &directory);
                command.env("PROXYSTORE_RANK", rank.to_string()).env("PROXYSTORE_SIZE", count.to_string());
                command.env("PROXYSTORE_SECRET", &secret);
                let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
                let output = BufReader::new(process.stdout.take().unwrap());
                (process, output)
            })
            .collect();
        let said: Vec<String> = processes.iter_mut().map(|(_, output)| read(output)).collect();
        let all_there = begin.elapsed();
        let (opening, tokens): (Vec<Duration>, Vec<String>) = said
            .iter()
            .map(|said| {
                let (took, token) = said.split_once(' ').expect("every rank comes up");
                (Duration::from_micros(took.parse().unwrap()), token.to_owned())
            })
            .unzip();
        for (process, output) in &mut processes {
            writeln!(process.stdin.as_mut().unwrap(), "{}", tokens[0]).unwrap();
            assert_eq!(read(output), "true", "everybody reads the first one's object");
        }
        Self { processes, directory, all_there, opening }
    }

    /// All at once, and nothing is left of them.
    fn end(mut self) {
        for (process, _) in &mut self.processes {
            drop(process.stdin.take());
        }
        for (process, _) in &mut self.processes {
            assert!(process.wait().unwrap().success());
        }
        let left: Vec<_> = std::fs::read_dir(&self.directory).into_iter().flatten().flatten().collect();
        let inside = |entry: &std::fs::DirEntry| {
            std::fs::read_dir(entry.path())
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name())
                .collect::<Vec<_>>()
        };
        assert!(left.is_empty(), "{:?}", left.iter().map(inside).collect::<Vec<_>>());
        std::fs::remove_dir(&self.directory).unwrap();
    }
}

fn read(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn measure() {
    let mut alone: Vec<Duration> = (0..21)
        .map(|_| {
            let ranks = Ranks::start("tcp://", 1);
            let took = ranks.opening[0];
            ranks.end();
            took
        })
        .collect();
    alone.sort();
    println!("one rank alone: store open in {:?}, at most {:?}", alone[10], alone[20]);
    for _ in 0..5 {
        let mut ranks = Ranks::start("tcp://", 64);
        ranks.opening.sort();
        println!(
            "64 at once: all there in {:?}; store open in {:?} (median), {:?} (last)",
            ranks.all_there, ranks.opening[32], ranks.opening[63]
        );
        ranks.end();
    }
}
