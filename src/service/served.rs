//! The service of `proxystore serve`: the process that its supervisor starts.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::thread;
use std::time::{Duration, Instant};

use super::directory::Directory;
use super::keeper::ServeOptions;
use super::link::{self, Kept, Order};
use super::server::{Inherited, Server, Setup};
use crate::environment;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::preflight;
use crate::shm::segment::Segment;

/// Serves a namespace for the supervisor that left its connection at `keeper_fd`, until that wants it to end.
///
/// To be called on the main thread, before there are others, by a program that was started with [`KEEPER_FLAG`](super::KEEPER_FLAG).
///
/// # Errors
/// `AlreadyExists` when another process hosts the namespace, `NoSpace` with the numbers, `Invalid` without a supervisor.
pub fn serve_supervised(options: &ServeOptions, keeper_fd: RawFd) -> Result<()> {
    let Kept { ctl, segments, mut link } = link::connect(keeper_fd)?;
    let directory = Directory::open(&options.namespace)?;
    let inherited = match ctl {
        None => None,
        Some(ctl) => {
            let mut data = BTreeMap::new();
            for (index, descriptor, len) in segments {
                data.insert(index, Segment::adopt(descriptor, len as usize)?);
            }
            Some(Inherited { ctl: Segment::adopt(ctl.descriptor, ctl.len as usize)?, segments: data })
        }
    };
    let begun = Instant::now();
    let host = loop {
        let members = super::lock::LockFile::open(&directory.members())?;
        if let Some(host) = directory.try_host()? {
            // Fresh memory only where nobody holds any: clients of a service that died take over by themselves.
            if inherited.is_some() || members.holder(0..Directory::MAX_MEMBERS)?.is_none() {
                break host;
            }
        }
        // Those who only ask hold the lock for a moment.
        if inherited.is_none() && begun.elapsed() > INSISTENCE {
            let file = super::lock::LockFile::open(&directory.host_lock())?;
            let holder = file.holder(0..1)?.or(members.holder(0..Directory::MAX_MEMBERS)?);
            let process = holder.and_then(|holder| holder.pid).map_or(String::new(), |pid| format!(" (process {pid})"));
            let context = format!(
                "another process{process} hosts namespace {} already; start `proxystore serve` before the first user, or stop that one",
                options.namespace
            );
            return Err(Error::new(ErrorKind::AlreadyExists, "serve", context));
        }
        // A client was quicker; its turn ends with its life.
        match link.next()? {
            Some(Order::Drain | Order::End) => return Ok(()),
            None => thread::sleep(STANDBY),
        }
    };
    let budget = options.budget.or_else(environment::shm_bytes).unwrap_or_else(preflight::default_budget);
    let setup = Setup {
        directory,
        host,
        budget,
        prefault: if options.prefault { budget } else { 0 },
        displace: options.displace,
        inherited,
        members: None,
        keeper: Some(link),
    };
    Server::new(setup)?.grace(options.grace).run(false)
}

/// How long another host is not believed in.
const INSISTENCE: Duration = Duration::from_secs(1);

/// How often a service that has no turn looks for one.
const STANDBY: Duration = Duration::from_millis(20);
