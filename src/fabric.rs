//! `Fabric`: the contract between the distributed connector and whatever moves bytes between nodes.
//!
//! ```text
//!   requester                                                     owner
//!   Peer::request(Call { head, land }) ── head ─────────────────> Service::answer(Incoming { head, responder })
//!                                                                 ... looks up, pins ...
//!   Land::land(head, lengths) <── head, lengths of parts ──────── Responder::reply(head, parts)
//!     chooses registered memory of its own
//!   Landing, Landing, ... <══ parts, from pinned memory ═════════ dropped when the last byte is on its way
//!   Pending<Answer> ends
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};
use crate::pending::Pending;
use crate::region::View;

#[cfg(any(feature = "margo", feature = "ucx"))]
#[expect(unsafe_code, reason = "descriptors are duplicated by their numbers")]
mod descriptor;
pub(crate) mod handshake;
#[expect(unsafe_code, reason = "several transfers write to disjoint parts of one reservation")]
mod landing;
#[cfg(feature = "margo")]
pub(crate) mod margo;
mod poller;
pub(crate) mod tcp;
#[cfg(feature = "ucx")]
pub(crate) mod ucx;

#[cfg(test)]
pub(crate) mod conformance;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
pub(crate) mod fault;

#[doc(hidden)]
pub use handshake::check_handshake;
pub(crate) use landing::{Landing, Parts};
#[cfg(feature = "margo")]
#[doc(hidden)]
pub use margo::check_margo;
pub(crate) use poller::after;
#[doc(hidden)]
pub use tcp::check_frames;
#[cfg(feature = "ucx")]
#[doc(hidden)]
pub use ucx::check_messages;

/// A way to move bytes between nodes.
///
/// # Contract
/// * **The requester pulls.** Bytes of a reply are written only to memory that the requester's own [`Land`] chose for that
///   reply, and by the requester's own process or adapter: no peer ever holds the right to write.
/// * **Operations own their memory.** A landing and a part of a reply belong to the operation until the mechanism is done with
///   them, also when the caller stopped waiting: nothing is freed or reused early.
/// * **All or nothing.** A request ends in a whole answer or in an error. Bytes that did land without the rest are not shown.
/// * **Heads arrive whole or not at all.** A head with a flipped bit is another question: where the mechanism does not check, the
///   fabric does, and the connection ends.
/// * **Everything ends.** A request whose peer shows no sign of life for the silence limit ends in `PeerDown`, and so do all
///   others on the same connection; the caller's own deadline ends it earlier, in `Timeout`. An answer may be held back
///   for as long as the owner's process shows that it lives.
/// * **At most once.** A request is answered by one call of [`Service::answer`] at most. A request that ended in an error may
///   have been answered or not: what is not idempotent has a number of its own in its head.
/// * **Strangers stay out.** Before the mutual proof of the job's secret nothing is allocated in proportion to what a peer
///   says, and no head or address reaches the mechanism's library or a [`Service`].
/// * **Threads.** All methods may be called from any number of threads.
pub(crate) trait Fabric: Send + Sync + fmt::Debug + 'static {
    /// Its scheme in URLs.
    fn scheme(&self) -> &'static str;

    /// Makes memory known from which parts will be sent and in which answers will land, before any of it is used; it may grow.
    ///
    /// # Cost
    /// Nothing here. Each segment is registered when it is first met: 0.1 s a GiB on adapters that pin.
    fn register(&self, memory: Arc<dyn Segments>) {
        let _ = memory;
    }

    /// Begins to answer peers at the first of `addresses` that is free, each of which names one interface.
    ///
    /// Dropping the listener ends it: connections are closed, held answers become errors at their requesters.
    ///
    /// # Errors
    /// `Unavailable` when none is free, naming them; `Io`.
    #[allow(dead_code, reason = "a node answers over all fabrics at one port; a fabric alone does in tests")]
    fn listen(&self, addresses: &[SocketAddr], service: Arc<dyn Service>) -> Result<Box<dyn Listener>>;

    /// Reaches the peer at `contact` and proves the job's secret, both ways.
    ///
    /// Blocks until `deadline`; what is retried within it is the mechanism's affair.
    ///
    /// # Errors
    /// `PeerDown` when nobody is there, `Timeout`, `Unauthorized` when either side does not have the secret,
    /// `Incompatible` for another version.
    fn connect(&self, contact: SocketAddr, deadline: Instant) -> Result<Arc<dyn Peer>>;
}

/// An end of a connection, at the requester.
pub(crate) trait Peer: Send + Sync + fmt::Debug + 'static {
    /// Number of the owner's memory, as it proved: keys with another one are stale.
    fn instance(&self) -> u64;

    /// Whether requests may still succeed; false for ever after it was false once.
    fn is_up(&self) -> bool;

    /// Whether it can go, asked by who does not mean to use it, which [`is_up`](Self::is_up) may count as a use.
    fn is_over(&self) -> bool {
        !self.is_up()
    }

    /// How many requests move their bytes side by side faster than one after another: parts of large objects are spread so.
    fn lanes(&self) -> usize {
        1
    }

    /// Asks, and lands the answer.
    ///
    /// # Cost
    /// One round trip. The waiting thread drives it: no hop to another thread.
    ///
    /// # Errors
    /// `PeerDown`, `Timeout` at the deadline of the `Pending`, `Corrupt` for frames that make no sense, `Cancelled` when the
    /// owner dropped the question, and whatever `land` returned.
    ///
    /// # Cancel safety
    /// Dropping the `Pending` abandons the answer; its landing is released when no byte can come any more.
    fn request(self: Arc<Self>, call: Call) -> Pending<Answer>;

    /// Ends the connection; open requests end in `PeerDown`.
    fn close(&self);

    /// Whether memory of the owner can be read by an adapter, or the kernel, without its process.
    fn reads(&self) -> bool {
        false
    }

    /// Reads what is at `spot` by now, which nobody pins: it may be another object's, or of two.
    ///
    /// Blocks until `deadline`. What fails once is not tried again on this connection: [`reads`](Self::reads) says so.
    ///
    /// # Errors
    /// `Unavailable` where it cannot be read so, and the owner has to be asked; its kind tells no more.
    fn read(&self, spot: Spot, into: Landing, deadline: Instant) -> Result<Landing> {
        let _ = (spot, into, deadline);
        Err(Error::new(ErrorKind::Unavailable, "get", "the fabric reads no memory of others"))
    }
}

/// A place in an owner's memory, as keys name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Number of the segment.
    pub(crate) segment: u16,
    /// Bytes from its beginning.
    pub(crate) offset: u64,
}

/// Where a fabric answers.
pub(crate) trait Listener: Send + Sync + fmt::Debug {
    /// The address that peers connect to.
    fn contact(&self) -> SocketAddr;
}

/// Who answers.
pub(crate) trait Service: Send + Sync + 'static {
    /// Answers a call now, or later from any thread, by its responder. Must not block.
    fn answer(&self, call: Incoming<'_>);

    /// A connection has ended: what is kept for it can go. Must not block.
    fn gone(&self, connection: u64) {
        let _ = connection;
    }
}

/// What is asked or answered, beside bytes of objects; that about one object takes no memory of its own.
pub(crate) type Head = SmallVec<[u8; 64]>;

/// Where the parts of an answer go; one takes no memory of its own.
pub(crate) type Landings = SmallVec<[Landing; 1]>;

/// A question.
pub(crate) struct Call {
    /// What is asked, at most [`MAX_HEAD`] bytes; the fabric does not look into it.
    pub(crate) head: Head,
    /// Chooses where the bytes of the answer go.
    pub(crate) land: Lander,
    /// Calls of different lanes may go over different streams; any number is allowed.
    pub(crate) lane: usize,
}

impl Call {
    /// A question whose answer has no parts.
    pub(crate) fn small(head: impl Into<Head>) -> Self {
        Self { head: head.into(), land: Lander::Nothing, lane: 0 }
    }
}

/// Who chooses where the bytes of an answer go; only one who knows of several objects takes memory of its own.
pub(crate) enum Lander {
    /// There are none.
    Nothing,
    One(One),
    Other(Box<dyn Land>),
}

/// Lands the only part of an answer.
pub(crate) struct One {
    landing: Option<Landing>,
    spot: Option<Spot>,
    /// Whether an answer with this head has a part.
    has_part: fn(&[u8]) -> Result<bool>,
}

impl One {
    /// A landing for the part that is at `spot`, as far as is known.
    pub(crate) fn new(landing: Landing, spot: Option<Spot>, has_part: fn(&[u8]) -> Result<bool>) -> Self {
        Self { landing: Some(landing), spot, has_part }
    }

    fn land(&mut self, head: &[u8], parts: &[u64]) -> Result<Landings> {
        match ((self.has_part)(head)?, parts, self.landing.take()) {
            (true, [len], Some(landing)) if *len == landing.len() as u64 => Ok(SmallVec::from_buf([landing])),
            (false, [], _) => Ok(Landings::new()),
            _ => Err(Error::new(ErrorKind::Corrupt, "get", "an answer's bytes are not those that were asked for")),
        }
    }
}

impl Lander {
    /// As [`Land::land`].
    pub(crate) fn land(&mut self, head: &[u8], parts: &[u64]) -> Result<Landings> {
        match (self, parts) {
            (Self::Nothing, []) => Ok(Landings::new()),
            (Self::Nothing, _) => {
                Err(Error::new(ErrorKind::Corrupt, "get", "an answer has bytes that nobody asked for"))
            }
            (Self::One(one), _) => one.land(head, parts),
            (Self::Other(land), _) => Ok(land.land(head, parts)?.into()),
        }
    }

    /// As [`Land::likely`].
    #[cfg_attr(not(feature = "margo"), allow(dead_code, reason = "for fabrics whose requesters pull"))]
    pub(crate) fn likely(&self) -> Option<Spot> {
        match self {
            Self::Nothing => None,
            Self::One(one) => one.spot,
            Self::Other(land) => land.likely(),
        }
    }

    /// As [`Land::lend`].
    #[cfg_attr(not(feature = "margo"), allow(dead_code, reason = "for fabrics whose requesters pull"))]
    pub(crate) fn lend(&mut self) -> Option<Landing> {
        match self {
            Self::Nothing => None,
            Self::One(one) => one.landing.take(),
            Self::Other(land) => land.lend(),
        }
    }

    /// As [`Land::give_back`].
    #[cfg_attr(not(feature = "margo"), allow(dead_code, reason = "for fabrics whose requesters pull"))]
    pub(crate) fn give_back(&mut self, landing: Landing) {
        match self {
            Self::Nothing => drop(landing),
            Self::One(one) => one.landing = Some(landing),
            Self::Other(land) => land.give_back(landing),
        }
    }
}

impl<L: Land> From<Box<L>> for Lander {
    fn from(land: Box<L>) -> Self {
        Self::Other(land)
    }
}

/// Chooses where the bytes of an answer go.
pub(crate) trait Land: Send + 'static {
    /// Memory for each part of the reply, of exactly its length; called at most once, before any byte of a part is moved, on
    /// whichever thread read the head. Must not wait for another request.
    ///
    /// # Errors
    /// End the request, and the bytes are thrown away.
    fn land(&mut self, head: &[u8], parts: &[u64]) -> Result<Vec<Landing>>;

    /// Where the only part of the reply is at its owner, as far as the caller knows. A fabric may pull it from there while the
    /// question is on its way, into what [`lend`](Self::lend) gives, if all answers that name that place are about the same bytes.
    #[cfg_attr(not(feature = "margo"), allow(dead_code, reason = "for fabrics whose requesters pull"))]
    fn likely(&self) -> Option<Spot> {
        None
    }

    /// The landing of the part at the likely place, once.
    #[cfg_attr(not(feature = "margo"), allow(dead_code, reason = "for fabrics whose requesters pull"))]
    fn lend(&mut self) -> Option<Landing> {
        None
    }

    /// Takes it back, full, before [`land`](Self::land), which gives it then.
    #[cfg_attr(not(feature = "margo"), allow(dead_code, reason = "for fabrics whose requesters pull"))]
    fn give_back(&mut self, landing: Landing) {
        drop(landing);
    }
}

/// An answer that came whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    /// What [`Land::land`] chose, written to the last byte.
    pub(crate) parts: Landings,
}

/// A question, at the owner.
pub(crate) struct Incoming<'a> {
    pub(crate) head: &'a [u8],
    /// Number of the requester's memory, as it proved.
    pub(crate) from: u64,
    /// Number of the connection on which it came, among those of its listener.
    pub(crate) connection: u64,
    pub(crate) responder: Responder,
}

/// The duty to answer one question; dropping it refuses.
pub(crate) struct Responder(Duty);

enum Duty {
    Done,
    Own(Box<dyn Respond>),
    Among(Arc<dyn Answers>, Asked),
}

/// A question among those of a listener, as its fabric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    pub(crate) connection: u64,
    pub(crate) number: u64,
}

/// What a fabric does to answer.
pub(crate) trait Respond: Send + Sync {
    /// Sends the answer, or, for `None`, that there is none.
    fn respond(self: Box<Self>, reply: Option<Outgoing>);

    /// Whether anybody still waits for it, as far as is known here.
    fn is_wanted(&self) -> bool;
}

/// What a fabric does to answer many questions, none of which takes memory of its own.
pub(crate) trait Answers: Send + Sync {
    /// As [`Respond::respond`], once a question.
    fn respond(&self, asked: Asked, reply: Option<Outgoing>);

    /// As [`Respond::is_wanted`].
    fn is_wanted(&self, asked: Asked) -> bool;
}

/// An answer on its way.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// At most [`MAX_HEAD`] bytes.
    pub(crate) head: Head,
    /// At most [`MAX_PARTS`] pieces of pinned, registered memory; dropped when the mechanism is done with them.
    pub(crate) parts: Pieces,
}

/// Parts of an answer on their way; one takes no memory of its own.
pub(crate) type Pieces = SmallVec<[Piece; 1]>;

/// Bytes of an answer, and what keeps them.
pub(crate) enum Piece {
    View(View),
    Bytes(Bytes),
}

impl Outgoing {
    /// Head and parts, for mechanisms that share bytes.
    ///
    /// # Cost
    /// A small allocation for each part.
    #[cfg_attr(not(any(test, feature = "margo")), allow(dead_code, reason = "for fabrics that share bytes"))]
    pub(crate) fn into_bytes(self) -> (Vec<u8>, Vec<Bytes>) {
        (self.head.into_vec(), self.parts.into_iter().map(Bytes::from).collect())
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::View(view) => view,
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<View> for Piece {
    fn from(view: View) -> Self {
        Self::View(view)
    }
}

impl From<Piece> for Bytes {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::View(view) => Self::from_owner(view),
            Piece::Bytes(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Piece({} B)", self.len())
    }
}

impl Responder {
    #[cfg_attr(not(any(test, feature = "margo")), allow(dead_code, reason = "for fabrics that answer by boxes"))]
    pub(crate) fn new(respond: Box<dyn Respond>) -> Self {
        Self(Duty::Own(respond))
    }

    /// The duty to answer one of many questions.
    pub(crate) fn among(answers: Arc<dyn Answers>, asked: Asked) -> Self {
        Self(Duty::Among(answers, asked))
    }

    /// Answers.
    pub(crate) fn reply(self, head: impl Into<Head>, parts: Vec<Bytes>) {
        self.send(head.into(), parts.into_iter().map(Piece::Bytes).collect());
    }

    /// Answers with pieces that nobody shares.
    pub(crate) fn send(mut self, head: Head, parts: Pieces) {
        self.end(Some(Outgoing { head, parts }));
    }

    fn end(&mut self, reply: Option<Outgoing>) {
        match std::mem::replace(&mut self.0, Duty::Done) {
            Duty::Done => {}
            Duty::Own(respond) => respond.respond(reply),
            Duty::Among(answers, asked) => answers.respond(asked, reply),
        }
    }

    /// Whether anybody still waits for the answer, as far as is known here.
    pub(crate) fn is_wanted(&self) -> bool {
        match &self.0 {
            Duty::Done => false,
            Duty::Own(respond) => respond.is_wanted(),
            Duty::Among(answers, asked) => answers.is_wanted(*asked),
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.end(None);
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Responder")
    }
}

/// Memory in segments that stay where they are as long as this lives.
#[allow(dead_code, reason = "for fabrics over adapters, which register memory; tcp has nothing to register")]
pub(crate) trait Segments: Send + Sync + 'static {
    /// The segment in which an address lies, of either mapping.
    fn segment_of(&self, address: usize) -> Option<Segment>;

    /// The segment of a number, as in a [`Spot`]; it holds bytes of objects and nothing else.
    fn numbered(&self, number: u16) -> Option<Segment> {
        let _ = number;
        None
    }
}

/// A segment, mapped twice.
#[allow(dead_code, reason = "for fabrics over adapters, which register memory; tcp has nothing to register")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Addresses at which it can be written, for a mechanism that hands them to its library: landings lie here.
    pub(crate) addresses: Range<usize>,
    /// First address of the same memory as it is viewed, where it can only be read: parts of answers lie here.
    pub(crate) views: Option<usize>,
}

/// Longest head of a question or an answer, in bytes.
pub(crate) const MAX_HEAD: usize = 64 << 10;

/// Most parts of an answer.
pub(crate) const MAX_PARTS: usize = 4096;
