//! `Numbered`: maps by numbers that this process chose.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

use crate::key::random_number;

/// By numbers of ours, of calls or connections. A peer can ask for any number, and find nothing; it cannot add one: so none of
/// SipHash's protection is needed, which costs ten times as much.
pub(super) type Numbered<T> = HashMap<u64, T, BuildHasherDefault<Spread>>;

/// Spreads numbers that follow each other, or are random, over all bits.
#[derive(Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * u128::from(GOLDEN);
        // Both halves: tables look at the lowest bits, and at the highest.
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// For numbers that peers chose, which are few: the same from a beginning that they do not know, so that it is hard to choose such as meet.
pub(super) struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Self {
        Self(random_number())
    }
}

impl BuildHasher for Seeded {
    type Hasher = Spread;

    fn build_hasher(&self) -> Spread {
        Spread(self.0)
    }
}

/// 2^64 divided by the golden ratio, as in Knuth's multiplicative hashing (TAOCP 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::Hash;

    use super::*;

    fn hash(number: u64) -> u64 {
        let mut spread = Spread::default();
        number.hash(&mut spread);
        spread.finish()
    }

    #[test]
    fn numbers_in_a_row_share_no_bits_that_tables_look_at() {
        for shift in [0, 1, 8, 32, 48] {
            let hashes: Vec<u64> = (1..=1000u64).map(|number| hash(number << shift)).collect();
            let low: HashSet<u64> = hashes.iter().map(|hash| hash & 0x7ff).collect();
            let high: HashSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
            // At random 1000 numbers meet some 790 of 2048 places, and all of 128.
            assert!(low.len() > 600 && high.len() > 100, "shift {shift}: {} and {}", low.len(), high.len());
        }
    }
}
