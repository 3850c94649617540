//! `Failure`: how a command ends when it does not succeed.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use proxystore::{Error, ErrorKind};

/// An exit status and what the person at the terminal should read, if anything.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: Option<String>,
    /// The machine lacks something.
    unavailable: bool,
}

impl Failure {
    pub(crate) const NOT_FOUND: u8 = 3;
    pub(crate) const TIMEOUT: u8 = 4;

    pub(crate) fn new(message: impl Display) -> Self {
        Self { status: 1, message: Some(message.to_string()), unavailable: false }
    }

    /// Ends with `status` and says nothing, because the status is the answer.
    pub(crate) fn silent(status: u8) -> Self {
        Self { status, message: None, unavailable: false }
    }

    pub(crate) fn not_found(message: impl Display) -> Self {
        Self { status: Self::NOT_FOUND, ..Self::new(message) }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status == Self::NOT_FOUND
    }

    /// Whether the machine lacks something that other machines have.
    pub(crate) fn is_unavailable(&self) -> bool {
        self.unavailable
    }

    /// Says on standard error that something is not measured, and why.
    pub(crate) fn leave_out(&self, what: &str) {
        let reason = self.message.as_deref().unwrap_or("no reason is known");
        let _ = writeln!(io::stderr(), "proxystore: {what} is not measured: {reason}");
    }

    pub(crate) fn timeout(message: impl Display) -> Self {
        Self { status: Self::TIMEOUT, ..Self::new(message) }
    }

    /// A failed call of the operating system for `what`.
    pub(crate) fn io(what: impl Display, error: impl Into<io::Error>) -> Self {
        Self::new(format_args!("{what}: {}", error.into()))
    }

    /// A failure to write to standard output. A reader that went away, as `head` does, has all it wanted.
    pub(crate) fn stdout(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(0),
            _ => Self::io("standard output", error),
        }
    }

    /// Says it on standard error.
    pub(crate) fn report(self) -> ExitCode {
        if let Some(message) = self.message {
            // Where even this fails, the status has to do.
            let _ = writeln!(io::stderr(), "proxystore: {message}");
        }
        ExitCode::from(self.status)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::NotFound => Self::NOT_FOUND,
            ErrorKind::Timeout => Self::TIMEOUT,
            _ => 1,
        };
        Self { status, message: Some(error.to_string()), unavailable: error.kind() == ErrorKind::Unavailable }
    }
}
