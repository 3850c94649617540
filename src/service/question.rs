//! What nodes ask each other about objects, and the answers: the heads of a fabric's calls.
//!
//! All little-endian and of fixed width. Decoding is strict: a head decodes to a message only if that message encodes to the
//! same head. It never panics, and allocates in proportion to the head.

use smallvec::SmallVec;

use super::address::{Address, Node};
use super::message::{kind_code, kind_of};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Head, MAX_HEAD};
use crate::key::{Format, Reader};
use crate::shm::table::Id;

/// From a node that wants something of an object to the node that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Wants bytes: the parts of the answer are those of the objects that are found, in order.
    Get(Wants),
    /// Wants to know which can be read.
    Exists(Wants),
    /// Ends objects or declarations.
    Evict(Wants),
    /// Ends an object or a declaration for the one who asks first; asked again with the same number, the answer is the same.
    Retire { want: Want, number: u64 },
    /// Wants to hear when something is committed to a declared object.
    Wait(Want),
    /// Makes an object of any node that of a declared one; asked again with the same object, the answer is the same.
    Bind { declared: Want, format: Format, object: Pointer },
    /// Wants to know from which node to get a large object, and will pass on what it has: `as_node` is where it is reached.
    /// The nodes of the memories in `lost` did not serve it.
    Join { want: Want, as_node: Node, lost: Vec<u64> },
    /// Has all of the object, or gave it up.
    Left { want: Want, is_whole: bool },
    /// Wants bytes of an object of the node of another memory, which this one has or gets: the answer waits for them.
    Pass { instance: u64, want: Want },
}

/// What is wanted; one object takes no memory of its own.
pub(crate) type Wants = SmallVec<[Want; 1]>;

/// What became of the objects of a question; of one, without memory of its own.
pub(crate) type Verdicts = SmallVec<[Verdict; 1]>;

/// One object, or some of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) id: Id,
    /// Where the key says that it lies.
    pub(crate) place: u64,
    /// How long the key says that it is.
    pub(crate) len: u64,
    /// First byte that is wanted.
    pub(crate) from: u64,
    /// How many bytes are wanted.
    pub(crate) count: u64,
}

/// An object of any node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    pub(crate) address: Address,
    pub(crate) len: u64,
    pub(crate) format: Format,
}

/// What became of one object of a question. Small: there may be many, and what most of them are not is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Never there, evicted, taken; or, of `Retire`, ended by another.
    Missing,
    /// There, or done. It ends by itself in so many milliseconds, 0 for never.
    Yes { expires_in: u64 },
    /// There, and to be got from that node, which has or gets it too.
    From { expires_in: u64, node: Box<Node> },
    /// Declared, and nothing was committed to it.
    Declared,
    /// Declared, and this is the object that was committed to it.
    Bound(Box<Pointer>),
    /// Another object was committed to it before.
    Taken,
    /// It failed.
    Refused { kind: ErrorKind },
}

impl Want {
    /// Bytes of one in a head.
    const LEN: usize = 4 + 8 * 5;

    fn encode(&self, out: &mut Head) {
        let mut bytes = [0; Self::LEN];
        let (slot, numbers) = bytes.split_at_mut(4);
        slot.copy_from_slice(&self.id.slot.to_le_bytes());
        let all = [self.id.generation, self.place, self.len, self.from, self.count];
        for (place, number) in numbers.chunks_exact_mut(8).zip(all) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        // At once: each time there may be too little room.
        out.extend_from_slice(&bytes);
    }

    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let slot = u32::from_le_bytes(input.array()?);
        let mut number = || Ok::<_, Error>(u64::from_le_bytes(input.array()?));
        let (generation, place, len) = (number()?, number()?, number()?);
        let (from, count) = (number()?, number()?);
        if generation >> Id::GENERATION_BITS != 0 {
            return Err(invalid("an impossible generation"));
        }
        if from.checked_add(count).is_none_or(|end| end > len) {
            return Err(invalid("a range outside of its object"));
        }
        Ok(Self { id: Id { slot, generation }, place, len, from, count })
    }
}

/// Most nodes of which one question says that they did not serve.
pub(crate) const MAX_LOST: usize = 8;

/// Most objects of one question.
pub(crate) const MAX_WANTS: usize = 1024;

/// Most objects of a question whose answer may say of each that it lies elsewhere.
pub(crate) const MAX_ASKED: usize = 960;

// The longest question and the longest answers fit into a head.
const _: () = assert!(2 + 4 + MAX_WANTS * Want::LEN <= MAX_HEAD && 2 + 4 + MAX_WANTS * 9 <= MAX_HEAD);
const _: () = assert!(1 + 4 + MAX_ASKED * (1 + Pointer::MOST) <= MAX_HEAD);

impl Pointer {
    /// Most bytes of one in a head: that of a node with an IPv6 address.
    const MOST: usize = 47 + 8 + 2 + 8;

    pub(crate) fn encode(&self, out: &mut impl Extend<u8>) {
        self.address.encode(out);
        out.extend(self.len.to_le_bytes());
        out.extend(self.format.codec.to_le_bytes());
        out.extend(self.format.fingerprint.to_le_bytes());
    }

    pub(crate) fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let address = Address::decode(input)?;
        let len = u64::from_le_bytes(input.array()?);
        Ok(Self { address, len, format: format(input)? })
    }

    /// What [`encode`](Self::encode) wrote, and nothing behind.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut input = Reader::new(bytes, "pointer");
        let pointer = Self::decode(&mut input)?;
        input.finish()?;
        Ok(pointer)
    }
}

impl Question {
    /// The operation that a user knows it as.
    pub(crate) fn op(&self) -> &'static str {
        match self {
            Self::Get(_) | Self::Wait(_) => "get",
            Self::Exists(_) => "exists",
            Self::Evict(_) => "evict",
            Self::Retire { .. } => "take",
            Self::Bind { .. } => "commit_at",
            Self::Join { .. } | Self::Left { .. } | Self::Pass { .. } => "get",
        }
    }

    /// The head of the call.
    pub(crate) fn encode(&self) -> Head {
        let mut out = Head::new();
        match self {
            Self::Get(wants) => list(&mut out, 1, wants),
            Self::Exists(wants) => list(&mut out, 2, wants),
            Self::Evict(wants) => list(&mut out, 3, wants),
            Self::Retire { want, number } => {
                out.extend_from_slice(&[VERSION, 4]);
                want.encode(&mut out);
                out.extend_from_slice(&number.to_le_bytes());
            }
            Self::Wait(want) => {
                out.extend_from_slice(&[VERSION, 5]);
                want.encode(&mut out);
            }
            Self::Bind { declared, format, object } => {
                out.extend_from_slice(&[VERSION, 6]);
                declared.encode(&mut out);
                out.extend_from_slice(&format.codec.to_le_bytes());
                out.extend_from_slice(&format.fingerprint.to_le_bytes());
                object.encode(&mut out);
            }
            Self::Join { want, as_node, lost } => {
                out.extend_from_slice(&[VERSION, 7]);
                want.encode(&mut out);
                as_node.encode(&mut out);
                debug_assert!(lost.len() <= MAX_LOST);
                out.push(lost.len() as u8);
                lost.iter().for_each(|instance| out.extend_from_slice(&instance.to_le_bytes()));
            }
            Self::Left { want, is_whole } => {
                out.extend_from_slice(&[VERSION, 8]);
                want.encode(&mut out);
                out.push(u8::from(*is_whole));
            }
            Self::Pass { instance, want } => {
                out.extend_from_slice(&[VERSION, 9]);
                out.extend_from_slice(&instance.to_le_bytes());
                want.encode(&mut out);
            }
        }
        out
    }

    /// Reads the head of a call.
    ///
    /// # Errors
    /// `Invalid` for anything that [`encode`](Self::encode) does not write, `Incompatible` for another version.
    pub(crate) fn decode(head: &[u8]) -> Result<Self> {
        let mut input = opened(head)?;
        let question = match input.byte()? {
            1 => Self::Get(wants(&mut input)?),
            2 => Self::Exists(wants(&mut input)?),
            3 => Self::Evict(wants(&mut input)?),
            4 => Self::Retire { want: Want::decode(&mut input)?, number: u64::from_le_bytes(input.array()?) },
            5 => Self::Wait(Want::decode(&mut input)?),
            6 => Self::Bind {
                declared: Want::decode(&mut input)?,
                format: format(&mut input)?,
                object: Pointer::decode(&mut input)?,
            },
            7 => Self::Join {
                want: Want::decode(&mut input)?,
                as_node: Node::decode(&mut input)?,
                lost: {
                    let count = usize::from(input.byte()?);
                    if count > MAX_LOST {
                        return Err(invalid("too many lost nodes"));
                    }
                    (0..count).map(|_| Ok(u64::from_le_bytes(input.array()?))).collect::<Result<_>>()?
                },
            },
            8 => Self::Left {
                want: Want::decode(&mut input)?,
                is_whole: match input.byte()? {
                    0 => false,
                    1 => true,
                    _ => return Err(invalid("neither yes nor no")),
                },
            },
            9 => Self::Pass { instance: u64::from_le_bytes(input.array()?), want: Want::decode(&mut input)? },
            _ => return Err(invalid("no such question")),
        };
        input.finish()?;
        Ok(question)
    }
}

impl Verdict {
    pub(crate) fn refused(error: &Error) -> Self {
        Self::Refused { kind: error.kind() }
    }

    fn encode(&self, out: &mut Head) {
        match self {
            Self::Missing => out.push(0),
            Self::Yes { expires_in } => {
                let mut bytes = [1; 9];
                bytes[1..].copy_from_slice(&expires_in.to_le_bytes());
                out.extend_from_slice(&bytes);
            }
            Self::Declared => out.push(2),
            Self::Bound(pointer) => {
                out.push(3);
                pointer.encode(out);
            }
            Self::Taken => out.push(4),
            Self::Refused { kind } => out.extend_from_slice(&[5, kind_code(*kind)]),
            Self::From { expires_in, node } => {
                out.push(6);
                out.extend_from_slice(&expires_in.to_le_bytes());
                node.encode(out);
            }
        }
    }

    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        Ok(match input.byte()? {
            0 => Self::Missing,
            1 => Self::Yes { expires_in: u64::from_le_bytes(input.array()?) },
            2 => Self::Declared,
            3 => Self::Bound(Box::new(Pointer::decode(input)?)),
            4 => Self::Taken,
            5 => Self::Refused { kind: kind_of(input.byte()?) },
            6 => Self::From { expires_in: u64::from_le_bytes(input.array()?), node: Box::new(Node::decode(input)?) },
            _ => return Err(invalid("no such verdict")),
        })
    }

    /// The head of an answer, one verdict for each object of the question.
    pub(crate) fn encode_all(verdicts: &[Self]) -> Head {
        let mut out = Head::with_capacity(1 + 4 + verdicts.len() * 9);
        out.push(VERSION);
        out.extend_from_slice(&(verdicts.len() as u32).to_le_bytes());
        verdicts.iter().for_each(|verdict| verdict.encode(&mut out));
        out
    }

    /// Reads the head of an answer to a question about `count` objects.
    ///
    /// # Errors
    /// `Invalid` for anything else, `Incompatible` for another version.
    pub(crate) fn decode_all(head: &[u8], count: usize) -> Result<Verdicts> {
        let mut input = opened(head)?;
        if u32::from_le_bytes(input.array()?) as usize != count {
            return Err(invalid("an answer about more or fewer objects"));
        }
        let mut verdicts = Verdicts::with_capacity(count.min(input.left()));
        for _ in 0..count {
            verdicts.push(Self::decode(&mut input)?);
        }
        input.finish()?;
        Ok(verdicts)
    }

    /// Reads the head of an answer to a question about one object.
    ///
    /// # Errors
    /// As [`decode_all`](Self::decode_all).
    pub(crate) fn decode_one(head: &[u8]) -> Result<Self> {
        let mut input = opened(head)?;
        if u32::from_le_bytes(input.array()?) != 1 {
            return Err(invalid("an answer about more or fewer objects"));
        }
        let verdict = Self::decode(&mut input)?;
        input.finish()?;
        Ok(verdict)
    }
}

/// Decodes the head of a question, or of an answer about one or two objects; whether it was one.
///
/// # Panics
/// When what was decoded encodes to anything else: for fuzzers.
#[doc(hidden)]
pub fn check_question(head: &[u8]) -> bool {
    let question = Question::decode(head);
    if let Ok(question) = &question {
        assert_eq!(question.encode()[..], *head, "{question:?}");
    }
    let answers = [1, 2].map(|count| Verdict::decode_all(head, count));
    assert_eq!(Verdict::decode_one(head).ok().map(|one| Verdicts::from_iter([one])), answers[0].as_ref().ok().cloned());
    for verdicts in answers.iter().flatten() {
        // An unknown number of a kind is read as one that is known.
        let is_known = verdicts.iter().all(|verdict| *verdict != Verdict::Refused { kind: ErrorKind::Io });
        assert!(!is_known || Verdict::encode_all(verdicts)[..] == *head, "{verdicts:?}");
    }
    question.is_ok() || answers.iter().any(Result::is_ok)
}

fn list(out: &mut Head, op: u8, wants: &[Want]) {
    debug_assert!(wants.len() <= MAX_WANTS);
    out.reserve(2 + 4 + wants.len() * Want::LEN);
    out.extend_from_slice(&[VERSION, op]);
    out.extend_from_slice(&(wants.len() as u32).to_le_bytes());
    wants.iter().for_each(|want| want.encode(out));
}

fn wants(input: &mut Reader<'_>) -> Result<Wants> {
    let count = u32::from_le_bytes(input.array()?) as usize;
    if count == 0 || count > MAX_WANTS {
        return Err(invalid("a question about none or too many objects"));
    }
    // In proportion to the head, not to what it says.
    let mut wants = Wants::with_capacity(count.min(input.left() / Want::LEN));
    for _ in 0..count {
        wants.push(Want::decode(input)?);
    }
    Ok(wants)
}

fn format(input: &mut Reader<'_>) -> Result<Format> {
    Ok(Format { codec: u16::from_le_bytes(input.array()?), fingerprint: u64::from_le_bytes(input.array()?) })
}

fn opened(head: &[u8]) -> Result<Reader<'_>> {
    let mut input = Reader::new(head, "question or answer");
    match input.byte()? {
        VERSION => Ok(input),
        other => {
            let context = format!("the other node speaks version {other} of the protocol, this one {VERSION}");
            Err(Error::new(ErrorKind::Incompatible, "get", context))
        }
    }
}

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, "get", what)
}

/// Version of the questions, in a byte that text and zeroed memory do not begin with.
const VERSION: u8 = 0xc2;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;

    fn want() -> impl Strategy<Value = Want> {
        (any::<u32>(), 0..1u64 << Id::GENERATION_BITS, any::<u64>(), any::<u32>(), any::<u32>(), any::<u32>()).prop_map(
            |(slot, generation, place, from, count, more)| Want {
                id: Id { slot, generation },
                place,
                from: u64::from(from),
                count: u64::from(count),
                len: u64::from(from) + u64::from(count) + u64::from(more),
            },
        )
    }

    fn wanted(most: usize) -> impl Strategy<Value = Wants> {
        prop::collection::vec(want(), 1..=most).prop_map(Wants::from)
    }

    prop_compose! {
        fn any_format()(codec in any::<u16>(), fingerprint in any::<u64>()) -> Format {
            Format { codec, fingerprint }
        }
    }

    fn pointer() -> impl Strategy<Value = Pointer> {
        (any::<[u8; 16]>(), any::<bool>(), any::<u16>(), want(), any::<u64>(), any_format()).prop_map(
            |(ip, v6, port, want, instance, format)| {
                let contact = match v6 {
                    true => SocketAddr::from((ip, port)),
                    false => SocketAddr::from(([ip[0], ip[1], ip[2], ip[3]], port)),
                };
                let address = Address { contact, instance, id: want.id, place: want.place };
                Pointer { address, len: want.len, format }
            },
        )
    }

    fn question() -> impl Strategy<Value = Question> {
        prop_oneof![
            wanted(20).prop_map(Question::Get),
            wanted(20).prop_map(Question::Exists),
            wanted(20).prop_map(Question::Evict),
            (want(), any::<u64>()).prop_map(|(want, number)| Question::Retire { want, number }),
            want().prop_map(Question::Wait),
            (want(), any_format(), pointer()).prop_map(|(declared, format, object)| Question::Bind {
                declared,
                format,
                object
            }),
            (want(), node(), prop::collection::vec(any::<u64>(), 0..=MAX_LOST))
                .prop_map(|(want, as_node, lost)| Question::Join { want, as_node, lost }),
            (want(), any::<bool>()).prop_map(|(want, is_whole)| Question::Left { want, is_whole }),
            (any::<u64>(), want()).prop_map(|(instance, want)| Question::Pass { instance, want }),
        ]
    }

    fn node() -> impl Strategy<Value = Node> {
        pointer().prop_map(|Pointer { address, .. }| Node { contact: address.contact, instance: address.instance })
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            Just(Verdict::Missing),
            any::<u64>().prop_map(|expires_in| Verdict::Yes { expires_in }),
            Just(Verdict::Declared),
            pointer().prop_map(|pointer| Verdict::Bound(Box::new(pointer))),
            Just(Verdict::Taken),
            Just(Verdict::Refused { kind: ErrorKind::NoSpace }),
            (any::<u64>(), node()).prop_map(|(expires_in, node)| Verdict::From { expires_in, node: Box::new(node) }),
        ]
    }

    proptest! {
        #[test]
        fn questions_return(question in question()) {
            let head = question.encode();
            prop_assert!(head.len() <= MAX_HEAD);
            prop_assert!(check_question(&head));
            prop_assert_eq!(Question::decode(&head).unwrap(), question);
        }

        #[test]
        fn verdicts_return(verdicts in prop::collection::vec(verdict(), 0..20)) {
            let head = Verdict::encode_all(&verdicts);
            prop_assert_eq!(Verdict::decode_all(&head, verdicts.len()).unwrap().to_vec(), verdicts.clone());
            prop_assert!(Verdict::decode_all(&head, verdicts.len() + 1).is_err());
        }

        #[test]
        fn anything_is_refused_or_encodes_to_itself(mut head in prop::collection::vec(any::<u8>(), 0..200), op in 0..11u8) {
            if let [version, first, ..] = &mut head[..] {
                (*version, *first) = (VERSION, op);
            }
            check_question(&head);
            head.truncate(30);
            check_question(&head);
        }

        #[test]
        fn cut_short_is_refused(question in question(), cut in any::<prop::sample::Index>()) {
            let head = question.encode();
            prop_assert!(Question::decode(&head[..cut.index(head.len())]).is_err());
        }
    }

    #[test]
    fn the_longest_answer_fits() {
        let contact = SocketAddr::from(([0xfe; 16], 1));
        let address = Address { contact, instance: 1, id: Id { slot: 0, generation: 0 }, place: 0 };
        let pointer = Pointer { address, len: 0, format: Format::RAW };
        let mut bytes = Vec::new();
        pointer.encode(&mut bytes);
        assert_eq!(bytes.len(), Pointer::MOST);
        assert!(Verdict::encode_all(&vec![Verdict::Bound(Box::new(pointer)); MAX_ASKED]).len() <= MAX_HEAD);
    }

    #[test]
    fn the_longest_question_fits() {
        let want = Want { id: Id { slot: 0, generation: 0 }, place: 0, len: 0, from: 0, count: 0 };
        assert!(Question::Get(Wants::from_elem(want, MAX_WANTS)).encode().len() <= MAX_HEAD);
        let mut head = Question::Get(Wants::from_elem(want, MAX_WANTS)).encode();
        head[2..6].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Question::decode(&head).is_err());
    }
}
