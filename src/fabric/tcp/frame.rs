//! What requester and owner say to each other on a proved stream.
//!
//! ```text
//!   header (36 bytes) | head | len of part 0, 1, ... (u64) | CRC32 of part 0, 1, ... (u32, only if checked) | zeros | part 0 | part 1 | ... | zeros
//!                     └─────────────────── description, with a CRC32 in the header ───────────────────────────────┘
//! ```
//!
//! Parts begin, and frames end, at a multiple of 64 bytes: the kernel copies from and to places that lie differently within a
//! cache line at three quarters of the speed (1 MiB over loopback, here).
//!
//! All numbers are little-endian. Decoding is strict: it accepts only what [`encode`] writes. It never panics, and
//! allocates in proportion to the bytes that did come, not to those that are announced.

use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Head, MAX_HEAD, MAX_PARTS};
use crate::key::Reader;

/// Length of a header in bytes.
pub(super) const HEADER: usize = 36;

/// What parts begin and frames end at a multiple of, in bytes.
const LINE: usize = 64;

/// Most bytes that the parts of one answer have together: more than any machine has.
const MAX_BULK: u64 = 1 << 48;

/// First bytes of every frame; the last of them is the version.
const MAGIC: [u8; 4] = [0xf5, b'p', b'x', 1];

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A question, from the requester.
    Ask = 1,
    /// The requester does not wait for an answer any more.
    Abandon = 2,
    /// The answer to a question, from the owner.
    Answer = 3,
    /// There is no answer to a question: the owner refused it, or saw that it was abandoned.
    Refusal = 4,
    /// The owner's process lives.
    Beat = 5,
}

/// What comes first in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Whether parts have checksums.
    checked: bool,
    parts: u16,
    /// Number of the question on this stream, counted from 1.
    pub(super) number: u64,
    /// Bytes of all parts.
    pub(super) bulk: u64,
    head_len: u32,
    description_crc: u32,
}

/// Lengths of parts; a few take no memory of their own.
pub(super) type Lengths = SmallVec<[u64; 4]>;

/// A frame without the bytes of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) head: Head,
    /// Lengths of the parts that follow.
    pub(super) lengths: Lengths,
    /// Their checksums, if they have any.
    pub(super) checksums: Option<Vec<u32>>,
}

impl Frame {
    /// A frame that is only a kind and a number.
    pub(super) fn bare(kind: Kind, number: u64) -> Self {
        Self { kind, number, head: Head::new(), lengths: Lengths::new(), checksums: None }
    }

    /// Bytes of the parts that follow.
    pub(super) fn bulk(&self) -> u64 {
        self.lengths.iter().sum()
    }

    /// What precedes the bytes of the parts.
    ///
    /// # Errors
    /// `TooLarge` beyond [`MAX_HEAD`], [`MAX_PARTS`] or `MAX_BULK`.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        encode(self.kind, self.number, &self.head, &self.lengths, self.checksums.as_deref())
    }
}

/// How many zeros follow the parts of a frame.
pub(super) fn padding(bulk: u64) -> usize {
    // Less than a line.
    (bulk.next_multiple_of(LINE as u64) - bulk) as usize
}

/// What precedes the bytes of the parts in a frame.
///
/// # Cost
/// One allocation.
///
/// # Errors
/// As [`Frame::encode`].
pub(super) fn encode(
    kind: Kind,
    number: u64,
    head: &[u8],
    lengths: &[u64],
    checksums: Option<&[u32]>,
) -> Result<Vec<u8>> {
    encode_in(kind, number, head, lengths, checksums, Vec::new())
}

/// The same, in memory that was used before.
pub(super) fn encode_in(
    kind: Kind,
    number: u64,
    head: &[u8],
    lengths: &[u64],
    checksums: Option<&[u32]>,
    mut out: Vec<u8>,
) -> Result<Vec<u8>> {
    let bulk = lengths.iter().try_fold(0u64, |sum, len| sum.checked_add(*len)).filter(|bulk| *bulk <= MAX_BULK);
    let (Some(bulk), true, true) = (bulk, head.len() <= MAX_HEAD, lengths.len() <= MAX_PARTS) else {
        let context = format!("a frame with {} bytes of head and {} parts", head.len(), lengths.len());
        return Err(Error::new(ErrorKind::TooLarge, "send", context));
    };
    let sums = checksums.unwrap_or_default();
    let len = (HEADER + head.len() + lengths.len() * 8 + sums.len() * 4).next_multiple_of(LINE);
    out.clear();
    out.reserve(len);
    out.resize(HEADER, 0);
    out.extend_from_slice(head);
    lengths.iter().for_each(|len| out.extend_from_slice(&len.to_le_bytes()));
    sums.iter().for_each(|sum| out.extend_from_slice(&sum.to_le_bytes()));
    out.resize(len, 0);
    let header = Header {
        kind,
        checked: checksums.is_some(),
        parts: lengths.len() as u16,
        number,
        bulk,
        head_len: head.len() as u32,
        description_crc: crc32fast::hash(&out[HEADER..]),
    };
    out[..HEADER].copy_from_slice(&header.encode());
    Ok(out)
}

impl Header {
    fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = self.kind as u8;
        out[5] = u8::from(self.checked);
        out[6..8].copy_from_slice(&self.parts.to_le_bytes());
        out[8..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..24].copy_from_slice(&self.bulk.to_le_bytes());
        out[24..28].copy_from_slice(&self.head_len.to_le_bytes());
        out[28..32].copy_from_slice(&self.description_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..32]);
        out[32..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header and checks all that can be known from it alone.
    fn decode(bytes: &[u8; HEADER]) -> Result<Self> {
        let mut input = Reader::new(bytes, "frame");
        if input.array()? != MAGIC {
            return Err(corrupt("a frame does not begin as one"));
        }
        let kind = match input.byte()? {
            1 => Kind::Ask,
            2 => Kind::Abandon,
            3 => Kind::Answer,
            4 => Kind::Refusal,
            5 => Kind::Beat,
            kind => return Err(corrupt(format!("a frame of kind {kind}"))),
        };
        let flags = input.byte()?;
        let header = Self {
            kind,
            checked: flags == 1,
            parts: u16::from_le_bytes(input.array()?),
            number: u64::from_le_bytes(input.array()?),
            bulk: u64::from_le_bytes(input.array()?),
            head_len: u32::from_le_bytes(input.array()?),
            description_crc: u32::from_le_bytes(input.array()?),
        };
        let crc = u32::from_le_bytes(input.array()?);
        if crc != crc32fast::hash(&bytes[..32]) {
            return Err(corrupt("a frame's header is damaged"));
        }
        let empty = header.parts == 0 && header.bulk == 0 && flags == 0;
        let headless = header.head_len == 0;
        let makes_sense = match kind {
            Kind::Ask => empty,
            Kind::Answer => flags <= 1 && header.bulk <= MAX_BULK && (header.parts > 0 || header.bulk == 0),
            Kind::Abandon | Kind::Refusal | Kind::Beat => empty && headless,
        };
        let numbered = (header.number == 0) == (kind == Kind::Beat);
        let fits = header.head_len as usize <= MAX_HEAD && usize::from(header.parts) <= MAX_PARTS;
        if makes_sense && numbered && fits {
            Ok(header)
        } else {
            Err(corrupt(format!("a frame that nobody writes: {header:?}")))
        }
    }

    fn description(&self) -> usize {
        self.described().next_multiple_of(LINE) - HEADER
    }

    /// Length of the header and what the description says.
    fn described(&self) -> usize {
        let part = if self.checked { 8 + 4 } else { 8 };
        HEADER + self.head_len as usize + usize::from(self.parts) * part
    }

    /// The frame that this header and its description make.
    fn frame(&self, description: &[u8]) -> Result<Frame> {
        if crc32fast::hash(description) != self.description_crc {
            return Err(corrupt("a frame's description is damaged"));
        }
        let mut input = Reader::new(description, "frame");
        let head = Head::from_slice(input.take(self.head_len as usize)?);
        let mut lengths = Lengths::with_capacity(usize::from(self.parts));
        for _ in 0..self.parts {
            lengths.push(u64::from_le_bytes(input.array()?));
        }
        let mut checksums = self.checked.then(|| Vec::with_capacity(usize::from(self.parts)));
        if let Some(checksums) = &mut checksums {
            for _ in 0..self.parts {
                checksums.push(u32::from_le_bytes(input.array()?));
            }
        }
        if input.take(description.len() + HEADER - self.described())?.iter().any(|byte| *byte != 0) {
            return Err(corrupt("a frame's description is longer than it says"));
        }
        input.finish()?;
        if lengths.iter().try_fold(0u64, |sum, len| sum.checked_add(*len)) != Some(self.bulk) {
            return Err(corrupt("the parts of a frame are not as long as it says"));
        }
        Ok(Frame { kind: self.kind, number: self.number, head, lengths, checksums })
    }
}

/// Finds frames in a stream of bytes that comes in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    header: Option<Header>,
    /// The header as far as it came, then the description as far as it came.
    part: Vec<u8>,
    /// Zeros behind the parts of the last frame, which nobody looks at.
    skip: usize,
}

impl Decoder {
    /// Takes what it needs from the front of `input`; a frame when one is complete but for its bulk, which is then next.
    ///
    /// # Errors
    /// `Corrupt`; nothing that comes after has a meaning.
    pub(super) fn take(&mut self, input: &mut &[u8]) -> Result<Option<Frame>> {
        loop {
            let skipped = self.skip.min(input.len());
            self.skip -= skipped;
            *input = &input[skipped..];
            if self.skip > 0 {
                return Ok(None);
            }
            let wanted = self.header.as_ref().map_or(HEADER, Header::description);
            // Whole in the input, as is usual: nothing is put aside.
            let complete = if self.part.is_empty() && input.len() >= wanted {
                let (complete, rest) = input.split_at(wanted);
                *input = rest;
                complete
            } else {
                let (now, rest) = input.split_at(input.len().min(wanted - self.part.len()));
                self.part.extend_from_slice(now);
                *input = rest;
                if self.part.len() < wanted {
                    return Ok(None);
                }
                &self.part[..]
            };
            let step = match self.header.take() {
                None => Step::Header(Header::decode(&Reader::new(complete, "frame").array()?)?),
                Some(header) => Step::Frame(header.frame(complete)?),
            };
            self.part.clear();
            match step {
                Step::Header(header) => self.header = Some(header),
                Step::Frame(frame) => {
                    self.skip = padding(frame.bulk());
                    return Ok(Some(frame));
                }
            }
        }
    }

    /// Whether it waits for the first byte of a frame.
    #[cfg(test)]
    pub(super) fn is_between(&self) -> bool {
        self.header.is_none() && self.part.is_empty() && self.skip == 0
    }
}

enum Step {
    Header(Header),
    Frame(Frame),
}

/// Decodes anything as frames, for fuzzers; returns how many there were, ended by a refusal or the end of the bytes.
///
/// # Panics
/// When what decodes is not exactly what would be written, when it depends on how the bytes are cut, or when more memory
/// is held than bytes came.
#[doc(hidden)]
pub fn check_frames(bytes: &[u8]) -> usize {
    let whole = frames_of(bytes, bytes.len().max(1));
    for cut in [1, 7, HEADER] {
        assert_eq!(frames_of(bytes, cut), whole, "cut into pieces of {cut} bytes");
    }
    whole.0.len()
}

fn frames_of(bytes: &[u8], cut: usize) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::default();
    let (mut frames, mut bulk, mut fed) = (Vec::new(), 0u64, 0);
    for piece in bytes.chunks(cut) {
        let mut rest = piece;
        fed += piece.len();
        loop {
            let skipped = usize::try_from(bulk).unwrap_or(usize::MAX).min(rest.len());
            bulk -= skipped as u64;
            rest = &rest[skipped..];
            // Without bytes nothing can be taken; an empty description needs none.
            match decoder.take(&mut rest) {
                Ok(Some(frame)) => {
                    let encoded = frame.encode().expect("it was decoded within the same bounds");
                    let end = fed - rest.len();
                    assert_eq!(encoded, bytes[end - encoded.len()..end], "one spelling a frame");
                    bulk = frame.bulk();
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt);
                    return (frames, false);
                }
            }
        }
        assert!(decoder.part.capacity() <= (2 * fed).max(HEADER * 2), "memory for what only was announced");
    }
    (frames, true)
}

fn corrupt(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Corrupt, "receive", context)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame() -> impl Strategy<Value = Frame> {
        let head = || prop::collection::vec(any::<u8>(), 0..300);
        let parts = prop::collection::vec((0u64..1 << 30, any::<u32>()), 0..40);
        prop_oneof![
            (1u64.., head()).prop_map(|(number, head)| Frame { head: head.into(), ..Frame::bare(Kind::Ask, number) }),
            (1u64..).prop_map(|number| Frame::bare(Kind::Abandon, number)),
            (1u64..).prop_map(|number| Frame::bare(Kind::Refusal, number)),
            Just(Frame::bare(Kind::Beat, 0)),
            (1u64.., head(), parts, any::<bool>()).prop_map(|(number, head, parts, checked)| Frame {
                kind: Kind::Answer,
                number,
                head: head.into(),
                lengths: parts.iter().map(|(len, _)| *len).collect(),
                checksums: checked.then(|| parts.iter().map(|(_, sum)| *sum).collect()),
            }),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(frame in frame(), cut in 1usize..100) {
            let bytes = frame.encode().unwrap();
            prop_assert_eq!(bytes.len() % LINE, 0);
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(cut) {
                let mut rest = piece;
                while let Some(frame) = decoder.take(&mut rest).unwrap() {
                    found.push(frame);
                }
                prop_assert!(rest.is_empty());
            }
            decoder.take(&mut &vec![0; padding(frame.bulk())][..]).unwrap();
            prop_assert!(decoder.is_between());
            prop_assert_eq!(found, vec![frame]);
            prop_assert_eq!(check_frames(&bytes), 1);
        }

        #[test]
        fn truncated(frame in frame(), at in any::<prop::sample::Index>()) {
            let bytes = frame.encode().unwrap();
            prop_assert_eq!(check_frames(&bytes[..at.index(bytes.len())]), 0);
        }

        #[test]
        fn flipped_bits(frame in frame(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = frame.encode().unwrap();
            *at.get_mut(&mut bytes) ^= 1 << bit;
            prop_assert_eq!(check_frames(&bytes), 0, "a CRC finds each single bit");
        }

        #[test]
        fn arbitrary_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            check_frames(&bytes);
            seal(&mut bytes);
            check_frames(&bytes);
        }
    }

    /// Makes a header of whatever the bytes are, up to the checks of its fields.
    fn seal(bytes: &mut [u8]) {
        if bytes.len() >= HEADER {
            bytes[..4].copy_from_slice(&MAGIC);
            let crc = crc32fast::hash(&bytes[..32]);
            bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        }
    }

    fn refused(change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = encode(Kind::Answer, 9, b"head", &[3, 4], None).unwrap();
        change(&mut bytes);
        seal(&mut bytes);
        let error = Decoder::default().take(&mut &bytes[..]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn what_nobody_writes_is_refused() {
        refused(|bytes| bytes[4] = 0);
        refused(|bytes| bytes[4] = 6);
        refused(|bytes| bytes[5] = 2);
        refused(|bytes| bytes[4] = Kind::Ask as u8);
        refused(|bytes| bytes[8..16].fill(0));
        refused(|bytes| bytes[16] = 8);
        refused(|bytes| bytes[16..24].fill(0xff));
        refused(|bytes| {
            *bytes.last_mut().unwrap() = 1;
            let crc = crc32fast::hash(&bytes[HEADER..]);
            bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        });
        // Sizes beyond the bounds, long before the bytes come.
        refused(|bytes| bytes[24..28].copy_from_slice(&(MAX_HEAD as u32 + 1).to_le_bytes()));
        refused(|bytes| bytes[6..8].copy_from_slice(&(MAX_PARTS as u16 + 1).to_le_bytes()));
    }

    #[test]
    fn bounds() {
        let most = encode(Kind::Answer, 1, &[7; MAX_HEAD], &[1; MAX_PARTS], Some(&[0; MAX_PARTS])).unwrap();
        assert_eq!(most.len(), (HEADER + MAX_HEAD + MAX_PARTS * (8 + 4)).next_multiple_of(LINE));
        assert_eq!(check_frames(&most), 1);
        for (head, lengths) in [(MAX_HEAD + 1, vec![]), (0, vec![0; MAX_PARTS + 1]), (0, vec![u64::MAX, 1])] {
            let error = encode(Kind::Answer, 1, &vec![0; head], &lengths, None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TooLarge);
        }
    }

    #[test]
    fn announced_bytes_are_not_allocated() {
        let bytes = encode(Kind::Ask, 1, &[7; MAX_HEAD], &[], None).unwrap();
        let mut decoder = Decoder::default();
        assert!(decoder.take(&mut &bytes[..HEADER + 10]).unwrap().is_none());
        assert!(decoder.part.capacity() < 200, "{}", decoder.part.capacity());
    }

    #[test]
    fn bytes_are_stable() {
        // Changing these lines changes the protocol: bump the version and write it in the CHANGELOG.
        let bytes = encode(Kind::Answer, 0x0102, b"h", &[0x0304], Some(&[5])).unwrap();
        let header = [
            0xf5, b'p', b'x', 1, 3, 1, 1, 0, 2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 171, 158, 51,
            1,
        ];
        assert_eq!(bytes[..28], header[..28]);
        assert_eq!(bytes[HEADER..HEADER + 13], [b'h', 4, 3, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(bytes[HEADER + 13..], [0; LINE - HEADER - 13]);
        assert_eq!((padding(0), padding(1), padding(64), padding(0x0304)), (0, 63, 0, 60));
    }
}
