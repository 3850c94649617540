//! `Digest`: what bytes are known again by, in the process that made it.
//!
//! ```text
//!   block of 4 KiB  ──> sum of (a + k)(b + k') over pairs of words, mod 2^128        NH, of UMAC (RFC 4418)
//!   all blocks      ──> two polynomials in these, mod 2^61 - 1, at secret points
//! ```
//!
//! The key is random and this process's own, so nobody can choose bytes that pass for others. For any two contents of at most
//! 16 MiB the odds that their digests are equal are below 2^-60.

use std::sync::OnceLock;

use crate::key::random_number;

/// The digest of some bytes; that of others of the same length differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest([u64; 2]);

struct Key {
    block: [u64; WORDS],
    points: [u64; 2],
}

impl Digest {
    /// # Cost
    /// Reads all bytes, 16 a multiplication: 0.2 us for 4 KiB, 50 us for 1 MiB; no allocation.
    pub(super) fn of(bytes: &[u8]) -> Self {
        static KEY: OnceLock<Key> = OnceLock::new();
        KEY.get_or_init(Key::random).digest(bytes)
    }
}

impl Key {
    fn random() -> Self {
        let point = || random_number() % (PRIME - 1) + 1;
        Self { block: std::array::from_fn(|_| random_number()), points: [point(), point()] }
    }

    fn digest(&self, bytes: &[u8]) -> Digest {
        // Zeros behind the end are no other content: whoever compares knows the length.
        let mut digest = [bytes.len() as u64 % PRIME; 2];
        let mut blocks = bytes.chunks_exact(WORDS * 8);
        for block in &mut blocks {
            self.add(&mut digest, block);
        }
        let rest = blocks.remainder();
        if !rest.is_empty() {
            let pairs = rest.len() / 16 * 16;
            let mut sum = self.sum(0, &rest[..pairs]);
            if pairs < rest.len() {
                let mut last = [0; 16];
                last[..rest.len() - pairs].copy_from_slice(&rest[pairs..]);
                sum = sum.wrapping_add(self.sum(pairs / 8, &last));
            }
            self.step(&mut digest, sum);
        }
        Digest(digest)
    }

    fn add(&self, digest: &mut [u64; 2], block: &[u8]) {
        self.step(digest, self.sum(0, block));
    }

    /// NH of whole pairs of words, under the key's words from `first` on.
    #[inline]
    fn sum(&self, first: usize, pairs: &[u8]) -> u128 {
        let keys = self.block[first..].chunks_exact(2);
        pairs.chunks_exact(16).zip(keys).fold(0, |sum, (pair, key)| {
            let (a, b) = pair.split_at(8);
            let product = u128::from(word(a).wrapping_add(key[0])) * u128::from(word(b).wrapping_add(key[1]));
            sum.wrapping_add(product)
        })
    }

    fn step(&self, digest: &mut [u64; 2], sum: u128) {
        for (digest, point) in digest.iter_mut().zip(self.points) {
            for part in [sum & LOW, sum >> 60 & LOW, sum >> 120] {
                *digest = reduce(u128::from(*digest) * u128::from(point) + part);
            }
        }
    }
}

#[inline]
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Modulo [`PRIME`], of less than 2^122.
#[inline]
fn reduce(number: u128) -> u64 {
    let folded = (number & u128::from(PRIME)) as u64 + (number >> 61) as u64;
    let folded = (folded & PRIME) + (folded >> 61);
    if folded >= PRIME { folded - PRIME } else { folded }
}

/// 2^61 - 1.
const PRIME: u64 = (1 << 61) - 1;

/// 60 bits: less than the prime.
const LOW: u128 = (1 << 60) - 1;

/// 8-byte words of a block.
const WORDS: usize = 512;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    /// The same, as it is written down.
    fn slow(key: &Key, bytes: &[u8]) -> Digest {
        let modulo = |number: u128| number % u128::from(PRIME);
        let mut digest = [bytes.len() as u128 % u128::from(PRIME); 2];
        for block in bytes.chunks(4096) {
            let mut words: Vec<u64> = Vec::new();
            for bytes in block.chunks(8) {
                let mut padded = [0; 8];
                padded[..bytes.len()].copy_from_slice(bytes);
                words.push(u64::from_le_bytes(padded));
            }
            words.resize(words.len().next_multiple_of(2), 0);
            let mut sum = 0u128;
            for at in (0..words.len()).step_by(2) {
                let keyed = |at: usize| u128::from(words[at].wrapping_add(key.block[at]));
                sum = sum.wrapping_add(keyed(at) * keyed(at + 1));
            }
            for (digest, point) in digest.iter_mut().zip(key.points) {
                for part in [sum % (1 << 60), (sum >> 60) % (1 << 60), sum >> 120] {
                    *digest = modulo(modulo(*digest * u128::from(point)) + part);
                }
            }
        }
        Digest(digest.map(|part| part as u64))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_what_is_written_down(len in prop_oneof![0..200usize, 4000..4200usize, 0..20_000usize], seed: u8) {
            let key = Key::random();
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31) as u8 ^ (i >> 8) as u8 ^ seed).collect();
            prop_assert_eq!(key.digest(&bytes), slow(&key, &bytes));
        }

        #[test]
        fn a_changed_byte_is_another_content(mut bytes in prop::collection::vec(any::<u8>(), 1..10_000), at: prop::sample::Index, by in 1..=255u8) {
            let before = Digest::of(&bytes);
            prop_assert_eq!(Digest::of(&bytes), before);
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            prop_assert_ne!(Digest::of(&bytes), before);
        }
    }

    #[test]
    fn blocks_that_change_places_are_another_content() {
        let blocks = |order: [u8; 3]| Digest::of(&order.map(|byte| [byte; 4096]).concat());
        assert_eq!(blocks([1, 2, 3]), blocks([1, 2, 3]));
        assert!(blocks([1, 2, 3]) != blocks([1, 3, 2]) && blocks([1, 2, 3]) != blocks([2, 1, 3]));
        assert_ne!(Digest::of(&[0; 10]), Digest::of(&[0; 11]));
    }

    #[test]
    fn another_process_has_another() {
        assert_ne!(Key::random().digest(b"the same"), Key::random().digest(b"the same"));
    }

    #[test]
    #[ignore = "measures: --release -- --ignored --nocapture digest"]
    fn measure() {
        for len in [8usize, 4096, 65536, 1 << 20, 16 << 20] {
            let bytes = vec![7u8; len];
            let times = (64 << 20) / len.max(64);
            let begun = Instant::now();
            for _ in 0..times {
                std::hint::black_box(Digest::of(std::hint::black_box(&bytes)));
            }
            let each = begun.elapsed().as_secs_f64() / times as f64;
            println!("{len} B: {:.3} us, {:.1} GB/s", each * 1e6, len as f64 / each / 1e9);
        }
    }
}
