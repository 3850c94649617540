//! What requester and owner say to each other. All numbers are little-endian.
//!
//! ```text
//!   by RPC:   token │ crc kind number released head   ──>      a question, or a sign that a long answer is still wanted
//!                              <──   kind description           or: held, refused, too long for an RPC
//!             token │ crc release - released          ──>      the parts of answers are not needed any more
//!   on the control connection, which is TCP:  hello, watch, collect, keep
//! ```
//!
//! A description is the head of an answer and where its parts are: in it, or in memory to be pulled from.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{MAX_HEAD, MAX_PARTS};
use crate::key::Reader;

use super::native::Token;

/// What comes by RPC, behind the token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Question {
        number: u64,
        /// Answers whose parts are not needed any more.
        released: Numbers<'a>,
        head: &'a [u8],
    },
    /// The parts of that answer are still being pulled.
    Keep { number: u64 },
    /// As in a question, where there is none to ask.
    Release { released: Numbers<'a> },
}

/// Numbers of answers, eight bytes each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers<'a>(pub(super) &'a [u8]);

impl Numbers<'_> {
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        self.0.chunks_exact(8).map(|bytes| bytes.try_into().map_or(0, u64::from_le_bytes))
    }
}

impl<'a> Said<'a> {
    /// What stands before the head.
    pub(super) fn prefix(&self, token: &Token) -> Vec<u8> {
        let (kind, number, released, head): (u8, u64, &[u8], &[u8]) = match self {
            Self::Question { number, released, head } => (1, *number, released.0, head),
            Self::Keep { number } => (2, *number, &[], &[]),
            Self::Release { released } => (3, 0, released.0, &[]),
        };
        let mut prefix = vec![0; PREFIX];
        prefix[..16].copy_from_slice(token);
        prefix[20] = kind;
        prefix[21..29].copy_from_slice(&number.to_le_bytes());
        prefix[29] = (released.len() / 8) as u8;
        prefix.extend_from_slice(released);
        let crc = checksum(&[&prefix[20..], head]);
        prefix[16..20].copy_from_slice(&crc.to_le_bytes());
        prefix
    }

    /// # Errors
    /// `Corrupt`.
    pub(super) fn decode(message: &'a [u8]) -> Result<Self> {
        let mut input = Reader::new(message, "margo message");
        let crc = u32::from_le_bytes(input.array()?);
        if crc != checksum(&[&message[4..]]) {
            return Err(corrupt("a message was damaged on the way"));
        }
        let kind = input.byte()?;
        let number = u64::from_le_bytes(input.array()?);
        let count = usize::from(input.byte()?);
        if count > MOST_RELEASED {
            return Err(corrupt("a message that releases too much"));
        }
        let released = Numbers(input.take(count * 8)?);
        let head = &message[PREFIX - size_of::<Token>() + count * 8..];
        match kind {
            1 if head.len() <= MAX_HEAD => Ok(Self::Question { number, released, head }),
            2 if head.is_empty() && count == 0 => Ok(Self::Keep { number }),
            3 if head.is_empty() => Ok(Self::Release { released }),
            _ => Err(corrupt("a message that makes no sense")),
        }
    }
}

/// What answers an RPC.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answered<'a> {
    /// There is no answer.
    Refused,
    /// The answer's description.
    Described(&'a [u8]),
    /// It comes later: it is to be collected on the control connection.
    Held,
    /// Its description is of that length, and to be pulled.
    Long { len: u64, descriptor: &'a [u8] },
    /// Whether the parts are still there.
    Kept(bool),
    /// Whoever asked is not known: the connection has ended.
    Unknown,
}

pub(super) const REFUSED: &[u8] = &[0];
pub(super) const DESCRIBED: &[u8] = &[1];
pub(super) const HELD: &[u8] = &[2];
pub(super) const LONG: &[u8] = &[3];
pub(super) const KEPT: [&[u8]; 2] = [&[4, 0], &[4, 1]];

impl<'a> Answered<'a> {
    /// # Errors
    /// `Corrupt`.
    pub(super) fn decode(message: &'a [u8]) -> Result<Self> {
        match message {
            [] => Ok(Self::Unknown),
            [0] => Ok(Self::Refused),
            [1, description @ ..] => Ok(Self::Described(description)),
            [2] => Ok(Self::Held),
            [3, rest @ ..] => match rest.split_first_chunk() {
                Some((len, descriptor)) if !descriptor.is_empty() => {
                    let len = u64::from_le_bytes(*len);
                    match len {
                        0..=MOST_DESCRIBED => Ok(Self::Long { len, descriptor }),
                        _ => Err(corrupt("an answer of a length that none has")),
                    }
                }
                _ => Err(corrupt("an answer without what it is about")),
            },
            [4, 0] => Ok(Self::Kept(false)),
            [4, 1] => Ok(Self::Kept(true)),
            _ => Err(corrupt("an answer that makes no sense")),
        }
    }
}

/// An answer, as it is described.
#[derive(Debug, Default)]
pub(super) struct Description {
    pub(super) head: Vec<u8>,
    /// Whether the owner keeps the parts until they are released.
    pub(super) is_pinned: bool,
    pub(super) sources: Vec<Source>,
    pub(super) parts: Vec<Part>,
}

/// Memory of the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// The same memory has the same number on one connection; 0 is that of this answer alone.
    pub(super) id: u32,
    pub(super) descriptor: Vec<u8>,
}

/// Where a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) len: u64,
    pub(super) place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Behind the description, after those before it.
    Packed,
    /// In that source, so many bytes behind its first.
    Source(u16, u64),
}

impl Description {
    /// Bytes that come before those of the packed parts.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        out[4..8].copy_from_slice(&(self.head.len() as u32).to_le_bytes());
        out[8..12].copy_from_slice(&(self.parts.len() as u32).to_le_bytes());
        out[12..14].copy_from_slice(&(self.sources.len() as u16).to_le_bytes());
        out[14] = self.is_pinned.into();
        out.extend_from_slice(&self.head);
        for source in &self.sources {
            out.extend_from_slice(&source.id.to_le_bytes());
            out.extend_from_slice(&(source.descriptor.len() as u16).to_le_bytes());
            out.extend_from_slice(&source.descriptor);
        }
        for part in &self.parts {
            let (source, offset) = match part.place {
                Place::Packed => (PACKED, 0),
                Place::Source(source, offset) => (source, offset),
            };
            out.extend_from_slice(&source.to_le_bytes());
            out.extend_from_slice(&part.len.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
        }
        let crc = checksum(&[&out[4..]]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// How long what [`encode`](Self::encode) makes is for a head and parts that are all packed.
    pub(super) fn len_packed(head: usize, parts: usize) -> usize {
        HEADER + head + parts * PART
    }

    /// The description, and where in `bytes` the packed parts are.
    ///
    /// # Errors
    /// `Corrupt`. Nothing is allocated beyond what `bytes` hold.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, Vec<Range<usize>>)> {
        let mut input = Reader::new(bytes, "margo answer");
        let crc = u32::from_le_bytes(input.array()?);
        let head = u32::from_le_bytes(input.array()?) as usize;
        let parts = u32::from_le_bytes(input.array()?) as usize;
        let sources = u16::from_le_bytes(input.array()?) as usize;
        let flags: [u8; 2] = input.array()?;
        if head > MAX_HEAD || parts > MAX_PARTS || sources > parts || flags[0] > 1 || flags[1] != 0 {
            return Err(corrupt("an answer that is none"));
        }
        let mut at = HEADER + head;
        let mut this =
            Self { head: input.take(head)?.to_vec(), is_pinned: flags[0] == 1, sources: Vec::new(), parts: Vec::new() };
        for _ in 0..sources {
            let id = u32::from_le_bytes(input.array()?);
            let len = u16::from_le_bytes(input.array()?) as usize;
            this.sources.push(Source { id, descriptor: input.take(len)?.to_vec() });
            at += 6 + len;
        }
        for _ in 0..parts {
            let source = u16::from_le_bytes(input.array()?);
            let len = u64::from_le_bytes(input.array()?);
            let offset = u64::from_le_bytes(input.array()?);
            at += PART;
            let place = match source {
                PACKED if offset == 0 => Place::Packed,
                source if usize::from(source) < sources && len > 0 => Place::Source(source, offset),
                _ => return Err(corrupt("a part of an answer that is nowhere")),
            };
            this.parts.push(Part { len, place });
        }
        if crc != checksum(&[&bytes[4..at]]) {
            return Err(corrupt("an answer was damaged on the way"));
        }
        let mut packed = Vec::new();
        for part in this.parts.iter().filter(|part| part.place == Place::Packed) {
            let end =
                usize::try_from(part.len).ok().and_then(|len| at.checked_add(len)).filter(|end| *end <= bytes.len());
            let Some(end) = end else { return Err(corrupt("an answer that ends too early")) };
            packed.push(at..end);
            at = end;
        }
        match at == bytes.len() {
            true => Ok((this, packed)),
            false => Err(corrupt("an answer with bytes that belong to nothing")),
        }
    }
}

/// What is asked on the control connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// How to reach Margo there; the requester wants that protocol, or any.
    Hello { silence_ms: u32, wanted: String },
    /// Never answered: it shows both sides that the other one lives.
    Watch,
    /// The description of an answer that was held.
    Collect { number: u64 },
    /// The parts of that answer are still being pulled, behind which a message by RPC might wait.
    Keep { number: u64 },
}

impl Control {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Hello { silence_ms, wanted } => {
                out.push(1);
                out.extend_from_slice(&VERSION.to_le_bytes());
                out.extend_from_slice(&silence_ms.to_le_bytes());
                out.extend_from_slice(wanted.as_bytes());
            }
            Self::Watch => out.push(2),
            Self::Collect { number } => {
                out.push(3);
                out.extend_from_slice(&number.to_le_bytes());
            }
            Self::Keep { number } => {
                out.push(4);
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        out
    }

    /// # Errors
    /// `Corrupt`; `Incompatible` for another version.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut input = Reader::new(bytes, "margo control message");
        let this = match input.byte()? {
            1 => {
                let version = u16::from_le_bytes(input.array()?);
                if version != VERSION {
                    let context = format!("version {version} of what margo:// speaks, here it is {VERSION}");
                    return Err(Error::new(ErrorKind::Incompatible, "connect", context));
                }
                let silence_ms = u32::from_le_bytes(input.array()?);
                let wanted = text(input.take(bytes.len() - 7)?)?;
                Self::Hello { silence_ms, wanted }
            }
            2 => Self::Watch,
            3 => Self::Collect { number: u64::from_le_bytes(input.array()?) },
            4 => Self::Keep { number: u64::from_le_bytes(input.array()?) },
            _ => return Err(corrupt("a question on a control connection that makes no sense")),
        };
        input.finish()?;
        Ok(this)
    }
}

/// What answers a hello.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Welcome {
    Here {
        token: Token,
        address: String,
    },
    /// Why Margo cannot be reached there.
    Not(String),
}

impl Welcome {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Here { token, address } => [&[1], &token[..], address.as_bytes()].concat(),
            Self::Not(reason) => [&[0], reason.as_bytes()].concat(),
        }
    }

    /// # Errors
    /// `Corrupt`.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut input = Reader::new(bytes, "margo welcome");
        match input.byte()? {
            1 => {
                let token = input.array()?;
                Ok(Self::Here { token, address: text(input.take(bytes.len() - 17)?)? })
            }
            0 => Ok(Self::Not(text(input.take(bytes.len() - 1)?)?)),
            _ => Err(corrupt("a welcome that makes no sense")),
        }
    }
}

/// Decodes what a peer may say, in every way in which it could be meant; for fuzzing. How many of them made sense.
///
/// # Panics
/// When what was decoded is not what is encoded again.
#[doc(hidden)]
pub fn check_margo(bytes: &[u8]) -> usize {
    let mut count = 0;
    if let Ok(said) = Said::decode(bytes) {
        let head: &[u8] = if let Said::Question { head, .. } = &said { head } else { &[] };
        let again = [&said.prefix(&Token::default())[size_of::<Token>()..], head].concat();
        // A release has a number that nobody reads.
        assert!(again == bytes || matches!(said, Said::Release { .. }), "{said:?}");
        count += 1;
    }
    count += match Answered::decode(bytes) {
        Ok(Answered::Described(description)) => usize::from(Description::decode(description).is_ok()),
        Ok(_) => 1,
        Err(_) => 0,
    };
    if let Ok((description, packed)) = Description::decode(bytes) {
        let table = description.encode();
        assert_eq!(table[..], bytes[..table.len()]);
        let ends = packed.iter().try_fold(table.len(), |at, range| (range.start == at).then_some(range.end));
        assert_eq!(ends, Some(bytes.len()), "packed parts are behind the description, one after the other");
        count += 1;
    }
    if let Ok(control) = Control::decode(bytes) {
        assert_eq!(control.encode(), bytes);
        count += 1;
    }
    if let Ok(welcome) = Welcome::decode(bytes) {
        assert_eq!(welcome.encode(), bytes);
        count += 1;
    }
    count
}

/// An address or a reason, from another process.
fn text(bytes: &[u8]) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= 4096 && !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(corrupt("an address or reason that is no text")),
    }
}

fn checksum(pieces: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    pieces.iter().for_each(|piece| hasher.update(piece));
    hasher.finalize()
}

fn corrupt(context: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, "receive", context)
}

/// Version of all of this.
const VERSION: u16 = 1;

/// Token, checksum, kind, number, count of numbers.
const PREFIX: usize = 16 + 4 + 1 + 8 + 1;

/// Most answers that one message releases.
pub(super) const MOST_RELEASED: usize = 64;

/// Longest message of an RPC, in bytes.
pub(super) const LONGEST: usize = PREFIX + 8 * MOST_RELEASED + MAX_HEAD;

/// Longest answer that Mercury sends at once, less what it and Margo put before it: eager messages are 4 KiB.
pub(super) const INLINE: usize = 4000;

/// Parts up to this length travel with the description when an answer has several.
pub(super) const SMALL: usize = 8 << 10;

/// Longest description: all parts are small, and of the greatest number.
pub(super) const MOST_DESCRIBED: u64 = (HEADER + MAX_HEAD + MAX_PARTS * (PART + 512 + SMALL)) as u64;

const HEADER: usize = 16;
const PART: usize = 18;
const PACKED: u16 = u16::MAX;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn description() -> Description {
        Description {
            head: b"head".to_vec(),
            is_pinned: true,
            sources: vec![Source { id: 7, descriptor: vec![1; 80] }, Source { id: 0, descriptor: Vec::new() }],
            parts: vec![
                Part { len: 3, place: Place::Packed },
                Part { len: 1 << 40, place: Place::Source(1, 1 << 50) },
                Part { len: 0, place: Place::Packed },
                Part { len: 2, place: Place::Packed },
            ],
        }
    }

    #[test]
    fn descriptions_survive_and_nothing_else_passes() {
        let mut bytes = description().encode();
        let table = bytes.len();
        bytes.extend_from_slice(b"abcde");
        let (found, packed) = Description::decode(&bytes).unwrap();
        assert_eq!((found.head, found.sources, found.parts), {
            let described = description();
            (described.head, described.sources, described.parts)
        });
        assert!(found.is_pinned);
        assert_eq!(packed, [table..table + 3, table + 3..table + 3, table + 3..table + 5]);
        for at in 0..table {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(Description::decode(&damaged).is_err(), "byte {at}");
        }
        for len in 0..bytes.len() {
            assert!(Description::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        bytes.push(0);
        assert!(Description::decode(&bytes).is_err());
        let all = Description {
            head: vec![1; 10],
            parts: vec![Part { len: 1, place: Place::Packed }; 3],
            ..Default::default()
        };
        assert_eq!(all.encode().len(), Description::len_packed(10, 3));
    }

    #[test]
    fn messages_survive() {
        let token = [9; 16];
        for said in [
            Said::Question { number: 1, released: Numbers(&[]), head: b"" },
            Said::Question { number: u64::MAX, released: Numbers(&[7; 16]), head: b"what?" },
            Said::Keep { number: 2 },
            Said::Release { released: Numbers(&[1; 8 * MOST_RELEASED]) },
        ] {
            let head: &[u8] = if let Said::Question { head, .. } = &said { head } else { &[] };
            let message = [&said.prefix(&token)[..], head].concat();
            assert_eq!(message[..16], token);
            assert_eq!(Said::decode(&message[16..]).unwrap(), said);
            for at in 16..message.len() {
                let mut damaged = message.clone();
                damaged[at] ^= 1;
                assert!(Said::decode(&damaged[16..]).is_err());
            }
        }
        let numbers = [3_u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat();
        assert_eq!(Numbers(&numbers).iter().collect::<Vec<_>>(), [3, u64::MAX]);
        for control in [
            Control::Hello { silence_ms: 10_000, wanted: "na+sm".to_owned() },
            Control::Hello { silence_ms: 0, wanted: String::new() },
            Control::Watch,
            Control::Collect { number: 77 },
            Control::Keep { number: 78 },
        ] {
            assert_eq!(Control::decode(&control.encode()).unwrap(), control);
        }
        assert_eq!(Control::decode(&[1, 9, 0, 0, 0, 0, 0]).unwrap_err().kind(), ErrorKind::Incompatible);
        for welcome in [Welcome::Here { token, address: "na+sm://1".to_owned() }, Welcome::Not("no Margo".to_owned())] {
            assert_eq!(Welcome::decode(&welcome.encode()).unwrap(), welcome);
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Said::decode(&bytes);
            let _ = Answered::decode(&bytes);
            let _ = Description::decode(&bytes);
            let _ = Control::decode(&bytes);
            let _ = Welcome::decode(&bytes);
        }

        #[test]
        fn tables_are_bounded_by_their_bytes(parts in any::<u32>(), sources in any::<u16>(), head in any::<u32>()) {
            let mut bytes = description().encode();
            bytes[4..8].copy_from_slice(&head.to_le_bytes());
            bytes[8..12].copy_from_slice(&parts.to_le_bytes());
            bytes[12..14].copy_from_slice(&sources.to_le_bytes());
            let _ = Description::decode(&bytes);
        }
    }
}
