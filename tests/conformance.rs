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

/// How fresh connectors of a row come about.
fn subject(row: Registration) -> Option<Subject> {
    match row.scheme {
        "memory" => Some(Subject::new(row, || Ok(ConnectorConfig::new("memory", "")))),
        "file" => Some(Subject::in_directories(row)),
        _ => None,
    }
}
