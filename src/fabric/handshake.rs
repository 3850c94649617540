//! `Handshake`: two processes prove to each other that they have the job's secret, before anything else is said.
//!
//! ```text
//!   requester                                        owner
//!   Hello     lane, silence, instance, nonce  ────>            56 bytes
//!             <────  Challenge  instance, nonce, proof         80 bytes
//!   Proof     proof                           ────>            40 bytes
//!             <────  Welcome                                    8 bytes
//! ```
//!
//! A proof is a MAC over the role, all that both sides said, the job, and the protocol: one that was recorded or turned back
//! proves nothing. Either side may send eight bytes of refusal instead of its next message. A state machine over bytes, so
//! that every fabric can use it on whatever stream it has; it allocates a fixed amount, whatever the peer says.
//!
//! The bytes after the handshake are not protected: who can change them on the way can do so.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Reader, fill_random};
use crate::launch::Secret;

/// Who this process is to its peers.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) secret: Arc<Secret>,
    /// Name of the job, or of the namespace within it: peers of another one are strangers.
    pub(crate) job: String,
    /// Number of this node's memory.
    pub(crate) instance: u64,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?}, instance {:016x})", self.job, self.instance)
    }
}

/// What a proved stream is for, as the requester says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) purpose: Purpose,
    /// Number of this stream among those of the same two processes.
    pub(crate) lane: u32,
    /// After how long without a sign of life the requester takes the owner for dead; whole milliseconds.
    pub(crate) silence: Duration,
}

/// What is spoken after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "fabrics over native libraries use it on their control connection")]
pub(crate) enum Purpose {
    Tcp = 1,
    Ucx = 2,
    Margo = 3,
}

impl Purpose {
    /// The scheme whose fabric speaks it.
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Ucx => "ucx",
            Self::Margo => "margo",
        }
    }
}

/// A peer that has the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proven {
    /// Number of its node's memory.
    pub(crate) instance: u64,
    pub(crate) stream: Stream,
}

/// One side of a handshake.
pub(crate) struct Handshake {
    identity: Identity,
    role: Role,
    stream: Stream,
    /// What the owner speaks.
    spoken: Vec<Purpose>,
    own: Nonce,
    next: Next,
    peer: Option<Greeting>,
    input: [u8; LONGEST],
    have: usize,
    output: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Requester,
    Owner,
}

/// The message that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Hello = 1,
    Challenge = 2,
    Proof = 3,
    Welcome = 4,
    Nothing,
}

type Nonce = [u8; 32];

/// What a peer said that both proofs cover.
#[derive(Clone, Copy)]
struct Greeting {
    instance: u64,
    nonce: Nonce,
}

impl Handshake {
    /// The requester's side; its first message is in [`output`](Self::output).
    pub(crate) fn request(identity: &Identity, stream: Stream) -> Self {
        let mut this = Self::new(identity, Role::Requester, stream, Next::Challenge);
        this.write_prefix(Next::Hello as u8);
        this.output.extend_from_slice(&stream.lane.to_le_bytes());
        this.output.extend_from_slice(&millis(stream.silence).to_le_bytes());
        this.output.extend_from_slice(&identity.instance.to_le_bytes());
        this.output.extend_from_slice(&this.own);
        this
    }

    /// The owner's side, which waits, and takes any of these purposes.
    pub(crate) fn answer(identity: &Identity, spoken: &[Purpose]) -> Self {
        let purpose = spoken.first().copied().unwrap_or(Purpose::Tcp);
        let stream = Stream { purpose, lane: 0, silence: Duration::ZERO };
        Self { spoken: spoken.to_vec(), ..Self::new(identity, Role::Owner, stream, Next::Hello) }
    }

    fn new(identity: &Identity, role: Role, stream: Stream, next: Next) -> Self {
        let mut own = [0; 32];
        fill_random(&mut own);
        let output = Vec::with_capacity(LONGEST);
        let (identity, spoken) = (identity.clone(), Vec::new());
        Self { identity, role, stream, spoken, own, next, peer: None, input: [0; LONGEST], have: 0, output }
    }

    /// Bytes to send, which are then forgotten; also after an error.
    pub(crate) fn output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// How many bytes to read at most: what follows the handshake must stay where it is. Zero when it is over.
    pub(crate) fn wanted(&self) -> usize {
        let len = match self.next {
            Next::Nothing => return 0,
            // Until the prefix tells whether this is the message or a refusal.
            _ if self.have < PREFIX => PREFIX,
            Next::Hello => HELLO,
            Next::Challenge => CHALLENGE,
            Next::Proof => PROOF,
            Next::Welcome => PREFIX,
        };
        len - self.have
    }

    /// Takes bytes of the peer, at most [`wanted`](Self::wanted); the peer, once it is proved and knows that this side is.
    ///
    /// # Errors
    /// `Unauthorized`, `Incompatible`, `Corrupt` for what is no handshake. The stream is to be closed, after the output.
    pub(crate) fn input(&mut self, bytes: &[u8]) -> Result<Option<Proven>> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let wanted = self.wanted();
            if wanted == 0 {
                return Err(corrupt("bytes after the end of a handshake"));
            }
            let (now, later) = rest.split_at(wanted.min(rest.len()));
            self.input[self.have..][..now.len()].copy_from_slice(now);
            self.have += now.len();
            rest = later;
            if now.len() == wanted {
                if let Err(error) = self.step() {
                    self.next = Next::Nothing;
                    // Who said something that both proofs cover has proved nothing by that.
                    self.peer = None;
                    return Err(error);
                }
            }
        }
        Ok(self.proven())
    }

    /// The peer, once it is proved and knows that this side is.
    pub(crate) fn proven(&self) -> Option<Proven> {
        match (self.next, self.peer) {
            (Next::Nothing, Some(peer)) => Some(Proven { instance: peer.instance, stream: self.stream }),
            _ => None,
        }
    }

    /// The input is a prefix, or a whole message.
    fn step(&mut self) -> Result<()> {
        let input = self.input;
        let mut message = Reader::new(&input[..self.have], "handshake");
        self.check_prefix(&mut message)?;
        if self.wanted() > 0 {
            return Ok(());
        }
        self.have = 0;
        match self.next {
            Next::Hello => {
                self.stream.lane = u32::from_le_bytes(message.array()?);
                self.stream.silence = Duration::from_millis(u32::from_le_bytes(message.array()?).into());
                let instance = u64::from_le_bytes(message.array()?);
                self.peer = Some(Greeting { instance, nonce: message.array()? });
                let proof = self.proof_of(Role::Owner);
                self.write_prefix(Next::Challenge as u8);
                self.output.extend_from_slice(&self.identity.instance.to_le_bytes());
                self.output.extend_from_slice(&self.own);
                self.output.extend_from_slice(&proof);
                self.next = Next::Proof;
            }
            Next::Challenge => {
                let instance = u64::from_le_bytes(message.array()?);
                self.peer = Some(Greeting { instance, nonce: message.array()? });
                self.verify(Role::Owner, &message.array()?)?;
                let proof = self.proof_of(Role::Requester);
                self.write_prefix(Next::Proof as u8);
                self.output.extend_from_slice(&proof);
                self.next = Next::Welcome;
            }
            Next::Proof => {
                self.verify(Role::Requester, &message.array()?)?;
                self.write_prefix(Next::Welcome as u8);
                self.next = Next::Nothing;
            }
            Next::Welcome | Next::Nothing => self.next = Next::Nothing,
        }
        Ok(())
    }

    /// Every message, of every version, begins with a prefix.
    fn check_prefix(&mut self, message: &mut Reader<'_>) -> Result<()> {
        if message.array()? != MAGIC {
            return Err(corrupt("what came is no handshake of proxystore"));
        }
        let version = u16::from_le_bytes(message.array()?);
        let (purpose, kind) = (message.byte()?, message.byte()?);
        if kind == REFUSED_SECRET {
            return Err(unauthorized("the peer says that the secret of this process is not that of its job"));
        }
        if self.next == Next::Hello {
            if let Some(asked) = self.spoken.iter().find(|spoken| **spoken as u8 == purpose) {
                self.stream.purpose = *asked;
            }
        }
        if version != VERSION || purpose != self.stream.purpose as u8 || kind == REFUSED_VERSION {
            if kind < REFUSED_SECRET {
                self.write_prefix(REFUSED_VERSION);
            }
            let own = self.stream.purpose;
            let context = if version == VERSION {
                format!("the peer does not answer over {}: is that feature compiled in there?", own.name())
            } else {
                format!(
                    "the peer speaks version {version} of protocol {purpose}, this process {VERSION} of {}: use one version \
                     of proxystore in a job",
                    own as u8
                )
            };
            return Err(Error::new(ErrorKind::Incompatible, "connect", context));
        }
        if kind != self.next as u8 {
            return Err(corrupt("messages of a handshake in the wrong order"));
        }
        Ok(())
    }

    fn verify(&mut self, role: Role, proof: &[u8; 32]) -> Result<()> {
        let is_right = match &self.peer {
            Some(peer) => {
                let said = self.said(peer);
                self.identity.secret.verify(role.label(), &said.parts(&self.identity.job), proof)
            }
            None => false,
        };
        if is_right {
            return Ok(());
        }
        self.write_prefix(REFUSED_SECRET);
        Err(unauthorized("the peer does not have the secret of this job, or is of another one"))
    }

    fn proof_of(&self, role: Role) -> [u8; 32] {
        match &self.peer {
            Some(peer) => {
                let said = self.said(peer);
                self.identity.secret.mac(role.label(), &said.parts(&self.identity.job))
            }
            None => [0; 32],
        }
    }

    fn said(&self, peer: &Greeting) -> Said {
        let own = Greeting { instance: self.identity.instance, nonce: self.own };
        let (requester, owner) = if self.role == Role::Requester { (&own, peer) } else { (peer, &own) };
        let mut numbers = [0; 28];
        numbers[..2].copy_from_slice(&VERSION.to_le_bytes());
        numbers[2] = self.stream.purpose as u8;
        numbers[4..8].copy_from_slice(&self.stream.lane.to_le_bytes());
        numbers[8..12].copy_from_slice(&millis(self.stream.silence).to_le_bytes());
        numbers[12..20].copy_from_slice(&requester.instance.to_le_bytes());
        numbers[20..].copy_from_slice(&owner.instance.to_le_bytes());
        Said { numbers, requester: requester.nonce, owner: owner.nonce }
    }

    fn write_prefix(&mut self, kind: u8) {
        self.output.extend_from_slice(&MAGIC);
        self.output.extend_from_slice(&VERSION.to_le_bytes());
        self.output.extend_from_slice(&[self.stream.purpose as u8, kind]);
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handshake(waits for {:?})", self.next)
    }
}

impl Role {
    /// Keeps a proof of one side from being one of the other.
    fn label(self) -> &'static str {
        match self {
            Self::Requester => "proxystore handshake requester",
            Self::Owner => "proxystore handshake owner",
        }
    }
}

/// What both proofs cover, but for role and job.
struct Said {
    numbers: [u8; 28],
    requester: Nonce,
    owner: Nonce,
}

impl Said {
    fn parts<'a>(&'a self, job: &'a str) -> [&'a [u8]; 4] {
        [&self.numbers, &self.requester, &self.owner, job.as_bytes()]
    }
}

/// Drives the side that `role` tells with anything that a peer may send, for fuzzers.
///
/// # Panics
/// When a peer without the secret is believed, when more memory is held or answered than the fixed amount, or when the
/// result depends on how the bytes are cut.
#[doc(hidden)]
pub fn check_handshake(bytes: &[u8]) -> bool {
    let Some((role, bytes)) = bytes.split_first() else { return false };
    let identity = Identity { secret: Arc::new(Secret::random()), job: "fuzz".to_owned(), instance: 1 };
    let stream = Stream { purpose: Purpose::Tcp, lane: 0, silence: Duration::from_secs(1) };
    let outcome = |cut: usize| {
        let mut side = match role % 2 {
            0 => Handshake::answer(&identity, &[Purpose::Tcp]),
            _ => Handshake::request(&identity, stream),
        };
        side.output();
        for piece in bytes.chunks(cut) {
            match side.input(piece) {
                Ok(proven) => assert_eq!(proven, None, "a stranger was believed"),
                Err(error) => {
                    assert!(side.output.len() <= LONGEST + PREFIX && side.proven().is_none());
                    return Some(error.kind());
                }
            }
            assert!(side.output.len() <= LONGEST);
        }
        None
    };
    let whole = outcome(bytes.len().max(1));
    assert_eq!(outcome(1), whole);
    whole.is_none()
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn corrupt(context: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, "connect", context)
}

fn unauthorized(context: &'static str) -> Error {
    Error::new(ErrorKind::Unauthorized, "connect", context)
}

/// Version of the handshake and of what follows it.
const VERSION: u16 = 2;

/// First bytes of every message.
const MAGIC: [u8; 4] = [0xf4, b'p', b'x', b'h'];

/// Magic, version, purpose, kind: the same in all versions.
const PREFIX: usize = 8;
const HELLO: usize = PREFIX + 4 + 4 + 8 + 32;
const CHALLENGE: usize = PREFIX + 8 + 32 + 32;
const PROOF: usize = PREFIX + 32;
const LONGEST: usize = CHALLENGE;

/// Kinds of refusals, which are prefixes alone.
const REFUSED_SECRET: u8 = 0x80;
const REFUSED_VERSION: u8 = 0x81;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity(job: &str, instance: u64) -> Identity {
        static SECRET: std::sync::OnceLock<Arc<Secret>> = std::sync::OnceLock::new();
        let secret = Arc::clone(SECRET.get_or_init(|| Arc::new(Secret::random())));
        Identity { secret, job: job.to_owned(), instance }
    }

    fn stranger(job: &str, instance: u64) -> Identity {
        Identity { secret: Arc::new(Secret::random()), ..identity(job, instance) }
    }

    fn stream() -> Stream {
        Stream { purpose: Purpose::Tcp, lane: 3, silence: Duration::from_millis(1500) }
    }

    /// What both sides made of each other, passing bytes as they come.
    fn meet(requester: &mut Handshake, owner: &mut Handshake) -> (Result<Option<Proven>>, Result<Option<Proven>>) {
        let mut seen = (Ok(None), Ok(None));
        loop {
            let (asked, told) = (requester.output(), owner.output());
            if asked.is_empty() && told.is_empty() {
                return seen;
            }
            if !asked.is_empty() && seen.1.is_ok() {
                seen.1 = owner.input(&asked);
            }
            if !told.is_empty() && seen.0.is_ok() {
                seen.0 = requester.input(&told);
            }
        }
    }

    #[test]
    fn both_are_proved() {
        let mut requester = Handshake::request(&identity("job", 1), stream());
        let mut owner = Handshake::answer(&identity("job", 2), &[Purpose::Tcp]);
        let (owners, requesters) = meet(&mut requester, &mut owner);
        assert_eq!(owners.unwrap(), Some(Proven { instance: 2, stream: stream() }));
        assert_eq!(requesters.unwrap(), Some(Proven { instance: 1, stream: stream() }));
        assert_eq!((requester.wanted(), owner.wanted()), (0, 0));
        assert_eq!(owner.input(b"x").unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn another_secret_or_job_is_refused_on_both_sides() {
        for other in [stranger("job", 2), identity("other", 2)] {
            let mut requester = Handshake::request(&identity("job", 1), stream());
            let mut owner = Handshake::answer(&other, &[Purpose::Tcp]);
            let (owners, requesters) = meet(&mut requester, &mut owner);
            assert_eq!(owners.unwrap_err().kind(), ErrorKind::Unauthorized);
            assert_eq!(requesters.unwrap_err().kind(), ErrorKind::Unauthorized);
            assert!(requester.proven().is_none() && owner.proven().is_none());
        }
    }

    #[test]
    fn a_requester_that_does_not_check_is_refused() {
        let mut owner = Handshake::answer(&identity("job", 2), &[Purpose::Tcp]);
        let mut requester = Handshake::request(&stranger("job", 1), stream());
        owner.input(&requester.output()).unwrap();
        let challenge = owner.output();
        let mut proof = challenge[..PREFIX].to_vec();
        proof[PREFIX - 1] = Next::Proof as u8;
        requester.peer = Some(Greeting { instance: 2, nonce: challenge[16..48].try_into().unwrap() });
        proof.extend_from_slice(&requester.proof_of(Role::Requester));
        assert_eq!(owner.input(&proof).unwrap_err().kind(), ErrorKind::Unauthorized);
        assert_eq!(owner.output().last(), Some(&REFUSED_SECRET));
    }

    #[test]
    fn a_recorded_handshake_proves_nothing() {
        let mut requester = Handshake::request(&identity("job", 1), stream());
        let mut owner = Handshake::answer(&identity("job", 2), &[Purpose::Tcp]);
        let hello = requester.output();
        owner.input(&hello).unwrap();
        let challenge = owner.output();
        requester.input(&challenge).unwrap();
        let proof = requester.output();
        assert!(owner.input(&proof).unwrap().is_some());

        let mut again = Handshake::answer(&identity("job", 2), &[Purpose::Tcp]);
        again.input(&hello).unwrap();
        assert_ne!(again.output(), challenge);
        assert_eq!(again.input(&proof).unwrap_err().kind(), ErrorKind::Unauthorized);

        let mut again = Handshake::request(&identity("job", 1), stream());
        assert_eq!(again.input(&challenge).unwrap_err().kind(), ErrorKind::Unauthorized);
    }

    #[test]
    fn a_proof_turned_back_proves_nothing() {
        let mut owner = Handshake::answer(&identity("job", 2), &[Purpose::Tcp]);
        let mut requester = Handshake::request(&identity("job", 2), stream());
        owner.input(&requester.output()).unwrap();
        let challenge = owner.output();
        // Its own proof as the requester's.
        let mut turned = challenge[..PREFIX].to_vec();
        turned[PREFIX - 1] = Next::Proof as u8;
        turned.extend_from_slice(&challenge[48..]);
        assert_eq!(owner.input(&turned).unwrap_err().kind(), ErrorKind::Unauthorized);
        // Another owner's challenge that was asked for with this requester's nonce, for another lane.
        let mut other = Handshake::answer(&identity("job", 2), &[Purpose::Tcp]);
        let mut requester = Handshake::request(&identity("job", 2), stream());
        let mut hello = requester.output();
        hello[PREFIX] ^= 1;
        other.input(&hello).unwrap();
        assert_eq!(requester.input(&other.output()).unwrap_err().kind(), ErrorKind::Unauthorized);
    }

    #[test]
    fn other_versions_and_purposes_are_told() {
        for (at, value) in [(4, VERSION as u8 + 1), (6, Purpose::Ucx as u8)] {
            let mut requester = Handshake::request(&identity("job", 1), stream());
            let mut owner = Handshake::answer(&identity("job", 2), &[Purpose::Tcp]);
            let mut hello = requester.output();
            hello[at] = value;
            assert_eq!(owner.input(&hello).unwrap_err().kind(), ErrorKind::Incompatible);
            let refusal = owner.output();
            assert_eq!(refusal.len(), PREFIX);
            assert_eq!(requester.input(&refusal).unwrap_err().kind(), ErrorKind::Incompatible);
            assert_eq!(requester.output(), Vec::<u8>::new(), "a refusal is not answered");
        }
        // Even a refusal of another version.
        let mut requester = Handshake::request(&identity("job", 1), stream());
        let refusal = [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], 7, 0, Purpose::Tcp as u8, REFUSED_VERSION];
        let error = requester.input(&refusal).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(error.to_string().contains("version 7"), "{error}");
    }

    #[test]
    fn garbage_is_refused_at_its_eighth_byte() {
        let mut owner = Handshake::answer(&identity("job", 2), &[Purpose::Tcp]);
        assert_eq!(owner.wanted(), PREFIX);
        assert!(owner.input(b"GET / H").unwrap().is_none());
        assert_eq!(owner.input(b"T").unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(owner.output().is_empty());
    }

    #[test]
    fn who_fails_after_the_greeting_is_not_proved() {
        let mut owner = Handshake::answer(&identity("job", 2), &[Purpose::Tcp]);
        owner.input(&Handshake::request(&identity("job", 1), stream()).output()).unwrap();
        assert!(owner.input(b"garbage!").is_err());
        assert_eq!((owner.proven(), owner.wanted()), (None, 0));
    }

    proptest! {
        #[test]
        fn each_flipped_bit_is_noticed(message in 0usize..4, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut requester = Handshake::request(&identity("job", 1), stream());
            let mut owner = Handshake::answer(&identity("job", 2), &[Purpose::Tcp]);
            let mut failed = false;
            for i in 0..4 {
                let (from, to) = if i % 2 == 0 { (&mut requester, &mut owner) } else { (&mut owner, &mut requester) };
                let mut bytes = from.output();
                if i == message {
                    *at.get_mut(&mut bytes) ^= 1 << bit;
                }
                failed |= to.input(&bytes).is_err();
                if failed {
                    break;
                }
            }
            prop_assert!(failed);
        }

        #[test]
        fn arbitrary_bytes(role in any::<u8>(), kind in 0u8..6, mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            bytes.insert(0, role);
            check_handshake(&bytes);
            bytes.splice(1..1, MAGIC.into_iter().chain([1, 0, Purpose::Tcp as u8, kind]));
            check_handshake(&bytes);
        }
    }
}
