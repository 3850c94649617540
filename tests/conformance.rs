//! Every connector of the table against the whole contract.

use std::process::ExitCode;

use proxystore::conformance::{self, Subject};
use proxystore::connector::Registration;
use proxystore::{ConnectorConfig, connectors};

fn main() -> ExitCode {
    let mut subjects = Vec::new();
    for row in connectors::TABLE {
        match subject(*row) {
            Some(subject) => subjects.push(subject),
            None => {
                eprintln!(
                    "tests/conformance.rs: the connector {} has no subject, so nothing would test it",
                    row.scheme
                );
                return ExitCode::FAILURE;
            }
        }
    }
    conformance::main(subjects)
}

/// A namespace that no other case and no other run uses.
fn fresh_namespace() -> String {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

/// How fresh connectors of a row come about.
fn subject(row: Registration) -> Option<Subject> {
    match row.scheme {
        "memory" => Some(Subject::new(row, || Ok(ConnectorConfig::new("memory", "")))),
        "shm" => Some(Subject::new(row, || Ok(ConnectorConfig::new("shm", fresh_namespace())))),
        "file" => Some(Subject::in_directories(row)),
        _ => None,
    }
}
