//! The program as its users meet it: every test runs the binary.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "cli")]

mod bench;
mod information;
mod objects;
mod output;
mod shared;
mod tokens;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A directory for a test, with a store in it.
struct Room {
    directory: TempDir,
    /// Where the namespaces of this test meet.
    runtime: TempDir,
}

impl Room {
    fn new() -> Self {
        let runtime = TempDir::new().unwrap();
        std::fs::set_permissions(runtime.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { directory: TempDir::new().unwrap(), runtime }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn url(&self) -> String {
        format!("file://{}/store", self.path().display())
    }

    /// The names in the store.
    fn objects(&self) -> Vec<String> {
        names(&self.path().join("store"))
    }

    /// A run of the program that knows this store, and nothing of the environment of whoever runs the tests.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proxystore"));
        for (name, _) in std::env::vars_os() {
            let told = ["PROXYSTORE_", "SLURM", "OMPI_", "PMIX_", "PMI_", "MPI_"];
            if told.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.env("PROXYSTORE_STORE", self.url()).env("TMPDIR", self.path());
        command.env("PROXYSTORE_RUNTIME_DIR", self.runtime.path()).env("PROXYSTORE_SHM_BYTES", "64MiB").args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A program that refuses its input early does not read it to the end.
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        let _ = writer.join().unwrap();
        output
    }

    /// Puts bytes and returns the token.
    fn put(&self, bytes: &[u8], more: &[&str]) -> String {
        let output = self.run_with_input(&[&["put", "-"], more].concat(), bytes);
        succeeded(&output);
        let token = text(&output.stdout);
        assert!(token.ends_with('\n') && token.split_whitespace().count() == 1, "{token:?}");
        token.trim().to_owned()
    }
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn succeeded(output: &Output) {
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

/// The program ended with `status` and one line on standard error that has all `parts`.
#[track_caller]
fn failed(output: &Output, status: i32, parts: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(output.stdout.is_empty(), "{:?}", text(&output.stdout));
    assert!(stderr.starts_with("proxystore: ") && stderr.lines().count() == 1, "{stderr:?}");
    for part in parts {
        assert!(stderr.contains(part), "{stderr:?} lacks {part:?}");
    }
}

/// Bytes in which no two places look alike.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}
