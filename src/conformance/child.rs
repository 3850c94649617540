//! The other process of a `process` case: this program again, obeying lines on its standard input.

#![expect(clippy::disallowed_methods, reason = "the child ends wherever it is, as a killed process does")]

use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use bytes::BufMut;

use super::bytes::pattern;
use super::case::{Check, Fault};
use super::subject::Subject;
use crate::config::ConnectorConfig;
use crate::connector::{Connector, PutOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::region::{Region, RegionMut};

/// If this process was started by a case, does what the case wants and ends; returns otherwise.
///
/// For harnesses that run [`Case`](super::Case)s without [`main`](super::main): call it first of all, after
/// [`connectors::register`](crate::connectors::register).
pub fn child_main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(FLAG) {
        return;
    }
    let url = arguments.next().unwrap_or_default();
    let (sender, orders) = mpsc::channel();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(|line| line.ok()) {
            let _ = sender.send(line);
        }
        // The parent has ended, or wants this process to. A connector that hangs must not leave it behind.
        drop(sender);
        thread::sleep(GRACE);
        std::process::exit(3)
    });
    std::process::exit(match serve(&url, &orders) {
        Ok(()) => 0,
        Err(error) => {
            say(format_args!("error {error}"));
            1
        }
    })
}

/// A child process with a handle of its own to the objects of a connector; killed when dropped.
pub(super) struct Child {
    process: std::process::Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Child {
    /// Starts one, and waits until it has opened the connector.
    pub(super) fn start(subject: &Subject, config: &ConnectorConfig) -> Check<Self> {
        let program = std::env::current_exe()?;
        let mut command = match subject.child_launcher_words() {
            [] => Command::new(program),
            [launcher, words @ ..] => {
                let mut command = Command::new(launcher);
                command.args(words).arg(program);
                command
            }
        };
        let mut process = command
            .args([FLAG, &config.to_string()])
            .envs(subject.child_variables())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.into_iter().flat_map(|output| BufReader::new(output).lines()) {
                let Ok(line) = line else { break };
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let child = Self { process, input, lines };
        match child.reply()?.as_str() {
            "ready" => Ok(child),
            other => Err(Fault::new(format!(
                "the child says {other:?}; does main() begin with conformance::main or conformance::child_main?"
            ))),
        }
    }

    /// Gives an order and waits for the answer.
    #[track_caller]
    pub(super) fn ask(&mut self, order: impl Display) -> Check<String> {
        self.tell(order)?;
        self.reply()
    }

    /// Gives an order.
    pub(super) fn tell(&mut self, order: impl Display) -> Check {
        match &mut self.input {
            Some(input) => Ok(writeln!(input, "{order}")?),
            None => Err(Fault::new("the child was told to end")),
        }
    }

    /// The next answer.
    #[track_caller]
    pub(super) fn reply(&self) -> Check<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(error) => Err(Fault::new(format!("no answer from the child: {error}"))),
        }
    }

    /// Gives an order that answers with a key.
    #[track_caller]
    pub(super) fn ask_key(&mut self, order: impl Display) -> Check<Key> {
        key_of(&self.ask(order)?)
    }

    /// Ends it as a program ends: the connector is closed and dropped.
    pub(super) fn end(mut self) -> Check {
        drop(self.input.take());
        while self.lines.recv_timeout(PATIENCE).is_ok() {}
        let status = self.process.wait()?;
        if status.success() { Ok(()) } else { Err(Fault::new(format!("the child ended with {status}"))) }
    }

    /// Kills it (SIGKILL), and gives the answers that it still got out.
    pub(super) fn kill(mut self) -> Check<Vec<String>> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(std::iter::from_fn(|| self.lines.recv_timeout(PATIENCE).ok()).collect())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The key in an answer `key TEXT`.
#[track_caller]
pub(super) fn key_of(answer: &str) -> Check<Key> {
    match answer.strip_prefix("key ").map(str::parse) {
        Some(Ok(key)) => Ok(key),
        _ => Err(Fault::new(format!("expected a key, the child says {answer:?}"))),
    }
}

/// The answer to `get`, `take` and `await` when they found the pattern.
pub(super) fn bytes_answer(seed: u64, len: usize) -> String {
    describe(&pattern(seed, len))
}

fn serve(url: &str, orders: &Receiver<String>) -> Result<()> {
    let connector = crate::connectors::open(&url.parse()?)?;
    say("ready");
    let mut reserved = Vec::new();
    for line in orders {
        let words: Vec<&str> = line.split(' ').collect();
        say(obey(&connector, &words, &mut reserved).unwrap_or_else(|error| format!("error {:?} {error}", error.kind())));
    }
    connector.close()
}

fn obey(connector: &Arc<dyn Connector>, words: &[&str], reserved: &mut Vec<RegionMut>) -> Result<String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| misunderstood(words));
    let found = |region: Option<Region>| region.map_or("none".to_owned(), |region| describe(&region));
    match *words {
        ["put", seed, len] => put(&**connector, number(seed)?, number(len)? as usize, &PutOptions::new()),
        ["put_ttl", seed, len, millis] => {
            let options = PutOptions::new().time_to_live(Duration::from_millis(number(millis)?));
            put(&**connector, number(seed)?, number(len)? as usize, &options)
        }
        ["put_ephemeral", seed, len] => {
            put(&**connector, number(seed)?, number(len)? as usize, &PutOptions::new().evict_with_producer())
        }
        ["put_for_ever", len] => loop {
            for seed in 0.. {
                let key = put(&**connector, seed, number(len)? as usize, &PutOptions::new())?;
                say(format_args!("{seed} {key}"));
            }
        },
        ["get", key] => Ok(found(connector.get(&key.parse()?).wait()?)),
        ["take", key] => Ok(found(connector.take(&key.parse()?).wait()?)),
        ["exists", key] => Ok(connector.exists(&key.parse()?).wait()?.to_string()),
        ["evict", key] => connector.evict(&key.parse()?).wait().map(|()| "done".to_owned()),
        ["reserve", len] => {
            let mut region = connector.reserve(number(len)? as usize)?;
            region.put_bytes(0x77, number(len)? as usize / 2);
            reserved.push(region);
            Ok("done".to_owned())
        }
        ["declare"] => Ok(format!("key {}", connector.declare(Format::RAW)?)),
        ["commit_at", key, seed, len] => {
            let mut region = connector.reserve(number(len)? as usize)?;
            region.put_slice(&pattern(number(seed)?, number(len)? as usize));
            connector.commit_at(&key.parse()?, region).wait().map(|()| "done".to_owned())
        }
        ["await", key] => {
            say("waiting");
            connector.get_when_committed(&key.parse()?).deadline(PATIENCE / 2).wait().map(|region| describe(&region))
        }
        _ => Err(misunderstood(words)),
    }
}

fn put(connector: &dyn Connector, seed: u64, len: usize, options: &PutOptions) -> Result<String> {
    let mut region = connector.reserve(len)?;
    region.put_slice(&pattern(seed, len));
    Ok(format!("key {}", connector.commit_with(region, Format::RAW, options).wait()?))
}

fn describe(bytes: &[u8]) -> String {
    format!("bytes {} {:08x}", bytes.len(), crc32fast::hash(bytes))
}

fn misunderstood(words: &[&str]) -> Error {
    Error::new(ErrorKind::Invalid, "conformance", format!("the order {:?}", words.join(" ")))
}

fn say(text: impl Display) {
    let mut output = std::io::stdout().lock();
    if writeln!(output, "{text}").and_then(|()| output.flush()).is_err() {
        // Nobody listens any more.
        std::process::exit(2);
    }
}

const FLAG: &str = "--conformance-child";

/// The longest time for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time that a child has to end by itself.
const GRACE: Duration = Duration::from_secs(2);
