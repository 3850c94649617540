//! `proxystore serve`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use proxystore::environment::{parse_bytes, parse_duration};
use proxystore::service::{self, ServeOptions};

use crate::failure::Failure;
use crate::namespace::NamespaceArgs;

/// Keep the shared memory of a node: objects outlive the processes that put them
///
/// Stays in the foreground. Without it the first process that opens a namespace hosts the service on a thread, and the memory
/// goes with the namespace's last process. With it, objects stay until they are evicted or this program ends. A supervisor
/// holds the memory, and starts the service again, with every object, should it be killed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  proxystore serve &                                     the default namespace
  srun --ntasks-per-node=1 --overlap proxystore serve &  one a node, in a batch script
  proxystore serve shm://run42 --bytes 64GiB --prefault

SIGTERM and SIGINT end it in order: processes that still use the memory keep it and take over. A second one ends it at
once. It prints `ready` on standard error when processes can attach.")]
pub(crate) struct Serve {
    #[command(flatten)]
    namespace: NamespaceArgs,
    /// Most memory for objects, such as 64GiB [default: PROXYSTORE_SHM_BYTES, else half of the memory]
    #[arg(long, value_parser = bytes)]
    bytes: Option<u64>,
    /// Take all of the memory now, so that no put waits for pages: about 0.3 s a GiB
    #[arg(long)]
    prefault: bool,
    /// What full memory does: refuse puts, or evict what was not used for longest
    #[arg(long, value_enum, default_value_t = Evict::Refuse)]
    evict: Evict,
    /// How long processes have to leave when the service is told to end
    #[arg(long, value_parser = duration, default_value = "10s")]
    grace: Duration,
    /// Descriptor of the supervisor's connection
    #[arg(long, hide = true)]
    keeper_fd: Option<i32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Evict {
    Refuse,
    Lru,
}

impl Serve {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let options = ServeOptions {
            namespace: self.namespace.name()?,
            budget: self.bytes,
            displace: matches!(self.evict, Evict::Lru),
            prefault: self.prefault,
            grace: self.grace,
        };
        match self.keeper_fd {
            None => service::serve(&options)?,
            Some(descriptor) => service::serve_supervised(&options, descriptor)?,
        }
        Ok(())
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| "expected a number of bytes, such as 64GiB".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration, such as 10s".to_owned())
}
