//! `Partner`: the peer as this side sees it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::link::{Answer, Link, Request};
use super::peer::{self, BenchPeer};
use super::place::Place;
use crate::failure::Failure;

/// A peer that ends when this is dropped, or when this process ends in whatever way, because its input does.
pub(super) struct Partner {
    link: Option<Link>,
    body: Body,
}

enum Body {
    Process(Mutex<Child>),
    Thread(Option<JoinHandle<()>>),
}

impl Partner {
    /// Starts a process, or a thread where the objects do not leave this process.
    pub(super) fn start(place: &Place) -> Result<Self, Failure> {
        let fail = |error: io::Error| Failure::io("cannot start the peer", error);
        if !place.crosses_processes() {
            let (here, there) = Link::pair().map_err(fail)?;
            let url = place.url();
            let thread = thread::Builder::new().name("bench-peer".to_owned()).spawn(move || peer::serve(&url, there));
            return Ok(Self { link: Some(here), body: Body::Thread(Some(thread.map_err(fail)?)) });
        }
        let mut command = Command::new(std::env::current_exe().map_err(fail)?);
        command.args(BenchPeer::arguments(&place.url(), place.directory()));
        command.envs(place.node().map(|directory| ("PROXYSTORE_RUNTIME_DIR", directory)));
        // In a process group of its own: on Ctrl-C it sees this process end, and cleans up.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(fail)?;
        match (child.stdout.take(), child.stdin.take()) {
            (Some(input), Some(output)) => {
                let link = Link::new(input.into(), output.into());
                Ok(Self { link: Some(link), body: Body::Process(Mutex::new(child)) })
            }
            _ => Err(Failure::new("cannot start the peer: no pipes")),
        }
    }

    /// What the header says about it.
    pub(super) fn describe(&self) -> String {
        match &self.body {
            Body::Process(child) => format!("process {}", lock(child).id()),
            Body::Thread(_) => "a thread of this process".to_owned(),
        }
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(&mut self, request: &Request, limit: Duration) -> Result<Answer, Failure> {
        self.within(limit, |link| link.ask(request))
    }

    /// Talks to the peer for at most `limit`; a process that is silent for longer is ended.
    pub(super) fn within<T>(
        &mut self,
        limit: Duration,
        talk: impl FnOnce(&mut Link) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let Some(link) = &mut self.link else { return Err(Failure::new("the peer is gone")) };
        let Body::Process(child) = &self.body else { return talk(link) };
        let ended = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            let (done, waiting) = channel::<()>();
            scope.spawn(|| {
                let waiting = waiting;
                if waiting.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                    ended.store(true, Ordering::Relaxed);
                    // It may have ended by itself just now.
                    let _ = lock(child).kill();
                }
            });
            let result = talk(link);
            drop(done);
            result
        });
        match result {
            Err(_) if ended.load(Ordering::Relaxed) => {
                Err(Failure::timeout(format_args!("the peer did not answer within {limit:?}")))
            }
            result => result,
        }
    }
}

impl Link {
    /// Sends a request and receives its answer.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Answer, Failure> {
        self.send(request).map_err(gone)?;
        match self.receive().map_err(gone)? {
            Answer::Failed { not_in_time: true, message } => Err(Failure::timeout(format_args!("peer: {message}"))),
            Answer::Failed { message, .. } => Err(Failure::new(format_args!("peer: {message}"))),
            answer => Ok(answer),
        }
    }
}

/// A link that failed.
pub(super) fn gone(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => Failure::new("the peer died"),
        _ => Failure::io("peer", error),
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        drop(self.link.take());
        match &mut self.body {
            Body::Thread(thread) => {
                // A panic has been printed, and was noticed as the end of the link.
                let _ = thread.take().map(JoinHandle::join);
            }
            Body::Process(child) => {
                let child = child.get_mut().unwrap_or_else(PoisonError::into_inner);
                let begin = Instant::now();
                while matches!(child.try_wait(), Ok(None)) && begin.elapsed() < FAREWELL {
                    thread::sleep(Duration::from_millis(1));
                }
                // Both are for a peer that does not end by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn lock(child: &Mutex<Child>) -> std::sync::MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a peer may take to remove its objects.
const FAREWELL: Duration = Duration::from_secs(10);
