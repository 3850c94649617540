//! What the two sides tell each other: how the owner is reached, and what is asked of it.

use std::io;

/// How an owner is reached, for whoever may read its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contact {
    /// Of its worker.
    pub(crate) address: Vec<u8>,
    /// Where its bytes begin, and the packed key to fetch them with: empty where it allows no fetching.
    pub(crate) memory: u64,
    pub(crate) key: Vec<u8>,
}

impl Contact {
    /// Length of the address, address, memory, key; to be passed on by those who trust each other.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = (self.address.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.address);
        bytes.extend_from_slice(&self.memory.to_le_bytes());
        bytes.extend_from_slice(&self.key);
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let cut = || io::Error::other("the contact of a UCP worker is cut short");
        let (len, rest) = bytes.split_first_chunk().ok_or_else(cut)?;
        let len = usize::try_from(u64::from_le_bytes(*len)).map_err(io::Error::other)?;
        let (address, rest) = rest.split_at_checked(len).ok_or_else(cut)?;
        let (memory, key) = rest.split_first_chunk().ok_or_else(cut)?;
        Ok(Self { address: address.to_vec(), memory: u64::from_le_bytes(*memory), key: key.to_vec() })
    }
}

/// The header of a message to the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) ask: Ask,
    /// Comes back as the header of the answer.
    pub(super) id: u32,
    /// Of the answer.
    pub(super) len: u64,
    /// For how many microseconds the owner spins when there is nothing to do, before it sleeps.
    pub(super) spin: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// The answer is one piece of the owner's memory.
    Eager,
    Rendezvous,
    /// It is so many pieces, copied together, and comes within the answer or as UCX likes.
    Gathered {
        pieces: u32,
        eager: bool,
    },
    /// No answer: only `spin` counts.
    Spin,
}

impl Request {
    pub(super) const LEN: usize = 24;

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let (code, pieces) = match self.ask {
            Ask::Eager => (0, 0),
            Ask::Rendezvous => (1, 0),
            Ask::Gathered { pieces, eager: false } => (2, pieces),
            Ask::Gathered { pieces, eager: true } => (4, pieces),
            Ask::Spin => (3, 0),
        };
        let mut bytes = [0; Self::LEN];
        for (place, word) in bytes.chunks_exact_mut(4).zip([code, pieces, self.id, self.spin]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[16..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let mut words = bytes.chunks_exact(4).filter_map(|word| Some(u32::from_le_bytes(word.try_into().ok()?)));
        let (code, pieces, id, spin) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let ask = match code {
            0 => Ask::Eager,
            1 => Ask::Rendezvous,
            2 | 4 if pieces > 0 => Ask::Gathered { pieces, eager: code == 4 },
            3 => Ask::Spin,
            _ => return None,
        };
        Some(Self { ask, id, len: u64::from_le_bytes(bytes[16..].try_into().ok()?), spin })
    }
}

/// Numbers of the messages.
pub(super) const REQUEST: u32 = 1;
pub(super) const ANSWER: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let gathered = |eager| Ask::Gathered { pieces: 64, eager };
        for ask in [Ask::Eager, Ask::Rendezvous, gathered(false), gathered(true), Ask::Spin] {
            let request = Request { ask, id: 7, len: 1 << 40, spin: 20 };
            assert_eq!(Request::from_bytes(&request.to_bytes()), Some(request));
        }
        let bytes = Request { ask: Ask::Gathered { pieces: 1, eager: false }, id: 0, len: 0, spin: 0 }.to_bytes();
        assert_eq!(Request::from_bytes(&bytes[1..]), None);
        let mut wrong = bytes;
        wrong[4] = 0;
        assert_eq!(Request::from_bytes(&wrong), None, "no pieces");
        wrong[0] = 5;
        assert_eq!(Request::from_bytes(&wrong), None, "an unknown question");

        let contact = Contact { address: vec![1, 2, 3], memory: 4, key: vec![5, 6] };
        let bytes = contact.to_bytes();
        assert_eq!(Contact::from_bytes(&bytes).unwrap(), contact);
        for len in 0..bytes.len() - contact.key.len() {
            assert!(Contact::from_bytes(&bytes[..len]).is_err(), "{len}");
        }
    }
}
