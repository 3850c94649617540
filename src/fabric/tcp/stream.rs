//! `Stream`: one connection of a requester, which its callers drive themselves.

use std::fmt;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::event::epoll::EventFlags;

use super::calls::{Calls, State};
use super::frame::{self, Kind};
use super::peer::TcpPeer;
use super::reactor::Reactor;
use super::reader::{Broken, Reader};
use super::scatter::Patience;
use super::socket::{Moved, Socket, down};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Call};
use crate::failpoint::failpoint;
use crate::sync::lock;

/// A proved connection.
pub(super) struct Stream {
    socket: Socket,
    address: SocketAddr,
    silence: Duration,
    /// The process that made it: a forked child must not touch it.
    generation: u32,
    calls: Calls,
    writer: Mutex<Writer>,
    /// Whether the writer has bytes that the socket did not take.
    unsent: AtomicBool,
    /// Where the reactor knows it by its number.
    reactor: &'static Reactor,
    number: u64,
    /// Whose other streams end with this one.
    peer: OnceLock<Weak<TcpPeer>>,
}

/// Puts frames on the wire one after the other.
struct Writer {
    last: u64,
    /// Whole frames, but perhaps for the first.
    rest: Vec<u8>,
    sent: usize,
    /// Memory of the last frame, for the next one.
    spare: Vec<u8>,
}

/// How a leader's turn ended.
enum Turn {
    /// Nothing more to read now.
    Quiet,
    /// The call that it leads for ended.
    Ended,
    Late,
}

impl Stream {
    /// Takes over a connection that was proved.
    ///
    /// # Errors
    /// `Io` when the process has no descriptor or thread left for the reactor.
    pub(super) fn new(socket: Socket, address: SocketAddr, silence: Duration) -> Result<Arc<Self>> {
        socket.be_patient(patience(silence)).map_err(|error| Error::io("connect", address.to_string(), error))?;
        let reactor = Reactor::current()?;
        let stream = Arc::new(Self {
            socket,
            address,
            silence,
            generation: crate::process::generation(),
            calls: Calls::new(),
            writer: Mutex::new(Writer { last: 0, rest: Vec::new(), sent: 0, spare: Vec::new() }),
            unsent: AtomicBool::new(false),
            reactor,
            number: reactor.number(),
            peer: OnceLock::new(),
        });
        reactor.add(stream.number, &stream.socket, &stream, patience(silence))?;
        stream.calls.lock().armed = IDLE;
        Ok(stream)
    }

    pub(super) fn belongs_to(&self, peer: Weak<TcpPeer>) {
        let _ = self.peer.set(peer);
    }

    pub(super) fn is_up(&self) -> bool {
        self.generation == crate::process::generation() && self.calls.lock().failed.is_none()
    }

    /// Asks; nothing waits here. The number of the call.
    pub(super) fn ask(&self, call: Call) -> Result<u64> {
        self.check_process()?;
        let mut writer = lock(&self.writer);
        let number = writer.last + 1;
        let spare = std::mem::take(&mut writer.spare);
        let frame = frame::encode_in(Kind::Ask, number, &call.head, &[], None, spare)?;
        if writer.waiting() > MOST_UNSENT {
            let context = format!("{} takes no more questions now; retry", self.address);
            return Err(Error::new(ErrorKind::Unavailable, "request", context));
        }
        {
            let mut state = self.calls.lock();
            if let Some(error) = &state.failed {
                // Whatever ended it, for this question it is a peer that is not there.
                let context = format!("{}: the connection ended: {}", self.address, error.context());
                return Err(Error::new(ErrorKind::PeerDown, "request", context));
            }
            state.insert(number, call.land);
        }
        writer.last = number;
        self.write(&mut writer, &frame);
        if frame.capacity() <= LONGEST_SPARE {
            writer.spare = frame;
        }
        drop(writer);
        failpoint!("fabric.asked");
        Ok(number)
    }

    /// Waits for a call.
    pub(super) fn wait(&self, number: u64, deadline: Option<Instant>) -> Result<Answer> {
        self.check_process()?;
        loop {
            let mut state = self.calls.lock();
            let result = state.take(number);
            let is_late = result.is_none() && deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if result.is_some() || is_late {
                state.leave(number);
                let wake = state.promote();
                self.arm(&mut state);
                drop(state);
                wake.now();
                return result.unwrap_or_else(|| Err(late(self.address)));
            }
            if let Some(reader) = state.reader.take() {
                state.leave(number);
                drop(state);
                let mut lead = Lead { stream: self, reader: Some(reader) };
                lead.run(Some(number), deadline);
                continue;
            }
            let former = state.follow(number);
            drop(state);
            drop(former);
            match deadline {
                None => std::thread::park(),
                Some(deadline) => std::thread::park_timeout(deadline.saturating_duration_since(Instant::now())),
            }
        }
    }

    /// Looks for the end of a call.
    pub(super) fn poll(&self, number: u64, cx: &mut Context<'_>) -> Poll<Result<Answer>> {
        if let Err(error) = self.check_process() {
            return Poll::Ready(Err(error));
        }
        if let Some(result) = self.calls.lock().take(number) {
            return Poll::Ready(result);
        }
        // A waker is foreign code: it is cloned and dropped outside of the lock.
        let waker = cx.waker().clone();
        let mut state = self.calls.lock();
        let (result, unused) = match state.take(number) {
            Some(result) => (Poll::Ready(result), Some(waker)),
            None => {
                let former = state.watch(number, waker);
                self.arm(&mut state);
                (Poll::Pending, former)
            }
        };
        drop(state);
        drop(unused);
        result
    }

    /// Gives up a call.
    pub(super) fn abandon(&self, number: u64) {
        if self.check_process().is_err() {
            return;
        }
        let mut state = self.calls.lock();
        let (unused, is_open) = state.abandon(number);
        let wake = state.promote();
        self.arm(&mut state);
        drop(state);
        drop(unused);
        wake.now();
        if is_open {
            let mut writer = lock(&self.writer);
            if let (Ok(frame), true) = (frame::Frame::bare(Kind::Abandon, number).encode(), writer.has_room()) {
                self.write(&mut writer, &frame);
            }
        }
    }

    /// Sends a frame behind those that wait.
    fn write(&self, writer: &mut Writer, frame: &[u8]) {
        let sent = if writer.waiting() > 0 { Ok(Moved::None) } else { self.socket.send(&[IoSlice::new(frame)]) };
        let sent = match sent {
            Ok(Moved::Bytes(bytes)) => bytes,
            Ok(Moved::None) => 0,
            // Whoever reads sees the end too; what the peer sent before it still counts.
            Err(_) => return self.socket.shutdown(),
        };
        if sent < frame.len() {
            writer.rest.extend_from_slice(&frame[sent..]);
            self.unsent.store(true, Relaxed);
            self.arm(&mut self.calls.lock());
        }
    }

    /// Sends what waits, as far as the socket takes it.
    fn flush(&self) {
        let mut writer = lock(&self.writer);
        while writer.waiting() > 0 {
            match self.socket.send(&[IoSlice::new(&writer.rest[writer.sent..])]) {
                Ok(Moved::Bytes(bytes)) => writer.sent += bytes,
                Ok(Moved::None) => return,
                Err(_) => return self.socket.shutdown(),
            }
        }
        writer.rest.clear();
        writer.sent = 0;
        self.unsent.store(false, Relaxed);
    }

    /// Ends the stream and its calls.
    pub(super) fn fail(&self, error: Error) {
        if self.generation != crate::process::generation() {
            return;
        }
        if self.calls.fail(error.clone()) {
            self.socket.shutdown();
            self.reactor.remove(self.number, &self.socket);
            if let Some(peer) = self.peer.get().and_then(Weak::upgrade) {
                peer.end(error);
            }
        }
    }

    fn check_process(&self) -> Result<()> {
        if self.generation == crate::process::generation() {
            return Ok(());
        }
        let context = "connections of the parent process are not this one's; open the store again after fork";
        Err(Error::new(ErrorKind::Forked, "request", context))
    }

    /// Reads until the call `number` ended, `until`, or, without a call, until there is nothing more.
    ///
    /// What ends the stream ends the call, too.
    fn lead(&self, reader: &mut Reader, number: Option<u64>, until: Option<Instant>) -> Turn {
        for turn in 0u32.. {
            if number.is_some_and(|number| self.calls.lock().has_ended(number)) {
                return Turn::Ended;
            }
            let now = Instant::now();
            if until.is_some_and(|until| now >= until) {
                return Turn::Late;
            }
            // What came while nobody looked is read before anybody is blamed for silence.
            let silent = self.calls.lock().silent_since(reader.heard) + self.silence;
            let end = until.map_or(silent, |until| until.min(silent));
            let mut patience = Patience::None;
            if number.is_some() {
                if end.saturating_duration_since(now) > self::patience(self.silence) {
                    patience = Patience::Some;
                } else if turn > 0 {
                    // What fails here fails again in the next line.
                    let _ = self.socket.wait(PollFlags::IN, end);
                }
            }
            match reader.receive(&self.socket, &self.calls, patience) {
                Ok(Moved::Bytes(_)) if number.is_none() && turn > FAIR => return Turn::Quiet,
                Ok(Moved::Bytes(_)) => {}
                Ok(Moved::None) => {
                    let is_owed = self.calls.lock().running() > 0;
                    if is_owed && now >= silent {
                        let context = format!("{} was silent for {:?}", self.address, self.silence);
                        self.fail(Error::new(ErrorKind::PeerDown, "request", context));
                        return Turn::Ended;
                    }
                    if number.is_none() {
                        return Turn::Quiet;
                    }
                }
                Err(broken) => {
                    self.fail(match broken {
                        Broken::Io(error) => down("request", self.address, error),
                        Broken::Frame(error) => {
                            let context = format!("{}: {}", self.address, error.context());
                            Error::new(error.kind(), "request", context)
                        }
                    });
                    return Turn::Ended;
                }
            }
        }
        Turn::Quiet
    }

    /// Lets go of what reads, and hands it on.
    fn step_down(&self, reader: Box<Reader>) {
        let mut state = self.calls.lock();
        if state.failed.is_some() {
            // With what is half landed.
            drop(state);
            return drop(reader);
        }
        state.reader = Some(reader);
        let wake = state.promote();
        self.arm(&mut state);
        drop(state);
        wake.now();
    }

    /// Sees to it that the reactor looks for what nobody else does.
    fn arm(&self, state: &mut State) {
        let mut wanted = EventFlags::empty();
        if state.reader.is_some() {
            wanted |= IDLE;
        }
        if state.needs_reactor() {
            wanted |= EventFlags::IN;
        }
        if self.unsent.load(Relaxed) {
            wanted |= EventFlags::OUT;
        }
        if state.failed.is_none()
            && !state.armed.contains(wanted)
            && self.reactor.arm(self.number, &self.socket, wanted)
        {
            state.armed = wanted;
        }
    }

    /// The reactor's turn: reads what is there when nobody else does, sends what waits.
    pub(super) fn turn(&self, is_event: bool) {
        if is_event {
            self.calls.lock().armed = EventFlags::empty();
        }
        if self.unsent.load(Relaxed) {
            self.flush();
        }
        let reader = {
            let mut state = self.calls.lock();
            // Between two looks at an idle connection there is nothing to do.
            let is_due = is_event || state.running() > 0;
            is_due.then(|| state.reader.take()).flatten()
        };
        match reader {
            Some(reader) => {
                let mut lead = Lead { stream: self, reader: Some(reader) };
                lead.run(None, None);
            }
            // Who reads arms it again afterwards, but for what waits to be sent.
            None if self.unsent.load(Relaxed) => self.arm(&mut self.calls.lock()),
            None => {}
        }
    }
}

/// The reader in use. It is handed on in any case; after a panic of what chooses memory the stream is beyond hope.
struct Lead<'a> {
    stream: &'a Stream,
    reader: Option<Box<Reader>>,
}

impl Lead<'_> {
    fn run(&mut self, number: Option<u64>, until: Option<Instant>) -> Turn {
        match &mut self.reader {
            Some(reader) => self.stream.lead(reader, number, until),
            None => Turn::Quiet,
        }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.stream.fail(Error::new(ErrorKind::PeerDown, "request", "a panic interrupted an answer"));
        }
        if let Some(reader) = self.reader.take() {
            self.stream.step_down(reader);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.fail(closed());
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream(to {})", self.address)
    }
}

impl Writer {
    /// Bytes that the socket did not take.
    fn waiting(&self) -> usize {
        self.rest.len() - self.sent
    }
}

impl Writer {
    fn has_room(&self) -> bool {
        self.waiting() <= MOST_UNSENT
    }
}

/// How long a read waits at most, so that silence is noticed not much later than it is due.
fn patience(silence: Duration) -> Duration {
    (silence / 16).max(Duration::from_millis(10))
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::PeerDown, "request", "the connection was closed by this process")
}

fn late(address: SocketAddr) -> Error {
    Error::new(
        ErrorKind::Timeout,
        "request",
        format!("{address} did not answer in time; it lives: retry, or wait longer"),
    )
}

/// What the reactor always waits for while nobody reads: the end.
const IDLE: EventFlags = EventFlags::RDHUP;

/// Bytes of questions that wait for the socket.
const MOST_UNSENT: usize = 4 << 20;

/// Bytes of memory that are kept for the next question.
const LONGEST_SPARE: usize = 1 << 10;

/// Reads of the reactor on one stream before it looks at others.
const FAIR: u32 = 64;
