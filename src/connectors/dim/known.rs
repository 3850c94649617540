//! `Known`: objects of other nodes that this process has read before, so that it can read them again without a question.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::digest::Digest;
use super::remote::origin;
use crate::service::address::Address;
use crate::service::locator::NO_PLACE;
use crate::shm::table::Origin;
use crate::sync::lock;

/// What is remembered of objects, at most [`MOST`] of them and twice that for a while.
#[derive(Default)]
pub(super) struct Known(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<Origin, Memory>,
    old: HashMap<Origin, Memory>,
}

/// What is remembered of an object.
#[derive(Clone, Copy, Debug)]
struct Memory {
    /// When its owner was last asked: it was there later than that.
    asked: Instant,
    /// When it ends by itself.
    ends: Option<Instant>,
    /// Of its bytes, from the second time on that they came by an answer.
    digest: Option<Digest>,
}

/// What an object of another node is known by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sighted {
    pub(super) asked: Instant,
    /// It ends by itself in so many milliseconds, 0 for never; `None` where it has ended.
    pub(super) expires_in: Option<u64>,
    pub(super) digest: Digest,
}

impl Known {
    /// An object whose bytes would be known again.
    pub(super) fn sighted(&self, at: &Address) -> Option<Sighted> {
        let memory = *lock(&self.0).touch(&origin(at))?;
        let expires_in = match memory.ends {
            None => Some(0),
            Some(ends) => match ends.saturating_duration_since(Instant::now()).as_millis() as u64 {
                0 => None,
                millis => Some(millis),
            },
        };
        Some(Sighted { asked: memory.asked, expires_in, digest: memory.digest? })
    }

    /// Notes an object whose bytes an answer brought.
    ///
    /// # Cost
    /// The second time, a digest of them: what is read once is not read for that again.
    pub(super) fn came(&self, at: &Address, asked: Instant, expires_in: u64, bytes: &[u8]) {
        if at.place == NO_PLACE || bytes.is_empty() || bytes.len() > LONGEST {
            return;
        }
        let is_second = lock(&self.0).touch(&origin(at)).is_some();
        let digest = is_second.then(|| Digest::of(bytes));
        self.note(at, Memory { asked, ends: ends(asked, expires_in), digest });
    }

    /// Notes the owner's word that an object was there.
    pub(super) fn confirmed(&self, at: &Address, asked: Instant, expires_in: u64, digest: Digest) {
        self.note(at, Memory { asked, ends: ends(asked, expires_in), digest: Some(digest) });
    }

    /// Forgets an object: it is gone, or its bytes are.
    pub(super) fn forget(&self, at: &Address) {
        let mut all = lock(&self.0);
        all.young.remove(&origin(at));
        all.old.remove(&origin(at));
    }

    fn note(&self, at: &Address, memory: Memory) {
        lock(&self.0).insert(origin(at), memory);
    }
}

impl Generations {
    /// What is remembered, which is then as if it had just come.
    fn touch(&mut self, origin: &Origin) -> Option<&Memory> {
        if let Some(memory) = self.old.remove(origin) {
            self.insert(*origin, memory);
        }
        self.young.get(origin)
    }

    fn insert(&mut self, origin: Origin, memory: Memory) {
        if self.young.len() >= MOST {
            // What nobody has asked for since the last time is forgotten.
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(origin, memory);
    }
}

fn ends(asked: Instant, expires_in: u64) -> Option<Instant> {
    (expires_in > 0).then(|| asked + Duration::from_millis(expires_in))
}

/// Longest object that is read without a question: beyond it the owner's share is small, and the digest's is not.
pub(super) const LONGEST: usize = 4 << 20;

const MOST: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::table::Id;

    fn at(slot: u32) -> Address {
        Address { contact: ([10, 0, 0, 1], 1).into(), instance: 7, id: Id { slot, generation: 1 }, place: 64 }
    }

    #[test]
    fn what_came_twice_is_known() {
        let (known, asked) = (Known::default(), Instant::now());
        known.came(&at(1), asked, 0, b"bytes");
        assert!(known.sighted(&at(1)).is_none());
        known.came(&at(1), asked, 0, b"bytes");
        let sighted = known.sighted(&at(1)).unwrap();
        assert_eq!((sighted.digest, sighted.expires_in, sighted.asked), (Digest::of(b"bytes"), Some(0), asked));
        let later = Address { id: Id { slot: 1, generation: 2 }, ..at(1) };
        assert!(known.sighted(&later).is_none(), "a later object of the slot");
        known.forget(&at(1));
        assert!(known.sighted(&at(1)).is_none());
        for (place, len) in [(NO_PLACE, 1), (0, 0), (0, LONGEST + 1)] {
            let at = Address { place, ..at(2) };
            (0..3).for_each(|_| known.came(&at, asked, 0, &vec![0; len]));
            assert!(known.sighted(&at).is_none(), "{place} {len}");
        }
    }

    #[test]
    fn what_ends_by_itself_is_known_to_have_ended() {
        let known = Known::default();
        known.confirmed(&at(1), Instant::now(), 60_000, Digest::of(b"x"));
        assert!(known.sighted(&at(1)).unwrap().expires_in.is_some_and(|millis| millis <= 60_000));
        let before = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        known.confirmed(&at(1), before, 500, Digest::of(b"x"));
        assert!(known.sighted(&at(1)).unwrap().expires_in.is_none());
    }

    #[test]
    fn what_nobody_asks_for_is_forgotten() {
        let known = Known::default();
        let note = |slot| known.confirmed(&at(slot), Instant::now(), 0, Digest::of(b"x"));
        note(0);
        for slot in 1..3 * MOST as u32 {
            note(slot);
            assert!(known.sighted(&at(0)).is_some(), "{slot}");
        }
        let all = lock(&known.0);
        assert!(all.young.len() <= MOST && all.old.len() <= MOST);
        assert!(!all.young.contains_key(&origin(&at(1))) && !all.old.contains_key(&origin(&at(1))));
    }
}
