//! Clusters of a test's own, and the processes on their hosts: this program again, obeying lines on its standard input.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

/// Hosts that meet on a switch; all gone when dropped, or when this process ends in whatever way.
pub(crate) struct Cluster {
    name: String,
    count: usize,
    holder: Child,
}

/// A host of a cluster that is there.
#[derive(Clone)]
pub(crate) struct Host {
    cluster: String,
    pub(crate) name: String,
    pub(crate) address: String,
}

/// A process on a host; killed when dropped.
pub(crate) struct Worker {
    host: Host,
    /// Its number on its host.
    id: String,
    /// The shell on the machine that waits for it.
    process: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

/// Bytes that went over a host's interface since it was made, headers included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// Why this machine cannot have hosts, if it cannot.
pub(crate) fn missing() -> Result<(), String> {
    missing_for(Command::new(script()))
}

/// The same for the script run by `command`.
pub(crate) fn missing_for(mut command: Command) -> Result<(), String> {
    match command.arg("check").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "needs network namespaces: {}{}",
            String::from_utf8_lossy(&output.stdout).trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("needs bash: {error}")),
    }
}

impl Cluster {
    pub(crate) fn new(count: usize) -> Self {
        Self::made_by(Command::new(script()), count)
    }

    /// By the script run as `command` says.
    pub(crate) fn made_by(mut command: Command, count: usize) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        command.args(["hold", &count.to_string()]).env("HOSTS_NAME", &name).env("HOSTS_KEEP", kept());
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = lines(holder.stdout.take());
        let said = lines.recv_timeout(PATIENCE);
        let cluster = Self { name, count, holder };
        assert_eq!(said.as_deref(), Ok("ready"), "the hosts do not come up; standard error says why");
        cluster
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The process whose end ends all.
    pub(crate) fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// Hosts n1, n2 and so on.
    pub(crate) fn hosts<const N: usize>(&self) -> [Host; N] {
        assert_eq!(N, self.count);
        std::array::from_fn(|at| Host {
            cluster: self.name.clone(),
            name: format!("n{}", at + 1),
            address: format!("10.77.0.{}", at + 1),
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if !matches!(self.holder.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        // A second panic would hide the first.
        assert!(std::thread::panicking(), "the hosts do not end");
    }
}

impl Host {
    /// Runs a command there until it ends.
    pub(crate) fn run(&self, command: &[&str]) -> Output {
        self.command(command).output().unwrap()
    }

    /// What a command prints that must succeed there, trimmed.
    #[track_caller]
    pub(crate) fn print(&self, command: &[&str]) -> String {
        let output = self.run(command);
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(
            output.status.success(),
            "{command:?}: {} {said} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }

    /// A command there, to be started.
    pub(crate) fn command(&self, command: &[&str]) -> Command {
        let mut outer = Command::new(script());
        outer.args(["exec", &self.name]).args(command).env("HOSTS_NAME", &self.cluster);
        outer.stdin(Stdio::null());
        outer
    }

    /// A worker there that is ready.
    #[track_caller]
    pub(crate) fn worker(&self) -> Worker {
        self.start(&["--worker"], &[])
    }

    /// This program there, with these variables in its environment, once it is ready.
    #[track_caller]
    pub(crate) fn start(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Worker {
        self.try_start(arguments, environment).unwrap_or_else(|said| panic!("{arguments:?} on {}: {said}", self.name))
    }

    /// The same, or what it says instead of being ready.
    pub(crate) fn try_start(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Worker, String> {
        let program = program();
        let mut command = self.command(&[&[program.to_str().unwrap()], arguments].concat());
        command.envs(environment.iter().copied());
        self.begin(command)
    }

    /// A command there that says when it is ready.
    pub(crate) fn begin(&self, mut command: Command) -> Result<Worker, String> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, lines) = (process.stdin.take(), lines(process.stdout.take()));
        let mut worker = Worker { host: self.clone(), id: String::new(), process, input, lines };
        let said = worker.reply_within(PATIENCE).unwrap_or_else(|| "nothing".to_owned());
        match said.strip_prefix("ready ") {
            Some(id) => worker.id = id.to_owned(),
            None => return Err(said),
        }
        Ok(worker)
    }

    /// Of its eth0.
    pub(crate) fn traffic(&self) -> Traffic {
        let directory = "/sys/class/net/eth0/statistics";
        let said = self.print(&["cat", &format!("{directory}/rx_bytes"), &format!("{directory}/tx_bytes")]);
        let mut numbers = said.lines().map(|line| line.parse().unwrap());
        Traffic { received: numbers.next().unwrap(), sent: numbers.next().unwrap() }
    }

    pub(crate) fn boot_id(&self) -> String {
        self.print(&["cat", "/proc/sys/kernel/random/boot_id"])
    }

    pub(crate) fn cut(&self) {
        self.verb(&["cut", &self.name]);
    }

    pub(crate) fn heal(&self) {
        self.verb(&["heal", &self.name]);
    }

    /// What this host sends to the other is lost.
    pub(crate) fn block(&self, other: &Host) {
        self.verb(&["block", &self.name, &other.name]);
    }

    pub(crate) fn unblock(&self, other: &Host) {
        self.verb(&["unblock", &self.name, &other.name]);
    }

    /// What either sends to the other is lost.
    pub(crate) fn part(&self, other: &Host) {
        self.verb(&["part", &self.name, &other.name]);
    }

    pub(crate) fn join(&self, other: &Host) {
        self.verb(&["join", &self.name, &other.name]);
    }

    /// For example `rate=10mbit`, `delay=2ms`, `loss=1%`.
    pub(crate) fn shape(&self, words: &[&str]) {
        self.verb(&[&["shape", &self.name], words].concat());
    }

    pub(crate) fn unshape(&self) {
        self.verb(&["unshape", &self.name]);
    }

    /// Kills every process there.
    pub(crate) fn kill(&self) {
        self.verb(&["kill", &self.name]);
    }

    pub(crate) fn freeze(&self) {
        self.verb(&["freeze", &self.name]);
    }

    pub(crate) fn thaw(&self) {
        self.verb(&["thaw", &self.name]);
    }

    /// Power off.
    pub(crate) fn crash(&self) {
        self.verb(&["crash", &self.name]);
    }

    /// Power on.
    pub(crate) fn boot(&self) {
        self.verb(&["boot", &self.name]);
    }

    #[track_caller]
    fn verb(&self, arguments: &[&str]) {
        let output = Command::new(script()).args(arguments).env("HOSTS_NAME", &self.cluster).output().unwrap();
        assert!(output.status.success(), "hosts {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Worker {
    /// Its number on its host.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// What a command prints on its host.
    #[track_caller]
    pub(crate) fn print(&self, command: &[&str]) -> String {
        self.host.print(command)
    }

    pub(crate) fn tell(&mut self, order: &str) {
        let input = self.input.as_mut().expect("a worker that was not told to end");
        // One that died answers nothing, which is noticed there.
        let _ = writeln!(input, "{order}");
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.reply()
    }

    #[track_caller]
    pub(crate) fn expect(&mut self, order: &str, answer: &str) {
        assert_eq!(self.ask(order), answer, "{order}");
    }

    #[track_caller]
    pub(crate) fn reply(&self) -> String {
        self.reply_within(PATIENCE).expect("an answer in time from a living worker")
    }

    #[track_caller]
    pub(crate) fn expect_reply(&self, answer: &str) {
        assert_eq!(self.reply(), answer);
    }

    /// The answer, or none: the worker died, or says nothing.
    pub(crate) fn reply_within(&self, limit: Duration) -> Option<String> {
        self.lines.recv_timeout(limit).ok()
    }

    /// Waits until it has died of SIGKILL, by whatever sent that.
    #[track_caller]
    pub(crate) fn dies(&mut self) {
        let left = std::iter::from_fn(|| self.lines.recv_timeout(PATIENCE).ok()).count();
        assert_eq!(self.lines.try_recv(), Err(TryRecvError::Disconnected), "it lives, and said {left} lines");
        let status = self.process.wait().unwrap();
        // The shell between us says it so.
        assert_eq!(status.code(), Some(128 + libc::SIGKILL), "{status}");
    }

    /// For example `STOP`.
    pub(crate) fn signal(&self, signal: &str) {
        self.host.print(&["sh", "-c", &format!("kill -{signal} {}", self.id)]);
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // There, and not the shell here: its child would be left to a process 1 that may not wait for it, and the kernel
        // keeps a pid namespace until all is waited for.
        if !self.id.is_empty() && self.process.try_wait().is_ok_and(|status| status.is_none()) {
            self.host.run(&["sh", "-c", &format!("kill -KILL {}", self.id)]);
        }
        let begun = Instant::now();
        while self.process.try_wait().is_ok_and(|status| status.is_none()) {
            if begun.elapsed() > PATIENCE {
                let _ = self.process.kill();
                let _ = self.process.wait();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Ends it as programs end.
    #[track_caller]
    pub(crate) fn end(&mut self) {
        drop(self.input.take());
        assert_eq!(self.lines.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected), "it does not end");
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The script that makes hosts.
pub(crate) fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/hosts")
}

pub(crate) fn program() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// What hosts have of the machine's /tmp, if it lies there: this program, and the native libraries that are tested.
fn kept() -> std::ffi::OsString {
    let mut kept = program().parent().unwrap().as_os_str().to_owned();
    for directory in LIBRARIES.iter().filter_map(std::env::var_os) {
        kept.push(":");
        kept.push(directory);
    }
    kept
}

/// Variables that name their directories.
const LIBRARIES: [&str; 2] = ["PROXYSTORE_UCX_LIB", "CLUSTER_OTHER_UCX"];

fn lines(output: Option<impl std::io::Read + Send + 'static>) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in output.into_iter().flat_map(|output| BufReader::new(output).lines()).map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// Longest time for one answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
