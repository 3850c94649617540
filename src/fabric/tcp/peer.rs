//! `TcpPeer`: the streams of this process to one owner.

use std::fmt;
use std::io;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::Options;
use super::socket::{Moved, Socket, down};
use super::stream::{self, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::handshake::{self, Handshake, Identity, Proven, Purpose};
use crate::fabric::{Answer, Call, Peer};
use crate::failpoint::failpoint;
use crate::pending::{Operations, Pending};

/// An owner, reached.
pub(super) struct TcpPeer {
    this: Weak<TcpPeer>,
    identity: Identity,
    options: Options,
    purpose: Purpose,
    contact: SocketAddr,
    instance: u64,
    /// The first is there from the beginning, the others when they have been asked for and connected.
    lanes: Vec<Lane>,
}

#[derive(Default)]
struct Lane {
    stream: OnceLock<Arc<Stream>>,
    begun: AtomicBool,
}

impl TcpPeer {
    /// Connects and proves.
    ///
    /// # Errors
    /// As [`Fabric::connect`](crate::fabric::Fabric::connect).
    pub(super) fn connect(
        identity: &Identity,
        options: &Options,
        purpose: Purpose,
        contact: SocketAddr,
        deadline: Instant,
    ) -> Result<Arc<Self>> {
        let (socket, proven) = reach(identity, options, (purpose, 0), contact, deadline)?;
        let first = Stream::new(socket, contact, options.silence)?;
        let peer = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            identity: identity.clone(),
            options: options.clone(),
            purpose,
            contact,
            instance: proven.instance,
            lanes: (0..options.lanes.max(1)).map(|_| Lane::default()).collect(),
        });
        peer.keep(&peer.lanes[0], first);
        failpoint!("fabric.connected");
        Ok(peer)
    }

    fn keep(&self, lane: &Lane, stream: Arc<Stream>) {
        stream.belongs_to(Weak::clone(&self.this));
        let _ = lane.stream.set(stream);
    }

    /// The stream of a lane, or the first one while it is not connected.
    fn stream(&self, number: usize) -> Option<(usize, &Arc<Stream>)> {
        let number = number % self.lanes.len();
        let lane = &self.lanes[number];
        if let Some(stream) = lane.stream.get() {
            return Some((number, stream));
        }
        if !lane.begun.swap(true, Relaxed) {
            if let Some(this) = self.this.upgrade() {
                // Nobody waits for it: until it is there, and if it never is, the first one serves.
                drop(Pending::blocking(move || this.widen(number)).start());
            }
        }
        self.lanes[0].stream.get().map(|stream| (0, stream))
    }

    /// The stream of a question, and its number there, by the number of the operation.
    fn asked(&self, number: u64) -> Result<(&Stream, u64)> {
        let lanes = self.lanes.len() as u64;
        let stream = self.lanes[(number % lanes) as usize].stream.get().ok_or_else(stream::closed)?;
        Ok((stream, number / lanes))
    }

    fn widen(&self, number: usize) -> Result<()> {
        let deadline = Instant::now() + self.options.handshake;
        let (socket, proven) =
            reach(&self.identity, &self.options, (self.purpose, number as u32), self.contact, deadline)?;
        if proven.instance == self.instance && self.is_up() {
            let stream = Stream::new(socket, self.contact, self.options.silence)?;
            self.keep(&self.lanes[number], stream);
            // It may have ended meanwhile.
            if !self.is_up() {
                self.end(stream::closed());
            }
        }
        Ok(())
    }

    /// Ends all streams.
    pub(super) fn end(&self, error: Error) {
        for stream in self.lanes.iter().filter_map(|lane| lane.stream.get()) {
            stream.fail(error.clone());
        }
    }
}

impl Peer for TcpPeer {
    fn instance(&self) -> u64 {
        self.instance
    }

    fn is_up(&self) -> bool {
        self.lanes[0].stream.get().is_some_and(|stream| stream.is_up())
    }

    fn lanes(&self) -> usize {
        self.lanes.len()
    }

    fn request(self: Arc<Self>, call: Call) -> Pending<Answer> {
        match self.stream(call.lane) {
            Some((lane, stream)) => match stream.ask(call) {
                Ok(number) => {
                    let number = number * self.lanes.len() as u64 + lane as u64;
                    Pending::from_operations(self, number)
                }
                Err(error) => Pending::ready(Err(error)),
            },
            None => Pending::ready(Err(stream::closed())),
        }
    }

    fn close(&self) {
        self.end(stream::closed());
    }
}

/// Questions that were asked; the handle lives as long as an answer is waited for.
impl Operations<Answer> for TcpPeer {
    fn wait(self: Arc<Self>, number: u64, deadline: Option<Instant>) -> Result<Answer> {
        let (stream, number) = self.asked(number)?;
        stream.wait(number, deadline)
    }

    fn poll(self: Arc<Self>, number: u64, cx: &mut Context<'_>) -> Poll<Result<Answer>> {
        match self.asked(number) {
            Ok((stream, number)) => stream.poll(number, cx),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn let_go(self: Arc<Self>, number: u64) {
        if let Ok((stream, number)) = self.asked(number) {
            stream.abandon(number);
        }
    }
}

impl Drop for TcpPeer {
    fn drop(&mut self) {
        self.end(stream::closed());
    }
}

impl fmt::Debug for TcpPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpPeer({}, instance {:016x})", self.contact, self.instance)
    }
}

/// A proved connection. Tries again for a moment where nobody listens: a service that is restarted is away for that long.
fn reach(
    identity: &Identity,
    options: &Options,
    stream: (Purpose, u32),
    contact: SocketAddr,
    deadline: Instant,
) -> Result<(Socket, Proven)> {
    let away = (options.silence / 4).clamp(LEAST_AWAY, MOST_AWAY);
    let mut missed = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match try_reach(identity, options, stream, contact, deadline) {
            Ok(reached) => return Ok(reached),
            Err(error) => error,
        };
        let jitter = Duration::from_micros(crate::key::random_number() % 1000) * (pause.as_millis() as u32 / 2);
        let resume = Instant::now() + pause + jitter;
        // Counted from when it was missed: it may have ended during a handshake that took long.
        let missed = *missed.get_or_insert_with(Instant::now);
        if error.kind() != ErrorKind::PeerDown || missed.elapsed() > away || resume >= deadline {
            return Err(error);
        }
        std::thread::sleep(resume.saturating_duration_since(Instant::now()));
        pause *= 2;
    }
}

fn try_reach(
    identity: &Identity,
    options: &Options,
    (purpose, lane): (Purpose, u32),
    contact: SocketAddr,
    deadline: Instant,
) -> Result<(Socket, Proven)> {
    let fail = |error: io::Error| down("connect", contact, error);
    let socket = Socket::connect(contact).map_err(fail)?;
    loop {
        if !socket.wait(PollFlags::OUT, deadline).map_err(fail)?.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            let context =
                format!("{contact} did not accept a connection in time: is its node up, and the port reachable?");
            return Err(Error::new(ErrorKind::Timeout, "connect", context));
        }
    }
    socket.connected().map_err(fail)?;
    socket.configure(options.silence).map_err(fail)?;
    let limit = Instant::now() + options.handshake;
    // Its kernel accepts connections for a process that is stopped.
    let (deadline, kind) = if limit < deadline { (limit, ErrorKind::PeerDown) } else { (deadline, ErrorKind::Timeout) };
    let stream = handshake::Stream { purpose, lane, silence: options.silence };
    let proven = prove(&socket, contact, Handshake::request(identity, stream), deadline, kind)?;
    Ok((socket, proven))
}

/// Drives a handshake to its end; past the deadline it fails in `late`.
fn prove(
    socket: &Socket,
    contact: SocketAddr,
    mut handshake: Handshake,
    deadline: Instant,
    late: ErrorKind,
) -> Result<Proven> {
    let fail = |error: io::Error| down("connect", contact, error);
    let mut buffer = [0; 128];
    loop {
        let output = handshake.output();
        // Messages are shorter than any socket's buffer.
        if !output.is_empty() && socket.send(&[IoSlice::new(&output)]).map_err(fail)? != Moved::Bytes(output.len()) {
            return Err(fail(io::ErrorKind::BrokenPipe.into()));
        }
        if let Some(proven) = handshake.proven() {
            return Ok(proven);
        }
        let wanted = handshake.wanted().min(buffer.len());
        match socket.recv(&mut buffer[..wanted]).map_err(fail)? {
            Moved::Bytes(bytes) => {
                if let Err(error) = handshake.input(&buffer[..bytes]) {
                    let refusal = handshake.output();
                    if !refusal.is_empty() {
                        let _ = socket.send(&[IoSlice::new(&refusal)]);
                    }
                    let context = format!("{contact}: {}", error.context());
                    return Err(Error::new(error.kind(), "connect", context));
                }
            }
            Moved::None if Instant::now() >= deadline => {
                let context =
                    format!("{contact} accepted the connection and says nothing: is it proxystore, and alive?");
                return Err(Error::new(late, "connect", context));
            }
            Moved::None => drop(socket.wait(PollFlags::IN, deadline).map_err(fail)?),
        }
    }
}

/// How long a service that is restarted may be away: a quarter of the silence limit, since who is patient with the one has a
/// machine that is slow with the other.
const LEAST_AWAY: Duration = Duration::from_millis(1500);
const MOST_AWAY: Duration = Duration::from_secs(5);

const FIRST_PAUSE: Duration = Duration::from_millis(10);
