//! `TcpListener`: an owner that answers, with a fixed number of threads.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::Options;
use super::door::Door;
use super::socket::Socket;
use super::worker::{Desk, Worker};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::handshake::{Identity, Purpose};
use crate::fabric::{Listener, Service};
use crate::process::Withheld;

/// Answers until it is dropped.
pub(super) struct TcpListener {
    contact: SocketAddr,
    /// Before the socket, which it must not outlive.
    _withheld: Withheld,
    socket: Arc<Socket>,
    desks: Arc<Vec<Arc<Desk>>>,
    threads: Vec<JoinHandle<()>>,
    generation: u32,
}

impl TcpListener {
    /// Listens at the first address that is free.
    ///
    /// # Errors
    /// As [`Fabric::listen`](crate::fabric::Fabric::listen).
    pub(super) fn new(
        identity: &Identity,
        options: &Options,
        addresses: &[SocketAddr],
        services: Vec<(Purpose, Arc<dyn Service>)>,
    ) -> Result<Self> {
        let (socket, contact) = bind(addresses)?;
        let spoken: Vec<Purpose> = services.iter().map(|(purpose, _)| *purpose).collect();
        let services = Arc::new(services);
        let fail = |error: rustix::io::Errno| Error::io("listen", contact.to_string(), error.into());
        let socket = Arc::new(socket);
        let withheld = Withheld::new(socket.as_fd());
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let mut desks = Vec::with_capacity(count);
        for number in 0..count {
            desks.push(Desk::new(number).map_err(fail)?);
        }
        let desks = Arc::new(desks);
        let generation = crate::process::generation();
        // Dropping it ends those threads that did start.
        let mut this =
            Self { contact, _withheld: withheld, socket, desks, threads: Vec::with_capacity(count), generation };
        for (i, desk) in this.desks.iter().enumerate() {
            let door = match i {
                0 => {
                    let (socket, epoll) = (Arc::clone(&this.socket), Arc::clone(&desk.epoll));
                    Some(Door::new(socket, identity, options, spoken.clone(), epoll).map_err(fail)?)
                }
                _ => None,
            };
            let worker = Worker::new(Arc::clone(desk), Arc::clone(&this.desks), door, Arc::clone(&services), options);
            let thread = std::thread::Builder::new().name(format!("proxystore-tcp{i}"));
            let thread = thread.spawn(|| worker.run());
            this.threads.push(thread.map_err(|error| Error::io("listen", "a thread that answers peers", error))?);
        }
        Ok(this)
    }
}

fn bind(addresses: &[SocketAddr]) -> Result<(Socket, SocketAddr)> {
    let mut last = None;
    for address in addresses {
        let bound = Socket::listen(*address).and_then(|socket| {
            let contact = socket.address()?;
            Ok((socket, contact))
        });
        match bound {
            Ok(bound) => return Ok(bound),
            Err(error) => last = Some(error),
        }
    }
    let context = format!("no address to listen at is free, of {addresses:?}");
    let error = Error::new(ErrorKind::Unavailable, "listen", context);
    Err(match last {
        Some(last) => error.with_source(last),
        None => error,
    })
}

impl Listener for TcpListener {
    fn contact(&self) -> SocketAddr {
        self.contact
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        if self.generation != crate::process::generation() {
            // A forked child has none of the threads, and the connections are its parent's.
            return;
        }
        // Or a forked child that holds the descriptor would go on listening.
        self.socket.shutdown();
        self.desks.iter().for_each(|desk| desk.stop());
        let this = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != this) {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpListener({}, {} threads)", self.contact, self.threads.len())
    }
}

/// Threads that answer peers; a job's own work comes first.
const MOST_THREADS: usize = 4;
