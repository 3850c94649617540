//! A namespace of a test's own, and the processes that use it: this program again, obeying lines on its standard input.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A runtime directory and what a test starts in it.
pub(crate) struct Site {
    root: TempDir,
    options: String,
}

/// A client process; killed when dropped.
pub(crate) struct Client {
    process: std::process::Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with_options("bytes=67108864")
    }

    pub(crate) fn with_options(options: &str) -> Self {
        let private = std::fs::Permissions::from_mode(0o700);
        let root = tempfile::Builder::new().prefix("shm-site-").permissions(private).tempdir().unwrap();
        Self { root, options: options.to_owned() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn url(&self) -> String {
        format!("shm://{NAMESPACE}?{}", self.options)
    }

    /// This program as `arguments` say, in the site's directory.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_by(Command::new(std::env::current_exe().unwrap()), arguments)
    }

    /// [`command`](Self::command), run by another program.
    pub(crate) fn command_under(&self, program: &[&str], arguments: &[&str]) -> Command {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(std::env::current_exe().unwrap());
        self.command_by(command, arguments)
    }

    fn command_by(&self, mut command: Command, arguments: &[&str]) -> Command {
        command.args(arguments).env("PROXYSTORE_RUNTIME_DIR", self.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// A client that has opened the namespace.
    pub(crate) fn client(&self) -> Client {
        Client::start(self.command(&["--child", &self.url()]))
    }

    /// A client that dies at the `nth` pass of a failpoint.
    pub(crate) fn doomed(&self, failpoint: &str, nth: u32) -> Client {
        let mut command = self.command(&["--child", &self.url()]);
        command.env("PROXYSTORE_FAILPOINT", format!("{failpoint}:{nth}"));
        Client::start(command)
    }

    /// The invariant check: a fresh client attaches, the others end, and what is left are `live` slots and nothing else.
    pub(crate) fn check(&self, others: Vec<Client>, live: std::ops::RangeInclusive<u64>) {
        let mut auditor = self.client();
        drop(others);
        let answer = auditor.ask("settled");
        let count = answer.strip_prefix("live ").and_then(|count| count.parse().ok());
        assert!(count.is_some_and(|count: u64| live.contains(&count)), "{answer}; {live:?} slots were expected");
        auditor.end();
        let swept = self.command(&["--sweep", NAMESPACE]).output().unwrap();
        assert!(swept.status.success(), "{}", String::from_utf8_lossy(&swept.stderr));
        let left: Vec<_> = std::fs::read_dir(self.path()).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Client {
    pub(crate) fn start(command: Command) -> Self {
        let client = Self::spawn(command);
        assert_eq!(client.reply(), "ready");
        client
    }

    /// Not waiting until it is ready.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut process = command.spawn().unwrap();
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.into_iter().flat_map(|output| BufReader::new(output).lines()).map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { process, input, lines }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn tell(&mut self, order: &str) {
        let input = self.input.as_mut().expect("a client that was not told to end");
        // One that died answers nothing, which is noticed there.
        let _ = writeln!(input, "{order}");
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.reply()
    }

    #[track_caller]
    pub(crate) fn reply(&self) -> String {
        self.reply_within(PATIENCE).expect("an answer in time from a living client")
    }

    /// The answer, or none: the client died, or says nothing.
    pub(crate) fn reply_within(&self, limit: Duration) -> Option<String> {
        self.lines.recv_timeout(limit).ok()
    }

    /// `put`, which must succeed.
    #[track_caller]
    pub(crate) fn put(&mut self, seed: u64, len: usize) -> String {
        let answer = self.ask(&format!("put {seed} {len}"));
        let key = answer.strip_prefix("key ");
        key.unwrap_or_else(|| panic!("put: {answer}")).to_owned()
    }

    #[track_caller]
    pub(crate) fn expect(&mut self, order: &str, answer: &str) {
        assert_eq!(self.ask(order), answer, "{order}");
    }

    /// Waits until an order has a certain answer.
    #[track_caller]
    pub(crate) fn await_answer(&mut self, order: &str, wanted: &str) {
        self.await_answer_within(order, wanted, PATIENCE);
    }

    /// [`await_answer`](Self::await_answer) where something else gives that answer later.
    #[track_caller]
    pub(crate) fn await_answer_within(&mut self, order: &str, wanted: &str, limit: Duration) {
        let begun = Instant::now();
        loop {
            let answer = self.ask(order);
            if answer == wanted {
                return;
            }
            assert!(begun.elapsed() < limit, "{order}: {answer}, and not {wanted} within {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: a system call without memory; our child was not waited for, so the number is its.
        unsafe { libc::kill(self.process.id() as i32, signal) };
        // On a busy machine some threads go on for a while.
        let begun = Instant::now();
        while signal == libc::SIGSTOP && !self.is_stopped() {
            assert!(begun.elapsed() < PATIENCE, "it does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether all its threads are stopped.
    fn is_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().flatten();
        let state = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        tasks.map(state).all(|stat| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T')))
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Waits for it to die by itself; whether SIGKILL did it.
    #[track_caller]
    pub(crate) fn dies(&mut self) {
        use std::os::unix::process::ExitStatusExt;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("the failpoint was not passed");
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Ends it as programs end.
    #[track_caller]
    pub(crate) fn end(&mut self) {
        drop(self.input.take());
        let begun = Instant::now();
        while self.process.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The namespace of a site.
pub(crate) const NAMESPACE: &str = "test";

/// Longest time for one answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
