//! The payload: bytes that both sides can make, in warm memory, and the plain copy of them.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Two warm buffers of one size.
pub(super) struct Buffers {
    /// What every object of this size holds.
    pub(super) payload: Vec<u8>,
    pub(super) scratch: Vec<u8>,
}

impl Buffers {
    pub(super) fn new(size: usize) -> Self {
        // xorshift64: no byte follows from its address, so a misplaced page shows in the checksum.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ size as u64;
        let mut payload = vec![0; size];
        for word in payload.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
        // Not zeroed but written: zeroed memory may be pages that nobody has touched.
        Self { scratch: payload.clone(), payload }
    }

    /// The reference: copies the payload `n` times.
    pub(super) fn copy(&mut self, n: usize) -> Duration {
        let begin = Instant::now();
        for _ in 0..n {
            self.scratch.copy_from_slice(black_box(&self.payload));
            black_box(&mut self.scratch);
        }
        begin.elapsed()
    }

    pub(super) fn checksum(&self) -> u32 {
        crc32fast::hash(&self.payload)
    }
}
