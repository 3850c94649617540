//! Every connector of the table against the whole contract.

use std::env;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use proxystore::conformance::{self, Subject};
use proxystore::connector::Registration;
use proxystore::{ConnectorConfig, Store, connectors};

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(KEEP) {
        return keep_node();
    }
    let mut subjects = Vec::new();
    for row in connectors::TABLE {
        let subject = match row.scheme {
            "memory" => Subject::new(*row, || Ok(ConnectorConfig::new("memory", ""))),
            "shm" => Subject::new(*row, || Ok(ConnectorConfig::new("shm", fresh_namespace()))),
            "tcp" => {
                subjects.push(Subject::new(*row, || Ok(ConnectorConfig::new("tcp", fresh_namespace()))));
                across_nodes(*row, &[])
            }
            // On one node it is the same as tcp: the fabric is between nodes.
            "ucx" => {
                subjects.push(across_nodes(*row, &[]).missing(missing_ucx()));
                across_nodes(*row, &[("one_sided", "on")]).named("ucx-one-sided").missing(no_one_sided())
            }
            "margo" => across_nodes(*row, &[]).missing(missing_margo()),
            "file" => Subject::in_directories(*row),
            other => {
                eprintln!("tests/conformance.rs: the connector {other} has no subject, so nothing would test it");
                return ExitCode::FAILURE;
            }
        };
        subjects.push(subject);
    }
    conformance::main(subjects)
}

#[cfg(feature = "ucx")]
fn missing_ucx() -> Option<String> {
    ucx_sys::load().err().map(|error| error.to_string())
}

#[cfg(not(feature = "ucx"))]
fn missing_ucx() -> Option<String> {
    None
}

/// Why memory of other nodes cannot be read here; the variables of UCX count, which the side that answers takes as well.
#[cfg(feature = "ucx")]
fn no_one_sided() -> Option<String> {
    let reason = connectors::ucx::one_sided().err()?;
    Some(format!("{}; UCX 1.21 in PROXYSTORE_UCX_LIB and UCX_TLS=tcp,sysv,cma do without an adapter", reason.context()))
}

#[cfg(not(feature = "ucx"))]
fn no_one_sided() -> Option<String> {
    None
}

#[cfg(feature = "margo")]
fn missing_margo() -> Option<String> {
    margo_sys::load().err().map(|error| error.to_string())
}

#[cfg(not(feature = "margo"))]
fn missing_margo() -> Option<String> {
    None
}

/// A namespace that no other case and no other run uses.
fn fresh_namespace() -> String {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

/// A subject whose `process` cases run their child on another node: one with a runtime directory, and so with memory and a
/// node service, of its own.
///
/// A process keeps that node's memory, as `proxystore serve` would. It starts with the first case.
fn across_nodes(row: Registration, options: &'static [(&str, &str)]) -> Subject {
    let kind = options.iter().map(|(name, _)| *name).collect::<String>();
    let directory = env::temp_dir().join(format!("proxystore-node-{}{kind}-{}", row.scheme, std::process::id()));
    let directory = directory.to_string_lossy().into_owned();
    let node = OnceLock::new();
    let at = directory.clone();
    let place = move || {
        let config = ConnectorConfig::new(row.scheme, fresh_namespace()).with_option("replicas", "off");
        let config = options.iter().fold(config, |config, (name, value)| config.with_option(*name, *value));
        node.get_or_init(|| Node::start(&at)).keep(&config.to_string());
        Ok(config)
    };
    let subject =
        Subject::new(row, place).named(format!("{}-nodes", row.scheme)).child_variable(RUNTIME_DIR, directory);
    match launcher() {
        words if words.is_empty() => subject,
        // A launcher takes its time for each process.
        words => subject.child_launcher(words).deadline(Duration::from_secs(120)),
    }
}

/// What starts the processes of the other node where that is another machine: `CONFORMANCE_LAUNCHER`, words with blanks between
/// them. slurm/conformance.sh sets it.
fn launcher() -> Vec<String> {
    env::var("CONFORMANCE_LAUNCHER").unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Another node, for as long as this process wants it: objects stay while a process is there.
struct Node {
    process: Mutex<Child>,
    directory: String,
}

impl Node {
    fn start(directory: &str) -> Self {
        let program = env::current_exe().expect("this program");
        let mut command = match &launcher()[..] {
            [] => Command::new(program),
            [launcher, words @ ..] => {
                let mut command = Command::new(launcher);
                command.args(words).arg(program);
                command
            }
        };
        let process = command
            .arg(KEEP)
            .env(RUNTIME_DIR, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process on another node");
        Self { process: Mutex::new(process), directory: directory.to_owned() }
    }

    /// Has the node keep the objects of a store.
    fn keep(&self, url: &str) {
        let mut process = self.process.lock().expect("nobody panicked");
        writeln!(process.stdin.as_mut().expect("a pipe"), "{url}").expect("the other node is there");
        let mut kept = [0];
        process.stdout.as_mut().expect("a pipe").read_exact(&mut kept).expect("the other node keeps it");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let process = self.process.get_mut().expect("nobody panicked");
        drop(process.stdin.take());
        let _ = process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Keeps the memory of stores until the input ends.
fn keep_node() -> ExitCode {
    let mut stores = Vec::new();
    for url in std::io::stdin().lines().map_while(Result::ok) {
        stores.push(Store::open(&url).expect("a store on another node"));
        std::io::stdout().write_all(b".").expect("somebody waits");
        std::io::stdout().flush().expect("somebody waits");
    }
    ExitCode::SUCCESS
}

const KEEP: &str = "--keep-node";

const RUNTIME_DIR: &str = "PROXYSTORE_RUNTIME_DIR";
