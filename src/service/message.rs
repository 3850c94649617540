//! What clients and node service say to each other.
//!
//! Every message is one packet: a version byte, an operation, a request number, then fields, all little-endian and of fixed
//! width. Descriptors travel beside the packet, in the order that the message says. Decoding is strict: a packet decodes to
//! a message only if that message encodes to the same packet. It never panics, and allocates in proportion to the packet.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::wire::{MAX_FDS, MAX_PACKET};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Reader;

/// Version of the protocol, in a byte that text and zeroed memory do not begin with.
const VERSION: u8 = 0xb1;

/// Most segments in one message: with `ctl`, their descriptors fill a packet.
pub(crate) const MAX_SEGMENTS: usize = MAX_FDS - 1;

/// Most slots in one message; longer lists are sent in parts.
pub(crate) const MAX_SLOTS: usize = (MAX_PACKET - HEADER - 2 - 4) / 4;

/// Longest text of a refusal, in bytes; encoding cuts it.
const MAX_TEXT: usize = 4096;

/// Version, operation and request number.
const HEADER: usize = 1 + 1 + 8;

/// A segment of objects: its number, and its length in bytes.
pub(crate) type SegmentEntry = (u16, u64);

/// From a client to the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The first message. A client that was attached before gives its tag and what it holds: `ctl`, then the segments in
    /// order, are attached.
    Hello { layout: u64, reattach: Option<u64>, segments: Vec<SegmentEntry> },
    /// Wants `count` cells of a class; `urgent` when somebody waits for them, `again` when they may have been granted and the
    /// answer was lost with its connection.
    Lease { id: u64, class: u16, count: u32, urgent: bool, again: bool },
    /// Gives back leases that were not used.
    Return { slots: Vec<u32> },
    /// Names evicted objects, whose memory may be reclaimed when nobody pins them.
    Dying { slots: Vec<u32> },
    /// Wants one more page of pin cells.
    Pins { id: u64 },
    /// Wants the figures of the service.
    Stats { id: u64 },
    /// Wants free memory to go back to the system.
    Collect { id: u64 },
    /// Ends in order: all leases are given back.
    Bye,
    /// Wants other nodes to be answered, if they are not yet, and to know where.
    Export { id: u64 },
}

/// From the service to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Answers `Hello`; `ctl`, then the segments in order, are attached.
    Welcome {
        tag: u64,
        index: u32,
        instance: u64,
        ctl_len: u64,
        pin_page: u32,
        segments: Vec<SegmentEntry>,
        /// The process that hosts.
        host: u32,
    },
    /// Answers a request that failed; `id` 0 refuses `Hello`.
    Refused {
        id: u64,
        /// See [`kind_code`].
        kind: u8,
        text: String,
    },
    /// Announces a segment, whose descriptor is attached, before any lease in it.
    Segment { index: u16, len: u64 },
    /// Answers `Lease`, perhaps with fewer than were asked for.
    Leased { id: u64, class: u16, slots: Vec<u32> },
    /// Answers `Pins`.
    Page { id: u64, page: u32 },
    /// Asks for leases that are not used.
    Recall,
    /// Answers `Stats`: a memfd with the bytes of [`ServiceStats`](super::stats::ServiceStats) is
    /// attached.
    Stats { id: u64 },
    /// Answers `Collect`.
    Collected { id: u64, bytes: u64 },
    /// The host ends soon: another may take over then.
    Draining,
    /// Answers `Export`.
    Exported { id: u64, contact: SocketAddr },
}

/// Between the service of `proxystore serve` and its supervisor, both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The `ctl` segment, attached.
    Ctl { instance: u64, len: u64 },
    /// A segment of objects, attached.
    Segment { index: u16, len: u64 },
    /// To the service: that was all. From it: it listens.
    Ready,
    /// To the service: end in order.
    Drain,
}

impl Request {
    /// The operation that a user knows it as.
    pub(crate) fn op(&self) -> &'static str {
        match self {
            Self::Hello { .. } | Self::Bye | Self::Export { .. } => "open",
            Self::Lease { .. } | Self::Return { .. } => "reserve",
            Self::Dying { .. } => "evict",
            Self::Pins { .. } => "get",
            Self::Stats { .. } => "stat",
            Self::Collect { .. } => "gc",
        }
    }

    /// Writes the packet into `out`, whose old content goes.
    ///
    /// # Errors
    /// `TooLarge` for lists beyond [`MAX_SLOTS`] or [`MAX_SEGMENTS`].
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Hello { layout, reattach, segments } => Writer::new(out, 0x01, 0)
                .u64(*layout)
                .bool(reattach.is_some())
                .u64(reattach.unwrap_or(0))
                .segments(segments)?,
            Self::Lease { id, class, count, urgent, again } => {
                Writer::new(out, 0x02, *id).u16(*class).u32(*count).bool(*urgent).bool(*again)
            }
            Self::Return { slots } => Writer::new(out, 0x03, 0).slots(slots)?,
            Self::Dying { slots } => Writer::new(out, 0x04, 0).slots(slots)?,
            Self::Pins { id } => Writer::new(out, 0x05, *id),
            Self::Stats { id } => Writer::new(out, 0x06, *id),
            Self::Collect { id } => Writer::new(out, 0x07, *id),
            Self::Bye => Writer::new(out, 0x08, 0),
            Self::Export { id } => Writer::new(out, 0x09, *id),
        };
        Ok(())
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// `Invalid` for anything that [`encode`](Self::encode) does not write.
    pub(crate) fn decode(packet: &[u8]) -> Result<Self> {
        let mut input = Input::new(packet, "request")?;
        let id = input.id;
        let request = match input.op {
            0x01 => {
                let (layout, is_known, tag) = (input.u64()?, input.bool()?, input.u64()?);
                if !is_known && tag != 0 {
                    return Err(invalid("request of a new client that gives a tag"));
                }
                let reattach = is_known.then_some(tag);
                Self::Hello { layout, reattach, segments: input.segments()? }
            }
            0x02 => Self::Lease {
                id,
                class: input.u16()?,
                count: input.u32()?,
                urgent: input.bool()?,
                again: input.bool()?,
            },
            0x03 => Self::Return { slots: input.slots()? },
            0x04 => Self::Dying { slots: input.slots()? },
            0x05 => Self::Pins { id },
            0x06 => Self::Stats { id },
            0x07 => Self::Collect { id },
            0x08 => Self::Bye,
            0x09 => Self::Export { id },
            op => return Err(unknown("request", op)),
        };
        let numbered = matches!(input.op, 0x02 | 0x05..=0x07 | 0x09);
        input.finish(numbered)?;
        Ok(request)
    }

    /// How many descriptors belong to it.
    pub(crate) fn descriptors(&self) -> usize {
        match self {
            Self::Hello { reattach: Some(_), segments, .. } => 1 + segments.len(),
            _ => 0,
        }
    }
}

impl Reply {
    /// Writes the packet into `out`, whose old content goes.
    ///
    /// # Errors
    /// As [`Request::encode`].
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Welcome { tag, index, instance, ctl_len, pin_page, segments, host } => Writer::new(out, 0x81, 0)
                .u64(*tag)
                .u32(*index)
                .u64(*instance)
                .u64(*ctl_len)
                .u32(*pin_page)
                .u32(*host)
                .segments(segments)?,
            Self::Refused { id, kind, text } => Writer::new(out, 0x82, *id).u8(*kind).text(text),
            Self::Segment { index, len } => Writer::new(out, 0x83, 0).u16(*index).u64(*len),
            Self::Leased { id, class, slots } => Writer::new(out, 0x84, *id).u16(*class).slots(slots)?,
            Self::Page { id, page } => Writer::new(out, 0x85, *id).u32(*page),
            Self::Recall => Writer::new(out, 0x86, 0),
            Self::Stats { id } => Writer::new(out, 0x87, *id),
            Self::Collected { id, bytes } => Writer::new(out, 0x88, *id).u64(*bytes),
            Self::Draining => Writer::new(out, 0x89, 0),
            Self::Exported { id, contact } => Writer::new(out, 0x8a, *id).contact(contact),
        };
        Ok(())
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// `Invalid` for anything that [`encode`](Self::encode) does not write.
    pub(crate) fn decode(packet: &[u8]) -> Result<Self> {
        let mut input = Input::new(packet, "reply")?;
        let id = input.id;
        let reply = match input.op {
            0x81 => {
                let (tag, index, instance) = (input.u64()?, input.u32()?, input.u64()?);
                let (ctl_len, pin_page, host) = (input.u64()?, input.u32()?, input.u32()?);
                Self::Welcome { tag, index, instance, ctl_len, pin_page, segments: input.segments()?, host }
            }
            0x82 => Self::Refused { id, kind: input.u8()?, text: input.text()? },
            0x83 => Self::Segment { index: input.u16()?, len: input.u64()? },
            0x84 => Self::Leased { id, class: input.u16()?, slots: input.slots()? },
            0x85 => Self::Page { id, page: input.u32()? },
            0x86 => Self::Recall,
            0x87 => Self::Stats { id },
            0x88 => Self::Collected { id, bytes: input.u64()? },
            0x89 => Self::Draining,
            0x8a => Self::Exported { id, contact: input.contact()? },
            op => return Err(unknown("reply", op)),
        };
        let numbered = matches!(input.op, 0x82 | 0x84 | 0x85 | 0x87 | 0x88 | 0x8a);
        input.finish(numbered)?;
        Ok(reply)
    }

    /// The refusal of request `id` with what `error` says.
    pub(crate) fn refuse(id: u64, error: &Error) -> Self {
        let mut text = error.context().to_owned();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Self::Refused { id, kind: kind_code(error.kind()), text }
    }

    /// How many descriptors belong to it.
    pub(crate) fn descriptors(&self) -> usize {
        match self {
            Self::Welcome { segments, .. } => 1 + segments.len(),
            Self::Segment { .. } | Self::Stats { .. } => 1,
            _ => 0,
        }
    }
}

impl Keep {
    /// Writes the packet into `out`, whose old content goes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ctl { instance, len } => Writer::new(out, 0xc1, 0).u64(*instance).u64(*len),
            Self::Segment { index, len } => Writer::new(out, 0xc2, 0).u16(*index).u64(*len),
            Self::Ready => Writer::new(out, 0xc3, 0),
            Self::Drain => Writer::new(out, 0xc4, 0),
        };
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// `Invalid` for anything that [`encode`](Self::encode) does not write.
    pub(crate) fn decode(packet: &[u8]) -> Result<Self> {
        let mut input = Input::new(packet, "message of a supervisor")?;
        let keep = match input.op {
            0xc1 => Self::Ctl { instance: input.u64()?, len: input.u64()? },
            0xc2 => Self::Segment { index: input.u16()?, len: input.u64()? },
            0xc3 => Self::Ready,
            0xc4 => Self::Drain,
            op => return Err(unknown("message of a supervisor", op)),
        };
        input.finish(false)?;
        Ok(keep)
    }

    /// How many descriptors belong to it.
    pub(crate) fn descriptors(&self) -> usize {
        match self {
            Self::Ctl { .. } | Self::Segment { .. } => 1,
            Self::Ready | Self::Drain => 0,
        }
    }
}

/// Decodes anything as any message, for fuzzers: how many kinds of message it is.
///
/// # Panics
/// When what decodes is not exactly what would be written.
#[doc(hidden)]
pub fn check_packet(packet: &[u8]) -> usize {
    let mut again = Vec::new();
    let mut kinds = 0;
    let mut check = |encoded: Option<&[u8]>| {
        if let Some(encoded) = encoded {
            assert_eq!(encoded, packet, "one packet a message");
            kinds += 1;
        }
    };
    let fits = "it came in a packet";
    check(Request::decode(packet).ok().map(|request| {
        request.encode(&mut again).expect(fits);
        assert!(request.descriptors() <= MAX_FDS);
        &again[..]
    }));
    check(Reply::decode(packet).ok().map(|reply| {
        reply.encode(&mut again).expect(fits);
        assert!(reply.descriptors() <= MAX_FDS);
        &again[..]
    }));
    check(Keep::decode(packet).ok().map(|keep| {
        keep.encode(&mut again);
        &again[..]
    }));
    kinds
}

/// The number of an error's kind in a refusal.
pub(crate) fn kind_code(kind: ErrorKind) -> u8 {
    let at = KINDS.iter().position(|known| *known == kind);
    // The table is shorter than 256.
    at.and_then(|at| u8::try_from(at + 1).ok()).unwrap_or(0)
}

/// The kind behind a number; `Io` where a newer service knows more.
pub(crate) fn kind_of(code: u8) -> ErrorKind {
    usize::from(code).checked_sub(1).and_then(|at| KINDS.get(at)).copied().unwrap_or(ErrorKind::Io)
}

/// The kinds in the order of their numbers, from 1. A part of the protocol: append only.
const KINDS: &[ErrorKind] = &[
    ErrorKind::NotFound,
    ErrorKind::TypeMismatch,
    ErrorKind::Invalid,
    ErrorKind::Corrupt,
    ErrorKind::Codec,
    ErrorKind::Cancelled,
    ErrorKind::Timeout,
    ErrorKind::Closed,
    ErrorKind::NoSpace,
    ErrorKind::TooLarge,
    ErrorKind::Unsupported,
    ErrorKind::UnknownScheme,
    ErrorKind::Config,
    ErrorKind::ForeignKey,
    ErrorKind::Permission,
    ErrorKind::AlreadyExists,
    ErrorKind::Io,
    ErrorKind::Stale,
    ErrorKind::Forked,
    ErrorKind::Unavailable,
    ErrorKind::PeerDown,
    ErrorKind::Incompatible,
    ErrorKind::Unauthorized,
];

/// Appends fields behind a header.
struct Writer<'a>(&'a mut Vec<u8>);

impl<'a> Writer<'a> {
    /// 16 bytes of address, an older one mapped into the newer, and the port.
    fn contact(self, contact: &SocketAddr) -> Self {
        let ip = match contact.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        self.0.extend_from_slice(&ip.octets());
        self.u16(contact.port())
    }

    fn new(out: &'a mut Vec<u8>, op: u8, id: u64) -> Self {
        out.clear();
        Self(out).u8(VERSION).u8(op).u64(id)
    }

    fn u8(self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn bool(self, value: bool) -> Self {
        self.u8(u8::from(value))
    }

    fn u16(self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn count(self, n: usize, most: usize, what: &str) -> Result<Self> {
        match u32::try_from(n) {
            Ok(count) if n <= most => Ok(self.u32(count)),
            _ => Err(Error::new(ErrorKind::TooLarge, "send", format!("{n} {what} in a message, allowed are {most}"))),
        }
    }

    fn slots(self, slots: &[u32]) -> Result<Self> {
        let this = self.count(slots.len(), MAX_SLOTS, "slots")?;
        Ok(slots.iter().fold(this, |this, slot| this.u32(*slot)))
    }

    fn segments(self, segments: &[SegmentEntry]) -> Result<Self> {
        let this = self.count(segments.len(), MAX_SEGMENTS, "segments")?;
        Ok(segments.iter().fold(this, |this, (index, len)| this.u16(*index).u64(*len)))
    }

    fn text(self, text: &str) -> Self {
        let end = (0..=text.len().min(MAX_TEXT)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let text = &text.as_bytes()[..end];
        self.0.extend_from_slice(&(end as u32).to_le_bytes());
        self.0.extend_from_slice(text);
        self
    }
}

/// Reads fields behind a header.
struct Input<'a> {
    rest: Reader<'a>,
    what: &'static str,
    op: u8,
    id: u64,
}

impl<'a> Input<'a> {
    fn new(packet: &'a [u8], what: &'static str) -> Result<Self> {
        if packet.len() > MAX_PACKET {
            return Err(invalid(format!("{what} of {} bytes", packet.len())));
        }
        let mut rest = Reader::new(packet, what);
        let version = rest.byte()?;
        if version != VERSION {
            return Err(invalid(format!("{what} of protocol {version:#04x}, this library speaks {VERSION:#04x}")));
        }
        let op = rest.byte()?;
        let id = u64::from_le_bytes(rest.array()?);
        Ok(Self { rest, what, op, id })
    }

    fn u8(&mut self) -> Result<u8> {
        self.rest.byte()
    }

    fn contact(&mut self) -> Result<SocketAddr> {
        let ip = Ipv6Addr::from(self.rest.array::<16>()?).to_canonical();
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    fn bool(&mut self) -> Result<bool> {
        match self.rest.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            byte => Err(invalid(format!("{} with {byte} for yes or no", self.what))),
        }
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.rest.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.rest.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.rest.array()?))
    }

    /// The bytes of a counted list. They are there before anything is allocated for them.
    fn list(&mut self, size: usize, most: usize) -> Result<&'a [u8]> {
        let n = self.u32()?;
        let len = usize::try_from(n).ok().filter(|n| *n <= most).and_then(|n| n.checked_mul(size));
        let len = len.ok_or_else(|| invalid(format!("{} with a list of {n}, allowed are {most}", self.what)))?;
        self.rest.take(len)
    }

    fn slots(&mut self) -> Result<Vec<u32>> {
        let words = self.list(4, MAX_SLOTS)?.chunks_exact(4);
        words.map(|word| Ok(u32::from_le_bytes(Reader::new(word, self.what).array()?))).collect()
    }

    fn segments(&mut self) -> Result<Vec<SegmentEntry>> {
        let entries = self.list(10, MAX_SEGMENTS)?.chunks_exact(10);
        let entry = |bytes: &[u8]| {
            let mut entry = Reader::new(bytes, self.what);
            Ok((u16::from_le_bytes(entry.array()?), u64::from_le_bytes(entry.array()?)))
        };
        entries.map(entry).collect()
    }

    fn text(&mut self) -> Result<String> {
        let text = std::str::from_utf8(self.list(1, MAX_TEXT)?);
        text.map(str::to_owned).map_err(|_| invalid(format!("{} with text that is not UTF-8", self.what)))
    }

    /// The rest must be empty, and the request number zero where it means nothing.
    fn finish(self, numbered: bool) -> Result<()> {
        if !numbered && self.id != 0 {
            return Err(invalid(format!("{} {:#04x} with a number, which it has none of", self.what, self.op)));
        }
        self.rest.finish()
    }
}

fn unknown(what: &str, op: u8) -> Error {
    invalid(format!("{what} {op:#04x} is none"))
}

fn invalid(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, "decode", context)
}

#[cfg(test)]
mod tests;
