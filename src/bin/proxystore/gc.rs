//! `proxystore gc`.

use std::io::{Write, stdout};

use clap::Args;
use indicatif::HumanBytes;
use proxystore::service::{self, Namespace};
use serde::Serialize;

use crate::failure::Failure;
use crate::namespace::NamespaceArgs;

/// Give free shared memory back to the system, and remove what abandoned namespaces left
///
/// No object that anybody can get is touched. Memory goes with its last process by itself; what can be left of a namespace
/// is a socket and two empty files.
#[derive(Args)]
#[command(after_help = "\
Examples:
  proxystore gc             the default namespace
  proxystore gc --all       all of yours on this node, as in an epilogue")]
pub(crate) struct Gc {
    #[command(flatten)]
    namespace: NamespaceArgs,
    /// All namespaces of yours on this node
    #[arg(long, conflicts_with = "url")]
    all: bool,
    /// Print JSON, one object a namespace
    #[arg(long)]
    json: bool,
}

/// What was done to a namespace.
#[derive(Serialize)]
struct Done {
    namespace: String,
    /// Whether some process has it.
    held: bool,
    /// Bytes given back to the system.
    bytes: u64,
    /// Whether its files were removed.
    removed: bool,
    error: Option<String>,
}

impl Gc {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let names = match self.all {
            true => service::namespaces()?,
            false => vec![self.namespace.name()?],
        };
        let mut failed = false;
        for name in &names {
            let done = collect(name);
            failed |= done.error.is_some();
            let line = match self.json {
                true => serde_json::to_string(&done).map_err(Failure::new)?,
                false => done.to_text(),
            };
            writeln!(stdout(), "{line}").map_err(Failure::stdout)?;
        }
        if names.is_empty() && !self.json {
            writeln!(stdout(), "no namespace of yours is on this node").map_err(Failure::stdout)?;
        }
        match failed {
            // The lines above say what.
            true => Err(Failure::silent(1)),
            false => Ok(()),
        }
    }
}

impl Done {
    fn to_text(&self) -> String {
        let what = match self {
            Self { error: Some(error), .. } => error.clone(),
            Self { held: true, bytes: 0, .. } => "nothing free to give back".to_owned(),
            Self { held: true, bytes, .. } => format!("{} given back to the system", HumanBytes(*bytes)),
            Self { removed: true, .. } => "nobody holds it: its socket and locks are removed".to_owned(),
            _ => "nobody holds it, and nothing is left of it".to_owned(),
        };
        format!("shm://{}: {what}", self.namespace)
    }
}

fn collect(name: &str) -> Done {
    let mut done = Done { namespace: name.to_owned(), held: false, bytes: 0, removed: false, error: None };
    let result = Namespace::find(name).and_then(|found| match found {
        Some(namespace) => {
            done.held = true;
            namespace.collect().map(|bytes| done.bytes = bytes)
        }
        None => Namespace::remove_abandoned(name).map(|removed| done.removed = removed),
    });
    done.error = result.err().map(|error| error.to_string());
    done
}
