//! `Connection`: one connection of the owner, and the answers on their way through it.

use std::collections::{HashSet, VecDeque};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::epoll::{self, EventData, EventFlags};
use smallvec::SmallVec;

use super::Options;
use super::frame::{self, Frame, Kind, Lengths};
use super::socket::{Moved, Socket};
use crate::fabric::handshake::Proven;
use crate::fabric::{Answers, Asked, Outgoing, Piece};
use crate::failpoint::failpoint;
use crate::sync::lock;

/// A requester, proved.
pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) address: Option<SocketAddr>,
    pub(super) proven: Proven,
    pub(super) number: u64,
    /// The worker's.
    epoll: Arc<OwnedFd>,
    options: Options,
    /// Bytes of answers that may wait on this stream.
    most_queued: u64,
    /// How often a requester that waits is told that this process lives.
    beat: Duration,
    out: Mutex<Out>,
}

/// What goes out.
struct Out {
    queue: VecDeque<Sending>,
    /// Memory of descriptions that were sent, for those to come.
    spare: Vec<Vec<u8>>,
    /// Bytes in it.
    queued: u64,
    /// Questions that are not answered yet.
    held: HashSet<u64>,
    /// When bytes last went out, or the queue got its first.
    moved: Instant,
    /// What the worker waits for.
    armed: EventFlags,
    closed: bool,
}

/// A frame, as far as it is not sent.
struct Sending {
    description: Vec<u8>,
    /// A part and what fills its last line take no memory of their own. Nothing where one is sent.
    parts: SmallVec<[Option<Piece>; 2]>,
    /// How many of them are sent.
    at: usize,
    /// Sent bytes of the description, or, when that is sent, of the first part that is not.
    sent: usize,
    /// Whether the description is sent.
    is_described: bool,
}

/// Parts that were sent, to be dropped outside of the lock.
type Done = SmallVec<[Piece; 4]>;

/// What a connection wants of its worker after it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// More answers wait than its requester may leave unread.
    Full,
    Closed,
}

impl Connection {
    pub(super) fn new(socket: Socket, proven: Proven, number: u64, epoll: Arc<OwnedFd>, options: &Options) -> Self {
        let silence = proven.stream.silence.max(super::LEAST_SILENCE).min(options.silence);
        Self {
            address: socket.peer(),
            socket,
            proven,
            number,
            epoll,
            // A requester has as many streams, as far as is known here.
            most_queued: options.queued / options.lanes.max(1) as u64,
            options: options.clone(),
            beat: silence / 8,
            out: Mutex::new(Out {
                queue: VecDeque::new(),
                spare: Vec::new(),
                queued: 0,
                held: HashSet::new(),
                moved: Instant::now(),
                armed: READING,
                closed: false,
            }),
        }
    }

    /// Begins to be watched by its worker.
    pub(super) fn watch(&self) -> rustix::io::Result<()> {
        epoll::add(&*self.epoll, &self.socket, EventData::new_u64(self.number), READING)
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        lock(&self.out)
    }

    pub(super) fn state(&self) -> State {
        let out = self.lock();
        match out.closed {
            true => State::Closed,
            false if out.queued > self.most_queued => State::Full,
            false => State::Open,
        }
    }

    /// How often to look at it.
    pub(super) fn tick(&self) -> Duration {
        self.beat.max(Duration::from_millis(10))
    }

    /// Notes a question, whose number is new; whether it may be answered.
    pub(super) fn hold(&self, number: u64) -> bool {
        let mut out = self.lock();
        if out.held.len() >= self.options.held {
            let refusal = Sending::bare(Kind::Refusal, number);
            self.push(out, refusal);
            return false;
        }
        out.held.insert(number)
    }

    /// The requester does not wait any more: its answer is dropped when it comes.
    pub(super) fn abandon(&self, number: u64) {
        let mut out = self.lock();
        if out.held.remove(&number) {
            // So that the requester can forget the question, too.
            self.push(out, Sending::bare(Kind::Refusal, number));
        }
    }

    fn answer(&self, number: u64, reply: Option<Outgoing>) {
        let spare = self.lock().spare.pop().unwrap_or_default();
        let sending = reply.and_then(|Outgoing { head, parts }| {
            let lengths: Lengths = parts.iter().map(|part| part.len() as u64).collect();
            let checksums: Option<Vec<u32>> =
                self.options.checksums.then(|| parts.iter().map(|part| crc32fast::hash(part)).collect());
            let sums = checksums.as_deref();
            let description = frame::encode_in(Kind::Answer, number, &head, &lengths, sums, spare).ok()?;
            let mut parts: SmallVec<_> = parts.into_iter().map(Some).collect();
            let zeros = frame::padding(lengths.iter().sum());
            if zeros > 0 {
                parts.push(Some(Bytes::from_static(&ZEROS[..zeros]).into()));
            }
            Some(Sending { description, parts, at: 0, sent: 0, is_described: false })
        });
        // An answer that is too long is none: it is the service's mistake, and must not end all others.
        let sending = sending.unwrap_or_else(|| Sending::bare(Kind::Refusal, number));
        let mut out = self.lock();
        if !out.closed && out.held.remove(&number) {
            self.push(out, sending);
        } else {
            drop(out);
            // Foreign memory is released outside of the lock.
            drop(sending);
        }
    }

    /// Queues a frame, and sends it at once where it is the first.
    fn push(&self, mut out: MutexGuard<'_, Out>, sending: Sending) {
        if out.closed {
            drop(out);
            return drop(sending);
        }
        let is_first = out.queue.is_empty();
        out.queued += sending.left();
        out.queue.push_back(sending);
        if is_first {
            out.moved = Instant::now();
            self.send(out);
        }
    }

    /// Goes on sending; the worker's, when the socket has room again.
    pub(super) fn flush(&self) {
        self.send(self.lock());
    }

    /// Sends until the queue is empty, the socket full, or others deserve a turn.
    fn send(&self, mut out: MutexGuard<'_, Out>) {
        let mut done = Done::new();
        for _ in 0..FAIR {
            if out.queue.is_empty() || out.closed {
                break;
            }
            let mut slices = [IoSlice::new(&[]); PLACES];
            let mut count = 0;
            for sending in &out.queue {
                count += sending.slices(&mut slices[count..]);
                if count == PLACES {
                    break;
                }
            }
            let moved = self.socket.send(&slices[..count]);
            match moved {
                Ok(Moved::Bytes(bytes)) => {
                    out.moved = Instant::now();
                    out.advance(bytes, &mut done);
                    if !out.queue.is_empty() {
                        failpoint!("fabric.answer.half");
                    }
                }
                Ok(Moved::None) => break,
                Err(_) => out.close(&self.socket, &mut done),
            }
        }
        if !out.closed {
            let mut wanted = EventFlags::RDHUP;
            if out.queued <= self.most_queued {
                wanted |= EventFlags::IN;
            }
            if !out.queue.is_empty() {
                wanted |= EventFlags::OUT;
            }
            if wanted != out.armed {
                out.armed = wanted;
                let data = EventData::new_u64(self.number);
                if epoll::modify(&*self.epoll, &self.socket, data, wanted).is_err() {
                    out.close(&self.socket, &mut done);
                }
            }
        }
        drop(out);
        // Pins end here, outside of the lock.
        drop(done);
    }

    /// Looks whether the requester reads what it asked for, and tells it that this process lives. `false` ends it.
    pub(super) fn look(&self, now: Instant) -> bool {
        let out = self.lock();
        if out.closed {
            return false;
        }
        let still = now.saturating_duration_since(out.moved);
        if !out.queue.is_empty() {
            return still < self.options.silence;
        }
        if !out.held.is_empty() && still >= self.beat {
            self.push(out, Sending::bare(Kind::Beat, 0));
        }
        true
    }

    /// Ends it; what was on its way is released.
    pub(super) fn close(&self) {
        let mut done = Done::new();
        let mut out = self.lock();
        if !out.closed {
            out.close(&self.socket, &mut done);
        }
        // Before the descriptor is closed: a forked child may hold the connection open.
        let _ = epoll::delete(&*self.epoll, &self.socket);
        drop(out);
        drop(done);
    }
}

impl Out {
    /// Takes `bytes` from the front of the queue.
    fn advance(&mut self, bytes: usize, done: &mut Done) {
        self.queued -= bytes as u64;
        let mut left = bytes;
        while let Some(sending) = self.queue.front_mut() {
            left -= sending.advance(left, done);
            if !sending.is_done() {
                break;
            }
            let description = self.queue.pop_front().map(|sent| sent.description).unwrap_or_default();
            if self.spare.len() < MOST_SPARE && description.capacity() <= LONGEST_SPARE {
                self.spare.push(description);
            }
            failpoint!("fabric.answer.sent");
        }
    }

    fn close(&mut self, socket: &Socket, done: &mut Done) {
        self.closed = true;
        self.held.clear();
        self.queued = 0;
        done.extend(self.queue.drain(..).flat_map(|sending| sending.parts.into_iter().flatten()));
        socket.shutdown();
    }
}

impl Sending {
    fn bare(kind: Kind, number: u64) -> Self {
        // A bare frame is within all bounds.
        let description = Frame::bare(kind, number).encode().unwrap_or_default();
        Self { description, parts: SmallVec::new(), at: 0, sent: 0, is_described: false }
    }

    /// Bytes that are not sent.
    fn left(&self) -> u64 {
        let parts: usize = self.parts.iter().flatten().map(|part| part.len()).sum();
        (self.described() + parts - self.sent) as u64
    }

    /// Bytes of the description, where it is not sent.
    fn described(&self) -> usize {
        match self.is_described {
            true => 0,
            false => self.description.len(),
        }
    }

    fn is_done(&self) -> bool {
        self.is_described && self.at == self.parts.len()
    }

    /// Where they are, as far as there are places.
    fn slices<'a>(&'a self, places: &mut [IoSlice<'a>]) -> usize {
        let description = &self.description[..self.described()];
        let pieces = std::iter::once(description).chain(self.parts.iter().flatten().map(|part| &part[..]));
        let mut skip = self.sent;
        let mut count = 0;
        for piece in pieces {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            if skipped == piece.len() {
                continue;
            }
            match places.get_mut(count) {
                Some(place) => *place = IoSlice::new(&piece[skipped..]),
                None => break,
            }
            count += 1;
        }
        count
    }

    /// Notes that up to `bytes` of it were sent; how many.
    fn advance(&mut self, bytes: usize, done: &mut Done) -> usize {
        let mut left = bytes;
        if !self.is_described {
            let own = self.description.len();
            let now = left.min(own - self.sent);
            self.sent += now;
            left -= now;
            if self.sent < own {
                return bytes - left;
            }
            self.is_described = true;
            self.sent = 0;
        }
        while let Some(Some(part)) = self.parts.get(self.at) {
            let now = left.min(part.len() - self.sent);
            self.sent += now;
            left -= now;
            if self.sent < part.len() {
                break;
            }
            self.sent = 0;
            done.extend(self.parts[self.at].take());
            self.at += 1;
        }
        bytes - left
    }
}

impl Answers for Connection {
    fn respond(&self, asked: Asked, reply: Option<Outgoing>) {
        self.answer(asked.number, reply);
    }

    fn is_wanted(&self, asked: Asked) -> bool {
        self.lock().held.contains(&asked.number)
    }
}

/// What the worker of a connection waits for when nothing is to be sent.
const READING: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);

/// What frames end with.
static ZEROS: [u8; 64] = [0; 64];

/// Descriptions whose memory is kept for others, and how much that is of each at most, in bytes.
const MOST_SPARE: usize = 16;
const LONGEST_SPARE: usize = 1 << 10;

/// Pieces of memory in one system call.
const PLACES: usize = 128;

/// System calls for one connection before others have their turn.
const FAIR: usize = 16;
