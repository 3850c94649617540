//! `main`: the cases as a test program, in the manner of Rust's own.

use std::process::ExitCode;
use std::time::Instant;

use super::case::{Case, Verdict};
use super::child::child_main;
use super::subject::Subject;

/// Runs the cases on every subject and reports like a Rust test program; the exit code is 0 when none failed.
///
/// A case is named `SUBJECT::FAMILY::NAME`. Arguments:
///
/// | argument | meaning |
/// |---|---|
/// | `FILTER` ... | only cases whose name contains one of these |
/// | `--exact` | the filters are whole names |
/// | `--skip TEXT` | no case whose name contains this |
/// | `--list` | print names; with `--ignored` only those of cases that do not run by default |
/// | `--include-slow`, `--include-ignored` | slow cases too |
/// | `--ignored` | slow cases only |
/// | `--why` | print the cases that do not run here by default, with the reasons, and run none |
///
/// Other options of Rust's test programs (`--nocapture`, `--format`, ...) are accepted and change nothing. Cases run one
/// after the other, because some measure what the process holds. Whoever names one case that cannot run here, with
/// `--ignored --exact` as `cargo nextest --run-ignored` does, gets a failure: no case passes without having run.
///
/// In a process that a case started, this does what the case wants and ends the process.
pub fn main(subjects: impl IntoIterator<Item = Subject>) -> ExitCode {
    child_main();
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("{text}; see the documentation of proxystore::conformance::main");
            return ExitCode::from(2);
        }
    };
    let mut tests: Vec<(String, Subject, Case)> = Vec::new();
    for subject in subjects {
        for case in super::cases() {
            let name = format!("{}::{}::{}", subject.name(), case.family, case.name);
            if options.selects(&name) {
                tests.push((name, subject.clone(), case));
            }
        }
    }
    if options.why {
        why(&tests);
        return ExitCode::SUCCESS;
    }
    if options.list {
        list(&tests, &options);
        return ExitCode::SUCCESS;
    }
    run(tests, &options)
}

fn list(tests: &[(String, Subject, Case)], options: &Options) {
    for (name, subject, case) in tests {
        if options.slow != Slow::Only || case.slow || case.excluded(subject).is_some() {
            println!("{name}: test");
        }
    }
}

fn why(tests: &[(String, Subject, Case)]) {
    for (name, subject, case) in tests {
        let reason = case.excluded(subject).or_else(|| case.slow.then(|| SLOW.to_owned()));
        if let Some(reason) = reason {
            println!("test {name} ... ignored, {reason}");
        }
    }
}

fn run(tests: Vec<(String, Subject, Case)>, options: &Options) -> ExitCode {
    let (mut passed, mut failures, mut ignored) = (0, Vec::new(), 0);
    for (name, subject, case) in tests {
        let begin = Instant::now();
        let verdict = match case.slow {
            true if options.slow == Slow::Without => Verdict::Ignored(SLOW.to_owned()),
            false if options.slow == Slow::Only => match case.excluded(&subject) {
                Some(reason) => Verdict::Ignored(reason),
                None => continue,
            },
            _ => case.run(&subject),
        };
        match verdict {
            Verdict::Passed => {
                passed += 1;
                println!("test {name} ... ok ({:.3} s)", begin.elapsed().as_secs_f64());
            }
            Verdict::Failed(text) => {
                println!("test {name} ... FAILED");
                failures.push((name, case.checks, text));
            }
            Verdict::Ignored(reason) => {
                ignored += 1;
                println!("test {name} ... ignored, {reason}");
            }
        }
    }
    for (name, checks, text) in &failures {
        println!("\n{name}\n  contract: {checks}\n  observed: {text}");
    }
    println!("\n{passed} passed, {} failed, {ignored} ignored", failures.len());
    let asked_in_vain = options.exact && options.slow == Slow::Only && passed == 0;
    match failures.is_empty() && !asked_in_vain {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

const SLOW: &str = "slow, runs with --include-slow";

/// The command line.
#[derive(Default)]
struct Options {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    list: bool,
    why: bool,
    slow: Slow,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Slow {
    #[default]
    Without,
    Also,
    Only,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut arguments = arguments.flat_map(|argument| match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => vec![name.to_owned(), value.to_owned()],
            _ => vec![argument],
        });
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--why" => options.why = true,
                "--include-slow" | "--include-ignored" => options.slow = Slow::Also,
                "--ignored" => options.slow = Slow::Only,
                "--skip" => options.skips.extend(arguments.next()),
                "--nocapture" | "--no-capture" | "--show-output" | "--quiet" | "-q" | "--test" => {}
                "--test-threads" | "--color" | "--format" | "--logfile" | "-Z" => drop(arguments.next()),
                other if other.starts_with('-') => return Err(format!("unknown argument {other}")),
                filter => options.filters.push(filter.to_owned()),
            }
        }
        Ok(options)
    }

    fn selects(&self, name: &str) -> bool {
        let matches = |pattern: &String| if self.exact { name == pattern } else { name.contains(pattern.as_str()) };
        (self.filters.is_empty() || self.filters.iter().any(matches)) && !self.skips.iter().any(matches)
    }
}
