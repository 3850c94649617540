//! Messages between two workers, and what the control connection says before them. Sans-I/O.
//!
//! ```text
//!   header of a message   kind 1, 0 3, parts 4, token 8, number 8, head 4, index 4, checksum 4, here 4           40 bytes
//!                         head and lengths of parts, where they are short
//!   its bytes             head and lengths of parts, where they are long; then so many parts as are here, one after another
//! ```

use std::net::IpAddr;

use super::admission::MAX_HOSTS;
use super::memory::Packed;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{MAX_HEAD, MAX_PARTS};
use crate::key::Reader;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ask = 1,
    /// The answer with all its parts.
    Answer = 2,
    /// The answer with some of its parts, the others come in messages of their own.
    Apart = 3,
    /// Parts of an answer, one or several that follow each other.
    Part = 4,
    Refusal = 5,
    Abandon = 6,
    /// The requester lives and takes what comes, however slowly.
    Alive = 7,
}

/// The fixed part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// Names the connection at the receiver.
    pub(super) token: u64,
    /// Of the question.
    pub(super) number: u64,
    /// Which part the first one here is, of those that come by themselves.
    pub(super) index: u32,
    /// How many parts are in this message.
    pub(super) here: u32,
    /// Bytes of the head, and how many parts the answer has.
    head: u32,
    parts: u32,
    checksum: u32,
}

/// A message as it is sent.
pub(super) struct Encoded {
    pub(super) header: Vec<u8>,
    /// Head and lengths that did not fit into the header.
    pub(super) prefix: Vec<u8>,
}

/// Head and lengths of parts.
#[derive(Debug)]
pub(super) struct Described<'a> {
    pub(super) head: &'a [u8],
    pub(super) lengths: Lengths,
}

/// Lengths of parts; a few take no memory of their own.
#[derive(Debug)]
pub(super) enum Lengths {
    Few([u64; FEW], usize),
    Many(Vec<u64>),
}

impl Lengths {
    fn read(bytes: &[u8]) -> Self {
        let lengths = bytes.chunks_exact(8).map(|length| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(length);
            u64::from_le_bytes(bytes)
        });
        match lengths.len() {
            count @ ..=FEW => {
                let mut few = [0; FEW];
                few.iter_mut().zip(lengths).for_each(|(place, length)| *place = length);
                Self::Few(few, count)
            }
            _ => Self::Many(lengths.collect()),
        }
    }
}

impl std::ops::Deref for Lengths {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        match self {
            Self::Few(few, count) => &few[..*count],
            Self::Many(many) => many,
        }
    }
}

impl Message {
    pub(super) fn new(kind: Kind, token: u64, number: u64) -> Self {
        Self { kind, token, number, index: 0, here: 0, head: 0, parts: 0, checksum: 0 }
    }

    /// What goes before the bytes of `here` parts from `index` on, which come by themselves.
    pub(super) fn part(token: u64, number: u64, index: u32, here: u32) -> Self {
        Self { index, here, ..Self::new(Kind::Part, token, number) }
    }

    /// An answer of which so many parts come with it.
    pub(super) fn apart(token: u64, number: u64, here: u32) -> Self {
        Self { here, ..Self::new(Kind::Apart, token, number) }
    }

    /// # Errors
    /// `TooLarge` for a head or parts beyond the limits.
    pub(super) fn encode(self, head: &[u8], lengths: &[u64]) -> Result<Encoded> {
        self.encode_in(head, lengths, Vec::new())
    }

    /// The same, with the header in memory that was used before.
    pub(super) fn encode_in(mut self, head: &[u8], lengths: &[u64], mut header: Vec<u8>) -> Result<Encoded> {
        if head.len() > MAX_HEAD || lengths.len() > MAX_PARTS {
            let context = format!(
                "{} bytes of head, {} parts: there may be {MAX_HEAD} and {MAX_PARTS}",
                head.len(),
                lengths.len()
            );
            return Err(Error::new(ErrorKind::TooLarge, "request", context));
        }
        (self.head, self.parts) = (head.len() as u32, lengths.len() as u32);
        if self.kind == Kind::Answer {
            self.here = self.parts;
        }
        self.checksum = 0;
        let long = self.is_long();
        header.clear();
        header.reserve(HEADER + if long { 0 } else { self.described() });
        self.put(&mut header);
        let mut prefix = Vec::with_capacity(if long { self.described() } else { 0 });
        let place = if long { &mut prefix } else { &mut header };
        place.extend_from_slice(head);
        lengths.iter().for_each(|length| place.extend_from_slice(&length.to_le_bytes()));
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&header);
        checksum.update(&prefix);
        header[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum.finalize().to_le_bytes());
        Ok(Encoded { header, prefix })
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.kind as u8, 0, 0, 0]);
        out.extend_from_slice(&self.parts.to_le_bytes());
        out.extend_from_slice(&self.token.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.head.to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.checksum.to_le_bytes());
        out.extend_from_slice(&self.here.to_le_bytes());
    }

    /// The fixed part of a header; what is behind it is still to be described by [`describe`](Self::describe).
    ///
    /// # Errors
    /// `Corrupt` for what no version sends.
    pub(super) fn decode(header: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(header, "a message");
        let [kind, a, b, c] = reader.array().map_err(corrupt)?;
        let kind = match kind {
            1 => Kind::Ask,
            2 => Kind::Answer,
            3 => Kind::Apart,
            4 => Kind::Part,
            5 => Kind::Refusal,
            6 => Kind::Abandon,
            7 => Kind::Alive,
            _ => return Err(nonsense("a message of no kind")),
        };
        let parts = u32::from_le_bytes(reader.array().map_err(corrupt)?);
        let token = u64::from_le_bytes(reader.array().map_err(corrupt)?);
        let number = u64::from_le_bytes(reader.array().map_err(corrupt)?);
        let head = u32::from_le_bytes(reader.array().map_err(corrupt)?);
        let index = u32::from_le_bytes(reader.array().map_err(corrupt)?);
        let checksum = u32::from_le_bytes(reader.array().map_err(corrupt)?);
        let here = u32::from_le_bytes(reader.array().map_err(corrupt)?);
        let message = Self { kind, token, number, index, here, head, parts, checksum };
        let is_bare = matches!(kind, Kind::Part | Kind::Refusal | Kind::Abandon | Kind::Alive);
        let has_parts = matches!(kind, Kind::Answer | Kind::Apart);
        let is_here = match kind {
            Kind::Answer => here == parts,
            Kind::Apart => here < parts.max(1),
            Kind::Part => here > 0 && u64::from(index) + u64::from(here) <= MAX_PARTS as u64,
            Kind::Ask | Kind::Refusal | Kind::Abandon | Kind::Alive => here == 0,
        };
        if !is_here
            || (index > 0 && kind != Kind::Part)
            || [a, b, c] != [0; 3]
            || head as usize > MAX_HEAD
            || parts as usize > MAX_PARTS
            || (!has_parts && parts > 0)
            || (is_bare && head > 0)
            || header.len() != HEADER + if message.is_long() { 0 } else { message.described() }
        {
            return Err(nonsense("a message that contradicts itself"));
        }
        if !message.is_long() {
            message.verify(header, &[])?;
        }
        Ok(message)
    }

    /// Head and lengths, and how many of `bytes` they take.
    ///
    /// # Errors
    /// `Corrupt` when they are not there whole, or not as they were sent.
    pub(super) fn describe<'a>(&self, header: &'a [u8], bytes: &'a [u8]) -> Result<(Described<'a>, usize)> {
        let long = self.is_long();
        let (place, from) = if long { (bytes, 0) } else { (header, HEADER) };
        let Some(described) = place.get(from..from + self.described()) else {
            return Err(nonsense("a message that ends early"));
        };
        if long {
            self.verify(header, described)?;
        }
        let (head, lengths) = described.split_at(self.head as usize);
        let described = Described { head, lengths: Lengths::read(lengths) };
        Ok((described, if long { self.described() } else { 0 }))
    }

    fn verify(&self, header: &[u8], prefix: &[u8]) -> Result<()> {
        let mut checksum = crc32fast::Hasher::new();
        // At once: a few bytes by themselves take as long as many.
        let Some((fixed, rest)) = header.split_first_chunk::<HEADER>() else {
            return Err(nonsense("a message that ends early"));
        };
        let mut fixed = *fixed;
        fixed[CHECKSUM..CHECKSUM + 4].fill(0);
        checksum.update(&fixed);
        checksum.update(rest);
        checksum.update(prefix);
        match checksum.finalize() == self.checksum {
            true => Ok(()),
            false => Err(nonsense("a message that was changed on its way")),
        }
    }

    /// Bytes of head and lengths.
    pub(super) fn described(&self) -> usize {
        self.head as usize + self.parts as usize * 8
    }

    /// Whether head and lengths stand before the parts, and not in the header.
    pub(super) fn is_long(&self) -> bool {
        Self::is_long_with(self.head as usize, self.parts())
    }

    /// The same of a message with so long a head, and so many parts.
    pub(super) fn is_long_with(head: usize, parts: usize) -> bool {
        head + parts * 8 > MOST_IN_HEADER
    }

    pub(super) fn parts(&self) -> usize {
        self.parts as usize
    }

    /// How many parts of an answer come by themselves.
    pub(super) fn rest(&self) -> usize {
        self.parts.saturating_sub(self.here) as usize
    }
}

/// What a requester says first on the control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// Answer to this worker, and name the connection so.
    Meet { token: u64, address: Vec<u8> },
    /// Say that you live, by the beats of the control connection, until I ask no more; [`ENDED`] when you have no such
    /// connection any more.
    Watch,
    /// Describe the segment of that number, so that it can be read.
    Segment(u16),
    /// Let UCX's connections in that come from these addresses, which are this host's, and tell me yours. It comes first.
    Hosts(Vec<IpAddr>),
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Meet { token, address } => checked(1, *token, address),
            Self::Watch => vec![2],
            Self::Segment(number) => [&[3], &number.to_le_bytes()[..]].concat(),
            Self::Hosts(hosts) => addresses(4, hosts),
        }
    }

    /// # Errors
    /// `Corrupt`.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        match bytes {
            [1, ..] => unchecked(bytes).map(|(token, address)| Self::Meet { token, address }),
            [2] => Ok(Self::Watch),
            [3, low, high] => Ok(Self::Segment(u16::from_le_bytes([*low, *high]))),
            [4, hosts @ ..] => addresses_of(hosts).map(Self::Hosts),
            _ => Err(nonsense("a greeting of no kind")),
        }
    }
}

/// What the owner says to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Welcome {
    Meet {
        token: u64,
        address: Vec<u8>,
    },
    /// Why this node does not speak UCX, or describes no memory.
    Refused(String),
    Segment(Packed),
    /// The addresses from which its own connections come.
    Hosts(Vec<IpAddr>),
}

impl Welcome {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Meet { token, address } => checked(1, *token, address),
            Self::Refused(text) => {
                let mut end = text.len().min(MAX_ADDRESS);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                [&[2], &text.as_bytes()[..end]].concat()
            }
            Self::Segment(Packed { base, len, key }) => {
                let described = [&base.to_le_bytes()[..], &len.to_le_bytes(), key].concat();
                [&[3], &crc32fast::hash(&described).to_le_bytes()[..], &described].concat()
            }
            Self::Hosts(hosts) => addresses(4, hosts),
        }
    }

    /// # Errors
    /// `Corrupt`.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        match bytes {
            [1, ..] => unchecked(bytes).map(|(token, address)| Self::Meet { token, address }),
            [2, text @ ..] if text.len() <= MAX_ADDRESS => {
                Ok(Self::Refused(String::from_utf8_lossy(text).into_owned()))
            }
            [3, ..] => segment(bytes).map(Self::Segment),
            [4, hosts @ ..] => addresses_of(hosts).map(Self::Hosts),
            _ => Err(nonsense("a welcome of no kind")),
        }
    }
}

/// Kind and addresses, 16 bytes each: those of IPv4 as they are mapped.
fn addresses(kind: u8, hosts: &[IpAddr]) -> Vec<u8> {
    let mapped = hosts.iter().take(MAX_HOSTS).flat_map(|host| match host {
        IpAddr::V4(host) => host.to_ipv6_mapped().octets(),
        IpAddr::V6(host) => host.octets(),
    });
    std::iter::once(kind).chain(mapped).collect()
}

fn addresses_of(bytes: &[u8]) -> Result<Vec<IpAddr>> {
    let hosts = bytes.chunks_exact(16);
    if !hosts.remainder().is_empty() || hosts.len() > MAX_HOSTS {
        return Err(nonsense("addresses that are none, or more than a host names"));
    }
    let hosts = hosts.filter_map(|host| <[u8; 16]>::try_from(host).ok());
    Ok(hosts.map(|host| IpAddr::from(host).to_canonical()).collect())
}

/// Kind, token and address, with a checksum: UCX reads an address without knowing its length.
fn checked(kind: u8, token: u64, address: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(&token.to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(address).to_le_bytes());
    out.extend_from_slice(address);
    out
}

fn unchecked(bytes: &[u8]) -> Result<(u64, Vec<u8>)> {
    let mut reader = Reader::new(bytes, "a worker's address");
    reader.byte().map_err(corrupt)?;
    let token = u64::from_le_bytes(reader.array().map_err(corrupt)?);
    let checksum = u32::from_le_bytes(reader.array().map_err(corrupt)?);
    let address = &bytes[1 + 8 + 4..];
    if address.is_empty() || address.len() > MAX_ADDRESS || crc32fast::hash(address) != checksum {
        return Err(nonsense("a worker's address that is none"));
    }
    Ok((token, address.to_vec()))
}

fn segment(bytes: &[u8]) -> Result<Packed> {
    let mut reader = Reader::new(bytes, "a description of memory");
    reader.byte().map_err(corrupt)?;
    let checksum = u32::from_le_bytes(reader.array().map_err(corrupt)?);
    let described = &bytes[1 + 4..];
    let base = u64::from_le_bytes(reader.array().map_err(corrupt)?);
    let len = u64::from_le_bytes(reader.array().map_err(corrupt)?);
    let key = &described[8 + 8..];
    if key.is_empty()
        || key.len() > MAX_ADDRESS
        || base.checked_add(len).is_none()
        || crc32fast::hash(described) != checksum
    {
        return Err(nonsense("a description of memory that is none"));
    }
    Ok(Packed { base, len, key: key.to_vec() })
}

fn corrupt(error: Error) -> Error {
    Error::new(ErrorKind::Corrupt, "receive", error.context().to_owned())
}

fn nonsense(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, "receive", what)
}

/// Drives decoding with anything that a peer may send, for fuzzers.
///
/// # Panics
/// When what was decoded is not what is encoded again.
#[doc(hidden)]
pub fn check_messages(bytes: &[u8]) -> bool {
    let Some((split, bytes)) = bytes.split_first() else { return false };
    let (header, payload) = bytes.split_at(bytes.len().min(HEADER + usize::from(*split)));
    if let Ok(hello) = Hello::decode(bytes) {
        assert_eq!(Hello::decode(&hello.encode()).ok(), Some(hello));
    }
    if let Ok(welcome) = Welcome::decode(bytes) {
        assert_eq!(Welcome::decode(&welcome.encode()).ok(), Some(welcome));
    }
    let Ok(message) = Message::decode(header) else { return false };
    let Ok((described, taken)) = message.describe(header, payload) else { return false };
    assert!(taken <= payload.len() && described.lengths.len() == message.parts());
    let again = Message { head: 0, parts: 0, checksum: 0, ..message }.encode(described.head, &described.lengths);
    assert_eq!(
        again.map(|encoded| [encoded.header, encoded.prefix].concat()).ok(),
        Some([header, &payload[..taken]].concat())
    );
    true
}

/// What the owner says at the end of a watch.
pub(super) const ENDED: &[u8] = &[1];

/// Bytes of the fixed part.
pub(super) const HEADER: usize = 40;

/// Where the checksum of header, head and lengths lies.
const CHECKSUM: usize = 32;

/// Head and lengths up to so many bytes are in the header, which every transport carries beside the first bytes.
const MOST_IN_HEADER: usize = 512;

/// Lengths of parts that take no memory of their own.
const FEW: usize = 4;

/// Longest address of a worker; with a dozen adapters one has some hundred bytes.
const MAX_ADDRESS: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(kind: Kind, here: u32, head: &[u8], lengths: &[u64]) {
        let index = if kind == Kind::Part { 7 } else { 0 };
        let message = Message { index, here, ..Message::new(kind, 1 << 60, 3) };
        let Encoded { header, prefix } = message.encode(head, lengths).unwrap();
        let decoded = Message::decode(&header).unwrap();
        assert_eq!((decoded.kind, decoded.token, decoded.number, decoded.index), (kind, 1 << 60, 3, index));
        assert_eq!((decoded.here, decoded.rest()), (here, lengths.len().saturating_sub(here as usize)));
        let bytes = [&prefix[..], b"parts"].concat();
        let (described, taken) = decoded.describe(&header, &bytes).unwrap();
        assert_eq!((described.head, &described.lengths[..], taken), (head, lengths, prefix.len()));
    }

    #[test]
    fn messages_come_back() {
        round_trip(Kind::Ask, 0, b"", &[]);
        round_trip(Kind::Ask, 0, &[7; MAX_HEAD], &[]);
        round_trip(Kind::Answer, 3, b"head", &[1, 2, u64::MAX]);
        round_trip(Kind::Apart, 0, &[1; 512], &[]);
        round_trip(Kind::Apart, 0, &[1; 505], &[9]);
        round_trip(Kind::Apart, 69, &[1; 505], &[9; 70]);
        round_trip(Kind::Answer, MAX_PARTS as u32, b"", &[5; MAX_PARTS]);
        round_trip(Kind::Part, 1, b"", &[]);
        round_trip(Kind::Part, MAX_PARTS as u32 - 7, b"", &[]);
    }

    #[test]
    fn messages_with_more_parts_than_there_are_make_no_sense() {
        let refused = |message: Message, parts: usize| {
            let header = message.encode(b"", &vec![1; parts]).unwrap().header;
            assert_eq!(Message::decode(&header).unwrap_err().kind(), ErrorKind::Corrupt, "{message:?}");
        };
        refused(Message::apart(1, 2, 3), 3);
        refused(Message::apart(1, 2, 1), 0);
        refused(Message::part(1, 2, 0, 0), 0);
        refused(Message::part(1, 2, 1, MAX_PARTS as u32), 0);
        refused(Message::part(1, 2, u32::MAX, 1), 0);
        refused(Message { index: 5, ..Message::new(Kind::Answer, 1, 2) }, 1);
        refused(Message { index: 1, ..Message::apart(1, 2, 0) }, 1);
        refused(Message { here: 1, ..Message::new(Kind::Ask, 1, 2) }, 0);
        refused(Message { here: 1, ..Message::new(Kind::Refusal, 1, 2) }, 0);
    }

    #[test]
    fn what_is_too_long_is_not_sent() {
        let message = Message::new(Kind::Answer, 1, 1);
        assert_eq!(message.encode(&[0; MAX_HEAD + 1], &[]).err().unwrap().kind(), ErrorKind::TooLarge);
        assert_eq!(message.encode(&[], &[0; MAX_PARTS + 1]).err().unwrap().kind(), ErrorKind::TooLarge);
    }

    proptest! {
        #[test]
        fn a_changed_bit_is_noticed(len in 0..1200usize, parts in 0..70usize, at: prop::sample::Index, bit in 0..8u32) {
            let lengths: Vec<u64> = (0..parts as u64).collect();
            let Encoded { mut header, mut prefix } =
                Message::new(Kind::Answer, 5, 6).encode(&vec![3; len], &lengths).unwrap();
            let at = at.index(header.len() + prefix.len());
            match at.checked_sub(header.len()) {
                None => header[at] ^= 1 << bit,
                Some(at) => prefix[at] ^= 1 << bit,
            }
            let outcome = Message::decode(&header).and_then(|message| message.describe(&header, &prefix));
            prop_assert_eq!(outcome.err().map(|error| error.kind()), Some(ErrorKind::Corrupt));
        }

        #[test]
        fn anything_is_decoded(bytes: Vec<u8>) {
            check_messages(&bytes);
        }
    }

    #[test]
    fn greetings_come_back() {
        let hosts = |count: u16| -> Vec<IpAddr> {
            (0..count)
                .map(|i| if i % 2 == 0 { [10, 0, 0, i as u8].into() } else { [0xfe80, 0, 0, 0, 0, 0, 0, i].into() })
                .collect()
        };
        let all = hosts(MAX_HOSTS as u16);
        for hello in [
            Hello::Meet { token: 9, address: vec![1; 300] },
            Hello::Watch,
            Hello::Segment(0x1234),
            Hello::Hosts(Vec::new()),
            Hello::Hosts(all.clone()),
        ] {
            assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
        }
        let packed = Packed { base: 1 << 40, len: 1 << 30, key: vec![7; 40] };
        for welcome in [
            Welcome::Meet { token: 9, address: vec![1] },
            Welcome::Refused("no \u{fc}cx".to_owned()),
            Welcome::Segment(packed.clone()),
            Welcome::Hosts(all.clone()),
        ] {
            assert_eq!(Welcome::decode(&welcome.encode()).unwrap(), welcome);
        }
        assert_eq!(
            Hello::decode(&Hello::Hosts(hosts(MAX_HOSTS as u16 + 1)).encode()).unwrap(),
            Hello::Hosts(all.clone())
        );
        let encoded = Hello::Hosts(all).encode();
        assert!(Hello::decode(&encoded[..encoded.len() - 1]).is_err(), "half of an address");
        let encoded = [encoded, vec![0; 16]].concat();
        assert_eq!(Hello::decode(&encoded).unwrap_err().kind(), ErrorKind::Corrupt, "one more than there may be");
        let encoded = Welcome::Segment(packed.clone()).encode();
        for at in 1..encoded.len() {
            let mut changed = encoded.clone();
            changed[at] ^= 1;
            assert_eq!(Welcome::decode(&changed).unwrap_err().kind(), ErrorKind::Corrupt, "{at}");
            assert!(Welcome::decode(&encoded[..at]).is_err(), "{at}");
        }
        let beyond = Packed { base: u64::MAX, ..packed.clone() };
        assert!(Welcome::decode(&Welcome::Segment(beyond).encode()).is_err());
        assert!(Welcome::decode(&Welcome::Segment(Packed { key: Vec::new(), ..packed }).encode()).is_err());
        let mut changed = Hello::Meet { token: 9, address: vec![1; 300] }.encode();
        changed[100] ^= 1;
        assert_eq!(Hello::decode(&changed).unwrap_err().kind(), ErrorKind::Corrupt);
        let long = Welcome::Refused("\u{fc}".repeat(MAX_ADDRESS)).encode();
        assert!(Welcome::decode(&long).is_ok());
    }
}
